import re

import pytest
import torch

import sample
from data import UserError
from results import explain, plot


def write_run(folder, losses):
    folder.mkdir(parents=True)
    rows = [f"{step},{step * 64},{step / 10},{loss + 0.1},{loss}\n" for step, loss in losses]
    (folder / "metrics.csv").write_text("step,tokens,seconds,train_loss,val_loss\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize(("x", "powers"), [("steps", "012"), ("seconds", ["-1", "0", "1"]), ("tokens", "23")])
def test_plots_runs_on_one_picture(tmp_path, capsys, x, powers):
    runs = [write_run(tmp_path / name, [(1, 4.0), (10, 3.0), (100, end)]) for name, end in (("a", 2.0), ("b", 2.01))]
    plot.main([*map(str, runs), "--x", x, "--out", str(tmp_path / "losses.svg")])
    assert capsys.readouterr().out == f"{tmp_path / 'losses.svg'}\n"
    picture = (tmp_path / "losses.svg").read_text(encoding="utf-8")
    assert f"<!-- training {x} -->" in picture
    assert re.findall(r"<!-- \$\\mathdefault\{10\^\{([-0-9]+)\}\}\$ -->", picture) == [*powers]


def test_draws_what_is_in_results_but_for_what_was_moved_aside(tmp_path, monkeypatch):
    for name in ("gpt", "gat", "gpt-2026-11-22-143005", "published/gat"):
        write_run(tmp_path / name, [(1, 4.0), (10, 3.0)])
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    plot.main(["--out", str(tmp_path / "losses.svg")])
    drawn = re.findall("<!-- (.*) 3.000 -->", (tmp_path / "losses.svg").read_text(encoding="utf-8"))
    assert sorted(drawn) == ["gat", "gpt"]


def test_labels_of_close_curves_do_not_overlap():
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(1, 3)
    plot.label(axes, [(2.0, 10, "red", "a"), (2.01, 10, "blue", "b"), (1.5, 10, "green", "c")])
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert all(b - a >= 0.05 * 2 - 1e-9 for a, b in zip(heights, heights[1:]))


def test_a_run_without_a_step_is_drawn_as_nothing(tmp_path, capsys):
    plot.main([str(write_run(tmp_path / "new", [])), "--out", str(tmp_path / "losses.png")])
    assert (tmp_path / "losses.png").exists()


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="no metrics.csv"):
        plot.main([str(tmp_path)])


PICTURES = {
    "graph": explain.draw_graph,
    "head": explain.draw_head,
    "block": explain.draw_block,
    "lookup": lambda path: explain.draw_lookup(path, sizes=(2, 3), steps=2),
}


def test_explain_draws_the_graph_and_its_adjacency(tmp_path):
    explain.draw_graph(tmp_path / "graph.svg")
    text = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert text.count("<!-- 1 -->") == 10 and text.count("<!-- 0 -->") == 6  # the cells of a 4 x 4 lower triangle


@pytest.mark.parametrize("name", PICTURES)
def test_explain_draws(tmp_path, name):
    PICTURES[name](tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rung", ["gpt", "modern_gpt"])
def test_explain_has_the_weights_that_the_model_reads_by(train, tmp_path, rung):
    train(rung)
    module, model, tokenizer = sample.load(tmp_path / "run", "cpu")
    ids = tokenizer.encode("or not to be")[None]
    with torch.inference_mode():
        expected = model.eval()(ids)
        with explain.recorded() as weights:
            torch.testing.assert_close(model(ids), expected)
    assert len(weights) == 2 and all(w.shape == (1, 2, 12, 12) for w in weights)
    for w in weights:
        torch.testing.assert_close(w.sum(-1), torch.ones(1, 2, 12))
        assert not w.triu(1).any()
    explain.main([f"--run={tmp_path / 'run'}", "--text=or not to be", f"--out={tmp_path}"])
    assert (tmp_path / "attention-run.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_whose_weights_cannot_be_drawn_is_an_error(train, tmp_path):
    train("bigram")
    with pytest.raises(UserError, match="no weights to draw; gpt.py"):
        explain.main([f"--run={tmp_path / 'run'}", "--text=or not to be"])


def test_trained_heads_of_gat_have_one_order_and_those_of_the_others_more(train, tmp_path):
    text = "or not to be"
    for layer in ("gat", "gatv2", "dot"):
        train("pyg_free_gat", out=layer, layer=layer)
        ranks = explain.weights_of(tmp_path / layer, text, full=True)[0].argsort(-1)  # (H, T, T)
        assert (ranks == ranks[:, :1]).all() == (layer == "gat")
    explain.draw_rankings(tmp_path / "picture.png", [tmp_path / layer for layer in ("gat", "gatv2", "dot")], text)
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
