"""Draws what the README explains.

python results/explain.py draws results/published/graph.png: the graph of a causal context beside its adjacency matrix.
"""

import argparse
import sys
from pathlib import Path

RESULTS = Path(__file__).resolve().parent
BLUE, GREY = "#0072B2", "#BBBBBB"


def graph(path, text="ROME"):
    """The causal graph over the characters of `text`, an arrow from each to all that read it, and its adjacency."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.3, 3.3), layout="constrained")
    tokens, matrix = figure.subplots(1, 2, width_ratios=(1.5, 1))
    T = len(text)
    for i in range(T):
        for j in range(i):
            arrow = dict(arrowstyle="-|>", color=BLUE, shrinkA=14, shrinkB=14, connectionstyle="arc3,rad=-0.35")
            tokens.annotate("", xy=(i, 0), xytext=(j, 0), arrowprops=arrow)
        arrow = dict(arrowstyle="-|>", color=BLUE, shrinkA=0, shrinkB=0, connectionstyle="arc3,rad=1.5")
        tokens.annotate("", xy=(i + 0.08, -0.12), xytext=(i - 0.08, -0.12), arrowprops=arrow)
        tokens.text(i, 0, text[i], ha="center", va="center", fontsize=15, family="monospace", zorder=3,
                    bbox=dict(boxstyle="circle", facecolor="white", edgecolor="black"))  # fmt: skip
        for j in range(T):
            matrix.text(j, i, int(j <= i), ha="center", va="center", color="white" if j <= i else "black")
    tokens.set(xlim=(-0.4, T - 0.6), ylim=(-0.6, 0.65))
    tokens.set_title("each token reads from itself and from all before it", fontsize=10)
    tokens.axis("off")
    adjacency = [[j <= i for j in range(T)] for i in range(T)]
    matrix.pcolormesh(range(T), range(T), adjacency, cmap=ListedColormap(["white", BLUE]), edgecolors=GREY)
    matrix.set(ylim=(T - 0.5, -0.5), aspect="equal", xlabel="source j", ylabel="target i")
    matrix.set_xticks(range(T), text, family="monospace")
    matrix.set_yticks(range(T), text, family="monospace")
    matrix.xaxis.set_ticks_position("top")
    matrix.tick_params(length=0)
    matrix.set_title("adjacency[i, j]: the causal mask", fontsize=10)
    matrix.spines[:].set_visible(False)
    figure.savefig(path, dpi=120)


def main(argv=None):
    from results.cli import Parser

    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = RESULTS / "published" / "graph.png"
    parser.add_argument("--out", default=default, metavar="PICTURE", help="(results/published/graph.png)")
    flags = parser.parse_args(argv)
    graph(flags.out)
    print(flags.out)


if __name__ == "__main__":
    sys.path.insert(0, str(RESULTS.parent))  # where Python, run on this file, has put results/ itself
    from results.cli import run_main

    run_main(main)
