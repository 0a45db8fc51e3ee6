// The models of the rungs, to be read beside the Python: the names are the same. A token goes through the model once.
// What later tokens need of it is kept, as in the KV cache of gpt.py.

// ---------------------------------------------------------------- Weights

/** The numbers behind base64: `type` is an array type like Float32Array. */
function numbersIn(base64, type) {
  const characters = atob(base64);
  const bytes = new Uint8Array(characters.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = characters.charCodeAt(k);
  return new type(bytes.buffer);
}

/** A tensor of the file. A matrix has 8 bits a number, and a scale for each row. */
function decoded({ numbers, scales }) {
  if (!scales) return numbersIn(numbers, Float32Array);
  return { bytes: numbersIn(numbers, Int8Array), scales: numbersIn(scales, Float32Array) };
}

// ---------------------------------------------------------------- Layers

/** W x + b, where W has as many columns as x has numbers. Its bytes are multiplied by the scale of their row at last. */
function linear(x, { weight: { bytes, scales }, bias }) {
  const [C, y] = [x.length, new Float32Array(scales.length)];
  for (let row = 0, k = 0; row < y.length; row++) {
    let [sum, other] = [0, 0]; // two sums, since each waits for itself
    for (let c = 0; c + 1 < C; c += 2, k += 2) {
      sum += bytes[k] * x[c];
      other += bytes[k + 1] * x[c + 1];
    }
    if (C % 2) sum += bytes[k++] * x[C - 1];
    y[row] = (sum + other) * scales[row] + (bias ? bias[row] : 0);
  }
  return y;
}

function rowOf({ bytes, scales }, row) {
  const C = bytes.length / scales.length;
  return Float32Array.from(bytes.subarray(row * C, (row + 1) * C), (byte) => byte * scales[row]);
}

const add = (x, y) => x.map((value, c) => value + y[c]);

function layerNorm(x, { weight, bias }) {
  const mean = x.reduce((a, b) => a + b) / x.length;
  const variance = x.reduce((sum, value) => sum + (value - mean) ** 2, 0) / x.length;
  return x.map((value, c) => ((value - mean) / Math.sqrt(variance + 1e-5)) * weight[c] + bias[c]);
}

/** The error function to 1.5e-7: Abramowitz and Stegun, 7.1.26. */
function erf(x) {
  const t = 1 / (1 + 0.3275911 * Math.abs(x));
  const series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t;
  return Math.sign(x) * (1 - series * Math.exp(-x * x));
}

const gelu = (x) => x.map((value) => (value / 2) * (1 + erf(value / Math.SQRT2)));
const leakyReLU = (value) => (value > 0 ? value : 0.2 * value);

function softmax(scores) {
  const top = Math.max(...scores);
  const powers = scores.map((score) => Math.exp(score - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

// ---------------------------------------------------------------- Attention

/** What the heads of one token read: of(h, j) is head h's score for token j, and values[j] has what token j holds. */
function aggregate(H, values, of) {
  const [C, read, weights] = [values[0].length, new Float32Array(values[0].length), []];
  for (let h = 0; h < H; h++) {
    weights.push(softmax(values.map((_, j) => of(h, j))));
    for (let j = 0; j < values.length; j++) {
      for (let c = (h * C) / H; c < ((h + 1) * C) / H; c++) read[c] += weights[h][j] * values[j][c];
    }
  }
  return { read, weights };
}

/** q . k over the channels of head h. */
function dot(q, k, h, H) {
  let [sum, end] = [0, ((h + 1) * q.length) / H];
  for (let c = (h * q.length) / H; c < end; c++) sum += q[c] * k[c];
  return sum;
}

/** Each takes the weights of a block's attention, the vector x of token i, and what was kept of the tokens before. */
const attentions = {
  dot({ query, key, value }, x, kept, H) {
    const [q, root] = [linear(x, query), Math.sqrt(x.length / H)];
    kept.push({ k: linear(x, key), v: linear(x, value) });
    return aggregate(H, kept.map(({ v }) => v), (h, j) => dot(q, kept[j].k, h, H) / root);
  },

  soft_window({ query, key, value, window }, x, kept, H, blockSize) {
    const [q, root] = [linear(x, query), Math.sqrt(x.length / H)];
    const w = linear(x, window).map((u) => 1 + (blockSize / 2) * Math.exp(u)); // of each head
    kept.push({ k: linear(x, key), v: linear(x, value) });
    const i = kept.length - 1;
    return aggregate(H, kept.map(({ v }) => v), (h, j) => dot(q, kept[j].k, h, H) / root - (i - j) / w[h]);
  },

  gat({ layer: { lin, att_src, att_dst, bias } }, x, kept, H) {
    const h_i = linear(x, lin);
    kept.push({ v: h_i, src: Array.from({ length: H }, (_, h) => dot(h_i, att_src, h, H)) });
    const dst = Array.from({ length: H }, (_, h) => dot(h_i, att_dst, h, H));
    const { read, weights } = aggregate(H, kept.map(({ v }) => v), (h, j) => leakyReLU(dst[h] + kept[j].src[h]));
    return { read: add(read, bias), weights };
  },

  gatv2({ layer: { lin_l, lin_r, att, bias } }, x, kept, H) {
    const dst = linear(x, lin_r);
    kept.push({ v: linear(x, lin_l) }); // src_j, which is the value too
    const score = (h, j) => {
      let [sum, src, end] = [0, kept[j].v, ((h + 1) * dst.length) / H];
      for (let c = (h * dst.length) / H; c < end; c++) sum += att[c] * leakyReLU(dst[c] + src[c]);
      return sum;
    };
    const { read, weights } = aggregate(H, kept.map(({ v }) => v), score);
    return { read: add(read, bias), weights };
  },
};

// ---------------------------------------------------------------- Models

/** A rung's model: { name, kind, config, vocabulary, weights }. Its weights are decoded when they are first needed. */
class Model {
  constructor(file) {
    Object.assign(this, file);
    this.T = file.config.block_size;
    this.idOf = new Map([...file.vocabulary].map((character, id) => [character, id]));
  }

  /** The weights as a tree: blocks.0.attention.query.weight is parts.blocks[0].attention.query.weight. */
  get parts() {
    const parts = {};
    for (const [name, tensor] of Object.entries(this.weights)) {
      const path = name.split(".");
      const last = path.pop();
      path.reduce((part, step) => (part[step] ??= {}), parts)[last] = decoded(tensor);
    }
    Object.defineProperty(this, "parts", { value: parts });
    return parts;
  }

  attention(part, x, kept) {
    const { read, weights } = attentions[this.kind](part, x, kept, this.config.n_head ?? 1, this.T);
    kept.at(-1).weights = weights;
    return part.projection ? linear(read, part.projection) : read;
  }

  block(part, x, kept) {
    x = add(x, this.attention(part.attention, layerNorm(x, part.norm_1), kept));
    const hidden = gelu(linear(layerNorm(x, part.norm_2), part.feed_forward[0]));
    return add(x, linear(hidden, part.feed_forward[2]));
  }

  /** One more token at position i of a window; `kept` has a list for each attention. Returns the logits (V). */
  forward(id, i, kept) {
    const { table, token_embedding, position_embedding, attention, block, blocks, norm, head } = this.parts;
    if (table) return rowOf(table.weight, id);
    let x = add(rowOf(token_embedding.weight, id), rowOf(position_embedding.weight, i));
    if (attention) x = this.attention(attention, x, kept[0]);
    Object.values(blocks ?? (block ? [block] : [])).forEach((part, n) => (x = this.block(part, x, kept[n])));
    if (norm) x = layerNorm(x, norm);
    return linear(x, head ?? token_embedding); // without a head of its own: weight tying
  }
}

/** A window of text as a model has read it: at most T tokens. What was read before is not computed again. */
class Reading {
  constructor(model) {
    Object.assign(this, { model, ids: [], logits: [], kept: [] });
    const { attention, block, blocks } = model.parts;
    const layers = attention || block ? 1 : Object.keys(blocks ?? {}).length;
    this.kept = Array.from({ length: layers }, () => []);
  }

  /** Reads up to `end` of these tokens; returns the logits after each. */
  read(ids, end = ids.length) {
    let same = 0;
    while (same < this.ids.length && this.ids[same] === ids[same]) same++;
    for (const list of [this.ids, this.logits, ...this.kept]) list.length = Math.min(list.length, same);
    for (let i = same; i < end; i++) {
      this.logits.push(this.model.forward(ids[i], i, this.kept));
      this.ids.push(ids[i]);
    }
    return this.logits;
  }
}

/** Continues a text as the rung's generate does: next(ids) has the logits of the token that follows. */
class Writer {
  constructor(model) {
    Object.assign(this, { model, reading: new Reading(model), start: null });
  }

  next(ids) {
    const { T, cached } = this.model;
    if (!cached || this.start === null) this.start = Math.max(0, ids.length - T);
    if (ids.length - this.start > T) this.start = ids.length - Math.floor((T + 1) / 2); // the last half, once more
    return this.reading.read(ids.slice(this.start)).at(-1);
  }
}
