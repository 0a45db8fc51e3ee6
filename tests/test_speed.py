"""What the tools that measure measure: never how fast, but of what."""

import importlib

import pytest
import torch
from conftest import GPTS, build

import modern_gpt
from results.utilisation import peak_flops, training_flops
from studies import ablation
from studies.writing import generate_uncached


@pytest.mark.parametrize("rung", ["gpt", "modern_gpt"])
def test_flops_of_a_token_are_those_of_the_paper(rung):
    """6 for each weight of a matrix product and 12 n_layer C T for attention: arXiv:2204.02311, appendix B."""
    model = build(rung, n_layer=3, n_embd=32, n_head=4, block_size=24)
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) + 65 * 32
    x = torch.zeros(2, 24, dtype=torch.long)
    assert training_flops(model, x) == 6 * matrices + 12 * 3 * 32 * 24
    assert model.training


def test_the_peak_is_finite_and_leaves_the_random_numbers_as_they_were():
    before = torch.get_rng_state()
    assert 0 < peak_flops(torch.device("cpu"), torch.float32, seconds=0) < 1e18
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rung", GPTS)
def test_mfu_is_shown_and_changes_no_loss(train, capsys, rung):
    plain = train(rung, out="plain")
    capsys.readouterr()
    measured = train(rung, "--mfu", out="measured")
    printed = capsys.readouterr().out
    assert "GFLOP/s" in printed and "% MFU)" in printed
    for name in plain["model"]:
        assert torch.equal(plain["model"][name], measured["model"][name])


@pytest.mark.usefixtures("float64")
def test_the_ablation_ends_at_modern_gpt():
    """With all its ideas but the last, gpt.py's model is modern_gpt.py's with the head tied to the token embedding."""
    torch.manual_seed(0)
    config = modern_gpt.Config(n_layer=2, n_head=2, n_embd=16, block_size=16)
    theirs = modern_gpt.GPT(config, 65).eval()  # whose short convolutions start as the identity
    ours = ablation.build(list(ablation.IDEAS)[-1], config, 65).eval()
    assert all((block.attention.projection.weight == 0).all() for block in ours.blocks)
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.5 * parameter.requires_grad)
    state = {name.replace(".linear", ""): p for name, p in ours.named_parameters() if "position" not in name}
    state |= {name: p for name, p in theirs.named_parameters() if "conv" in name}
    theirs.load_state_dict(state | {"head.weight": ours.token_embedding.weight})
    ids = torch.randint(65, (2, 16))
    torch.testing.assert_close(ours(ids), theirs(ids), atol=1e-10, rtol=0)


@pytest.mark.parametrize("row", ablation.ROWS)
def test_every_row_of_the_ablation_trains(monkeypatch, text_file, row):
    monkeypatch.setattr(ablation, "STEPS", 6)
    monkeypatch.setattr(ablation, "EVAL_INTERVAL", 3)
    monkeypatch.setattr(modern_gpt, "evaluate", lambda model, data: 0.0)
    sizes = dict(n_layer=1, n_embd=16, n_head=2, block_size=16, data=str(text_file))
    assert [step for step, _ in ablation.train(row, 1, **sizes)] == [3, 6]


@pytest.mark.parametrize("rung", ["gpt", "modern_gpt"])
def test_uncached_writing_of_the_benchmark_is_what_the_cache_gives(rung):
    model, ids = build(rung).eval(), torch.zeros(1, 1, dtype=torch.long)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    cached = importlib.import_module(rung).generate(model, ids, 50, temperature=0)
    assert torch.equal(cached, generate_uncached(model, ids, 50, slide=False, temperature=0))
