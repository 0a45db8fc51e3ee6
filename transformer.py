"""Rung 5: depth. Blocks are stacked, which makes the transformer of GPT-2.

New against rung 4: several blocks, one after the other. The model is larger too, reads longer windows, and sees four
times as many characters a step. What such a deep model needs to train well:
- weights start small, those that write to the residual stream smallest (initialize);
- the output layer shares its weights with the token embedding: weight tying (the end of GPT.forward);
- dropout: in training, a fraction of the activations is set to 0, so that the model cannot learn the text by heart (off
  by default, as 600 steps read the text only 2.4 times);
- weight decay: AdamW pulls the weight matrices in the blocks towards 0, for the same reason, and no other parameters
  (make_optimizer). So far it was PyTorch's default of 0.01 for all of them;
- the learning rate rises before it falls (warm-up), and a gradient that is too long is shortened (gradient clipping).

Paper: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), section 2.3: GPT-2.
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
    block_size: int = option(128, "T: characters in a window, the context")
    n_layer: int = option(3, "transformer blocks", within="[1, 1000)")
    n_head: int = option(4, "H: attention heads")
    n_embd: int = option(192, "C: width of the residual stream; each head has D = C / H channels")
    dropout: float = option(0.0, "fraction of activations set to 0 during training", within="[0, 1)")
    learning_rate: float = option(5e-3, "highest learning rate, after warm-up")
    weight_decay: float = option(0.1, "weight decay of the blocks' matrices")
    warmup_iters: int = option(50, "steps in which the learning rate rises linearly from 0", within="[0, 1e9)")
    max_iters: int = option(600, "training steps")
    eval_interval: int = option(100, "steps between evaluations")

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
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.dropout(self.attention(self.norm_1(x)))
        x = x + self.dropout(self.feed_forward(self.norm_2(x)))
        return x


class GPT(nn.Module):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(vocab_size, config.n_embd)
        self.position_embedding = nn.Embedding(config.block_size, config.n_embd)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.n_embd)
        self.initialize()

    def initialize(self):
        """As in GPT-2: biases are 0, and weights are normal with standard deviation 0.02.

        Two layers of each block write to the residual stream: the projection and the last of the feed-forward network.
        Their standard deviation is 0.02 / sqrt(2 n_layer), so that the sum of all that they write is as large in a deep
        model as in a shallow one.
        """
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim == 2:
                writes = name.endswith(("projection.weight", "feed_forward.2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layer) if writes else 0.02)

    def forward(self, ids: Tensor) -> Tensor:
        positions = torch.arange(ids.shape[1], device=ids.device)  # (T,)
        x = self.dropout(self.token_embedding(ids) + self.position_embedding(positions))  # (B, T, C)
        for block in self.blocks:
            x = block(x)  # (B, T, C)
        # Weight tying (arXiv:1608.05859): the output layer shares its weights with the token embedding.
        return F.linear(self.norm(x), self.token_embedding.weight)  # (B, T, V)


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


def make_optimizer(config, model):
    """AdamW, with weight decay for the matrices in the blocks alone: not for embeddings, biases and LayerNorms."""
    matrices = [p for p in model.blocks.parameters() if p.ndim == 2]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "blocks" not in name]
    groups = [{"params": others, "weight_decay": 0.0}, {"params": matrices, "weight_decay": config.weight_decay}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)  # betas of GPT-3


def learning_rate_at(step, config):
    """Rises linearly to `learning_rate` in the first `warmup_iters` steps (warm-up), then falls linearly to 0.

    A run that is shorter than its warm-up only rises.
    """
    rise = step / max(1, config.warmup_iters)
    fall = (config.max_iters + 1 - step) / max(1, config.max_iters + 1 - config.warmup_iters)
    return config.learning_rate * min(rise, fall)


def train(config: Config, data: Dataset, model: nn.Module):
    optimizer = make_optimizer(config, model)
    run = Run(config, data, model, optimizer)  # keeps the folder: losses, checkpoints, resumption, Ctrl-C
    for step in run.steps():
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(step, config)
        x, y = data.batch("train")  # (B, T) each; y is x one token further on
        loss = loss_of(model, x, y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)  # all gradients together get a length of at most 1
        optimizer.step()
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(model, data) if due else None)
    run.finish(generate)


# ---------------------------------------------------------------- main()


def main(argv=None):
    config = parse_config(Config, argv)  # flags, over a TOML file, over the defaults; the device is chosen
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = GPT(config, data.vocab_size).to(config.device)
    train(config, data, model)


if __name__ == "__main__":
    run_main(main)
