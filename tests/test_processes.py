"""Several processes, and several batches a step, train as one process with one batch does."""

import json
import os
import signal
import socket
import subprocess
import sys

import pytest
import torch
from conftest import GPTS, ROOT, argv_of, ended, posix, same, tiny_flags

from data import UserError, processes
from results.metrics import read

# Each process keeps its own weights at the end.
SCRIPT = """
import importlib, sys
import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from data import Dataset
from data.processes import rank
from results import Run, run_main

finish = Run.finish

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

def give(self, split):
    for x, y in give_windows(self, split):
        windows[rank()] += len(x)
        yield x, y

windows = [0, 0]
Dataset.windows, give_windows = give, Dataset.windows
reductions, replicate_model, Run.replicate = [], Run.replicate, replicate

Run.finish = keep
torch.set_num_threads(1)
run_main(importlib.import_module(sys.argv.pop(1)).main)
"""


@pytest.fixture
def torchrun(tmp_path, text_file):
    """Starts a rung at its tiny sizes in two processes: torchrun("gpt", "run", max_iters=8), a Popen."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")

    def start(rung, out, **options):
        options = tiny_flags(rung) | {"max_iters": 10, "eval_interval": 5} | options
        flags = argv_of(**options, data=text_file, out=tmp_path / out, device="cpu")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", script, rung]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8")
        return subprocess.Popen([*command, *flags], env=environment, **pipes)

    return start


def weights(path):
    state = torch.load(path, weights_only=True)
    return state.get("model", state)


def distance(a, b):
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_two_processes_train_as_one(train, torchrun, tmp_path):
    flags = {"dropout": 0, "optimizer": "adamw", "learning_rate": 1e-3, "grad_accum": 3}
    process = torchrun("gpt", "two", **flags)
    printed, errors = process.communicate()
    assert process.returncode == 0, errors
    assert printed.count("step  5/10") == 1  # one of the two prints
    one = train("gpt", out="one", max_iters=10, eval_interval=5, **flags)["model"]
    first, second = (weights(tmp_path / "two" / f"rank{rank}.pt") for rank in (0, 1))
    assert distance(first, second) == 0 and distance(first, weights(tmp_path / "two" / "checkpoint.pt")) == 0
    assert distance(first, one) < 1e-5
    losses = [read(tmp_path / out)["val_loss"][-1] for out in ("two", "one")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert "reductions: 10 " in printed  # one bucket in each of 10 steps, although each has three batches
    assert "windows: [24, 0]" in printed  # the first process had half of 2 evaluations over 24 windows and a bit
    command = json.loads((tmp_path / "two" / "config.json").read_text(encoding="utf-8"))["commands"][0]
    assert command.startswith("torchrun --nproc_per_node 2 ") and f"--out={tmp_path / 'two'}" in command


@pytest.fixture
def two(start, text_file, tmp_path):
    """Starts gpt.py in two processes, as torchrun starts them, but without torchrun."""

    def two(out, *flags, **options):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "1", "WORLD_SIZE": "2"}
        common |= {"LOCAL_WORLD_SIZE": "2", "GROUP_WORLD_SIZE": "1"}
        options = tiny_flags("gpt") | {"eval_interval": 10, "dropout": 0.2, "grad_accum": 3} | options
        flags = [*flags, *argv_of(**options, data=text_file, out=tmp_path / out, device="cpu")]
        return [
            start("gpt.py", flags, number=rank, **common, RANK=str(rank), LOCAL_RANK=str(rank)) for rank in range(2)
        ]

    return two


def wait_for_an_evaluation(process, folder):
    while not (folder / "best.pt").exists():
        process.join(timeout=0.01)
        assert process.is_alive(), process.errors()


@posix
def test_two_processes_end_together_at_ctrl_c_and_continue_exactly(two, tmp_path):
    assert [ended(process) for process in two("whole", max_iters=40)] == [(0, "")] * 2
    parts = two("parts", max_iters=40)
    wait_for_an_evaluation(parts[0], tmp_path / "parts")
    os.kill(parts[1].pid, signal.SIGINT)  # one of them is told
    assert [ended(process) for process in parts] == [(130, "")] * 2
    stopped = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)["step"]
    assert 10 <= stopped < 40 and stopped % 10 == 0
    assert [ended(process) for process in two("parts", "--resume", max_iters=40)] == [(0, "")] * 2
    whole, parts = (torch.load(tmp_path / out / "checkpoint.pt", weights_only=True) for out in ("whole", "parts"))
    assert same(whole["model"], parts["model"]) and same(whole["optimizers"], parts["optimizers"])


@posix
def test_a_process_that_dies_ends_the_other(two, tmp_path):
    """Also where no torchrun would end it, as on another machine."""
    first, second = two("run", max_iters=10**6)
    wait_for_an_evaluation(first, tmp_path / "run")
    second.kill()
    code, errors = ended(first)
    assert code == 1 and errors.startswith("gpt.py: another process has ended (") and "gloo" in errors
    assert errors.count("\n") == 1


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
