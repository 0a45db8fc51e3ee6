"""A run's options: its flags, over a TOML file, over the run that it resumes, over the defaults for the device."""

import inspect
import textwrap
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from data import UserError, choose_device, choose_dtype
from data.processes import join

from .checkpoint import load_checkpoint
from .flags import build, option, read_flags, typed

# The options that a resumed run may change.
MAY_CHANGE = {"max_iters", "eval_interval", "device", "dtype", "compile", "data", "out", "resume", "mfu"}


@dataclass
class Flags:
    """The options that every rung has."""

    device: str = option("auto", "where to compute: cpu, mps, cuda or cuda:1; auto takes cuda, else mps, else cpu")
    seed: int = option(1, "seed of the weights, the batches, the dropout and the sample", least=0, below=2**63)
    data: str = option("", "train on this UTF-8 text file instead of tinyshakespeare")
    vocab_size: int = option(0, "V: tokens, byte pairs that are learned on the training split; 0: characters", least=0)
    out: str = option("", "write the run to this folder instead of results/ and the script's name")
    resume: bool = option(False, "go on with the run in --out where it stopped")
    mfu: bool = option(False, "measure the device's peak speed and show which share of it training reaches")


def parse_config(cls, argv=None):
    """A rung's Config. Flags override `--config FILE.toml`, which overrides the defaults for the size and the device.

    Prints the device with the reason for it, and the whole configuration. Raises UserError for what does not fit.
    """
    given = read_flags(cls, argv, with_toml=True)
    if "config" in given:
        given = read_toml(cls, given.pop("config")) | given
    given["out"] = given.get("out") or default_out(cls)
    before, asked = {}, "device" in given
    if given.get("resume"):
        before = saved_options(cls, load_checkpoint(given["out"], rung_of(cls)), given["out"])
        given = resumed(given, before)
    names = {f.name for f in fields(cls)}
    given["device"], why = choose_device(given.get("device", "auto"))
    given["device"] = join(given["device"])
    why = f"device {given['device']} ({why})"
    if "dtype" in names:
        given["dtype"], why_dtype = choose_dtype(given.get("dtype", "auto"), given["device"])
        why += f", precision {given['dtype']} ({why_dtype})"
    if "size" in names:
        if given.get("size", "auto") == "auto":
            given["size"] = "full" if given["device"].startswith("cuda") else "small"
        if given["size"] == "full":
            given = {f.name: f.metadata["full"] for f in fields(cls) if f.metadata["full"] is not None} | given
    config = build(cls, given)
    print(why if asked or not before else f"device {config.device}, as before")
    if before and before["device"].split(":")[0] != config.device.split(":")[0]:
        print(f"device {before['device']} before: from here on losses may differ in their last bits from its own")
    print(textwrap.fill(" ".join(f"{name}={value}" for name, value in asdict(config).items()), 100), flush=True)
    return config


def rung_of(cls):
    """The name of the script that defines the dataclass: "gpt" for the Config of gpt.py."""
    return Path(inspect.getfile(cls)).stem


def default_out(cls):
    """The folder in results/ with the script's name. The path is relative if it lies below the working directory."""
    out = Path(__file__).resolve().parent / rung_of(cls)
    return str(out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out)


def read_toml(cls, path):
    """The options in a TOML file, by name, each of its own type. Raises UserError."""
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: {error}") from None
    return typed(cls, given, f"--config {path}")


def saved_options(cls, state, folder):
    """The options in a checkpoint's state. A stranger may have made it: raises UserError for options that cannot be."""
    saved = state.get("config")
    if not isinstance(saved, dict) or saved.keys() != {f.name for f in fields(cls)}:
        raise UserError(f"{folder}: a checkpoint of another version of {rung_of(cls)}.py")
    saved = typed(cls, saved, folder)
    try:
        build(cls, saved)
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None
    # Each block has at least one C x C matrix. If the file holds as many weights, the model takes little memory.
    if saved.get("n_layer", 1) * saved.get("n_embd", 1) ** 2 > sum(w.numel() for w in state["model"].values()):
        raise UserError(f"{folder}: a damaged checkpoint (its weights are too few for its sizes)")
    return saved


def resumed(given, saved):
    """The saved options of a run, and over them those given now. Raises UserError for one that must stay as it was."""
    given = {name: value for name, value in given.items() if (name, value) != ("size", "auto")}
    for name, value in given.items():
        if name not in MAY_CHANGE and value != saved[name]:
            raise UserError(f"--resume goes on with {name}={saved[name]}; {name}={value} needs a new run with --out")
    if given.get("max_iters", saved["max_iters"]) != saved["max_iters"]:
        print(f"{given['max_iters']} steps instead of {saved['max_iters']}: the learning rate's schedule follows")
    # Another device chooses its own precision.
    dropped = {"dtype"} if given.get("device", saved["device"]) != saved["device"] else set()
    return {name: value for name, value in saved.items() if name not in dropped} | given
