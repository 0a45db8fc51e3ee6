"""What must not lose work, show a traceback or run anything: kills, full disks, strangers' files, wild options."""

import dataclasses
import errno
import io
import json
import math
import multiprocessing
import os
import pickle
import random
import runpy
import shutil
import signal
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from conftest import GPTS, tiny_flags
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from test_run import interrupt_at, metrics, same

import gpt
import sample
from data import UserError, files
from results import load_checkpoint, parse_config, plot, run_main
from results.checkpoint import save_checkpoint
from studies.measure import resident

ROOT = Path(__file__).parents[1]
posix = pytest.mark.skipif(os.name != "posix", reason="POSIX alone has these signals and limits")


# ---------------------------------------------------------------- Kills and full disks


def run_script(script, argv, errors, limit=None):
    """In a process of its own: `python script argv`, its stderr in a file, no file longer than `limit` bytes."""
    torch.set_num_threads(1)
    if limit:
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    sys.argv = [script, *argv]
    sys.path.insert(0, str(ROOT))
    with open(os.devnull, "w") as sys.stdout, open(errors, "w") as sys.stderr:
        runpy.run_path(str(ROOT / script), run_name="__main__")


@pytest.fixture(scope="module")
def start():
    """Starts a script in a process that has torch imported already."""
    context = multiprocessing.get_context("forkserver" if os.name == "posix" else "spawn")
    if os.name == "posix":
        context.set_forkserver_preload(["torch", "torch._dynamo", "matplotlib.figure"])

    def start(*how, **options):
        process = context.Process(target=run_script, args=how, kwargs=options)
        process.start()
        return process

    return start


@posix
def test_25_kills_lose_nothing(start, train, text_file, tmp_path, monkeypatch):
    chance = random.Random(0)
    options = tiny_flags("gpt") | {"max_iters": 10**6, "eval_interval": 3}
    flags = [*(f"--{name}={value}" for name, value in options.items()), f"--data={text_file}", "--device=cpu"]
    flags += [f"--out={tmp_path / 'killed'}"]
    process = start("gpt.py", flags, tmp_path / "errors")
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        process.join(timeout=0.01)
        assert process.is_alive()
    step = 0
    for _ in range(25):
        process.join(timeout=chance.uniform(0, 0.5))
        assert process.is_alive(), (tmp_path / "errors").read_text()
        process.kill()
        process.join()
        before, step = step, load_checkpoint(tmp_path / "killed")["step"]
        rows = (tmp_path / "killed" / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:-1]
        logged = [int(row.split(",")[0]) for row in rows if not row.endswith(",")]
        assert step >= max(before, *logged[-1:], 0)  # what has another row after it is in a checkpoint
        process = start("gpt.py", [*flags, "--resume"], tmp_path / "errors")
    while load_checkpoint(tmp_path / "killed")["step"] == step:
        process.join(timeout=0.01)
        assert process.is_alive(), (tmp_path / "errors").read_text()
    os.kill(process.pid, signal.SIGINT)
    process.join()
    assert process.exitcode == 130
    killed = load_checkpoint(tmp_path / "killed")
    interrupt_at(monkeypatch, killed["step"])
    with pytest.raises(KeyboardInterrupt):
        train("gpt", out="whole", **options)
    whole = load_checkpoint(tmp_path / "whole")
    for name in ("step", "model", "optimizers", "generators"):
        assert same(whole[name], killed[name]), name
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "killed")


@posix
@pytest.mark.parametrize("share", [0.1, 0.99])
def test_a_full_disk_leaves_the_former_checkpoint(train, start, text_file, tmp_path, share):
    train("gpt")
    files = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    flags = [f"--data={text_file}", f"--out={tmp_path / 'run'}", "--resume", "--max_iters=8"]
    process = start("gpt.py", flags, tmp_path / "errors", limit=int(share * len(files[checkpoint])))
    process.join()
    message = (tmp_path / "errors").read_text()
    assert process.exitcode == 1 and message.count("\n") == 1
    assert ".pt: not written, the former one stands: File too large" in message
    assert checkpoint.read_bytes() == files[checkpoint] and set((tmp_path / "run").iterdir()) == set(files)


