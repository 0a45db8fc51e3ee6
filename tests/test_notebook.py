"""The ladder in a notebook: cells in a real kernel, as Jupyter and Colab run them."""

import nbformat
import pytest
from conftest import ROOT, argv_of, outputs, same, tiny_flags, write_text
from nbclient import NotebookClient

from results import load_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:Proactor event loop:RuntimeWarning")  # of pyzmq on Windows
CELLS = {
    "set up": "import results.run, torch; results.run.SAMPLE_LENGTH = 10; torch.set_num_threads(1)",
    "run": "%run bigram.py {flags} --out=run",
    "main": "import bigram; bigram.main([*'{flags}'.split(), '--out=main'])",
    "gpt": "import gpt; gpt.main([*'{flags}'.split(), '--n_layer=1', '--n_head=2', '--n_embd=16', '--out=gpt'])",
    "run with a wrong flag": "%run bigram.py --max_iter=5",
    "main with a wrong flag": "bigram.main(['--max_iter=5'])",
    "run that fails": "%run bigram.py {flags} --out=fails --learning_rate=9e29",
    "help": "%run bigram.py --help",
    "not in the main thread": (
        "from threading import Thread\n"
        "thread = Thread(target=bigram.main, args=[[*'{flags}'.split(), '--out=thread']])\n"
        "thread.start()\n"
        "thread.join()"
    ),
    # The interrupt button of a notebook sends its kernel this signal.
    "interrupt": (
        "import signal\n"
        "from data import Dataset\n"
        "draw, drawn = Dataset.batch, []\n"
        "def batch(self, *how):\n"
        "    drawn.append(how)\n"
        "    if len(drawn) == 15:\n"
        "        signal.raise_signal(signal.SIGINT)\n"
        "    return draw(self, *how)\n"
        "Dataset.batch = batch\n"
        "%run bigram.py {flags} --out=interrupted"
    ),
    "resume": "%run bigram.py {flags} --out=interrupted --resume",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("notebook")


@pytest.fixture(scope="module")
def notebook(folder):
    """What each cell wrote, and the error that it shows, or None."""
    write_text(folder / "corpus.txt")
    options = tiny_flags("bigram") | {"max_iters": 40, "eval_interval": 20, "device": "cpu", "data": "corpus.txt"}
    flags = " ".join(argv_of(**options))
    cells = [f"import os, sys; os.chdir({str(folder)!r}); sys.path.insert(0, {str(ROOT)!r})"]
    cells += [cell.format(flags=flags).replace("bigram.py", f'"{ROOT / "bigram.py"}"') for cell in CELLS.values()]
    cells = [nbformat.v4.new_code_cell(cell) for cell in cells]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", timeout=300, allow_errors=True).execute()
    return dict(zip(CELLS, map(outputs, notebook.cells[1:])))


def shown(written):
    """The lines as a notebook shows them: what follows a carriage return overwrites its line."""
    return [line.split("\r")[-1].rstrip() for line in written.split("\n")]


@pytest.mark.parametrize("how", ["run", "main", "gpt", "not in the main thread"])
def test_training_shows_one_live_line_that_evaluations_keep(notebook, folder, how):
    written, error = notebook[how]
    assert error is None
    steps = [line for line in shown(written) if line.startswith("step")]
    assert [line.split()[1] for line in steps] == ["20/40", "40/40"] and all("val" in line for line in steps)
    assert written.count("\rstep") == written.count("step ") == 5  # steps 1, 10, 20, 30 and 40
    assert (folder / how.split()[-1] / "sample.txt").exists()


def test_an_interrupted_cell_saves_its_run_and_another_one_resumes_it(notebook, folder):
    written, error = notebook["interrupt"]
    assert "interrupted after step 15; --resume continues from here" in shown(written)
    assert error == "KeyboardInterrupt"
    written, error = notebook["resume"]
    assert error is None and "step 40/40" in written
    whole, parts = (load_checkpoint(folder / name)["model"] for name in ("run", "interrupted"))
    assert same(whole, parts)


def test_an_error_is_one_line_and_help_is_none(notebook):
    wrong = "there is no flag --max_iter; did you mean --max_iters?"
    assert notebook["run with a wrong flag"] == ("", wrong)
    assert notebook["main with a wrong flag"] == ("", wrong)
    assert notebook["run that fails"][1].startswith("the loss is nan at step")
    assert "\n" not in notebook["run that fails"][1]
    written, error = notebook["help"]
    assert "--max_iters INT" in written and error is None
