"""Any convolution of PyTorch Geometric as the attention of a GPT: python -m studies.pyg --max_iters 100"""

import sys

from torch import arange, nn
from torch_geometric.nn import TransformerConv

from pyg_free_gat import LAYERS, main
from results import run_main


class PyG(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, adjacency):  # (B, T, C), (T, T) bool
        B, T, _ = x.shape
        edges = adjacency.T.nonzero().T  # (2, E): from j to i, where i reads from j
        edges = edges[:, None] + T * arange(B, device=x.device)[:, None]  # (2, B, E): B graphs side by side
        return self.conv(x.flatten(0, 1), edges.flatten(1)).unflatten(0, (B, T))


LAYERS["transformer"] = lambda C, D, heads: PyG(TransformerConv(C, D, heads))
if __name__ == "__main__":
    run_main(lambda: main(["--layer", "transformer", *sys.argv[1:]]))
