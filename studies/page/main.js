// All parts, in the order of the page.
type();
sideBySide();
curves();
attention();
choice($("stages"), "stage", Object.keys(STAGES), "causal", oneHead);
samples();
