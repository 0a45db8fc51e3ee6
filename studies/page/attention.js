// Attention.

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

/** What a model reads of a text, from the weights in the page: rows of lower triangles, a byte for each weight. */
function keptView({ name, about, layers, heads, views }, text) {
  const { tokens, start, weights } = views[data.attention.texts.indexOf(text)];
  const [T, bytes] = [tokens.length, numbersIn(weights, Uint8Array)];
  const before = (layer, head, i) => ((layer * heads + head) * T * (T + 1) + i * (i + 1)) / 2;
  const weight = (layer, head, i, j) => (j > i ? 0 : bytes[before(layer, head, i) + j] / 255);
  return { name, about, layers, heads, tokens, start, weight };
}

/** The same of a text that was typed, from a model that runs in the page. */
function liveView(model, text) {
  const [reading, { ids }] = [new Reading(model), encoded(text, model)];
  const read = ids.slice(-model.T);
  reading.read(read);
  const tokens = read.map((id) => [...model.vocabulary][id]);
  const weight = (layer, head, i, j) => (j > i ? 0 : reading.kept[layer][i].weights[head][j]);
  const [layers, heads] = [reading.kept.length, model.config.n_head ?? 1];
  return { name: model.name, about: "", layers, heads, tokens, start: ids.length - read.length, weight };
}

/** A model over the chosen text: the matrix of the chosen head, and the text once for every head. */
function modelCard({ name, about, layers, heads, tokens, start, weight }) {
  const tokenOf = tokens.flatMap((token, i) => Array.from(token, () => i)); // of each character
  const [shownLayer, shownHead] = [() => Math.min(touch.layer, layers - 1), () => Math.min(touch.head, heads - 1)]; // of fewer
  const [T, N] = [tokens.length, tokenOf.length];
  const firstOf = (i) => tokenOf.findIndex((token) => token >= i); // a token may have the last bytes of a character alone
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
    paint(matrix, colour, (j, i) => weight(shownLayer(), shownHead(), i, j));
    const chosen = ({ layer, head }) => layer === shownLayer() && head === shownHead();
    for (const strip of strips) strip.node.classList.toggle("chosen", chosen(strip));
  }

  function update() {
    const i = tokenOf[touch.at - start];
    if (i === undefined) return (says.textContent = `This character is not among the last ${N}, which this model reads.`);
    const colour = getComputedStyle(says).borderColor;
    for (const { layer, head, canvas } of strips) paint(canvas, colour, (c) => weight(layer, head, i, tokenOf[c]));
    frame.style.cssText = `top: ${(100 * i) / T}%; height: ${100 / T}%`;
    const [from, n] = [tokenOf.indexOf(i), [...tokens[i]].length];
    reader.style.cssText = `left: calc(2.3rem + ${from}ch); width: ${n}ch; --ahead: ${N - from - n}ch`;
    const read = tokens.map((token, j) => [weight(shownLayer(), shownHead(), i, j), `“${visible(token)}”`]);
    const most = read.filter(([share]) => share > 0.01).sort((a, b) => b[0] - a[0]).slice(0, 4);
    const list = most.map(([share, token]) => `${token} ${share.toFixed(3)}`).join(", ");
    says.textContent = `Block ${shownLayer() + 1}, head ${shownHead() + 1}: “${visible(tokens[i])}” reads ${list}`;
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

const TYPED = "the line you typed";

function chooseText(choice) {
  const { models, texts } = data.attention;
  const text = choice === TYPED ? lineTyped() : choice;
  touch.text = text;
  const views = choice === TYPED
    ? live.models.filter(({ kind }) => kind).map((model) => liveView(model, text))
    : models.filter(({ views }) => views[texts.indexOf(text)]).map((model) => keptView(model, text));
  touch.cards = views.map(modelCard);
  $("line").replaceChildren(...[...text].map((letter, i) => el("span", { "data-i": i }, letter.replace("\n", "↵"))));
  $("line").setAttribute("aria-valuemax", [...text].length);
  $("models").style.setProperty("--N", [...text].length);
  $("models").replaceChildren(...touch.cards.map(({ node }) => node));
  touch.at = Math.floor([...text].length * 0.7);
  chooseHead(touch.layer, touch.head);
}

function attention() {
  if (!data.attention.models.length && !data.models.length) return $("attention").remove(); // the command says why
  $("line").addEventListener("pointerover", ({ target }) => target.dataset.i && pointAt(Number(target.dataset.i)));
  $("line").addEventListener("keydown", (event) => pointAt(touch.at + arrow(event)[0]));
  const texts = [...(data.attention.models.length ? data.attention.texts : []), ...(data.models.length ? [TYPED] : [])];
  choice($("texts"), "text", texts, texts[0], chooseText);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => chooseHead(touch.layer, touch.head));
}
