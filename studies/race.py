"""Who is first at the loss that nanoGPT's quickstart for a CPU comes to? gpt.py and modern_gpt.py against it.

python -m studies.race
python -m studies.race --nanogpt ../nanoGPT  # nanoGPT's own train.py instead of the rebuilt one

nanoGPT does all its 2,000 steps. Ours are as wide as its model and do a number of steps that is fixed in advance, with
a schedule that ends there and one evaluation, over the whole validation split. Their defaults run too. The columns: the
median time from the start of the command to its last evaluation, its range over the rounds, the ratio to nanoGPT, and
the last loss. With --nanogpt that side's loss is its own estimate, from random batches. Rebuilt, it is evaluated over
the whole split after its time was taken.
"""

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
from results.plot import RESULTS
from studies import measure

ROOT = RESULTS.parent
TARGET = 1.886  # nats on the validation split: what nanoGPT's README says of its quickstart for a CPU, 1.88
OURS = [
    "gpt.py --n_embd 128 --block_size 64 --batch_size 64 --max_iters 170 --eval_interval 170",
    "modern_gpt.py --n_embd 128 --warmup_iters 20 --max_iters 80 --eval_interval 80",
    "gpt.py",
    "modern_gpt.py",
]
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


# ---------------------------------------------------------------- Commands


def run(command, folder):
    """Runs `python COMMAND` in a folder: the seconds from its start to its last evaluation, and the loss it printed."""
    start, loss = time.perf_counter(), None
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        piped = dict(stdout=subprocess.PIPE, stderr=errors, encoding="utf-8")
        with subprocess.Popen([sys.executable, "-u", *command], cwd=folder, **piped) as process:
            for line in process.stdout:
                if found := re.search(r"^step .* val (?:loss )?([\d.]+)", line):
                    seconds, loss = time.perf_counter() - start, float(found[1])
        errors.seek(0)
        if process.returncode or loss is None:
            raise UserError(f"{command[0]}: {' '.join(errors.read().splitlines()[-1:]) or 'it failed'}")
    return seconds, loss


def run_nanogpt(flags):
    """nanoGPT's own train.py, by its README's command for a CPU."""
    steps = 2 if flags.quick else 2000
    options = "--compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4"
    options += f" --n_embd=128 --max_iters={steps} --lr_decay_iters={steps} --dropout=0.0 --device={flags.device}"
    with tempfile.TemporaryDirectory() as out:
        command = ["train.py", "config/train_shakespeare_char.py", *options.split(), f"--out_dir={out}"]
        return run(command, flags.nanogpt)


def run_ours(side, flags):
    """A rung's command, with as few steps as it needs."""
    tiny = "--n_layer=1 --n_embd=16 --max_iters=2" if flags.quick else ""
    with tempfile.TemporaryDirectory() as out:
        return run([*side.split(), *tiny.split(), f"--device={flags.device}", f"--out={out}"], ROOT)


def train_rebuilt(flags, answer):
    """Sends through the pipe `answer` a word when training is over, then the loss."""
    model, data = quickstart(flags)
    answer.send("done")
    answer.send(gpt.evaluate(model, data))


def run_rebuilt(flags):
    """nanoGPT's training as it is rebuilt here, in a process of its own."""
    start = time.perf_counter()
    with measure.process(train_rebuilt, flags) as answer:
        answer.recv()
        return time.perf_counter() - start, answer.recv()


# ---------------------------------------------------------------- main()


def race(flags):
    """Yields the one table as measure.report() takes it."""
    runs = {side: [] for side in (CHECKOUT if flags.nanogpt else REBUILT, *OURS)}
    for side in measure.turns(runs, flags.rounds):
        nanogpt = {CHECKOUT: run_nanogpt, REBUILT: run_rebuilt}.get(side)
        runs[side].append(nanogpt(flags) if nanogpt else run_ours(side, flags))
    seconds = {side: [took for took, _ in runs[side]] for side in runs}
    losses = {side: f"{statistics.median(loss for _, loss in runs[side]):.3f}" for side in runs}
    yield (
        f"From the start of a command to its last evaluation; nanoGPT is said to come to {TARGET}",
        seconds,
        {"loss, nats": losses},
    )


def main(argv=None):
    flags = parse(Flags, argv)
    measure.report(flags, race(flags))


if __name__ == "__main__":
    run_main(main)
