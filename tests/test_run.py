"""A run as its user sees it: its folder, its resumption, its lines, its end by Ctrl-C."""

import csv
import json
import os
import runpy
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import RUNGS, tiny_flags

import bigram
import modern_gpt
import sample
from data import Dataset, UserError
from results import Sampling, load_best, load_checkpoint, sample_text
from results.checkpoint import save_checkpoint
from results.run import SAMPLE_LENGTH

ROOT = Path(__file__).parents[1]


def metrics(folder):
    """The rows of metrics.csv without the seconds, which no two runs share."""
    with open(folder / "metrics.csv", encoding="utf-8", newline="") as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def same(a, b):
    """Whether two nested structures of tensors are equal to the last bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def interrupt_at(monkeypatch, step):
    """Sends this process the signal of Ctrl-C while it draws the batch of a step."""
    draw, drawn = Dataset.batch, []

    def batch(self, split):
        drawn.append(split)
        if len(drawn) == step:
            signal.raise_signal(signal.SIGINT)
        return draw(self, split)

    monkeypatch.setattr(Dataset, "batch", batch)


def test_ctrl_c_that_comes_while_the_processes_compare_is_not_lost(train, tmp_path, monkeypatch):
    asked = []

    def mean(value):
        if value == 0 and not asked:
            asked.append(value)
            signal.raise_signal(signal.SIGINT)
        return value

    monkeypatch.setattr("results.run.mean", mean)
    with pytest.raises(KeyboardInterrupt):
        train("bigram", out="run", max_iters=20, eval_interval=20)
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=False)["step"] == 2


@pytest.mark.parametrize("rung", RUNGS)
@pytest.mark.parametrize("stop", [10, 7])
def test_20_steps_equal_some_steps_then_ctrl_c_then_resume(train, tmp_path, monkeypatch, rung, stop):
    flags = {"max_iters": 20, "eval_interval": 5}
    whole = train(rung, out="whole", **flags)
    with monkeypatch.context() as patch:
        interrupt_at(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            train(rung, out="parts", **flags)
    part = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    assert part["step"] == stop
    assert (tmp_path / "parts" / "loss.png").exists() and (tmp_path / "parts" / "sample.txt").exists()
    parts = train(rung, "--resume", out="parts", **flags)
    for name in ("step", "model", "optimizers", "generators", "losses"):
        assert same(whole[name], parts[name]), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert (tmp_path / "whole" / "sample.txt").read_bytes() == (tmp_path / "parts" / "sample.txt").read_bytes()


def test_a_run_that_is_done_goes_on_with_more_steps(train, tmp_path):
    train("bigram", max_iters=4, eval_interval=2)
    assert train("bigram", "--resume", max_iters=8, eval_interval=2)["step"] == 8
    assert [row["step"] for row in metrics(tmp_path / "run")] == ["1", "2", "4", "6", "8"]
    about = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert len(about["commands"]) == 2 and about["config"]["max_iters"] == 8


def test_a_module_is_a_run_whose_command_can_be_given_again(text_file, tmp_path, monkeypatch):
    """modern_gpt.py with windows; sample.py says that it does not know them."""
    sizes = "--size small --n_layer 1 --n_head 2 --n_embd 8 --block_size 16 --batch_size 4 --max_iters 1"
    command = f"-m studies.modern_windows {sizes} --data {text_file} --out {tmp_path / 'run'}"
    monkeypatch.setattr("sys.argv", command.split()[1:])
    monkeypatch.setattr(modern_gpt, "GPT", modern_gpt.GPT)  # which it replaces
    runpy.run_module("studies.modern_windows", run_name="__main__", alter_sys=True)
    about = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert about["commands"] == [f"python {command}"]
    with pytest.raises(UserError, match="another version of its rung"):
        sample.main([str(tmp_path / "run")])


@pytest.mark.parametrize("rung", RUNGS)
def test_same_seed_same_losses_and_another_seed_others(train, tmp_path, rung):
    a, b, c = (train(rung, out=name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(a["model"], b["model"]) and metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert not same(a["model"], c["model"]) and metrics(tmp_path / "a") != metrics(tmp_path / "c")


def test_the_folder_of_a_run(train, tmp_path):
    train("gpt", picture=True, max_iters=4, eval_interval=2)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.csv",
        "checkpoint.pt",
        "best.pt",
        "lock",
        "loss.png",
        "sample.txt",
    }
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (about["rung"], about["config"]["n_layer"]) == ("gpt", 2)
    assert about["versions"]["torch"] == torch.__version__
    assert [row["step"] for row in metrics(folder)] == ["1", "2", "4"]
    assert (folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert len((folder / "sample.txt").read_text(encoding="utf-8")) == 1 + SAMPLE_LENGTH


@pytest.mark.parametrize("parts", [[8], [3, 8], [4, 8]], ids=str)
def test_the_weights_with_the_lowest_validation_loss_are_kept(train, text_file, tmp_path, capsys, parts):
    """The split that validates is unlike the one that trains, so that its loss rises after the first evaluation."""
    text_file.write_text("ab" * 450 + "aabb" * 25, encoding="utf-8")
    flags = {"eval_interval": 2, "learning_rate": 0.3}
    for number, steps in enumerate(parts):
        last = train("bigram", *["--resume"] * (number > 0), **flags, max_iters=steps)
    losses = [float(row["val_loss"]) for row in metrics(tmp_path / "run") if row["val_loss"]]
    assert losses == sorted(losses) and losses[0] < losses[-1]
    assert "by the weights of step 2" in capsys.readouterr().out
    best = load_best(tmp_path / "run")
    assert best["step"] == 2 and last["step"] == 8 and not same(best["model"], last["model"])
    _, model, tokenizer = sample.load(tmp_path / "run", "cpu")
    assert same(model.state_dict(), best["model"])
    (text,) = sample_text(model, bigram.generate, tokenizer, Sampling(max_new_tokens=SAMPLE_LENGTH))
    assert (tmp_path / "run" / "sample.txt").read_text(encoding="utf-8") == text


def test_a_checkpoint_is_written_when_one_is_due_in_time(train, tmp_path, monkeypatch):
    draw, saved = Dataset.batch, []

    def batch(self, split):
        path = tmp_path / "run" / "checkpoint.pt"
        saved.append(torch.load(path, weights_only=True)["step"] if path.exists() else None)
        return draw(self, split)

    monkeypatch.setattr(Dataset, "batch", batch)
    monkeypatch.setattr("results.run.SAVE_INTERVAL", 0)
    whole = train("bigram", max_iters=5, eval_interval=5)
    assert saved == [None, 1, 2, 3, 4]
    monkeypatch.setattr("results.run.SAVE_INTERVAL", 60)
    assert same(train("bigram", out="seldom", max_iters=5, eval_interval=5)["model"], whole["model"])


def test_a_run_that_was_stopped_after_its_last_step_writes_its_sample_on_resumption(train, tmp_path):
    state = train("gpt")
    sampled = tmp_path / "run" / "sample.txt"
    text = sampled.read_bytes()
    sampled.unlink()
    assert same(train("gpt", "--resume")["model"], state["model"])
    assert sampled.read_bytes() == text


def test_a_former_run_is_moved_aside_whole(train, tmp_path):
    train("bigram", seed=1)
    first = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    train("bigram", seed=2)
    (aside,) = tmp_path.glob("run-*")
    assert (aside / "checkpoint.pt").read_bytes() == first != (tmp_path / "run" / "checkpoint.pt").read_bytes()


@pytest.mark.parametrize("flags", [[], ["--resume"]], ids=["anew", "resumed"])
def test_a_folder_in_which_a_run_trains_is_refused_to_others(train, tmp_path, monkeypatch, flags):
    draw, refused = Dataset.batch, []

    def batch(self, split):
        if (tmp_path / "run" / "checkpoint.pt").exists() and not refused:
            refused.append(True)
            with pytest.raises(UserError, match="a run is training there"):
                train("bigram", *flags, max_iters=8)
        return draw(self, split)

    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "batch", batch)
        state = train("bigram", max_iters=8)
    assert refused and [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    assert same(train("bigram", out="alone", max_iters=8)["model"], state["model"])
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")
    train("bigram", seed=2)  # it has ended, so it can be moved aside
    assert len([*tmp_path.glob("run-*")]) == 1


def test_a_folder_that_is_no_run_is_left_alone(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="something else than a run"):
        train("bigram")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(train, tmp_path, monkeypatch):
    state = train("gpt", max_iters=4)
    state["model"]["norm.weight"].fill_(torch.inf)
    save_checkpoint(tmp_path / "run", state)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    with pytest.raises(FloatingPointError, match="the loss is nan at step 6 with learning rate"):
        train("gpt", "--resume", max_iters=8)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert [row["step"] for row in metrics(tmp_path / "run")] == ["1", "2", "4"]
    interrupt_at(monkeypatch, step=1)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 5"):
        train("gpt", "--resume", max_iters=8)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_weights_that_are_not_finite_are_not_saved(train, tmp_path, monkeypatch):
    """An infinite gradient leaves the step's loss as it was."""
    train("bigram", max_iters=4)
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    backward = torch.Tensor.backward

    def overflow(loss):
        backward(loss * torch.inf)

    monkeypatch.setattr(torch.Tensor, "backward", overflow)
    interrupt_at(monkeypatch, step=1)
    with pytest.raises(FloatingPointError, match="the weights are not finite after step 5"):
        train("bigram", "--resume", max_iters=8)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_run_goes_on_with_its_own_text_alone(train, text_file):
    train("bigram")
    text_file.write_text(text_file.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    with pytest.raises(UserError, match="another text"):
        train("bigram", "--resume", max_iters=8)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_a_terminal_has_one_live_line(text_file, tmp_path):
    import pty

    theirs, ours = pty.openpty()
    command = [sys.executable, "bigram.py", f"--data={text_file}", f"--out={tmp_path / 'run'}", "--device=cpu"]
    command += ["--block_size=16", "--max_iters=40", "--eval_interval=20"]
    with subprocess.Popen(command, cwd=ROOT, stdout=ours):
        os.close(ours)
        shown = b""
        while chunk := read_or_end(theirs):
            shown += chunk
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    (first,) = (line for line in lines if "step 20/40" in line)
    assert [part.split()[1] for part in first.split("\r") if part] == ["1/40", "10/40", "20/40"]
    assert "val" in first and "tokens/s" in first and "ETA" in first


def read_or_end(terminal):
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other side has closed
        return b""


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize(("number", "ignored"), [("SIGTERM", False), ("SIGHUP", False), ("SIGHUP", True)])
def test_a_clusters_stop_and_a_closed_terminal_save_the_run(text_file, tmp_path, number, ignored):
    """Unless the signal is ignored, as SIGHUP is under nohup."""
    number = signal.Signals[number]
    out = tmp_path / "run"
    command = [sys.executable, "bigram.py", f"--data={text_file}", f"--out={out}", "--device=cpu", "--max_iters=500"]
    former = signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)  # which a child inherits
    process = subprocess.Popen([*command, "--eval_interval=100"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    signal.signal(number, former)
    for line in process.stdout:
        if line.startswith("step"):
            for _ in range(2):  # a shell and the system each send one
                os.kill(process.pid, number)
            break
    rest, _ = process.communicate(timeout=60)
    state = load_checkpoint(out)
    if ignored:
        assert process.returncode == 0 and state["step"] == 500
    else:
        assert process.returncode == 128 + number and 100 <= state["step"] < 500
        assert ("--resume goes on" in rest) == (number == signal.SIGTERM)  # else its terminal is gone
        assert not (out / "sample.txt").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise")
def test_ctrl_c_ends_a_process_with_130_and_a_run_to_resume(text_file, tmp_path):
    out = tmp_path / "run"
    command = [sys.executable, "gpt.py", f"--data={text_file}", f"--out={out}", "--max_iters=1000000", "--device=cpu"]
    command += [f"--{name}={value}" for name, value in tiny_flags("gpt").items()] + ["--eval_interval=5"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("step"):
            os.kill(process.pid, signal.SIGINT)
            break
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and errors == ""
    assert "--resume goes on" in rest and "\r" not in rest
    _, model, _ = sample.load(out, "cpu")
    assert (out / "loss.png").exists() and (out / "sample.txt").exists() and sum(p.numel() for p in model.parameters())
