"""What must not lose work, show a traceback or run anything: kills, full disks, untrusted files, wild options."""

import dataclasses
import errno
import importlib
import io
import json
import math
import os
import pickle
import random
import shutil
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import GPTS, argv_of, contents, ended, interrupt_at, posix, same, tiny_flags, train_tiny, write_text
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import gpt
import sample
from data import UserError, files
from results import load_checkpoint, parse_config, plot, run_main
from results.checkpoint import save_checkpoint
from results.flags import WITHIN
from studies.measure import resident

# ---------------------------------------------------------------- Kills and full disks


@posix
def test_kills_lose_nothing(start, train, text_file, tmp_path, monkeypatch):
    """Each comes a random while after a checkpoint was written: in the middle of a step, of a save, of a start."""
    chance, steps, folder = random.Random(0), [], tmp_path / "killed"
    options = tiny_flags("gpt") | {"max_iters": 10**6, "eval_interval": 3, "data": text_file, "device": "cpu"}
    flags = argv_of(**options, out=folder)

    def checkpoint():
        return load_checkpoint(folder)["step"] if (folder / "checkpoint.pt").exists() else 0

    for number in range(6):
        process = start("gpt.py", [*flags, *["--resume"] * (number > 0)])
        while checkpoint() == (steps[-1] if steps else 0) and number < 5:  # it has come further than the last one
            process.join(timeout=0.01)
            assert process.is_alive(), process.errors()
        process.join(timeout=chance.uniform(0, 0.2))
        process.kill()
        process.join()
        rows = (folder / "metrics.csv").read_text(encoding="utf-8").splitlines()[1:-1]
        logged = [int(row.split(",")[0]) for row in rows if not row.endswith(",")]
        steps.append(checkpoint())
        assert steps == sorted(steps) and steps[-1] >= max(logged, default=0)  # what is logged whole is in a checkpoint
    killed = load_checkpoint(folder)
    interrupt_at(monkeypatch, killed["step"])
    with pytest.raises(KeyboardInterrupt):
        train("gpt", out="whole", **options)
    whole = load_checkpoint(tmp_path / "whole")
    for name in ("step", "drawn", "best", "model", "optimizers", "generators"):
        assert same(whole[name], killed[name]), name


