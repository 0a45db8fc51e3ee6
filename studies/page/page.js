// What the page does: rungs side by side, curves, attention, one head, samples. Each part stands alone.
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

// ---------------------------------------------------------------- Side by side

const rungs = new Map(data.rungs.map((rung) => [rung.file, rung]));
const names = [...rungs.keys()];
let shown = []; // the two files

/** The pieces of a line, coloured by kind; the characters within `marks` are marked. */
function painted([text, ...spans], marks = []) {
  const [characters, pieces] = [[...text], []];
  const looks = characters.map(() => "is-");
  for (let k = 0; k < spans.length; k += 3) looks.fill(`is-${spans[k + 2]}`, spans[k], spans[k + 1]);
  for (let k = 0; k < marks.length; k += 2) for (let c = marks[k]; c < marks[k + 1]; c++) looks[c] += " marked";
  for (let start = 0, end = 1; start < characters.length; end++) {
    if (looks[end] === looks[start]) continue;
    const piece = characters.slice(start, end).join("");
    const tag = looks[start].endsWith("marked") ? "mark" : "span";
    pieces.push(looks[start] === "is-" ? piece : el(tag, { class: looks[start] }, piece));
    start = end;
  }
  return pieces;
}

/** A row of the table: line i of the left file beside line j of the right one, -1 for none. */
function row(i, j, same, marks = []) {
  const cells = [i, j].flatMap((number, side) => {
    if (number < 0) return [el("td", { class: "number none" }), el("td", { class: "none" })];
    const [file, look] = [shown[side], same ? "" : ["gone", "new"][side]];
    const id = `${file}-L${number + 1}`;
    const link = el("a", { href: `#${id}`, "aria-label": `${look} ${file} line ${number + 1}` }, number + 1);
    const code = el("td", { class: look }, ...painted(rungs.get(file).lines[number], marks[side]));
    return [el("td", { class: `number ${look}`, id }, link), code];
  });
  return el("tr", { class: same ? "same" : "" }, ...cells);
}

/** n equal lines, from i and j on. All but a few next to a change fold away, on a telephone all. */
function equal([i, j, n], first, last) {
  const [above, below] = [first, last].map((end) => (end || narrow.matches ? 0 : 3));
  const rows = Array.from({ length: n }, (_, k) => row(i + k, j + k, true));
  const inside = rows.slice(above, n - below);
  if (inside.length < (narrow.matches ? 2 : 4)) return [el("tbody", {}, ...rows)];
  const body = el("tbody", { hidden: "" }, ...inside);
  const unfold = () => button.setAttribute("aria-expanded", !(body.hidden = !body.hidden));
  const button = el("button", { "aria-expanded": false, onclick: unfold }, `${inside.length} lines the same`);
  const bar = el("tr", { class: "fold" }, el("td", { class: "fold", colspan: 4 }, button));
  return [el("tbody", {}, ...rows.slice(0, above), bar), body, el("tbody", {}, ...rows.slice(n - below))];
}

/** Lines that differ. Where there are two columns, what is gone stands beside what is new. */
function changed(pairs) {
  const [body, gone, fresh] = [el("tbody"), [], []];
  const flush = () => {
    while (!narrow.matches && gone.length && fresh.length) body.append(row(gone.shift(), fresh.shift(), false));
    body.append(...gone.splice(0).map((i) => row(i, -1, false)), ...fresh.splice(0).map((j) => row(-1, j, false)));
  };
  for (const [i, j, ...marks] of pairs) {
    if (i < 0) fresh.push(j);
    else if (j < 0) gone.push(i);
    else flush(), body.append(row(i, j, !marks.flat().length, marks));
  }
  flush();
  return [body];
}

function card(file) {
  const { title, about, loss, parameters, time, lines } = rungs.get(file);
  const numbers = { loss: `${loss} nats`, parameters, lines: lines.length, trained: time };
  const list = Object.entries(numbers).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)));
  const words = [el("h3", {}, file), el("p", {}, title), el("p", { class: "faint" }, about)];
  return el("div", { class: "card" }, ...words, el("dl", { class: "numbers" }, ...list));
}

