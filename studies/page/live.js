// Type a line: every rung reads it, each character is coloured by its loss, and each rung can continue it.

const MOST = 500; // characters that are read
const live = { models: [], ids: [], text: "", rows: [], at: 0, row: 0, version: 0, writing: null };

/** The ids of a text, and its characters that are not among the model's. */
function encoded(text, model) {
  const characters = [...text];
  const unknown = [...new Set(characters.filter((character) => !model.idOf.has(character)))];
  const known = characters.filter((character) => model.idOf.has(character));
  return { ids: known.slice(0, MOST).map((character) => model.idOf.get(character)), unknown, cut: known.length > MOST };
}

/** The logits of what follows token k, which a rung reads in windows of T, one after another. */
function logitsAfter(row, k) {
  const { model, readings } = row;
  const n = Math.floor(k / model.T);
  readings[n] ??= new Reading(model);
  return readings[n].read(live.ids.slice(n * model.T, (n + 1) * model.T), (k % model.T) + 1)[k % model.T];
}

/** What the loss is: -ln p of token k, given those before it. The first token has none. */
function lossOf(row, k) {
  if (!k) return null;
  return -Math.log(softmax([...logitsAfter(row, k - 1)])[live.ids[k]]);
}

/** Lets the browser draw and listen. */
const breath = () => new Promise((resolve) => setTimeout(resolve));

/** Reads the text with one rung, a few milliseconds at a time. False if it has changed meanwhile. */
async function readBy(row, version) {
  const losses = [];
  for (let k = 0, since = performance.now(); k < live.ids.length; k++) {
    losses.push(lossOf(row, k));
    if (performance.now() - since < 12) continue;
    await breath();
    if (version !== live.version) return false;
    since = performance.now();
  }
  const n = Math.floor(live.ids.length / row.model.T);
  row.readings.length = Math.min(row.readings.length, n + 1);
  showLosses(row, losses);
  return true;
}

function showLosses(row, losses) {
  const vocabulary = [...row.model.vocabulary];
  const spans = live.ids.map((id, k) => {
    const shade = losses[k] === null ? 0 : Math.min(1, losses[k] / 5);
    const title = losses[k] === null ? "nothing before it" : `${losses[k].toFixed(2)} nats`;
    const character = vocabulary[id] === "\n" ? "↵\n" : vocabulary[id];
    return el("span", { "data-k": k, style: `--w: ${shade.toFixed(3)}`, title }, character);
  });
  row.letters.replaceChildren(...spans);
  const counted = losses.filter((loss) => loss !== null);
  const mean = counted.reduce((a, b) => a + b, 0) / counted.length;
  row.mean.textContent = counted.length
    ? `${mean.toFixed(2)} nats: as unsure as among ${Math.exp(mean).toFixed(1)} characters`
    : "a loss needs two characters";
  row.losses = losses;
}

/** Reads what is typed with every rung, the chosen one first. */
async function readAll() {
  const version = ++live.version;
  const chosen = live.rows[live.row];
  for (const row of [chosen, ...live.rows.filter((row) => row !== chosen)]) {
    if (!(await readBy(row, version))) return;
    if (row === chosen) guess();
  }
  $("readers").dataset.read = live.text; // all have read it
}

/** The ten characters that the chosen rung expects most at the place that is pointed at. */
function guess() {
  const row = live.rows[live.row];
  const vocabulary = [...row.model.vocabulary];
  live.at = Math.min(live.at, live.ids.length);
  for (const other of live.rows) {
    other.node.classList.toggle("chosen", other === row);
    for (const span of other.letters.children) span.classList.toggle("at", Number(span.dataset.k) === live.at);
  }
  if (!live.ids.length || !live.at) return $("guess").replaceChildren("Type something, and point at a character.");
  const shares = softmax([...logitsAfter(row, live.at - 1)]);
  const order = shares.map((share, id) => [share, id]).sort((a, b) => b[0] - a[0]);
  const came = live.ids[live.at];
  const shown = order.slice(0, 10);
  if (came !== undefined && !shown.some(([, id]) => id === came)) shown.push([shares[came], came]);
  const bars = shown.map(([share, id]) =>
    el("tr", { class: id === came ? "came" : "" },
      el("th", { scope: "row" }, visible(vocabulary[id])),
      el("td", {}, el("div", { style: `--w: ${share}` }), share.toFixed(3))),
  );
  const before = visible(live.ids.slice(Math.max(0, live.at - 20), live.at).map((id) => vocabulary[id]).join(""));
  const loss = came === undefined ? "" : ` It is “${visible(vocabulary[came])}”: -ln ${shares[came].toFixed(3)} = ${(-Math.log(shares[came])).toFixed(2)} nats.`;
  $("guess").replaceChildren(
    el("h3", {}, row.model.name),
    el("p", {}, "After “", el("code", {}, before), `” it expects:${loss}`),
    el("table", {}, ...bars),
  );
}

