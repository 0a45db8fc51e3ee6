"""The command line: what help shows, what overrides what, and one line for whatever does not fit."""

import os
import runpy
import sys
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from conftest import ROOT, RUNGS, argv_of, contents, ended, posix, run, train_tiny, write_text

import bigram
import gpt
import pyg_free_gat
import sample
from data import UserError, device
from results import option, parse, parse_config, plot
from results.checkpoint import save_checkpoint
from studies import measure, race, speed


def test_help_shows_every_option_with_its_meaning_default_and_range(capsys):
    with pytest.raises(SystemExit) as end:
        gpt.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for name, field in gpt.Config.__dataclass_fields__.items():
        assert f"--{name}" in text and field.metadata["meaning"] in text
    assert "(default: 192; with --size full: 384)" in text and "--compile, --no-compile" in text
    assert "(default: 0.0; with --size full: 0.1; at least 0 and below 1)" in text
    assert "--size {auto,small,full}" in text and "--max_iters INT" in text and "(default: off)" in text


def test_flags_over_toml_over_size(tmp_path, capsys):
    toml = tmp_path / "my.toml"
    toml.write_text('size = "full"\nn_layer = 3\nlearning_rate = 1\ncompile = true\n', encoding="utf-8-sig")
    config = parse_config(gpt.Config, ["--config", str(toml), "--n_layer", "2", "--no-compile", "--device=cpu"])
    assert (config.n_embd, config.n_layer, config.learning_rate, config.compile) == (384, 2, 1.0, False)
    assert "device cpu (as asked)" in (printed := capsys.readouterr().out) and "n_embd=384" in printed.split()


# ---------------------------------------------------------------- Device and precision