function show(...files) {
  shown = files;
  [$("left").value, $("right").value] = files;
  const links = $("steps").querySelectorAll("a");
  links.forEach((link) => link.setAttribute("aria-current", link.hash === `#${files.join("...")}`));
  $("cards").replaceChildren(...files.map(card));
  const parts = data.pairs[files.join(" ")];
  const bodies = parts.flatMap((part, k) =>
    Array.isArray(part[0]) ? changed(part) : equal(part, k === 0, k === parts.length - 1),
  );
  const columns = ["number", "", "number", ""].map((look) => el("col", { class: look }));
  const heads = files.map((file) => el("th", { scope: "colgroup", colspan: 2 }, file));
  $("diff").replaceChildren(...columns, el("thead", {}, el("tr", {}, ...heads)), ...bodies);
}

/** A rung's own step: the rung below and it. The lowest stands left of the one above it. */
const stepOf = (file) => (rungs.get(file).below ? [rungs.get(file).below, file] : names.slice(0, 2));

/** Shows what the address says: #block.py...gpt.py is a pair, #gpt.py-L84 a line. */
function go() {
  const address = location.hash.slice(1);
  const pair = address.split("...");
  const [file, line] = address.split("-L");
  if (pair.join(" ") in data.pairs) show(...pair);
  if (line && rungs.has(file) && !shown.includes(file)) show(...stepOf(file));
  const target = line && $(address);
  if (!target) return;
  for (const former of $("diff").querySelectorAll(".target")) former.classList.remove("target");
  const body = target.closest("tbody");
  if (body.hidden) body.previousElementSibling.querySelector("button").click();
  target.parentElement.classList.add("target");
  target.parentElement.scrollIntoView({ block: "center" });
}

function sideBySide() {
  for (const { below, file, idea } of data.rungs.slice(1)) {
    const link = el("a", { href: `#${below}...${file}` }, el("b", {}, `${below} → ${file}`), idea);
    $("steps").append(el("li", {}, link));
  }
  $("pair").addEventListener("change", () => {
    const [left, right] = [$("left").value, $("right").value];
    location.hash = (left === right ? stepOf(left) : [left, right]).join("...");
  });
  for (const id of ["left", "right"]) $(id).append(...names.map((name) => el("option", {}, name)));
  show(...stepOf("multi_head.py"));
  go();
  addEventListener("hashchange", go);
  narrow.addEventListener("change", () => show(...shown));
}

// ---------------------------------------------------------------- Curves

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#888888"]; // Okabe and Ito's
const DASHES = { solid: undefined, dashed: "6 3", dotted: "2 3" };
const view = { over: "steps", axis: "logarithmic", training: false, on: new Set(), at: null }; // at: the pointer

/** Round numbers between two others. */
function ticks(low, high, logarithmic) {
  const rough = (high - low) / 5;
  const size = 10 ** Math.floor(Math.log10(logarithmic ? low : rough));
  const step = [1, 2, 5, 10].find((by) => by * size >= rough) * size;
  const digits = high < 30 * low ? [1, 2, 3, 5, 7] : high < 5000 * low ? [1, 2, 5] : [1];
  const found = Array.from({ length: 12 }, (_, k) =>
    logarithmic ? digits.map((digit) => digit * size * 10 ** k) : (Math.ceil(low / step) + k) * step,
  );
  return found.flat().filter((x) => x >= low && x <= high);
}

/** Where a run has a loss, its validation loss unless `training`: { x, loss, spread, k }, the last its row. */
function pointsOf(run, training = !run.val.some((loss) => loss !== null)) {
  const losses = training ? run.train : run.val;
  const points = losses.map((loss, k) => ({ x: run[view.over][k], loss, spread: run.spread[k], k }));
  return points.filter(({ x, loss }) => loss !== null && (x > 0 || view.axis === "linear"));
}

