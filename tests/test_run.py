"""A run as its user sees it: its folder, its resumption, its lines, its end by Ctrl-C."""

import json
import os
import runpy
import signal
import sys

import pytest
import torch
from conftest import (
    GPTS,
    RUNGS,
    argv_of,
    at_batch,
    contents,
    ended,
    interrupt_at,
    metrics,
    posix,
    run,
    same,
    tiny_flags,
)

import bigram
import sample
from data import Dataset, UserError
from results import Sampling, load_best, load_checkpoint, sample_text
from results.checkpoint import save_checkpoint
from results.run import SAMPLE_LENGTH

FILES = {"config.json", "metrics.csv", "checkpoint.pt", "best.pt", "lock", "loss.png", "sample.txt"}
EXACT = ("step", "drawn", "best", "model", "optimizers", "generators", "losses")

# ---------------------------------------------------------------- Resumption


@pytest.mark.parametrize(("rung", "stop"), [("gpt", 10), *((rung, 7) for rung in RUNGS)])
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
    for name in EXACT:
        assert same(whole[name], parts[name]), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert (tmp_path / "whole" / "sample.txt").read_bytes() == (tmp_path / "parts" / "sample.txt").read_bytes()


@pytest.mark.parametrize(("rung", "optimizer"), [("gpt", "adamw"), *((rung, "muon") for rung in GPTS)])
def test_resumption_is_exact_with_either_optimizer_and_more_steps(train, tmp_path, capsys, rung, optimizer):
    flags = {"optimizer": optimizer, "dropout": 0.3, "eval_interval": 2, "grad_accum": 2}
    train(rung, out="whole", max_iters=4, **flags)
    for path, content in contents(tmp_path / "whole").items():
        (tmp_path / "parts").mkdir(exist_ok=True)
        (tmp_path / "parts" / path.name).write_bytes(content)
    whole = train(rung, "--resume", out="whole", max_iters=12, **flags)
    assert "12 steps instead of 4" in capsys.readouterr().out
    part = train(rung, "--resume", out="parts", max_iters=12, **flags | {"eval_interval": 3})  # has its own evaluations
    for name in ("step", "model", "optimizers", "generators"):
        assert same(whole[name], part[name]), name  # ... which change nothing
    about = json.loads((tmp_path / "whole" / "config.json").read_text(encoding="utf-8"))
    assert len(about["commands"]) == 2 and about["config"]["max_iters"] == 12


def test_a_run_that_was_stopped_after_its_last_step_writes_its_sample_on_resumption(train, tmp_path):
    state = train("gpt")
    sampled = tmp_path / "run" / "sample.txt"
    text = sampled.read_bytes()
    sampled.unlink()
    assert same(train("gpt", "--resume")["model"], state["model"])
    assert sampled.read_bytes() == text


def test_a_checkpoint_of_before_an_option_has_its_default(train, tmp_path):
    state = train("gpt", max_iters=5)
    del state["config"]["compile"]
    state["config"]["mfu"] = False  # an option that is gone and computed nothing
    for name in ("checkpoint.pt", "best.pt"):
        save_checkpoint(tmp_path / "run", state, name)
    sample.load(tmp_path / "run", "cpu")
    assert train("gpt", "--resume", max_iters=7)["config"]["compile"] is False
    state["config"]["colour"] = "red"
    save_checkpoint(tmp_path / "run", state, "best.pt")
    with pytest.raises(UserError, match="there is no flag --colour"):
        sample.load(tmp_path / "run", "cpu")


def test_a_run_from_before_version_1_is_sampled_and_not_resumed(train, tmp_path):
    state = train("gpt")
    del state["drawn"], state["best"]
    for name in ("checkpoint.pt", "best.pt"):
        save_checkpoint(tmp_path / "run", state, name)
    sample.load(tmp_path / "run", "cpu")
    with pytest.raises(UserError, match="from before version 1.0; sample.py can use it"):
        train("gpt", "--resume", max_iters=8)


def test_another_device_is_said_to_change_bits(train, tmp_path, capsys):
    state = train("gpt")
    state["config"]["device"] = "cuda"
    state["generators"]["cuda"] = torch.zeros(16, dtype=torch.uint8)
    save_checkpoint(tmp_path / "run", state)
    train("gpt", "--resume", max_iters=8)
    printed = capsys.readouterr().out
    assert "device cpu (as asked)" in printed and "device cuda before: from here on losses may differ" in printed


