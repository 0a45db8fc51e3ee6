"""A convolution of PyTorch Geometric as the attention of a GPT: python -m studies.pyg --max_iters 100

The convolution must need nothing but (x, edge_index), and send messages from source to target alone. With others a
character would depend on later ones: DirGNNConv and flow="target_to_source" go against the edges, and a GINConv with
BatchNorm normalizes over all characters while it trains.
"""

import sys

from torch import arange, nn

from data import UserError
from pyg_free_gat import LAYERS, main
from results import run_main


class PyG(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x, adjacency):  # (B, T, C), (T, T) bool
        B, T, _ = x.shape
        edges = adjacency.nonzero().T.flip(0)  # (2, E): from j to i, where i reads from j
        edges = edges[:, None] + T * arange(B, device=x.device)[:, None]  # (2, B, E): B graphs side by side
        return self.conv(x.flatten(0, 1), edges.flatten(1)).unflatten(0, (B, T))


def transformer(C, D, heads):
    try:
        from torch_geometric.nn import TransformerConv
    except ImportError:
        raise UserError("torch_geometric is not installed: pip install -r requirements-dev.txt") from None
    return PyG(TransformerConv(C, D, heads))


LAYERS["transformer"] = transformer
if __name__ == "__main__":
    sys.argv += ["--layer", "transformer"]
    run_main(main)
