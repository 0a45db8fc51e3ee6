"""What the README says is what the files say."""

import csv
import json
import math
import shlex
from pathlib import Path

import pytest
from conftest import RUNGS, tiny_flags

import gpt
import pyg_free_gat
import sample
from pyg_free_gat import LAYERS
from results import ablation, plot
from results.cli import read_flags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def cells(start):
    """The cells of the one table row of the README that has `start` in it, without those before it."""
    (row,) = (line for line in README.splitlines() if line.startswith("|") and start in line)
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    return cells[next(i for i, cell in enumerate(cells) if start in cell) :]


def published(run):
    """What is kept of a published run: its config.json and its last validation loss."""
    folder = ROOT / "results" / "published" / run
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        loss = float(list(csv.DictReader(file))[-1]["val_loss"])
    return json.loads((folder / "config.json").read_text(encoding="utf-8")), loss


@pytest.mark.parametrize("rung", RUNGS)
def test_the_row_of_a_rung_is_its_published_run(rung):
    run, flags = ("gatv2", " --layer gatv2") if rung == "pyg_free_gat" else (rung, "")
    about, loss = published(run)
    _, _, lines, parameters, nats, bits, _ = cells(f"[{rung}.py]")
    assert lines == str(len((ROOT / f"{rung}.py").read_text(encoding="utf-8").splitlines()))
    assert (parameters, nats, bits) == (f"{about['parameters']:,}", f"{loss:.3f}", f"{loss / math.log(2):.3f}")
    assert about["commands"] == [f"python {rung}.py{flags} --out results/published/{run}"]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_row_of_a_layer_is_its_published_run(layer):
    about, loss = published(layer)
    *_, parameters, nats, _ = cells(f"`{layer}`")
    assert (parameters, nats) == (f"{about['parameters']:,}", f"{loss:.3f}")
    assert about["commands"] == [f"python pyg_free_gat.py --layer {layer} --out results/published/{layer}"]


def test_the_table_of_the_ablation_is_its_file():
    assert "\n".join(ablation.table()) in README


def test_the_layer_of_ones_own_trains_as_it_stands(monkeypatch, text_file, tmp_path):
    monkeypatch.setattr(pyg_free_gat, "LAYERS", {**LAYERS})
    main, flags = pyg_free_gat.main, {**tiny_flags("pyg_free_gat"), "max_iters": 40, "warmup_iters": 2}
    flags |= {"data": text_file, "out": tmp_path / "run", "device": "cpu"}
    monkeypatch.setattr(pyg_free_gat, "main", lambda argv: main(argv + [f"--{k}={v}" for k, v in flags.items()]))
    exec(README.split("```python\n")[1].split("```")[0], {"__name__": "__main__"})
    losses = plot.read(tmp_path / "run")["train_loss"]
    assert losses[-1] < losses[0] - 0.5


def test_its_commands_have_only_flags_that_exist():
    lines = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("python ")]
    gpt_lines = [line[2:] for line in lines if line[1] == "gpt.py"]
    assert len(gpt_lines) >= 5
    for flags in gpt_lines:
        read_flags(gpt.Config, flags, with_toml=True)
    for flags in (line[2:] for line in lines if line[1] == "pyg_free_gat.py"):
        read_flags(pyg_free_gat.Config, flags)
    (flags,) = (line[2:] for line in lines if line[1] == "sample.py")
    assert read_flags(sample.Config, flags)["prompt"] == "ROMEO:"
