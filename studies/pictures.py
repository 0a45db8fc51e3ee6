"""Draws what the README explains.

python -m studies.pictures                                            # all that it can
python -m studies.pictures --run results/mine --text "To be, or not"  # what the heads of a run attend to

losses.png: the losses of the ladder. graph.png: a causal context as a graph, its adjacency matrix, attention weights on
it. head.png: attention, matrix by matrix. block.png: a block of a GPT. tokens.png: a line cut into its tokens.
lookup.png: what GAT cannot look up. merge.png: one merge of long_gat.py. attention-RUN.png: what each head attends to.
rankings.png: the order in which each query ranks the keys, in trained runs of GAT, GATv2 and the dot product.
windows.png: how far the queries of windowed_gpt.py look. positions.png: the loss by place in the window. The last four
are of trained runs. Those whose weights are not in results/published/ are drawn once `bash studies/reproduce.sh` has
left them in results/reproduced/.
"""

import itertools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Rectangle
from matplotlib.path import Path as Bezier
from matplotlib.ticker import EngFormatter, NullFormatter
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import sample
import transformer
from data import BPETokenizer, Dataset, UserError
from data.corpus import tinyshakespeare
from data.files import write_output
from pyg_free_gat import GAT, GATv2, GraphAttention
from results import option, parse, run_main
from results.metrics import read
from results.plot import COLOURS, MADE_BY, RESULTS, label, picture
from studies.ablation import finished
from studies.gates import HardWindow

BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#BBBBBB"
TEXT = "Good morrow, neighbour Baptista."

# ---------------------------------------------------------------- The graph


def name(axes, rows, columns, size):
    """Names the rows and the columns of a matrix, each by the tokens of a text."""
    rows, columns = ([token.replace(" ", "␣").replace("\n", "↵") for token in text] for text in (rows, columns))
    axes.set_xticks(range(len(columns)), columns, family="DejaVu Sans Mono", fontsize=size, parse_math=False)
    axes.set_yticks(range(len(rows)), rows, family="DejaVu Sans Mono", fontsize=size, parse_math=False)
    axes.xaxis.set_ticks_position("top")
    axes.tick_params(length=0, pad=1)
    axes.spines[:].set_visible(False)


def grid(axes, values, shown, **how):
    """A matrix as coloured cells with a number in each."""
    rows, columns = len(values), len(values[0])
    axes.pcolormesh(range(columns), range(rows), values, edgecolors=GREY, linewidth=0.5, **how)
    axes.set(ylim=(rows - 0.5, -0.5), aspect="equal")
    for i in range(rows):
        for j in range(columns):
            dark = values[i][j] > 0.5
            axes.text(j, i, shown(values[i][j]), ha="center", va="center", color="white" if dark else "black")


def draw_graph(text="ROME"):
    """The causal graph over the characters of `text`, its adjacency, and the softmax of random scores on its edges."""
    figure = Figure(figsize=(8.3, 2.7), dpi=120, layout="constrained")
    tokens, matrix, weights = figure.subplots(1, 3, width_ratios=(1.5, 1, 1))
    T, r = len(text), 0.17
    for i in range(T):
        tokens.add_patch(Circle((i, 0), r, facecolor="white", edgecolor="black"))
        tokens.text(i, 0, text[i], ha="center", va="center", fontsize=13, family="DejaVu Sans Mono")
        arrow = dict(arrowstyle="-|>", color=BLUE, mutation_scale=12)
        for j in range(i):
            tokens.add_patch(FancyArrowPatch((j, r), (i, r), connectionstyle="arc3,rad=-0.4", **arrow))
        loop = ((i - 0.08, -0.15), (i - 0.25, -0.55), (i + 0.25, -0.55), (i + 0.08, -0.15))  # from itself to itself
        tokens.add_patch(FancyArrowPatch(path=Bezier(loop, [1, 4, 4, 4]), **arrow))
    tokens.set(xlim=(-0.4, T - 0.6), ylim=(-0.6, 0.95), aspect="equal")
    tokens.set_title("each reads from itself and all before", fontsize=9)
    tokens.axis("off")
    adjacency = torch.ones(T, T).tril()
    scores = torch.randn(T, T, generator=torch.Generator().manual_seed(1))
    attention = scores.masked_fill(adjacency == 0, -math.inf).softmax(-1)
    grid(matrix, adjacency.tolist(), "{:.0f}".format, cmap=ListedColormap(["white", BLUE]))
    grid(weights, attention.tolist(), "{:.2f}".format, cmap="Blues", vmin=0, vmax=1)
    for axes, title in ((matrix, "adjacency[i, j]: the causal mask"), (weights, "softmax of the masked scores")):
        name(axes, text, text, 10)
        axes.set(xlabel="source j", ylabel="target i")
        axes.set_title(title, fontsize=9)
    return figure