function typed() {
  const { ids, unknown, cut } = encoded($("typed").value, live.models[0]);
  Object.assign(live, { ids, text: $("typed").value, at: ids.length });
  const says = [];
  if (unknown.length) says.push(`${unknown.slice(0, 10).map((c) => `“${c}”`).join(" ")} not among the 65 characters of Shakespeare: left out.`);
  if (cut) says.push(`The first ${MOST} characters are read.`);
  $("told").textContent = says.join(" ");
  return readAll();
}

/** The last line that was typed, as much of it as is looked at character by character: "To be, or not to be" if none. */
function lineTyped() {
  const { ids, model = live.models[0] } = live;
  const lines = ids.map((id) => [...model.vocabulary][id]).join("").split("\n").filter((line) => line.length > 1);
  return (lines.at(-1) ?? "To be, or not to be").slice(-48);
}

/** A number from 0 to 1 for each call, the same for the same seed (mulberry32). */
function draws(seed) {
  return () => {
    seed = (seed + 0x6d2b79f5) | 0;
    let t = Math.imul(seed ^ (seed >>> 15), 1 | seed);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Draws the next token as sample.py does: the top_k likeliest, logits over the temperature, a softmax. */
function drawn(logits, { temperature, topK }, random) {
  const order = [...logits.keys()].sort((a, b) => logits[b] - logits[a]).slice(0, topK || logits.length);
  if (!temperature) return order[0];
  const shares = softmax(order.map((id) => logits[id] / temperature));
  let left = random();
  return order[shares.findIndex((share) => (left -= share) < 0)] ?? order[0];
}

/** Continues the text with the chosen rung: so many characters, or until it is stopped or has enough. */
async function write(count) {
  stopWriting();
  const writing = (live.writing = {});
  const { model } = live.rows[live.row];
  const how = { temperature: Number($("temperature").value), topK: Number($("top-k").value) };
  const [writer, random, vocabulary] = [new Writer(model), draws(Number($("seed").value)), [...model.vocabulary]];
  const field = $("typed");
  let { ids } = encoded(field.value || "\n", model);
  $("write").textContent = "stop";
  for (let n = 0; n < count && ids.length < MOST && live.writing === writing; n++) {
    const id = drawn(writer.next(ids), how, random);
    ids = [...ids, id];
    field.value += vocabulary[id];
    field.scrollTop = field.scrollHeight;
    Object.assign(live, { ids, at: ids.length, text: field.value });
    live.version++; // what was being read is out of date
    guess();
    await breath();
  }
  if (live.writing === writing) stopWriting();
  return typed();
}

function stopWriting() {
  live.writing = null;
  $("write").textContent = "write";
}

function type() {
  if (!data.models.length) return $("live").remove(); // python -m studies.page says why
  live.models = data.models.map((file) => new Model(file));
  live.rows = live.models.map((model, k) => {
    const [letters, mean] = [el("div", { class: "surprise" }), el("span", { class: "faint" })];
    const button = el("button", { onclick: () => choose(k) }, model.name);
    const node = el("div", { class: "read-by" }, el("div", {}, button, mean), letters);
    letters.addEventListener("pointerover", ({ target }) => target.dataset.k && choose(k, Number(target.dataset.k)));
    return { model, readings: [], letters, mean, node };
  });
  function choose(row, at = live.at) {
    Object.assign(live, { row, at });
    guess();
  }
  live.row = Math.max(0, live.models.findIndex(({ name }) => name === "gpt.py"));
  $("readers").replaceChildren(...live.rows.map(({ node }) => node));
  $("readers").addEventListener("keydown", (event) => {
    const [right, down] = arrow(event);
    if (!right && !down) return;
    const row = Math.min(live.rows.length - 1, Math.max(0, live.row + down));
    choose(row, Math.min(live.ids.length, Math.max(1, live.at + right)));
    if (down) live.rows[row].node.querySelector("button").focus();
  });
  $("typed").addEventListener("input", () => (stopWriting(), typed()));
  $("write").addEventListener("click", () => (live.writing ? (stopWriting(), typed()) : write(Infinity)));
  $("step").addEventListener("click", () => write(1));
  typed();
}
