"""Rung 8: a GPT whose attention is graph attention (GAT, GATv2), without PyTorch Geometric.

New against rung 6: attention is message passing on a graph. The nodes are the tokens of a window, and the causal mask
is the adjacency matrix: token i reads from token j where `adjacency[i, j]` is True. Each token takes a weighted sum of
what its neighbours hold, the tokens that it reads from. How the weights are found is up to a layer, any module that is
called with x and the adjacency. Since a layer may be any module there is no KV cache: as in rung 5, the whole window
goes through the model for each new token. In a Graph Attention Network (GAT) the score of an edge is not a dot product.
It is a sum that goes through a LeakyReLU, which multiplies negative numbers by a small slope and leaves the others as
they are. GATv2 goes one step further: there the query decides which keys score high.

PyTorch Geometric (PyG), the usual library for such networks, goes through a list of edges. Here all T x T scores are
computed, and those without an edge are masked. That is faster for a graph with as many edges as a causal mask. The
results are the same: the weights of PyG's GATConv and GATv2Conv load into GAT and GATv2 and give the same outputs.

Papers: Velickovic et al., "Graph Attention Networks" (arXiv:1710.10903): GAT; Brody, Alon and Yahav, "How Attentive
are Graph Attention Networks?" (arXiv:2105.14491): GATv2.
"""