# ---------------------------------------------------------------- One head, matrix by matrix


HEAD_TEXT = "to be or"


def head_numbers(T, C=6):
    """Random numbers to show attention with: x (T, C), and W_q, W_k, W_v and W_o, (C, C) each."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(T, C, generator=generator)
    return x, *(1.5 * torch.randn(C, C, generator=generator) / C**0.5 for _ in range(4))


def draw_head(text=HEAD_TEXT):
    """Attention over the characters of a text in five stages, each with what it adds, from random numbers."""
    x, w_q, w_k, w_v, w_o = head_numbers(len(text))
    (T, C), H = x.shape, 2
    q, k, v = x @ w_q, x @ w_k, x @ w_v
    adjacency = torch.ones(T, T).tril() == 1

    def attend(q, k, v, mask=True, scale=True):
        scores = q @ k.T / (q.shape[-1] ** 0.5 if scale else 1)
        scores = scores.masked_fill(~adjacency, -math.inf) if mask else scores
        return scores, scores.softmax(-1), scores.softmax(-1) @ v

    D = C // H
    one, two = (attend(*(m[:, h * D : (h + 1) * D] for m in (q, k, v))) for h in range(H))
    both = torch.cat((one[2], two[2]), dim=1)
    stages = [
        ("no mask yet", attend(q, k, v, mask=False, scale=False), "Q Kᵀ"),
        ("causal", attend(q, k, v, scale=False), "Q Kᵀ, masked"),
        ("scaled", attend(q, k, v), f"Q Kᵀ / √{C}, masked"),
    ]
    figure = Figure(figsize=(8.3, 11), dpi=110, layout="constrained")
    rows = figure.subplots(6, 4)
    for axes, (matrix, title) in zip(rows[0], ((x, "X"), (q, "Q = X W_q"), (k, "K = X W_k"), (v, "V = X W_v"))):
        show(axes, matrix, f"{title}  ({T}, {C})", text)
    i, j = 4, 3
    products = [f"{a * b:+.2f}" for a, b in zip(q[i].tolist(), k[j].tolist())]
    says = {
        "no mask yet": f"in the frame, row “{text[i]}”,\ncolumn “{text[j]}”: q · k =\n{' '.join(products[:3])}\n"
        f"{' '.join(products[3:])}\n= {{score:.2f}}\n\nsoftmax: a row sums to 1",
        "causal": "scores with j > i\nare set to −∞, which the\nsoftmax makes 0: no one\nreads ahead",
        "scaled": f"in the frame:\n{stages[0][1][0][i, j]:.2f} / √{{C}} = {{score:.2f}}\n\nthe weights are softer",
    }
    for row, (stage, (scores, weights, output), title) in zip(rows[1:], stages):
        show(row[0], scores, f"{title}  ({T}, {T})", text, text)
        show(row[1], weights, f"softmax  ({T}, {T})", text, text, weights=True)
        show(row[2], output, f"softmax · V  ({T}, {C})", text)
        note(row[3], stage, says[stage].format(score=scores[i, j], C=C))
    show(rows[4][0], one[1], f"head 1: softmax  ({T}, {T})", text, text, weights=True)
    show(rows[4][1], two[1], f"head 2: softmax  ({T}, {T})", text, text, weights=True)
    show(rows[4][2], both, f"both reads, concatenated  ({T}, {C})", text)
    split = f"channels 0 to {D - 1} of Q, K, V\nare head 1's, the others\nhead 2's"
    note(rows[4][3], "multi-head", f"{split}: each has weights\nof its own, masked and\nscaled as before, by √{D}")
    show(rows[5][0], both, f"both reads  ({T}, {C})", text)
    show(rows[5][1], w_o, f"W_o  ({C}, {C})")
    show(rows[5][2], both @ w_o, f"both reads · W_o  ({T}, {C})", text)
    note(rows[5][3], "projected", "a linear layer mixes\nwhat the heads have read\ninto every channel")
    for axes in rows[1][0], rows[2][0], rows[3][0]:
        axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, linewidth=1.5))
    return figure


def show(axes, matrix, title, rows="", columns="", weights=False):
    """A matrix as colours: weights from 0, white, to 1; numbers from blue, below 0, to red."""
    limit = matrix[matrix.isfinite()].abs().max().item()
    how = dict(cmap="Blues", vmin=0, vmax=1) if weights else dict(cmap="RdBu_r", vmin=-limit, vmax=limit)
    axes.imshow(matrix.masked_fill(~matrix.isfinite(), math.nan).numpy(), **how)
    axes.set_facecolor(GREY)
    name(axes, rows, columns, 7)
    axes.set_title(title, fontsize=8)


def note(axes, head, text):
    axes.axis("off")
    axes.text(0, 1, head, fontsize=11, weight="bold", va="top", transform=axes.transAxes)
    axes.text(0, 0.82, text, fontsize=8, va="top", transform=axes.transAxes)


# ---------------------------------------------------------------- What trained heads attend to


class Attended(TorchFunctionMode):
    """Notes the attention weights (B, H, T, T) of each call of the fused kernel inside, which gives none itself.

    full: as if every token read from all.
    """

    def __init__(self, full=False):
        super().__init__()
        self.full, self.weights = full, []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.scaled_dot_product_attention:
            weights, read = written_out(*args, **kwargs or {}, full=self.full)
            self.weights.append(weights)
            return read
        return function(*args, **kwargs or {})


class WrittenOut(TorchFunctionMode):
    """Notes the attention weights (B, H, T, T) that transformer.py computes, which has no fused kernel."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        if function is torch.Tensor.softmax:
            self.weights.append(out)
        return out


