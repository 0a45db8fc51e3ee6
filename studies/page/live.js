// Type a line: every rung reads it, each character is coloured by its loss, and each rung can continue it.

const MOST = 500; // characters that are read
// at and pointed: the character and the rung that are pointed at; row: the rung that is chosen to write.
const live = { models: [], ids: [], text: "", rows: [], at: 0, pointed: 0, row: 0, version: 0, writing: null };

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

/** A character of the text, the deeper in colour the larger its loss. */
function letterOf(row, k, loss) {
  const character = row.characters[live.ids[k]];
  const style = `--w: ${Math.min(1, (loss ?? 0) / 5).toFixed(3)}`;
  const title = loss === null ? "nothing before it" : `${loss.toFixed(2)} nats`;
  return el("span", { "data-k": k, style, title }, character === "\n" ? "↵\n" : character);
}

function showLosses(row, losses) {
  row.losses = losses;
  row.node.classList.remove("behind");
  row.letters.replaceChildren(...losses.map((loss, k) => letterOf(row, k, loss)));
  const counted = losses.filter((loss) => loss !== null);
  const mean = counted.reduce((a, b) => a + b, 0) / counted.length;
  row.mean.textContent = counted.length
    ? `${mean.toFixed(2)} nats: as unsure as among ${Math.exp(mean).toFixed(1)} characters`
    : "a loss needs two characters";
}

/** Reads what is typed with every rung, the chosen one first. */
async function readAll() {
  const version = ++live.version;
  for (const { node } of live.rows) node.classList.add("behind");
  const chosen = live.rows[live.row];
  for (const row of [chosen, ...live.rows.filter((row) => row !== chosen)]) {
    if (!(await readBy(row, version))) return;
    if (row === chosen) guess();
  }
  $("readers").dataset.read = live.text; // all have read it
}

/** The ten characters that a rung expects most at the place that is pointed at. */
function guess() {
  const row = live.rows[live.pointed];
  live.at = Math.min(live.at, live.ids.length);
  for (const former of live.marked ?? []) former.classList.remove("at");
  live.marked = live.rows.map(({ letters }) => letters.children[live.at]).filter(Boolean);
  for (const span of live.marked) span.classList.add("at");
  if (!live.at) return $("guess").replaceChildren("Point at a character that has another before it.");
  const shares = softmax([...logitsAfter(row, live.at - 1)]);
  const order = shares.map((share, id) => [share, id]).sort((a, b) => b[0] - a[0]);
  const came = live.ids[live.at];
  const shown = order.slice(0, 10);
  if (came !== undefined && !shown.some(([, id]) => id === came)) shown.push([shares[came], came]);
  const number = (share) => (share < 0.001 ? "< 0.001" : share.toFixed(3));
  const bars = shown.map(([share, id]) => {
    const bar = el("div", {}, el("span", { style: `--w: ${share}` }), number(share));
    const name = el("th", { scope: "row" }, visible(row.characters[id]));
    return el("tr", { class: id === came ? "came" : "" }, name, el("td", {}, bar));
  });
  const before = visible(live.ids.slice(Math.max(0, live.at - 20), live.at).map((id) => row.characters[id]).join(""));
  const says = ["After “", el("code", {}, before), "” "];
  if (came !== undefined) {
    const loss = -Math.log(shares[came]);
    says.push(`came “${visible(row.characters[came])}”: -ln ${shares[came].toPrecision(3)} = ${loss.toFixed(2)} nats. `);
  }
  says.push(came === undefined ? "it expects:" : "It expected:");
  $("guess").replaceChildren(el("h3", {}, row.model.name), el("p", {}, ...says), el("table", {}, ...bars));
}