def test_sizes_that_no_memory_holds(start, text_file, tmp_path):
    flags = ["--n_embd=2000000", f"--data={text_file}", f"--out={tmp_path / 'run'}", "--device=cpu"]
    process = start("gpt.py", flags, tmp_path / "errors")
    process.join()
    message = (tmp_path / "errors").read_text()
    assert process.exitcode == 2 and message.count("\n") == 1 and "not enough memory" in message


def test_a_loss_that_is_not_finite_is_exit_code_1(start, text_file, tmp_path):
    flags = [f"--{name}={value}" for name, value in tiny_flags("gpt").items()]
    flags += [f"--data={text_file}", f"--out={tmp_path / 'run'}", "--device=cpu", "--learning_rate=1e30"]
    process = start("gpt.py", [*flags, "--optimizer=adamw", "--eval_interval=1"], tmp_path / "errors")
    process.join()
    message = (tmp_path / "errors").read_text()
    assert process.exitcode == 1 and message.count("\n") == 1
    assert "loss is" in message and "at step" in message and "learning rate" in message
    path = tmp_path / "run" / "checkpoint.pt"
    assert not path.exists() or all(w.isfinite().all() for w in load_checkpoint(tmp_path / "run")["model"].values())


# ---------------------------------------------------------------- Files that somebody else has open, as on Windows


def denied(path, *_, **__):
    raise PermissionError(errno.EACCES, "Permission denied", str(path))


def test_a_file_that_is_open_elsewhere_is_tried_again(tmp_path, monkeypatch):
    answers, replace = [denied, denied, os.replace], os.replace
    monkeypatch.setattr(files.os, "replace", lambda *paths: answers.pop(0)(*paths))
    files.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and not answers
    monkeypatch.setattr(files, "PATIENCE", 0)
    monkeypatch.setattr(files.os, "replace", denied)
    with pytest.raises(PermissionError, match="not written, the former one stands"):
        files.write_atomically(tmp_path / "file", b"other")
    monkeypatch.setattr(files.os, "replace", replace)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_checkpoint_that_cannot_be_replaced_for_a_while_ends_no_run(train, tmp_path, monkeypatch, capsys):
    replace, tried = os.replace, []

    def sometimes(part, path):
        if path.name == "checkpoint.pt":
            tried.append(path)
            if len(tried) == 2:
                denied(path)
        replace(part, path)

    monkeypatch.setattr(files, "PATIENCE", 0)
    monkeypatch.setattr(files.os, "replace", sometimes)
    assert train("gpt", max_iters=8)["step"] == 8
    assert "the former one stands: Permission denied; training goes on" in capsys.readouterr().out


def test_rows_wait_while_metrics_csv_is_open_elsewhere(train, tmp_path, monkeypatch, capsys):
    tried = []

    def sometimes(path, mode, **how):
        if path.name == "metrics.csv":
            tried.append(path)
            if 2 <= len(tried) <= 3:
                denied(path)
        return open(path, mode, **how)

    monkeypatch.setattr(files, "PATIENCE", 0)
    monkeypatch.setattr("results.run.open", sometimes, raising=False)
    train("bigram", out="busy", max_iters=8)
    assert capsys.readouterr().out.count("its rows are kept for later") == 1
    train("bigram", out="free", max_iters=8)
    assert metrics(tmp_path / "busy") == metrics(tmp_path / "free")


@posix
def test_a_full_disk_under_metrics_csv_is_one_line(start, text_file, tmp_path):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    out = tmp_path / "run"
    flags = [f"--{name}={value}" for name, value in tiny_flags("bigram").items()]
    script = tmp_path / "full.py"
    script.write_text(FULL_DISK, encoding="utf-8")
    process = start(script, [*flags, f"--data={text_file}", f"--out={out}", "--device=cpu"], tmp_path / "errors")
    process.join()
    message = (tmp_path / "errors").read_text()
    assert process.exitcode == 1 and "metrics.csv: No space left on device" in message and message.count("\n") == 1


# metrics.csv becomes a link to a device that is always full, once the run has begun.
FULL_DISK = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import bigram
from results import Run, run_main

