"""Rung 10: GAT over tens of thousands of tokens, exact, without a T x T matrix.

New against rung 6: attention is the GAT of rung 8, in O(T log^2 T) instead of O(T^2). The score is
LeakyReLU(s_i + t_j), where s_i comes from the query and t_j from the key. LeakyReLU is made of two straight lines, and
the exponential of a sum is a product:
    exp(score_ij) = exp(s_i) exp(t_j)                    where s_i + t_j > 0,
    exp(score_ij) = exp(slope s_i) exp(slope t_j)        elsewhere.
So the softmax needs, for each query, a sum over the keys with t_j > -s_i and a sum over the others. Once the keys are
sorted by t, both are prefix sums: running totals, computed once for all queries, of which each query looks up one entry
on either side of its cut at -s_i. With a causal mask a query may only read its own key and those before it. So the text
is halved again and again, and each right half reads all of the left half beside it, with one sort for all its queries.

That GAT orders the keys in the same way for every query, its weakness in rung 8, is what makes this possible. But in a
long text the same few keys would come first for every query. So scores also fall with the distance, at a pace of its
own for each head: of two keys, the later one gains. It is still one order for all queries.

Papers: Velickovic et al., "Graph Attention Networks" (arXiv:1710.10903) for the layer; Press et al., ALiBi
(arXiv:2108.12409) for the distance. results/README.md says which of the other ideas have been published before.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import DTYPES, Dataset, total
from results import SIZES, Flags, Run, option, parse_config, recorded, run_main, sample_token, shared_learning_rate

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    batch_size: int = option(1, "B: windows of text in a batch")
    block_size: int = option(4096, "T: characters in a window, the context")
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
    recency: bool = option(True, "scores fall with the distance; without, the layer is GAT as in pyg_free_gat.py")

    full = dict(
        batch_size=1,
        block_size=8192,
        n_layer=6,
        n_head=6,
        n_embd=384,
        dropout=0.1,
        learning_rate=8e-3,
        weight_decay=0.5,
        max_iters=1000,
        eval_interval=125,
    )

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


def dense_attention(query: Tensor, key: Tensor, values: Tensor, slope: float) -> Tensor:
    """What the functions below compute, written out: softmax(LeakyReLU(query_i + key_j)) over j <= i, times the values.

    query and key, the s and t above, are (N, T), values is (N, T, D), where N is B * H. Returns (N, T, D). It
    takes O(T^2). The model does not call it; the tests compare StaticAttention with it.
    """
    scores = F.leaky_relu(query[:, :, None] + key[:, None], slope)  # (N, T, T)
    adjacency = torch.ones_like(scores[0], dtype=torch.bool).tril()  # (T, T)
    return scores.masked_fill(~adjacency, -math.inf).softmax(dim=-1) @ values


# One merge, of a left half with five keys and a right half with queries that read all of them:
#
#   keys, sorted               -1.2   -0.4    0.1  |  0.8    1.5
#   query -0.3 cuts at 0.3      below the cut      |  above the cut
#   sums from the left of exp(slope key) values    |  sums from the right of exp(key) values
#                                             ^       ^
#   the query takes this one, times exp(slope query), and this one, times exp(query)


def add_side(sums, a, query, shift, key, log_weight, rows, count):
    """sums_i += the sum of exp(a (query_i + key_j) + log_weight_j - shift_i) rows_j over the first count_i keys j.

    a is 1 above the cut and `slope` below it. sums is (..., I, K), for I queries, J keys and K numbers in a row.
    """
    exponents = a * key + log_weight
    top = exponents.amax(dim=-1, keepdim=True)  # subtracted, so that nothing overflows
    prefix = ((exponents - top).exp()[..., None] * rows).cumsum(dim=-2)  # (..., J, K)
    factor = (a * query + top - shift).exp() * (count > 0)  # (..., I)
    sums.addcmul_(factor[..., None], pick(prefix, (count - 1).clamp(min=0)))


def add_sums(above, below, query, shift, key, log_weight, rows, slope):
    """Every i reads every j: adds the sums over j of exp(LeakyReLU(query_i + key_j) + log_weight_j - shift_i) rows_j.

    `above` (..., I, K) gets the sum over the j above the cut, where query_i + key_j > 0, and `below` that over the
    others. query and shift are (..., I). key and log_weight are (..., J), rows is (..., J, K).

    shift keeps every exponent at or below 0, so that nothing overflows. add_side may subtract a maximum over all keys,
    those beyond the cut too: both z and slope z are at most LeakyReLU(z), so that their exponents are no larger.
    """
    key, order = key.sort(dim=-1)
    log_weight, rows = log_weight.gather(-1, order), pick(rows, order)
    n_below = torch.searchsorted(key, -query, right=True)  # (..., I)
    add_side(below, slope, query, shift, key, log_weight, rows, n_below)
    # The sum over the keys above is a prefix sum of the reversed order. As a difference of two it would lose digits.
    n_above = key.shape[-1] - n_below
    add_side(above, 1.0, query, shift, key.flip(-1), log_weight.flip(-1), rows.flip(-2), n_above)


def pick(rows, index):
    """The rows (..., n, K) that index (..., m) names: (..., m, K). Like take_along_dim, which is slower on a CPU."""
    n, K = rows.shape[-2:]
    first = torch.arange(0, rows[..., 0].numel(), n, device=rows.device).view(*index.shape[:-1], 1)
    return F.embedding(first + index, rows.reshape(-1, K))


def pieces(parts, size):
    """Views of tensors (N, T, ...): their whole pieces (N, pieces, size, ...), then the rest, (N, 1, rest, ...)."""
    T = parts[0].shape[1]
    whole = T // size * size
    if whole:
        yield [part[:, :whole].unflatten(1, (-1, size)) for part in parts]
    if whole < T:
        yield [part[:, None, whole:] for part in parts]


def causal_sums(query, shift, key, log_weight, rows, slope, later=False):
    """The two sums of add_sums for a causal graph, over j <= i or, if `later`, over j >= i: (N, T, K) each.

    StaticAttention calls it in the forward pass, and in the backward pass with queries and keys exchanged:
                  query         key          log_weight   rows                shift             i reads
        forward   query part    key part     0            values and a 1      largest score     j <= i
        backward  key part      query part   -log_sum     gradient and a dot  0                 j >= i
    N is B * H: every head of every text is by itself.
    """
    above, below, T = torch.zeros_like(rows), torch.zeros_like(rows), rows.shape[1]
    parts = above, below, query, shift, key, log_weight, rows
    n_few = max(1, 2**16 // T)  # heads at a time: very large temporary tensors are slow to allocate on a CPU
    for few in zip(*(part.split(n_few) for part in parts)) if n_few < len(rows) else [parts]:
        for up, low, q, s, k, w, r in pieces(few, 64):  # within a piece of 64 tokens, all pairs
            z = q[..., :, None] + k[..., None, :]  # (N, T / 64, 64, 64)
            p = (F.leaky_relu(z, slope) + w[..., None, :] - s[..., :, None]).exp()
            p = p.triu() if later else p.tril()  # the other pairs may be inf
            up += (p * (z > 0)) @ r
            low += (p * (z <= 0)) @ r
        n = 64
        while n < T:  # then between the two halves of pieces of 2 n: log2(T / 64) levels
            i, j = (slice(n), slice(n, None)) if later else (slice(n, None), slice(n))
            for piece in pieces(few, 2 * n):
                if piece[0].shape[2] > n:  # or there is no second half
                    of_queries = [part[:, :, i] for part in piece[:4]]  # views of above, below, ...: they get the sums
                    of_keys = [part[:, :, j] for part in piece[4:]]
                    add_sums(*of_queries, *of_keys, slope)
            n *= 2
    return above, below


class StaticAttention(torch.autograd.Function):
    """dense_attention in O(T log^2 T). Takes query and key (N, T), values (N, T, D), returns (N, T, D)."""

    @staticmethod
    def forward(ctx, query, key, values, slope):
        shift = F.leaky_relu(query + key.cummax(dim=1).values, slope)  # the largest score of each i
        rows = F.pad(values, (0, 1), value=1.0)  # one more channel of ones, which sums the weights themselves
        above, below = causal_sums(query, shift, key, torch.zeros_like(key), rows, slope)
        weight_sum = (above + below)[..., -1:]  # (N, T, 1)
        out = (above + below)[..., :-1] / weight_sum
        ctx.save_for_backward(query, key, values, out, above / weight_sum, shift + weight_sum[..., 0].log())
        ctx.slope = slope
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        """With P the weights and G = grad: dV = P^T G, and dL/dscore_ij = P_ij (G_i . V_j - G_i . out_i)."""
        # above[..., :-1] is the part of `out` that comes from the j above the cut, above[..., -1] their share of the
        # weights. log_sum is the logarithm of the sum of exponentials.
        query, key, values, out, above, log_sum = ctx.saved_tensors
        dot = (grad * out).sum(dim=-1, keepdim=True)  # (N, T, 1)
        # Each j now sums over the i that read it. P_ij = exp(score_ij - log_sum_i): the same sums, i and j exchanged.
        rows, no_shift = torch.cat((grad, dot), dim=-1), torch.zeros_like(key)
        # steep: over the pairs where LeakyReLU has slope 1; flat: over the others.
        steep, flat = causal_sums(key, no_shift, query, -log_sum, rows, ctx.slope, later=True)
        d_values = (steep + flat)[..., :-1]
        with_slopes, dots = (steep + ctx.slope * flat).split((values.shape[-1], 1), dim=-1)  # sums of LeakyReLU' P G
        d_key = (with_slopes * values).sum(dim=-1) - dots[..., 0]
        # Over all j, dL/dscore_ij adds up to 0: what the steep side has, the flat side has with the other sign.
        read, weight = above.split((values.shape[-1], 1), dim=-1)
        d_query = (1 - ctx.slope) * ((grad * read).sum(dim=-1) - (dot * weight)[..., 0])
        return d_query, d_key, d_values, None


class GAT(nn.Module):
    """e_ij = LeakyReLU(a_dst . h_i + a_src . h_j - r (i - j)) with h = W x; the values are h_j.

    Without `recency`, r is 0, and this is PyTorch Geometric's GATConv. With it, r is 1/4, 1/16, 1/64 and 1/256 for four
    heads. r j is added to the key's part of the score, and r i is subtracted from the query's, so that every i still
    orders the j in the same way.
    Takes x (B, T, in_channels), returns (B, T, heads * out_channels). A cache (B, H, block_size, D + 1) keeps h and the
    key's part of the score. x is then the whole prompt (past = 0), or one new token, which reads the cache in O(past).
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

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        h = self.lin(x).to(self.bias.dtype).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, T, D)
        query = (h * self.att_dst[0, :, None]).sum(dim=-1)  # (B, H, T)
        key = (h * self.att_src[0, :, None]).sum(dim=-1)  # (B, H, T)
        if self.recency:
            place = torch.arange(past, past + x.shape[1], device=x.device)
            r = 2 ** (-8 / self.heads * torch.arange(1, self.heads + 1, device=x.device))  # (H,), the slopes of ALiBi
            query, key = query - r[:, None] * place, key + r[:, None] * place
        if cache is not None:
            cache[:, :, past : past + x.shape[1]] = torch.cat((h, key[..., None]), dim=-1)
        with torch.autocast(x.device.type, enabled=False):  # sums of exponentials need float32
            if past:
                h, key = cache[:, :, : past + x.shape[1]].split((h.shape[-1], 1), dim=-1)
                weights = F.leaky_relu(query[..., None] + key.mT, self.negative_slope).softmax(dim=-1)
                read = weights @ h  # (B, H, 1, D)
            else:
                parts = (part.flatten(0, 1) for part in (query, key, h))  # (B * H, T, ...) each
                read = StaticAttention.apply(*parts, self.negative_slope).unflatten(0, query.shape[:2])
        return read.transpose(1, 2).flatten(2) + self.bias  # (B, T, H * D)