/** Draws the runs that are on, after a change of the view. */
function drawCurves(change = {}) {
  Object.assign(view, change);
  const [left, right, top, bottom] = [40, $("plot").clientWidth - 14, 8, $("plot").clientHeight - 36];
  const runs = data.curves.filter((run) => view.on.has(run));
  // As in results/plot.py: from shortly before the first evaluation on, so that first steps do not press all flat.
  const inside = runs.flatMap((run) => {
    const start = 0.8 * (pointsOf(run)[0]?.x ?? 0);
    return [...pointsOf(run), ...(view.training ? pointsOf(run, true) : [])].filter(({ x }) => x >= start);
  });
  const [xs, losses] = [inside.map(({ x }) => x), inside.map(({ loss }) => loss)];
  const logarithmic = view.axis === "logarithmic";
  const first = logarithmic ? Math.min(...xs, 1e9) : 0;
  const last = Math.max(...xs, first * 1.01);
  const [low, high] = [Math.min(...losses, 9) - 0.05, Math.max(...losses, 0) + 0.05];
  const share = (x) => (logarithmic ? Math.log(x / first) / Math.log(last / first) : x / last);
  const height = (loss) => (loss - low) / (high - low);
  view.place = ({ x, loss }) => [left + share(x) * (right - left), bottom - height(loss) * (bottom - top)];
  const path = (points) => "M" + points.map((point) => view.place(point)).join("L");
  const frame = [el("text", { x: right, y: bottom + 33, "text-anchor": "end" }, `training ${view.over}`)];
  const line = (x1, y1, x2, y2) => el("line", { x1, y1, x2, y2 });
  for (const loss of inside.length ? ticks(low, high, false) : []) {
    const y = view.place({ x: last, loss })[1];
    frame.push(line(left, y, right, y), el("text", { x: left - 8, y: y + 4, "text-anchor": "end" }, loss.toFixed(2)));
  }
  for (const tick of inside.length ? ticks(first, last, logarithmic) : []) {
    const x = view.place({ x: tick, loss: low })[0];
    const number = Intl.NumberFormat("en", { notation: "compact" }).format(tick);
    frame.push(line(x, bottom, x, bottom + 4), el("text", { x, y: bottom + 18, "text-anchor": "middle" }, number));
  }
  const clip = `clip-path: polygon(${left}px 0, 100% 0, 100% ${bottom}px, ${left}px ${bottom}px) view-box`;
  const drawn = runs.filter((run) => pointsOf(run).length).flatMap((run) => {
    const points = pointsOf(run);
    const edge = (sign) => points.map(({ x, loss, spread }) => ({ x, loss: loss + sign * spread }));
    const look = { stroke: run.colour, fill: "none", "stroke-dasharray": DASHES[run.dash] };
    return [
      el("path", { d: path([...edge(1), ...edge(-1).reverse()]), fill: run.colour, opacity: 0.18 }), // the seeds
      view.training ? el("path", { ...look, d: path(pointsOf(run, true)), opacity: 0.5 }) : "",
      el("path", { ...look, d: path(points), "stroke-width": 2 }),
      ...points.map(view.place).map(([cx, cy]) => el("circle", { cx, cy, r: 2.5, fill: run.colour })),
    ];
  });
  view.marks = el("g");
  $("plot").replaceChildren(...frame, el("g", { style: clip }, ...drawn), view.marks);
  $("plot").setAttribute("aria-label", `Loss of ${runs.map((run) => run.name).join(", ")} over training ${view.over}`);
  readOff(null);
}

/** The losses of the runs that are on, each at its evaluation nearest to the pointer; without one, the last. */
function readOff(at) {
  view.at = at;
  const far = (point) => Math.abs(view.place(point)[0] - at);
  const rows = [...view.on].filter((run) => pointsOf(run).length).map((run) => {
    const points = pointsOf(run);
    return { run, ...(at === null ? points.at(-1) : points.reduce((a, b) => (far(b) < far(a) ? b : a))) };
  });
  const body = rows.sort((a, b) => a.loss - b.loss).map(({ run, x, k, spread }) => {
    const [validation, training] = [run.val[k], run.train[k]].map((loss) => loss?.toFixed(4) ?? "");
    const cells = [x.toLocaleString("en"), validation + (run.seeds > 1 ? ` ± ${spread.toFixed(3)}` : ""), training];
    return el("tr", {}, el("th", { scope: "row" }, swatch(run), run.name), ...cells.map((cell) => el("td", {}, cell)));
  });
  $("unit").textContent = view.over;
  $("values").replaceChildren(...body);
  const rings = at === null ? [] : rows.map((point) => [point.run.colour, ...view.place(point)]);
  view.marks.replaceChildren(...rings.map(([stroke, cx, cy]) => el("circle", { cx, cy, r: 5, stroke, class: "ring" })));
}