def test_a_run_continues_with_its_own_text_alone(train, text_file):
    train("bigram")
    text_file.write_text(text_file.read_text(encoding="utf-8")[::-1], encoding="utf-8")
    with pytest.raises(UserError, match="another text"):
        train("bigram", "--resume", max_iters=8)


@posix
def test_a_pipe_in_place_of_its_text_is_not_waited_for(train, text_file, tmp_path):
    train("bigram")
    text_file.unlink()
    os.mkfifo(text_file)
    with pytest.raises(UserError, match="is not a file; name it with --data"):
        bigram.main(["--resume", f"--out={tmp_path / 'run'}", "--device=cpu"])


def test_a_run_may_go_on_without_recorded_steps(train, tmp_path):
    train("gpt")
    train("gpt", "--resume", "--no-cuda_graph", max_iters=8)
    assert load_checkpoint(tmp_path / "run")["step"] == 8


@pytest.mark.parametrize("rung", ["bigram", "gpt"])
def test_same_seed_same_losses_and_another_seed_others(train, tmp_path, rung):
    a, b, c = (train(rung, out=name, seed=seed) for name, seed in (("a", 1), ("b", 1), ("c", 2)))
    assert same(a["model"], b["model"]) and metrics(tmp_path / "a") == metrics(tmp_path / "b")
    assert not same(a["model"], c["model"]) and metrics(tmp_path / "a") != metrics(tmp_path / "c")


# ---------------------------------------------------------------- The folder


def test_the_folder_of_a_run(train, tmp_path):
    train("gpt", picture=True)
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == FILES
    about = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert (about["rung"], about["config"]["n_layer"]) == ("gpt", 2)
    assert about["versions"]["torch"] == torch.__version__ and about["versions"]["ladder"]
    assert [(row["step"], row["tokens"]) for row in metrics(folder)] == [("1", "64"), ("2", "128"), ("4", "256")]
    assert len((folder / "loss.png").read_bytes()) > 10_000
    assert len((folder / "sample.txt").read_text(encoding="utf-8")) == 1 + SAMPLE_LENGTH


def test_tokens_are_those_that_were_drawn(train, tmp_path, monkeypatch):
    """In modern_gpt.py the first windows are shorter, and 15 is no multiple of 1, 3 and 7."""
    seen, draw = [], Dataset.batch

    def batch(self, *how):
        x, y = draw(self, *how)
        seen.append(x.numel())
        return x, y

    monkeypatch.setattr(Dataset, "batch", batch)
    train("modern_gpt", block_size=15, max_iters=12, eval_interval=12, grad_accum=2)
    assert [int(row["tokens"]) for row in metrics(tmp_path / "run")] == [sum(seen[:2]), sum(seen[:20]), sum(seen)]


def test_every_evaluation_of_modern_gpt_is_over_whole_windows(train, monkeypatch):
    lengths, windows = [], Dataset.windows

    def noted(self, split):
        for x, y in windows(self, split):
            lengths.append(x.shape[1])
            yield x, y

    monkeypatch.setattr(Dataset, "windows", noted)
    train("modern_gpt", max_iters=1)
    assert lengths.count(16) == len(lengths) - 1  # and the rest of the split


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


def test_a_long_text_keeps_the_weights_that_are_best_over_what_every_evaluation_is_over(train, tmp_path, monkeypatch):
    monkeypatch.setattr("data.dataset.PART", 64)
    train("bigram", learning_rate=0.05, max_iters=30, eval_interval=3)
    losses = {int(row["step"]): float(row["val_loss"]) for row in metrics(tmp_path / "run") if row["val_loss"]}
    assert load_best(tmp_path / "run")["step"] == min(losses, key=losses.get)
    assert float(f"{load_best(tmp_path / 'run')['best']:.6f}") == min(losses.values())


def test_a_checkpoint_is_written_when_one_is_due_in_time(train, tmp_path, monkeypatch):
    draw, saved = Dataset.batch, []

    def batch(self, split):
        path = tmp_path / "run" / "checkpoint.pt"
        saved.append(torch.load(path, weights_only=True)["step"] if path.exists() else None)
        return draw(self, split)

    monkeypatch.setattr(Dataset, "batch", batch)
    monkeypatch.setattr("results.run.SAVE_INTERVAL", 0)
    train("bigram", max_iters=5, eval_interval=5)
    assert saved == [None, 1, 2, 3, 4]