class Attention(nn.Module):
    """Message passing. Takes x (B, T, C), returns what each token read, (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.layer = GAT(config.n_embd, config.n_embd // config.n_head, config.n_head, recency=config.recency)
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
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
            nn.GELU(),  # a smooth ReLU (arXiv:1606.08415)
            nn.Linear(4 * config.n_embd, config.n_embd),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x), cache, past))
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
                continue  # a layer keeps the weights it was made with: GAT's are PyTorch Geometric's
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if writes else 0.02)

    def forward(self, ids: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        if past and ids.shape[1] > 1:
            raise ValueError("a KV cache takes the whole prompt at first, and then one token at a time")
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)  # (T,)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, None if cache is None else cache[i], past)  # (B, T, C)
        # Weight tying (arXiv:1608.05859): the output layer shares its weights with the token embedding.
        return F.linear(self.norm(x), self.token_embedding.weight)  # (B, T, V)

    def new_cache(self, B: int) -> Tensor:
        """Room for every block's h and a_src . h, for B texts: (n_layer, B, H, block_size, D + 1)."""
        H, D = self.config.n_head, self.config.n_embd // self.config.n_head
        weight = self.token_embedding.weight  # the cache has its device and its precision
        return weight.new_empty(self.config.n_layer, B, H, self.config.block_size, D + 1)


@torch.inference_mode()
def generate(model: nn.Module, ids: Tensor, max_new_tokens: int, **sampling) -> Tensor:
    """Appends max_new_tokens tokens to ids (B, T), one at a time. sampling: temperature, top_k, top_p, generator.

    The KV cache keeps the keys and values of the tokens before, so that only the new token goes through the model. When
    the window is full, a new one starts with the last half of it, which goes through the model once more. Sliding the
    window by one token would not do: cached keys and values still depend on the token that has left.
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


# ---------------------------------------------------------------- main()


def main(argv=None):
    config = parse_config(Config, argv)  # flags, over a TOML file, over the defaults; the device is chosen
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = GPT(config, data.vocab_size).to(config.device)
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
