"""Before attention: each token gets the mean of itself and of all tokens before it, by a softmax."""

import torch
from torch import Tensor


def by_softmax(x: Tensor) -> Tensor:
    """Takes x (T, C), returns (T, C): row i is the mean of the rows 0 to i, by a softmax of scores (T, T)."""
    T = len(x)
    adjacency = torch.ones(T, T, dtype=torch.bool).tril()
    scores = torch.zeros(T, T).masked_fill(~adjacency, -torch.inf)
    return scores.softmax(dim=1) @ x
