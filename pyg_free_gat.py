"""Rung 7: a GPT whose attention is graph attention, without PyTorch Geometric.

New against rung 5: attention is message passing on a graph, and the causal mask is its adjacency matrix. Token i reads
from token j where `adjacency[i, j]` is True. How it reads is up to a layer, any module called with x and the adjacency:
GAT, GATv2, GPT's dot product, the neighbours' mean or maximum, or one of yours. GAT and GATv2 are dense and masked.
Weights of PyTorch Geometric's GATConv and GATv2Conv load into them, and the outputs are equal.

Papers: Velickovic et al., "Graph Attention Networks" (arXiv:1710.10903): GAT; Brody, Alon and Yahav, "How Attentive
are Graph Attention Networks?" (arXiv:2105.14491): GATv2.
"""

import math
import re
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data import DTYPES, Dataset, total
from results import Flags, Run, option, parse_config, run_main, sample_token

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    size: str = option("auto", "size of the model; auto: full on cuda, else small", choices=("auto", "small", "full"))
    batch_size: int = option(32, "B: windows of text in a batch", full=16)
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    block_size: int = option(128, "T: characters in a window, the context", full=256)
    n_layer: int = option(3, "transformer blocks", full=6, within="[1, 1000)")
    n_head: int = option(4, "H: attention heads", full=6)
    n_embd: int = option(192, "C: width of the residual stream; each head has D = C / H channels", full=384)
    dropout: float = option(0.0, "fraction of activations set to 0 during training", full=0.1, within="[0, 1)")
    optimizer: str = option("muon", "optimizer of the blocks' matrices; all else uses AdamW", choices=("muon", "adamw"))
    learning_rate: float = option(1.5e-2, "highest learning rate, after warm-up; for adamw try 3e-3", full=8e-3)
    weight_decay: float = option(0.1, "weight decay of the hidden matrices", full=0.5)
    warmup_iters: int = option(50, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    max_iters: int = option(600, "training steps", full=2000)
    eval_interval: int = option(100, "steps between evaluations", full=250)
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")
    layer: str = option("", "gat, gatv2 (the default), dot, mean, max, or a name that you added to LAYERS")
    graph: str = option("causal", "causal, window:K (the last K tokens) or dilated:K (itself and each K-th before)")
    out_proj: bool = option(True, "mix what the heads read by a linear map, as gpt.py does")
    gat_version: str = option("", "PyG's name for --layer gat or gatv2", choices=("", "GATConv", "GATv2Conv"))

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")
        layer = {"GATConv": "gat", "GATv2Conv": "gatv2"}.get(self.gat_version, self.layer or "gatv2")
        if self.layer not in ("", layer):
            raise ValueError(f"--layer {self.layer} and --gat_version {self.gat_version} contradict each other")
        self.layer = layer
        if self.layer not in LAYERS:
            raise ValueError(f"--layer {self.layer}: must be one of {', '.join(LAYERS)}, or one that you add")
        if not re.fullmatch("causal|(window|dilated):[1-9][0-9]{0,8}", self.graph):
            raise ValueError(f"--graph {self.graph}: must be causal, window:K or dilated:K, K a number from 1")


# ---------------------------------------------------------------- Model


def adjacency_of(graph, positions):
    """Who reads whom among tokens at `positions` (T,): (T, T) bool, True where i reads from j (an edge j -> i)."""
    back = positions[:, None] - positions  # (T, T), how far j lies before i
    kind, _, K = graph.partition(":")
    if kind == "window":
        return (back >= 0) & (back < int(K))
    if kind == "dilated":
        return (back >= 0) & (back % int(K) == 0)
    return back >= 0  # the causal mask


def blocks_of(graph, T, size):
    """What blocks_with_edges finds in adjacency_of(graph), or a little more, without looking at it."""
    kind, _, K = graph.partition(":")
    back = int(K) - 1 if kind == "window" else T
    return [(slice(i, min(i + size, T)), slice(max(0, i - back), min(i + size, T))) for i in range(0, T, size)]


BLOCK = {"cpu": 16}  # queries in a block of GATv2's scores; a GPU wants fewer and larger ones, of 64


def checked(adjacency):
    """The adjacency itself. Raises TypeError if it is not bool: numbers could be meant as weights of edges."""
    if adjacency.dtype != torch.bool:
        raise TypeError(f"adjacency must be bool, not {adjacency.dtype}; adjacency != 0 is True at each edge")
    return adjacency


def log_adjacency(adjacency, dtype):
    """0 at an edge, the lowest float elsewhere: (1, T, T) or (B, 1, T, T). -inf would make a row without edges NaN."""
    return torch.zeros_like(adjacency, dtype=dtype).masked_fill(~adjacency, torch.finfo(dtype).min).unsqueeze(-3)


class GraphAttention(nn.Module):
    """What GAT and GATv2 share. Each takes x (B, T, in_channels) and adjacency, (T, T) or (B, T, T) bool.

    Each returns (B, T, heads * out_channels), or with concat=False the mean over the heads, (B, T, out_channels).
    """

    def __init__(self, in_channels, out_channels, heads=1, concat=True, dropout=0.0, bias=True, negative_slope=0.2):
        super().__init__()
        self.heads, self.concat, self.dropout, self.negative_slope = heads, concat, dropout, negative_slope
        self.bias = nn.Parameter(torch.zeros(heads * out_channels if concat else out_channels)) if bias else None
        if not 0 < negative_slope <= 1:  # else LeakyReLU lets masked scores through, or makes them -inf
            raise ValueError(f"negative_slope {negative_slope}: must be above 0 and at most 1")

    def aggregate(self, scores, values, adjacency):
        """What each token reads: masked scores (B, H, T, T) become weights of the values (B, T, H, D)."""
        weights = F.dropout(scores.softmax(dim=-1), self.dropout, self.training)  # (B, H, T, T)
        read = (weights @ values.transpose(1, 2)).transpose(1, 2)  # (B, T, H, D)
        read = read.flatten(2) if self.concat else read.mean(dim=2)
        read = read * adjacency.any(dim=-1, keepdim=True).to(read.dtype)  # a token without edges reads 0
        return read if self.bias is None else read + self.bias


class GAT(GraphAttention):
    """e_ij = LeakyReLU(a_dst . h_i + a_src . h_j), h = W x, values h_j. Static: every i ranks the j alike. GATConv."""

    def __init__(self, in_channels, out_channels, heads=1, **options):
        super().__init__(in_channels, out_channels, heads, **options)
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        for matrix in (self.lin.weight, self.att_src[0], self.att_dst[0]):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x, adjacency):
        adjacency = checked(adjacency)
        h = self.lin(x).unflatten(-1, (self.heads, -1))  # (B, T, H, D)
        src, dst = ((h * att).sum(dim=-1).mT.contiguous() for att in (self.att_src, self.att_dst))  # (B, H, T) each
        scores = src[:, :, None, :] + dst[:, :, :, None]  # (B, H, T, T)
        scores += log_adjacency(adjacency, scores.dtype)  # masked scores stay the lowest after LeakyReLU too
        return self.aggregate(F.leaky_relu_(scores, self.negative_slope), h, adjacency)