def written_out(q, k, v, mask=None, is_causal=False, scale=None, full=False):
    """Attention without the fused kernel: the weights (B, H, T, S), and what is read by them (B, H, T, D)."""
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if is_causal and not full:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril()
    if mask is not None and mask.dtype != torch.bool:
        scores = scores + mask
    elif mask is not None and not full:
        scores = scores.masked_fill(~mask, -math.inf)
    weights = scores.softmax(-1)
    return weights, weights @ v


@torch.inference_mode()
def attend(model, ids, full=False):
    """The attention weights of each layer of a GPT over ids (1, T), a list of (1, H, T, T)."""

    def note(layer, args, kwargs, _):
        x, adjacency = args
        adjacency = torch.ones_like(adjacency) if full else adjacency
        found.append(layer.forward(x, adjacency, return_attention_weights=True)[1])

    with WrittenOut() if isinstance(model, transformer.GPT) else Attended(full) as attended:
        found, hooks = attended.weights, []
        for block in model.blocks:
            if isinstance(getattr(block.attention, "layer", None), GraphAttention):
                hooks.append(block.attention.layer.register_forward_hook(note, with_kwargs=True))
            elif isinstance(block.attention, HardWindow):
                block.attention.block = ids.shape[1]  # all queries in one call
        model.eval()(ids)
        for hook in hooks:
            hook.remove()
    return found


def weights_of(run, text, full=False, layers=""):
    """The attention weights of a run's model over a text, a list of (H, T, T), one a block, and its T last tokens."""
    _, model, tokenizer = sample.load(run, "cpu", layers)
    ids, T = tokenizer.encode(text).long(), model.config.block_size
    weights = attend(model, ids[None, -T:], full) if hasattr(model, "blocks") else []
    if not weights:
        raise UserError(f"{run}: no weights to draw; the GPTs have them, but for long_gat.py and --layer mean")
    return [w[0] for w in weights], texts_of(tokenizer, ids)[-T:]


def texts_of(tokenizer, ids):
    """The text of each token, a list. A character whose bytes are in several tokens is that of the first of them."""
    text, lengths, texts = tokenizer.decode(ids), getattr(tokenizer, "lengths", [1] * len(tokenizer)), []
    for i in ids:
        texts.append(text[: lengths[i]])
        text = text[lengths[i] :]
    return texts


