// Samples.

function samples() {
  for (const { name, loss, text } of data.samples) {
    const caption = el("figcaption", {}, el("b", {}, name), el("span", { class: "faint" }, loss));
    const button = el("button", { onclick: () => button.remove() }, "all of it");
    $("written").append(el("figure", {}, caption, el("pre", {}, text), button));
  }
}