class GATv2(GraphAttention):
    """e_ij = a . LeakyReLU(W_r x_i + W_l x_j), values W_l x_j. Dynamic: each i may rank them anew. GATv2Conv."""

    def __init__(self, in_channels, out_channels, heads=1, bias=True, share_weights=False, **options):
        super().__init__(in_channels, out_channels, heads, bias=bias, **options)
        self.lin_l = nn.Linear(in_channels, heads * out_channels, bias)
        self.lin_r = self.lin_l if share_weights else nn.Linear(in_channels, heads * out_channels, bias)
        self.att = nn.Parameter(torch.empty(1, heads, out_channels))
        for matrix in (self.lin_l.weight, self.lin_r.weight, self.att[0]):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x, adjacency, blocks=None):
        adjacency = checked(adjacency)
        if blocks is None and not torch.compiler.is_compiling():  # compiled code does without
            blocks = blocks_with_edges(adjacency, BLOCK.get(x.device.type, 64))
        linears = (self.lin_l, self.lin_r)
        src, dst = (f(x).to(self.att.dtype).unflatten(-1, (self.heads, -1)) for f in linears)  # (B, T, H, D) each
        with torch.autocast(x.device.type, enabled=False):  # scores are small differences of large numbers
            scores = GATv2Scores.apply(src, dst, self.att[0], adjacency, self.negative_slope, blocks)  # (B, H, T, T)
        return self.aggregate(scores, src, adjacency)


def gatv2_scores_by_hand(src, dst, att, slope):
    """GATv2's e_ij in one line. Takes src and dst (B, T, H, D) and att (H, D), returns (B, H, T, T).

    It stores a number for each pair and channel, several times: 1.6 GB each for B, T, H, D = 64, 128, 6, 64 in float32.
    """
    return (F.leaky_relu(dst[:, :, None] + src[:, None], slope) * att).sum(dim=-1).permute(0, 3, 1, 2)


