"""ladder.ipynb, executed whole in a real kernel: tiny models, a tiny text, and a working copy of its own."""

import shutil
import string
from pathlib import Path

import nbformat
import pytest
from conftest import write_text
from nbclient import NotebookClient
from test_notebook import outputs, shown

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")  # of pyzmq on Windows
TINY = """
import results.run, torch
results.run.SAMPLE_LENGTH = 10
torch.set_num_threads(1)
STEPS = "--max_iters 2 --eval_interval 2 --device cpu --data corpus.txt"
SMALL = "--size small --n_embd 16 --batch_size 4 --block_size 16"
"""


def read():
    return nbformat.read(ROOT / "ladder.ipynb", as_version=4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The code of the repository and a text that has every letter."""
    folder = tmp_path_factory.mktemp("ladder")
    for file in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]:
        copy = folder / file.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(file, copy)
    with open(write_text(folder / "corpus.txt"), "a", encoding="utf-8") as file:
        file.write(string.printable)
    return folder


@pytest.fixture(scope="module")
def cells(folder):
    """The cells by their ids, after all have run. One that raises stops the test with what it raised."""
    notebook = read()
    place = [cell.id for cell in notebook.cells].index("settings") + 1
    notebook.cells.insert(place, nbformat.v4.new_code_cell(TINY))
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources={"metadata": {"path": folder}}).execute()
    return {cell.id: cell for cell in notebook.cells}


def test_it_is_short_and_is_committed_without_outputs():
    notebook = read()
    nbformat.validate(notebook)
    assert len(notebook.cells) <= 25
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(word in cell.source for cell in code for word in ("def ", "class "))  # the files have the code


def test_it_runs_every_rung_and_shows_what_is_new_in_it(cells, folder):
    runs = ["bigram", "block", "gat", "gatv2", "gpt", "modern_gpt", "multi_head", "single_head", "windowed_gpt"]
    assert sorted(file.parent.name for file in folder.glob("results/*/best.pt")) == runs
    assert list(folder.glob("*")) and not (folder / "ladder").exists()  # the first cell has got nothing
    diffs = [written for cell in cells.values() if "git diff" in cell.source for written in [outputs(cell)[0]]]
    assert len(diffs) == 7 and all("\x1b[32m+" in written and "step 2/2" in written for written in diffs)


def test_it_draws(cells):
    drawn = {
        id: [output.data for output in cell.outputs if "data" in output and "image/png" in output.data]
        for id, cell in cells.items()
        if cell.cell_type == "code"
    }
    assert {id for id, pictures in drawn.items() if pictures} == {
        "curves-drawn",
        "attention-drawn",
        "gat-run",
        "windows-run",
    }
    assert all(len(pictures) <= 1 for pictures in drawn.values())


def test_it_writes_from_the_prompt(cells):
    written, _ = outputs(cells["writing-run"])
    assert shown(written)[0].startswith("ROMEO:") and len(written) > 500
