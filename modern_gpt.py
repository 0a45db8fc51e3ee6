"""Rung 5: what has changed since GPT-2.

New against rung 4: rotary positions instead of learned ones; RMSNorm, of queries and keys too; ReLU squared; no biases;
what adds to the residual stream starts at zero; the head has weights of its own; the learning rate rests at its highest
before it falls; windows are short at first. Most papers are named in their places.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data import DTYPES, Dataset
from results import Flags, Run, option, parse_config, run_main, sample_token

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    size: str = option("auto", "auto: full on cuda, else small", choices=("auto", "small", "full"))
    batch_size: int = option(16, "B: windows of text in a step", full=64)
    grad_accum: int = option(1, "batches whose gradients add up to a step's")
    block_size: int = option(256, "T: characters in a window")
    n_layer: int = option(3, "blocks", full=6, below=1000)
    n_head: int = option(4, "H: heads of attention", full=6)
    n_embd: int = option(192, "C: width of the residual stream, D = C / H to each head", full=384)
    dropout: float = option(0.0, "share of what is added to the stream that is set to 0", full=0.2, below=1)
    optimizer: str = option("muon", "of the hidden matrices; AdamW has the rest", choices=("muon", "adamw"))
    learning_rate: float = option(1e-2, "the highest, after warm-up; for adamw 3e-3 is more like it", full=5e-3)
    weight_decay: float = option(0.1, "of the hidden matrices")
    warmup_iters: int = option(50, "steps from learning rate 0 to the highest", least=0)
    warmdown_ratio: float = option(0.6, "share of the steps in which the learning rate falls to 0")
    max_iters: int = option(900, "steps", full=2500)
    eval_interval: int = option(150, "steps from one evaluation to the next", full=250)
    dtype: str = option("auto", "of the matrix products; auto: bfloat16 where it is fast", choices=DTYPES)
    compile: bool = option(False, "fuse kernels with torch.compile, which takes a while at the start")

    def __post_init__(self):
        if self.n_embd % (2 * self.n_head):
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of twice --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


def norm(x):
    """RMSNorm (Zhang and Sennrich, arXiv:1910.07467) without a gain: x over the root of the mean of its squares."""
    return F.rms_norm(x, x.shape[-1:])


def rotation_of(positions, D):
    """Rotary positions (Su et al., arXiv:2104.09864): cosines and sines (2, T, D) that turn each pair d, d + D / 2.

    Position p turns pair d by p 10000^(-2d/D), so that q . k depends on how far apart two tokens are alone.
    """
    exponents = torch.arange(0, 1, 2 / D, device=positions.device)[: D // 2]  # 2d/D; rounding can make one too many
    angles = positions[:, None] * 10000**-exponents  # (T, D / 2)
    cos, sin = angles.cos(), angles.sin()
    return torch.stack((torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)))


def rotate(x, rotation):
    """x (..., T, D), each token turned by its position: (a, b) becomes (a cos - b sin, b cos + a sin)."""
    cos, sin = rotation.to(x.dtype)
    return x * cos + x.roll(x.shape[-1] // 2, dims=-1) * sin


class ReLU2(nn.Module):
    """max(x, 0)^2 (So et al., arXiv:2109.08668)."""

    def forward(self, x):
        return F.relu(x).square()


class Attention(nn.Module):
    """softmax(2 Q K^T / sqrt(D)) V over the edges of a graph: x (B, T, C) in, what each token has read (B, T, C) out.

    With a cache (2, B, H, block_size, D) keys and values are kept: x is then the first tokens, or one after `past`.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.key = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.value = nn.Linear(config.n_embd, config.n_embd, bias=False)
        self.projection = nn.Linear(config.n_embd, config.n_embd, bias=False)

    def forward(self, x, rotation, cache=None, past=0):
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (f(x).view(heads).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, H, T, D) each
        # QK-norm (Henry et al., arXiv:2010.04245): only directions count, and no score can exceed 2 sqrt(D).
        q, k = rotate(norm(torch.stack((q, k))), rotation)  # (B, H, T, D) each
        if cache is not None:
            cache[:, :, :, past : past + T] = torch.stack((k, v))
            k, v = cache[:, :, :, : past + T]  # (B, H, past + T, D) each
        scale = 2 / q.shape[-1] ** 0.5  # the 2 lets weights be sharper, which learns better
        read = F.scaled_dot_product_attention(q, k, v, is_causal=past == 0, scale=scale)  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """Communication, then computation, each added to the residual stream x (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd, bias=False),
            ReLU2(),
            nn.Linear(4 * config.n_embd, config.n_embd, bias=False),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rotation, cache=None, past=0):
        x = x + self.dropout(self.attention(norm(x), rotation, cache, past))
        x = x + self.dropout(self.feed_forward(norm(x)))
        return x


class GPT(nn.Module):
    """Ids of characters (B, T) in, logits of each one's successor (B, T, V) out."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.head = nn.Linear(config.n_embd, vocab_size, bias=False)
        self.initialize()

    def initialize(self):
        """Zero where weights add to the stream (Fixup, arXiv:1901.09321): each block begins as the identity."""
        for name, parameter in self.named_parameters():
            nn.init.normal_(parameter, std=0.02)
            if name.endswith(("projection.weight", "feed_forward.2.weight")):
                nn.init.zeros_(parameter)

    def forward(self, ids, cache=None, past=0):
        positions = torch.arange(past, past + ids.shape[1], device=ids.device)  # (T,)
        rotation = rotation_of(positions, self.config.n_embd // self.config.n_head)  # (2, T, D)
        x = self.dropout(self.token_embedding(ids))  # (B, T, C)
        for i, block in enumerate(self.blocks):
            x = block(x, rotation, None if cache is None else cache[i], past)  # (B, T, C)
        return self.head(norm(x))  # (B, T, V)


@torch.inference_mode()
def generate(model, ids, max_new_tokens, **choice):
    """Continues ids (B, T) by one token at a time to (B, T + max_new_tokens); `choice` goes to sample_token.

    Keys and values are kept, so that each token is computed once. When the window of block_size is full, its last half
    is read anew: were it to slide by one, what is kept would be stale, since all but the first layer's has read of the
    one left out.
    """
    training = model.training
    model.eval()
    B, block_size, n_head = len(ids), model.config.block_size, model.config.n_head
    kept = (model.config.n_layer, 2, B, n_head, block_size, model.config.n_embd // n_head)
    cache = model.token_embedding.weight.new_empty(kept)
    start, past = max(0, ids.shape[1] - block_size), 0  # where the window begins, how much of it is in the cache
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
    """Cross-entropy in nats of the next characters y (B, T) after x (B, T)."""
    with torch.autocast(x.device.type, torch.bfloat16, enabled=model.config.dtype == "bfloat16"):
        logits = model(x)  # (B, T, V)
    return F.cross_entropy(logits.float().flatten(0, 1), y.flatten(), reduction=reduction)


@torch.inference_mode()
def evaluate(model, data):
    """Nats per character over the whole validation split, each character but the first predicted once, dropout off."""
    model.eval()
    losses = [loss_of(model, x, y, "sum") for x, y in data.windows("val")]
    model.train()
    return sum(loss.item() for loss in losses) / (len(data.splits["val"]) - 1)


def make_optimizers(config, model):
    """Muon (Jordan et al. 2024; scaled as in arXiv:2502.16982) has the hidden matrices, AdamW what is left.

    Muon steps along the orthogonal matrix nearest to the running mean of the gradients (Nesterov's, momentum 0.95;
    nearly, by five Newton-Schulz iterations), so that every direction of a matrix learns at one pace.
    """
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "blocks" not in name]
    adamw = [{"params": others, "weight_decay": 0.0}]
    if config.optimizer == "adamw":
        adamw.append({"params": matrices, "weight_decay": config.weight_decay})
    optimizers = [torch.optim.AdamW(adamw, betas=(0.9, 0.95), fused=True)]  # betas of GPT-3
    if config.optimizer == "muon":
        optimizers.append(torch.optim.Muon(matrices, weight_decay=config.weight_decay, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def learning_rate_at(step, config):
    """A trapezoid (arXiv:2405.18392): rises in a line to `learning_rate`, stays, falls in a line to 0."""
    rise = step / max(1, config.warmup_iters)
    fall = (config.max_iters + 1 - step) / max(1, config.warmdown_ratio * config.max_iters)
    return config.learning_rate * min(rise, 1, fall)


def context_at(step, config):
    """Sequence length warm-up (Li et al., arXiv:2108.06084): an eighth of block_size, a quarter, half, all of it.

    Each but the last is for a twelfth of the steps, with about as many tokens as ever; evaluations are then as short.
    """
    doublings = min(3, 12 * (step - 1) // config.max_iters)
    return max(1, config.block_size >> (3 - doublings))


def train(config, data, model):
    optimizers = make_optimizers(config, model)
    run = Run(config, data, model, *optimizers)
    compiled = torch.compile(model) if config.compile else model
    replica = run.replicate(compiled)
    for step in run.steps():
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(step, config)
        data.block_size = context_at(step, config)
        data.batch_size = config.batch_size * (config.block_size // data.block_size)
        model.zero_grad()
        loss = 0
        for _ in range(config.grad_accum):
            x, y = data.batch("train")  # (B, T), (B, T)
            part = loss_of(replica, x, y) / config.grad_accum
            part.backward()
            loss += part.detach()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(compiled, data) if due else None)
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