def test_auto_is_the_best_device_and_its_size(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    config = parse_config(gpt.Config, [])
    assert (config.device, config.size, config.n_embd) == ("cpu", "small", 192)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    config = parse_config(gpt.Config, [])
    assert (config.device, config.dtype, config.size) == ("mps", "float32", "small")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    config = parse_config(gpt.Config, [])
    assert (config.device, config.dtype, config.size, config.n_embd) == ("cuda", "bfloat16", "full", 384)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert parse_config(gpt.Config, ["--n_embd=192"]).dtype == "float32"


def test_the_cpu_is_used_without_a_word_to_cuda(monkeypatch):
    def touched(*_):
        raise AssertionError("torch.cuda was asked")

    for name in ("is_available", "device_count", "get_device_capability", "current_device"):
        monkeypatch.setattr(torch.cuda, name, touched)
    assert parse_config(gpt.Config, ["--device=cpu"]).device == "cpu"


CPUS = {
    "an Intel with AMX": ("vendor_id: GenuineIntel\nflags: avx512f avx512_bf16 amx_bf16", "bfloat16"),
    "an Intel without AMX": ("vendor_id: GenuineIntel\nflags: avx512f avx512_bf16", "float32"),
    "an AMD with AVX512-BF16": ("vendor_id: AuthenticAMD\nflags: avx512f avx512_bf16", "bfloat16"),
    "an AMD with AVX2": ("vendor_id: AuthenticAMD\nflags: avx2", "float32"),
    "a system that does not tell": (None, "float32"),
}


@pytest.mark.parametrize("cpu", CPUS)
def test_precision_on_a_cpu_follows_a_rule(monkeypatch, tmp_path, cpu):
    text, expected = CPUS[cpu]
    if text:
        (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(device, "Path", lambda _: tmp_path / "cpuinfo")
    assert {device.choose_dtype("auto", "cpu")[0] for _ in range(3)} == {expected}
    assert device.choose_dtype("float32", "cpu") == ("float32", "as asked")


# ---------------------------------------------------------------- Wrong input

# The flags, in a folder where `corpus.txt` is a usable text, and what the one line says.
BAD = [
    ("--data=nowhere.txt", "nowhere.txt: No such file"),
    pytest.param("--data=/dev/zero", "a device", marks=posix),
    ("--data=.", ": Is a directory"),
    ("--data=empty.txt", "is empty"),
    ("--data=short.txt", "the text has 17 tokens to train on and 2 to validate on"),
    ("--data=binary.txt", "not UTF-8 text (byte 0"),
    ("--data=late.txt", "not UTF-8 text (byte 4,006"),
    (f"--data={'d' * 300}", "File name too long"),
    ("--block_size=1000", "400 to validate on; both must be more"),
    ("--vocab_size=255", "--vocab_size 255: must be at least 256"),
    ("--data=letter.txt --vocab_size=300 --block_size=128", "tokens to train on"),
    ("--device=cuda:7", "--device cuda:7: not on this machine"),
    ("--device=gpu", "--device gpu: not on this machine"),
    ("--max_iters=0", "--max_iters 0: must be at least 1"),
    ("--max_iters=many", "--max_iters: invalid int value: 'many'"),
    ("--max_iters=99999999999", "must be at least 1 and below 1e9"),
    ("--learning_rate=nan", "--learning_rate nan: must be at least 0"),
    ("--learning_rate=1.7e308", "--learning_rate 1.7e+308: must be at least 0 and below 1e30"),
    ("--seed=-1", "--seed -1: must be at least 0"),
    ("--seed", "expected one argument"),
    ("--max_iter=5", "there is no flag --max_iter; did you mean --max_iters?"),
    ("stray", "there is no flag stray"),
    ("--resume=1", "ignored explicit argument '1'"),
    ("--config=nowhere.toml", "nowhere.toml: No such file"),
    ("--config=.", "--config .: Is a directory"),
    ("--config=unknown.toml", "--config unknown.toml: there is no flag --batchsize; did you mean --batch_size?"),
    ("--config=type.toml", "max_iters: invalid int value: 'ten'"),
    ("--config=true.toml", "--config true.toml: argument --max_iters: expected one argument"),
    ("--config=help.toml", "--config help.toml: there is no flag --help"),
    ("--config=broken.toml", "broken.toml: "),
    ("--config=binary.txt", "--config binary.txt: 'utf-8' codec can't decode"),
    ("--config=zero.toml", "--batch_size 0: must be at least 1"),
    ("--config=huge.toml", "must be at least 0 and below 1e30"),
    ("--config=digits.toml", "--config digits.toml: "),
    ("--config=hexadecimal.toml", "--config hexadecimal.toml: "),
    ("--config=deep.toml", "--config deep.toml: "),
    ("--config=table.toml", "--config table.toml: device must be a number, a string, true or false"),
    ("--resume", "there is no checkpoint here"),
    ("--resume --out=corpus.txt", "there is no checkpoint here"),
    ("--resume --out=truncated", "not a checkpoint, or a damaged one"),
    ("--resume --out=text", "not a checkpoint, or a damaged one"),
    ("--resume --out=alien", "a checkpoint of elsewhere.py, not of"),
    (f"--resume --out={'o' * 300}", "there is no checkpoint here"),
    ("--out=short.txt", "something else than a run"),
    ("--out=short.txt/run", "Not a directory"),
    (f"--out={'o' * 300}", "File name too long"),
]
BAD_GPT = [
    ("--n_embd=10 --n_head=3", "--n_embd 10 must be a multiple of --n_head 3"),
    ("--n_layer=1000000000", "must be at least 1 and below 1000"),
    ("--weight_decay=-1e-9", "--weight_decay -1e-09: must be at least 0"),
    ("--dropout=1", "--dropout 1.0: must be at least 0 and below 1"),
    ("--size=huge", "--size huge: must be one of auto, small, full"),
    ("--optimizer=sgd", "--optimizer sgd: must be one of muon, adamw"),
    ("--dtype=float16", "--dtype float16: must be one of auto, float32, bfloat16"),
    ("--resume --out=run --n_layer=3", "--resume continues with n_layer="),
    ("--resume --out=run --max_iters=3", "has done its 4 steps; a larger --max_iters continues it"),
]
BAD_OTHERS = {
    "modern_gpt": [
        ("--n_embd=12 --n_head=4", "--n_embd 12 must be a multiple of twice --n_head 4"),
        ("--warmdown_ratio=1.1", "--warmdown_ratio 1.1: must be at least 0 and at most 1"),
        ("--resume --out=run", "a checkpoint of gpt.py, not of modern_gpt.py"),
    ],
    "pyg_free_gat": [
        ("--layer=gcn", "--layer gcn: must be one of gat, gatv2, dot, mean"),
        ("--layer=gat --gat_version=GATv2Conv", "--layer gat and --gat_version GATv2Conv contradict each other"),
        ("--gat_version=GATv3Conv", "--gat_version GATv3Conv: must be one of GATConv, GATv2Conv"),
        ("--graph=ring", "--graph ring: must be causal, window:K, dilated:K"),
        ("--graph=window:0", "--graph window:0: must be"),
        ("--graph=causal:3", "--graph causal:3: must be"),
    ],
    "windowed_gpt": [("--attention=head_gate", "must be one of plain, soft_window")],
    "gates": [("--attention=head_gate --n_head=1", "--n_head 1 is too few")],
}
BAD_SAMPLE = [
    ("", "the following arguments are required: run"),
    ("nowhere", "there is no checkpoint here"),
    ("r" * 300, "there is no checkpoint here"),
    ("corpus.txt", "there is no checkpoint here"),
    ("truncated", "not a checkpoint, or a damaged one"),
    ("alien", "'elsewhere', which is no rung"),
    ("run --prompt=é", "the character 'é' is not in the alphabet"),
    ("run --temperature=-1", "--temperature -1.0: must be at least 0"),
    ("run --top_p=0", "--top_p 0.0: must be above 0 and at most 1"),
    ("run --top_p=nan", "--top_p nan: must be above 0 and at most 1"),
    ("run --layers=nowhere.py", "--layers nowhere.py: there is no such file"),
    ("run another", "there is no flag another"),
    ("run --promt=A", "did you mean --prompt?"),
    ("run --config=my.toml", "there is no flag --config"),
]
BAD_PLOT = [
    ("nowhere", "not the losses of a run"),
    ("torn", "not the losses of a run"),
    ("run --x=epochs", "invalid choice: 'epochs'"),
    ("run --out=a.foo", "a picture is a .png, .svg or .pdf file, not .foo"),
    ("run --out=a.jpg", "not .jpg"),
    ("run --out=nowhere/a.png", "No such file or directory"),
    ("run --out=", "this is not a file"),
    ("run --out=/", "this is not a file"),
    ("run --out=photo.png", "this file was not written by this command"),
    ("run --wide", "unrecognized arguments: --wide"),
]


@pytest.fixture(scope="session")
def bad_files(tmp_path_factory):
    """A folder with texts, TOML files and checkpoints, most of them bad."""
    folder = tmp_path_factory.mktemp("bad")
    text = write_text(folder / "corpus.txt").read_bytes()
    train_tiny("gpt", folder / "corpus.txt", folder / "run")
    whole = (folder / "run" / "checkpoint.pt").read_bytes()
    files = {
        "empty.txt": b"",
        "short.txt": b"To be, or not to be",
        "binary.txt": b"\xff\xfe" + text,
        "late.txt": "Zoë\r\n".encode() + text + b"\xff",
        "letter.txt": b"a" * 9000 + b"b" * 1000,
        "photo.png": b"\x89PNG\r\n of a cat",
        "unknown.toml": b"batchsize = 4",
        "type.toml": b'max_iters = "ten"',
        "true.toml": b"max_iters = true",
        "help.toml": b"help = true",
        "broken.toml": b"max_iters = ",
        "zero.toml": b"batch_size = 0",
        "huge.toml": b"learning_rate = " + b"9" * 400,
        "digits.toml": b"max_iters = " + b"9" * 5000,
        "hexadecimal.toml": b"max_iters = 0x" + b"f" * 4300,
        "deep.toml": b"seed = " + b"[" * 10_000,
        "table.toml": b"[device]\nname = 1",
        "torn/metrics.csv": b"step,tokens\n1,",
        "truncated/checkpoint.pt": whole[: len(whole) // 2],
        "text/checkpoint.pt": text,
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    (folder / "alien").mkdir()
    save_checkpoint(folder / "alien", {"rung": "elsewhere", "model": {}})
    return folder


@pytest.fixture
def workplace(bad_files, monkeypatch):
    """The same folder, in which the test then is."""
    monkeypatch.chdir(bad_files)
    return bad_files


def check_error(workplace, main, flags, message):
    before = contents(workplace)
    with pytest.raises(UserError) as error:
        main(flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert contents(workplace) == before


def check_rung(workplace, rung, flags, message):
    usual = ["--data=corpus.txt", "--out=new", "--block_size=16", "--device=cpu"]
    check_error(workplace, sample.rung(rung)[0].main, usual + flags.split(), message)


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_flags(workplace, flags, message):
    for rung in ("bigram", "gpt"):
        check_rung(workplace, rung, flags, message)


@pytest.mark.parametrize(("flags", "message"), BAD_GPT)
def test_bad_flags_of_gpt(workplace, flags, message):
    check_rung(workplace, "gpt", flags, message)


@pytest.mark.parametrize("rung", BAD_OTHERS)
def test_bad_flags_of_others(workplace, rung):
    for flags, message in BAD_OTHERS[rung]:
        check_rung(workplace, rung, flags, message)


@pytest.mark.parametrize(("flags", "message"), BAD_SAMPLE)
def test_bad_flags_of_sample(workplace, flags, message):
    check_error(workplace, sample.main, flags.split(), message)


@pytest.mark.parametrize(("flags", "message"), BAD_PLOT)
def test_bad_flags_of_plot(workplace, flags, message):
    check_error(workplace, plot.main, flags.split(), message)


def test_bad_flags_of_studies(workplace):
    measure_speed = partial(measure.main, speed.tables)
    check_error(workplace, measure_speed, ["--csv=nowhere/times.csv"], "--csv nowhere/times.csv: No such file")
    check_error(workplace, measure_speed, ["--csv=corpus.txt"], "--csv corpus.txt: File exists")
    check_error(workplace, race.main, ["--nanogpt=run"], "--nanogpt run: there is no train.py in it")


@dataclass
class Bounded:
    count: int = option(1, "from 1")
    share: float = option(0.5, "from 0 to 1", within="[0, 1]")
    inner: float = option(0.5, "between 0 and 1", within="(0, 1)")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--share=0 --share=1 --inner=1e-9", ""),
        ("--count=0", "--count 0: must be at least 1 and below 1e9"),
        ("--share=1.1", "--share 1.1: must be at least 0 and at most 1"),
        ("--share=nan", "--share nan: must be at least 0 and at most 1"),
        ("--inner=0", "--inner 0.0: must be above 0 and below 1"),
        ("--inner=1", "--inner 1.0: must be above 0 and below 1"),
    ],
)
def test_ranges_are_said_in_words(flags, message):
    try:
        parse(Bounded, flags.split())
    except UserError as error:
        assert str(error) == message
    else:
        assert not message


@posix
def test_a_stream_that_is_not_utf8_says_where():
    """From a pipe, in which no place can be looked up."""
    done = run("bigram.py", "--data=/dev/stdin", "--device=cpu", input="Zo\udcff" * 100, errors="surrogateescape")
    assert done.returncode == 2 and "not UTF-8 text (byte 2" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("rung", ["bigram", "transformer"])
def test_the_first_rungs_know_one_process(monkeypatch, workplace, rung):
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_rung(workplace, rung, "", f"{rung}.py knows only one, gpt.py knows several")


def test_compile_without_a_compiler_leaves_the_former_run(workplace, monkeypatch):
    def no_compiler(*_, **__):
        raise RuntimeError("Failed to find C++ compiler.\nPlease specify one.")

    monkeypatch.setattr(torch, "compile", no_compiler)
    check_rung(workplace, "gpt", "--compile --out=run", "does not work here (Failed to find C++ compiler.)")


DECAY = """
import pyg_free_gat


class Decay(pyg_free_gat.Mean):
    pass


pyg_free_gat.LAYERS["decay"] = Decay
if __name__ == "__main__":
    raise AssertionError("training has started")
"""


def test_a_run_with_a_layer_of_ones_own_is_sampled_and_resumed(train, tmp_path, monkeypatch, capsys):
    file, folder = tmp_path / "decay.py", str(tmp_path / "run")
    file.write_text(DECAY, encoding="utf-8")
    layers = pyg_free_gat.LAYERS
    with monkeypatch.context() as patch:
        patch.setattr(pyg_free_gat, "LAYERS", {**layers})
        runpy.run_path(str(file))
        train("pyg_free_gat", layer="decay")
    with pytest.raises(UserError, match="'decay' is unknown; sample.py --layers FILE runs the file that adds it"):
        sample.main([folder])
    with pytest.raises(UserError, match="--layer decay"):
        train("pyg_free_gat", "--resume", max_iters=8)
    monkeypatch.setattr(pyg_free_gat, "LAYERS", {**layers})
    capsys.readouterr()
    sample.main([folder, f"--layers={file}", "--prompt=to be", "--max_new_tokens=10"])
    written = capsys.readouterr().out
    assert written.startswith("to be") and len(written) == len("to be") + 10 + 1
    assert train("pyg_free_gat", "--resume", max_iters=8)["step"] == 8


# ---------------------------------------------------------------- The end of a script

SCRIPTS = [*RUNGS, "gpt2", "sample", "results/plot", "studies/page"]
SCRIPTS += sorted(f"studies/{file.stem}" for file in (ROOT / "studies").glob("[a-z]*.py") if file.stem != "measure")


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_error_is_one_line_and_exit_code_2(script, monkeypatch, capsys):
    """Of the file as a script, but in this process: each start of one takes seconds."""
    if script == "studies/pyg":
        pytest.importorskip("torch_geometric")
    monkeypatch.setattr("sys.argv", [script, "somewhere", "--bogus"])
    with pytest.raises(SystemExit) as end:
        if script == "studies/page":
            runpy.run_module("studies.page", run_name="__main__")
        else:
            runpy.run_path(f"{ROOT / script}.py", run_name="__main__")
    assert end.value.code == 2
    check_one_line(*capsys.readouterr())


def test_an_error_of_a_process_is_one_line_and_exit_code_2():
    done = run("gpt.py", "somewhere", "--bogus")
    assert done.returncode == 2
    check_one_line(done.stdout, done.stderr)


def check_one_line(out, err):
    assert out == "" and err.count("\n") == 1 and ("--bogus" in err or "somewhere" in err)


@posix
@pytest.mark.parametrize("stdout", [None, "/dev/full"])
def test_a_run_needs_no_terminal(start, text_file, tmp_path, stdout):
    """Its stdout is closed, or on a full disk."""
    flags = argv_of(data=text_file, out=tmp_path / "run", device="cpu", block_size=16, max_iters=20, eval_interval=10)
    code, message = ended(start("bigram.py", flags, stdout=stdout))
    assert torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["step"] == 20
    assert (tmp_path / "run" / "sample.txt").stat().st_size > 30
    if stdout is None:
        assert (code, message) == (0, "")
    else:
        assert code == 1 and message.count("\n") == 1 and "No space left on device" in message


@posix
def test_a_text_that_cannot_be_printed_is_one_line(start, train, tmp_path):
    train("bigram")
    code, message = ended(start("sample.py", [str(tmp_path / "run")], stdout="/dev/full"))
    assert code == 1 and message.count("\n") == 1 and "No space left on device" in message


def test_what_goes_to_a_file_is_utf8_whatever_the_system_would_write():
    done = run("-c", "from results import run_main; run_main(lambda: print('你好'))",
               env=os.environ | {"PYTHONIOENCODING": "cp1252"})  # fmt: skip
    assert done.stdout.strip() == "你好"


def test_the_command_of_a_run_can_be_given_again(text_file, tmp_path, train, monkeypatch):
    monkeypatch.setattr("sys.argv", ["../bigram.py", f"--data={text_file}", f"--out={tmp_path / 'run'}"])
    bigram.main(["--data", str(text_file), f"--out={tmp_path / 'called'}", "--block_size=16", "--max_iters=1"])
    monkeypatch.setattr("sys.argv", [*sys.argv, "--block_size=16", "--max_iters=1", "--device=cpu"])
    monkeypatch.setattr("__main__.__spec__", None)
    bigram.main()
    commands = [contents(tmp_path / name)[tmp_path / name / "config.json"].decode() for name in ("called", "run")]
    called = f"python bigram.py --data {text_file} --out={tmp_path / 'called'} --block_size=16 --max_iters=1"
    typed = f"python ../bigram.py --data={text_file} --out={tmp_path / 'run'} --block_size=16"
    assert called in commands[0] and typed in commands[1]
