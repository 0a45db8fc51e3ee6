"""Rung 4: a transformer block: attention, then a feed-forward network, with residual connections and LayerNorm.

New against rung 3: in attention, tokens communicate. Now a feed-forward network of two linear layers lets each token
compute on what it has read. Neither attention nor the feed-forward network replaces the token's vector. Each adds to it
(a residual, or skip, connection), so that in the backward pass gradients flow past both. What runs through all these
additions is called the residual stream. Attention, the feed-forward network and the output layer read the stream
through a LayerNorm each. It brings every vector to mean 0 and variance 1, however much has been added so far, and then
scales and shifts each channel by numbers that are learned.

Papers: Vaswani et al., "Attention Is All You Need" (2017, arXiv:1706.03762), sections 3.1 and 3.3. LayerNorm comes
before attention and feed-forward (pre-norm), as in Xiong et al. (2020, arXiv:2002.04745), and not after them.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from data import Dataset
from results import Flags, Run, option, parse_config, run_main, sample_token

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    batch_size: int = option(32, "B: windows of text in a batch")
    block_size: int = option(32, "T: characters in a window, the context")
    n_head: int = option(8, "H: attention heads")
    n_embd: int = option(128, "C: width of the embeddings; each head has D = C / H channels")
    learning_rate: float = option(4e-3, "AdamW's learning rate at the first step; it then falls linearly to 0")
    max_iters: int = option(900, "training steps")
    eval_interval: int = option(300, "steps between evaluations")

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over a graph's edges. Takes x (B, T, C), returns what each token read, (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd)  # what a token looks for
        self.key = nn.Linear(config.n_embd, config.n_embd)  # what it can be found by
        self.value = nn.Linear(config.n_embd, config.n_embd)  # what it hands to those who read it
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        # The C channels are split into H heads of D. H goes before T, so that @ works on each head by itself.
        q = self.query(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        k = self.key(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        v = self.value(x).view(B, T, self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
        adjacency = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # (T, T)
        # A score is a sum of D products, so its standard deviation grows like sqrt(D). Without the division, softmax
        # would put nearly all weight on one key.
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        scores = scores.masked_fill(~adjacency, -math.inf)
        weights = scores.softmax(dim=-1)  # (B, H, T, T), each row sums to 1
        read = weights @ v  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C))  # the heads, concatenated and mixed


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

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm_1(x))
        x = x + self.feed_forward(self.norm_2(x))
        return x


class LanguageModel(nn.Module):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.block = Block(config)
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        x = self.block(x)  # (B, T, C)
        return self.head(self.norm(x))  # (B, T, V)


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
    logits = model(x)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=reduction)


@torch.inference_mode()
def evaluate(model: nn.Module, data: Dataset) -> float:
    """The mean loss of a character over the validation split, in nats."""
    model.eval()
    loss, characters = 0.0, 0
    for x, y in data.windows("val"):
        loss += loss_of(model, x, y, "sum").item()
        characters += data.characters(y)
    model.train()
    return loss / characters


def train(config: Config, data: Dataset, model: nn.Module):
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    run = Run(config, data, model, optimizer)  # keeps the folder: losses, checkpoints, resumption, Ctrl-C
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - (step - 1) / config.max_iters)
        x, y = data.batch("train")  # (B, T) each; y is x one token further on
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(model, data) if due else None)
    run.finish(generate)


# ---------------------------------------------------------------- main()


def main(argv=None):
    config = parse_config(Config, argv)  # flags, over a TOML file, over the defaults; the device is chosen
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = LanguageModel(config, data.vocab_size).to(config.device)
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
