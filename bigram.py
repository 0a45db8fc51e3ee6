"""Rung 1: each character predicts the next one from a lookup table.

The model is one V x V table: row i holds the logits of what follows character i. It sees one character and no context.
Counting all pairs of characters in the training text gives such a table too. Its loss is printed for comparison.
The training loop is every language model's: draw a batch, take the cross-entropy of the next token, step downhill.

Paper: Shannon, "A Mathematical Theory of Communication" (1948), section 3, English by its digram frequencies.
"""

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
    learning_rate: float = option(1e-1, "AdamW's learning rate at the first step; it then falls linearly to 0")
    max_iters: int = option(900, "training steps")
    eval_interval: int = option(300, "steps between evaluations")


# ---------------------------------------------------------------- Model


class LanguageModel(nn.Module):
    """Takes ids of characters (B, T), returns the logits of what follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.table = nn.Embedding(vocab_size, vocab_size)
        nn.init.zeros_(self.table.weight)  # at first all characters are equally likely: loss ln V

    def forward(self, ids):
        return self.table(ids)  # (B, T, V)


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


def counted_loss(data):
    """The validation loss of a table that is counted: P(j | i) from the pairs in the training split, each count + 1."""
    V = data.vocab_size
    train, val = (torch.zeros(V * V, dtype=torch.long, device=data.device) for _ in range(2))
    for counts, ids in ((train, data.splits["train"]), (val, data.splits["val"])):
        for x, y in zip(ids[:-1].split(2**22), ids[1:].split(2**22)):
            counts += torch.bincount(V * x.long() + y, minlength=V * V)
    table = (train + 1).view(V, V)
    table = (table / table.sum(dim=1, keepdim=True)).log()
    return -(val * table.flatten()).sum().item() / data.characters(data.splits["val"][1:])


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
    if data.vocab_size**2 <= len(data.splits["train"]):
        print(f"a table of counted pairs (each count + 1) has validation loss {counted_loss(data):.4f}")
    else:
        print("pairs are not counted: more pairs are possible than the text has characters")
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
