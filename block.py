"""Rung 4: a transformer block. Attention is followed by a feed-forward network, and both add to a residual stream.

New against rung 3: attention lets tokens communicate; now a feed-forward network of two layers lets each token compute
on what it has read. Neither replaces the token's vector: each adds to it, so that gradients flow back past both. And
each reads the vector through a LayerNorm, which brings it to mean 0 and variance 1 whatever has been added so far.

Papers: Vaswani et al., "Attention Is All You Need" (2017, arXiv:1706.03762), sections 3.1 and 3.3; the norm stands
before each part, as in Xiong et al. (2020, arXiv:2002.04745).
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data import Dataset, total
from results import Flags, Run, option, parse_config, run_main, sample_token

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    batch_size: int = option(32, "B: windows of text in a batch")
    block_size: int = option(32, "T: characters in a window, the context")
    n_head: int = option(8, "H: attention heads")
    n_embd: int = option(128, "C: width of the residual stream; each head has D = C / H channels")
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

    def forward(self, x):
        B, T, C = x.shape
        # view splits the C channels into heads; transpose puts H before T, so that @ works head by head.
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (f(x).view(heads).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, H, T, D) each
        adjacency = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # (T, T)
        # q . k sums D products, so its deviation grows with sqrt(D); undivided, softmax would settle on a single key.
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        scores = scores.masked_fill(~adjacency, -math.inf)
        weights = scores.softmax(dim=-1)  # (B, H, T, T), each row sums to 1
        read = weights @ v  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C))


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

    def forward(self, x):
        x = x + self.attention(self.norm_1(x))
        x = x + self.feed_forward(self.norm_2(x))
        return x


class LanguageModel(nn.Module):
    """Takes ids of characters (B, T), returns the logits of what follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.block = Block(config)
        self.norm = nn.LayerNorm(config.n_embd)
        self.head = nn.Linear(config.n_embd, vocab_size)
        nn.init.zeros_(self.head.weight)  # at first all characters are about equally likely: loss near ln V

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        x = self.block(x)  # (B, T, C)
        return self.head(self.norm(x))  # (B, T, V)


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
    logits = model(x)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=reduction)


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


def train(config, data, model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    run = Run(config, data, model, optimizer)  # keeps the folder: metrics, checkpoints, resumption, Ctrl-C
    replica = run.replicate(model)  # under torchrun, averages gradients over processes; else the model itself
    for step in run.steps():
        optimizer.param_groups[0]["lr"] = config.learning_rate * (1 - (step - 1) / config.max_iters)
        x, y = data.batch("train")  # (B, T), (B, T)
        loss = loss_of(replica, x, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(model, data) if due else None)
    run.finish(generate)


# ---------------------------------------------------------------- main()


def main(argv=None):
    config = parse_config(Config, argv)
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = LanguageModel(config, data.vocab_size).to(config.device)
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