begin = Run.begin

def fill(self, *before):
    begin(self, *before)
    (self.folder / "metrics.csv").unlink()
    (self.folder / "metrics.csv").symlink_to("/dev/full")

Run.begin = fill
run_main(bigram.main)
"""


def test_a_folder_that_cannot_be_synced_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(files.os, "open", denied)
    files.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak")
def test_saving_takes_no_second_copy_in_memory(tmp_path):
    state = {"model": {"weight": torch.ones(2**24)}}  # 64 MB
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    save_checkpoint(tmp_path, {**state, "rung": "gpt"})
    assert resident("VmHWM") - before < 2**25
    assert torch.equal(load_checkpoint(tmp_path)["model"]["weight"], state["model"]["weight"])


# ---------------------------------------------------------------- What is said


def fail(error):
    raise error


@pytest.mark.parametrize(
    ("error", "line", "code"),
    [
        (UserError("what is wrong"), "what is wrong", 2),
        (PermissionError(errno.EACCES, "Permission denied", "my.csv"), "my.csv: Permission denied", 1),
        (FloatingPointError("the loss is nan"), "the loss is nan", 1),
        (MemoryError(), "not enough memory", 2),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe", 1),
    ],
)
def test_what_the_user_can_mend_is_one_line(capsys, error, line, code):
    with pytest.raises(SystemExit) as end:
        run_main(lambda: fail(error))
    printed = capsys.readouterr().err
    assert end.value.code == code and line in printed and printed.count("\n") == 1


@pytest.mark.parametrize("error", [OSError("a fault"), OSError(errno.EBADF, "Bad file"), RuntimeError("gloo")])
def test_a_fault_of_the_code_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        run_main(lambda: fail(error))
    assert raised.value is error


def test_what_goes_to_a_file_is_utf8_whatever_the_system_would_write():
    script = "from results import run_main; run_main(lambda: print('你好'))"
    environment = os.environ | {"PYTHONIOENCODING": "cp1252", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True)
    assert done.stdout.decode("utf-8").strip() == "你好"


# ---------------------------------------------------------------- Resumption


@pytest.mark.parametrize("rung", GPTS)
@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_resumption_is_exact_with_either_optimizer_and_other_max_iters(train, tmp_path, capsys, rung, optimizer):
    flags = {"optimizer": optimizer, "dropout": 0.3, "eval_interval": 2, "grad_accum": 2}
    train(rung, out="whole", max_iters=4, **flags)
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    whole = train(rung, "--resume", out="whole", max_iters=12, **flags)
    assert "12 steps instead of 4" in capsys.readouterr().out
    train(rung, "--resume", out="parts", max_iters=12, **flags | {"eval_interval": 3})  # has its own evaluations ...
    part = torch.load(tmp_path / "parts" / "checkpoint.pt", weights_only=True)
    for name in ("step", "model", "optimizers", "generators"):
        assert same(whole[name], part[name]), name  # ... which change nothing


def test_another_device_is_said_to_change_bits(train, tmp_path, capsys):
    state = train("gpt", max_iters=4)
    state["config"]["device"] = "cuda"
    save_checkpoint(tmp_path / "run", state)
    train("gpt", "--resume", max_iters=8)
    printed = capsys.readouterr().out
    assert "device cpu (as asked)" in printed and "device cuda before: from here on losses may differ" in printed
    gpt.main([f"--out={tmp_path / 'run'}", "--resume", "--max_iters=10", f"--data={tmp_path / 'corpus.txt'}"])
    printed = capsys.readouterr().out
    assert "device cpu, as before" in printed and "may differ" not in printed


# ---------------------------------------------------------------- Strangers' files


def refuse(folder, text_file):
    """Asserts that sample.py and a resumed gpt.py refuse a run in one line, the run being left as it was."""
    shutil.copy(folder / "checkpoint.pt", folder / "best.pt")  # which sample.py takes
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError) as error:
        sample.load(folder, "cpu")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError):
        gpt.main(["--resume", f"--out={folder}", f"--data={text_file}", "--max_iters=100"])
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


@pytest.fixture
def whole(train, tmp_path):
    """A run's checkpoint as it should be, as bytes."""
    train("gpt")
    return (tmp_path / "run" / "checkpoint.pt").read_bytes()


