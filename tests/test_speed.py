"""What the tools that measure measure: never how fast, but of what."""

import importlib
import os

import pytest
import torch
from conftest import GPTS, RUNGS, Counter, build, tiny_flags

import modern_gpt
from data import Dataset, UserError
from studies import ablation, measure
from studies.speed import training_flops, training_step
from studies.writing import generate_uncached


@pytest.mark.parametrize("rung", ["gpt", "modern_gpt"])
def test_flops_of_a_step_are_those_of_the_paper(rung):
    """For a token 6 of each weight of a product and 12 n_layer C T of attention: arXiv:2204.02311, appendix B."""
    model = build(rung, n_layer=3, n_embd=32, n_head=4, block_size=24)
    matrices = sum(p.numel() for p in model.blocks.parameters() if p.ndim == 2) + 65 * 32
    x = torch.zeros(2, 24, dtype=torch.long)
    assert training_flops(model, x) == (6 * matrices + 12 * 3 * 32 * 24) * 48


WAITS = ["item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "unique"]


@pytest.mark.parametrize("rung", RUNGS)
def test_between_two_log_lines_nothing_waits_for_the_device(train, monkeypatch, rung):
    """On a GPU the host then runs ahead."""
    draw, drawn, waited = Dataset.batch, [], []

    def batch(self, *how):
        drawn.append(how)
        return draw(self, *how)

    def noted(name, method):
        def called(self, *args, **kwargs):
            waited.append((len(drawn), name))
            return method(self, *args, **kwargs)

        return called

    monkeypatch.setattr(Dataset, "batch", batch)
    for name in WAITS:
        monkeypatch.setattr(torch.Tensor, name, noted(name, getattr(torch.Tensor, name)))
    options = {"layer": "gat"} if rung == "pyg_free_gat" else {}  # GATv2 looks where the edges are, but not on CUDA
    train(rung, max_iters=19, eval_interval=19, **options)
    assert [name for step, name in waited if 2 <= step <= 9 or 11 <= step <= 18] == []
    assert {step for step, _ in waited} >= {1, 10, 19}  # as it does at a log line


@pytest.mark.parametrize(
    ("rung", "most"),
    [("bigram", 30), ("single_head", 150), ("multi_head", 200), ("block", 250), ("transformer", 1250), ("gpt", 1100)]
    + [("modern_gpt", 2000)]
    + [(f"pyg_free_gat {layer}", 1250) for layer in ("dot", "gat", "mean")]
    + [(f"windowed_gpt {attention}", 2300) for attention in ("plain", "soft_window")]
    + [("gates hard_window", 2300)]
    + [("long_gat", 1800)],  # with a short text; each doubling above 64 adds a level
)
def test_operations_of_a_step_of_training(rung, most):
    """With six blocks. On a GPU each is at least one call, which takes the host some microseconds."""
    rung, *kind = rung.split()
    options = {"n_layer": 6} if rung in (*GPTS, "transformer") else {}
    if kind:
        options["layer" if rung == "pyg_free_gat" else "attention"] = kind[0]
    sizes = {**tiny_flags(rung), **options}
    step = training_step(rung, **sizes)(measure.Flags(quick=False))
    step()  # makes the optimizers' state
    with Counter() as counter:
        step()
    assert counter.count <= most


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


@pytest.mark.usefixtures("float64")
def test_soft_windows_of_modern_gpt_write_with_a_cache_as_without():
    torch.manual_seed(0)
    config = modern_gpt.Config(n_layer=2, n_head=2, n_embd=16, block_size=16)
    model, ids = ablation.build(ablation.ROWS[-1], config, 65).eval(), torch.randint(65, (2, 16))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    with torch.inference_mode():
        expected, cache = model(ids), model.new_cache(2)
        parts = [model(ids[:, :5], cache, 0), *(model(ids[:, i : i + 1], cache, i) for i in range(5, 16))]
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=1e-10, rtol=0)


def test_what_goes_wrong_in_a_process_of_its_own_is_said_by_the_one_that_asked(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        measure.apart(os.stat, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="was killed; there may be too little memory"):
        measure.apart(os._exit, 137)


@pytest.mark.parametrize("study", ["gates", "modern_windows"])
def test_a_run_of_the_studies_is_timed_like_a_rung(study):
    step = training_step(study, **tiny_flags(study))(measure.Flags(quick=False))
    assert step() == 4 * 16  # tokens
