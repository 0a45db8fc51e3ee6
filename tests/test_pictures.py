import pytest
import torch

import sample
from data import UserError
from studies import pictures

PICTURES = {
    "graph": pictures.draw_graph,
    "head": pictures.draw_head,
    "block": pictures.draw_block,
    "lookup": lambda path: pictures.draw_lookup(path, sizes=(2, 3), steps=2),
}


def test_draws_the_graph_and_its_adjacency(tmp_path):
    pictures.draw_graph(tmp_path / "graph.svg")
    text = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert text.count("<!-- 1 -->") == 10 and text.count("<!-- 0 -->") == 6  # the cells of a 4 x 4 lower triangle


@pytest.mark.parametrize("name", PICTURES)
def test_draws_a_picture(tmp_path, name):
    PICTURES[name](tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rung", ["gpt", "modern_gpt"])
def test_has_the_weights_that_the_model_reads_by(train, tmp_path, rung):
    train(rung)
    module, model, tokenizer = sample.load(tmp_path / "run", "cpu")
    ids = tokenizer.encode("or not to be")[None]
    model.double()
    with torch.inference_mode():
        expected = model.eval()(ids)
        with pictures.recorded() as weights:
            torch.testing.assert_close(model(ids), expected, atol=1e-11, rtol=0)
    assert len(weights) == 2 and all(w.shape == (1, 2, 12, 12) for w in weights)
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones(1, 2, 12, dtype=w.dtype), atol=1e-12, rtol=0)
        assert not w.triu(1).any()
    pictures.main([f"--run={tmp_path / 'run'}", "--text=or not to be", f"--out={tmp_path}"])
    assert (tmp_path / "attention-run.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_whose_weights_cannot_be_drawn_is_an_error(train, tmp_path):
    train("bigram")
    with pytest.raises(UserError, match="no weights to draw; gpt.py"):
        pictures.main([f"--run={tmp_path / 'run'}", "--text=or not to be"])


def test_trained_heads_of_gat_have_one_order_and_those_of_the_others_more(train, tmp_path):
    text = "or not to be"
    for layer in ("gat", "gatv2", "dot"):
        train("pyg_free_gat", out=layer, layer=layer)
        ranks = pictures.weights_of(tmp_path / layer, text, full=True)[0].argsort(-1)  # (H, T, T)
        assert (ranks == ranks[:, :1]).all() == (layer == "gat")
    pictures.draw_rankings(tmp_path / "picture.png", [tmp_path / layer for layer in ("gat", "gatv2", "dot")], text)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
