"""Four ideas that gained nothing: windows that end, and attention that measures where each head looks and passes it on.

python -m studies.gates --attention hard_window     # each query's window ends, where that of windowed_gpt.py fades
python -m studies.gates --attention head_gate       # scales the heads by how strongly, where and how widely all look
python -m studies.gates --attention location_mlp    # tells the feed-forward network where they look
python -m studies.gates --attention location_gate   # scales and shifts channels by where they look

A run like that of any rung: --resume and sample.py know it. The rest of the model is windowed_gpt.py's, which is
gpt.py's. The last three begin as plain attention. All are after Hartke, github.com/tomhartke/transformer-modifications
(2023); windows that end go back to Sukhbaatar et al., arXiv:1905.07799. results/README.md has the losses.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import windowed_gpt
from data import Dataset
from results import option, parse_config, run_main
from windowed_gpt import evaluate, generate, loss_of, make_optimizers, update  # noqa: F401 (its own too)

IDEAS = ("hard_window", "head_gate", "location_mlp", "location_gate")


@dataclass
class Config(windowed_gpt.Config):
    attention: str = option("head_gate", "which idea", choices=IDEAS)

    def __post_init__(self):
        super().__post_init__()
        if self.attention == "head_gate" and self.n_head == 1:
            raise ValueError("--attention head_gate compares heads: --n_head 1 is too few")


class HardWindow(windowed_gpt.SoftWindow):
    """Multiplies weights by 1 - exp(-relu(1 - (d + 1) / w_i)), then divides them by their sum: 0 from d = w_i - 1 on.

    Plainly: scores = q @ k.mT / sqrt(D) + log of that factor, which is -inf beyond the window.
    """

    block = 128

    def attend(self, x, q, k, v, past):
        # Queries come in blocks of 128. A block skips the keys that are before the longest window of its queries.
        one_over_w = self.one_over_w(x).clamp(max=0.99)  # a window below 2 holds one token, whose weight is 1
        reads = []
        for n in range(0, q.shape[2], self.block):
            rows = slice(n, n + self.block)  # the queries of this block
            end = min(past + n + self.block, k.shape[2])  # they read no key from here on
            first = 0  # nor one before this
            if end > self.block and not torch.compiler.is_compiling():
                longest = 1 / one_over_w[:, :, rows].amin().nan_to_num().clamp(min=1 / end)  # a NaN shows in the loss
                first = max(0, past + n - int(longest))  # waits for a GPU
            i, j = torch.arange(past + n, end, device=x.device)[:, None], torch.arange(first, end, device=x.device)
            near = 1 - (i - j + 1) * one_over_w[:, :, rows]  # (B, H, i, j): above 0 inside the window
            inside = (near > 0) & (i >= j)
            # log(1 - exp(-near)). The inner `where` keeps 0 out of the log, whose gradient there would make others NaN.
            bias = torch.log(-torch.expm1(-near.where(inside, 1))).where(inside, -math.inf)
            reads.append(F.scaled_dot_product_attention(q[:, :, rows], k[:, :, first:end], v[:, :, first:end], bias))
        return torch.cat(reads, dim=2)


class Looking(windowed_gpt.Attention):
    """Plain attention that also tells where it looked: the mean of j - i and its standard deviation, in units of T.

    A mean of places is read as values are: j and j^2 are two more channels of v. So is the mean key, in D more. Its
    product with q, over sqrt(D), is the mean score. Returns what was read, (B, T, C), and where, (B, T, 2 H).
    """

    def __init__(self, config):
        super().__init__(config)
        self.block_size = config.block_size

    def look(self, x, cache, past):
        """What was read, (B, H, T, D), and the mean score, the mean of j - i and its deviation, (B, T, 3, H)."""
        B, T, _ = x.shape
        q = self.query(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        v = self.value(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        if cache is not None:
            cache[:, :, :, past : past + T] = torch.stack((k, v))
            k, v = cache[:, :, :, : past + T]  # (B, H, past + T, D) each
        D, (B, H, S, _), scale = q.shape[-1], k.shape, q.shape[-1] ** -0.5
        j = torch.arange(S, device=q.device, dtype=self.query.weight.dtype) / self.block_size
        with torch.autocast(q.device.type, enabled=False):  # a deviation is a small difference of large numbers
            q, k, v = (part.to(j.dtype) for part in (q, k, v))
            v = torch.cat((v, k, torch.stack((j, j.square()), dim=-1).expand(B, H, -1, -1)), dim=-1)
            # The kernel wants q, k and v of one width, and a multiple of 8.
            q_, k_, v = (F.pad(part, (0, 2 * D + 8 - part.shape[-1])) for part in (q, k, v))
            read = F.scaled_dot_product_attention(q_, k_, v, is_causal=past == 0, scale=scale)  # (B, H, T, 2 D + 8)
            read, key, mean, square, _ = read.split((D, D, 1, 1, 6), dim=-1)
            score = (q * key).sum(dim=-1, keepdim=True) * scale
            deviation = (square - mean.square()).clamp(min=1e-6).sqrt()  # not below 0.001 T, where roots are steep
            seen = torch.cat((score, mean - j[past:, None], deviation), dim=-1)
            return read, seen.permute(0, 2, 3, 1)

    def mix(self, read):
        return self.projection(read.transpose(1, 2).flatten(2))  # the heads, concatenated and mixed

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> tuple[Tensor, Tensor]:
        read, seen = self.look(x, cache, past)
        return self.mix(read), seen[:, :, 1:].flatten(2)


class HeadGate(Looking):
    """Each head's read times 2 sigmoid(MLP(how strongly, where and how widely the heads looked)). Needs two or more."""

    def __init__(self, config):
        super().__init__(config)
        self.gate = mlp(3 * config.n_head, config.n_head)

    def forward(self, x: Tensor, cache: Tensor | None = None, past: int = 0) -> Tensor:
        read, seen = self.look(x, cache, past)
        gate = self.gate(F.layer_norm(seen, seen.shape[3:]).flatten(2))  # (B, T, H)
        return self.mix(read * 2 * gate.sigmoid().mT.unsqueeze(-1))


