"""One model that learns from several: modern_gpt.py, trained on what an ensemble predicts as well as on the text.

python -m studies.student --size small --teachers results/published/modern_gpt,results/published/soft_window

This is distillation (Hinton, Vinyals and Dean, arXiv:1503.02531). The text says which character came. The teachers say
how likely each of the others was, which is more to learn from. Both losses are cross-entropies, and --share weighs
them. The teachers have seen the training split alone. The other flags are those of modern_gpt.py.
"""

import os
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import modern_gpt
from data import Dataset, UserError
from modern_gpt import evaluate, generate, make_optimizers  # noqa: F401 (its own too)
from results import Run, option, parse_config, recorded, run_main, shared_learning_rate
from studies.measuring import model_and_text


@dataclass
class Config(modern_gpt.Config):
    teachers: str = option("", "folders of runs whose tokens are characters, with commas between them")
    share: float = option(0.5, "share of the loss that is measured against the teachers", within="[0, 1]")


class GPT(modern_gpt.GPT):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""


def teachers_of(config, data):
    """The models that teach, on the device. Raises UserError unless they can read what the student reads, and were
    trained on this text's training split."""
    models = []
    for folder in filter(None, map(str.strip, config.teachers.split(","))):
        if os.path.realpath(folder) == os.path.realpath(config.out):
            raise UserError(f"--teachers {folder}: a student cannot have its own folder, --out, as its teacher")
        model, theirs = model_and_text(folder)
        if theirs.sha256 != data.sha256:
            raise UserError(f"--teachers {folder}: this run was trained on another text")
        if theirs.tokenizer.state != data.tokenizer.state:
            raise UserError(f"--teachers {folder}: its tokens are not those of this run")
        if theirs.block_size < config.block_size:
            reads = f"it reads {theirs.block_size} characters at a time"
            raise UserError(f"--teachers {folder}: {reads}, less than --block_size {config.block_size}")
        models.append(model.to(config.device).requires_grad_(False))
    if not models:
        raise UserError("--teachers names no run")
    return models


def loss_of(model, teachers, x, y):
    """The mean of both cross-entropies over the characters y (B, T) that follow x (B, T), weighted by `share`."""
    fast = model.config.dtype == "bfloat16"
    with torch.autocast(x.device.type, torch.bfloat16, enabled=fast, cache_enabled=False):
        logits = model(x).float()  # (B, T, V)
        with torch.no_grad():
            p = sum(teacher(x).float().softmax(dim=-1) for teacher in teachers) / len(teachers)  # (B, T, V)
    of_text = F.cross_entropy(logits.flatten(0, 1), y.flatten())
    of_teachers = F.cross_entropy(logits.flatten(0, 1), p.flatten(0, 1))
    return (1 - model.config.share) * of_text + model.config.share * of_teachers


def update(model, optimizers, batches, teachers):
    """As in modern_gpt.py, but for the loss."""
    model.zero_grad()
    loss = 0
    for i, (x, y) in enumerate(batches, 1):
        model.require_backward_grad_sync = i == len(batches)
        micro_loss = loss_of(model, teachers, x, y) / len(batches)
        micro_loss.backward()
        loss += micro_loss.detach()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()
    return loss


def train(config, data, model, teachers):
    optimizers = make_optimizers(config, model)
    run = Run(config, data, model, *optimizers)
    compiled = torch.compile(model, dynamic=False) if config.compile else model
    replica = run.replicate(compiled)
    learning_rate = shared_learning_rate(optimizers, config.device)
    step_on = recorded(config, lambda batches: update(replica, optimizers, batches, teachers))
    for step in run.steps():
        learning_rate.fill_(modern_gpt.learning_rate_at(step, config))
        length = modern_gpt.context_at(step, config)
        loss = step_on([data.batch("train", length) for _ in range(config.grad_accum)])
        due = step % config.eval_interval == 0 or step == config.max_iters
        run.log(step, loss, evaluate(model, data) if due else None)
    run.finish(generate)


def main(argv=None):
    config = parse_config(Config, argv)
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = GPT(config, data.vocab_size).to(config.device)
    train(config, data, model, teachers_of(config, data))


if __name__ == "__main__":
    run_main(main)
