// All parts, in the order of the page.
sideBySide();
type();
curves();
attention();
choice($("stages"), "stage", Object.keys(STAGES), "causal", oneHead);
samples();