def blocks_with_edges(adjacency, size):
    """Blocks that cover all edges: slices of `size` tokens i, and of the j that any of them reads in any graph."""
    T = adjacency.shape[-1]
    edges, blocks = adjacency.reshape(-1, T, T).any(dim=0).cpu(), []  # waits for a GPU
    for i in range(0, T, size):
        j = edges[i : i + size].any(dim=0).nonzero()
        if len(j):
            blocks.append((slice(i, min(i + size, T)), slice(int(j[0]), int(j[-1]) + 1)))
    return blocks


class GATv2Scores(torch.autograd.Function):
    """The same, masked, and a block of pairs at a time.

    With slope s, LeakyReLU(z) = s z + (1 - s) max(z, 0). Here z_ij = src_j + dst_i, and its
    max(z_ij, 0) = max(src_j, -dst_i) + dst_i, so that
        a . LeakyReLU(z_ij) = s a . src_j + a . dst_i + (1 - s) a . max(src_j, -dst_i)
    Only the last term is over pairs. It takes two passes: the maximum, then its product with a.
    Backward needs G_ij = dL/de_ij LeakyReLU'(z_ij), summed over i for src and over j for dst. Since
    LeakyReLU(z) = LeakyReLU'(z) z, the gradient of a is the sum of G_ij (src_j + dst_i), which the same sums give.
    """

    @staticmethod
    def pieces(src, blocks):
        """Yields parts that cover all edges, of about `room` numbers of z: slices of B, a head, slices of i and j."""
        B, _, H, D = src.shape
        room = 2**20 if src.device.type == "cpu" else 2**25  # a GPU wants few parts
        for i, j in blocks:
            size = max(1, room // ((i.stop - i.start) * (j.stop - j.start) * D))
            yield from ((slice(b, b + size), h, i, j) for b in range(0, B, size) for h in range(H))

    @staticmethod
    def forward(ctx, src, dst, att, adjacency, slope, blocks):
        ctx.save_for_backward(src, dst, att)
        ctx.slope, ctx.blocks = slope, blocks
        if torch.compiler.is_compiling():  # the compiler fuses it, and z is never stored
            return gatv2_scores_by_hand(src, dst, att, slope) + log_adjacency(adjacency, src.dtype)
        a_src, a_dst = ((part * att).sum(dim=-1).mT.contiguous() for part in (src, dst))  # (B, H, T) each
        scores = slope * a_src[:, :, None, :] + a_dst[:, :, :, None]  # (B, H, T, T)
        scores += log_adjacency(adjacency, src.dtype)
        minus_dst, z = -dst, src.new_empty(0)  # all blocks share z's memory
        for b, h, i, j in GATv2Scores.pieces(src, blocks):
            z = torch.maximum(src[b, None, j, h], minus_dst[b, i, None, h], out=z.resize_(0))  # (b, i, j, D)
            scores[b, h, i, j].add_(z @ att[h], alpha=1 - slope)
        return scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        src, dst, att = ctx.saved_tensors
        if torch.compiler.is_compiling():
            x, y, g = dst[:, :, None], src[:, None], grad.permute(0, 2, 3, 1)[..., None]
            # z is spelled in two ways: the compiler would store what both sums share
            grad_src = torch.where(x + y > 0, g, ctx.slope * g).sum(dim=1)  # (B, T, H, D)
            grad_dst = torch.where(y + x > 0, g, ctx.slope * g).sum(dim=2)  # (B, T, H, D)
        else:
            grad_src, grad_dst, z = torch.zeros_like(src), torch.zeros_like(dst), src.new_empty(0)
            for b, h, i, j in GATv2Scores.pieces(src, ctx.blocks):
                z = torch.add(src[b, None, j, h], dst[b, i, None, h], out=z.resize_(0))  # (b, i, j, D)
                g = grad[b, h, i, j, None].expand_as(z)
                G = torch.ops.aten.leaky_relu_backward(g, z, ctx.slope, False, grad_input=z)
                grad_src[b, j, h] += G.sum(dim=1)
                grad_dst[b, i, h] += G.sum(dim=2)
        return att * grad_src, att * grad_dst, (src * grad_src + dst * grad_dst).sum(dim=(0, 1)), None, None, None


class DotProduct(nn.Module):
    """e_ij = q_i . k_j / sqrt(D), values v_j: the attention of gpt.py, with the same initial weights."""

    def __init__(self, in_channels, out_channels, heads=1):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(in_channels, heads * out_channels) for _ in range(3))
        for linear in (self.query, self.key, self.value):
            nn.init.normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x, adjacency):
        linears = (self.query, self.key, self.value)
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in linears)  # (B, H, T, D) each
        mask = checked(adjacency) if adjacency.ndim == 2 else checked(adjacency)[:, None]  # for the kernel
        return F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2)  # (B, T, H * D)