# ---------------------------------------------------------------- What a new run may find in its folder


@pytest.mark.parametrize("inside", ["run", "run/notes"])
@pytest.mark.parametrize("out", ["absolute", "relative"])
def test_a_former_run_is_moved_aside_whole_wherever_one_is(train, tmp_path, monkeypatch, inside, out):
    train("bigram")
    (tmp_path / "run" / "notes").mkdir()
    former = {path.name: content for path, content in contents(tmp_path / "run").items()}
    monkeypatch.chdir(tmp_path / inside)
    where = tmp_path / "run" if out == "absolute" else os.path.relpath(tmp_path / "run")
    text = ["--data", str(tmp_path / "corpus.txt"), "--block_size=16", "--max_iters=2", "--device=cpu", "--seed=2"]
    bigram.main([*text, f"--out={where}"])
    (aside,) = tmp_path.glob("run-*")
    assert {path.name: content for path, content in contents(aside).items()} == former
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES
    assert load_checkpoint(tmp_path / "run")["config"]["seed"] == 2


def test_many_runs_within_a_second_are_all_kept(train, tmp_path):
    for seed in range(1, 6):
        train("bigram", seed=seed)
    kept = [load_checkpoint(folder)["config"]["seed"] for folder in tmp_path.glob("run*")]
    assert sorted(kept) == [1, 2, 3, 4, 5]


