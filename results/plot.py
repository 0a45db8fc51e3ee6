"""Draws the loss curves of runs on one picture: validation solid, training faint, the last value beside each.

python results/plot.py draws the runs in results/ whose names do not end in a number, as those moved aside do
(gpt-2026-11-22-143005), and
python results/plot.py results/gpt results/mine --x seconds those two over time.
"""

import argparse
import csv
import itertools
import math
import re
import sys
from pathlib import Path

NAMES = ("step", "tokens", "seconds", "train_loss", "val_loss")  # the columns of metrics.csv
COLUMNS = {"steps": "step", "seconds": "seconds", "tokens": "tokens"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, less yellow
RESULTS = Path(__file__).resolve().parent


def read(folder):
    """The columns of a run's metrics.csv, as lists of floats, None where a row has no value. Raises ValueError."""
    path = Path(folder) / "metrics.csv"
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name]) if row[name] else None for row in rows] for name in NAMES}
    except (KeyError, OSError, ValueError, csv.Error) as error:
        raise ValueError(f"{path}: not the losses of a run ({error})") from None


def plot(folders, path, x="steps"):
    """Draws the runs in `folders` to the picture `path`, over `x`, logarithmic: steps, seconds or tokens."""
    from matplotlib.figure import Figure  # here, since a run needs it only at its end

    figure = Figure(figsize=(8.3, 4.7), layout="constrained")
    axes = figure.subplots()
    labels = []
    for colour, folder in zip(itertools.cycle(COLOURS), folders):
        columns = read(folder)
        axes.plot(*without_gaps(columns[COLUMNS[x]], columns["train_loss"]), color=colour, alpha=0.3, linewidth=1)
        at, loss = without_gaps(columns[COLUMNS[x]], columns["val_loss"])
        if loss:
            axes.plot(at, loss, color=colour, linewidth=2, marker="o", markersize=3)
            labels.append((loss[-1], at[-1], colour, f"{name_of(folder)} {loss[-1]:.3f}"))
    axes.set(xlabel=f"training {x}", ylabel="loss, nats per character", xscale="log")
    axes.set_title("validation loss, and training loss (faint)", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    label(axes, labels)
    figure.savefig(path, dpi=120)


def name_of(folder):
    """The folder's path within results/, or its last part elsewhere."""
    folder = Path(folder).resolve()
    return folder.relative_to(RESULTS).as_posix() if folder.is_relative_to(RESULTS) else folder.name


def without_gaps(x, y):
    """Both without the places where y is None."""
    return [a for a, b in zip(x, y) if b is not None], [b for b in y if b is not None]


def label(axes, labels):
    """Writes each text right of the axes at the height of its loss, the lower ones pushed down off the higher ones."""
    low, high = axes.get_ylim()
    gap, below = 0.05 * (high - low), math.inf
    for loss, at, colour, text in sorted(labels, reverse=True):
        height = below = min(loss, below - gap)
        axes.annotate(
            text,
            (at, loss),
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            arrowprops=dict(arrowstyle="-", color=colour, alpha=0.3, relpos=(0, 0.5)),
        )


def main(argv=None):
    from results.cli import Parser

    runs = sorted(file.parent for file in RESULTS.glob("*/metrics.csv"))
    runs = [run for run in runs if not re.search(r"-\d+$", run.name)]
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=runs, metavar="RUN", help="a run's folder")
    parser.add_argument("--x", choices=COLUMNS, default="steps", help="what the curves are drawn over (steps)")
    parser.add_argument("--out", default=RESULTS / "losses.png", metavar="PICTURE", help="(results/losses.png)")
    flags = parser.parse_args(argv)
    for folder in flags.runs or parser.error("there is no run in results/ yet; python gpt.py makes one"):
        if not (Path(folder) / "metrics.csv").is_file():
            parser.error(f"{folder}: is no run's folder, it has no metrics.csv")
    try:
        plot(flags.runs, flags.out, flags.x)
    except (OSError, ValueError) as error:  # ValueError: losses that are none, a kind of picture that there is not
        parser.error(str(error))
    print(flags.out)


if __name__ == "__main__":
    sys.path.insert(0, str(RESULTS.parent))  # where Python, run on this file, has put results/ itself
    from results.cli import run_main

    run_main(main)
