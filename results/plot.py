"""Draws the loss curves of runs on one picture: validation bold, training faint, the last value beside each.

python results/plot.py                                        # the runs in results/
python results/plot.py results/gpt results/mine --x seconds   # these two, over time

Without RUN it leaves out the runs that were moved aside, whose folders end in a time: gpt-2026-11-22-143005.
"""

import io
import itertools
import re
import sys
import warnings
from pathlib import Path

RESULTS = Path(__file__).resolve().parent
if not __package__:  # run as a file: Python then looks for modules in results/ and not above it
    sys.path.insert(0, str(RESULTS.parent))

from data.files import write_output  # noqa: E402
from results import Parser, run_main  # noqa: E402
from results.metrics import read  # noqa: E402

X = {"steps": "step", "seconds": "seconds", "tokens": "tokens"}
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # Okabe and Ito's, no yellow
MADE_BY = "made by the ladder from a bigram to a GPT"  # in each picture: what has it may be drawn anew


def plot(folders, x="steps"):
    """A figure of the losses of the runs in `folders`, over steps, seconds or tokens on a logarithmic axis."""
    from matplotlib.figure import Figure  # here, since a run needs it only at its end

    figure = Figure(figsize=(8.3, max(4.7, 1 + 0.2 * len(folders))), dpi=120, layout="constrained")
    axes = figure.subplots()
    labels, shown = [], []  # shown: the points that the axes must hold
    for colour, folder, name in zip(itertools.cycle(COLOURS), folders, names_of(folders)):
        columns = read(folder)
        training, validation = (points(columns[X[x]], columns[loss]) for loss in ("train_loss", "val_loss"))
        axes.plot(*zip(*training), color=colour, alpha=0.3, linewidth=1)
        axes.plot(*zip(*validation), color=colour, linewidth=2, marker="o", markersize=3)
        if training:
            at, loss = (validation or training)[-1]
            labels.append((loss, at, colour, f"{name} {loss:.3f}" + ("" if validation else " (training)")))
            # From shortly before its first evaluation; with fewer than two of them, the last decade of its training.
            start = 0.8 * validation[0][0] if len(validation) > 1 else 0.1 * training[-1][0]
            shown += [(at, loss) for at, loss in training + validation if at >= start > 0]
    axes.set(xlabel=f"training {x}", ylabel="loss, nats per character (lower is better)")
    axes.set_title("validation loss, and training loss (faint)", loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    if shown:
        zoom(axes, shown)
    label(axes, labels)
    return figure


def runs_in(folder):
    """The folders of the runs in a folder, by name, but for those that were moved aside."""
    runs = sorted(file.parent for file in Path(folder).glob("*/metrics.csv"))
    return [run for run in runs if not re.search(r"-\d{4}-\d\d-\d\d-\d{6}(-\d+)?$", run.name)]


def names_of(folders):
    """The last part of each folder's path; if two folders share it, as many parts as tell them apart."""
    paths = [Path(folder).resolve() for folder in folders]
    for path in paths:
        tails = (path.parts[-n:] for n in range(1, len(path.parts) + 1))
        yield "/".join(next(t for t in tails if sum(other.parts[-len(t) :] == t for other in {*paths}) == 1))


def points(x, y):
    """The pairs of x and y whose y is not None."""
    return [(a, b) for a, b in zip(x, y) if b is not None]


def zoom(axes, points):
    """Fits the axes to points (x, y), with x logarithmic and numbers like 500 and 20k at its ticks."""
    from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

    (left, right), (low, high) = ((min(numbers), max(numbers)) for numbers in zip(*points))
    space = 0.04 * (high - low) or 0.1
    axes.set(xscale="log", xlim=(left / 1.02, right * 1.02), ylim=(low - space, high + space))
    subs = (1, 2, 3, 5, 7) if right < 30 * left else (1, 2, 5) if right < 5000 * left else (1,)
    axes.xaxis.set_major_locator(MaxNLocator(6) if right < 5 * left else LogLocator(subs=subs))
    thousands = EngFormatter(sep="")  # 20k, 3M
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.5g}" if x < 10_000 else thousands(x))
    axes.xaxis.set_minor_formatter(NullFormatter())


def label(axes, labels):
    """Writes each text right of the axes at the height of its loss, moved up or down where another one is near."""
    low, high = axes.get_ylim()
    gap, heights = (high - low) * min(0.05, 1 / max(1, len(labels))), []
    labels = sorted(labels, reverse=True)
    for loss, *_ in labels:
        heights.append(min(loss, heights[-1] - gap) if heights else loss)
    for i in reversed(range(len(labels))):
        heights[i] = max(heights[i], heights[i + 1] + gap if i + 1 < len(labels) else low)
    for (loss, at, colour, text), height in zip(labels, heights):
        axes.annotate(
            text.encode(errors="replace").decode(),  # a folder's name need not be UTF-8
            (at, loss),
            xytext=(1.02, height),
            textcoords=axes.get_yaxis_transform(),
            color=colour,
            va="center",
            parse_math=False,  # nor is a $ in it mathematics
            arrowprops=dict(arrowstyle="-", color=colour, alpha=0.3, relpos=(0, 0.5)),
        )


def picture(figure, suffix=".png"):
    """A figure as the bytes of a file with this suffix. Raises ValueError unless it is .png, .svg or .pdf."""
    if suffix not in (".png", ".svg", ".pdf"):  # the formats that can say who made them, see write_output
        raise ValueError(f"a picture is a .png, .svg or .pdf file, not {suffix}")
    file, metadata = io.BytesIO(), {"Software" if suffix == ".png" else "Creator": MADE_BY}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of a name in letters that the font lacks
        figure.savefig(file, format=suffix[1:], metadata=metadata)
    return file.getvalue()


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", default=runs_in(RESULTS), metavar="RUN", help="folder of a run")
    parser.add_argument("--x", choices=X, default="steps", help="what the curves are drawn over (default: steps)")
    parser.add_argument(
        "--out", default=RESULTS / "losses.png", metavar="PICTURE", help="file to draw to (default: results/losses.png)"
    )
    flags = parser.parse_args(argv)
    if not flags.runs:
        parser.error("there is no run in results/ yet; python gpt.py makes one")
    try:
        content = picture(plot(flags.runs, flags.x), Path(flags.out).suffix or ".png")
    except ValueError as error:  # a metrics.csv without losses, an unknown kind of picture, a wrong MPLBACKEND
        parser.error(str(error))
    write_output(flags.out, content, MADE_BY.encode())
    print(flags.out)


if __name__ == "__main__":
    run_main(main)