const swatch = ({ colour, dash }) => el("span", { class: "swatch", style: `border-top: 3px ${dash} ${colour}` });

function curves() {
  const [dashes, published] = [Object.keys(DASHES), data.curves.filter((run) => run.group !== "yours")];
  data.curves.forEach((run, k) => Object.assign(run, { colour: "currentColor", dash: dashes[k % 3] }));
  published.forEach((run, k) => Object.assign(run, { colour: COLOURS[k % 7], dash: dashes[Math.floor(k / 7) % 3] }));
  for (const [group, runs] of Map.groupBy(data.curves, (run) => run.group)) {
    const switchTo = (some, on) => {
      some.forEach((run) => view.on[on ? "add" : "delete"](run));
      buttons.forEach((button, k) => button.setAttribute("aria-pressed", view.on.has(runs[k])));
      drawCurves();
    };
    const flip = (some) => () => switchTo(some, !some.every((run) => view.on.has(run)));
    const buttons = runs.map((run) => el("button", { onclick: flip([run]) }, swatch(run), run.name));
    const all = el("button", { onclick: flip(runs) }, "all");
    $("runs").append(el("fieldset", {}, el("legend", {}, group), all, ...buttons));
    switchTo(runs, ["yours", "the ladder"].includes(group));
  }
  choice($("axes"), "axis", ["logarithmic", "linear"], "logarithmic", (axis) => drawCurves({ axis }));
  choice($("axes"), "over", ["steps", "seconds", "tokens"], "steps", (over) => drawCurves({ over }));
  $("training").addEventListener("change", ({ target }) => drawCurves({ training: target.checked }));
  const plot = $("plot");
  plot.addEventListener("pointermove", (event) => readOff(event.clientX - plot.getBoundingClientRect().left));
  plot.addEventListener("pointerleave", () => readOff(null));
  plot.addEventListener("keydown", (event) => {
    const [by] = arrow(event);
    const places = [...view.on].flatMap((run) => pointsOf(run).map((point) => view.place(point)[0]));
    const beyond = places.filter((place) => by * (place - (view.at ?? 0)) > 0.5);
    if (beyond.length) readOff(by > 0 ? Math.min(...beyond) : Math.max(...beyond));
  });
  new ResizeObserver(() => drawCurves()).observe(plot);
}

// ---------------------------------------------------------------- Attention

const touch = { text: "", at: 0, layer: 0, head: 0, cards: [] }; // at: the character that reads

/** Draws shares, of(column, row) from 0 to 1, as the pixels of a canvas. Their roots, so that faint ones show. */
function paint(canvas, colour, of) {
  const context = canvas.getContext("2d");
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = colour;
  for (let y = 0; y < canvas.height; y++) {
    for (let x = 0; x < canvas.width; x++) {
      context.globalAlpha = Math.sqrt(of(x, y));
      context.fillRect(x, y, 1, 1);
    }
  }
}