import functools
import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import DTYPES, Dataset, total
from results import SIZES, Flags, Run, option, parse_config, recorded, run_main, sample_token, shared_learning_rate

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    batch_size: int = option(32, "B: windows of text in a batch")
    block_size: int = option(128, "T: characters in a window, the context")
    n_layer: int = option(3, "transformer blocks", within="[1, 1000)")
    n_head: int = option(4, "H: attention heads")
    n_embd: int = option(192, "C: width of the residual stream; each head has D = C / H channels")
    dropout: float = option(0.0, "fraction of activations set to 0 during training", within="[0, 1)")
    learning_rate: float = option(1.5e-2, "highest learning rate, after warm-up; for adamw try a third")
    weight_decay: float = option(0.1, "weight decay of the blocks' matrices")
    warmup_iters: int = option(50, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    max_iters: int = option(600, "training steps")
    eval_interval: int = option(100, "steps between evaluations")
    optimizer: str = option("muon", "optimizer of the blocks' matrices; all else uses AdamW", choices=("muon", "adamw"))
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")
    cuda_graph: bool = option(True, "on CUDA, launch all kernels of a step at once")
    size: str = option("auto", "small: the defaults; full: a GPU's; auto: full on cuda, else small", choices=SIZES)
    layer: str = option("", "gat, gatv2 (the default), dot, mean, or a name that you added to LAYERS")
    graph: str = option("causal", "causal, window:K, dilated:K, stride:K, global:K, random:K, or several joined by +")
    out_proj: bool = option(True, "mix what the heads read by a linear layer, as gpt.py does")
    gat_version: str = option("", "PyG's name for --layer gat or gatv2", choices=("", "GATConv", "GATv2Conv"))

    full = dict(
        batch_size=16,
        block_size=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        dropout=0.1,
        learning_rate=8e-3,
        weight_decay=0.5,
        max_iters=2000,
        eval_interval=250,
    )

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")
        layer = {"GATConv": "gat", "GATv2Conv": "gatv2"}.get(self.gat_version, self.layer or "gatv2")
        if self.layer not in ("", layer):
            raise ValueError(f"--layer {self.layer} and --gat_version {self.gat_version} contradict each other")
        self.layer = layer
        if self.layer not in LAYERS:
            raise ValueError(f"--layer {self.layer}: must be one of {', '.join(LAYERS)}, or one that you add")
        adjacency_of(self.graph, torch.arange(1))  # raises ValueError unless it is a graph


# ---------------------------------------------------------------- Model


def adjacency_of(graph: str, positions: Tensor, seed: int = 1) -> Tensor:
    """Who reads from whom among tokens at `positions` (T,): (T, T) bool, True where i reads from j (an edge j -> i).

    window:16+global:4+random:3 has the edges of all three, as BigBird does (Zaheer et al., arXiv:2007.14062), but only
    those of a causal graph: every token reads from itself, and none from later ones. Raises ValueError if `graph` is
    none of these.
    """
    i, j = positions[:, None], positions
    adjacency = i == j  # (T, T)
    for part in graph.split("+"):
        if not re.fullmatch("causal|(window|dilated|stride|global|random):[1-9][0-9]{0,8}", part):
            kinds = "causal, window:K, dilated:K, stride:K, global:K, random:K"
            raise ValueError(f"--graph {graph}: must be {kinds}, or several joined by +; K is a number from 1")
        kind, _, K = part.partition(":")
        match kind:
            case "causal":
                edges = j <= i
            case "window":  # the last K tokens, itself included
                edges = i - j < int(K)
            case "dilated":  # each K-th token before
                edges = (i - j) % int(K) == 0
            case "stride":  # the tokens at multiples of K
                edges = j % int(K) == 0
            case "global":  # the first K tokens
                edges = j < int(K)
            case "random":  # K tokens before, the same ones for the same seed
                order = random_numbers(i, j, seed).masked_fill(j >= i, -1)
                drawn = order.topk(min(int(K), len(positions))).indices  # (T, K)
                edges = torch.zeros_like(adjacency).scatter(1, drawn, True)
        adjacency = adjacency | edges
    return adjacency & (j <= i)


def random_numbers(i: Tensor, j: Tensor, seed: int) -> Tensor:
    """A number below 2^31 for each pair, (T, T) int64: a hash, so that it depends on nothing but i, j and the seed."""
    x = (i * 73856093 ^ j * 19349663 ^ seed % 2**31 * 83492791) % 2**31
    x = (x ^ x >> 13) * 1274126177 % 2**31
    return x ^ x >> 16


def edges_of(adjacency: Tensor, x: Tensor) -> Tensor:
    """The adjacency of x (B, T, C), which is (T, T) or (B, T, T), with a dimension for heads: (B or 1, 1, T, T).

    Raises ValueError if it has another shape, and TypeError if it is not bool: numbers could be meant as weights of the
    edges, which no layer here has.
    """
    B, T, _ = x.shape
    if adjacency.dtype != torch.bool:
        raise TypeError(f"adjacency must be torch.bool, not {adjacency.dtype}; adjacency != 0 is True at each edge")
    if adjacency.shape not in ((T, T), (1, T, T), (B, T, T)):
        raise ValueError(f"adjacency is {tuple(adjacency.shape)}; this x needs {(T, T)} or {(B, T, T)}")
    return adjacency[None, None] if adjacency.ndim == 2 else adjacency[:, None]


def masked_softmax(scores: Tensor, edges: Tensor) -> Tensor:
    """Attention weights (B, H, T, T): a softmax of the scores over the j that i reads from, and 0 for all other j."""
    lowest = torch.finfo(scores.dtype).min  # not -inf: a token that reads from none would have NaN
    weights = torch.where(edges, scores, lowest).softmax(dim=-1)
    return torch.where(edges, weights, 0)


class GraphAttention(nn.Module):
    """What GAT and GATv2 share. Both take x (B, T, in_channels) and adjacency, (T, T) or (B, T, T) bool.

    Both return (B, T, heads * out_channels), or with concat=False the mean over the heads, (B, T, out_channels). With
    return_attention_weights=True they also return the attention weights (B, H, T, T). The options have the names of
    PyTorch Geometric's; the GPT below leaves them at their defaults. There are no edge features, and self-loops are
    edges like others. x must be finite, also at tokens that none reads from: 0 times NaN is NaN.
    """

    def __init__(self, in_channels, out_channels, heads=1, *, concat=True, dropout=0.0, bias=True, negative_slope=0.2):
        super().__init__()
        self.heads, self.concat, self.dropout, self.negative_slope = heads, concat, dropout, negative_slope
        self.bias = nn.Parameter(torch.zeros(heads * out_channels if concat else out_channels)) if bias else None

    def aggregate(self, scores, values, edges, return_attention_weights=False):
        """What each token reads: the values (B, T, H, D) of its neighbours, weighted by scores (B, H, T, T)."""
        weights = F.dropout(masked_softmax(scores, edges), self.dropout, self.training)  # (B, H, T, T)
        read = (weights @ values.transpose(1, 2)).transpose(1, 2)  # (B, T, H, D)
        read = read.flatten(2) if self.concat else read.mean(dim=2)
        read = read if self.bias is None else read + self.bias
        return (read, weights) if return_attention_weights else read


class GAT(GraphAttention):
    """e_ij = LeakyReLU(a_dst . h_i + a_src . h_j) with h = W x; the values are h_j. PyTorch Geometric's GATConv.

    An edge j -> i has its source (src) in j, which is read, and its destination (dst) in i, which reads. Two
    numbers meet in the LeakyReLU, one of i and one of j, so every i orders the j in the same way (static attention).
    """

    def __init__(self, in_channels, out_channels, heads=1, **options):
        super().__init__(in_channels, out_channels, heads, **options)
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)  # W
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))  # a_src
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))  # a_dst
        for matrix in (self.lin.weight, self.att_src[0], self.att_dst[0]):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor, adjacency: Tensor, return_attention_weights: bool = False):
        edges = edges_of(adjacency, x)  # (B or 1, 1, T, T)
        h = self.lin(x).unflatten(-1, (self.heads, -1))  # (B, T, H, D)
        src = (h * self.att_src).sum(dim=-1).mT.contiguous()  # (B, H, T)
        dst = (h * self.att_dst).sum(dim=-1).mT.contiguous()  # (B, H, T)
        scores = F.leaky_relu(dst[..., :, None] + src[..., None, :], self.negative_slope)  # (B, H, T, T)
        return self.aggregate(scores, h, edges, return_attention_weights)