def test_a_checkpoint_cut_short_anywhere(whole, tmp_path):
    for length in random.Random(0).sample(range(len(whole)), 50):
        (tmp_path / "run" / "checkpoint.pt").write_bytes(whole[:length])
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(tmp_path / "run")


def test_a_checkpoint_with_a_bit_flipped_anywhere(whole, tmp_path, text_file):
    for position in random.Random(0).sample(range(8 * len(whole)), 200):
        flipped = bytearray(whole)
        flipped[position // 8] ^= 1 << position % 8
        (tmp_path / "run" / "checkpoint.pt").write_bytes(flipped)
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(tmp_path / "run")
    refuse(tmp_path / "run", text_file)


class Malice:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["torch", "legacy", "pickle", "none"])
def test_a_checkpoint_that_would_run_code(whole, tmp_path, text_file, way):
    state = {"rung": "gpt", "model": {}, "config": Malice(tmp_path / "ran")}
    content = io.BytesIO()
    if way == "torch":
        torch.save(state, content)
    elif way == "legacy":
        torch.save(state, content, _use_new_zipfile_serialization=False)
    else:
        pickle.dump(state, content)
    content = content.getvalue()
    digest = b"" if way == "none" else sha256(content).digest()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content + digest)
    refuse(tmp_path / "run", text_file)
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Malice(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # it would have


def test_a_checkpoint_that_unpacks_to_more_than_it_is(whole, tmp_path, text_file):
    content = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(whole[:-32])) as ours,
        zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as theirs,
    ):
        for name in ours.namelist():
            theirs.writestr(name, bytes(10**8) if name.endswith("/data/0") else ours.read(name))
    content = content.getvalue()
    (tmp_path / "run" / "checkpoint.pt").write_bytes(content + sha256(content).digest())
    assert len(content) < 10**6
    refuse(tmp_path / "run", text_file)


def memory():
    import resource

    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@posix
@pytest.mark.parametrize(
    "sizes",
    [
        {"n_layer": 10**9},
        {"n_layer": 999},
        {"n_embd": 2**30},
        {"n_embd": 2**70},
        {"n_head": 0},
        {"n_head": 2**31 - 1},
        {"block_size": 10**9},
        {"batch_size": -1},
        {"grad_accum": 0},
        {"learning_rate": math.nan},
        {"n_layer": "2"},
        {"n_embd": None},
        {"n_embd": True},
        {"seed": [1] * 1000},
        {"device": "cuda\n:7"},
        {"__class__": "os.system"},
    ],
)
def test_a_checkpoint_with_sizes_that_cannot_be(whole, tmp_path, text_file, sizes):
    state = load_checkpoint(tmp_path / "run")
    state["config"] |= sizes
    save_checkpoint(tmp_path / "run", state)
    before = memory()
    if sizes.keys() & {"device", "block_size"}:  # no matter to sampling
        with pytest.raises(UserError):
            gpt.main(["--resume", f"--out={tmp_path / 'run'}", f"--data={text_file}", "--max_iters=100"])
    else:
        refuse(tmp_path / "run", text_file)
    assert memory() - before < 10**8


def test_weights_that_one_number_stands_for(whole, tmp_path, text_file):
    state = load_checkpoint(tmp_path / "run")
    state["model"]["token_embedding.weight"] = torch.zeros(1).expand(10**6, 10**6)
    save_checkpoint(tmp_path / "run", state)
    refuse(tmp_path / "run", text_file)


PARTS = ["step", "seconds", "corpus_sha256", "metrics", "losses", "model", "optimizers", "generators"]
OTHERS = [(part, other) for part in PARTS for other in (None, "what", {}, [[]]) if (part, other) != ("losses", {})]


