"""A run's options: its flags, over a TOML file, over the run that it resumes, over the defaults for the device."""

import inspect
import os
import shlex
import sys
import textwrap
import tomllib
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from data import UserError, choose_device, choose_dtype
from data.processes import alone, join, several

from .checkpoint import load_checkpoint
from .flags import build, option, read_flags

# The options that a resumed run may change.
MAY_CHANGE = {"max_iters", "eval_interval", "device", "dtype", "compile", "cuda_graph", "data", "out", "resume"}
SIZES = ("auto", "small", "full")
FORMER = {"mfu"}  # options that runs of earlier versions have and that computed nothing


@dataclass
class Flags:
    """The options that every rung has."""

    device: str = option("auto", "where to compute: cpu, mps, cuda or cuda:1; auto takes cuda, else mps, else cpu")
    seed: int = option(1, "seed of weights, batches, dropout and sample", within="[0, 9e18)")
    data: str = option("", "train on this UTF-8 text file instead of tinyshakespeare")
    vocab_size: int = option(
        0, "V: tokens, byte pairs that are learned on the training split; 0: characters", within="[0, 1e9)"
    )
    out: str = option("", "write the run to this folder instead of results/ and the script's name")
    resume: bool = option(False, "continue the run in --out where it stopped")

    argv = None  # the list of flags that main() was called with; None if it read the command line


def parse_config(cls, argv=None):
    """A rung's Config. Flags override `--config FILE.toml`, which overrides the defaults for the size and the device.

    Prints the device with the reason for it, and the whole configuration. Raises UserError for what does not fit.
    """
    given = read_flags(cls, argv, add_config=True)
    if "config" in given:
        given = read_toml(cls, given.pop("config")) | given
    given["out"] = given.get("out") or default_out(cls)
    before, asked = {}, "device" in given
    if given.get("resume"):
        before = saved_options(cls, load_checkpoint(given["out"], rung_of(cls)), given["out"])
        given = resumed(given, before)
    names = {f.name for f in fields(cls)}
    given["device"], why = choose_device(given.get("device", "auto"))
    if "grad_accum" in names:
        given["device"] = join(given["device"])
    else:
        alone(f"{rung_of(cls)}.py knows only one, gpt.py knows several")
    why = f"device {given['device']} ({why})"
    if "dtype" in names:
        given["dtype"], why_dtype = choose_dtype(given.get("dtype", "auto"), given["device"])
        why += f", precision {given['dtype']} ({why_dtype})"
    if "size" in names:
        if given.get("size", "auto") == "auto":
            given["size"] = "full" if given["device"].startswith("cuda") else "small"
        if given["size"] == "full":
            given = cls.full | given
    config = build(cls, given)
    config.argv = argv
    if given.get("compile"):
        try_compiler(config.device)
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


def command_of(config):
    """The command that starts the run, so that it can be given again."""
    module = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m studies.pyg
    script = ["-m", module.name] if module else sys.argv[:1]
    words = [*script, *sys.argv[1:]] if config.argv is None else [f"{rung_of(type(config))}.py", *config.argv]
    if several():
        nodes = int(os.environ["GROUP_WORLD_SIZE"])
        here = ["--nproc_per_node", os.environ["LOCAL_WORLD_SIZE"]]
        return shlex.join(["torchrun", *(["--nnodes", str(nodes)] if nodes > 1 else []), *here, *words])
    return shlex.join(["python", *words])


def as_flags(options):
    """Options from a file as flags: {"n_layer": 3, "compile": True} becomes ["--n_layer=3", "--compile"].

    So they are read and checked like those of a command line. Raises UserError for what no flag can be.
    """
    for name, value in options.items():
        if type(value) not in (bool, int, float, str):
            raise UserError(f"{name} must be a number, a string, true or false")
    return [f"--{k}={v}" if type(v) is not bool else f"--{'' if v else 'no-'}{k}" for k, v in options.items()]


def read_toml(cls, path):
    """The options in a TOML file, by name. Raises UserError."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        return read_flags(cls, as_flags(tomllib.loads(text)), add_help=False)
    except (OSError, RecursionError, UserError, ValueError) as error:
        raise UserError(f"--config {path}: {getattr(error, 'strerror', None) or error}") from None


def saved_options(cls, state, folder):
    """The options in a checkpoint's state, which may be from an untrusted file. Raises UserError if they cannot be.

    An option that did not exist when the checkpoint was written has its default.
    """
    try:
        saved = {name: value for name, value in state["config"].items() if name not in FORMER}
        saved = asdict(build(cls, read_flags(cls, as_flags(saved), add_help=False)))
        stored = {w.untyped_storage().data_ptr(): w.untyped_storage().nbytes() for w in state["model"].values()}
        weights = sum(stored.values()) // 2  # at most so many, since a published weight takes two bytes
    except (AttributeError, KeyError, RuntimeError, TypeError, UserError, ValueError) as error:
        raise UserError(f"{folder}: not the options of {rung_of(cls)}.py ({error})") from None
    # Each block has at least one C x C matrix. If the file holds as many weights, the model takes little memory.
    if saved.get("n_layer", 1) * saved.get("n_embd", 1) ** 2 > weights:
        raise UserError(f"{folder}: a damaged checkpoint (its weights are too few for its sizes)")
    return saved


def resumed(given, saved):
    """The saved options of a run, and over them those given now. Raises UserError for one that must stay as it was."""
    given = {name: value for name, value in given.items() if (name, value) != ("size", "auto")}
    for name, value in given.items():
        if name not in MAY_CHANGE and value != saved[name]:
            raise UserError(f"--resume continues with {name}={saved[name]}; {name}={value} needs a new run with --out")
    if "data" not in given and saved["data"] and not os.path.isfile(saved["data"]):  # a pipe would wait for ever
        raise UserError(f"--resume continues with data={saved['data']}, which is not a file; name it with --data")
    if given.get("max_iters", saved["max_iters"]) != saved["max_iters"]:
        print(f"{given['max_iters']} steps instead of {saved['max_iters']}: the learning rate's schedule follows")
    # Another device chooses its own precision.
    dropped = {"dtype"} if given.get("device", saved["device"]) != saved["device"] else set()
    return {name: value for name, value in saved.items() if name not in dropped} | given


def try_compiler(device):
    """Raises UserError if torch.compile does not work here, before the run has changed anything."""
    try:
        torch.compile(lambda x: x + 1)(torch.zeros(1, device=device))
    except Exception as error:  # of many kinds: no C++ compiler, no Triton, a platform that it does not support
        why = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"--compile: torch.compile does not work here ({why[0]}); leave it out") from None
