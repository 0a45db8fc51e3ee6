// What the parts of the page share. Each part is a file of its own.
"use strict";

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 46rem)"); // a telephone

/** An element with attributes and children. Children that are strings become text, never markup. */
function el(tag, attributes = {}, ...children) {
  const drawn = ["path", "line", "circle", "text", "g"].includes(tag);
  const node = drawn ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children);
  return node;
}

/** Puts a row of buttons into a node, of which one is pressed, at first `first`. */
function choice(node, legend, options, first, choose) {
  const buttons = options.map((option) => el("button", { onclick: () => press(option) }, option));
  function press(option) {
    options.forEach((other, k) => buttons[k].setAttribute("aria-pressed", other === option));
    choose(option);
  }
  node.prepend(el("fieldset", {}, el("legend", {}, legend), ...buttons));
  press(first);
}

/** The step of an arrow key: [right, down]. */
function arrow(event) {
  const steps = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (steps[event.key]) event.preventDefault();
  return steps[event.key] ?? [0, 0];
}

const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵");
