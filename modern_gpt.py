"""Rung 7: what has changed since GPT-2.

New against rung 6, in the model:
- rotary positions (RoPE) instead of position embeddings: queries and keys are rotated by an angle that grows with the
  position. The score of two tokens then depends on how far apart they are, and not on where in the window they are. So
  the model need not learn the same thing again for each pair of positions;
- RMSNorm instead of LayerNorm, which does as well with less: no mean is subtracted and no gain is learned;
- QK-norm: queries and keys are normalized too, so that no score can grow without bound;
- ReLU squared instead of GELU: simpler, and as good;
- no biases: they do little once there are norms, and without them there are fewer parameters and operations;
- the layers that write to the residual stream start at 0, so that at first every block passes its input on;
- an output layer with weights of its own: weight tying saves memory with a vocabulary of 50,000 tokens, not of 65;
- a short convolution before attention and before the feed-forward network: to each token it adds the three tokens
  before it, each channel times a weight that is learned.

In training: the learning rate stays at its highest for a while before it falls, and the first windows are short, since
what is near is learned first. Learning rate, dropout and weight decay were tuned again. The papers are beside the code,
and results/README.md says what each idea gains here.
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
    batch_size: int = option(32, "B: windows of text in a batch")
    block_size: int = option(128, "T: characters in a window, the context")
    n_layer: int = option(3, "transformer blocks", within="[1, 1000)")
    n_head: int = option(4, "H: attention heads")
    n_embd: int = option(192, "C: width of the residual stream; each head has D = C / H channels")
    dropout: float = option(0.0, "fraction of activations set to 0 during training", within="[0, 1)")
    learning_rate: float = option(1e-2, "highest learning rate, after warm-up; for adamw try a third")
    weight_decay: float = option(0.1, "weight decay of the blocks' matrices")
    warmup_iters: int = option(50, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    warmdown_ratio: float = option(0.6, "share of the steps, at the end, with a falling learning rate", within="[0, 1]")
    max_iters: int = option(600, "training steps")
    eval_interval: int = option(100, "steps between evaluations")
    optimizer: str = option("muon", "optimizer of the blocks' matrices; all else uses AdamW", choices=("muon", "adamw"))
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")
    cuda_graph: bool = option(True, "on CUDA, launch all kernels of a step at once")
    size: str = option("auto", "small: the defaults; full: a GPU's; auto: full on cuda, else small", choices=SIZES)

    full = dict(
        batch_size=16,
        block_size=256,
        n_layer=6,
        n_head=6,
        n_embd=384,
        dropout=0.2,
        learning_rate=6e-3,
        weight_decay=1.0,
        max_iters=2000,
        eval_interval=250,
    )

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of twice --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


def norm(x: Tensor) -> Tensor:
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467) without a gain: x over the root of the mean of its squares."""
    return F.rms_norm(x, x.shape[-1:])


def rotation_of(positions: Tensor, D: int) -> tuple[Tensor, Tensor]:
    """Rotary positions (Su et al., arXiv:2104.09864): the cosines and sines of the angles for each token, (T, D / 2).

    Channels d and d + D / 2 are a pair, a point in the plane. Position p rotates it by the angle p 10000^(-2d/D). The
    dot product of two rotated points depends on the difference of their angles alone, so q . k depends on the distance
    of the two tokens, and not on their positions.
    """
    frequencies = 10000 ** -(torch.arange(0, D, 2, device=positions.device) / D)  # (D / 2,)
    angles = positions[:, None] * frequencies  # (T, D / 2)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Rotates each token of x (..., T, D) by its position: a pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


class Convolution(nn.Module):
    """x_t + w_1 x_(t-1) + w_2 x_(t-2) + w_3 x_(t-3), each channel by itself. Takes and returns (B, T, C).

    These are the Canon layers of Allen-Zhu, "Physics of Language Models: Part 4.1" (2025, arXiv:2512.17351). The
    weights start at 0, where the layer does nothing. A cache (B, 3, C) keeps the last three x of the tokens before.
    """

    def __init__(self, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 1, n_embd))

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        before = cache if past else x.new_zeros(x.shape[0], 3, x.shape[2])
        window = torch.cat((before, x), dim=1)  # (B, 3 + T, C)
        if cache is not None:
            cache.copy_(window[:, -3:])
        for k, w in enumerate(self.weight, 1):
            x = torch.addcmul(x, window[:, 3 - k : -k], w)  # x_t + w_k x_(t-k)
        return x


