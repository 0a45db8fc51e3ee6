import importlib
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import RUNGS, train_tiny, write_text

import gpt
import modern_gpt
import pyg_free_gat
import sample
from data import UserError
from results import option, parse, parse_config, plot
from results.checkpoint import save_checkpoint
from results.options import resumed
from studies import measure, race, speed

ROOT = Path(__file__).parents[1]


def test_help_shows_every_option_with_its_meaning_and_default(capsys):
    with pytest.raises(SystemExit) as end:
        gpt.main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert end.value.code == 0
    for name, field in gpt.Config.__dataclass_fields__.items():
        assert f"--{name}" in text and field.metadata["meaning"] in text
    assert "(default: 192; with --size full: 384)" in text and "--compile, --no-compile" in text
    assert "--size {auto,small,full}" in text and "--max_iters INT" in text and "(default: off)" in text
    with pytest.raises(SystemExit):
        pyg_free_gat.main(["--help"])
    assert "--gat_version {GATConv,GATv2Conv}" in capsys.readouterr().out


def test_flags_over_toml_over_size(tmp_path, capsys):
    toml = tmp_path / "my.toml"
    toml.write_text('size = "full"\nn_layer = 3\nlearning_rate = 1\ncompile = true\n', encoding="utf-8-sig")
    config = parse_config(gpt.Config, ["--config", str(toml), "--n_layer", "2", "--no-compile", "--device=cpu"])
    assert (config.n_embd, config.n_layer, config.learning_rate, config.compile) == (384, 2, 1.0, False)
    assert "device cpu (as asked)" in (printed := capsys.readouterr().out) and "n_embd=384" in printed.split()


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


