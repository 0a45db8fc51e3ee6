"""From gpt.py to modern_gpt.py, one idea a row: the validation loss after equal steps and after equal seconds.

python -m studies.ablation  # trains and measures what results/reproduced/ does not have yet, prints the table
python -m studies.ablation --row gpt.py --seed 2

A row is the row before and one idea more, put into a model of gpt.py, up to modern_gpt.py as it stands. Last comes
an idea tried on top of that and left out. All train on 16 windows of 256 characters a step, with a learning rate of
0.01 and otherwise modern_gpt.py's defaults for a CPU, but fewer steps. How long a step takes is measured at the end,
all rows by turns, so that whatever slows the machine slows all of them. Equal seconds are as many steps as a row then
makes in the time of gpt.py's.
"""

import csv
import io
import json
import math
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

import gpt
import modern_gpt
import windowed_gpt
from data import Dataset, UserError, choose_dtype
from results import metrics, option, parse, run_main, shared_learning_rate
from results.plot import RESULTS
from studies.measure import by_turns

PUBLISHED, REPRODUCED = RESULTS / "published", RESULTS / "reproduced"
LOSSES, PACES = "ablation.csv", "ablation_seconds.csv"
STEPS, EVAL_INTERVAL, SEEDS = 120, 30, (1, 2, 3)
SIZES = {"batch_size": 16, "block_size": 256, "learning_rate": 1e-2}


class PerHead(nn.Module):
    """A linear map to queries or keys, then something done to each head's part of what it gives."""

    def __init__(self, linear, n_head, function):
        super().__init__()
        self.linear, self.n_head, self.function = linear, n_head, function

    def forward(self, x):
        x = self.linear(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, H, T, D)
        return self.function(x).transpose(1, 2).flatten(2)  # (B, T, C)


def to_queries_and_keys(model, function):
    for block in model.blocks:
        for name in ("query", "key"):
            linear = getattr(block.attention, name)
            setattr(block.attention, name, PerHead(linear, block.attention.n_head, function))


def rotary(model):
    def rotate(x):
        return modern_gpt.rotate(x, modern_gpt.rotation_of(torch.arange(x.shape[2], device=x.device), x.shape[3]))

    to_queries_and_keys(model, rotate)
    nn.init.zeros_(model.position_embedding.weight).requires_grad_(False)


def rms_norm(model):
    for block in model.blocks:
        block.norm_1, block.norm_2 = (nn.RMSNorm(model.config.n_embd, elementwise_affine=False) for _ in range(2))
    model.norm = nn.RMSNorm(model.config.n_embd, elementwise_affine=False)


def qk_norm(model):
    to_queries_and_keys(model, lambda x: 2**0.5 * modern_gpt.norm(x))


def relu2(model):
    for block in model.blocks:
        block.feed_forward[1] = modern_gpt.ReLU2()


