"""How many edges does a character need, and does it matter which? Sparser graphs in place of the causal one.

bash studies/reproduce.sh graphs matched layers     # trains them, which takes hours; the causal ones last
python -m studies.graphs --runs results/reproduced  # draws graphs.png there

The graphs are values of pyg_free_gat.py's --graph, at its default sizes, with GATv2 and with the dot product: windows
of 2 to 64 characters, the causal graph, and four graphs that have about as many edges as a window of 16. Two of those
combine a window of 8 with one other part of BigBird (arXiv:2007.14062), global or random edges; one has all three
parts, and one has columns at multiples of 8, much as the fixed pattern of Sparse Transformers (arXiv:1904.10509). The
picture shows the validation loss over the number of edges of a character, which is how many it reads from, itself
included: a mean over the 128 places of the context.

A table is printed too. It also has the diameter of each graph: how many layers it takes until every character can have
heard of every earlier one. The models have three. Global edges hardly shorten it here: BigBird's global tokens
read all others, but under a causal mask the first characters can read nothing that comes after them.

Some windows were also trained at full size: `bash studies/reproduce.sh full_graphs full`. results/README.md has both.
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
from studies.ablation import PUBLISHED, finished, spread

WINDOWS = ["window:2", "window:4", "window:8", "window:16", "window:32", "window:64", "causal"]
SUMS = ["window:8+global:8", "window:8+random:8", "window:8+stride:8", "window:8+global:4+random:4"]
LAYERS = {"dot": "dot product", "gatv2": "GATv2"}
CAUSAL = {"small": {"dot": "dot", "gatv2": "gatv2"}, "full": {"dot": "full_gpt", "gatv2": "full_pyg_free_gat"}}
CONTEXT = {"small": Config.block_size, "full": Config.full["block_size"]}


def edges(graph, size="small"):
    """How many characters each one reads from, itself included: a mean over the places in a window."""
    adjacency = adjacency_of(graph, torch.arange(CONTEXT[size]), Config.seed)
    return adjacency.sum().item() / len(adjacency)


def diameter(graph, size="small"):
    """How many layers it takes until every character can have heard of every earlier one."""
    adjacency = adjacency_of(graph, torch.arange(CONTEXT[size]), Config.seed)
    reached, layers = adjacency, 1  # reached[i, j]: i has heard of j
    while not reached.equal(torch.ones_like(reached).tril()):
        reached, layers = adjacency.float() @ reached.float() > 0, layers + 1
    return layers


def run_of(layer, graph, size="small"):
    """The name of the run's folder. Those of the causal graph are in other groups of studies/reproduce.sh."""
    if graph == "causal":
        return CAUSAL[size][layer]
    return f"{'full_' if size == 'full' else ''}graph_{layer}_{graph.replace(':', '_').replace('+', '_')}"


def losses(layer, graph, runs=PUBLISHED, size="small"):
    """The last validation loss of each seed that was trained, of those in the folder `runs`."""
    return [read(folder)["val_loss"][-1] for folder in finished(run_of(layer, graph, size), runs)]


def table(runs=PUBLISHED, size="small"):
    """Lines of Markdown."""
    yield f"| graph | edges of a character | diameter | {' | '.join(LAYERS.values())} |"
    yield "|---" * 5 + "|"
    for graph in WINDOWS + SUMS:
        found = [losses(layer, graph, runs, size) for layer in LAYERS]
        if any(found) or size == "small":
            cells = (spread(seeds) if seeds else "" for seeds in found)
            yield f"| {graph} | {edges(graph, size):.1f} | {diameter(graph, size)} | {' | '.join(cells)} |"


def draw(runs):
    figure = Figure(figsize=(8.3, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    for (layer, name), colour in zip(LAYERS.items(), COLOURS):
        seeds = {graph: losses(layer, graph, runs) for graph in WINDOWS + SUMS}
        found = {graph: statistics.mean(its) for graph, its in seeds.items() if its}
        windows = [graph for graph in WINDOWS if graph in found]
        axes.plot(*zip(*((edges(graph), found[graph]) for graph in windows)), color=colour, marker="o", label=name)
        for graph, marker in zip(SUMS, "sD^v"):
            if graph in found:
                axes.plot(edges(graph), found[graph], color=colour, marker=marker, fillstyle="none", linestyle="")
    for graph, marker in zip(SUMS, "sD^v"):  # what the hollow marks are, once for both layers
        axes.plot([], [], color="grey", marker=marker, fillstyle="none", linestyle="", label=graph)
    ticks = {edges(graph): f"{graph.removeprefix('window:')}\n{edges(graph):.1f}" for graph in WINDOWS}
    axes.set(xscale="log", ylabel="validation loss, nats per character")
    axes.set_xticks([*ticks], ticks.values())
    axes.minorticks_off()
    axes.set_xlabel("window, and below it the number of edges of a character (hollow: other graphs)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    return figure


@dataclass
class Flags:
    runs: str = option(str(PUBLISHED), "the folder that has the runs, and gets the picture")

    def __post_init__(self):
        if not any(losses(layer, graph, self.runs) for layer in LAYERS for graph in WINDOWS[:-1] + SUMS):
            raise ValueError(f"--runs {self.runs}: has none of the runs; bash studies/reproduce.sh graphs trains them")


def main(argv=None):
    flags = parse(Flags, argv)
    print("\n".join(table(flags.runs)))
    path = Path(flags.runs) / "graphs.png"
    write_output(path, picture(draw(flags.runs)), MADE_BY.encode())
    print(path)


if __name__ == "__main__":
    run_main(main)