def test_what_a_killed_start_leaves_is_taken_over(train, tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("lock", "config.json.part"):
        (tmp_path / "run" / name).write_text("{")
    train("bigram")
    assert not [*tmp_path.glob("run-*")] and {path.name for path in (tmp_path / "run").iterdir()} >= FILES


def test_a_run_that_cannot_be_moved_aside_says_why(train, tmp_path, monkeypatch):
    """Its folder is a mount point, say."""
    train("bigram")
    before = contents(tmp_path)

    def busy(*_):
        raise OSError(16, "Device or resource busy")

    monkeypatch.setattr("results.run.Path.rename", busy)
    with pytest.raises(UserError, match=r"cannot be moved to run-.* \(Device or resource busy\); name another folder"):
        train("bigram", seed=2)
    assert contents(tmp_path) == before


def test_a_folder_that_is_no_run_is_left_alone(train, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("precious")
    with pytest.raises(UserError, match="something else than a run"):
        train("bigram")
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["thesis.txt"]


@posix
def test_a_loop_of_links_as_a_folder_is_one_line(train, tmp_path):
    (tmp_path / "run").symlink_to(tmp_path / "other")
    (tmp_path / "other").symlink_to(tmp_path / "run")
    with pytest.raises(UserError, match="--out"):
        train("bigram")


@pytest.mark.parametrize("flags", [[], ["--resume"]], ids=["anew", "resumed"])
def test_a_folder_in_which_a_run_trains_is_refused_to_others(train, tmp_path, monkeypatch, flags):
    refused = []

    def intrude():
        refused.append(True)
        with pytest.raises(UserError, match="a run is training there"):
            train("bigram", *flags, max_iters=8)

    with monkeypatch.context() as patch:
        at_batch(patch, 4, intrude)
        state = train("bigram", max_iters=8)
    assert refused and [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["run"]
    assert same(train("bigram", out="alone", max_iters=8)["model"], state["model"])
    assert metrics(tmp_path / "run") == metrics(tmp_path / "alone")
    train("bigram", seed=2)  # it has ended, so it can be moved aside
    assert len([*tmp_path.glob("run-*")]) == 1


# ---------------------------------------------------------------- What must not be saved, and what must not stop


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(train, tmp_path, monkeypatch):
    state = train("gpt")
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
    train("bigram")
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    backward = torch.Tensor.backward
    monkeypatch.setattr(torch.Tensor, "backward", lambda loss: backward(loss * torch.inf))
    interrupt_at(monkeypatch, step=1)
    with pytest.raises(FloatingPointError, match="the weights are not finite after step 5"):
        train("bigram", "--resume", max_iters=8)
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before


def test_a_folder_of_any_name_is_sampled_and_drawn(train, tmp_path):
    for name in ["a$_$b", "100$^$", r"\frac{", "ü 仁"] + ["\udcff"] * (os.name == "posix" and sys.platform != "darwin"):
        train("bigram", out=name, picture=True, max_iters=2)
        assert (tmp_path / name / "loss.png").stat().st_size > 10_000 and (tmp_path / name / "sample.txt").exists()


def test_a_picture_that_cannot_be_drawn_is_one_line_and_the_sample_is_there(text_file, tmp_path):
    done = run("bigram.py", f"--data={text_file}", f"--out={tmp_path / 'run'}", "--block_size=16", "--max_iters=2",
               "--device=cpu", env=os.environ | {"MPLBACKEND": "nonsense"})  # fmt: skip
    assert done.returncode == 0 and done.stderr == "" and done.stdout.count("loss.png: not drawn (") == 1
    assert {path.name for path in (tmp_path / "run").iterdir()} == FILES - {"loss.png"}


# ---------------------------------------------------------------- Lines and signals


@posix
def test_a_terminal_has_one_live_line(start, text_file, tmp_path):
    """That never wraps: the next one could not overwrite it."""
    import pty

    theirs, ours = pty.openpty()
    flags = argv_of(data=text_file, out=tmp_path / "run", device="cpu", block_size=16, vocab_size=300)
    flags += argv_of(max_iters=40, eval_interval=20)
    process = start("bigram.py", flags, stdout=os.ttyname(ours), COLUMNS="60")
    os.close(ours)
    shown = b""
    while chunk := read_or_end(theirs, process):
        shown += chunk
    lines = shown.decode().replace("\r\n", "\n").split("\n")
    (first,) = (line for line in lines if "step 20/40" in line)
    updates = [part for part in first.split("\r") if part]
    assert [part.split()[1] for part in updates] == ["1/40", "10/40", "20/40"] and {*map(len, updates)} == {59}
    assert "val" in first


def read_or_end(terminal, process):
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that no one has the other side open
        if process.is_alive():  # not yet, or no longer
            process.join(timeout=0.01)
            return read_or_end(terminal, process)
        return b""


def start_and_signal(start, number, text_file, out, **options):
    """Sends a signal to a run after its first evaluation; gives its exit code, its stderr and its stdout."""
    flags = tiny_flags("gpt") | {"max_iters": 10**6, "eval_interval": 5, "data": text_file, "out": out, "device": "cpu"}
    process = start("gpt.py", argv_of(**flags), stdout=out.with_name("stdout"))
    while not (out / "best.pt").exists():
        process.join(timeout=0.01)
        assert process.is_alive(), process.errors()
    os.kill(process.pid, number)
    if number == signal.SIGTERM:
        os.kill(process.pid, number)  # a shell and the system each send one
    return *ended(process), out.with_name("stdout").read_text(encoding="utf-8")


@posix
def test_a_clusters_stop_saves_the_run(start, text_file, tmp_path):
    out = tmp_path / "run"
    code, errors, printed = start_and_signal(start, signal.SIGTERM, text_file, out)
    assert (code, errors) == (128 + signal.SIGTERM, "") and load_checkpoint(out)["step"] >= 5
    assert "--resume continues from here" in printed and not (out / "sample.txt").exists()


@posix
def test_ctrl_c_ends_a_process_with_130_and_a_run_to_resume(start, text_file, tmp_path):
    out = tmp_path / "run"
    code, errors, printed = start_and_signal(start, signal.SIGINT, text_file, out)
    assert (code, errors) == (130, "")
    assert "--resume continues from here" in printed and "\r" not in printed
    assert {path.name for path in out.iterdir()} == FILES


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
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 2


@pytest.mark.filterwarnings("ignore:'studies.*found in sys.modules:RuntimeWarning")  # other tests have imported it
@pytest.mark.parametrize("study", ["modern_windows", "gates"])
def test_a_study_can_be_a_run_like_any_other(text_file, tmp_path, monkeypatch, study):
    sizes = "--size small --n_layer 1 --n_head 2 --n_embd 8 --block_size 16 --batch_size 4 --max_iters 1 --device cpu"
    command = f"-m studies.{study} {sizes} --data {text_file} --out {tmp_path / 'run'}"
    monkeypatch.setattr("sys.argv", command.split()[1:])
    runpy.run_module(f"studies.{study}", run_name="__main__", alter_sys=True)
    about = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert about["commands"] == [f"python {command}"] and about["rung"] == study
    _, model, _ = sample.load(tmp_path / "run", "cpu")
    assert model(torch.zeros(1, 3, dtype=torch.long)).shape[:2] == (1, 3)
