"""Muon: equal to torch's, what it does to singular values, and how few operations a step dispatches."""

import importlib

import pytest
import torch
from conftest import GPTS, Counter, build, tiny_flags

import gpt

SHAPES = [(32, 32), (96, 32), (32, 96), (32, 32), (96, 32)]


def matrices_and_gradients(steps):
    """Matrices to train, and for each of some steps a gradient of each."""
    torch.manual_seed(0)
    return [torch.randn(shape) for shape in SHAPES], [[torch.randn(shape) for shape in SHAPES] for _ in range(steps)]


def step_all(optimizer, parameters, gradients):
    """One step with these gradients at learning rate 0.01."""
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(0.01)
    for parameter, gradient in zip(parameters, gradients):
        parameter.grad = gradient.clone()
    optimizer.step()


def of_torch(parameters):
    return torch.optim.Muon(parameters, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")


def test_in_bfloat16_it_is_the_muon_of_torch():
    """To the last bit on the processors that were tried; the bound allows for another order of bfloat16's sums."""
    start, gradients = matrices_and_gradients(steps=20)
    ours, theirs = ([torch.nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    for optimizer, parameters in ((gpt.Muon(ours, 0.1, torch.bfloat16), ours), (of_torch(theirs), theirs)):
        for step in gradients:
            step_all(optimizer, parameters, step)
    for a, b, before in zip(ours, theirs, start):
        assert (a - b).norm() < 0.05 * (b - before).norm()


def iterated(s):
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return s


@pytest.mark.parametrize("shape", [(24, 24), (40, 12), (12, 40), (1, 7), (7, 1)])
def test_the_iteration_changes_singular_values_alone(shape):
    torch.manual_seed(0)
    M = torch.randn(3, *shape, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    S = iterated(S / S.norm(dim=-1, keepdim=True))
    assert S.min() > 0.68 and S.max() < 1.21
    torch.testing.assert_close(gpt.orthogonalize(M, torch.float64), U * S[:, None] @ Vh, atol=1e-9, rtol=0)


def test_the_band_that_the_coefficients_promise():
    """From 0.002, where a singular value is small beside the others, to 1."""
    torch.manual_seed(0)
    grid = iterated(torch.linspace(0.002, 1, 100_000, dtype=torch.float64))
    assert grid.min() > 0.68 and grid.max() < 1.21
    U, V = (torch.linalg.qr(torch.randn(20, 20)).Q for _ in range(2))
    matrix = U * torch.logspace(0, -2.5, 20) @ V  # in float32
    S = torch.linalg.svdvals(gpt.orthogonalize(matrix[None], torch.float32))
    assert S.min() > 0.67 and S.max() < 1.22


def test_a_gradient_of_rank_one_and_one_of_zero():
    u, v = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    M = torch.stack((u.outer(v), torch.zeros(16, 16)))
    first, second = gpt.orthogonalize(M, torch.float64)
    expected = iterated(torch.tensor(1.0, dtype=torch.float64)) * (u / u.norm()).outer(v / v.norm())
    torch.testing.assert_close(first, expected, atol=1e-9, rtol=0)
    assert not second.any()


def test_a_step_decays_weights_and_has_the_size_of_adamws():
    start, gradients = matrices_and_gradients(steps=1)
    ours = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    step_all(gpt.Muon(ours, 0.1, torch.float32), ours, gradients[0])
    for matrix, before in zip(ours, start):
        update = (matrix.detach() - before * (1 - 0.01 * 0.1)) / 0.01
        assert 0.15 < update.square().mean().sqrt() < 0.25


def test_a_matrix_without_a_gradient_decays_alone():
    start, gradients = matrices_and_gradients(steps=1)
    ours = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    optimizer = gpt.Muon(ours, 0.1, torch.float32)
    step_all(optimizer, ours[1:], gradients[0][1:])
    torch.testing.assert_close(ours[0].detach(), start[0] * (1 - 0.01 * 0.1))


@pytest.mark.parametrize("rung", GPTS)
def test_dtype_moves_both_the_products_and_the_iteration(rung):
    module, model = importlib.import_module(rung), build(rung)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        config = module.Config(**tiny_flags(rung) | {"dtype": name})
        _, muon = module.make_optimizers(config, model)
        assert muon.dtype == dtype


@pytest.mark.parametrize("rung", GPTS)
def test_the_optimizers_of_six_blocks_take_few_operations_a_step(rung):
    module, model = importlib.import_module(rung), build(rung, n_layer=6)
    optimizers = module.make_optimizers(module.Config(**tiny_flags(rung)), model)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    for optimizer in optimizers:
        optimizer.step()  # makes its state
    with Counter() as counter:
        for optimizer in optimizers:
            optimizer.step()
    assert counter.count <= (230 if rung == "windowed_gpt" else 200)  # whose windows are one shape more
