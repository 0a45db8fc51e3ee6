"""Do the layers of pyg_free_gat.py do on a real graph what their paper says? The citations of Cora.

python -m studies.cora                          # PyTorch Geometric downloads Cora
python -m studies.cora --root DIR --seeds 3     # DIR has Cora/raw; these files are pickles, so use those you trust

Cora has 2,708 papers of 7 classes. Each is described by which of 1,433 words it contains; every row is divided by its
sum. Without duplicates and self-citations there are 5,278 citations, and each is an edge in both directions. Training
knows the class of 140 papers. GAT's paper (Velickovic et al., arXiv:1710.10903, table 2) says that 83.0 +- 0.7 % of
1,000 test papers are classified right, over 100 runs: two layers, the first of 8 heads with 8 channels and an ELU, the
second of one head; dropout of 0.6 on the inputs of both and on the attention weights; Adam with a learning rate of
0.005 and a weight decay of 5e-4. Training ends when for 100 epochs the loss of 500 validation papers was above its
lowest value, and their accuracy below its highest. The result is the test accuracy at the last epoch at which the loss
was as low, and the accuracy as high, as at any epoch before. DotProduct and Mean have no dropout of attention weights.

Only 13,264 of the 7.3 million pairs of papers have an edge, self-loops included. So our layers are trained along the
list of edges. They have the same weights as the dense layers and give the same outputs: the last column is the largest
difference between the logits. The time of an epoch is shown for both forms, the memory for the dense one. Beside our
layers are PyTorch Geometric's own, in the same training.
"""

import math
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from data import UserError
from pyg_free_gat import GAT, DotProduct, GATv2, Mean
from results import option, parse, run_main
from studies import measure
from studies.ablation import spread

DROPOUT, PATIENCE = 0.6, 100
OURS = {"GAT": GAT, "GATv2": GATv2, "DotProduct": DotProduct, "Mean": Mean}


@dataclass
class Flags:
    root: str = option("data/planetoid", "folder that has Cora/raw, or into which PyTorch Geometric downloads Cora")
    seeds: int = option(20, "runs of each layer, with seeds 1, 2, ...")
    epochs: int = option(1000, "epochs at most")
    layers: str = option("GAT,GATConv,GATv2,GATv2Conv,DotProduct,Mean", "GATConv and GATv2Conv are PyTorch Geometric's")

    def __post_init__(self):
        self.names, self.device = [name.strip() for name in self.layers.split(",")], "cpu"
        known = [*OURS, "GATConv", "GATv2Conv"]
        if unknown := [name for name in self.names if name not in known]:
            raise ValueError(f"--layers {unknown[0]}: must be some of {', '.join(known)}, separated by commas")


# ---------------------------------------------------------------- Our layers along a list of edges


def scores_and_values(layer, x, j, i):
    """The score of each edge j -> i, (E, H), and the value of each node, (N, H, D), for x (N, C)."""
    if isinstance(layer, GAT):
        h = layer.lin(x).unflatten(-1, (layer.heads, -1))  # (N, H, D)
        src, dst = (h * layer.att_src).sum(dim=-1), (h * layer.att_dst).sum(dim=-1)  # (N, H)
        return F.leaky_relu(dst[i] + src[j], layer.negative_slope), h
    if isinstance(layer, GATv2):
        src, dst = (lin(x).unflatten(-1, (layer.heads, -1)) for lin in (layer.lin_l, layer.lin_r))  # (N, H, D)
        return (F.leaky_relu(dst[i] + src[j], layer.negative_slope) * layer.att[0]).sum(dim=-1), src
    if isinstance(layer, DotProduct):
        q, k, v = (f(x).unflatten(-1, (layer.heads, -1)) for f in (layer.query, layer.key, layer.value))  # (N, H, D)
        return (q[i] * k[j]).sum(dim=-1) / math.sqrt(q.shape[-1]), v
    values = layer.lin(x)[:, None]  # Mean: all neighbours count alike
    return values.new_zeros(len(i), 1), values


def along_edges(layer, x, edges):
    """layer(x, adjacency) for one graph, x (N, C), whose edges j -> i are the columns of `edges`, (2, E) int64."""
    j, i = edges
    scores, values = scores_and_values(layer, x, j, i)
    to = i[:, None].expand_as(scores)  # (E, H)
    highest = scores.new_full((len(x), scores.shape[1]), -math.inf).scatter_reduce(0, to, scores.detach(), "amax")
    weights = (scores - highest[i]).exp()  # a softmax over the edges that end in the same i
    weights = weights / weights.new_zeros(highest.shape).index_add(0, i, weights)[i]
    weights = F.dropout(weights, getattr(layer, "dropout", 0.0), layer.training)
    read = torch.zeros_like(values).index_add(0, i, weights[..., None] * values[j]).flatten(1)  # (N, H * D)
    bias = getattr(layer, "bias", None)
    return read if bias is None else read + bias


# ---------------------------------------------------------------- Training


def layer_of(name, channels, out, heads):
    if name in OURS:
        dropout = {"dropout": DROPOUT} if name in ("GAT", "GATv2") else {}
        return OURS[name](channels, out, heads=heads, **dropout)
    from torch_geometric import nn as pyg

    return getattr(pyg, name)(channels, out, heads=heads, dropout=DROPOUT)