def draw_attention(run, text, layers=""):
    """Every head of a run over a text, a row for each block: square roots of weights, so that faint ones show."""
    blocks, tokens = weights_of(run, text, layers=layers)
    H, T = blocks[0].shape[:2]
    figure = Figure(figsize=(8.3, 0.4 + 8.3 / H * len(blocks)), dpi=200, layout="constrained")
    for row, (axes_of, weights) in enumerate(zip(figure.subplots(len(blocks), H, squeeze=False), blocks)):
        for head, axes in enumerate(axes_of):
            axes.imshow(weights[head].sqrt().numpy(), cmap="Blues", vmin=0, vmax=1)
            name(axes, tokens, tokens, min(7, 130 / T))
            axes.set_title(f"block {row + 1}, head {head + 1}", fontsize=8)
    said = "who (row) reads whom (column); the colour is the square root of the weight"
    figure.suptitle(f"{Path(run).name}: {said}", fontsize=9, parse_math=False)  # a $ is a letter like others
    return figure


def draw_rankings(runs, text):
    """In which order each query of a run's first block has all keys, without the mask: the head that varies most."""
    figure = Figure(figsize=(8.3, 3.2), dpi=200, layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False)[0], runs):
        (weights, *_), tokens = weights_of(run, text, full=True)
        ranks = weights.argsort(-1, descending=True).argsort(-1).double()  # (H, T, T)
        ranks = ranks[ranks.var(dim=1).sum(dim=-1).argmax()]
        image = axes.imshow(ranks.numpy(), cmap="viridis_r")
        orders = len(torch.unique(ranks, dim=0))
        name(axes, tokens, tokens, 5)
        said = f"{Path(run).name}: {orders} order{'s' * (orders > 1)} for {len(tokens)} queries"
        axes.set_title(said, fontsize=9, parse_math=False)
    figure.colorbar(image, ax=figure.axes, label="rank of the key (column), 0 is the highest", shrink=0.8)
    figure.suptitle("first block, the head whose orders differ most", fontsize=9)
    return figure


@torch.inference_mode()
def windows_of(model):
    """The window sizes of a model of windowed_gpt.py over the validation text, (queries, H) for each block."""
    windows = []
    for block in model.blocks:
        windows.append([])
        block.attention.window.register_forward_hook(lambda _, x, u, found=windows[-1]: found.append(u.flatten(0, 1)))
    for x, _ in Dataset(replace(model.config, device="cpu")).windows("val"):
        model.eval()(x)
    return [1 + model.config.block_size / 2 * torch.cat(u).exp() for u in windows]


def draw_windows(runs):
    """How far the queries of each head look over the validation text: medians, quartiles, and 5% to 95%."""
    figure = Figure(figsize=(8.3, 3.2), dpi=120, layout="constrained")
    for axes, run in zip(figure.subplots(1, len(runs), squeeze=False, sharey=True)[0], runs):
        _, model, _ = sample.load(run, "cpu")
        blocks, H = windows_of(model), model.config.n_head
        for n, windows in enumerate(blocks):
            share = windows.quantile(torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]), dim=0).T.tolist()
            boxes = [dict(zip(("whislo", "q1", "med", "q3", "whishi"), head)) for head in share]
            places = [n * (H + 1) + h for h in range(H)]
            axes.bxp(boxes, places, widths=0.7, showfliers=False, medianprops=dict(color=ORANGE))
        axes.axhline(model.config.block_size, color=GREY, linestyle="--", zorder=0)
        middles = [n * (H + 1) + (H - 1) / 2 for n in range(len(blocks))]
        axes.set(yscale="log", ylabel="window, characters", xticks=middles)
        axes.set_xticklabels([f"block {n + 1}" for n in range(len(blocks))])
        axes.set_title(f"{Path(run).name}, each head", loc="left", fontsize=9, parse_math=False)
        axes.spines[["top", "right"]].set_visible(False)
        axes.label_outer()
    figure.suptitle("median, quartiles, and 5% to 95% of the windows; dashed: the context", fontsize=9)
    return figure


# ---------------------------------------------------------------- The dictionary that GAT cannot look up


class Lookup(nn.Module):
    """One graph attention layer between K tokens that each hold a key and a value, and K that each ask for a key."""

    def __init__(self, layer, K, width=64):
        super().__init__()
        self.key, self.value = nn.Embedding(K, width), nn.Embedding(K, width)
        self.layer, self.head = layer(width, width), nn.Linear(width, K)

    def forward(self, values):
        B, K = values.shape
        holders = self.key.weight + self.value(values)  # (B, K, C)
        x = torch.cat((holders, self.key.weight.expand(B, -1, -1)), dim=1)  # (B, 2 K, C)
        adjacency = torch.zeros(2 * K, 2 * K, dtype=torch.bool)
        adjacency[K:, :K] = True  # who asks reads every holder
        return self.head(self.layer(x, adjacency)[:, K:])  # (B, K, K)


