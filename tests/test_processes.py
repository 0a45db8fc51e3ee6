"""Several processes, and several batches a step, train as one process with one batch does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import GPTS, tiny_flags

from data import UserError, processes
from results.plot import read

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX alone has these signals")

# Each process keeps its own weights at the end. With DIE, rank 1 is gone in its third step, and torchrun cannot end
# rank 0, as if that were on another machine.
SCRIPT = """
import importlib, os, signal, sys
import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from data import Dataset
from data.processes import rank
from results import Run, run_main

finish, draw, drawn = Run.finish, Dataset.batch, []

def keep(self, generate):
    torch.save(self.model.state_dict(), self.folder / f"rank{rank()}.pt")
    print("reductions:", len(reductions), "windows:", windows)
    finish(self, generate)

def count(state, bucket):
    reductions.append(bucket)
    return default_hooks.allreduce_hook(state, bucket)

def replicate(self, model):
    replica = replicate_model(self, model)
    replica.register_comm_hook(None, count)
    return replica

def give(self, split, whole=True):
    for x, y in give_windows(self, split, whole):
        windows[rank()] += len(x)
        yield x, y

windows = [0, 0]
Dataset.windows, give_windows = give, Dataset.windows
reductions, replicate_model, Run.replicate = [], Run.replicate, replicate

def batch(self, split):
    drawn.append(split)
    if "DIE" in os.environ and len(drawn) == 3:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if rank():
            os.kill(os.getpid(), signal.SIGKILL)
    return draw(self, split)

Run.finish, Dataset.batch = keep, batch
torch.set_num_threads(1)
run_main(importlib.import_module(sys.argv.pop(1)).main)
"""


@pytest.fixture
def torchrun(tmp_path, text_file):
    """Starts a rung at its tiny sizes in two processes: torchrun("gpt", "run", max_iters=8), a Popen."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")

    def start(rung, out, *flags, environment=(), **options):
        options = tiny_flags(rung) | {"max_iters": 10, "eval_interval": 5} | options
        flags = [*flags, *(f"--{name}={value}" for name, value in options.items())]
        flags += [f"--data={text_file}", f"--out={tmp_path / out}", "--device=cpu"]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, rung]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | dict(environment)
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        return subprocess.Popen([*command, *flags], env=environment, **pipes)

    return start


def weights(path):
    state = torch.load(path, weights_only=True)
    return state.get("model", state)


def distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_processes_train_as_one(train, torchrun, tmp_path):
    flags = {"dropout": 0, "optimizer": "adamw", "learning_rate": 1e-3}
    process = torchrun("gpt", "two", **flags)
    printed, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert printed.count("step  5/10") == 1  # one of the two prints
    one = train("gpt", out="one", max_iters=10, eval_interval=5, **flags)["model"]
    first, second = (weights(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1))
    assert distance(first, second) == 0 and distance(first, weights(tmp_path / "two" / "checkpoint.pt")) == 0
    assert distance(first, one) < 1e-5
    losses = [read(tmp_path / out)["val_loss"][-1] for out in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert "reductions: 10 " in printed  # one bucket in each of 10 steps
    assert "windows: [24, 0]" in printed  # the first process had half of 2 evaluations over 24 windows and a bit


@posix
def test_two_processes_end_together_at_ctrl_c_and_go_on_exactly(torchrun, tmp_path):
    flags = {"max_iters": 40, "eval_interval": 10, "dropout": 0.2, "grad_accum": 3}
    whole = torchrun("gpt", "whole", **flags)
    printed, errors = whole.communicate(timeout=120)
    assert "reductions: 40 " in printed, errors  # gradients of three batches are averaged once
    parts = torchrun("gpt", "parts", **flags)
    for line in parts.stdout:
        if line.startswith("step"):
            parts.send_signal(signal.SIGINT)
            break
    rest, _ = parts.communicate(timeout=120)
    assert "interrupted after step" in rest
    parts = torchrun("gpt", "parts", "--resume", **flags)
    parts.communicate(timeout=120)
    assert (whole.returncode, parts.returncode) == (0, 0)
    assert distance(*(weights(tmp_path / out / "checkpoint.pt") for out in ("whole", "parts"))) == 0


@posix
def test_a_process_that_dies_ends_the_other(torchrun):
    process = torchrun("gpt", "run", environment={"DIE": "1"}, max_iters=10**6)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1 and "SIGKILL" in errors
    assert "script.py: another process has ended (" in errors and "gloo" in errors  # and its own words


@pytest.mark.parametrize(("device", "devices"), [("mps", 0), ("cuda", 1)])
def test_processes_that_cannot_have_a_device_each(monkeypatch, device, devices):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    with pytest.raises(UserError, match="of one process alone|more than the 1 CUDA devices"):
        processes.join(device)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_processes_that_torchrun_did_not_start_do_not_train_over_each_other(monkeypatch, name):
    monkeypatch.setenv(name, "4")
    with pytest.raises(UserError, match=f"{name}=4.*torchrun"):
        processes.join("cpu")


@pytest.mark.parametrize("rung", GPTS)
def test_three_batches_a_step_train_as_one_of_three_times_the_size(train, tmp_path, rung):
    flags = {"dropout": 0, "optimizer": "adamw", "learning_rate": 1e-3}
    three = train(rung, out="three", batch_size=4, grad_accum=3, **flags)["model"]
    one = train(rung, out="one", batch_size=12, **flags)["model"]
    assert distance(three, one) < 1e-5
    rows = [(tmp_path / out / "metrics.csv").read_text(encoding="utf-8").splitlines() for out in ("three", "one")]
    assert [row.split(",")[:2] for row in rows[0]] == [row.split(",")[:2] for row in rows[1]]  # steps and tokens
    losses = ([float(row.split(",")[3]) for row in of_run[1:]] for of_run in rows)
    assert next(losses) == pytest.approx(next(losses), abs=1e-5)
