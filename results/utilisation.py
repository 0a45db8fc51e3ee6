"""Model FLOP utilisation (PaLM, arXiv:2204.02311): the share of a device's peak that training makes use of."""

import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def peak_flops(device, dtype, seconds=0.5):
    """The floating-point operations a second of a large matrix product in `dtype` on `device`, the best of some."""
    n = 8192 if device.type == "cuda" else 2048
    generator = torch.Generator(device).manual_seed(0)  # of its own, so that a run draws the same numbers as without
    a, b = torch.randn(2, n, n, device=device, dtype=dtype, generator=generator)
    best, end = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < end or best == float("inf"):
        start = time.perf_counter()
        (a @ b)[0, 0].item()  # waits for the device
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


@torch.no_grad()
def training_flops(model, x):
    """The operations that training takes for a token of x (B, T): those of the matrix products forward, three times.

    The way back has two products for each one forward. All pairs of tokens count, masked or not, as in the paper;
    attention is written out for that, since fused kernels are not counted on every device.
    """
    training = model.training
    model.eval()
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    model.train(training)
    return 3 * counter.get_total_flops() / x.numel()
