"""Rung 6: what has changed since GPT-2.

New against rung 5, in the model: rotary positions instead of learned ones; RMSNorm, of queries and keys too; ReLU
squared; no biases; projections into the residual stream start at zero; a short convolution before attention and before
the feed-forward; the head has weights of its own. In training: the learning rate stays at its highest before it falls,
and the first windows are short. The papers are named beside the lines.
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
    batch_size: int = option(16, "B: windows of text in a batch")
    grad_accum: int = option(1, "batches in a step; their gradients are averaged")
    block_size: int = option(256, "T: characters in a window, the context")
    n_layer: int = option(3, "transformer blocks", full=6, within="[1, 1000)")
    n_head: int = option(4, "H: attention heads", full=6)
    n_embd: int = option(192, "C: width of the residual stream; each head has D = C / H channels", full=384)
    dropout: float = option(0.0, "fraction of activations set to 0 during training", full=0.2, within="[0, 1)")
    optimizer: str = option("muon", "optimizer of the blocks' matrices; all else uses AdamW", choices=("muon", "adamw"))
    learning_rate: float = option(1e-2, "highest learning rate, after warm-up; for adamw try 3e-3", full=6e-3)
    weight_decay: float = option(0.1, "weight decay of the hidden matrices", full=1.0)
    warmup_iters: int = option(50, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    warmdown_ratio: float = option(0.6, "last share of the steps, in which the learning rate falls", within="[0, 1]")
    max_iters: int = option(900, "training steps", full=2000)
    eval_interval: int = option(150, "steps between evaluations", full=250)
    dtype: str = option("auto", "precision of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile; compiling takes a while at the start")

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of twice --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


def norm(x):
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467) without a gain: x over the root of the mean of its squares."""
    return F.rms_norm(x, x.shape[-1:])


def rotation_of(positions, D):
    """Rotary positions (Su et al., arXiv:2104.09864): the cosines and sines by which each token is turned, (2, T, D).

    Channels d and d + D / 2 are a pair, a point in the plane. Position p turns it by the angle p 10000^(-2d/D), so that
    q . k depends on the distance between two tokens, not on where they stand.
    """
    exponents = torch.arange(0, 1, 2 / D, device=positions.device)[: D // 2]  # 2d/D; cut, as rounding may add one
    angles = positions[:, None] * 10000**-exponents  # (T, D / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rotate(x, rotation):
    """Turns each token of x (..., T, D) by its position: a pair (a, b) becomes (a cos - b sin, b cos + a sin)."""
    cos, sin = rotation.to(x.dtype)  # the sines' first half is negative, the second positive
    # Rolled by half, the pair (a, b) reads (b, a); times (-sin, sin) it is what the cosines leave to be added.
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class Convolution(nn.Module):
    """x_t + w_1 x_(t-1) + w_2 x_(t-2) + w_3 x_(t-3), each channel by itself. Takes and returns (B, T, C).

    So a token knows its neighbours before it attends or computes (Canon layers, Allen-Zhu 2025, "Physics of Language
    Models: Part 4.1"). A cache (B, 3, C) keeps the last three x; `past` is how many tokens came before.
    """

    def __init__(self, n_embd):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 1, n_embd))

    def forward(self, x, cache=None, past=0):
        before = cache if past else x.new_zeros(x.shape[0], 3, x.shape[2])
        window = torch.cat((before, x), dim=1)  # (B, 3 + T, C)
        if cache is not None:
            cache.copy_(window[:, -3:])
        for k, w in enumerate(self.weight, 1):
            x = torch.addcmul(x, window[:, 3 - k : -k], w)
        return x


class ReLU2(nn.Module):
    """max(x, 0)^2 (So et al., arXiv:2109.08668)."""

    def forward(self, x):
        return F.relu(x).square()


class Attention(nn.Module):
    """softmax(2 Q K^T / sqrt(D)) V over a graph's edges. Takes x (B, T, C), returns what each token read, (B, T, C).

    A cache (2, B, H, block_size, D) keeps keys and values. x is then the first tokens, or the one after `past` others.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)  # what a token looks for
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=False)  # what it can be found by
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=False)  # what it hands to those who read it
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, rotation, cache=None, past=0):
        B, T, C = x.shape
        # view splits the C channels into heads; transpose puts H before T, so that @ works head by head.
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (f(x).view(heads).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, H, T, D) each
        # QK-norm (Henry et al., arXiv:2010.04245): only directions count. That bounds the scores, so they are doubled.
        q, k = rotate(norm(torch.stack((q, k))), rotation)  # (B, H, T, D) each
        if cache is not None:
            cache[:, :, :, past : past + T] = torch.stack((k, v))
            k, v = cache[:, :, :, : past + T]  # (B, H, past + T, D) each
        read = F.scaled_dot_product_attention(q, k, v, is_causal=past == 0, scale=2 / q.size(-1) ** 0.5)  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C))


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

    def forward(self, x, rotation, cache=None, past=0):
        heads, recent = cache or (None, (None, None))
        x = x + self.dropout(self.attention(self.conv_1(norm(x), recent[0], past), rotation, heads, past))
        x = x + self.dropout(self.feed_forward(self.conv_2(norm(x), recent[1], past)))
        return x


class GPT(nn.Module):
    """Takes ids of characters (B, T), returns the logits of what follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.initialize()

    def initialize(self):
        """Weights that add something start at 0 (Fixup, arXiv:1901.09321): each block begins as the identity."""
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.02)
            if name.endswith(("projection.weight", "feed_forward.2.weight", "conv_1.weight", "conv_2.weight")):
                nn.init.zeros_(parameter)

    def forward(self, ids, cache=None, past=0):
        if past and ids.shape[1] > 1:
            raise ValueError("a cache takes the first tokens together, and then one token at a time")
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)  # (T,)
        rotation = rotation_of(positions, self.config.n_embd // self.config.n_head)  # (2, T, D)
        x = self.dropout(self.token_embedding(ids))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache[i], past)  # (B, T, C)
        return self.head(norm(x))  # (B, T, V)

    def new_cache(self, B):
        """Room for each block's keys and values, (2, B, H, T, D), and its convolutions' last x, (2, B, 3, C)."""
        H, T, C, new = self.config.n_head, self.config.block_size, self.config.n_embd, self.head.weight.new_empty
        return [(new(2, B, H, T, C // H), new(2, B, 3, C)) for _ in self.blocks]


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
    """A trapezoid (arXiv:2405.18392): rises linearly to `learning_rate`, stays there, falls linearly to 0."""
    rise = step / max(1, config.warmup_iters)
    fall = (config.max_iters + 1 - step) / max(1, config.warmdown_ratio * config.max_iters)
    return config.learning_rate * min(rise, 1, fall)


def context_at(step, config):
    """Sequence length warm-up (Li et al., arXiv:2108.06084): windows of block_size / 8, then / 4, then / 2, then whole.

    Each of the short lengths gets a twelfth of the steps, and so many windows a batch that it has as many tokens.
    """
    doublings = min(3, 12 * (step - 1) // config.max_iters)
    return max(1, config.block_size >> (3 - doublings))


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
            x, y = data.batch("train", context_at(step, config))  # (B, T), (B, T)
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