# The flags, in a folder where `text` is a usable corpus, and what the one line says.
BAD = [
    ("--data=nowhere.txt", "nowhere.txt: No such file"),
    ("--data=.", ": Is a directory"),
    ("--data=empty.txt", "is empty"),
    ("--data=short.txt", "19 characters of text are too few for --block_size 16; 170 are enough"),
    ("--data=binary.txt", "not UTF-8"),
    ("--block_size=1000", "10,010 are enough"),
    ("--device=cuda:7", "--device cuda:7: not on this machine"),
    ("--device=gpu", "--device gpu: not on this machine"),
    ("--batch_size=0", "--batch_size 0: must be at least 1"),
    ("--block_size=-1", "--block_size -1: must be at least 1"),
    ("--max_iters=0", "--max_iters 0: must be at least 1"),
    ("--max_iters=many", "--max_iters: invalid int value: 'many'"),
    ("--max_iters=1.5", "invalid int value"),
    ("--learning_rate=nan", "--learning_rate nan: must be at least 0"),
    ("--learning_rate=-1", "must be at least 0"),
    ("--seed=-1", "--seed -1: must be at least 0"),
    ("--seed", "expected one argument"),
    ("--max_iter=5", "there is no flag --max_iter; did you mean --max_iters?"),
    ("stray", "there is no flag stray"),
    ("--config=nowhere.toml", "nowhere.toml: No such file"),
    ("--config=unknown.toml", "there is no option batchsize; did you mean batch_size?"),
    ("--config=type.toml", "max_iters must be of type int, not 'ten'"),
    ("--config=true.toml", "max_iters must be of type int, not True"),
    ("--config=broken.toml", "broken.toml: "),
    ("--config=zero.toml", "batch_size 0: must be at least 1"),
    ("--resume", "there is no checkpoint here"),
    ("--resume --out=truncated", "not a checkpoint, or a damaged one"),
    ("--resume --out=text", "not a checkpoint, or a damaged one"),
    ("--resume --out=alien", "a checkpoint of elsewhere.py, not of"),
    ("--out=short.txt", "something else than a run"),
    ("--out=run/checkpoint.pt", "something else than a run"),
    ("--out=short.txt/run", "Not a directory"),
    ("--eval_interval=0", "--eval_interval 0: must be at least 1"),
    ("--learning_rate=inf", "--learning_rate inf: must be at least 0 and finite"),
    ("--learning_rate=fast", "invalid float value: 'fast'"),
    ("--max_iters=99999999999", "must be at least 1 and below 2147483648"),
    ("--batch_size=1e3", "invalid int value: '1e3'"),
    ("--seed=9223372036854775808", "must be at least 0 and below"),
    ("--mfu=1", "ignored explicit argument '1'"),
    ("--no-device", "there is no flag --no-device"),
    ("--config", "expected one argument"),
    ("--config=.", "--config .: Is a directory"),
    ("--config=binary.txt", "--config binary.txt: 'utf-8' codec can't decode"),
    ("--config=nan.toml", "--learning_rate nan: must be at least 0"),
    ("--config=huge.toml", "learning_rate must be of type float"),
    ("--config=digits.toml", "--config digits.toml: "),
    ("--config=deep.toml", "--config deep.toml: "),
    ("--config=table.toml", "device must be of type str"),
    ("--resume --out=flipped", "not a checkpoint, or a damaged one"),
    ("--resume --out=corpus.txt", "there is no checkpoint here (Not a directory)"),
]
BAD_GPT = [
    ("--n_embd=10 --n_head=3", "--n_embd 10 must be a multiple of --n_head 3"),
    ("--n_layer=0", "--n_layer 0: must be at least 1"),
    ("--n_layer=1000000000", "must be at least 1 and below 1000"),
    ("--grad_accum=0", "--grad_accum 0: must be at least 1"),
    ("--weight_decay=-1e-9", "--weight_decay -1e-09: must be at least 0"),
    ("--n_head=0", "--n_head 0: must be at least 1"),
    ("--dropout=1", "--dropout 1.0: must be at least 0 and below 1"),
    ("--size=huge", "--size huge: must be one of auto, small, full"),
    ("--optimizer=sgd", "--optimizer sgd: must be one of muon, adamw"),
    ("--dtype=float16", "--dtype float16: must be one of auto, float32, bfloat16"),
    ("--resume --out=run --n_layer=3", "--resume goes on with n_layer="),
    ("--resume --out=older", "a checkpoint of another version of gpt.py"),
    ("--resume --out=run --max_iters=3", "has its 4 steps; a larger --max_iters goes on with it"),
]
BAD_MODERN = [
    ("--n_embd=12 --n_head=4", "--n_embd 12 must be a multiple of twice --n_head 4"),
    ("--warmdown_ratio=-1", "--warmdown_ratio -1.0: must be at least 0"),
    ("--warmdown_ratio=1.1", "--warmdown_ratio 1.1: must be at least 0 and at most 1"),
    ("--resume --out=run", "a checkpoint of gpt.py, not of modern_gpt.py"),
]
BAD_GAT = [
    ("--layer=gcn", "--layer gcn: must be one of gat, gatv2, dot, mean, max"),
    ("--layer=gat --gat_version=GATv2Conv", "--layer gat and --gat_version GATv2Conv contradict each other"),
    ("--gat_version=GATv3Conv", "--gat_version GATv3Conv: must be one of GATConv, GATv2Conv"),
    ("--graph=ring", "--graph ring: must be causal, window:K or dilated:K"),
    ("--graph=window", "--graph window: must be"),
    ("--graph=window:0", "--graph window:0: must be"),
    ("--graph=dilated:-2", "--graph dilated:-2: must be"),
    ("--graph=causal:3", "--graph causal:3: must be"),
    ("--n_embd=10 --n_head=3", "--n_embd 10 must be a multiple of --n_head 3"),
    ("--resume --out=run", "a checkpoint of gpt.py, not of pyg_free_gat.py"),
]
BAD_SAMPLE = [
    ("", "the following arguments are required: run"),
    ("nowhere", "there is no checkpoint here"),
    ("truncated", "not a checkpoint, or a damaged one"),
    ("alien", "'elsewhere', which is no rung"),
    ("run --prompt=é", "the character 'é' is not in the alphabet"),
    ("run --temperature=-1", "--temperature -1.0: must be at least 0"),
    ("run --top_k=-1", "--top_k -1: must be at least 0"),
    ("run --max_new_tokens=0", "--max_new_tokens 0: must be at least 1"),
    ("run --device=cuda:7", "--device cuda:7: not on this machine"),
    ("run --num_samples=0", "--num_samples 0: must be at least 1"),
    ("run --top_p=-0.1", "--top_p -0.1: must be above 0 and at most 1"),
    ("run --top_p=0", "--top_p 0.0: must be above 0 and at most 1"),
    ("run --top_p=7", "--top_p 7.0: must be above 0 and at most 1"),
    ("run --top_p=nan", "--top_p nan: must be above 0 and at most 1"),
    ("run --layers=nowhere.py", "--layers nowhere.py: there is no such file"),
    ("run --temperature=nan", "--temperature nan: must be at least 0"),
    ("run --seed=x", "invalid int value: 'x'"),
    ("run another", "there is no flag another"),
    ("run --promt=A", "did you mean --prompt?"),
    ("corpus.txt", "there is no checkpoint here (Not a directory)"),
    ("flipped", "not a checkpoint, or a damaged one"),
    ("older", "a checkpoint of another version of gpt.py"),
]
BAD_PLOT = [
    ("nowhere", "nowhere: is no run's folder, it has no metrics.csv"),
    ("torn", "not the losses of a run"),
    ("run --x=epochs", "invalid choice: 'epochs'"),
    ("run --out=a.foo", "Format 'foo' is not supported"),
    ("run --out=nowhere/a.png", "No such file or directory"),
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
        "unknown.toml": b"batchsize = 4",
        "type.toml": b'max_iters = "ten"',
        "true.toml": b"max_iters = true",
        "broken.toml": b"max_iters = ",
        "zero.toml": b"batch_size = 0",
        "nan.toml": b"learning_rate = nan",
        "huge.toml": b"learning_rate = " + b"9" * 400,
        "digits.toml": b"max_iters = " + b"9" * 5000,
        "deep.toml": b"seed = " + b"[" * 10_000,
        "table.toml": b"[device]\nname = 1",
        "torn/metrics.csv": b"step,tokens\n1,",
        "flipped/checkpoint.pt": whole[:-1] + bytes([whole[-1] ^ 1]),
        "truncated/checkpoint.pt": whole[: len(whole) // 2],
        "text/checkpoint.pt": text,
        "alien/checkpoint.pt": b"",
        "older/checkpoint.pt": b"",
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    save_checkpoint(folder / "alien", {"rung": "elsewhere", "model": {}})
    save_checkpoint(folder / "older", {"rung": "gpt", "model": {}, "tokenizer": "ab", "config": {"n_layer": 2}})
    return folder


@pytest.fixture
def workplace(bad_files, monkeypatch):
    """The same folder, in which the test then stands."""
    monkeypatch.chdir(bad_files)
    return bad_files


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def check_error(workplace, main, flags, message):
    before = contents(workplace)
    with pytest.raises(UserError) as error:
        main(flags)
    assert message in str(error.value) and "\n" not in str(error.value)
    assert contents(workplace) == before


@pytest.mark.parametrize(("flags", "message"), BAD)
def test_bad_flags_of_every_rung(workplace, flags, message):
    for rung in RUNGS:
        main = importlib.import_module(rung).main
        usual = ["--data=corpus.txt", "--out=new", "--block_size=16", "--device=cpu"]
        check_error(workplace, main, usual + flags.split(), message)


@dataclass
class Bounded:
    count: int = option(1, "from 1")
    share: float = option(0.5, "from 0 to 1", most=1)
    inner: float = option(0.5, "between 0 and 1", above=0, below=1)
    least: int = option(5, "from 5 to 7", least=5, most=7)


BOUNDS = [
    ("--share=0 --share=1 --inner=1e-9 --least=5 --least=7", ""),
    ("--count=0", "--count 0: must be at least 1 and below 2147483648"),
    ("--share=1.1", "--share 1.1: must be at least 0 and at most 1"),
    ("--share=-1e-9", "--share -1e-09: must be at least 0 and at most 1"),
    ("--share=nan", "--share nan: must be at least 0 and at most 1"),
    ("--inner=0", "--inner 0.0: must be above 0 and below 1"),
    ("--inner=1", "--inner 1.0: must be above 0 and below 1"),
    ("--least=4", "--least 4: must be at least 5 and at most 7"),
    ("--least=8", "--least 8: must be at least 5 and at most 7"),
]


@pytest.mark.parametrize(("flags", "message"), BOUNDS)
def test_bounds_are_said_in_words(flags, message):
    try:
        parse(Bounded, flags.split())
    except UserError as error:
        assert str(error) == message
    else:
        assert not message


def test_what_a_run_has_already_is_no_change_of_it():
    saved = {"size": "small", "device": "cpu", "dtype": "float32", "max_iters": 9}
    assert resumed({"size": "auto", "device": "cpu"}, saved) == saved
    assert resumed({"device": "cuda"}, saved) == {
        "size": "small",
        "device": "cuda",
        "max_iters": 9,
    }  # whose precision is its own


@pytest.mark.parametrize(("flags", "message"), BAD_GPT)
def test_bad_flags_of_gpt(workplace, flags, message):
    check_error(workplace, gpt.main, ["--data=corpus.txt", "--out=new", "--device=cpu", *flags.split()], message)


@pytest.mark.parametrize(("flags", "message"), BAD_MODERN)
def test_bad_flags_of_modern_gpt(workplace, flags, message):
    check_error(workplace, modern_gpt.main, ["--data=corpus.txt", "--out=new", "--device=cpu", *flags.split()], message)


def test_a_file_for_times_that_cannot_be_written_is_known_before_anything_is_measured(workplace):
    measure_speed = partial(measure.main, speed.tables)
    check_error(workplace, measure_speed, ["--csv=nowhere/times.csv"], "--csv nowhere/times.csv: No such file")
    check_error(workplace, measure_speed, ["--csv=corpus.txt"], "--csv corpus.txt: File exists")


def test_a_checkout_of_nanogpt_that_is_none(workplace):
    check_error(workplace, race.main, ["--nanogpt=run"], "--nanogpt run: there is no train.py in it")


@pytest.mark.parametrize(("flags", "message"), BAD_GAT)
def test_bad_flags_of_pyg_free_gat(workplace, flags, message):
    check_error(
        workplace, pyg_free_gat.main, ["--data=corpus.txt", "--out=new", "--device=cpu", *flags.split()], message
    )


@pytest.mark.parametrize(("flags", "message"), BAD_SAMPLE)
def test_bad_flags_of_sample(workplace, flags, message):
    check_error(workplace, sample.main, flags.split(), message)


DECAY = """
import pyg_free_gat


class Decay(pyg_free_gat.Mean):
    pass


pyg_free_gat.LAYERS["decay"] = Decay
if __name__ == "__main__":
    raise AssertionError("training has started")
"""


def test_a_run_with_a_layer_of_ones_own_is_sampled_resumed_and_drawn(train, tmp_path, monkeypatch, capsys):
    file, run = tmp_path / "decay.py", str(tmp_path / "run")
    file.write_text(DECAY, encoding="utf-8")
    layers = pyg_free_gat.LAYERS
    with monkeypatch.context() as patch:
        patch.setattr(pyg_free_gat, "LAYERS", {**layers})
        runpy.run_path(str(file))
        train("pyg_free_gat", layer="decay")
    with pytest.raises(UserError, match="its layer 'decay' is unknown; --layers FILE runs the file that adds it"):
        sample.main([run])
    with pytest.raises(UserError, match=f"{re.escape(run)}: .*--layer decay"):
        train("pyg_free_gat", "--resume", max_iters=8)
    plot.main([run, f"--out={tmp_path / 'losses.png'}"])
    monkeypatch.setattr(pyg_free_gat, "LAYERS", {**layers})
    capsys.readouterr()
    sample.main([run, f"--layers={file}", "--prompt=to be", "--max_new_tokens=10"])
    written = capsys.readouterr().out
    assert written.startswith("to be") and len(written) == len("to be") + 10 + 1
    assert train("pyg_free_gat", "--resume", max_iters=8)["step"] == 8


@pytest.mark.parametrize(("flags", "message"), BAD_PLOT)
def test_bad_flags_of_plot(workplace, flags, message):
    check_error(workplace, plot.main, flags.split(), message)


STUDIES = sorted(f"studies/{file.stem}" for file in (ROOT / "studies").glob("[a-z]*.py") if file.stem != "measure")


@pytest.mark.parametrize("script", [*RUNGS, "sample", "results/plot", *STUDIES])
def test_an_error_is_one_line_and_exit_code_2(script, monkeypatch, capsys):
    """Of the file as a script, but in this process: each start of one takes seconds."""
    if script == "studies/pyg":
        pytest.importorskip("torch_geometric")
    monkeypatch.setattr("sys.argv", [script, "somewhere", "--bogus"])
    monkeypatch.setattr(modern_gpt, "GPT", modern_gpt.GPT)  # which studies/modern_windows.py replaces
    with pytest.raises(SystemExit) as end:
        runpy.run_path(f"{ROOT / script}.py", run_name="__main__")
    assert end.value.code == 2
    check_one_line(*capsys.readouterr())


@pytest.mark.parametrize("command", [f"{ROOT / 'gpt.py'}", "-m studies.speed"])
def test_an_error_of_a_process_is_one_line_and_exit_code_2(command):
    command = [sys.executable, *command.split(), "somewhere", "--bogus"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    check_one_line(done.stdout, done.stderr)


def check_one_line(out, err):
    assert out == "" and err.count("\n") == 1 and ("--bogus" in err or "somewhere" in err)
