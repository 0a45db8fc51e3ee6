"""Losses that fall to known values, and the loss itself."""

import collections
import importlib
import math
from types import SimpleNamespace

import pytest
import torch
from conftest import GPTS, RUNGS, build
from torch.nn import functional as F

import bigram
import gpt
import modern_gpt
from data import Dataset, UserError, corpus


def dataset(path="", block_size=16, batch_size=4):
    return Dataset(
        SimpleNamespace(
            vocab_size=0, data=str(path), block_size=block_size, batch_size=batch_size, device="cpu", seed=1
        )
    )


@pytest.mark.parametrize("rung", RUNGS)
def test_evaluation_is_the_mean_over_every_character_of_the_split(rung, text_file):
    data = dataset(text_file)
    module, model = importlib.import_module(rung), build(rung, data.vocab_size).train()
    loss = module.evaluate(model, data)
    assert model.training
    model.eval()
    ids, expected = data.splits["val"].long(), []
    for start in range(0, len(ids) - 1, 16):  # window by window, nothing batched
        window = ids[start : start + 17]
        expected.append(F.cross_entropy(model(window[None, :-1])[0].double(), window[1:], reduction="none"))
    expected = torch.cat(expected)
    assert len(expected) == len(ids) - 1
    assert loss == pytest.approx(expected.mean().item(), abs=1e-5)


def test_counted_loss_counts_pairs(text_file):
    data = dataset(text_file)
    train, val = (data.splits[split].tolist() for split in ("train", "val"))
    pairs, firsts = collections.Counter(zip(train, train[1:])), collections.Counter(train[:-1])
    losses = [-math.log((pairs[a, b] + 1) / (firsts[a] + data.vocab_size)) for a, b in zip(val, val[1:])]
    assert bigram.counted_loss(data) == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def test_learning_rate_rises_then_falls_to_nothing():
    config = gpt.Config(warmup_iters=10, max_iters=100, learning_rate=1.0)
    rates = [gpt.learning_rate_at(step, config) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[9:] == pytest.approx([step / 91 for step in range(91, 0, -1)])


def test_learning_rate_of_modern_gpt_rises_rests_and_falls():
    config = modern_gpt.Config(warmup_iters=10, warmdown_ratio=0.3, max_iters=100, learning_rate=1.0)
    rates = [modern_gpt.learning_rate_at(step, config) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([step / 10 for step in range(1, 11)])
    assert rates[9:71] == [1.0] * 62
    assert rates[70:] == pytest.approx([step / 30 for step in range(30, 0, -1)])


def test_windows_of_modern_gpt_double_until_they_are_whole():
    config = modern_gpt.Config(block_size=256, max_iters=24)
    contexts = [modern_gpt.context_at(step, config) for step in range(1, 25)]
    assert contexts == [32, 32, 64, 64, 128, 128] + [256] * 18
    config = modern_gpt.Config(block_size=4, max_iters=24)
    assert {modern_gpt.context_at(step, config) for step in range(1, 25)} == {1, 2, 4}


@pytest.mark.parametrize("rung", GPTS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_every_parameter_has_one_optimizer(rung, optimizer):
    module, model = importlib.import_module(rung), build(rung)
    optimizers = module.make_optimizers(module.Config(optimizer=optimizer), model)
    held = [p for o in optimizers for group in o.param_groups for p in group["params"]]
    assert len(held) == len(set(held)) and set(held) == set(model.parameters())
    if optimizer == "muon":
        muon = {
            name
            for name, p in model.named_parameters()
            if any(p is held for group in optimizers[1].param_groups for held in group["params"])
        }
        assert muon == {name for name, p in model.blocks.named_parameters("blocks") if p.ndim == 2}


@pytest.mark.parametrize("rung", ["gpt", "modern_gpt"])
def test_a_gpt_learns_a_single_batch_by_heart(text_file, rung):
    torch.manual_seed(1)
    gpt = importlib.import_module(rung)
    data = dataset(text_file, block_size=32, batch_size=4)
    config = gpt.Config(n_layer=2, n_head=2, n_embd=64, block_size=32, learning_rate=5e-3)
    model = gpt.GPT(config, data.vocab_size)
    optimizers = gpt.make_optimizers(config, model)
    ids = torch.randint(data.vocab_size, (4, 33))  # noise: only memory helps
    for _ in range(120):
        loss = gpt.loss_of(model, ids[:, :-1], ids[:, 1:])
        model.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
    assert loss.item() < 0.4


@pytest.fixture(scope="module")
def shakespeare():
    try:
        return corpus.tinyshakespeare()
    except UserError as error:
        pytest.skip(str(error))


def test_shakespeare_is_split_as_the_field_does(shakespeare):
    data = dataset()
    assert (data.vocab_size, len(data.splits["train"]), len(data.splits["val"])) == (65, 1_003_854, 111_540)
    assert data.sha256 == corpus.SHA256
    assert bigram.counted_loss(data) == pytest.approx(2.4819, abs=1e-4)


# Shorter than the defaults, whose losses the README quotes.
@pytest.mark.parametrize(
    ("rung", "flags", "bound"),
    [
        ("bigram", "", 2.4819 + 0.01),  # what counting reaches, and 0.01
        ("multi_head", "--max_iters=100", 2.55),
        ("gpt", "--max_iters=80 --n_layer=2 --n_head=2 --n_embd=64 --block_size=32 --dtype=float32", 2.55),
        ("modern_gpt", "--max_iters=80 --n_layer=2 --n_head=2 --n_embd=64 --block_size=32 --dtype=float32", 2.45),
    ],
)
def test_short_runs_on_shakespeare(shakespeare, tmp_path, rung, flags, bound):
    importlib.import_module(rung).main([*flags.split(), f"--out={tmp_path / rung}", "--device=cpu"])
    last = (tmp_path / rung / "metrics.csv").read_text(encoding="utf-8").splitlines()[-1]
    assert float(last.split(",")[-1]) <= bound


@pytest.mark.parametrize(("rung", "lengths"), [("gpt", 1), ("modern_gpt", 4)])
def test_compile_compiles_once_for_each_length_of_window(train, monkeypatch, rung, lengths):
    """modern_gpt.py has four while it trains. Evaluations, whose last batches are smaller, compile nothing."""
    graphs, compile = [], torch.compile

    def backend(graph, inputs):
        if shapes := [
            x.shape for x in inputs if x.dtype == torch.long and x.ndim == 2
        ]:  # and not that of the first try
            graphs.append(shapes)
        return graph

    monkeypatch.setattr(torch, "compile", lambda model, **how: compile(model, backend=backend, **how))
    compiled = train(rung, "--compile", out="compiled", max_iters=24, eval_interval=5)
    assert len(graphs) == lengths and all(isinstance(n, int) for shapes in graphs for shape in shapes for n in shape)
    plain = train(rung, out="plain", max_iters=24, eval_interval=5)
    for name in plain["model"]:
        torch.testing.assert_close(compiled["model"][name], plain["model"][name], atol=1e-4, rtol=0)
