"""Rung 2: one head of masked self-attention lets each character read the characters before it.

New against rung 1: each token becomes a vector, its embedding, and a second vector for its position is added. Three
linear layers make a query, a key and a value from the sum. The dot product of token i's query and token j's key is a
score. A softmax turns the scores of all j into attention weights that sum to 1, and token i reads the values of the
tokens j, averaged with these weights. Such a set of query, key and value is called an attention head. Who may read from
whom is a graph, and the causal mask is its adjacency matrix: adjacency[i, j] is True where i reads from j, which is
where j <= i.

The last linear layer makes logits of what was read. It is also called a head (the language modelling head), and has
nothing to do with an attention head. The comparison with counted pairs is gone: it fits a lookup table alone.

Paper: Vaswani et al., "Attention Is All You Need" (2017, arXiv:1706.03762), equation 1.
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
    n_embd: int = option(128, "C: width of the embeddings and of the one head")
    learning_rate: float = option(4e-3, "AdamW's learning rate at the first step; it then falls linearly to 0")
    max_iters: int = option(900, "training steps")
    eval_interval: int = option(300, "steps between evaluations")


# ---------------------------------------------------------------- Model


class Attention(nn.Module):
    """softmax(Q K^T / sqrt(D)) V over a graph's edges. Takes x (B, T, C), returns what each token read, (B, T, C)."""

    def __init__(self, config):
        super().__init__()
        self.query = nn.Linear(config.n_embd, config.n_embd)  # what a token looks for
        self.key = nn.Linear(config.n_embd, config.n_embd)  # what it can be found by
        self.value = nn.Linear(config.n_embd, config.n_embd)  # what it hands to those who read it

    def forward(self, x: Tensor) -> Tensor:
        B, T, C = x.shape
        q = self.query(x)  # (B, T, D), one head: D = C
        k = self.key(x)  # (B, T, D)
        v = self.value(x)  # (B, T, D)
        adjacency = torch.ones(T, T, dtype=torch.bool, device=x.device).tril()  # (T, T)
        # A score is a sum of D products, so its standard deviation grows like sqrt(D). Without the division, softmax
        # would put nearly all weight on one key.
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])  # (B, T, T)
        scores = scores.masked_fill(~adjacency, -math.inf)
        weights = scores.softmax(dim=-1)  # (B, T, T), each row sums to 1
        return weights @ v  # (B, T, D)


class LanguageModel(nn.Module):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.attention = Attention(config)
        self.head = nn.Linear(config.n_embd, vocab_size)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        x = self.token_embedding(ids) + self.position_embedding(positions)  # (B, T, C)
        x = self.attention(x)  # (B, T, C)
        return self.head(x)  # (B, T, V)


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
