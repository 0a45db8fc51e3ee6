"""What does graph attention cost, beside the dot product and beside PyTorch Geometric, where that is installed?

python -m studies.graph_attention

The first table is attention alone, forward and backward, with what its linear maps would give already there. The second
is a whole step of training. The columns: the median time, its range over the rounds, the ratio to the first row, for
steps the characters that are trained on in a second, and the memory above that of the inputs and the weights.

PyTorch Geometric's GATConv and GATv2Conv read a list of edges, which studies/pyg.py makes anew from the adjacency at
each call. That is part of their time, less than a hundredth of it.
"""

import importlib.util

import torch
from torch import nn
from torch.nn import functional as F

from pyg_free_gat import GAT, LAYERS, GATv2, adjacency_of, edges_of, gatv2_scores
from results import run_main
from results.options import try_compiler
from studies import measure
from studies.speed import training_step

# ---------------------------------------------------------------- Attention alone


class Given(nn.Module):
    """Stands in for a linear map and returns what the map would, (..., C), without computing it."""

    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward(self, x):
        return self.given.view(*x.shape[:-1], -1)


class Fused(nn.Module):
    """The attention of gpt.py but for its output projection: the kernel is told that the graph is causal."""

    def __init__(self, in_channels, out_channels, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(in_channels, heads * out_channels) for _ in range(3))

    def forward(self, x, adjacency):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class PlainGATv2(GATv2):
    """GATv2 with its scores from the plain function, and autograd's backward pass through it."""

    def forward(self, x, adjacency):
        src, dst = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.lin_l, self.lin_r))
        scores = gatv2_scores(src, dst, self.att[0], self.negative_slope)
        return self.aggregate(scores, src, edges_of(adjacency, x))


LINEAR = ("lin", "lin_l", "lin_r", "query", "key", "value")


def causal(T):
    return adjacency_of("causal", torch.arange(T))


def core(build, compile=False, sizes=(64, 128, 6, 64), graph=causal):
    """A case: a layer forward and backward, with what its linear maps would give already there.

    sizes: B, T, H and D. graph: a function that takes T and returns the adjacency (T, T).
    """

    def case(flags):
        B, T, H, D = (2, 16, 2, 8) if flags.quick else sizes
        layer = build(H * D, D, heads=H).to(flags.device)
        linears = [name for name, _ in layer.named_modules() if name.split(".")[-1] in LINEAR]
        for name in linears:
            layer.set_submodule(name, Given(nn.Parameter(torch.randn(B, T, H * D, device=flags.device))))
        if compile:
            try_compiler(flags.device)
            layer = torch.compile(layer)
        weights = torch.randn(B, T, H * D, device=flags.device)
        adjacency = graph(T).to(flags.device)

        def call():
            layer.zero_grad()
            layer(weights, adjacency).backward(weights)

        return call

    return case


# ---------------------------------------------------------------- The tables


def peers():
    """PyTorch Geometric's layers as those in LAYERS: name -> layer(in_channels, out_channels, heads=H)."""
    from torch_geometric.nn import DenseGATConv, GATConv, GATv2Conv

    from studies.pyg import PyG

    class Dense(PyG):
        """One of its dense layers, which reads the adjacency itself."""

        def forward(self, x, adjacency):
            return self.conv(x, adjacency, add_loop=False)

    return {
        "PyG DenseGATConv": lambda C, D, heads: Dense(DenseGATConv(C, D, heads)),
        "PyG GATConv": lambda C, D, heads: PyG(GATConv(C, D, heads, add_self_loops=False)),
        "PyG GATv2Conv": lambda C, D, heads: PyG(GATv2Conv(C, D, heads, add_self_loops=False)),
    }


def tables():
    cores = {
        "dot product, fused kernel": core(Fused),
        "GAT": core(GAT),
        "GATv2": core(GATv2),
        "GATv2, compiled": core(GATv2, compile=True),
        "GATv2, the plain line": core(PlainGATv2),
    }
    sizes = dict(n_layer=6, n_head=6, n_embd=384, block_size=128, batch_size=16)
    sizes |= dict(dropout=0.2, optimizer="adamw", dtype="float32")
    steps = {
        "gpt.py": training_step("gpt", **sizes),
        "--layer dot": training_step("pyg_free_gat", **sizes, layer="dot"),
        "--layer gat": training_step("pyg_free_gat", **sizes, layer="gat"),
        "--layer gatv2": training_step("pyg_free_gat", **sizes, layer="gatv2"),
        "--layer gatv2 --compile": training_step("pyg_free_gat", **sizes, layer="gatv2", compile=True),
    }
    if importlib.util.find_spec("torch_geometric"):
        LAYERS.update(peers())
        cores |= {name: core(layer) for name, layer in peers().items()}
        steps |= {name: training_step("pyg_free_gat", **sizes, layer=name) for name in ("PyG GATConv", "PyG GATv2Conv")}
    return {
        "Attention without its linear maps, forward and backward: B=64 T=128 H=6 D=64, float32": cores,
        "A training step: 6 layers, C=384, T=128, B=16, dropout 0.2, AdamW, float32": steps,
    }


if __name__ == "__main__":
    run_main(lambda: measure.main(tables))