class Network(nn.Module):
    """Two layers, as in the paper. Takes words (N, 1433) and a graph, returns the logits of the classes, (N, 7).

    words is sparse: dropout and the first linear map go only over the words that occur in a paper. graph is
    the edges, (2, E) int64. Our layers also take the adjacency, (N, N) bool, instead.
    """

    def __init__(self, name, channels, classes):
        super().__init__()
        self.first, self.second = layer_of(name, channels, 8, heads=8), layer_of(name, 64, classes, heads=1)
        self.ours = name in OURS

    def forward(self, words, graph):
        kept = F.dropout(words.values(), DROPOUT, self.training)
        x = torch.sparse_coo_tensor(words.indices(), kept, words.shape, is_coalesced=True, check_invariants=False)
        x = F.elu(self.read(self.first, x, graph))
        return self.read(self.second, F.dropout(x, DROPOUT, self.training), graph)

    def read(self, layer, x, graph):
        if graph.dtype == torch.bool:
            return layer(x.to_dense()[None], graph)[0]
        return along_edges(layer, x, graph) if self.ours else layer(x, graph)


def epoch(network, optimizer, data, graph):
    """One step of training and one evaluation. Returns the logits of the evaluation."""
    network.train()
    optimizer.zero_grad()
    logits = network(data.words, graph)[data.train_mask]
    F.cross_entropy(logits, data.y[data.train_mask]).backward()
    optimizer.step()
    network.eval()
    with torch.inference_mode():
        return network(data.words, graph)


def make(name, data, seed):
    torch.manual_seed(seed)
    network = Network(name, data.words.shape[1], int(data.y.max()) + 1)
    return network, torch.optim.Adam(network.parameters(), lr=0.005, weight_decay=5e-4)


def train(name, data, seed, epochs):
    """Trains a network. Returns the accuracy on the test papers in %, how many epochs it took, and the network."""
    network, optimizer = make(name, data, seed)
    lowest, highest, tested, waited, done = math.inf, 0.0, math.nan, 0, 0
    while done < epochs and waited < PATIENCE:
        logits = epoch(network, optimizer, data, data.edges)
        loss = F.cross_entropy(logits[data.val_mask], data.y[data.val_mask]).item()
        right = (logits.argmax(dim=1) == data.y).double()
        accuracy = right[data.val_mask].mean().item()
        if loss <= lowest and accuracy >= highest:
            tested = 100 * right[data.test_mask].mean().item()
        waited = 0 if loss <= lowest or accuracy >= highest else waited + 1
        lowest, highest, done = min(loss, lowest), max(accuracy, highest), done + 1
    return tested, done, network


# ---------------------------------------------------------------- What it costs


def seconds_of(name, data, graph):
    """The median seconds of an epoch, of 5."""
    network, optimizer = make(name, data, 1)
    epoch(network, optimizer, data, graph)
    return statistics.median(measure.timed(partial(epoch, network, optimizer, data, graph), "cpu") for _ in range(5))


def dense_epochs():
    """Title -> layer -> case, as measure.memory_of() takes it."""

    def case(name, flags):
        data = cora(flags.root)
        return partial(epoch, *make(name, data, 1), data, data.adjacency)

    return {"dense": {name: partial(case, name) for name in OURS}}


# ---------------------------------------------------------------- main()


def cora(root):
    """Cora by PyTorch Geometric's own class, with its edges (2, E) and its adjacency (N, N), both with self-loops."""
    try:
        import scipy  # noqa: F401 (the files need it)
        from torch_geometric.datasets import Planetoid
        from torch_geometric.transforms import NormalizeFeatures
        from torch_geometric.utils import add_remaining_self_loops
    except ImportError as error:
        raise UserError(f"{error.name} is not installed: pip install -r requirements-dev.txt") from None
    try:
        data = Planetoid(root, "Cora", transform=NormalizeFeatures())[0]
        data.validate()
        masks = (data.train_mask, data.val_mask, data.test_mask)
        if not data.x.isfinite().all() or not all(mask.any() for mask in masks):
            raise ValueError("no numbers, or no papers to train on, to validate or to test")
    except Exception as error:  # no network, no folder, or whatever reading a damaged file raises
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
        why = f"({why}); if the files there were damaged, also remove {Path(root, 'Cora', 'processed')}"
        raise UserError(f"--root {root}: Cora can be neither read from there nor downloaded {why}") from None
    data.words = data.x.to_sparse()
    data.edges = add_remaining_self_loops(data.edge_index)[0]
    data.adjacency = torch.zeros(data.num_nodes, data.num_nodes, dtype=torch.bool)
    data.adjacency[data.edges[1], data.edges[0]] = True  # an edge j -> i: i reads from j
    return data


def main(argv=None):
    flags = parse(Flags, argv)
    data = cora(flags.root)
    print(f"{data.num_nodes:,} papers, {data.edges.shape[1]:,} edges with self-loops")
    heads = ["layer", "test accuracy, %", "seeds", "epochs", "an epoch, s", "an epoch, dense, s", "memory, dense, MB"]
    heads.append("logits differ by")
    print(f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", sep="\n")
    for name in flags.names:
        accuracies, epochs, networks = zip(*(train(name, data, n, flags.epochs) for n in range(1, flags.seeds + 1)))
        cells = [name, spread(accuracies, 1), flags.seeds, f"{statistics.mean(epochs):.0f}"]
        cells.append(f"{seconds_of(name, data, data.edges):.3f}")
        if name in OURS:
            with torch.inference_mode():
                logits = [networks[0](data.words, graph) for graph in (data.edges, data.adjacency)]
            cells.append(f"{seconds_of(name, data, data.adjacency):.2f}")
            memory = measure.memory_of(dense_epochs, "dense", name, flags)
            cells += [memory, f"{(logits[0] - logits[1]).abs().max():.0e}"]
        cells += [""] * (len(heads) - len(cells))
        print(f"| {' | '.join(map(str, cells))} |", flush=True)


if __name__ == "__main__":
    run_main(main)
