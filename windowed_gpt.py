"""Rung 8: a GPT whose adjacency is learned: each query of each head chooses how far back it looks.

New against rung 5, chosen by `--attention`: two give each query a window, with a soft end or a hard one. Three leave
attention as it is, but measure where each head looked and pass that on. `plain` is gpt.py.

After Hartke, github.com/tomhartke/transformer-modifications (2023). A soft window is ALiBi (Press et al.,
arXiv:2108.12409) with a slope that the query chooses. A hard one goes back to Sukhbaatar et al., arXiv:1905.07799.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data import DTYPES, Dataset, total
from results import Flags, Run, option, parse_config, run_main, sample_token

# ---------------------------------------------------------------- Config

ATTENTIONS = ("plain", "soft_window", "hard_window", "head_gate", "location_mlp", "location_gate")


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
    attention: str = option("soft_window", "what limits how far queries look, or is told of it", choices=ATTENTIONS)

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")
        if self.attention == "head_gate" and self.n_head == 1:
            raise ValueError("--attention head_gate compares heads: --n_head 1 is too few")


# ---------------------------------------------------------------- Model


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over a graph's edges. Takes x (B, T, C), returns what each token read, (B, T, C).

    Also returns where each head looked, (B, T, 2 H), if it measures that; else None.
    A cache (2, B, H, block_size, D) keeps keys and values. x is then the first tokens, or the one after `past` others.
    """

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd)  # what a token looks for
        self.key = nn.Linear(config.n_embd, config.n_embd)  # what it can be found by
        self.value = nn.Linear(config.n_embd, config.n_embd)  # what it hands to those who read it
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x, cache=None, past=0):
        B, T, C = x.shape
        # view splits the C channels into heads; transpose puts H before T, so that @ works head by head.
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (f(x).view(heads).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, H, T, D) each
        if cache is not None:
            cache[:, :, :, past : past + T] = torch.stack((k, v))
            k, v = cache[:, :, :, : past + T]  # (B, H, past + T, D) each
        read, where = self.attend(x, q, k, v, past)  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C)), where

    def attend(self, x, q, k, v, past):
        return F.scaled_dot_product_attention(q, k, v, is_causal=past == 0), None  # one new token needs no mask


class SoftWindow(Attention):
    """Adds 1 - (d + 1) / w_i to the score of the key j = i - d. The window is w_i = 1 + T/2 exp(u_i), with u = W x.

    A softmax does not see what is the same for all j, so it is enough to add j / w_i. That is a product of something
    of i and something of j. So it goes into q . k as further channels, and the fused kernel does the rest.
    """

    def __init__(self, config):
        super().__init__(config)
        self.window = nn.Linear(config.n_embd, config.n_head)
        self.log_half = math.log(config.block_size / 2)

    def slope(self, x):
        """1 / w (B, H, T, 1). As 1 / (1 + T/2 exp(u)) it is a sigmoid, which no u makes overflow."""
        u = self.window(x).to(self.window.weight.dtype)  # out of bfloat16, in which windows would be off by 4%
        return torch.sigmoid(-u - self.log_half).mT.unsqueeze(-1)

    def attend(self, x, q, k, v, past):
        j = torch.arange(k.shape[2], device=x.device)
        low, middle = j % 2**7, j % 2**15 - j % 2**7
        j = torch.stack((low, middle, j - low - middle), dim=-1).to(k.dtype)  # add up to j, each is exact in bfloat16
        scale = q.shape[-1] ** -0.5
        q = torch.cat((q, (self.slope(x) / scale).to(q.dtype).expand(-1, -1, -1, 3)), dim=-1)  # (B, H, T, D + 3)
        k = torch.cat((k, j.expand(*k.shape[:2], -1, -1)), dim=-1)  # (B, H, S, D + 3), S = past + T
        q, k, v = (F.pad(part, (0, v.shape[-1] + 8 - part.shape[-1])) for part in (q, k, v))  # kernels want one width
        return F.scaled_dot_product_attention(q, k, v, is_causal=past == 0, scale=scale)[..., :-8], None