/** A model over the chosen text: the matrix of the chosen head, and the text once for every head. */
function modelCard({ name, about, layers, heads, views }) {
  const { tokens, start, weights } = views[data.attention.texts.indexOf(touch.text)];
  const tokenOf = tokens.flatMap((token, i) => Array.from(token, () => i)); // of each character
  const [T, N] = [tokens.length, tokenOf.length];
  const firstOf = (i) => tokenOf.findIndex((token) => token >= i); // a token may have the last bytes of a character alone
  const bytes = Uint8Array.from(atob(weights), (character) => character.charCodeAt(0));
  // How much token i reads of token j. A head has the rows of its lower triangle one after another.
  const before = (layer, head, i) => ((layer * heads + head) * T * (T + 1) + i * (i + 1)) / 2;
  const weight = (layer, head, i, j) => (j > i ? 0 : bytes[before(layer, head, i) + j] / 255);
  const along = (share, n) => Math.min(n - 1, Math.max(0, Math.floor(share * n)));
  const inMatrix = ({ offsetY }) => pointAt(start + firstOf(along(offsetY / matrix.clientHeight, T)));
  const matrix = el("canvas", { width: T, height: T, role: "img", onpointermove: inMatrix });
  const [frame, reader, says] = [el("div"), el("div", { class: "reader" }), el("p")];
  const strips = Array.from({ length: layers * heads }, (_, k) => {
    const [layer, head, canvas] = [Math.floor(k / heads), k % heads, el("canvas", { width: N, height: 1 })];
    const choose = { "aria-label": `block ${layer + 1}, head ${head + 1}`, onclick: () => chooseHead(layer, head) };
    const button = el("button", { ...choose }, `${layer + 1} · ${head + 1}`);
    const inText = ({ offsetX }) => pointAt(start + along(offsetX / text.clientWidth, N));
    const text = el("div", { class: "letters", onpointermove: inText }, visible(tokens.join("")), canvas);
    return { layer, head, canvas, node: el("div", { class: head ? "strip" : "strip first" }, button, text) };
  });

  function draw() {
    const colour = getComputedStyle(matrix).color;
    paint(matrix, colour, (j, i) => weight(touch.layer, touch.head, i, j));
    const chosen = ({ layer, head }) => layer === touch.layer && head === touch.head;
    for (const strip of strips) strip.node.classList.toggle("chosen", chosen(strip));
  }

  function update() {
    const i = tokenOf[touch.at - start] ?? 0;
    const colour = getComputedStyle(says).borderColor;
    for (const { layer, head, canvas } of strips) paint(canvas, colour, (c) => weight(layer, head, i, tokenOf[c]));
    frame.style.cssText = `top: ${(100 * i) / T}%; height: ${100 / T}%`;
    const [from, n] = [tokenOf.indexOf(i), [...tokens[i]].length];
    reader.style.cssText = `left: calc(2.3rem + ${from}ch); width: ${n}ch; --ahead: ${N - from - n}ch`;
    const read = tokens.map((token, j) => [weight(touch.layer, touch.head, i, j), `“${visible(token)}”`]);
    const most = read.filter(([share]) => share > 0.01).sort((a, b) => b[0] - a[0]).slice(0, 4);
    const list = most.map(([share, token]) => `${token} ${share.toFixed(3)}`).join(", ");
    says.textContent = `Block ${touch.layer + 1}, head ${touch.head + 1}: “${visible(tokens[i])}” reads ${list}`;
    matrix.setAttribute("aria-label", `Who, a row, reads whom, a column. ${says.textContent}`);
  }

  const parts = [el("h3", {}, name), el("p", { class: "faint" }, about), el("div", { class: "matrix" }, matrix, frame)];
  parts.push(says, el("div", { class: "strips" }, ...strips.map(({ node }) => node), reader));
  return { draw, update, node: el("div", { class: "model" }, ...parts) };
}

function pointAt(at) {
  const spans = [...$("line").children];
  touch.at = Math.min(spans.length - 1, Math.max(0, at));
  spans.forEach((span, i) => (span.className = i === touch.at ? "at" : ""));
  $("line").setAttribute("aria-valuenow", touch.at + 1);
  $("line").setAttribute("aria-valuetext", `character ${touch.at + 1}, ${visible(spans[touch.at].textContent)}`);
  for (const { update } of touch.cards) update();
}

function chooseHead(layer, head) {
  Object.assign(touch, { layer, head });
  for (const { draw } of touch.cards) draw();
  pointAt(touch.at);
}