class ReLU2(nn.Module):
    """max(x, 0)^2 (So et al., arXiv:2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


class Attention(nn.Module):
    """softmax(2 Q K^T / sqrt(D)) V over a graph's edges. Takes x (B, T, C), returns what each token read, (B, T, C).

    With a KV cache (2, B, H, block_size, D), x is either the whole prompt (past = 0), or one new token that follows
    `past` others, whose keys and values are in the cache.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)  # what a token looks for
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=False)  # what it can be found by
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=False)  # what it hands to those who read it
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x: Tensor, rotation: tuple, cache: Tensor | None = None, past: int = 0) -> Tensor:
        B, T, C = x.shape
        # The C channels are split into H heads of D. H goes before T, so that @ works on each head by itself.
        q = self.query(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        v = self.value(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        # QK-norm (Henry et al., arXiv:2010.04245): q . k / sqrt(D) is then at most sqrt(D). Twice that lets the softmax
        # be sharper again. q and k are stacked, which halves the number of calls.
        q, k = rotate(norm(torch.stack((q, k))), rotation)  # (B, H, T, D) each
        scale = 2 / math.sqrt(q.shape[-1])
        if cache is not None:
            cache[:, :, :, past : past + T] = torch.stack((k, v))
            k, v = cache[:, :, :, : past + T]  # (B, H, past + T, D) each
        # The adjacency is causal as before. One new token reads all others, so that it needs no mask.
        read = F.scaled_dot_product_attention(q, k, v, is_causal=past == 0, scale=scale)  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C))  # the heads, concatenated and mixed


class Block(nn.Module):
    """Communication, then computation. Each reads the residual stream x (B, T, C) and adds to it."""

    def __init__(self, config):
        super().__init__()
        self.conv_1 = Convolution(config.n_embd)
        self.attention = Attention(config)
        self.conv_2 = Convolution(config.n_embd)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd, bias=False),
            ReLU2(),
            nn.Linear(4 * config.n_embd, config.n_embd, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, rotation: tuple, cache: tuple | None = None, past: int = 0) -> Tensor:
        kv, last_1, last_2 = cache or (None, None, None)
        x = x + self.dropout(self.attention(self.conv_1(norm(x), last_1, past), rotation, kv, past))
        x = x + self.dropout(self.feed_forward(self.conv_2(norm(x), last_2, past)))
        return x


class GPT(nn.Module):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.initialize()

    def initialize(self):
        """The layers that write to the residual stream start at 0 (Fixup, arXiv:1901.09321), so that each block begins
        as the identity. The convolutions start at 0 too. The other weights have standard deviation 0.02."""
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.02)
            if name.endswith(("projection.weight", "feed_forward.2.weight", "conv_1.weight", "conv_2.weight")):
                nn.init.zeros_(parameter)

    def forward(self, ids: Tensor, cache: list | None = None, past: int = 0) -> Tensor:
        if past and ids.shape[1] > 1:
            raise ValueError("a KV cache takes the whole prompt at first, and then one token at a time")
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)  # (T,)
        rotation = rotation_of(positions, self.config.n_embd // self.config.n_head)  # (T, D / 2) each
        x = self.dropout(self.token_embedding(ids))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache[i], past)  # (B, T, C)
        return self.head(norm(x))  # (B, T, V)

    def new_cache(self, B: int) -> list:
        """For each block an empty KV cache, (2, B, H, block_size, D), and room for what its convolutions keep."""
        H, C = self.config.n_head, self.config.n_embd
        weight = self.token_embedding.weight  # the cache has its device and its precision
        kv, last = (2, B, H, self.config.block_size, C // H), (B, 3, C)
        return [(weight.new_empty(kv), weight.new_empty(last), weight.new_empty(last)) for _ in self.blocks]


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
    """A trapezoid (Hägele et al., arXiv:2405.18392): rises linearly to `learning_rate`, stays, falls linearly to 0."""
    rise = step / max(1, config.warmup_iters)
    fall = (config.max_iters + 1 - step) / max(1, config.warmdown_ratio * config.max_iters)
    return config.learning_rate * min(rise, 1, fall)


def context_at(step, config):
    """Sequence length warm-up (Li et al., arXiv:2108.06084): windows of block_size / 8, then / 4, then / 2, then whole.

    Each of the short lengths gets a twelfth of the steps, in batches of more windows, with about as many tokens.
    """
    doublings = min(3, 12 * (step - 1) // config.max_iters)
    return max(1, config.block_size >> (3 - doublings))


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
        batches = [data.batch("train", context_at(step, config)) for _ in range(config.grad_accum)]
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