@pytest.mark.parametrize(("part", "instead"), OTHERS)
def test_a_checkpoint_without_a_part(whole, tmp_path, text_file, part, instead):
    state = load_checkpoint(tmp_path / "run")
    state[part] = instead
    save_checkpoint(tmp_path / "run", state)
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError):
        gpt.main(["--resume", f"--out={tmp_path / 'run'}", f"--data={text_file}", "--max_iters=100"])
    assert before.keys() == {*(tmp_path / "run").iterdir()}
    assert before[tmp_path / "run" / "metrics.csv"] == (tmp_path / "run" / "metrics.csv").read_bytes()


def test_an_optimizer_of_other_shapes(whole, tmp_path, text_file):
    state = load_checkpoint(tmp_path / "run")
    state["optimizers"][1]["state"][0]["momentum_buffer"] = torch.zeros(3)
    save_checkpoint(tmp_path / "run", state)
    with pytest.raises(UserError, match="damaged"):
        gpt.main(["--resume", f"--out={tmp_path / 'run'}", f"--data={text_file}", "--max_iters=100"])


HEAD = b"step,tokens,seconds,train_loss,val_loss\n"


@pytest.mark.parametrize(
    "rows", [b"a,b\n1,2\n", HEAD + b"1,2,3,x,\n", HEAD + b"1,2,3,\0,\n", b"\xff", HEAD[:9] + b"\n1"]
)
def test_a_metrics_csv_that_is_none(tmp_path, rows):
    (tmp_path / "metrics.csv").write_bytes(rows)
    with pytest.raises(UserError, match="not the losses of a run"):
        plot.main([str(tmp_path), f"--out={tmp_path / 'picture.png'}"])


@pytest.mark.parametrize("row", [b"", b"1", b"1,2,3,", b"1,2,3,4."])
def test_a_run_whose_last_row_is_being_written_is_drawn(tmp_path, row):
    (tmp_path / "metrics.csv").write_bytes(HEAD + row)
    plot.main([str(tmp_path), f"--out={tmp_path / 'picture.png'}"])
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


# ---------------------------------------------------------------- Wild options

values = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.sampled_from(["auto", "small", "full", "cpu", "bfloat16", "muon", "causal", "window:3", 10**400, [], [[1]]]),
)


def options_of(rung):
    names = [field.name for field in dataclasses.fields(rung.Config)]
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=10), values, max_size=5)


def toml(value):
    """The value in TOML, which JSON is but for what is not finite."""
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def check_outcome(rung, argv):
    """A configuration each of whose values is of its type and within its bounds, or one line."""
    try:
        config = parse_config(rung.Config, argv)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        assert type(value) is field.type
        if field.type in (int, float):
            least = field.metadata["least"]
            assert value >= (least if least is not None else field.type is int) and math.isfinite(value)
        if field.metadata["choices"]:
            assert value in field.metadata["choices"]


@pytest.fixture
def lonely(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


quietly = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("rung", GPTS)
def test_any_flags_are_a_configuration_or_one_line(lonely, rung):
    rung = sys.modules[rung]

    @quietly
    @given(options_of(rung))
    @example({"max_iters": "9" * 5000})
    @example({"out": "o" * 5000, "resume": True})
    def check(options):
        check_outcome(rung, [f"--{name}={value}" for name, value in options.items() if name not in ("help", "resume")])

    check()


@pytest.mark.parametrize("rung", GPTS)
def test_any_toml_is_a_configuration_or_one_line(lonely, rung):
    rung = sys.modules[rung]

    @quietly
    @given(options_of(rung).map(lambda options: "\n".join(f"{toml(k)} = {toml(v)}" for k, v in options.items())))
    @example("max_iters = " + "9" * 5000)
    @example("learning_rate = " + "9" * 400)
    @example("out = '" + "o" * 5000 + "'\nresume = true")
    @example('out = "\\u0000"\nresume = true')
    @example("x = " + "[" * 10_000)
    @example("[device]\nname = 1")
    def check(text):
        Path("wild.toml").write_text(text, encoding="utf-8", errors="replace")
        check_outcome(rung, ["--config=wild.toml"])

    check()


@quietly
@given(st.binary(max_size=100))
def test_any_bytes_are_a_toml_or_one_line(lonely, content):
    Path("wild.toml").write_bytes(content)
    check_outcome(gpt, ["--config=wild.toml"])
