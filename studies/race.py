"""Who is first at the loss that nanoGPT's quickstart for a CPU comes to? gpt.py and modern_gpt.py against it.

python -m studies.race
python -m studies.race --nanogpt ../nanoGPT  # nanoGPT's own train.py instead of the rebuilt one

nanoGPT does all its 2,000 steps. Ours train as by default, but evaluate every 20 steps, and stop once the loss over the
whole validation split is at most 1.886. The columns: the median time from the start of the process, evaluations
included, its range over the rounds, the ratio to nanoGPT, and the last loss over the whole split. With --nanogpt that
side's loss is its own estimate, from random batches.
"""

import contextlib
import io
import math
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import gpt
from data import Dataset, UserError
from results import option, parse, run_main
from sample import RUNGS
from studies import measure

TARGET = 1.886  # nats on the validation split: what nanoGPT's quickstart for a CPU comes to
REBUILT = "nanoGPT's quickstart, rebuilt"
CHECKOUT = "nanoGPT's quickstart, its train.py"


@dataclass
class Flags(measure.Flags):
    nanogpt: str = option("", "a checkout of nanoGPT to run instead of what is rebuilt here")

    def __post_init__(self):
        super().__post_init__()
        if self.nanogpt and not Path(self.nanogpt, "train.py").is_file():
            raise ValueError(f"--nanogpt {self.nanogpt}: there is no train.py in it")


# ---------------------------------------------------------------- nanoGPT


def quickstart(flags):
    """nanoGPT's training as its README has it for a CPU, with this repository's model: the model and the data.

    That is a GPT-2 without biases, AdamW in float32, a cosine schedule, and every 250 steps 20 random batches of either
    split to judge by.
    """
    steps, warmup, highest, lowest = (4 if flags.quick else 2000), 100, 1e-3, 1e-4
    sizes = measure.QUICK if flags.quick else dict(batch_size=12, n_layer=4, n_head=4, n_embd=128)
    config = gpt.Config(**sizes | dict(block_size=64), device=flags.device, dtype="float32")
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = gpt.GPT(config, data.vocab_size).to(flags.device)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    matrices, gains = ([p for p in model.parameters() if (p.ndim == 2) == matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step in range(steps + 1):
        fall = (step - warmup) / (steps - warmup)
        rate = (highest + lowest + (highest - lowest) * math.cos(math.pi * fall)) / 2
        for group in optimizer.param_groups:
            group["lr"] = highest * (step + 1) / (warmup + 1) if step < warmup else rate
        if step % 250 == 0:
            model.eval()
            with torch.no_grad():
                for split in ("train", "val"):
                    statistics.mean(gpt.loss_of(model, *data.batch(split)).item() for _ in range(20))
            model.train()
        loss = gpt.loss_of(model, *data.batch("train"))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, data


def run_checkout(flags):
    """Seconds and the last validation loss of nanoGPT's own train.py, by its README's command."""
    steps = 2 if flags.quick else 2000
    options = "--compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4"
    options += f" --n_embd=128 --max_iters={steps} --lr_decay_iters={steps} --dropout=0.0 --device={flags.device}"
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *options.split()]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([*command, f"--out_dir={out}"], cwd=flags.nanogpt, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"--nanogpt {flags.nanogpt}: {' '.join(done.stderr.splitlines()[-1:]) or 'it failed'}")
    return seconds, float(re.findall(r"^step .* val loss ([\d.]+)", done.stdout, re.M)[-1])


# ---------------------------------------------------------------- Ours


class Reached(Exception):
    """Ends a training whose loss is at most the target: (loss,)."""


def until_target(rung, flags):
    """Trains a rung as by default, but for an evaluation every 20 steps. Raises Reached."""
    evaluate = rung.evaluate

    def watched(model, data):
        loss = evaluate(model, data)
        if loss <= TARGET or flags.quick:
            raise Reached(loss)
        return loss

    rung.evaluate = watched
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        sizes = ["--n_layer=1", "--n_embd=16"] if flags.quick else []
        rung.main([*sizes, "--device", flags.device, "--eval_interval", "20", "--out", folder])


def trained_here(side, flags, answer):
    """Sends through the pipe `answer` a word when training is over, then the loss."""
    if side == REBUILT:
        model, data = quickstart(flags)
        answer.send("done")
        answer.send(gpt.evaluate(model, data))
    else:
        try:
            until_target(RUNGS[side.removesuffix(".py")][0], flags)
        except Reached as reached:
            answer.send("done")
            answer.send(*reached.args)


def run_here(side, flags):
    """Seconds from the start of a process to the end of its training, and the loss."""
    start = time.perf_counter()
    with measure.process(trained_here, side, flags) as answer:
        try:
            answer.recv()
            return time.perf_counter() - start, answer.recv()
        except EOFError:
            raise UserError(f"{side} did not come to a loss of {TARGET}") from None


# ---------------------------------------------------------------- main()


def race(flags):
    """Yields the one table as measure.report() takes it."""
    sides = [CHECKOUT if flags.nanogpt else REBUILT, "gpt.py", "modern_gpt.py"]
    runs = {side: [] for side in sides}
    for side in measure.turns(sides, flags.rounds):
        runs[side].append(run_checkout(flags) if side == CHECKOUT else run_here(side, flags))
    seconds = {side: [took for took, _ in runs[side]] for side in sides}
    losses = {side: f"{statistics.median(loss for _, loss in runs[side]):.3f}" for side in sides}
    title = f"From the start to a validation loss of {TARGET}, or to the end of the quickstart"
    yield title, seconds, {"loss, nats": losses}


def main(argv=None):
    flags = parse(Flags, argv)
    measure.report(flags, race(flags))


if __name__ == "__main__":
    run_main(main)
