"""ladder.ipynb, executed whole in a real kernel: tiny models, a tiny text, and a working copy of its own."""

import shutil
import string

import nbformat
import pytest
from conftest import ROOT, outputs, write_text
from nbclient import NotebookClient

pytestmark = pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")  # of pyzmq on Windows
TINY = """
import results.run, torch
results.run.SAMPLE_LENGTH = 10
results.run.Run.draw = lambda run: None
torch.set_num_threads(1)
STEPS = "--max_iters 2 --eval_interval 2 --device cpu --data corpus.txt"
SMALL = "--n_embd 16 --batch_size 4 --block_size 16"
"""


DRAWINGS = {"curves-drawn", "attention-drawn", "gat-run", "windows-run"}  # the cells that show a picture
RUNGS = ["bigram", "block", "gpt", "modern_gpt", "multi_head", "single_head", "transformer", "windowed_gpt"]


@pytest.fixture
def notebook():
    return nbformat.read(ROOT / "ladder.ipynb", as_version=4)


def test_it_is_committed_without_outputs(notebook):
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(word in cell.source for cell in code for word in ("def ", "class "))  # the files have the code


def test_it_runs_diffs_draws_and_writes(notebook, tmp_path):
    """One test, so that it is executed once. A cell that raises ends it with what it raised."""
    for file in [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py")]:
        copy = tmp_path / file.relative_to(ROOT)
        copy.parent.mkdir(exist_ok=True)
        shutil.copy(file, copy)
    with open(write_text(tmp_path / "corpus.txt"), "a", encoding="utf-8") as file:
        file.write(string.printable)  # every letter of the line and the prompt
    cells = {cell.id: cell for cell in notebook.cells}
    notebook.cells.insert(notebook.cells.index(cells["settings"]) + 1, nbformat.v4.new_code_cell(TINY))
    where = {"metadata": {"path": tmp_path}}
    NotebookClient(notebook, kernel_name="python3", timeout=300, resources=where).execute()

    assert not cells["get"].outputs  # the repository is there
    assert sorted(file.parent.name for file in tmp_path.glob("results/*/best.pt")) == sorted([*RUNGS, "gat", "gatv2"])
    diffs = [outputs(cell)[0] for cell in notebook.cells if "git diff" in cell.source]
    assert len(diffs) == 8 and all("\x1b[32m+" in written and "step 2/2" in written for written in diffs)
    shown = [(cell.id, output) for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert {id for id, output in shown if "image/png" in output["data"]} == DRAWINGS
    assert len(shown) == len(DRAWINGS)
    assert outputs(cells["averaging-run"])[0].endswith("True True\n")
    assert outputs(cells["writing-run"])[0].startswith("ROMEO:")
