"""Before attention: three ways to give each token the mean of itself and of all tokens before it."""

import torch
from torch import Tensor


def by_loop(x: Tensor) -> Tensor:
    """Takes x (T, C), returns (T, C): row i is the mean of the rows 0 to i."""
    means = []
    for i in range(len(x)):
        means.append(x[: i + 1].mean(dim=0))
    return torch.stack(means)


def by_matrix(x: Tensor) -> Tensor:
    """The same as one product of a matrix (T, T) with x (T, C)."""
    T = len(x)
    adjacency = torch.ones(T, T, dtype=torch.bool).tril()  # i reads from j where j <= i
    weights = adjacency / adjacency.sum(dim=1, keepdim=True)  # each row sums to 1
    return weights @ x


def by_softmax(x: Tensor) -> Tensor:
    """The same with a softmax of scores that are 0 where i may read from j, and minus infinity elsewhere."""
    T = len(x)
    adjacency = torch.ones(T, T, dtype=torch.bool).tril()
    scores = torch.zeros(T, T).masked_fill(~adjacency, -torch.inf)
    return scores.softmax(dim=1) @ x