@posix
@pytest.mark.parametrize("share", [0.1, 0.99])
def test_a_full_disk_leaves_the_former_checkpoint(train, start, text_file, tmp_path, share):
    train("gpt")
    before = contents(tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint.pt"
    flags = argv_of(data=text_file, out=tmp_path / "run", max_iters=8)
    code, message = ended(start("gpt.py", [*flags, "--resume"], limit=int(share * len(before[checkpoint]))))
    assert code == 1 and message.count("\n") == 1
    assert ".pt: could not be written (File too large); the former file is kept" in message
    assert checkpoint.read_bytes() == before[checkpoint] and contents(tmp_path / "run").keys() == before.keys()


@posix
def test_wherever_the_disk_is_full_the_former_file_stays(tmp_path):
    """Whatever torch.save was writing then: the beginning, a tensor, or the zip's table of contents."""
    import resource

    path, limits = tmp_path / "checkpoint.pt", resource.getrlimit(resource.RLIMIT_FSIZE)
    save_checkpoint(tmp_path, {"model": {str(n): torch.randn(50, 50) for n in range(4)}})
    before = path.read_bytes()
    try:
        for limit in range(1000, len(before), 1000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limits[1]))
            with pytest.raises(OSError, match="could not be written .File too large.; the former file is kept"):
                save_checkpoint(tmp_path, {"model": {str(n): torch.randn(50, 50) for n in range(4)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert contents(tmp_path) == {path: before}


@posix
def test_a_full_disk_under_metrics_csv_is_one_line(train, tmp_path, monkeypatch, capsys):
    """metrics.csv is a device that is always full."""
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    monkeypatch.setattr("results.run.open", lambda path, mode, **how: open("/dev/full", mode, **how), raising=False)
    with pytest.raises(SystemExit) as end:
        run_main(lambda: train("bigram"))
    assert end.value.code == 1
    assert capsys.readouterr().err.endswith(": No space left on device\n")


def test_sizes_that_no_memory_holds(start, text_file, tmp_path):
    flags = argv_of(n_embd=2_000_000, data=text_file, out=tmp_path / "run", device="cpu")
    code, message = ended(start("gpt.py", flags))
    assert code == 2 and message.count("\n") == 1 and "not enough memory" in message


def test_a_loss_that_is_not_finite_is_exit_code_1(start, text_file, tmp_path):
    flags = tiny_flags("gpt") | {"data": text_file, "out": tmp_path / "run", "device": "cpu", "learning_rate": 9e29}
    code, message = ended(start("gpt.py", argv_of(**flags, optimizer="adamw", eval_interval=1)))
    assert code == 1 and message.count("\n") == 1
    assert "loss is" in message and "at step" in message and "learning rate" in message


def test_a_file_that_is_open_elsewhere_is_tried_again(tmp_path, monkeypatch):
    """As on Windows, for a virus scanner."""

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    answers = [denied, denied, os.replace]
    monkeypatch.setattr(files.os, "name", "nt")
    monkeypatch.setattr(files.os, "replace", lambda *paths: answers.pop(0)(*paths))
    files.write_atomically(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and not answers
    clock = iter(range(0, 100, 1))
    monkeypatch.setattr(files.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(files.os, "replace", denied)
    with pytest.raises(PermissionError, match="Permission denied.*the former file is kept"):
        files.write_atomically(tmp_path / "file", b"other")
    assert contents(tmp_path) == {tmp_path / "file": b"content"}


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone tells the peak")
def test_saving_takes_no_second_copy_in_memory(tmp_path):
    state = {"model": {"weight": torch.ones(2**24)}}  # 64 MB
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    before = resident("VmRSS")
    save_checkpoint(tmp_path, {**state, "rung": "gpt"})
    assert resident("VmHWM") - before < 2**25
    assert torch.equal(load_checkpoint(tmp_path)["model"]["weight"], state["model"]["weight"])


# ---------------------------------------------------------------- What a command may replace


def test_a_command_replaces_only_what_it_made(train, tmp_path):
    train("bigram")
    for name, content in {"thesis.png": b"precious", "picture.png": None, "picture": None, "vector.svg": None}.items():
        path = tmp_path / name
        if content:
            path.write_bytes(content)
            with pytest.raises(UserError, match="was not written by this command"):
                plot.main([str(tmp_path / "run"), f"--out={path}"])
            assert path.read_bytes() == content
        else:
            for _ in range(2):
                plot.main([str(tmp_path / "run"), f"--out={path}"])
            assert path.stat().st_size > 1000
    assert not [*tmp_path.glob("*.part")]


@posix
def test_a_link_stays_a_link_and_a_device_a_device(train, tmp_path):
    train("bigram")
    link, target = tmp_path / "link.png", tmp_path / "target.png"
    link.symlink_to(target)
    for _ in range(2):
        plot.main([str(tmp_path / "run"), f"--out={link}"])
    assert link.is_symlink() and target.stat().st_size > 1000
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "/dev/null"):
        with pytest.raises(UserError, match="this is not a file"):
            plot.main([str(tmp_path / "run"), f"--out={path}"])


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
        (RuntimeError("CUDA error: out of memory"), "not enough memory", 2),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), "not enough memory", 2),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device", 1),
    ],
)
def test_what_the_user_can_fix_is_one_line(capsys, error, line, code):
    with pytest.raises(SystemExit) as end:
        run_main(lambda: fail(error))
    printed = capsys.readouterr().err
    assert end.value.code == code and line in printed and printed.count("\n") == 1


def test_a_stdout_without_an_encoding(monkeypatch):
    """As in IDLE."""
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    run_main(lambda: print("said"))
    assert sys.stdout.getvalue() == "said\n"


