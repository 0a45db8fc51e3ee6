import re

import pytest
from conftest import ended, run

from data import UserError
from results import plot


def write_run(folder, losses, first=1):
    """A run with the validation losses [(step, loss), ...], those before step `first` left out."""
    folder.mkdir(parents=True)
    rows = [f"{step},{step * 64},{step / 10},{loss + 0.1},{loss if step >= first else ''}\n" for step, loss in losses]
    (folder / "metrics.csv").write_text("step,tokens,seconds,train_loss,val_loss\n" + "".join(rows), encoding="utf-8")
    return folder


def texts(picture):
    """The texts in an SVG that matplotlib drew."""
    return re.findall("<!-- (.*?) -->", picture.read_text(encoding="utf-8"))


def draw(folder, *flags):
    """The texts in the picture that plot.py draws with the flags."""
    plot.main([*map(str, flags), "--out", str(folder / "losses.svg")])
    return texts(folder / "losses.svg")


TICKS = [
    ("steps", ["100", "200", "300", "500", "700", "1,000"]),
    ("seconds", ["10", "20", "30", "50", "70", "100"]),
    ("tokens", ["7,000", "10k", "20k", "30k", "50k"]),
]


@pytest.mark.parametrize(("x", "ticks"), TICKS)
def test_plots_runs_on_one_picture(tmp_path, capsys, x, ticks):
    losses = [(1, 4.0), (10, 3.5), (100, 3.0), (500, 2.5)]
    runs = [write_run(tmp_path / name, [*losses, (1000, end)], first=100) for name, end in (("a", 2.0), ("b", 2.01))]
    drawn = draw(tmp_path, *runs, "--x", x)
    assert capsys.readouterr().out == f"{tmp_path / 'losses.svg'}\n"
    assert f"training {x}" in drawn and "loss, nats per character (lower is better)" in drawn
    assert [text for text in drawn if re.fullmatch("[0-9,]+k?", text)] == ticks  # from shortly before step 100
    assert {"a 2.000", "b 2.010"} < {*drawn}


ODD = {
    "one evaluation, at the end": ([(1, 4.0), (10, 3.0), (100, 2.5), (500, 2.0)], 500, "run 2.000"),
    "no evaluation": ([(1, 4.0), (10, 3.0), (100, 2.5), (500, 2.0)], 1000, "run 2.100 (training)"),
    "one row": ([(1, 4.0)], 1, "run 4.000"),
}


@pytest.mark.parametrize("x", ["steps", "seconds", "tokens"])
@pytest.mark.parametrize("name", ODD)
def test_a_run_with_few_evaluations_shows_some_of_its_training(tmp_path, monkeypatch, name, x):
    losses, first, labelled = ODD[name]
    limits, zoom = [], plot.zoom
    monkeypatch.setattr(plot, "zoom", lambda axes, points: (zoom(axes, points), limits.extend(axes.get_xlim())))
    assert labelled in draw(tmp_path, write_run(tmp_path / "run", losses, first), "--x", x)
    assert len(losses) == 1 or limits[1] > 4 * limits[0]


def test_a_run_that_has_taken_no_time_yet_is_drawn(tmp_path):
    run = write_run(tmp_path / "run", [])
    with open(run / "metrics.csv", "a") as file:
        file.write("1,4096,0.00,4.2,\n")
    assert "run 4.200 (training)" in draw(tmp_path, run, "--x", "seconds")


def test_the_first_steps_of_one_run_do_not_press_the_others_flat(tmp_path, monkeypatch):
    """The slow run begins where the fast one already evaluates; its first losses leave the picture at the top."""
    seen, zoom = [], plot.zoom
    monkeypatch.setattr(plot, "zoom", lambda axes, points: (zoom(axes, points), seen.extend(axes.get_ylim())))
    fast = write_run(tmp_path / "fast", [(2, 2.5), (4, 2.4)])
    slow = write_run(tmp_path / "slow", [(3, 4.2), (500, 2.2), (1000, 1.5)], first=500)
    draw(tmp_path, fast, slow)
    assert 2.6 < seen[1] < 3


def test_runs_are_named_by_their_folders_and_by_more_where_two_folders_share_a_name(tmp_path):
    for name in ("published/gpt", "published/gat", "gpt"):
        write_run(tmp_path / name, [(1, 4.0), (10, 3.0)])
    names = [tmp_path / name for name in ("published/gat", "published/gpt")]
    assert list(plot.names_of(names)) == ["gat", "gpt"]
    assert list(plot.names_of([*names, tmp_path / "gpt"])) == ["gat", "published/gpt", f"{tmp_path.name}/gpt"]
    assert list(plot.names_of([names[0], names[0]])) == ["gat", "gat"]


def test_draws_what_is_in_results_but_for_what_was_moved_aside(tmp_path, monkeypatch):
    aside = ("gpt-2026-11-22-143005", "gpt-2026-11-22-143005-2")
    for name in ("gpt", "lr-3", "gpt-2", *aside, "published/gat"):
        write_run(tmp_path / name, [(1, 4.0), (10, 3.0)])
    monkeypatch.setattr(plot, "RESULTS", tmp_path)
    plot.main(["--out", str(tmp_path / "losses.svg")])
    assert sorted(text for text in texts(tmp_path / "losses.svg") if "3.000" in text) == [
        "gpt 3.000",
        "gpt-2 3.000",
        "lr-3 3.000",
    ]


def test_it_runs_as_a_file_and_as_a_module(start, tmp_path):
    folder, printed = write_run(tmp_path / "run", [(1, 4.0)]), tmp_path / "stdout"
    process = start("results/plot.py", [str(folder), f"--out={tmp_path / 'a.png'}"], stdout=printed)
    assert ended(process) == (0, "") and printed.read_text() == f"{tmp_path / 'a.png'}\n"
    done = run("-W", "error", "-m", "results.plot", folder, "--out", tmp_path / "b.png")
    assert (done.stdout, done.stderr) == (f"{tmp_path / 'b.png'}\n", "")


@pytest.mark.parametrize("count", [3, 15, 40])
def test_labels_neither_overlap_nor_leave_the_axes(count):
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    axes.set_ylim(1, 3)
    plot.label(axes, [(1 + (i % 3) / 1000, 10, "red", "a") for i in range(count)])
    heights = sorted(text.xyann[1] for text in axes.texts)
    assert all(b - a >= min(0.05, 1 / count) * 2 - 1e-9 for a, b in zip(heights, heights[1:]))
    assert heights[0] >= 1 and heights[-1] <= 3


def test_a_folder_without_a_run_is_an_error(tmp_path):
    with pytest.raises(UserError, match="not the losses of a run"):
        plot.main([str(tmp_path)])
