"""Rung 3: several heads side by side, each reading for a purpose of its own.

New against rung 2: the C channels of queries, keys and values are split into H heads of D = C / H. Each head has its
own weights over the same graph, so one may look at the character before and another for the last space. What they
have read is concatenated, and a projection mixes it.

Paper: Vaswani et al., "Attention Is All You Need" (2017, arXiv:1706.03762), section 3.2.2.
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
    n_head: int = option(8, "H: heads of attention")
    n_embd: int = option(128, "C: width of the embeddings, D = C / H to each head")
    learning_rate: float = option(4e-3, "of AdamW at the start; it falls to 0 in a line")
    max_iters: int = option(900, "steps")
    eval_interval: int = option(300, "steps from one evaluation to the next")

    def __post_init__(self):
        if self.n_embd % self.n_head:
            raise ValueError(f"--n_embd {self.n_embd} must be a multiple of --n_head {self.n_head}")


# ---------------------------------------------------------------- Model


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over the edges of a graph: x (B, T, C) in, what each token has read (B, T, C) out."""

    def __init__(self, config):
        super().__init__()
        self.n_head = config.n_head
        self.query = nn.Linear(config.n_embd, config.n_embd)
        self.key = nn.Linear(config.n_embd, config.n_embd)
        self.value = nn.Linear(config.n_embd, config.n_embd)
        self.projection = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x):
        B, T, C = x.shape
        heads = (B, T, self.n_head, C // self.n_head)
        q, k, v = (f(x).view(heads).transpose(1, 2) for f in (self.query, self.key, self.value))  # (B, H, T, D) each
        adjacency = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # (T, T)
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, H, T, T)
        scores = scores.masked_fill(~adjacency, -math.inf)
        weights = scores.softmax(dim=-1)  # (B, H, T, T), each row sums to 1
        read = weights @ v  # (B, H, T, D)
        return self.projection(read.transpose(1, 2).reshape(B, T, C))


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
