"""Graph attention without weights: each token takes, channel by channel, the largest number that a neighbour has.

python -m studies.maximum                              # trains pyg_free_gat.py with --layer max
python sample.py results/pyg_free_gat --layers studies/maximum.py

It gives what PyTorch Geometric's SAGEConv(aggr="max", root_weight=False) does. Of neighbours with the same largest
number, one gets the whole gradient; there, they share it.
"""

import sys

import torch
from torch import Tensor

import pyg_free_gat
from pyg_free_gat import Mean, edges_of
from results import run_main


class Max(Mean):
    """W max_j x_j + b, channel by channel; where a token reads from none, the maximum is 0."""

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        edges = edges_of(adjacency, x)[:, 0]  # (1, T, T) or (B, T, T)
        with torch.no_grad():  # for one i at a time, so that no tensor is (B, T, T, C)
            rows = edges.unbind(dim=-2)  # T of (1, T) or (B, T)
            j = torch.stack([x.masked_fill(~row[..., None], -torch.inf).max(dim=-2).indices for row in rows], dim=-2)
        return self.lin(x.gather(-2, j) * edges.any(dim=-1, keepdim=True).to(x.dtype))


pyg_free_gat.LAYERS["max"] = Max
if __name__ == "__main__":
    sys.argv += ["--layer", "max"]
    run_main(pyg_free_gat.main)
