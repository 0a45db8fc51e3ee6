"""From gpt.py to modern_gpt.py, one idea a row: the validation loss after equal steps and after equal seconds.

python results/ablation.py                          # trains what is missing in the file below, prints the table
python results/ablation.py --row gpt.py --seed 2

A row is the row before and one idea more, put into a model of gpt.py, up to modern_gpt.py as it stands; then come
things tried on top of that and left out. All have the sizes, the learning rate and the weight decay of modern_gpt.py's
defaults for a CPU, and fewer steps. Seconds are those of training alone. Times lie if anything else is running.
"""

import argparse
import csv
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python, run on this file, has put results/ itself

import gpt
import modern_gpt
from data import Dataset, choose_dtype
from results.cli import Parser, run_main

FILE = Path(__file__).resolve().parent / "published" / "ablation.csv"
STEPS, EVAL_INTERVAL, SEEDS = 120, 30, (1, 2, 3)


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


def of_training(model):
    """Nothing of the model: see train()."""


IDEAS = {
    "+ rotary positions": rotary,
    "+ RMSNorm": rms_norm,
    "+ QK-norm": qk_norm,
    "+ ReLU²": relu2,
    "+ no biases": no_biases,
    "+ zero-initialised projections": zero_init,
    "+ trapezoid": of_training,
    "+ sequence length warm-up": of_training,
}


class Softcap(nn.Module):
    def forward(self, logits):
        return 15 * torch.tanh(logits / 15)


def softcap(model):
    model.head = nn.Sequential(model.head, Softcap())


EXTRAS = {"+ logits capped, 15 tanh(x / 15); left out": softcap}
ROWS = ["gpt.py", *IDEAS, "+ untied head: modern_gpt.py", *EXTRAS]


def build(row, config, vocab_size):
    """The model of a row: (B, T) ids in, (B, T, V) logits out."""
    if row in ROWS[: len(IDEAS) + 1]:
        model = gpt.GPT(config, vocab_size)
        for idea in list(IDEAS.values())[: ROWS.index(row)]:
            idea(model)
    else:
        model = modern_gpt.GPT(config, vocab_size)
        if row in EXTRAS:
            EXTRAS[row](model)
    return model


def train(row, seed, **sizes):
    """Trains a row; yields step, seconds of training and validation loss after every EVAL_INTERVAL steps."""
    config = modern_gpt.Config(seed=seed, max_iters=STEPS, device="cpu", **sizes)
    config.dtype, _ = choose_dtype(config.dtype, config.device)
    adopted = ROWS[1 : ROWS.index(row) + 1]
    rate_at = (modern_gpt if "+ trapezoid" in adopted else gpt).learning_rate_at
    torch.manual_seed(seed)
    data = Dataset(config)
    model = build(row, config, data.vocab_size)
    optimizers = modern_gpt.make_optimizers(config, model)
    seconds = 0.0
    for step in range(1, STEPS + 1):
        start = time.perf_counter()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate_at(step, config)
        if "+ sequence length warm-up" in adopted:
            data.block_size = modern_gpt.context_at(step, config)
            data.batch_size = config.batch_size * config.block_size // data.block_size
        loss = modern_gpt.loss_of(model, *data.batch("train"))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        seconds += time.perf_counter() - start
        if step % EVAL_INTERVAL == 0:
            yield step, seconds, modern_gpt.evaluate(model, data)


def read():
    """What FILE holds: (row, seed) -> its (step, seconds, loss)s."""
    runs = {}
    if FILE.exists():
        with open(FILE, encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                run = runs.setdefault((line["row"], int(line["seed"])), [])
                run.append((int(line["step"]), float(line["seconds"]), float(line["val_loss"])))
    return runs


def loss_at(run, seconds):
    """The loss of a run when it had trained for so many seconds, in a line between the evaluations on either side."""
    for (_, before, high), (_, after, low) in zip(run, run[1:]):
        if seconds <= after:
            return high + (low - high) * (seconds - before) / (after - before)
    return run[-1][2]


def spread(losses):
    return f"{statistics.mean(losses):.3f}" + (f" ± {statistics.stdev(losses):.3f}" if len(losses) > 1 else "")


def table(runs):
    """Lines of Markdown. Equal seconds are those that gpt.py takes for all its steps, by the mean of its runs."""
    budget = statistics.mean(run[-1][1] for (row, _), run in runs.items() if row == ROWS[0])
    yield f"| | after {STEPS} steps | after {budget:.0f} s | ms a step |"
    yield "|---|---|---|---|"
    for row in ROWS:
        if of_row := [run for (name, _), run in runs.items() if name == row]:
            pace = statistics.median(1000 * run[-1][1] / run[-1][0] for run in of_row)
            steps, seconds = spread([run[-1][2] for run in of_row]), spread([loss_at(run, budget) for run in of_row])
            yield f"| {row} | {steps} | {seconds} | {pace:.0f} |"


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--row", choices=ROWS, help="one row instead of all")
    parser.add_argument("--seed", type=int, choices=SEEDS, help="one seed instead of all")
    flags = parser.parse_args(argv)
    runs = read()
    for seed in [flags.seed] if flags.seed else SEEDS:
        for row in [flags.row] if flags.row else ROWS:
            if (row, seed) not in runs:
                runs[row, seed] = list(train(row, seed))
                print(row, seed, *runs[row, seed][-1], flush=True)
                new = not FILE.exists()
                with open(FILE, "a", encoding="utf-8", newline="") as file:
                    writer = csv.writer(file, lineterminator="\n")
                    if new:
                        writer.writerow(("row", "seed", "step", "seconds", "val_loss"))
                    writer.writerows((row, seed, n, f"{s:.2f}", f"{loss:.6f}") for n, s, loss in runs[row, seed])
    print("\n".join(table(runs)))


if __name__ == "__main__":
    run_main(main)