function typed() {
  const { ids, unknown, cut } = encoded($("typed").value, live.models[0]);
  Object.assign(live, { ids, text: $("typed").value, at: ids.length });
  const says = [];
  const some = unknown.slice(0, 10).map((character) => (character === "\t" ? "tab" : character)).join("  ");
  if (unknown.length) says.push(`Not among the 65 characters of Shakespeare, and left out:  ${some}`);
  if (cut) says.push(`Only the first ${MOST} characters are read.`);
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

/** A field's number, brought between its least and its most. */
function numberOf(id) {
  const { min, max, value, defaultValue } = $(id);
  const number = value === "" ? Number(defaultValue) : Number(value);
  return Math.min(max === "" ? Infinity : Number(max), Math.max(Number(min), number));
}

/** Continues the text with the chosen rung: so many characters, or until it is stopped or has enough. */
async function write(count) {
  stopWriting();
  const writing = (live.writing = {});
  const [row, field] = [live.rows[live.row], $("typed")];
  let { ids } = encoded(field.value, row.model);
  if (!ids.length) ids = [row.model.idOf.get("\n") ?? 0];
  // One character after another draws on where the last one stopped, as long as the text is that which it left.
  const key = JSON.stringify([row.model.name, numberOf("seed"), field.value]);
  const random = live.random?.key === key ? live.random.next : draws(numberOf("seed"));
  const writer = new Writer(row.model);
  $("write").textContent = "stop";
  if (ids.length >= MOST) $("told").textContent = `There are ${MOST} characters, as many as are read: shorten the text to go on.`;
  live.version++; // what was being read is out of date
  for (let n = 0, since = 0; n < count && ids.length < MOST && live.writing === writing; n++) {
    const logits = writer.next(ids);
    const how = { temperature: numberOf("temperature"), topK: numberOf("top-k") };
    const id = drawn(logits, how, random);
    const loss = -Math.log(softmax([...logits])[id]);
    ids = [...ids, id];
    field.value += row.characters[id];
    Object.assign(live, { ids, at: ids.length, pointed: live.row, text: field.value });
    row.letters.append(letterOf(row, ids.length - 1, loss));
    if (performance.now() - since < 15) continue;
    guess();
    [field.scrollTop, row.letters.scrollTop] = [field.scrollHeight, row.letters.scrollHeight];
    await breath();
    since = performance.now();
  }
  const left = JSON.stringify([row.model.name, numberOf("seed"), field.value]);
  live.random = { key: left, next: random };
  if (live.writing === writing) stopWriting();
  if (ids.length < MOST) return typed();
}

function stopWriting() {
  live.writing = null;
  $("write").textContent = `write with ${live.rows[live.row].model.name}`;
}

function type() {
  if (!data.models.length) return $("live").remove(); // python -m studies.page says why
  live.models = data.models.map((file) => new Model(file));
  live.rows = live.models.map((model, k) => {
    const [letters, mean] = [el("div", { class: "surprise" }), el("span", { class: "faint" })];
    const button = el("button", { onclick: () => choose(k) }, model.name);
    const node = el("div", { class: "read-by" }, el("div", {}, button, mean), letters);
    letters.addEventListener("pointerover", ({ target }) => target.dataset.k && point(k, Number(target.dataset.k)));
    return { model, characters: [...model.vocabulary], readings: [], letters, mean, node };
  });
  function point(pointed, at) {
    Object.assign(live, { pointed, at });
    guess();
  }
  function choose(row) {
    live.row = row;
    live.rows.forEach(({ node }, k) => node.classList.toggle("chosen", k === row));
    if (!live.writing) stopWriting(); // which names it
    point(row, live.at);
  }
  $("readers").replaceChildren(...live.rows.map(({ node }) => node));
  $("readers").addEventListener("keydown", (event) => {
    const [right, down] = arrow(event);
    if (!right && !down) return;
    point(live.pointed, Math.min(live.ids.length, Math.max(1, live.at + right)));
    if (!down) return;
    choose(Math.min(live.rows.length - 1, Math.max(0, live.row + down)));
    live.rows[live.row].node.querySelector("button").focus();
  });
  $("typed").addEventListener("input", () => (stopWriting(), typed()));
  $("write").addEventListener("click", () => (live.writing ? (stopWriting(), typed()) : write(Infinity)));
  $("step").addEventListener("click", () => write(1));
  live.row = live.pointed = Math.max(0, live.models.findIndex(({ name }) => name === "gpt.py"));
  live.rows[live.row].node.classList.add("chosen");
  stopWriting();
  breath().then(typed); // once the page is there
}
