"""Before attention: each token gets the mean of itself and of all tokens before it, by a loop."""

import torch
from torch import Tensor


def by_loop(x: Tensor) -> Tensor:
    """Takes x (T, C), returns (T, C): row i is the mean of the rows 0 to i."""
    means = []
    for i in range(len(x)):
        means.append(x[: i + 1].mean(dim=0))
    return torch.stack(means)
