"""A script's flags from a dataclass: meanings, defaults, sizes, TOML files, and errors of one line."""

import argparse
import difflib
import inspect
import math
import re
import sys
import textwrap
import tomllib
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path

from data import UserError, choose_device, choose_dtype
from data.processes import join, leave, several

from .checkpoint import load_checkpoint

# What a resumed run may change.
MAY_CHANGE = {"max_iters", "eval_interval", "device", "dtype", "compile", "data", "out", "resume", "mfu"}


def option(default, meaning, *, full=None, choices=None, least=None, below=None):
    """A dataclass field that is a flag, with what `--help` says of it. A flag without a default (MISSING) is required.

    full: the default under `--size full`. choices: all that it may be. Numbers are at least `least` (if not said
    otherwise 1 for an int, 0 for a float) and less than `below` (2^31, infinity).
    """
    return field(default=default, metadata=dict(meaning=meaning, full=full, choices=choices, least=least, below=below))


@dataclass
class Flags:
    """What every rung takes beside its own options."""

    device: str = option("auto", "cpu, cuda, cuda:1, mps, or auto: cuda, else mps, else cpu")
    seed: int = option(1, "of the weights, the batches, dropout and the sample", least=0, below=2**63)
    data: str = option("", "a UTF-8 text file to train on instead of tinyshakespeare")
    out: str = option("", "the run's folder instead of results/ and the script's name")
    resume: bool = option(False, "go on with the run in --out where it stopped")
    mfu: bool = option(False, "measure the device's peak and show how much of it training makes use of")


def run_main(main):
    """Runs a script's main(): what the user can mend is one line on stderr and exit code 2, Ctrl-C exit code 130.

    What goes wrong on the way (a full disk, a loss that is not finite, another process that ends) is one line and exit
    code 1.
    """
    sys.stdout.reconfigure(errors="replace")  # a terminal may lack a character of the text
    try:
        main()
    except (UserError, OSError, FloatingPointError, MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or re.search("tried to allocate|calculation overflowed", str(error), re.I):
            error = UserError("not enough memory; a smaller batch, context or model takes less")
        elif several() and re.search("gloo|nccl", str(error), re.I):
            error = OSError("another process has ended")
        elif isinstance(error, RuntimeError):
            raise
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        sys.exit(2 if isinstance(error, UserError) else 1)
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        leave()


def parse(cls, argv=None):
    """An instance of the dataclass `cls` from the flags in `argv`. Raises UserError for what does not fit."""
    return build(cls, read_flags(cls, argv))


def parse_config(cls, argv=None):
    """A rung's Config: its flags, over those of `--config FILE.toml`, over the defaults for the size and the device.

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
    """results/ and the script's name, as a path from here where that is below."""
    out = Path(__file__).resolve().parent / rung_of(cls)
    return str(out.relative_to(Path.cwd()) if out.is_relative_to(Path.cwd()) else out)


def build(cls, values):
    """An instance of `cls`, its values within the bounds of their options."""
    for f in fields(cls):
        if f.name in values:
            check(f, values[f.name], f"--{f.name} {values[f.name]}")
    try:
        return cls(**values)
    except ValueError as error:  # from the dataclass's own __post_init__
        raise UserError(error) from None


def check(f, value, said):
    if f.metadata["choices"] and value not in f.metadata["choices"]:
        raise UserError(f"{said}: must be one of {', '.join(filter(None, f.metadata['choices']))}")
    if f.type in (int, float):
        least, below = f.metadata["least"], f.metadata["below"]
        least = (1 if f.type is int else 0) if least is None else least
        below = (2**31 if f.type is int else math.inf) if below is None else below
        if not least <= value < below:  # which NaN is not
            above = "finite" if below == math.inf else f"below {below}"
            raise UserError(f"{said}: must be at least {least} and {above}")


class Parser(argparse.ArgumentParser):
    def error(self, message):
        raise UserError(message)


def read_flags(cls, argv, with_toml=False):
    """The values of those flags that stand in `argv`, by name."""
    parser = Parser(
        description=sys.modules[cls.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if with_toml:
        parser.add_argument("--config", metavar="FILE.toml", help="a file of options; flags override it")
    for f in fields(cls):
        default = "" if f.default in ("", MISSING) else repr(f.default)
        if f.metadata["full"] is not None:
            default += f"; {f.metadata['full']} at full size"
        how = {"help": f.metadata["meaning"].replace("%", "%%") + (f" ({default})" if default else "")}
        if f.type is bool:
            parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, **how)
        elif f.default is MISSING:
            parser.add_argument(f.name, type=f.type, **how)
        else:
            parser.add_argument(f"--{f.name}", type=f.type, metavar=f.type.__name__.upper(), **how)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        raise UserError(f"there is no flag {name}{nearest(name, parser._option_string_actions)}")
    return vars(given)


def read_toml(cls, path):
    """The options in a TOML file, by name, each of its own type."""
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {path}: {error}") from None
    return typed(cls, given, f"--config {path}")


def typed(cls, given, where):
    """The options in a dict that somebody wrote, each of its own type; an int may stand for a float."""
    types = {f.name: f.type for f in fields(cls)}
    for name, value in given.items():
        if name not in types:
            raise UserError(f"{where}: there is no option {name}{nearest(name, types)}")
        if types[name] is float and type(value) is int and abs(value) < 2**53:
            given[name] = float(value)
        elif type(value) is not types[name]:
            raise UserError(f"{where}: {name} must be of type {types[name].__name__}, not {value!r}")
    return given


def nearest(name, names):
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else ""


def saved_options(cls, state, folder):
    """The options in the state of a checkpoint, which may be a stranger's. Raises UserError for what cannot be."""
    saved = state.get("config")
    if not isinstance(saved, dict) or saved.keys() != {f.name for f in fields(cls)}:
        raise UserError(f"{folder}: a checkpoint of another version of {rung_of(cls)}.py")
    build(cls, typed(cls, saved, folder))
    # Each block has at least one C x C matrix, so a model that the file has the weights of takes little memory.
    if saved.get("n_layer", 1) * saved.get("n_embd", 1) ** 2 > sum(w.numel() for w in state["model"].values()):
        raise UserError(f"{folder}: a damaged checkpoint (its weights are too few for its sizes)")
    return saved


def resumed(given, saved):
    """The options of a run, with those given on top that it may change on its way."""
    given = {name: value for name, value in given.items() if (name, value) != ("size", "auto")}
    for name, value in given.items():
        if name not in MAY_CHANGE and value != saved[name]:
            raise UserError(f"--resume goes on with {name}={saved[name]}; {name}={value} needs a new run with --out")
    if given.get("max_iters", saved["max_iters"]) != saved["max_iters"]:
        print(f"{given['max_iters']} steps instead of {saved['max_iters']}: schedules, as the learning rate's, follow")
    chosen_anew = {"dtype"} if given.get("device", saved["device"]) != saved["device"] else set()
    return {name: value for name, value in saved.items() if name not in chosen_anew} | given
