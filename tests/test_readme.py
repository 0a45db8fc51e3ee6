"""What the README says is what the files say."""

import csv
import json
import math
import shlex
from pathlib import Path

import pytest
from conftest import RUNGS

import gpt
import sample
from results.cli import read_flags

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("rung", RUNGS)
def test_the_row_of_a_rung_is_its_published_run(rung):
    (row,) = (line for line in README.splitlines() if line.startswith("|") and f"[{rung}.py]" in line)
    lines, parameters, nats, bits = (cell.strip() for cell in row.split("|")[4:8])
    folder = ROOT / "results" / "published" / rung
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        loss = float(list(csv.DictReader(file))[-1]["val_loss"])
    assert lines == str(len((ROOT / f"{rung}.py").read_text(encoding="utf-8").splitlines()))
    assert (parameters, nats, bits) == (f"{about['parameters']:,}", f"{loss:.3f}", f"{loss / math.log(2):.3f}")
    assert about["commands"] == [f"python {rung}.py --out results/published/{rung}"]


def test_its_commands_have_only_flags_that_exist():
    lines = [shlex.split(line, comments=True) for line in README.splitlines() if line.startswith("python ")]
    gpt_lines = [line[2:] for line in lines if line[1] == "gpt.py"]
    assert len(gpt_lines) >= 5
    for flags in gpt_lines:
        read_flags(gpt.Config, flags, with_toml=True)
    (flags,) = (line[2:] for line in lines if line[1] == "sample.py")
    assert read_flags(sample.Config, flags)["prompt"] == "ROMEO:"
