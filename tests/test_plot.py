import pytest

from data import UserError
from results import explain, plot


def write_run(folder, losses):
    folder.mkdir(parents=True)
    rows = [f"{step},{step * 64},{step / 10},{loss + 0.1},{loss}\n" for step, loss in losses]
    (folder / "metrics.csv").write_text("step,tokens,seconds,train_loss,val_loss\n" + "".join(rows), encoding="utf-8")
    return folder


@pytest.mark.parametrize("x", ["steps", "seconds", "tokens"])
def test_plots_runs_on_one_picture(tmp_path, capsys, x):
    runs = [write_run(tmp_path / name, [(1, 4.0), (10, 3.0), (100, end)]) for name, end in (("a", 2.0), ("b", 2.01))]
    plot.main([*map(str, runs), "--x", x, "--out", str(tmp_path / "losses.svg")])
    assert capsys.readouterr().out == f"{tmp_path / 'losses.svg'}\n"
    assert "<svg" in (tmp_path / "losses.svg").read_text(encoding="utf-8")


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


def test_explain_draws_the_graph_and_its_adjacency(tmp_path, capsys):
    explain.main(["--out", str(tmp_path / "graph.svg")])
    assert capsys.readouterr().out == f"{tmp_path / 'graph.svg'}\n"
    text = (tmp_path / "graph.svg").read_text(encoding="utf-8")
    assert text.count("<!-- 1 -->") == 10 and text.count("<!-- 0 -->") == 6  # the cells of a 4 x 4 lower triangle