class Mean(nn.Module):
    """W mean_j x_j + b, all j counting alike: GraphSAGE's mean, in its GCN variant (arXiv:1706.02216)."""

    def __init__(self, in_channels, out_channels, heads=1):
        super().__init__()
        self.lin = nn.Linear(in_channels, heads * out_channels)

    def forward(self, x, adjacency):
        edges = checked(adjacency).to(x.dtype)
        return self.lin((edges / edges.sum(dim=-1, keepdim=True).clamp(min=1)) @ x)


class Max(Mean):
    """W max_j x_j + b, channel by channel: PyG's SAGEConv(aggr="max", root_weight=False)."""

    def forward(self, x, adjacency):
        compiling = torch.compiler.is_compiling()  # which knows no numbers yet
        with torch.no_grad():
            if not compiling and torch.equal(checked(adjacency), torch.ones_like(adjacency).tril()):  # waits for a GPU
                j = x.cummax(dim=-2).indices  # (B, T, C)
            else:  # for one i at a time, so that no tensor is (B, T, T, C)
                rows = log_adjacency(adjacency, x.dtype).unbind(dim=-2)  # T of (1, T) or (B, 1, T)
                j = torch.stack([(x + row.transpose(-2, -1)).max(dim=-2).indices for row in rows], dim=-2)
        return self.lin(x.gather(-2, j) * adjacency.any(dim=-1, keepdim=True).to(x.dtype))


# Built as layer(in_channels, out_channels, heads=H); layer(x, adjacency) is then (B, T, H * out_channels).
LAYERS = {"gat": GAT, "gatv2": GATv2, "dot": DotProduct, "mean": Mean, "max": Max}


class Attention(nn.Module):
    """Message passing. Takes x (B, T, C) and adjacency (T, T), returns what each token read, (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.layer = LAYERS[config.layer](config.n_embd, config.n_embd // config.n_head, heads=config.n_head)
        self.projection = nn.Linear(config.n_embd, config.n_embd) if config.out_proj else nn.Identity()

    def forward(self, x, adjacency, blocks=None):
        known = {"blocks": blocks} if isinstance(self.layer, GATv2) else {}  # so that not each layer has to find them
        return self.projection(self.layer(x, adjacency, **known))


class Block(nn.Module):
    """Communication, then computation. Each reads the residual stream x (B, T, C) and adds to it."""

    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd)
        self.attention = Attention(config)
        self.norm_2 = nn.LayerNorm(config.n_embd)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, adjacency, blocks):
        x = x + self.dropout(self.attention(self.norm_1(x), adjacency, blocks))
        x = x + self.dropout(self.feed_forward(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """Takes ids of characters (B, T), returns the logits of what follows each, (B, T, V)."""

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
        """As in GPT-2: biases 0, weights of deviation 0.02, over sqrt(2 n_layer) where they add to the stream."""
        for name, parameter in self.named_parameters():
            if ".layer." in name:
                continue  # a layer starts as it was made, GAT and GATv2 as PyTorch Geometric's do
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                adds = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if adds else 0.02)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        adjacency = adjacency_of(self.config.graph, positions)  # (T, T)
        blocks = blocks_of(self.config.graph, ids.shape[1], BLOCK.get(ids.device.type, 64))
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for block in self.blocks:
            x = block(x, adjacency, blocks)  # (B, T, C)
        # The head is the token embedding (Press and Wolf, arXiv:1608.05859).
        return F.linear(self.norm(x), self.token_embedding.weight)  # (B, T, V)


@torch.inference_mode()
def generate(model, ids, max_new_tokens, **choice):
    """Appends max_new_tokens tokens to ids (B, T), one at a time. `choice` is passed to sample_token."""
    training = model.training
    model.eval()
    for _ in range(max_new_tokens):
        logits = model(ids[:, -model.config.block_size :])[:, -1]  # (B, V), after the last token
        ids = torch.cat((ids, sample_token(logits, **choice)), dim=1)
    model.train(training)
    return ids


# ---------------------------------------------------------------- Training


def loss_of(model, x, y, reduction="mean"):
    """Cross-entropy in nats of predicting the next characters y (B, T) from x (B, T)."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=model.config.dtype == "bfloat16"):
        logits = model(x)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction=reduction)