class HardWindow(SoftWindow):
    """Weights times 1 - exp(-relu(1 - (d + 1) / w_i)), then divided by their sum: none from d = w_i - 1 on.

    In the log domain the factor is a bias, with -inf beyond the window. Queries come in blocks of 128. A block skips
    the keys that lie before the longest window of any of its queries.
    """

    block = 128

    def attend(self, x, q, k, v, past):
        slope = self.slope(x).clamp(max=0.99)  # all windows below 2 hold one key, whose weight is 1: no log of 0
        reads = []
        for n in range(0, q.shape[2], self.block):
            rows, end, first = slice(n, n + self.block), min(past + n + self.block, k.shape[2]), 0
            if end > self.block and not torch.compiler.is_compiling():
                longest = 1 / slope[:, :, rows].amin().nan_to_num().clamp(min=1 / end)  # if nan, the loss will say so
                first = max(0, past + n - int(longest))  # waits for the device
            i, j = torch.arange(past + n, end, device=x.device)[:, None], torch.arange(first, end, device=x.device)
            near = 1 - (i - j + 1) * slope[:, :, rows]  # (B, H, i, j)
            inside = (near > 0) & (i >= j)
            bias = torch.log(-torch.expm1(-near.where(inside, 1))).where(inside, -math.inf)
            reads.append(F.scaled_dot_product_attention(q[:, :, rows], k[:, :, first:end], v[:, :, first:end], bias))
        return torch.cat(reads, dim=2), None


class Looking(Attention):
    """Plain attention that tells where it looked: the mean of j - i and its deviation, in units of T.

    A mean of places is read as values are: j and j^2 are two more channels of v. So is the mean key, in D more. Its
    product with q, over sqrt(D), is the mean score.
    """

    def __init__(self, config):
        super().__init__(config)
        self.block_size = config.block_size

    def look(self, q, k, v, past):
        """What was read, (B, H, T, D), and the mean score, the mean of j - i and its deviation, (B, T, 3, H)."""
        D, (B, H, S, _), scale = q.shape[-1], k.shape, q.shape[-1] ** -0.5
        j = torch.arange(S, device=q.device, dtype=self.query.weight.dtype) / self.block_size
        with torch.autocast(q.device.type, enabled=False):  # a deviation is a small difference of large numbers
            q, k, v = (part.to(j.dtype) for part in (q, k, v))
            v = torch.cat((v, k, torch.stack((j, j.square()), dim=-1).expand(B, H, -1, -1)), dim=-1)
            q_, k_, v = (F.pad(part, (0, 2 * D + 8 - part.shape[-1])) for part in (q, k, v))  # kernels want one width
            read = F.scaled_dot_product_attention(q_, k_, v, is_causal=past == 0, scale=scale)  # (B, H, T, 2 D + 8)
            read, key, mean, square, _ = read.split((D, D, 1, 1, 6), dim=-1)
            score = (q * key).sum(dim=-1, keepdim=True) * scale
            deviation = (square - mean.square()).clamp(min=1e-6).sqrt()  # not below 0.001 T, where roots are steep
            return read, torch.cat((score, mean - j[past:, None], deviation), dim=-1).permute(0, 2, 3, 1)

    def attend(self, x, q, k, v, past):
        read, seen = self.look(q, k, v, past)
        return read, seen[:, :, 1:].flatten(2)


class HeadGate(Looking):
    """Each head's read times 2 sigmoid(MLP(how strongly, where and how widely the heads looked)). Needs two or more."""

    def __init__(self, config):
        super().__init__(config)
        self.gate = mlp(3 * config.n_head, config.n_head)

    def attend(self, x, q, k, v, past):
        read, seen = self.look(q, k, v, past)
        gate = self.gate(F.layer_norm(seen, seen.shape[3:]).flatten(2))  # (B, T, H)
        return read * 2 * gate.sigmoid().mT.unsqueeze(-1), None


class Silent(nn.Linear):
    """A linear map that starts at 0, so that a model with it begins as plain attention."""


