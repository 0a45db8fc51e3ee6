"""Where does dense graph attention win, and where does a list of edges? Over the nodes of a graph and its density.

python -m studies.density

Attention without its linear maps, forward and backward, over 2,048 nodes in graphs of N, with 8 heads of 8 channels.
The layers of pyg_free_gat.py and PyTorch Geometric's DenseGATConv take the adjacency, (N, N). Its GATConv and GATv2Conv
take a list of edges, which is made anew at each call; that is part of their time. The columns: the median time, its
range over the rounds, the ratio to the first row, and the memory above that of the inputs and the weights.
"""

import importlib.util
from functools import partial

import torch

from data import UserError
from pyg_free_gat import GAT, GATv2
from results import run_main
from studies import measure
from studies.graph_attention import core, peers

NODES, H, D = 2048, 8, 8
DENSITIES = {"5 neighbours a node": lambda N: 5 / N, "5% of all pairs": lambda _: 0.05, "half of all": lambda _: 0.5}


def graph(N, density):
    """A random graph in which every node reads from itself, (N, N) bool."""
    torch.manual_seed(0)
    return (torch.rand(N, N) < density) | torch.eye(N, dtype=torch.bool)


def tables():
    if not importlib.util.find_spec("torch_geometric"):
        raise UserError("torch_geometric is not installed: pip install -r requirements-dev.txt")
    layers = {"GAT": GAT, "GATv2": GATv2, **peers()}
    return {
        f"{NODES // N} graphs of {N:,} nodes, {name}": {
            layer: core(build, sizes=(NODES // N, N, H, D), graph=partial(graph, density=min(1, density(N))))
            for layer, build in layers.items()
        }
        for N in (32, 256, 2048)
        for name, density in DENSITIES.items()
    }


if __name__ == "__main__":
    run_main(lambda: measure.main(tables))
