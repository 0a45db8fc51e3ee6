import importlib
import os
import random

import pytest
import torch
from matplotlib.figure import Figure
from torch.utils._python_dispatch import TorchDispatchMode

import results.run

torch.set_num_threads(1)  # two threads on models this small wait for each other more than they work
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so do those of the processes that tests start
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # what a test shows should not depend on a GPU being there
results.run.SAMPLE_LENGTH = 30  # most of a tiny run would be its sample

GPTS = ["gpt", "modern_gpt", "pyg_free_gat", "windowed_gpt", "long_gat"]
RUNGS = ["bigram", "single_head", "multi_head", "block", *GPTS]
CACHED = ["gpt", "modern_gpt", "windowed_gpt", "long_gat"]


def tiny_flags(rung):
    """Flags that make any rung train in a blink."""
    sizes = {"batch_size": 4, "block_size": 16}
    if rung != "bigram":
        sizes["n_embd"] = 16
    if rung not in ("bigram", "single_head"):
        sizes["n_head"] = 2
    if rung in GPTS:
        sizes |= {"n_layer": 2, "dropout": 0.1, "dtype": "float32"}
    return sizes


def build(rung, vocab_size=65, **sizes):
    """A rung's model at its tiny sizes, or those given."""
    module = importlib.import_module(rung)
    config = module.Config(**tiny_flags(rung) | sizes)
    model = module.GPT if hasattr(module, "GPT") else module.LanguageModel
    return model(config, vocab_size)


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
    options = tiny_flags(rung) | {"max_iters": 4, "eval_interval": 2} | options
    argv = [f"--{name}={value}" for name, value in options.items()]
    with pytest.MonkeyPatch.context() as patch:
        if not picture:
            patch.setattr("results.plot.plot", lambda folders: Figure())  # to draw one takes longer than to train
        importlib.import_module(rung).main([*argv, f"--data={text}", f"--out={out}", "--device=cpu", *flags])
    return torch.load(out / "checkpoint.pt", weights_only=True)


@pytest.fixture
def train(text_file, tmp_path):
    """Trains a rung in a folder of tmp_path: train("gpt", "--resume", out="run", max_iters=8)."""
    return lambda rung, *flags, out="run", **options: train_tiny(rung, text_file, tmp_path / out, *flags, **options)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor has that an operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        found = out if isinstance(out, tuple | list) else [out]
        self.numbers = max([self.numbers, *(part.numel() for part in found if isinstance(part, torch.Tensor))])
        return out