def lookup_accuracy(layer, steps, K=10):
    """The share of right answers after `steps` of training (arXiv:2105.14491, section 4.1); chance is 1 / K."""
    torch.manual_seed(0)
    model = Lookup(layer, K)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        values = torch.rand(32, K).argsort(dim=-1)  # (B, K), a dictionary each
        optimizer.zero_grad()
        F.cross_entropy(model(values).flatten(0, 1), values.flatten()).backward()
        optimizer.step()
    values = torch.rand(500, K).argsort(dim=-1)
    with torch.inference_mode():
        return (model(values).argmax(dim=-1) == values).double().mean().item()


def draw_lookup(sizes=(4, 8, 12, 16, 20), steps=500):
    figure = Figure(figsize=(8.3, 2.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    for layer, colour in ((GATv2, BLUE), (GAT, ORANGE)):
        right = [lookup_accuracy(layer, steps, K) for K in sizes]
        axes.plot(sizes, right, color=colour, marker="o")
        axes.annotate(layer.__name__, (sizes[-1], right[-1]), xytext=(8, 0), textcoords="offset points", color=colour,
                      va="center")  # fmt: skip
    axes.plot(sizes, [1 / K for K in sizes], color=GREY, linestyle="--", zorder=0)
    axes.set(xlabel="keys in the dictionary", ylabel="answers that are right", ylim=(0, 1.05), xticks=sizes)
    axes.set_title(f"one head, {steps} steps of training; dashed: chance", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# ---------------------------------------------------------------- A block


def draw_block():
    """The blocks of gpt.py between its embeddings and its head, the residual stream from bottom to top."""
    figure = Figure(figsize=(8.3, 5.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    axes.axis("off")

    def box(x, y, text, colour="white", width=2.6):
        corner = (x - width / 2, y - 0.22)
        axes.add_patch(FancyBboxPatch(corner, width, 0.44, "round,pad=0.05", facecolor=colour, edgecolor="black"))
        axes.text(x, y, text, ha="center", va="center", fontsize=9)

    def arrow(*points):
        for (x, y), (to_x, to_y) in zip(points, points[1:-1]):
            axes.plot([x, to_x], [y, to_y], color="black", linewidth=1)
        axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=dict(arrowstyle="-|>", color="black"))

    def branch(bottom, name, colour):
        """Out of the stream, through a norm and something, back into it."""
        arrow((0, bottom), (3, bottom), (3, bottom + 0.28))
        box(3, bottom + 0.55, "LayerNorm")
        arrow((3, bottom + 0.82), (3, bottom + 1.03))
        box(3, bottom + 1.3, name, colour)
        arrow((3, bottom + 1.57), (3, bottom + 1.85), (0.2, bottom + 1.85))
        plus = dict(boxstyle="circle,pad=0.15", facecolor="white")
        axes.text(0, bottom + 1.85, "+", ha="center", va="center", fontsize=11, bbox=plus)

    arrow((0, 0.3), (0, 6.0))
    box(0, 0, "token embedding + position embedding", width=4.6)
    axes.text(-0.15, 0.62, "residual stream (B, T, C)", ha="right", fontsize=9)
    branch(0.9, "attention: communication", "#CFE3F1")
    branch(3.3, "feed-forward: computation", "#F8DDC9")
    block = FancyBboxPatch((-1.2, 0.85), 6.0, 4.6, "round,pad=0.05", fill=False, linestyle="--", edgecolor="grey")
    axes.add_patch(block)
    axes.text(4.95, 5.3, "× n_layer", va="center", fontsize=10)
    box(0, 6.25, "LayerNorm")
    arrow((0, 6.52), (0, 6.75))
    box(0, 7.0, "head: the token embedding, transposed", width=4.6)
    arrow((0, 7.27), (0, 7.6))
    axes.text(0, 7.75, "logits (B, T, V)", ha="center", fontsize=9)
    axes.text(0, -0.5, "ids of characters (B, T)", ha="center", fontsize=9)
    axes.set(xlim=(-3.5, 6.2), ylim=(-0.7, 8))
    return figure


def losses_by_place(run):
    """The mean loss at each place of a window, (T,), in nats per token over the validation split's whole windows."""
    module, model, _ = sample.load(run, "cpu")
    model.config.device = "cpu"
    model.eval()
    with torch.inference_mode():
        batches = [(x, y) for x, y in Dataset(model.config).windows("val") if x.shape[1] == model.config.block_size]
        return torch.cat([F.cross_entropy(model(x).mT, y, reduction="none") for x, y in batches]).mean(dim=0)


def draw_positions(runs):
    """The loss over how much a character has before it, in trained runs: a mean for each doubling."""
    figure = Figure(figsize=(8.3, 3.2), dpi=120, layout="constrained")
    axes = figure.subplots()
    for colour, run in zip(COLOURS, runs):
        losses = losses_by_place(run)
        ends = [2**n for n in range(len(losses).bit_length())]  # of places 1, 2, 3 to 4, 5 to 8, ...
        means = [losses[end // 2 : end].mean().item() for end in ends]
        axes.plot(ends, means, marker="o", color=colour, label=Path(run).name)
    axes.set_xscale("log", base=2)
    axes.set(xlabel="characters read, the mean over a doubling", ylabel="validation loss, nats")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return figure


# ---------------------------------------------------------------- The losses of the ladder


def draw_losses(runs=("bigram", "single_head", "multi_head", "block", "transformer", "gpt", "modern_gpt")):
    """The validation losses of published runs over the characters that they were trained on: means over the seeds."""
    figure = Figure(figsize=(8.3, 4.7), dpi=120, layout="constrained")
    axes, labels = figure.subplots(), []
    for run, colour in zip(runs, COLOURS):
        seeds = [read(folder) for folder in finished(run)]
        losses = torch.tensor([points_of(seed, "val_loss") for seed in seeds])  # (seeds, evaluations)
        at = [tokens for tokens, loss in zip(seeds[0]["tokens"], seeds[0]["val_loss"]) if loss is not None]
        mean, deviation = losses.mean(dim=0), losses.std(dim=0) if len(seeds) > 1 else torch.zeros(len(at))
        axes.plot(at, mean, color=colour, marker="o", markersize=3, linewidth=2)
        axes.fill_between(at, mean - deviation, mean + deviation, color=colour, alpha=0.25, linewidth=0)
        labels.append((mean[-1].item(), at[-1], colour, f"{run}.py {mean[-1]:.3f}"))
    axes.set(xscale="log", xlabel="characters seen in training", ylabel="loss, nats per character (lower is better)")
    axes.set_title("validation loss: mean and standard deviation of three seeds", loc="left", fontsize=10)
    axes.set_xticks([300_000, 600_000, 1_200_000, 2_400_000], minor=False)
    axes.xaxis.set(major_formatter=EngFormatter(sep=""), minor_formatter=NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    label(axes, labels)
    return figure


def points_of(columns, name):
    return [value for value in columns[name] if value is not None]


# ---------------------------------------------------------------- One merge of long_gat.py


def draw_merge():
    """How a query of long_gat.py finds its two sums: keys sorted, a cut, a running sum from either side."""
    figure = Figure(figsize=(8.3, 2.9), dpi=120, layout="constrained")
    axes, keys, query = figure.subplots(), (-1.2, -0.4, 0.1, 0.8, 1.5), -0.3
    weights = [math.exp(0.2 * key) for key in keys], [math.exp(key) for key in keys]
    sums = list(itertools.accumulate(weights[0])), list(itertools.accumulate(weights[1][::-1]))[::-1]
    cut = sum(key <= -query for key in keys)
    rows = [("keys t, sorted", [f"{key:.1f}" for key in keys])]
    rows += [("sums from the left of exp(slope t)", [f"{total:.2f}" for total in sums[0]])]
    rows += [("sums from the right of exp(t)", [f"{total:.2f}" for total in sums[1]])]
    for y, (said, cells) in enumerate(rows):
        axes.text(-0.7, y, said, ha="right", va="center", fontsize=9)
        for x, cell in enumerate(cells):
            taken = (y, x) in ((1, cut - 1), (2, cut))
            colour = "#CFE3F1" if taken else "white"
            cell_at = (x - 0.45, y - 0.35)
            axes.add_patch(Rectangle(cell_at, 0.9, 0.7, facecolor=colour, edgecolor="black", linewidth=0.8))
            axes.text(x, y, cell, ha="center", va="center", fontsize=10, weight="bold" if taken else "normal")
    axes.plot([cut - 0.5] * 2, [-0.6, 2.6], color=ORANGE)
    axes.text(cut - 0.5, -0.75, f"the query s = {query} cuts at t = {-query}", color=ORANGE, ha="center", fontsize=9)
    parts = f"exp({query} slope) · {sums[0][cut - 1]:.2f} + exp({query}) · {sums[1][cut]:.2f}"
    axes.text(2, 2.95, f"the sum of the query's weights: {parts}", ha="center", va="center", fontsize=9)
    axes.set(xlim=(-4.2, 4.7), ylim=(3.2, -1.0))
    axes.axis("off")
    return figure


# ---------------------------------------------------------------- Tokens


def draw_tokens(text="O Romeo, Romeo! wherefore art thou Romeo?", sizes=(512, 1024, 4096)):
    """A line cut into its tokens: characters, and byte pairs learned on tinyshakespeare's training split."""
    play = tinyshakespeare()
    merges = BPETokenizer.of(play[: int(0.9 * len(play))], max(sizes)).merges  # fewer tokens are the first of them
    tokenizers = {f"{size:,} tokens": BPETokenizer(merges[: size - 256]) for size in sizes}
    lines = {"characters": [*text]}
    lines |= {name: texts_of(t, t.encode(text)) for name, t in tokenizers.items()}
    figure = Figure(figsize=(8.3, 1.9), dpi=150, layout="constrained")
    axes = figure.subplots()
    for y, (name, tokens) in enumerate(lines.items()):
        start = 0
        for token in tokens:
            box = FancyBboxPatch((start + 0.1, y - 0.32), len(token) - 0.2, 0.64, "round,pad=0,rounding_size=0.15")
            box.set(facecolor="#CFE3F1", edgecolor=BLUE, linewidth=0.8)
            axes.add_patch(box)
            start += len(token)
        for x, character in enumerate(text):
            axes.text(x + 0.5, y, character, ha="center", va="center", family="DejaVu Sans Mono", fontsize=9)
        axes.text(-0.4, y, name, ha="right", va="center", fontsize=9)
        axes.text(len(text) + 0.4, y, len(tokens), va="center", fontsize=9)
    axes.set(xlim=(-8, len(text) + 2), ylim=(len(lines) - 0.5, -0.5))
    axes.axis("off")
    return figure


# ---------------------------------------------------------------- main()


@dataclass
class Flags:
    run: str = option("", "only what the heads of the run in this folder attend to")
    text: str = option(TEXT, "what they read")
    layers: str = option("", "with --run, a Python file to run first that adds a layer of yours to pyg_free_gat.LAYERS")
    out: str = option("", "the folder for pictures instead of results/published or, with --run, the run's")

    def __post_init__(self):
        self.out = self.out or self.run or str(RESULTS / "published")
        if not self.text:
            raise ValueError("--text: must not be empty")
        if not Path(self.out).is_dir():
            raise ValueError(f"{self.out}: is no folder")


def main(argv=None):
    flags = parse(Flags, argv)
    runs = [flags.run]

    def save(name, figure):
        path = Path(flags.out) / f"{name}.png"
        write_output(path, picture(figure), MADE_BY.encode())
        print(path, flush=True)

    if not flags.run:
        for draw in (draw_losses, draw_graph, draw_head, draw_block, draw_tokens, draw_lookup, draw_merge):
            save(draw.__name__.removeprefix("draw_"), draw())
        folders = [RESULTS / "published", RESULTS / "reproduced"]
        trained = {file.parent.name: file.parent for folder in folders for file in folder.glob("*/best.pt")}
        pictures = {
            "rankings": (draw_rankings, ("gat", "gatv2", "gpt"), flags.text),
            "windows": (draw_windows, ("soft_window", "hard_window")),
            "positions": (draw_positions, ("long_gat", "gat_256", "gpt")),
        }
        for name, (draw, needed, *text) in pictures.items():
            if trained.keys() >= {*needed}:
                save(name, draw([trained[run] for run in needed], *text))
        runs = [trained[name] for name in ("gpt", "gat", "gatv2") if name in trained]
    for run in runs:
        save(f"attention-{Path(run).resolve().name}", draw_attention(run, flags.text, flags.layers))


if __name__ == "__main__":
    run_main(main)