class GATv2(GraphAttention):
    """e_ij = a . LeakyReLU(W_r x_i + W_l x_j); the values are W_l x_j. PyTorch Geometric's GATv2Conv.

    In GAT i and j are each reduced to one number before they meet. Here two vectors are added, each channel goes
    through the LeakyReLU, and a comes last: each i can order the j in its own way (dynamic attention).
    """

    def __init__(self, in_channels, out_channels, heads=1, *, bias=True, share_weights=False, **options):
        super().__init__(in_channels, out_channels, heads, bias=bias, **options)
        self.lin_l = nn.Linear(in_channels, heads * out_channels, bias)  # W_l
        self.lin_r = self.lin_l if share_weights else nn.Linear(in_channels, heads * out_channels, bias)  # W_r
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))  # a
        for matrix in (self.lin_l.weight, self.lin_r.weight, self.att[0]):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x: Tensor, adjacency: Tensor, return_attention_weights: bool = False):
        edges = edges_of(adjacency, x)  # (B or 1, 1, T, T)
        # Under autocast lin_l and lin_r give bfloat16, but scores need float32.
        src = self.lin_l(x).to(self.att.dtype).unflatten(-1, (self.heads, -1))  # (B, T, H, D)
        dst = self.lin_r(x).to(self.att.dtype).unflatten(-1, (self.heads, -1))  # (B, T, H, D)
        # gatv2_scores(src, dst, self.att[0], self.negative_slope), but fast: see 'The same scores, fast' below
        scores = fast_gatv2_scores(src, dst, self.att[0], self.negative_slope, edges)  # (B, H, T, T)
        return self.aggregate(scores, src, edges, return_attention_weights)


def gatv2_scores(src: Tensor, dst: Tensor, att: Tensor, slope: float) -> Tensor:
    """GATv2's e_ij = a . LeakyReLU(dst_i + src_j). Takes src and dst (B, T, H, D) and att (H, D): (B, H, T, T)."""
    z = dst[:, :, None] + src[:, None]  # (B, T, T, H, D)
    return (F.leaky_relu(z, slope) * att).sum(dim=-1).permute(0, 3, 1, 2)