function chooseText(text) {
  touch.text = text;
  const { models, texts } = data.attention;
  touch.cards = models.filter(({ views }) => views[texts.indexOf(text)]).map(modelCard);
  $("line").replaceChildren(...[...text].map((letter, i) => el("span", { "data-i": i }, letter.replace("\n", "↵"))));
  $("line").setAttribute("aria-valuemax", [...text].length);
  $("models").style.setProperty("--N", [...text].length);
  $("models").replaceChildren(...touch.cards.map(({ node }) => node));
  touch.at = Math.floor([...text].length * 0.7);
  chooseHead(touch.layer, touch.head);
}

function attention() {
  if (!data.attention.models.length) return $("attention").remove(); // python -m studies.page says why
  $("line").addEventListener("pointerover", ({ target }) => target.dataset.i && pointAt(Number(target.dataset.i)));
  $("line").addEventListener("keydown", (event) => pointAt(touch.at + arrow(event)[0]));
  choice($("texts"), "text", data.attention.texts, data.attention.texts[0], chooseText);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chooseHead(touch.layer, touch.head));
}

// ---------------------------------------------------------------- One head, number by number

const STAGES = {
  general: "Each character asks with its row of Q. It is found by its column of Kᵀ. Their product is a score.",
  causal: "Scores with j > i are set to −∞, which the softmax makes 0. No one reads ahead.",
  scaled: "Scores are divided by √6, where 6 is the number of channels. The weights are softer.",
  "multi-head": "Channels 1 to 3 are head 1's, the others head 2's. Each has weights of its own.",
  projected: "A linear map mixes what the heads have read into every channel.",
};
const signed = (value) => (value === -Infinity ? "−∞" : value.toFixed(2).replace("-", "−"));

/** The matrices of a stage by name: { values, of }, where of(i, j) says which cells make a cell, and how. */
function matricesOf(stage) {
  const given = data.head.numbers;
  const [made, T, C] = [{}, given.X.length, given.X[0].length];
  const late = Object.keys(STAGES).indexOf(stage); // each stage does what those before it do
  const add = (name, rows, columns, value, of) => {
    const values = Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => value(i, j)));
    made[name] = { values, of };
  };
  const start = (name) => (made[name] = { values: given[name], of: () => ({ cells: [], says: "A random number." }) });
  const product = (name, a, b, over = 1, masked = false) => {
    const [left, right] = [made[a].values, made[b].values];
    const terms = (i, j) => right.map((line, n) => [left[i][n], line[j], left[i][n] * line[j]]);
    const sum = (i, j) => terms(i, j).reduce((total, [, , term]) => total + term, 0) / Math.sqrt(over);
    const says = `The sum of the products${over > 1 ? ` / √${over}` : ""}.`;
    add(name, left.length, right[0].length, (i, j) => (masked && j > i ? -Infinity : sum(i, j)), (i, j) => ({
      cells: right.flatMap((_, n) => [[a, i, n], [b, n, j]]),
      heads: [`row ${i + 1} of ${a}`, `column ${j + 1} of ${b}`, "product"],
      terms: terms(i, j),
      says: masked && j > i ? "Masked, since j > i." : says,
    }));
  };
  const softmax = (name, a) => {
    const powers = made[a].values.map((line) => line.map(Math.exp));
    const sums = powers.map((line) => line.reduce((x, y) => x + y));
    add(name, T, T, (i, j) => powers[i][j] / sums[i], (i, j) => ({
      cells: sums.map((_, n) => [a, i, n]),
      heads: [`row ${i + 1} of ${a}`, "exp"],
      terms: powers[i].map((power, n) => [made[a].values[i][n], power]),
      says: `exp in column ${j + 1}, over the sum of all: ${signed(powers[i][j])} / ${signed(sums[i])}.`,
    }));
  };
  const copy = (name, rows, columns, from) => {
    const value = ([a, i, j]) => made[a].values[i][j];
    const of = (i, j) => ({ cells: [from(i, j)], says: `Copied from ${from(i, j)[0]}.` });
    add(name, rows, columns, (i, j) => value(from(i, j)), of);
  };
  ["X", "W_q", "W_k", "W_v"].forEach(start);
  ["Q", "K", "V"].forEach((name) => product(name, "X", `W_${name.toLowerCase()}`));
  const [heads, D] = late < 3 ? [[""], C] : [["₁", "₂"], C / 2];
  heads.forEach((h, k) => {
    if (h) for (const name of ["Q", "V"]) copy(name + h, T, D, (i, j) => [name, i, j + k * D]);
    copy(`K${h}ᵀ`, D, T, (i, j) => ["K", j, i + k * D]);
    product(`scores${h}`, `Q${h}`, `K${h}ᵀ`, late > 1 ? D : 1, late > 0);
    softmax(`weights${h}`, `scores${h}`);
    product(`read${h}`, `weights${h}`, `V${h}`);
  });
  if (late > 2) copy("both", T, C, (i, j) => [`read${heads[Math.floor(j / D)]}`, i, j % D]);
  if (late > 3) start("W_o"), product("out", "both", "W_o");
  return made;
}