@pytest.mark.parametrize("error", [OSError("a fault"), OSError(errno.EBADF, "Bad file"), RuntimeError("gloo")])
def test_a_fault_of_the_code_keeps_its_traceback(error):
    with pytest.raises(type(error)) as raised:
        run_main(lambda: fail(error))
    assert raised.value is error


# ---------------------------------------------------------------- Untrusted files


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    train_tiny("gpt", write_text(folder / "corpus.txt"), folder / "run")
    return folder / "run"


@pytest.fixture
def whole(trained, tmp_path):
    """A run's folder, of which a test may spoil what it likes."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def refused(whole, text_file):
    """Asserts that sample.py and a resumed gpt.py refuse a checkpoint in one line, the run being left as it was.

    It is given as bytes, or as a function that changes the state. sampled: whether sample.py has to refuse it too.
    """

    def refused(spoiled, sampled=True):
        if callable(spoiled):
            state = load_checkpoint(whole)
            spoiled(state)
            save_checkpoint(whole, state)
        else:
            (whole / "checkpoint.pt").write_bytes(spoiled)
        if sampled:
            shutil.copy(whole / "checkpoint.pt", whole / "best.pt")  # which sample.py takes
        before, memory, begun = contents(whole), peak(), time.perf_counter()
        for use in [lambda: sample.load(whole, "cpu")] * sampled + [resume]:
            with pytest.raises(UserError) as error:
                use()
            assert "\n" not in str(error.value) and len(str(error.value)) < 1000
        assert contents(whole) == before
        assert peak() - memory < 2e8 and time.perf_counter() - begun < 60  # and not gigabytes, or forever

    def resume():
        gpt.main(["--resume", f"--out={whole}", f"--data={text_file}", "--max_iters=100", "--device=cpu"])

    return refused


def peak():
    if os.name != "posix":
        return 0
    import resource

    return (1024 if sys.platform == "linux" else 1) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def test_a_checkpoint_cut_short_or_with_a_bit_flipped(whole):
    """It is refused, or the flip was in padding and changed nothing."""
    content, state = (whole / "checkpoint.pt").read_bytes(), load_checkpoint(whole)
    for length in random.Random(0).sample(range(len(content)), 50):
        (whole / "checkpoint.pt").write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged"):
            load_checkpoint(whole)
    harmless = 0
    for position in random.Random(0).sample(range(8 * len(content)), 200):
        flipped = bytearray(content)
        flipped[position // 8] ^= 1 << position % 8
        (whole / "checkpoint.pt").write_bytes(flipped)
        try:
            assert same(load_checkpoint(whole), state)
            harmless += 1
        except UserError as error:
            assert "damaged" in str(error)
    assert harmless < 50


def test_a_checkpoint_of_before_its_trailer_went_is_read(whole):
    """Files of earlier versions end with 32 bytes more."""
    state = load_checkpoint(whole)
    with open(whole / "checkpoint.pt", "ab") as file:
        file.write(bytes(range(32)))
    assert same(load_checkpoint(whole), state)


class Malice:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("way", ["torch", "legacy", "pickle"])
def test_a_checkpoint_that_would_run_code(refused, tmp_path, way):
    state, content = {"rung": "gpt", "model": {}, "config": Malice(tmp_path / "ran")}, io.BytesIO()
    if way == "pickle":
        pickle.dump(state, content)
    else:
        torch.save(state, content, _use_new_zipfile_serialization=way == "torch")
    refused(content.getvalue())
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Malice(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()  # it would have


class Large:
    """Unpickled, it is as many bytes as it says."""

    def __init__(self, size):
        self.size = size

    def __reduce__(self):
        return bytearray, (self.size,)


def test_a_checkpoint_that_asks_for_memory(refused):
    content = io.BytesIO()
    torch.save({"rung": "gpt", "model": {}, "extra": Large(4 * 2**30)}, content)
    refused(content.getvalue())


@pytest.mark.parametrize("way", ["compressed", "twice"])
def test_a_checkpoint_that_unpacks_to_more_than_it_is(refused, whole, way):
    content = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if way == "compressed" else zipfile.ZIP_STORED
    with zipfile.ZipFile(whole / "checkpoint.pt") as ours, zipfile.ZipFile(content, "w", kind) as theirs:
        for name in ours.namelist():
            theirs.writestr(name, bytes(10**8) if (name[-7:], way) == ("/data/0", "compressed") else ours.read(name))
        if way == "twice":
            with pytest.warns(UserWarning, match="Duplicate"):
                theirs.writestr(next(name for name in ours.namelist() if name.endswith("data.pkl")), b"")
    assert len(content.getvalue()) < 10**6
    refused(content.getvalue())


@pytest.mark.parametrize("way", ["DATA.PKL", "data.pkl and DATA.PKL", "a legacy file before a zip", "two zips"])
def test_a_checkpoint_that_could_be_read_in_two_ways(refused, whole, way):
    """torch would read the part that asks for memory, and zipfile the other one."""

    def saved(new):
        content = io.BytesIO()
        torch.save({"rung": "gpt", "model": {}, "extra": Large(3 * 10**8)}, content, _use_new_zipfile_serialization=new)
        return content.getvalue()

    ours = (whole / "checkpoint.pt").read_bytes()
    if way == "a legacy file before a zip":
        return refused(saved(False) + ours)
    if way == "two zips":
        return refused(saved(True) + ours)
    content = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(saved(True))) as theirs, zipfile.ZipFile(content, "w") as spoiled:
        for name in theirs.namelist():
            spoiled.writestr(name.replace("data.pkl", "DATA.PKL"), theirs.read(name))
        if way != "DATA.PKL":
            with zipfile.ZipFile(io.BytesIO(ours)) as parts:
                name = next(name for name in parts.namelist() if name.endswith("/data.pkl"))
                spoiled.writestr("archive/data.pkl", parts.read(name))
    refused(content.getvalue())


@posix
def test_a_pipe_in_place_of_a_checkpoint(whole):
    for name in ("checkpoint.pt", "best.pt"):
        (whole / name).unlink()
        os.mkfifo(whole / name)
    with pytest.raises(UserError, match="there is no checkpoint here"):
        sample.load(whole, "cpu")


def doubled(n):
    """A list that has 2^n ends and takes the room of n."""
    nest = []
    for _ in range(n):
        nest = [nest, nest]
    return nest


SIZES = [
    {"n_layer": 10**9},
    {"n_layer": 999},
    {"n_embd": 2**30},
    {"n_embd": 2**70},
    {"block_size": 10**8},
    {"n_head": 0},
    {"n_head": 2**31 - 1},
    {"batch_size": -1},
    {"learning_rate": math.nan},
    {"n_embd": None},
    {"n_embd": True},
    {"n_embd": 10**5000},
    {"seed": [1] * 1000},
    {"seed": doubled(12)},
    {"seed": doubled(40)},
    {"__class__": "os.system"},
    {"data": "a\0b"},
]


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: str(*sizes))
def test_a_checkpoint_with_sizes_that_cannot_be(refused, sizes):
    refused(lambda state: state["config"].update(sizes))


def test_a_checkpoint_whose_weights_claim_more_than_they_store(refused):
    def spoil(state):
        state["config"]["n_embd"] = 40_000
        state["model"] = {"weight": torch.zeros(1).expand(10**6, 10**6)}

    refused(spoil)


WEIGHTS = {
    "one number for all": lambda w: torch.zeros(1).expand(w.shape),
    "huge": lambda w: torch.zeros(1).expand(10**6, 10**6),
    "of float64": torch.Tensor.double,
    "of bfloat16": torch.Tensor.bfloat16,
    "complex": lambda w: w.to(torch.complex64),
    "sparse": torch.Tensor.to_sparse,
    "without numbers": lambda w: w.to("meta"),
    "transposed": lambda w: w.T.contiguous().T,
    "wider": lambda w: torch.cat((w, w)),
    "one number": lambda w: w[0, 0],
    "a parameter": torch.nn.Parameter,
    "numbers": lambda w: w.tolist(),
    "none": lambda w: None,
}


@pytest.mark.parametrize("kind", WEIGHTS)
def test_weights_and_moments_that_do_not_fit(refused, whole, kind):
    """A moment of one number, or of stride 0, would let the fused kernel write outside of its memory."""

    def weights(state):
        state["model"]["token_embedding.weight"] = WEIGHTS[kind](state["model"]["token_embedding.weight"])

    def moment(state):
        moments = state["optimizers"][0]["state"][0]
        moments["exp_avg"] = WEIGHTS[kind](moments["exp_avg"])

    good = (whole / "best.pt").read_bytes(), (whole / "checkpoint.pt").read_bytes()
    refused(weights)
    (whole / "best.pt").write_bytes(good[0])
    (whole / "checkpoint.pt").write_bytes(good[1])
    refused(moment, sampled=False)


def test_a_best_checkpoint_of_another_width(whole, text_file, train):
    state = train("gpt", out="wide", n_embd=32)
    save_checkpoint(whole, state, "best.pt")
    before = contents(whole)
    with pytest.raises(UserError, match="best.pt"):
        train("gpt", "--resume", max_iters=8)
    assert contents(whole) == before


PARTS = ["step", "seconds", "corpus_sha256", "metrics", "losses", "model", "optimizers", "generators", "best", "drawn"]
GOOD = [("losses", {}), ("losses", [])]
HEAD = "step,tokens,seconds,train_loss,val_loss\n"


@pytest.mark.parametrize("part", PARTS)
def test_a_checkpoint_with_another_part(refused, whole, part):
    for instead in (None, "what", {}, [[]], doubled(12), torch.zeros(1).expand(10**9)):
        good = (whole / "checkpoint.pt").read_bytes()
        if (part, instead) not in GOOD:
            refused(lambda state, instead=instead: state.update({part: instead}), sampled=False)
        (whole / "checkpoint.pt").write_bytes(good)


@pytest.mark.parametrize(
    "change",
    [
        {"step": -1},
        {"step": 2.0},
        {"metrics": HEAD + ",64,1,4.2,\n"},
        {"metrics": HEAD + "1,64,1,nan,\n"},
        {"metrics": "step\n1\n"},
        {"losses": [[1.0]]},
        {"generators": {}},
        {"generators": {"batches": torch.zeros(5056, dtype=torch.uint8), "cpu": torch.zeros(3, dtype=torch.uint8)}},
        {"generators": {"batches": torch.zeros(5056, dtype=torch.uint8), "cpu": torch.zeros(5056, dtype=torch.uint8)}},
        {"optimizers": [{"state": {}}] * 3},
        {"optimizers": [{"state": {0: {}}}, {"state": {}}]},
    ],
    ids=lambda change: str(*change),
)
def test_a_checkpoint_with_values_that_cannot_be(refused, change):
    refused(lambda state: state.update(change), sampled=False)


@pytest.mark.parametrize(
    "tokenizer",
    [
        {"merges": [(0, 256)], "end": ""},
        {"merges": [(-1, 3)], "end": ""},
        {"merges": [(0, 1), (0, 1)], "end": ""},
        {"merges": [(0, 0), *((256 + i, 256 + i) for i in range(60))], "end": ""},
        {"merges": [(0, 1, 2)], "end": ""},
        {"merges": [("a", "b")], "end": ""},
        {"merges": [(math.inf, 1)], "end": ""},
        {"merges": [doubled(12)], "end": ""},
        {"merges": 7, "end": ""},
        {"merges": [], "end": 7},
        {"other": []},
        [],
        "",
        "abc",
        None,
    ],
    ids=lambda tokenizer: str(tokenizer)[:30],
)
def test_a_tokenizer_that_cannot_be(whole, tokenizer):
    state = load_checkpoint(whole)
    save_checkpoint(whole, {**state, "tokenizer": tokenizer}, "best.pt")
    with pytest.raises(UserError):
        sample.load(whole, "cpu")


@pytest.mark.parametrize("rows", ["a,b\n1,2\n", HEAD + "1,2,3,x,\n", HEAD + ",2,3,4,\n", HEAD + "1,2,3,nan,\n", "é"])
def test_a_metrics_csv_that_is_none(tmp_path, rows):
    (tmp_path / "metrics.csv").write_bytes(rows.encode("latin-1"))
    with pytest.raises(UserError, match="not the losses of a run"):
        plot.main([str(tmp_path), f"--out={tmp_path / 'picture.png'}"])


@pytest.mark.parametrize("row", ["", "1", "1,2,3,", "1,2,3,4."])
def test_a_run_whose_last_row_is_being_written_is_drawn(tmp_path, row):
    (tmp_path / "metrics.csv").write_text(HEAD + "1,2,3,4.5,\n" + row)
    assert plot.read(tmp_path)["train_loss"] == [4.5]
    (tmp_path / "metrics.csv").write_text(HEAD + row)
    plot.main([str(tmp_path), f"--out={tmp_path / 'picture.png'}"])


# ---------------------------------------------------------------- Wild options

values = st.one_of(
    st.integers(-(10**30), 10**30),
    st.floats(),
    st.booleans(),
    st.text(max_size=20),
    st.sampled_from(["auto", "small", "full", "cpu", "bfloat16", "muon", "causal", "window:3", 10**400, [], [[1]]]),
)


def options_of(rung):
    names = [field.name for field in dataclasses.fields(rung.Config) if field.name != "compile"]  # which is slow to try
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=10), values, max_size=5)


def toml(value):
    """The value in TOML, which JSON is but for what is not finite."""
    return str(value) if isinstance(value, float) else json.dumps(value, ensure_ascii=False)


def check_outcome(rung, argv):
    """A configuration each of whose values is of its type and within its range, or one line."""
    try:
        config = parse_config(rung.Config, argv)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        assert type(value) is field.type
        if field.type in (int, float):
            low, high = map(float, (field.metadata["within"] or WITHIN[field.type])[1:-1].split(", "))
            assert low <= value <= high
        if field.metadata["choices"]:
            assert value in field.metadata["choices"]


@pytest.fixture
def lonely(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


quietly = settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize("rung", GPTS)
def test_any_flags_are_a_configuration_or_one_line(lonely, rung):
    rung = importlib.import_module(rung)

    @quietly
    @given(options_of(rung))
    @example({"max_iters": "9" * 5000})
    @example({"out": "o" * 5000, "resume": True})
    def check(options):
        check_outcome(rung, argv_of(**{name: v for name, v in options.items() if name not in ("help", "resume")}))

    check()


@pytest.mark.parametrize("rung", ["gpt", "pyg_free_gat"])
def test_any_toml_is_a_configuration_or_one_line(lonely, rung):
    rung = importlib.import_module(rung)

    @quietly
    @given(options_of(rung).map(lambda options: "\n".join(f"{toml(k)} = {toml(v)}" for k, v in options.items())))
    @example("max_iters = " + "9" * 5000)
    @example("max_iters = 0x" + "f" * 4300)
    @example("learning_rate = " + "9" * 400)
    @example("out = '" + "o" * 5000 + "'\nresume = true")
    @example('out = "\\u0000"\nresume = true')
    @example("x = " + "[" * 10_000)
    @example("[device]\nname = 1")
    @example("help = true")
    def check(text):
        Path("wild.toml").write_text(text, encoding="utf-8", errors="replace")
        check_outcome(rung, ["--config=wild.toml"])

    check()


@quietly
@given(st.binary(max_size=100))
def test_any_bytes_are_a_toml_or_one_line(lonely, content):
    Path("wild.toml").write_bytes(content)
    check_outcome(gpt, ["--config=wild.toml"])