class DotProduct(nn.Module):
    """e_ij = q_i . k_j / sqrt(D); the values are v_j: the attention of gpt.py, initialized in the same way."""

    def __init__(self, in_channels, out_channels, heads=1):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(in_channels, heads * out_channels) for _ in range(3))
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        q = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
        v = self.value(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
        read = F.scaled_dot_product_attention(q, k, v, edges_of(adjacency, x))  # (B, H, T, D)
        return read.transpose(1, 2).flatten(2)  # (B, T, H * D)


class Mean(nn.Module):
    """W mean_j x_j + b: all neighbours count alike. With self-loops, GraphSAGE's GCN variant (arXiv:1706.02216)."""

    def __init__(self, in_channels, out_channels, heads=1):
        super().__init__()
        self.lin = nn.Linear(in_channels, heads * out_channels)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        scores = x.new_zeros(1)  # equal ones, so that each j gets a weight of 1 / (number of j)
        weights = masked_softmax(scores, edges_of(adjacency, x)).squeeze(1)  # (B or 1, T, T)
        return self.lin(weights @ x)


# A layer is built as layer(in_channels, out_channels, heads=H); layer(x, adjacency) is then (B, T, H * out_channels).
LAYERS = {"gat": GAT, "gatv2": GATv2, "dot": DotProduct, "mean": Mean}


class Attention(nn.Module):
    """Message passing. Takes x (B, T, C) and adjacency (T, T), returns what each token read, (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.layer = LAYERS[config.layer](config.n_embd, config.n_embd // config.n_head, heads=config.n_head)
        self.projection = nn.Linear(config.n_embd, config.n_embd) if config.out_proj else nn.Identity()

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        return self.projection(self.layer(x, adjacency))


class Block(nn.Module):
    """Communication, then computation. Each reads the residual stream x (B, T, C) and adds to it."""

    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),  # a smooth ReLU (arXiv:1606.08415)
            nn.Linear(4 * config.n_embd, config.n_embd),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), adjacency))
        x = x + self.dropout(self.feed_forward(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.initialize()

    def initialize(self):
        """As in GPT-2: biases are 0, and weights are normal with standard deviation 0.02.

        Two layers of each block write to the residual stream: the projection and the last of the feed-forward network.
        Their standard deviation is 0.02 / sqrt(2 n_layer), so that the sum of all that they write is as large in a deep
        model as in a shallow one.
        """
        for name, parameter in self.named_parameters():
            if ".layer." in name:
                continue  # a layer keeps the weights it was made with: GAT's and GATv2's are PyTorch Geometric's
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if writes else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        adjacency = adjacency_of(self.config.graph, positions, self.config.seed)  # (T, T)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for block in self.blocks:
            x = block(x, adjacency)  # (B, T, C)
        # Weight tying (arXiv:1608.05859): the output layer shares its weights with the token embedding.
        return F.linear(self.norm(x), self.token_embedding.weight)  # (B, T, V)


@torch.inference_mode()
def generate(model: nn.Module, ids: Tensor, max_new_tokens: int, **sampling) -> Tensor:
    """Appends max_new_tokens tokens to ids (B, T), one at a time. sampling: temperature, top_k, top_p, generator."""
    training = model.training
    model.eval()
    for _ in range(max_new_tokens):
        logits = model(ids[:, -model.config.block_size :])[:, -1]  # (B, V), after the last token
        ids = torch.cat((ids, sample_token(logits, **sampling)), dim=1)
    model.train(training)
    return ids


# ---------------------------------------------------------------- Training


def loss_of(model: nn.Module, x: Tensor, y: Tensor, reduction="mean") -> Tensor:
    """The cross-entropy of predicting the next tokens y (B, T) from x (B, T): the mean of -ln p(y), in nats."""
    # If the dtype is bfloat16, which auto picks where it is fast, autocast computes the matrix products in it and all
    # else in float32. Its cache of cast weights is off, since a recorded step (see train) would go on with weights that
    # were cast before they changed.
    fast = model.config.dtype == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=fast, cache_enabled=False):
        logits = model(x)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction=reduction)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Dataset) -> float:
    """The mean loss of a character over the validation split, in nats. Each process evaluates its share of it."""
    model.eval()
    losses, characters = [], 0
    for x, y in data.windows("val"):
        losses.append(loss_of(model, x, y, "sum"))  # still on the device: .item() would wait for it
        characters += data.characters(y)
    model.train()
    return total(sum(loss.item() for loss in losses)) / total(characters)  # over all processes


def orthogonalize(M: Tensor, dtype: torch.dtype) -> Tensor:
    """For each matrix of M (N, rows, columns), with singular value decomposition U S V^T, nearly U V^T.

    That takes five steps of an iteration named after Newton and Schulz, in `dtype`, of matrix products alone. Each
    turns every singular value s into 3.4445 s - 4.7750 s^3 + 2.0315 s^5 and leaves U and V as they are. The
    coefficients make small singular values grow fast, and do not lead exactly to 1: five steps take each in [0.002, 1]
    to [0.68, 1.21].
    """
    X = M.to(dtype)
    X = X.mT if M.shape[1] > M.shape[2] else X  # wide, so that X X^T is small
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # now no singular value is above 1
    for _ in range(5):
        A = torch.bmm(X, X.mT)
        B = torch.baddbmm(A, A, A, beta=-4.7750, alpha=2.0315)  # -4.7750 A + 2.0315 A A
        X = torch.baddbmm(X, B, X, beta=3.4445)  # 3.4445 X + B X
    return X.mT if M.shape[1] > M.shape[2] else X


class Muon(torch.optim.Optimizer):
    """Steps along U V^T, where U S V^T is the singular value decomposition of a weight matrix's averaged gradient.

    The gradient of a matrix is usually dominated by a few directions, those with large singular values S. Without S all
    directions get a step of the same size. By Jordan et al. (2024), with the weight decay and the scale of Liu et al.
    (arXiv:2502.16982): the root mean square of an update is about 0.2, as AdamW's is.
    """

    def __init__(self, matrices, weight_decay, dtype):
        shapes = {}  # matrices of the same shape are stacked, so that one batched product does them all
        for p in matrices:
            shapes.setdefault(p.shape, []).append(p)
        groups = [{"params": params} for params in shapes.values()]
        lr = torch.tensor(1e-3, device=matrices[0].device)  # a tensor, so that a recorded step reads what it is set to
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            params, lr, momentum = group["params"], group["lr"], group["momentum"]
            grads = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad for p in params])
            state = self.state[params[0]]  # of all matrices of this shape: (N, rows, columns)
            if not state:
                state["momentum_buffer"] = torch.zeros_like(grads)
            mean = state["momentum_buffer"].lerp_(grads, 1 - momentum)  # 0.95 mean + 0.05 grads
            nesterov = grads.lerp(mean, momentum)  # Nesterov's momentum: the newest gradient counts once more
            updates = orthogonalize(nesterov, self.dtype)
            scale = 0.2 * math.sqrt(max(grads.shape[1:]))  # U V^T has a root mean square of 1 / sqrt(longer side)
            decay, rate = 1 - lr * group["weight_decay"], -lr * scale
            for p, update in zip(params, updates.unbind()):
                p.mul_(decay).addcmul_(update, rate)


def make_optimizers(config, model):
    """Muon for the matrices in the blocks; AdamW for all other parameters."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "blocks" not in name]
    adamw = [{"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        adamw.append({"params": matrices, "weight_decay": config.weight_decay})
    recording = config.cuda_graph and config.device.startswith("cuda")
    optimizers = [torch.optim.AdamW(adamw, betas=(0.9, 0.95), fused=True, capturable=recording)]  # betas of GPT-3
    if config.optimizer == "muon":
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(matrices, config.weight_decay, dtype))
    return optimizers


def learning_rate_at(step, config):
    """Rises linearly to `learning_rate` in the first `warmup_iters` steps (warm-up), then falls linearly to 0.

    A run that is shorter than its warm-up only rises.
    """
    rise = step / max(1, config.warmup_iters)
    fall = (config.max_iters + 1 - step) / max(1, config.max_iters + 1 - config.warmup_iters)
    return config.learning_rate * min(rise, fall)


def update(model: nn.Module, optimizers: list, batches: list) -> Tensor:
    """One step of training on batches of x and y, (B, T) each; y is x one token further on. Returns the mean loss."""
    model.zero_grad()
    loss = 0
    for i, (x, y) in enumerate(batches, 1):  # several: gradient accumulation, which needs the memory of one
        model.require_backward_grad_sync = i == len(batches)  # for DistributedDataParallel: it averages once a step
        micro_loss = loss_of(model, x, y) / len(batches)
        micro_loss.backward()
        loss += micro_loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # all gradients together get a length of at most 1
    for optimizer in optimizers:
        optimizer.step()
    return loss


def train(config: Config, data: Dataset, model: nn.Module):
    optimizers = make_optimizers(config, model)
    run = Run(config, data, model, *optimizers)  # keeps the folder: losses, checkpoints, resumption, Ctrl-C
    compiled = torch.compile(model, dynamic=False) if config.compile else model
    replica = run.replicate(compiled)  # under torchrun, averages gradients over the processes; else the model itself
    learning_rate = shared_learning_rate(optimizers, config.device)  # a tensor, which a recorded step can read anew
    step_on = recorded(config, lambda batches: update(replica, optimizers, batches))  # on CUDA in one launch
    for step in run.steps():
        learning_rate.fill_(learning_rate_at(step, config))
        batches = [data.batch("train") for _ in range(config.grad_accum)]
        loss = step_on(batches)
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(model, data) if due else None)
    run.finish(generate)


# ---------------------------------------------------------------- The same scores, fast: skip this on a first reading

# gatv2_scores stores a number for each pair of tokens and each channel, several times. This computes the same from
# tiles of pairs. On a CPU, attention alone is then 20 times as fast and takes a 35th of the memory (by `python -m
# studies.graph_attention`). To train on a GPU, torch.compile instead makes one kernel of each pass over the pairs, and
# none of those numbers reaches the GPU's memory.


def fast_gatv2_scores(src, dst, att, slope, edges):
    """gatv2_scores(src, dst, att, slope) at the edges, (B or 1, 1, T, T); elsewhere the scores may be anything.

    It has no second derivatives, which gatv2_scores has.
    """
    with torch.autocast(src.device.type, enabled=False):  # large terms cancel in part, which needs float32
        if torch.compiler.is_compiling():
            return GATv2Scores.apply(src, dst, att, slope, [])
        if src.is_cuda and torch.is_grad_enabled() and GATv2Scores.can_compile:
            try:
                return compiled_scores()(src, dst, att, slope, [])
            except torch.OutOfMemoryError:
                raise
            except Exception as error:  # there is no compiler for C, say
                GATv2Scores.can_compile = False
                print(f"GATv2 is not compiled, and slower: {' '.join(str(error).split())[:200]}", flush=True)
        return GATv2Scores.apply(src, dst, att, slope, tiles_of(edges))


@functools.cache
def compiled_scores():
    return torch.compile(GATv2Scores.apply)


def tiles_of(edges):
    """Tiles that cover all edges: slices of some tokens i, and of the j that any of them reads from in any graph.

    On CUDA they cover all pairs, since to find the edges the CPU would have to wait for the GPU. They are large there,
    since each of them launches several kernels.
    """
    T = edges.shape[-1]
    if edges.is_cuda:
        size = 1 + 2**18 // (T + 1)
        return [(slice(i, min(i + size, T)), slice(0, T)) for i in range(0, T, size)]
    size, edges, tiles = 16, edges.any(dim=(0, 1)).cpu(), []  # (T, T)
    for i in range(0, T, size):
        j = edges[i : i + size].any(dim=0).nonzero()
        if len(j):
            tiles.append((slice(i, min(i + size, T)), slice(int(j[0]), int(j[-1]) + 1)))
    return tiles


class GATv2Scores(torch.autograd.Function):
    """gatv2_scores with a backward pass of its own, which computes z_ij = dst_i + src_j again instead of storing it.

    LeakyReLU(z) = slope z + (1 - slope) max(z, 0), and max(z_ij, 0) = max(src_j, -dst_i) + dst_i, so that
        a . LeakyReLU(z_ij) = slope a . src_j + a . dst_i + (1 - slope) a . max(src_j, -dst_i)
    Only the last term is over pairs. It takes two passes: the maximum, then its product with a.

    The backward pass needs G_ij = dL/de_ij LeakyReLU'(z_ij), summed over i for src and over j for dst. Since
    LeakyReLU(z) = LeakyReLU'(z) z, the gradient of a is the sum of G_ij (dst_i + src_j), which the same sums give.
    """

    can_compile = True  # until it fails

    @staticmethod
    def parts(src, tiles):
        """The tiles, each cut into parts of about `room` numbers of z: slices of B, a head, slices of i and j."""
        B, _, H, D = src.shape
        room = 2**20 if src.device.type == "cpu" else 2**25
        for i, j in tiles:
            size = max(1, room // ((i.stop - i.start) * (j.stop - j.start) * D))
            yield from ((slice(b, b + size), h, i, j) for b in range(0, B, size) for h in range(H))

    @staticmethod
    def forward(ctx, src, dst, att, slope, tiles):
        ctx.save_for_backward(src, dst, att)
        ctx.slope, ctx.tiles = slope, tiles
        if torch.compiler.is_compiling():  # the compiler fuses it, and z is never stored
            return gatv2_scores(src, dst, att, slope)
        a_src = (src * att).sum(dim=-1).mT.contiguous()  # (B, H, T)
        a_dst = (dst * att).sum(dim=-1).mT.contiguous()  # (B, H, T)
        scores = slope * a_src[:, :, None, :] + a_dst[:, :, :, None]  # (B, H, T, T)
        minus_dst, z = -dst, src.new_empty(0)  # all parts share the memory of z
        for b, h, i, j in GATv2Scores.parts(src, tiles):
            z = torch.maximum(src[b, None, j, h], minus_dst[b, i, None, h], out=z.resize_(0))  # (b, i, j, D)
            scores[b, h, i, j].add_(z @ att[h], alpha=1 - slope)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        src, dst, att = ctx.saved_tensors
        if torch.compiler.is_compiling():
            x, y, g = dst[:, :, None], src[:, None], grad.permute(0, 2, 3, 1)[..., None]
            # x + y and y + x on purpose: otherwise the compiler keeps the z that both share in memory
            grad_src = torch.where(x + y > 0, g, ctx.slope * g).sum(dim=1)  # (B, T, H, D)
            grad_dst = torch.where(y + x > 0, g, ctx.slope * g).sum(dim=2)  # (B, T, H, D)
        else:
            grad_src, grad_dst, z = torch.zeros_like(src), torch.zeros_like(dst), src.new_empty(0)
            for b, h, i, j in GATv2Scores.parts(src, ctx.tiles):
                z = torch.add(src[b, None, j, h], dst[b, i, None, h], out=z.resize_(0))  # (b, i, j, D)
                g = grad[b, h, i, j, None].expand_as(z)
                G = torch.ops.aten.leaky_relu_backward(g, z, ctx.slope, False, grad_input=z)
                grad_src[b, j, h] += G.sum(dim=1)
                grad_dst[b, i, h] += G.sum(dim=2)
        return att * grad_src, att * grad_dst, (src * grad_src + dst * grad_dst).sum(dim=(0, 1)), None, None


# ---------------------------------------------------------------- main()


def main(argv=None):
    config = parse_config(Config, argv)  # flags, over a TOML file, over the defaults; the device is chosen
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = GPT(config, data.vocab_size).to(config.device)
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
