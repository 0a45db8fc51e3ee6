"""Rung 2: one head of masked self-attention lets each character read those before it.

New against rung 1: a character is a vector, to which its position adds another; a query meets the keys of all
characters up to its own, and the softmax of their products weighs the values that it reads. Who may read from whom
is a graph, and the causal mask is its adjacency matrix: adjacency[i, j] is True where i reads from j, for j <= i.

Paper: Vaswani et al., "Attention Is All You Need" (2017, arXiv:1706.03762), equation 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data import Dataset
from results import Flags, Run, option, parse_config, run_main, sample_token

# ---------------------------------------------------------------- Config


@dataclass
class Config(Flags):
    batch_size: int = option(32, "B: windows of text in a step")
    block_size: int = option(32, "T: characters in a window")
    n_embd: int = option(128, "C: width of the embeddings")
    learning_rate: float = option(4e-3, "of AdamW at the start; it falls to 0 in a line")
    max_iters: int = option(900, "steps")
    eval_interval: int = option(300, "steps from one evaluation to the next")


# ---------------------------------------------------------------- Model


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over the edges of a graph: x (B, T, C) in, what each token has read (B, T, C) out."""

    def __init__(self, config):
        super().__init__()
        self.query = nn.Linear(config.n_embd, config.n_embd)
        self.key = nn.Linear(config.n_embd, config.n_embd)
        self.value = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, D) each, one head: D = C
        adjacency = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # (T, T)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, T, T)
        scores = scores.masked_fill(~adjacency, -math.inf)
        weights = scores.softmax(dim=-1)  # (B, T, T), each row sums to 1
        return weights @ v  # (B, T, D)


class LanguageModel(nn.Module):
    """Ids of characters (B, T) in, logits of each one's successor (B, T, V) out."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.attention = Attention(config)
        self.head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, ids):
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        x = self.attention(x)  # (B, T, C)
        return self.head(x)  # (B, T, V)


@torch.inference_mode()
def generate(model, ids, max_new_tokens, **choice):
    """Continues ids (B, T) by one token at a time to (B, T + max_new_tokens); `choice` goes to sample_token."""
    training = model.training
    model.eval()
    for _ in range(max_new_tokens):
        logits = model(ids[:, -model.config.block_size :])[:, -1]  # (B, V), after the last token
        ids = torch.cat((ids, sample_token(logits, **choice)), dim=1)
    model.train(training)
    return ids


# ---------------------------------------------------------------- Training


def loss_of(model, x, y, reduction="mean"):
    """Cross-entropy in nats of the next characters y (B, T) after x (B, T)."""
    logits = model(x)  # (B, T, V)
    return F.cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=reduction)


@torch.inference_mode()
def evaluate(model, data):
    """Nats per character over the whole validation split, each character but the first predicted once, dropout off."""
    model.eval()
    losses = [loss_of(model, x, y, "sum") for x, y in data.windows("val")]
    model.train()
    return sum(loss.item() for loss in losses) / (len(data.splits["val"]) - 1)


def train(config, data, model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    run = Run(config, data, model, optimizer)
    replica = run.replicate(model)
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
