// Side by side.

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
