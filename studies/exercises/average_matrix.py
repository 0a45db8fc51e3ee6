"""Before attention: each token gets the mean of itself and of all tokens before it, by a matrix product."""

import torch
from torch import Tensor


def by_matrix(x: Tensor) -> Tensor:
    """Takes x (T, C), returns (T, C): row i is the mean of the rows 0 to i, by one product of a matrix with x."""
    T = len(x)
    adjacency = torch.ones(T, T, dtype=torch.bool).tril()  # i reads from j where j <= i
    weights = adjacency / adjacency.sum(dim=1, keepdim=True)  # each row sums to 1
    return weights @ x
