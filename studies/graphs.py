"""How many edges does a character need, and does it matter which? Sparser graphs in place of the causal one.

bash studies/reproduce.sh graphs   # trains them, which takes hours
python -m studies.graphs           # draws graphs.png into results/published/

The graphs are options --graph of pyg_free_gat.py, at its default sizes, with GATv2 and with the dot product: windows of
4 to 64 characters, the causal graph, and four graphs that have about as many edges as a window of 16. Two of those are
the parts of BigBird (arXiv:2007.14062), and one is all of it. The picture shows the validation loss over the edges of a
character, a mean over its 128 places in the window. The table in results/README.md also has the diameter of each graph:
how many layers it takes until every character can have heard of every earlier one. The models have three.
"""

import statistics
from dataclasses import dataclass
from pathlib import Path

import torch
from matplotlib.figure import Figure

from data.files import write_output
from pyg_free_gat import Config, adjacency_of
from results import option, parse, run_main
from results.metrics import read
from results.plot import COLOURS, MADE_BY, picture
from studies.ablation import PUBLISHED

WINDOWS = ["window:4", "window:8", "window:16", "window:32", "window:64", "causal"]
SUMS = ["window:8+global:8", "window:8+random:8", "window:8+stride:8", "window:8+global:4+random:4"]
LAYERS = {"dot": "dot product", "gatv2": "GATv2"}


def edges(graph):
    """From how many characters one reads, itself included: a mean over the places in a window."""
    adjacency = adjacency_of(graph, torch.arange(Config.block_size), Config.seed)
    return adjacency.sum().item() / len(adjacency)


def diameter(graph):
    """How many layers it takes until every character can have heard of every earlier one."""
    adjacency = adjacency_of(graph, torch.arange(Config.block_size), Config.seed)
    reached, layers = adjacency, 1  # reached[i, j]: i has heard of j
    while not reached.equal(torch.ones_like(reached).tril()):
        reached, layers = adjacency.float() @ reached.float() > 0, layers + 1
    return layers


def losses(layer, graph):
    """The last validation loss of each seed that was trained."""
    name = layer if graph == "causal" else f"graph_{layer}_{graph.replace(':', '_').replace('+', '_')}"
    folders = [PUBLISHED / f"{name}{end}" for end in ("", "-2", "-3")]
    return [read(folder)["val_loss"][-1] for folder in folders if (folder / "sample.txt").exists()]


def draw():
    figure = Figure(figsize=(8.3, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (layer, name), colour in zip(LAYERS.items(), COLOURS):
        found = {graph: statistics.mean(losses(layer, graph)) for graph in WINDOWS + SUMS if losses(layer, graph)}
        windows = [graph for graph in WINDOWS if graph in found]
        axes.plot(*zip(*((edges(graph), found[graph]) for graph in windows)), color=colour, marker="o", label=name)
        for graph, marker in zip(SUMS, "sD^v"):
            if graph in found:
                axes.plot(edges(graph), found[graph], color=colour, marker=marker, fillstyle="none", linestyle="")
                axes.annotate(
                    graph, (edges(graph), found[graph]), (8, 0), textcoords="offset points", fontsize=8, va="center"
                )
    ticks = {edges(graph): f"{graph.removeprefix('window:')}\n{edges(graph):.0f}" for graph in WINDOWS}
    axes.set(xscale="log", ylabel="validation loss, nats per character")
    axes.set_xticks([*ticks], ticks.values())
    axes.minorticks_off()
    axes.set_xlabel("window, and the edges of a character (lines: windows; hollow: other graphs)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


@dataclass
class Flags:
    out: str = option(str(PUBLISHED), "the folder for the picture")

    def __post_init__(self):
        if not Path(self.out).is_dir():
            raise ValueError(f"--out {self.out}: is no folder")


def main(argv=None):
    flags = parse(Flags, argv)
    write_output(Path(flags.out) / "graphs.png", picture(draw()), MADE_BY.encode())
    print(Path(flags.out) / "graphs.png")


if __name__ == "__main__":
    run_main(main)
