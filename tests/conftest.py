"""What several test modules share."""

import csv
import http.server
import multiprocessing
import os
import random
import runpy
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode

import results.run
import sample
from data import Dataset

torch.set_num_threads(1)  # two threads on models this small wait for each other more than they work
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so do those of the processes that tests start
if not os.environ.get("TEST_DEVICE"):  # what a test shows should not depend on a GPU being there
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
results.run.SAMPLE_LENGTH = 30  # most of a tiny run would be its sample

ROOT = Path(__file__).parents[1]
GPTS = ["gpt", "modern_gpt", "pyg_free_gat", "windowed_gpt", "long_gat"]
RUNGS = ["bigram", "single_head", "multi_head", "block", "transformer", *GPTS]
CACHED = ["gpt", "modern_gpt", "windowed_gpt", "long_gat"]
PROSE = """Der Löwe brüllt, 12345 mal: „Hörst du's?“  I'll say what they've said; it's 3½ o'clock.
Ἐν ἀρχῇ ἦν ὁ λόγος, καὶ ὁ λόγος ἦν.\tВсе счастливые семьи похожи друг на друга.\r\n\n\n  日本語の文章、一二三。
def f(x):\n    return x**2  # ² and Ⅷ\n👩‍👩‍👧 🎭🎭 नमस्ते दुनिया ١٢٣ مرحبا\u00a0\u2028\x1c\x85_snake_case__"""
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX alone has these signals, limits and files")


def tiny_flags(rung):
    """Flags that make any rung train in a blink."""
    sizes = {"batch_size": 4, "block_size": 16}
    if rung != "bigram":
        sizes["n_embd"] = 16
    if rung not in ("bigram", "single_head"):
        sizes["n_head"] = 2
    if rung in (*GPTS, "transformer", "gates", "modern_windows"):
        sizes |= {"n_layer": 2, "dropout": 0.1}
    if rung in (*GPTS, "gates", "modern_windows"):
        sizes |= {"dtype": "float32"}
    return sizes


def argv_of(**options):
    return [f"--{name}={value}" for name, value in options.items()]


def build(rung, vocab_size=65, **sizes):
    """A rung's model at its tiny sizes, or those given."""
    module, model = sample.rung(rung)
    return model(module.Config(**tiny_flags(rung) | sizes), vocab_size)


def far_from_start(model, std=0.5):
    """The model with weights far from those it starts with."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=std).requires_grad_(False)
    return model


def write_text(path):
    """Writes 4,000 characters over a small alphabet, in which what comes next depends on what came before."""
    phrases = random.Random(0).choices(["to be", "or not", "that is", "the question\n"], k=600)
    path.write_text(" ".join(phrases)[:4000], encoding="utf-8", newline="\n")
    return path


@pytest.fixture
def float64():
    """What is a fact of mathematics is compared in float64, where no processor's rounding hides a difference."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def text_file(tmp_path):
    return write_text(tmp_path / "corpus.txt")


def train_tiny(rung, text, out, *flags, picture=False, **options):
    """Runs a rung's main() at its tiny sizes; returns the checkpoint. Without `picture`, loss.png is blank."""
    options = tiny_flags(rung) | {"max_iters": 4, "eval_interval": 2, "data": text, "out": out} | options
    with pytest.MonkeyPatch.context() as patch:
        if not picture:
            patch.setattr("results.plot.plot", lambda folders: Figure())  # to draw one takes longer than to train
        sample.rung(rung)[0].main([*argv_of(**options), "--device=cpu", *flags])
    return torch.load(out / "checkpoint.pt", weights_only=True)


@pytest.fixture
def train(text_file, tmp_path):
    """Trains a rung in a folder of tmp_path: train("gpt", "--resume", out="run", max_iters=8)."""
    return lambda rung, *flags, out="run", **options: train_tiny(rung, text_file, tmp_path / out, *flags, **options)


def run_script(script, argv, errors, stdout, limit, environment):
    """In a process of its own: `python script argv`."""
    torch.set_num_threads(1)
    os.environ.update(environment)
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [script, *argv]
    sys.path.insert(0, str(ROOT))
    sys.stderr = open(errors, "w", encoding="utf-8")
    sys.stdout = open(stdout, "w", encoding="utf-8") if stdout else None  # None if it is closed, as when Python starts
    runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.fixture(scope="session")
def forkserver():
    """Where processes come from that have torch imported already, which takes seconds."""
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["torch", "torch._dynamo", "matplotlib.figure"])
    return context


@pytest.fixture
def start(forkserver, tmp_path):
    """Starts a script; process.errors() is its stderr. limit: no file may be longer than so many bytes."""

    def start(script, argv, stdout=os.devnull, limit=None, number=0, **environment):
        errors = tmp_path / f"errors-{number}"
        process = forkserver.Process(target=run_script, args=(script, argv, errors, stdout, limit, environment))
        process.start()
        process.errors = lambda: errors.read_text(encoding="utf-8")
        return process

    return start


def ended(process):
    """Its exit code and its stderr, once it has ended."""
    process.join()
    return process.exitcode, process.errors()


def run(*command, **how):
    """A command in a process of its own, once it has ended; its output as text."""
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8", errors="replace")
    return subprocess.run([sys.executable, *map(str, command)], **{"cwd": ROOT, **pipes, **how})


def outputs(cell):
    """What a cell of a notebook wrote, and the error that it shows, or None."""
    written = "".join(output["text"] for output in cell.outputs if output["output_type"] == "stream")
    errors = ["\n".join(output["traceback"]) for output in cell.outputs if output["output_type"] == "error"]
    return written, errors[0] if errors else None


def metrics(folder):
    """The rows of metrics.csv without the seconds, which no two runs share."""
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def contents(folder):
    """The bytes of each file in a folder and below it."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(a, b):
    """Whether two nested structures of tensors are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def at_batch(monkeypatch, number, action):
    """Calls action() while a batch is drawn, the `number`-th from now on."""
    draw, drawn = Dataset.batch, []

    def batch(self, *how):
        drawn.append(how)
        if len(drawn) == number:
            action()
        return draw(self, *how)

    monkeypatch.setattr(Dataset, "batch", batch)


def interrupt_at(monkeypatch, step):
    """Sends this process the signal of Ctrl-C while it draws the batch of a step."""
    at_batch(monkeypatch, step, lambda: signal.raise_signal(signal.SIGINT))


@pytest.fixture
def hub(tmp_path):
    """A server of the files in tmp_path/hub/, which breaks off after `server.most` bytes."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            path = tmp_path / "hub" / self.path.strip("/")
            content = path.read_bytes() if path.exists() else b""
            start = int(self.headers.get("Range", "bytes=0-")[6:-1])
            server.asked.append(start)
            self.send_response(416 if start >= len(content) else 206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + server.most])

        def log_message(self, *_):
            pass

    (tmp_path / "hub").mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.most, server.asked, server.url = 2**30, [], f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class Largest(TorchDispatchMode):
    """The most numbers that any tensor has that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        found = out if isinstance(out, tuple | list) else [out]
        self.numbers = max([self.numbers, *(part.numel() for part in found if isinstance(part, torch.Tensor))])
        return out


class Counter(TorchDispatchMode):
    """Counts operations, each of which is at least one call on a GPU."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **kwargs or {})