def mlp(wide, out):
    """From what the heads tell, (..., wide), to (..., out)."""
    return nn.Sequential(nn.Linear(wide, 4 * wide), nn.GELU(), Silent(4 * wide, out))


class Block(nn.Module):
    """Communication, then computation. Each reads the residual stream x (B, T, C) and adds to it."""

    attentions = {"plain": Attention, "soft_window": SoftWindow, "hard_window": HardWindow, "head_gate": HeadGate}
    attentions |= {"location_mlp": Looking, "location_gate": Looking}

    def __init__(self, config):
        super().__init__()
        self.norm_1 = nn.LayerNorm(config.n_embd)
        self.attention = self.attentions[config.attention](config)
        self.norm_2 = nn.LayerNorm(config.n_embd)
        self.feed_forward = nn.Sequential(
            nn.Linear(config.n_embd, 4 * config.n_embd),
            nn.GELU(),
            nn.Linear(4 * config.n_embd, config.n_embd),
        )
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, cache=None, past=0):
        x = x + self.dropout(self.attention(self.norm_1(x), cache and cache[0], past)[0])
        x = x + self.dropout(self.feed_forward(self.norm_2(x)))
        return x


class LocationMLP(Block):
    """The feed-forward also reads where the heads looked: less the mean so far, scaled, shifted and normalized."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(2 * config.n_head))
        self.shift = nn.Parameter(torch.zeros(2 * config.n_head))
        self.where = Silent(2 * config.n_head, 4 * config.n_embd, bias=False)

    def forward(self, x, cache=None, past=0):
        read, where = self.attention(self.norm_1(x), cache and cache[0], past)
        x = x + self.dropout(read)
        so_far = where  # (B, past + T, 2 H)
        if cache is not None:
            cache[1][:, past : past + x.shape[1]] = where
            so_far = cache[1][:, : past + x.shape[1]]
        mean = so_far.cumsum(dim=1) / torch.arange(1, so_far.shape[1] + 1, device=x.device)[:, None]
        where = F.layer_norm((where - mean[:, past:]) * self.scale + self.shift, where.shape[2:])
        hidden = self.feed_forward[0](self.norm_2(x)) + self.where(where)  # as one linear map of the two, concatenated
        return x + self.dropout(self.feed_forward[1:](hidden))


class LocationGate(Block):
    """x' = x + (1 + f) attention + g, then x' + feed-forward + h. f, g and h are MLPs of where the heads looked."""

    def __init__(self, config):
        super().__init__(config)
        self.gates = nn.ModuleList(mlp(2 * config.n_head + 1, config.n_embd) for _ in range(3))

    def forward(self, x, cache=None, past=0):
        read, where = self.attention(self.norm_1(x), cache and cache[0], past)
        place = torch.arange(past, past + x.shape[1], device=x.device) / self.attention.block_size
        where = torch.cat((where, place.to(where.dtype).expand(len(x), -1)[..., None]), dim=-1)  # and the token's own
        f, g, h = (gate(where) for gate in self.gates)  # (B, T, C) each
        x = x + self.dropout(read * (1 + f) + g)
        return x + self.dropout(self.feed_forward(self.norm_2(x)) + h)


class GPT(nn.Module):
    """Takes ids of characters (B, T), returns the logits of what follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        block = {"location_mlp": LocationMLP, "location_gate": LocationGate}.get(config.attention, Block)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.initialize()

    def initialize(self):
        """As in GPT-2: biases 0, weights of deviation 0.02, over sqrt(2 n_layer) where they add to the stream."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                adds = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if adds else 0.02)
        for module in self.modules():
            if isinstance(module, Silent):
                nn.init.zeros_(module.weight)

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
        """Room for each block's keys and values, (2, B, H, T, D), and for where its heads looked, (B, T, 2 H)."""
        H, T, C, new = self.config.n_head, self.config.block_size, self.config.n_embd, self.norm.weight.new_empty
        return [(new(2, B, H, T, C // H), new(B, T, 2 * H)) for _ in self.blocks]


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
