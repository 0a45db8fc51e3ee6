import pytest
import torch
from conftest import build, far_from_start

import sample
from data import Dataset, UserError
from studies import pictures

PICTURES = {
    "graph": pictures.draw_graph,
    "head": pictures.draw_head,
    "block": pictures.draw_block,
    "tokens": lambda: pictures.draw_tokens(sizes=(260, 300)),
    "lookup": lambda: pictures.draw_lookup(sizes=(2, 3), steps=2),
}


def test_draws_the_graph_and_its_adjacency(tmp_path):
    pictures.draw_graph().savefig(tmp_path / "graph.svg")
    text = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert text.count("<!-- 1 -->") == 10 and text.count("<!-- 0 -->") == 6  # the cells of a 4 x 4 lower triangle


@pytest.mark.parametrize("name", PICTURES)
def test_draws_a_picture(tmp_path, name):
    PICTURES[name]().savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


KINDS = [("transformer", {}), ("gpt", {}), ("modern_gpt", {}), ("pyg_free_gat", {"layer": "dot"})]
KINDS += [("pyg_free_gat", {"layer": "gat"}), ("pyg_free_gat", {"layer": "gatv2"}), ("gates", {})]
KINDS += [("gates", {"attention": "hard_window"})]
KINDS += [("windowed_gpt", {"attention": name}) for name in ("plain", "soft_window")]


@pytest.mark.parametrize("rung, options", KINDS)
def test_has_the_weights_that_the_model_reads_by(rung, options):
    """The model computes the same with them."""
    model, ids = far_from_start(build(rung, **options)).double().eval(), torch.randint(65, (1, 12))
    expected = model(ids)
    weights = pictures.attend(model, ids)
    torch.testing.assert_close(model(ids), expected, atol=1e-11, rtol=0)
    assert len(weights) == 2 and all(w.shape == (1, 2, 12, 12) for w in weights)
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones(1, 2, 12, dtype=w.dtype), atol=1e-12, rtol=0)
        assert not w.triu(1).any()
    attention, read = model.blocks[0].attention, []
    if hasattr(attention, "value"):  # the first block's read is its values, weighted
        attention.projection.register_forward_hook(lambda _, x, y: read.append(x[0]))
        values = []
        attention.value.register_forward_hook(lambda _, x, y: values.append(y.view(1, 12, 2, 8).transpose(1, 2)))
        model(ids)
        expected = (weights[0] @ values[0]).transpose(1, 2).flatten(2)
        if not hasattr(attention, "gate"):  # which comes between
            torch.testing.assert_close(read[0], expected, atol=1e-11, rtol=0)


def test_a_run_whose_weights_cannot_be_drawn_is_an_error(train, tmp_path):
    train("bigram")
    with pytest.raises(UserError, match="no weights to draw; the GPTs have them"):
        pictures.main([f"--run={tmp_path / 'run'}", "--text=or not to be"])


def test_tokens_are_shown_by_the_characters_that_begin_in_them(train, text_file, tmp_path):
    text_file.write_text("Zoë, ünter Löwen: 🎭! $^{$ " * 200, encoding="utf-8")
    train("gpt", vocab_size=260, block_size=30)
    text = "Löwen 🎭! $^{$ Zoë"  # a $ begins no formula
    weights, tokens = pictures.weights_of(tmp_path / "run", text)
    assert text.endswith("".join(tokens)) and len(tokens) == weights[0].shape[-1] > len("".join(tokens)) > 10
    pictures.main([f"--run={tmp_path / 'run'}", f"--text={text}"])
    assert (tmp_path / "run" / "attention-run.png").exists()


def test_losses_by_place_have_the_mean_of_the_evaluation(train, tmp_path):
    train("long_gat")
    module, model, _ = sample.load(tmp_path / "run", "cpu")
    places = pictures.losses_by_place(tmp_path / "run")
    data = Dataset(model.config)
    count = (len(data.splits["val"]) - 1) // 16 * 16
    data.splits["val"] = data.splits["val"][: count + 1]  # whole windows alone
    assert places.shape == (16,) and places.mean().item() == pytest.approx(module.evaluate(model, data), rel=1e-5)
    (axes,) = pictures.draw_positions([tmp_path / "run"]).axes
    _, means = axes.lines[0].get_data()
    assert means[0] == pytest.approx(places[0].item()) and means[-1] == pytest.approx(places[8:].mean().item())


@pytest.mark.parametrize("rung, attention", [("windowed_gpt", "soft_window"), ("gates", "hard_window")])
def test_windows_that_are_drawn_are_those_of_the_equation(train, tmp_path, rung, attention):
    train(rung, attention=attention, max_iters=30, eval_interval=30, warmup_iters=2)
    _, model, _ = sample.load(tmp_path / "run", "cpu")
    with torch.inference_mode():
        x, _ = next(Dataset(model.config).windows("val"))
        places = torch.arange(x.shape[1])
        first = model.blocks[0]
        n = first.norm_1(model.token_embedding(x) + model.position_embedding(places))
        expected = (1 + 8 * first.attention.window(n).exp()).flatten(0, 1)  # (B * T, H)
    blocks = pictures.windows_of(model)
    torch.testing.assert_close(blocks[0][: len(expected)], expected)
    assert len(blocks) == 2 and len(blocks[0]) == len(blocks[1]) >= 384  # of 400 characters that validate
    pictures.draw_windows([tmp_path / "run"]).savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_trained_heads_of_gat_have_one_order_and_those_of_the_others_more(train, tmp_path):
    text = "or not to be"
    for layer in ("gat", "gatv2", "dot"):
        train("pyg_free_gat", out=layer, layer=layer)
        ranks = pictures.weights_of(tmp_path / layer, text, full=True)[0][0].argsort(-1)  # (H, T, T)
        assert (ranks == ranks[:, :1]).all() == (layer == "gat")
    figure = pictures.draw_rankings([tmp_path / layer for layer in ("gat", "gatv2", "dot")], text)
    figure.savefig(tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