def no_biases(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.bias = None


def zero_init(model):
    for block in model.blocks:
        nn.init.zeros_(block.attention.projection.weight)
        nn.init.zeros_(block.feed_forward[2].weight)


def as_it_is(model):
    """Changes nothing: the idea is one of training, see trainer(), or is there already."""


IDEAS = {
    "+ rotary positions": rotary,
    "+ RMSNorm": rms_norm,
    "+ QK-norm": qk_norm,
    "+ ReLU²": relu2,
    "+ no biases": no_biases,
    "+ zero-initialised projections": zero_init,
    "+ trapezoid": as_it_is,
    "+ sequence length warm-up": as_it_is,
}


class Same(nn.Module):
    """In place of a short convolution."""

    def forward(self, x, cache=None, past=0):
        return x


def no_convolutions(model):
    for block in model.blocks:
        block.conv_1, block.conv_2 = Same(), Same()


class SoftWindow(windowed_gpt.SoftWindow):
    """The attention of windowed_gpt.py for queries and keys as modern_gpt.py makes them."""

    def forward(self, x, rotation, cache=None, past=0):
        linears = (self.query, self.key, self.value)
        q, k, v = (f(x).unflatten(-1, (self.n_head, -1)).transpose(1, 2) for f in linears)  # (B, H, T, D) each
        q, k = (modern_gpt.rotate(modern_gpt.norm(part), rotation) for part in (q, k))
        if cache is not None:
            cache[:, :, :, past : past + x.shape[1]] = torch.stack((k, v))
            k, v = cache[:, :, :, : past + x.shape[1]]
        read = self.attend(x, 2 * q, k, v, past)  # modern_gpt.py's scores are twice as large
        return self.projection(read.transpose(1, 2).flatten(2))


def soft_windows(model):
    for block in model.blocks:
        theirs, block.attention = block.attention, SoftWindow(model.config).to(model.head.weight)
        for name in ("query", "key", "value", "projection"):
            setattr(block.attention, name, getattr(theirs, name))
        nn.init.normal_(block.attention.window.weight, std=0.02)
        nn.init.zeros_(block.attention.window.bias)


# What modern_gpt.py's own model loses or is given: the last ideas, and one tried on top of them.
OF_MODERN = {
    "+ untied head": no_convolutions,
    "+ short convolutions: modern_gpt.py": as_it_is,
    "+ soft windows of windowed_gpt.py; left out": soft_windows,
}
ROWS = ["gpt.py", *IDEAS, *OF_MODERN]


def build(row, config, vocab_size):
    """The model of a row: (B, T) ids in, (B, T, V) logits out."""
    if row in ROWS[: len(IDEAS) + 1]:
        model = gpt.GPT(config, vocab_size)
        for idea in list(IDEAS.values())[: ROWS.index(row)]:
            idea(model)
    else:
        model = modern_gpt.GPT(config, vocab_size)
        OF_MODERN[row](model)
    return model


def trainer(row, seed, **sizes):
    """A row's model, its data, and a function that takes one step of training, of a number from 1 to STEPS."""
    config = modern_gpt.Config(**SIZES | sizes, seed=seed, max_iters=STEPS, device="cpu")
    config.dtype, _ = choose_dtype(config.dtype, config.device)
    adopted = ROWS[1 : ROWS.index(row) + 1]
    rate_at = (modern_gpt if "+ trapezoid" in adopted else gpt).learning_rate_at
    torch.manual_seed(seed)
    data = Dataset(config)
    model = build(row, config, data.vocab_size)
    optimizers = modern_gpt.make_optimizers(config, model)
    learning_rate = shared_learning_rate(optimizers, config.device)

    def step(number):
        learning_rate.fill_(rate_at(number, config))
        T = modern_gpt.context_at(number, config) if "+ sequence length warm-up" in adopted else config.block_size
        modern_gpt.update(model, optimizers, [data.batch("train", T)])

    return model, data, step


def train(row, seed, **sizes):
    """Trains a row; yields the step and the validation loss after every EVAL_INTERVAL steps."""
    model, data, step = trainer(row, seed, **sizes)
    for number in range(1, STEPS + 1):
        step(number)
        if number % EVAL_INTERVAL == 0:
            yield number, modern_gpt.evaluate(model, data)


def read(file, *key):
    """What a file holds: values of the columns `key` -> list of the other values, as finite numbers.

    A last row that was cut off is left out. Raises UserError for a file that is something else.
    """
    found = {}
    try:
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        whole = text[: text.rfind("\n") + 1]
        for line in csv.DictReader(io.StringIO(whole)):
            if [*line] == [*line.values()]:  # the head once more: two processes began the file at the same moment
                continue
            numbers = [float(line[name]) for name in line if name not in key]
            if not all(map(math.isfinite, numbers)):
                raise ValueError("not all of its numbers are finite")
            found.setdefault(tuple(line[name] for name in key), []).append(numbers)
    except (csv.Error, LookupError, OSError, TypeError, ValueError) as error:
        raise UserError(f"{file}: not a table of {', '.join(key)} ({error})") from None
    return found


def append(file, head, rows):
    """Adds rows to a file, below its head. A last row that a full disk has cut off before is dropped."""
    with open(file, "ab+") as lines:
        lines.seek(0)
        there = lines.read()
        whole = there.rfind(b"\n") + 1
        if whole < len(there):
            lines.truncate(whole)
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows(rows if whole else [head, *rows])
        lines.write(text.getvalue().encode())


def loss_at(run, step):
    """The loss of a run after a step, in a line between the evaluations on either side."""
    for (before, high), (after, low) in zip(run, run[1:]):
        if step <= after:
            return high + (low - high) * (step - before) / (after - before)
    return run[-1][1]


def spread(values, digits=3):
    """The mean, and the standard deviation if there is one: "1.567 ± 0.005"."""
    found = [statistics.mean(values), *([statistics.stdev(values)] if len(values) > 1 else [])]
    return " ± ".join(f"{value:.{digits}f}" for value in found)


def finished(run, runs=PUBLISHED):
    """The folders of a run's seeds that were trained to their end: gpt, gpt-2, gpt-3 in the folder `runs`."""
    folders = [Path(runs) / f"{run}{end}" for end in ("", "-2", "-3")]
    return [folder for folder in folders if (folder / "sample.txt").exists() and at_its_end(folder)]


def at_its_end(folder):
    """Whether a run made all its steps, and was not stopped by Ctrl-C. Raises UserError for files that are no run's."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))["config"]
        columns = metrics.read(folder)
        return columns["step"][-1] == config["max_iters"] and math.isfinite(columns["val_loss"][-1])
    except (LookupError, OSError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: its config.json or its metrics.csv is damaged ({error})") from None


def table(folder=PUBLISHED):
    """Lines of Markdown."""
    runs, paces = read(folder / LOSSES, "row", "seed"), read(folder / PACES, "row")
    pace = {row: min(seconds for _, seconds in rounds) for (row,), rounds in paces.items()}  # what nothing disturbed
    yield f"| | after {STEPS} steps | after as many seconds as `gpt.py` | ms a step |"
    yield "|---|---|---|---|"
    for row in ROWS:
        if of_row := [run for (name, _), run in runs.items() if name == row]:
            equal_time = time = ""  # where a row was not timed
            if row in pace:
                steps, time = STEPS * pace[ROWS[0]] / pace[row], f"{1000 * pace[row]:.0f}"
                equal_time = spread([loss_at(run, steps) for run in of_row])
            yield f"| {row} | {spread([run[-1][1] for run in of_row])} | {equal_time} | {time} |"


@dataclass
class Flags:
    row: str = option("", "one row instead of all", choices=("", *ROWS))
    seed: int = option(0, "1, 2 or 3: one seed instead of all", within="[0, 3]")


def main(argv=None):
    flags = parse(Flags, argv)
    REPRODUCED.mkdir(exist_ok=True)
    runs = read(REPRODUCED / LOSSES, "row", "seed")
    for seed in [flags.seed] if flags.seed else SEEDS:
        for row in [flags.row] if flags.row else ROWS:
            if (row, str(seed)) not in runs:
                run = [(row, seed, step, f"{loss:.6f}") for step, loss in train(row, seed)]
                print(*run[-1], flush=True)
                append(REPRODUCED / LOSSES, ("row", "seed", "step", "val_loss"), run)
    if not (REPRODUCED / PACES).exists():
        seconds = by_turns({row: partial(trainer(row, 1)[2], STEPS) for row in ROWS}, rounds=16)
        rounds = [(row, n, f"{t:.4f}") for row in seconds for n, t in enumerate(seconds[row], 1)]
        append(REPRODUCED / PACES, ("row", "round", "seconds"), rounds)
    print("\n".join(table(REPRODUCED)))


if __name__ == "__main__":
    run_main(main)