function oneHead(stage) {
  const [made, cells, text] = [matricesOf(stage), {}, [...visible(data.head.text)]];
  const labels = (lines) => (lines.length === text.length ? text : lines.map((_, k) => k + 1));
  const tables = Object.entries(made).map(([name, { values }]) => {
    const most = Math.max(...values.flat().map(Math.abs).filter(Number.isFinite));
    const [rows, columns] = [labels(values), labels(values[0])];
    const cell = (value, i, j) => {
      const style = `--w: ${Math.abs(value) / most}; --hue: var(--${value < 0 ? "below" : "above"})`;
      const label = `${name}, row ${rows[i]}, column ${columns[j]}: ${signed(value)}`;
      const look = { style, class: value === -Infinity ? "masked" : "", "aria-label": label, tabindex: i + j ? -1 : 0 };
      const go = (right, down) => cells[name][i + down]?.[j + right]?.focus();
      const [onfocus, onkeydown] = [() => explain(name, i, j), (event) => go(...arrow(event))];
      return el("td", { ...look, onpointerover: onfocus, onfocus, onkeydown }, signed(value));
    };
    cells[name] = values.map((line, i) => line.map((value, j) => cell(value, i, j)));
    const head = el("tr", {}, el("td"), ...columns.map((column) => el("th", { scope: "col" }, column)));
    const body = cells[name].map((line, i) => el("tr", {}, el("th", { scope: "row" }, rows[i]), ...line));
    const table = el("table", {}, el("caption", {}, name), head, ...body);
    return /^(Q|scores|both)/.test(name) ? [el("hr"), table] : [table]; // a row of matrices begins
  });

  function explain(name, i, j) {
    const { cells: from, heads = [], terms = [], says } = made[name].of(i, j);
    for (const former of $("matrices").querySelectorAll(".from, .here")) former.classList.remove("from", "here");
    for (const [a, k, l] of from) cells[a][k][l].classList.add("from");
    cells[name][i][j].classList.add("here");
    const head = el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)));
    const lines = terms.map((term) => el("tr", {}, ...term.map((value) => el("td", {}, signed(value)))));
    const title = `${name}, row ${i + 1}, column ${j + 1}: ${signed(made[name].values[i][j])}`;
    $("says").replaceChildren(el("p", {}, STAGES[stage]), el("h3", {}, title), el("table", {}, head, ...lines), says);
  }

  $("matrices").replaceChildren(...tables.flat());
  explain(made.out ? "out" : made.both ? "scores₁" : "scores", 4, 3);
}

// ---------------------------------------------------------------- Samples

function samples() {
  for (const { name, loss, text } of data.samples) {
    const caption = el("figcaption", {}, el("b", {}, name), el("span", { class: "faint" }, loss));
    const button = el("button", { onclick: () => button.remove() }, "all of it");
    $("written").append(el("figure", {}, caption, el("pre", {}, text), button));
  }
}

sideBySide();
curves();
attention();
choice($("stages"), "stage", Object.keys(STAGES), "causal", oneHead);
samples();
