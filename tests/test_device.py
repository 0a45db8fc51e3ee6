"""Training on a device other than the CPU: TEST_DEVICE=cuda python -m pytest -n 0 tests/test_device.py

Skipped without TEST_DEVICE. TEST_DEVICE=cpu tries the tests themselves.
"""

import os
import sys

import pytest
import torch
from conftest import (
    CACHED,
    GPTS,
    ROOT,
    RUNGS,
    argv_of,
    build,
    far_from_start,
    interrupt_at,
    metrics,
    run,
    same,
    tiny_flags,
    write_text,
)

import sample
from studies import gains

DEVICE = os.environ.get("TEST_DEVICE", "")
pytestmark = [
    pytest.mark.skipif(not DEVICE, reason="no device to test: TEST_DEVICE=cuda or TEST_DEVICE=mps names one"),
    pytest.mark.filterwarnings("ignore:.*deterministic"),  # of kernels that have no deterministic form
]
on_cuda = pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="only CUDA records a step")


@pytest.fixture
def deterministic(monkeypatch):
    """The kernels that give the same bits every time, where PyTorch has them."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def train_on(device, rung, folder, *flags, **options):
    """Trains a rung's tiny model; returns its checkpoint."""
    text = folder.parent / "corpus.txt"
    if not text.exists():
        write_text(text)
    sizes = tiny_flags(rung) | {"max_iters": 20, "eval_interval": 10, "data": text, "out": folder, "device": device}
    sample.rung(rung)[0].main([*argv_of(**(sizes | options)), *flags])
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def losses(folder, column="train_loss"):
    return torch.tensor([float(row[column]) for row in metrics(folder) if row[column]])


@pytest.mark.parametrize("rung", RUNGS)
def test_losses_are_near_those_of_the_cpu(tmp_path, rung):
    alike = {"dropout": 0.0} if rung in (*GPTS, "transformer") else {}
    alike |= {"size": "small"} if rung in GPTS else {}  # the learning rate of full, the default on CUDA, is another
    for device in ("cpu", DEVICE):
        train_on(device, rung, tmp_path / device, **alike)
    for column in ("train_loss", "val_loss"):
        torch.testing.assert_close(*(losses(tmp_path / d, column) for d in ("cpu", DEVICE)), atol=0.02, rtol=0)


@on_cuda
@pytest.mark.parametrize("rung", GPTS)
@pytest.mark.usefixtures("deterministic")
def test_a_recorded_run_has_the_bits_of_an_eager_one(tmp_path, capfd, rung):
    """With dropout, a changing learning rate, accumulated gradients, and evaluations between the steps."""
    options = dict(max_iters=50, warmup_iters=10, grad_accum=2)
    eager, recorded = (
        train_on(DEVICE, rung, tmp_path / flag, f"--{flag}", **options) for flag in ("no-cuda_graph", "cuda_graph")
    )
    assert "not recorded" not in capfd.readouterr().out
    assert same(eager["model"], recorded["model"])
    assert metrics(tmp_path / "cuda_graph") == metrics(tmp_path / "no-cuda_graph")


@pytest.mark.parametrize("idea", gains.IDEAS)
def test_every_idea_of_the_study_of_gains_trains(tmp_path, capfd, idea):
    sizes = dict(n_layer=4, n_embd=16, n_head=2, block_size=16, batch_size=4, max_iters=60, warmup_iters=5)
    found = [
        gains.Trial(idea, 1, device, **sizes, data=str(write_text(tmp_path / "corpus.txt"))).losses()
        for device in ("cpu", DEVICE)
    ]
    assert "not recorded" not in capfd.readouterr().out
    if idea != "masked tokens":  # which are drawn by the device
        assert found[1] == pytest.approx(found[0], abs=0.1)


def test_a_student_has_the_losses_that_it_has_on_the_cpu(tmp_path, capfd):
    train_on("cpu", "modern_gpt", tmp_path / "teacher", "--size=small")
    sizes = dict(size="small", n_layer=2, dropout=0.0, dtype="float32")
    for device in ("cpu", DEVICE):
        train_on(device, "student", tmp_path / device, f"--teachers={tmp_path / 'teacher'}", **sizes)
    assert "not recorded" not in capfd.readouterr().out
    torch.testing.assert_close(*(losses(tmp_path / d) for d in ("cpu", DEVICE)), atol=0.02, rtol=0)


@on_cuda
def test_what_waits_for_the_device_is_not_recorded(tmp_path, capfd):
    train_on(DEVICE, "gates", tmp_path / "run", "--cuda_graph", attention="hard_window", block_size=256)
    assert "is not recorded as a CUDA graph: it waits for the device" in capfd.readouterr().out


@pytest.mark.parametrize("rung", GPTS)
@pytest.mark.usefixtures("deterministic")
def test_a_resumed_run_has_the_bits_of_one_that_was_not_stopped(tmp_path, monkeypatch, rung):
    flags = ["--cuda_graph"] if DEVICE.startswith("cuda") else []
    whole = train_on(DEVICE, rung, tmp_path / "whole", *flags)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 13)
        train_on(DEVICE, rung, tmp_path / "stopped", *flags)
    stopped = train_on(DEVICE, rung, tmp_path / "stopped", *flags, "--resume")
    assert stopped["step"] == whole["step"] == 20
    assert same(whole["model"], stopped["model"]) and same(whole["generators"], stopped["generators"])


@pytest.mark.parametrize("flags", [[], pytest.param(["--cuda_graph"], marks=on_cuda)])
def test_a_loss_that_is_not_a_number_ends_the_run(tmp_path, flags):
    with pytest.raises(FloatingPointError, match="is (nan|inf) at step"):
        train_on(DEVICE, "gpt", tmp_path / "run", *flags, learning_rate=1e29, warmup_iters=0)


@pytest.mark.parametrize("rung", CACHED)
def test_it_generates_what_the_cpu_generates(rung):
    model, prompt = far_from_start(build(rung)), torch.randint(65, (2, 5))
    generate = sample.rung(rung)[0].generate
    theirs = generate(model, prompt, 40, top_k=1)
    assert torch.equal(generate(model.to(DEVICE), prompt.to(DEVICE), 40, top_k=1).cpu(), theirs)


@on_cuda
def test_memory_does_not_grow(tmp_path):
    flags = tiny_flags("gpt") | {"data": write_text(tmp_path / "corpus.txt"), "eval_interval": 50, "device": DEVICE}
    taken = []
    for steps in (100, 500):  # in a process each, since the first keeps some memory for the next
        argv = argv_of(**flags, max_iters=steps, out=tmp_path / str(steps))
        code = f"import gpt, torch; gpt.main({[*argv, '--cuda_graph']}); print(torch.cuda.max_memory_allocated())"
        done = run("-c", code, env=os.environ | {"PYTHONPATH": str(ROOT)})
        assert done.returncode == 0, done.stderr
        taken.append(int(done.stdout.split()[-1]))
    assert taken[1] < 1.05 * taken[0] + 2**20


@on_cuda
def test_one_process_of_torchrun_trains_with_nccl(tmp_path):
    flags = tiny_flags("gpt") | {"max_iters": 4, "data": write_text(tmp_path / "corpus.txt"), "out": tmp_path / "run"}
    command = ["-m", "torch.distributed.run", "--nproc_per_node=1", ROOT / "gpt.py", f"--device={DEVICE}"]
    done = run(*command, *argv_of(**flags), env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0, done.stderr
    assert len(losses(tmp_path / "run")) > 0
