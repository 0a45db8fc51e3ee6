// One head, number by number.

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