@torch.inference_mode()
def evaluate(model, data):
    """Mean loss per character over the validation split, in nats (see Dataset.windows)."""
    model.eval()
    losses, count = [], 0
    for x, y in data.windows("val"):
        losses.append(loss_of(model, x, y, "sum"))
        count += data.characters(y)
    model.train()
    return total(sum(loss.item() for loss in losses)) / total(count)  # over the processes, each with its share


def orthogonalize(M, dtype):
    """For each matrix U S V^T of M (N, rows, columns), nearly U V^T: five Newton-Schulz iterations in `dtype`.

    Each turns every singular value s into 3.4445 s - 4.7750 s^3 + 2.0315 s^5 and leaves U and V as they are. These
    coefficients (Jordan et al. 2024) are steep at 0 rather than exact at 1: five take 0.002 to 1 into 0.68 to 1.21.
    """
    X = M.to(dtype)
    X = X.mT if M.shape[1] > M.shape[2] else X  # wide, so that X X^T is small
    X = X / X.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)  # now no singular value is above 1
    for _ in range(5):
        A = X @ X.mT
        B = torch.baddbmm(A, A, A, beta=-4.7750, alpha=2.0315)  # -4.7750 A + 2.0315 A A
        X = torch.baddbmm(X, B, X, beta=3.4445)  # 3.4445 X + B X
    return X.mT if M.shape[1] > M.shape[2] else X


class Muon(torch.optim.Optimizer):
    """Steps along the orthogonalized mean of a matrix's gradients, so that all its directions learn at one pace.

    By Jordan et al. (2024), with weight decay and the scale of Liu et al. (arXiv:2502.16982): the root of an update's
    mean square is about 0.2, as AdamW's, so that one learning rate suits both.
    """

    def __init__(self, matrices, weight_decay, dtype):
        super().__init__(matrices, {"lr": 1e-3, "weight_decay": weight_decay, "momentum": 0.95})
        self.dtype = dtype

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            lr, momentum, alike = group["lr"], group["momentum"], {}
            for p in group["params"]:
                if p.grad is not None:
                    alike.setdefault(p.shape, []).append(p)
                    if "momentum_buffer" not in self.state[p]:
                        self.state[p]["momentum_buffer"] = torch.zeros_like(p)
            for (rows, columns), params in alike.items():  # those of one shape together: few calls, large products
                grads, means = [p.grad for p in params], [self.state[p]["momentum_buffer"] for p in params]
                torch._foreach_lerp_(means, grads, 1 - momentum)  # mean = 0.95 mean + 0.05 grad
                ahead = torch._foreach_lerp(grads, means, momentum)  # Nesterov: the mean one step ahead
                updates = orthogonalize(torch.stack(ahead), self.dtype)
                torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
                torch._foreach_add_(params, updates.unbind(), alpha=-lr * 0.2 * math.sqrt(max(rows, columns)))


def make_optimizers(config, model):
    """Muon has the hidden matrices, AdamW the rest: embeddings, the head, and whatever is no matrix."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "blocks" not in name]
    adamw = [{"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        adamw.append({"params": matrices, "weight_decay": config.weight_decay})
    optimizers = [torch.optim.AdamW(adamw, betas=(0.9, 0.95), fused=True)]  # betas of GPT-3
    if config.optimizer == "muon":
        dtype = torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
        optimizers.append(Muon(matrices, config.weight_decay, dtype))
    return optimizers


def learning_rate_at(step, config):
    """Rises linearly to `learning_rate` at step `warmup_iters`, then falls linearly to 0 after the last step."""
    rise = step / max(1, config.warmup_iters)
    fall = (config.max_iters + 1 - step) / max(1, config.max_iters + 1 - config.warmup_iters)
    return config.learning_rate * min(rise, fall)


def train(config, data, model):
    optimizers = make_optimizers(config, model)
    run = Run(config, data, model, *optimizers)  # keeps the folder: metrics, checkpoints, resumption, Ctrl-C
    compiled = torch.compile(model, dynamic=False) if config.compile else model
    replica = run.replicate(compiled)  # under torchrun, averages gradients over processes; else the model itself
    for step in run.steps():
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
        model.zero_grad()
        loss = 0
        for i in range(config.grad_accum):
            replica.require_backward_grad_sync = i == config.grad_accum - 1  # processes average once a step
            x, y = data.batch("train")  # (B, T), (B, T)
            part = loss_of(replica, x, y) / config.grad_accum
            part.backward()
            loss += part.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(model, data) if due else None)
    run.finish(generate)


# ---------------------------------------------------------------- main()


def main(argv=None):
    config = parse_config(Config, argv)
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = GPT(config, data.vocab_size).to(config.device)
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
