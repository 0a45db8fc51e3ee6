"""Who is first at the loss that nanoGPT's quickstart for a CPU comes to? gpt.py and modern_gpt.py against it.

python -m studies.race --nanogpt ../nanoGPT  # a checkout of github.com/karpathy/nanoGPT
python -m studies.race                       # ours alone

nanoGPT does all its 2,000 steps. Ours are as wide as its model and do a number of steps that is fixed in advance, with
a schedule that ends there and one evaluation, over the whole validation split. Their defaults run too. The columns: the
median time from the start of the command to its last evaluation, its range over the rounds, the ratio to the first row,
and the last loss. nanoGPT's loss is its own estimate, from random batches.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from data import UserError
from results import option, parse, run_main
from results.plot import RESULTS
from studies import measure

ROOT = RESULTS.parent
TARGET = 1.886  # nats on the validation split, as nanoGPT's quickstart for a CPU was measured; its README says 1.88
OURS = [
    "gpt.py --n_embd 128 --block_size 64 --batch_size 64 --max_iters 170 --eval_interval 170",
    "modern_gpt.py --n_embd 128 --batch_size 16 --block_size 256 --warmup_iters 20 --max_iters 80 --eval_interval 80",
    "gpt.py",
    "modern_gpt.py",
]
CHECKOUT = "nanoGPT's quickstart, its train.py"


@dataclass
class Flags(measure.Flags):
    nanogpt: str = option("", "a checkout of nanoGPT, whose train.py then runs too")

    def __post_init__(self):
        super().__post_init__()
        if self.nanogpt and not Path(self.nanogpt, "train.py").is_file():
            raise ValueError(f"--nanogpt {self.nanogpt}: there is no train.py in it")


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


# ---------------------------------------------------------------- main()


def race(flags):
    """Yields the one table as measure.report() takes it."""
    runs = {side: [] for side in ([CHECKOUT] if flags.nanogpt else []) + OURS}
    for side in measure.turns(runs, flags.rounds):
        runs[side].append(run_nanogpt(flags) if side == CHECKOUT else run_ours(side, flags))
    seconds = {side: [took for took, _ in runs[side]] for side in runs}
    losses = {side: f"{statistics.median(loss for _, loss in runs[side]):.3f}" for side in runs}
    yield (
        f"From the start of a command to its last evaluation; nanoGPT comes to {TARGET}",
        seconds,
        {"loss, nats": losses},
    )


def main(argv=None):
    flags = parse(Flags, argv)
    measure.report(flags, race(flags))


if __name__ == "__main__":
    run_main(main)