class Silent(nn.Linear):
    """A linear map that starts at 0, so that a model with it begins as plain attention."""


def mlp(wide, out):
    """From what the heads tell, (..., wide), to (..., out)."""
    return nn.Sequential(nn.Linear(wide, 4 * wide), nn.GELU(), Silent(4 * wide, out))


class Block(windowed_gpt.Block):
    """A block of windowed_gpt.py, for an idea that stays within the attention."""

    def forward(self, x: Tensor, cache: tuple | None = None, past: int = 0) -> Tensor:
        return super().forward(x, cache and cache[0], past)


class LocationMLP(windowed_gpt.Block):
    """The feed-forward network also reads where the heads looked, compared with the mean over the tokens so far."""

    def __init__(self, config):
        super().__init__(config)
        self.scale = nn.Parameter(torch.ones(2 * config.n_head))
        self.shift = nn.Parameter(torch.zeros(2 * config.n_head))
        self.where = Silent(2 * config.n_head, 4 * config.n_embd, bias=False)

    def forward(self, x: Tensor, cache: tuple | None = None, past: int = 0) -> Tensor:
        read, where = self.attention(self.norm_1(x), cache and cache[0], past)
        x = x + self.dropout(read)
        so_far = where  # (B, past + T, 2 H)
        if cache is not None:
            cache[1][:, past : past + x.shape[1]] = where
            so_far = cache[1][:, : past + x.shape[1]]
        mean = so_far.cumsum(dim=1) / torch.arange(1, so_far.shape[1] + 1, device=x.device)[:, None]
        where = F.layer_norm((where - mean[:, past:]) * self.scale + self.shift, where.shape[2:])
        hidden = self.feed_forward[0](self.norm_2(x)) + self.where(where)  # one linear map of the two, concatenated
        return x + self.dropout(self.feed_forward[1:](hidden))


class LocationGate(windowed_gpt.Block):
    """x' = x + (1 + f) attention + g, then x' + feed-forward + h. f, g and h are MLPs of where the heads looked."""

    def __init__(self, config):
        super().__init__(config)
        self.gates = nn.ModuleList(mlp(2 * config.n_head + 1, config.n_embd) for _ in range(3))

    def forward(self, x: Tensor, cache: tuple | None = None, past: int = 0) -> Tensor:
        read, where = self.attention(self.norm_1(x), cache and cache[0], past)
        place = torch.arange(past, past + x.shape[1], device=x.device) / self.attention.block_size
        where = torch.cat((where, place.to(where.dtype).expand(len(x), -1)[..., None]), dim=-1)  # and the token's own
        f, g, h = (gate(where) for gate in self.gates)  # (B, T, C) each
        x = x + self.dropout(read * (1 + f) + g)
        return x + self.dropout(self.feed_forward(self.norm_2(x)) + h)


class GPT(windowed_gpt.GPT):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        nn.Module.__init__(self)
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        windowed_gpt.ATTENTIONS |= {"hard_window": HardWindow, "head_gate": HeadGate}
        windowed_gpt.ATTENTIONS |= {"location_mlp": Looking, "location_gate": Looking}
        block = {"location_mlp": LocationMLP, "location_gate": LocationGate}.get(config.attention, Block)
        self.blocks = nn.ModuleList(block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.initialize()

    def initialize(self):
        super().initialize()
        for module in self.modules():
            if isinstance(module, Silent):
                nn.init.zeros_(module.weight)

    def new_cache(self, B: int) -> list:
        """For each block an empty KV cache, and room for where its heads looked, (B, T, 2 H)."""
        H, T = self.config.n_head, self.config.block_size
        return [(kv, kv.new_empty(B, T, 2 * H)) for kv in super().new_cache(B)]


def main(argv=None):
    config = parse_config(Config, argv)
    torch.manual_seed(config.seed)
    data = Dataset(config)
    windowed_gpt.train(config, data, GPT(config, data.vocab_size).to(config.device))


if __name__ == "__main__":
    run_main(main)
