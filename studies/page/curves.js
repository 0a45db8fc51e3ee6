// Curves.

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
