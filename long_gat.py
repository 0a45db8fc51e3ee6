"""Rung 9: GAT over tens of thousands of characters, exact, without a T x T matrix.

New against rung 7: one layer is left, and its T x T matrix is gone. Its scores are LeakyReLU(s_i + t_j). With slope a,
    exp(e_ij) = exp(s_i) exp(t_j)       where t_j > -s_i,
    exp(e_ij) = exp(a s_i) exp(a t_j)   elsewhere.
So every query ranks the keys alike, by t. Once they are sorted, a query's sums over its two sides are prefix sums, cut
where t_j crosses -s_i. For a causal graph the text is halved again and again: a right half reads all of its left half.
That is O(T log T) sums of D channels. The sorts compare O(T log^2 T) single numbers, which is less while log T < D.
In so long a text one ranking for all is not enough. So scores fall with the distance, each head's at its own pace.

Papers: Velickovic et al., "Graph Attention Networks", arXiv:1710.10903, for the layer; Press et al., arXiv:2108.12409,
for the distance (ALiBi). results/README.md says what is known of the rest.
"""

import math
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
    batch_size: int = option(1, "B: windows of text in a batch")
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    block_size: int = option(4096, "T: characters in a window, the context", full=8192)
    n_layer: int = option(3, "transformer blocks", full=6, within="[1, 1000)")
    n_head: int = option(4, "H: attention heads", full=6)
    n_embd: int = option(192, "C: width of the residual stream; each head has D = C / H channels", full=384)
    dropout: float = option(0.0, "fraction of activations set to 0 during training", full=0.1, within="[0, 1)")
    optimizer: str = option("muon", "optimizer of the blocks' matrices; all else uses AdamW", choices=("muon", "adamw"))
    learning_rate: float = option(1.5e-2, "highest learning rate, after warm-up; for adamw try 3e-3", full=8e-3)
    weight_decay: float = option(0.1, "weight decay of the hidden matrices", full=0.5)
    warmup_iters: int = option(50, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    max_iters: int = option(600, "training steps", full=1000)
    eval_interval: int = option(100, "steps between evaluations", full=125)
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")
    recency: bool = option(True, "scores fall with the distance; without, the layer is GAT as in pyg_free_gat.py")

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


def pick(rows, index):
    """The rows (..., n, K) that index (..., m) names: (..., m, K). As take_along_dim, which is far slower on a CPU."""
    n, K = rows.shape[-2:]
    first = torch.arange(0, rows[..., 0].numel(), n, device=rows.device).view(*index.shape[:-1], 1)
    return F.embedding(first + index, rows.reshape(-1, K))


def add_sums(above, below, s, m, t, w, W, slope):
    """Every i reads every j: adds the sum over j of exp(LeakyReLU(s_i + t_j) + w_j - m_i) W_j to what i has so far.

    `above` (..., I, K) gets the part of the j with t_j > -s_i, `below` that of the others. s and m are (..., I). t and
    w are (..., J), W is (..., J, K). LeakyReLU(z) is the larger of z and slope z: if no term's exponent is above 0, no
    side's is, and nothing overflows.
    """
    t, order = t.sort(dim=-1)
    w, W = w.gather(-1, order), pick(W, order)
    last = torch.searchsorted(t, -s, right=True)  # (..., I): how many j are below
    # A sum over the j above is a prefix in reversed order. As a difference of two prefixes it would lose digits.
    sides = (below, slope, last, t, w, W), (above, 1.0, t.shape[-1] - last, t.flip(-1), w.flip(-1), W.flip(-2))
    for sums, a, count, keys, logs, rows in sides:
        logs = a * keys + logs
        top = logs.amax(dim=-1, keepdim=True)
        prefix = ((logs - top).exp()[..., None] * rows).cumsum(dim=-2)  # (..., J, K)
        factor = (a * s + top - m).exp() * (count > 0)  # (..., I)
        sums.addcmul_(factor[..., None], pick(prefix, (count - 1).clamp(min=0)))


def pieces(parts, size):
    """Cuts tensors (N, T, ...) into pieces of `size`, (N, pieces, size, ...), and then yields the shorter rest."""
    T = parts[0].shape[1]
    whole = T // size * size
    if whole:
        yield [part[:, :whole].unflatten(1, (-1, size)) for part in parts]
    if whole < T:
        yield [part[:, None, whole:] for part in parts]


def causal_sums(s, m, t, w, W, slope, later=False):
    """The two sums of add_sums for a causal graph, over j <= i or, if `later`, over j >= i: (N, T, K) each."""
    above, below, T = torch.zeros_like(W), torch.zeros_like(W), W.shape[1]
    parts = above, below, s, m, t, w, W
    n_few = max(1, 2**16 // T)  # heads at a time: a copy too large for the heap costs a CPU more than its sums
    for few in zip(*(part.split(n_few) for part in parts)) if n_few < len(W) else [parts]:
        for up, low, s_, m_, t_, w_, W_ in pieces(few, 64):  # within a piece, all pairs
            z = s_[..., :, None] + t_[..., None, :]  # (N, T / 64, 64, 64)
            p = (F.leaky_relu(z, slope) + w_[..., None, :] - m_[..., :, None]).exp()
            p = p.triu() if later else p.tril()  # the other pairs may be inf
            up += (p * (z > 0)) @ W_
            low += (p * (z <= 0)) @ W_
        for n in (2**k for k in range(6, (T - 1).bit_length())):  # then between the halves of pieces of 2 n
            i, j = (slice(n), slice(n, None)) if later else (slice(n, None), slice(n))
            for piece in pieces(few, 2 * n):
                if piece[0].shape[2] > n:
                    add_sums(*(part[:, :, i] for part in piece[:4]), *(part[:, :, j] for part in piece[4:]), slope)
    return above, below


class StaticAttention(torch.autograd.Function):
    """softmax(LeakyReLU(s_i + t_j)) V over a causal graph. Takes s and t (N, T), V (N, T, D), returns (N, T, D)."""

    @staticmethod
    def forward(ctx, s, t, V, slope):
        m = F.leaky_relu(s + t.cummax(dim=1).values, slope)  # the largest score of each i
        above, below = causal_sums(s, m, t, torch.zeros_like(t), F.pad(V, (0, 1), value=1.0), slope)
        total = (above + below)[..., -1:]  # (N, T, 1): what the weights of 1, V's last channel, add up to
        out = (above + below)[..., :-1] / total
        ctx.save_for_backward(s, t, V, out, above / total, m + total[..., 0].log())
        ctx.slope = slope
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """With P the weights and G = grad: dV = P^T G, and dL/de_ij = P_ij (G_i . V_j - G_i . out_i)."""
        # `above` is what the j with t_j > -s_i give to V and to 1; L is the logarithm of the sum of exponentials.
        s, t, V, out, above, L = ctx.saved_tensors
        dot = (grad * out).sum(dim=-1, keepdim=True)  # (N, T, 1)
        # Each j now sums over the i that read it. P_ij = exp(e_ij - L_i): the same sums, s and t exchanged.
        steep, flat = causal_sums(t, torch.zeros_like(t), s, -L, torch.cat((grad, dot), dim=-1), ctx.slope, later=True)
        dV, (dP, dots) = (steep + flat)[..., :-1], (steep + ctx.slope * flat).split((V.shape[-1], 1), dim=-1)
        dt = (dP * V).sum(dim=-1) - dots[..., 0]
        read, weight = above.split((V.shape[-1], 1), dim=-1)
        # Over all j, dL/de_ij adds up to 0: what the steep side has, the flat side has with the other sign.
        ds = (1 - ctx.slope) * ((grad * read).sum(dim=-1) - (dot * weight)[..., 0])
        return ds, dt, dV, None


class GAT(nn.Module):
    """e_ij = LeakyReLU(a_dst . h_i + a_src . h_j - r (i - j)), h = W x, values h_j. With r = 0 it is GATConv.

    With `recency`, r is 1/4, 1/16, 1/64 and 1/256 for four heads. r j goes into t_j and r i into s_i, so that every i
    still ranks the j alike.
    Takes x (B, T, in_channels), returns (B, T, heads * out_channels). A cache (B, H, block_size, D + 1) keeps h and
    a_src . h. x is then the first tokens, or the one after `past` others, which reads the cache in O(past).
    """

    def __init__(self, in_channels, out_channels, heads=1, negative_slope=0.2, recency=False):
        super().__init__()
        self.heads, self.negative_slope, self.recency = heads, negative_slope, recency
        self.bias = nn.Parameter(torch.zeros(heads * out_channels))
        self.lin = nn.Linear(in_channels, heads * out_channels, bias=False)
        self.att_src = nn.Parameter(torch.empty(1, heads, out_channels))
        self.att_dst = nn.Parameter(torch.empty(1, heads, out_channels))
        for matrix in (self.lin.weight, self.att_src[0], self.att_dst[0]):
            nn.init.xavier_uniform_(matrix)

    def forward(self, x, cache=None, past=0):
        h = self.lin(x).to(self.bias.dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
        s, t = ((h * att[0, :, None]).sum(dim=-1) for att in (self.att_dst, self.att_src))  # (B, H, T) each
        if self.recency:
            place = torch.arange(past, past + x.shape[1], device=x.device)
            r = 2 ** (-8 / self.heads * torch.arange(1, self.heads + 1, device=x.device))  # (H,), the slopes of ALiBi
            s, t = s - r[:, None] * place, t + r[:, None] * place
        if cache is not None:
            cache[:, :, past : past + x.shape[1]] = torch.cat((h, t[..., None]), dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # sums of exponentials need float32
            if past:
                h, t = cache[:, :, : past + x.shape[1]].split((h.shape[-1], 1), dim=-1)
                read = F.leaky_relu(s[..., None] + t.mT, self.negative_slope).softmax(dim=-1) @ h  # (B, H, 1, D)
            else:
                read = StaticAttention.apply(*(part.flatten(0, 1) for part in (s, t, h)), self.negative_slope)
                read = read.unflatten(0, s.shape[:2])
        return read.transpose(1, 2).flatten(2) + self.bias  # (B, T, H * D)


class Attention(nn.Module):
    """Message passing. Takes x (B, T, C), returns what each token read, (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.layer = GAT(config.n_embd, config.n_embd // config.n_head, config.n_head, recency=config.recency)
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, past=0):
        return self.projection(self.layer(x, cache, past))


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

    def forward(self, x, cache=None, past=0):
        x = x + self.dropout(self.attention(self.norm_1(x), cache, past))
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
                continue  # a layer starts as it was made, as PyTorch Geometric's does
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                adds = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if adds else 0.02)

    def forward(self, ids, cache=None, past=0):
        if past and ids.shape[1] > 1:
            raise ValueError("a cache takes the first tokens together, and then one token at a time")
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)  # (T,)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[i], past)  # (B, T, C)
        # The head is the token embedding (Press and Wolf, arXiv:1608.05859).
        return F.linear(self.norm(x), self.token_embedding.weight)  # (B, T, V)

    def new_cache(self, B):
        """Room for every block's h and a_src . h, of B windows: (n_layer, B, H, block_size, D + 1)."""
        n_head, D = self.config.n_head, self.config.n_embd // self.config.n_head
        return self.norm.weight.new_empty(self.config.n_layer, B, n_head, self.config.block_size, D + 1)


@torch.inference_mode()
def generate(model, ids, max_new_tokens, **choice):
    """Appends max_new_tokens tokens to ids (B, T), one at a time. `choice` is passed to sample_token.

    Keys and values are cached, so each token goes through the model once. When the window is full, a new one starts
    from its last half. Sliding by one token would not do: cached keys and values still depend on the token that left.
    """
    training = model.training
    model.eval()
    block_size, cache = model.config.block_size, model.new_cache(len(ids))
    # ids: | left behind | the window: in the cache | not yet read |
    #      0           start                  start + past      length
    start, past = max(0, ids.shape[1] - block_size), 0
    for _ in range(max_new_tokens):
        if ids.shape[1] - start > block_size:
            start, past = ids.shape[1] - (block_size + 1) // 2, 0
        logits = model(ids[:, start + past :], cache, past)[:, -1]  # (B, V), after the last token
        past = ids.shape[1] - start
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
