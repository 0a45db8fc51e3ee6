"""A dataclass as a command line: each field is a flag, and what does not fit is an error of one line."""

import argparse
import builtins
import difflib
import math
import operator
import re
import signal
import sys
from dataclasses import MISSING, field, fields
from pathlib import Path

from data import UserError
from data.processes import leave, several

BOUNDS = {
    "least": (operator.ge, "at least"),
    "above": (operator.gt, "above"),
    "most": (operator.le, "at most"),
    "below": (operator.lt, "below"),
}


def option(default, meaning, *, full=None, choices=None, least=None, above=None, most=None, below=None):
    """A dataclass field that is a flag; `--help` shows its meaning and its default.

    default: MISSING if the flag is required. full: the default under `--size full`. choices: the values it may have.
    least, above, most, below: the bounds of a number, `least` and `most` included. Without a lower bound an int is at
    least 1 and a float at least 0; without an upper one an int is below 2^31 and a float finite.
    """
    bounds = dict(least=least, above=above, most=most, below=below)
    return field(default=default, metadata=dict(meaning=meaning, full=full, choices=choices, **bounds))


def in_notebook():
    """Whether IPython runs this, as in Jupyter and Colab."""
    return hasattr(builtins, "get_ipython")


def run_main(main):
    """Runs a script's main(). Ends with one line on stderr and exit code 2 if the user can mend what is wrong.

    What goes wrong on the way (a full disk, a loss that is not finite, another process that ends) is one line and exit
    code 1. Ctrl-C is exit code 130, SIGTERM 143. A notebook has no exit code: there the line is the cell's error.
    """
    if hasattr(sys.stdout, "reconfigure"):  # a notebook's has no encoding to change
        encoding = None if sys.stdout.isatty() else "utf-8"  # a file has every character, a terminal may lack some
        sys.stdout.reconfigure(encoding=encoding, errors="replace")
    try:
        main()
    except Exception as error:
        line, code = line_of(error)
        if not line:
            raise
        if in_notebook():
            raise UserError(line) from None
        print(f"{Path(sys.argv[0]).name}: {line}", file=sys.stderr)
        sys.exit(code)
    except KeyboardInterrupt as stop:
        if in_notebook():
            raise
        sys.exit(128 + (stop.args or [signal.SIGINT])[0])
    finally:
        leave()


def line_of(error):
    """What there is to say of an error, and the exit code. Nothing if the error is a fault of the code."""
    said = " ".join(str(error).splitlines())
    if isinstance(error, MemoryError) or re.search("tried to allocate|calculation overflowed", said, re.I):
        return "not enough memory; a smaller batch, context or model takes less", 2
    if isinstance(error, UserError):
        return said, 2
    if isinstance(error, RuntimeError) and several() and re.search("gloo|nccl", said, re.I):
        return f"another process has ended ({said})", 1
    if isinstance(error, OSError) and error.filename:  # a file of the user's
        return f"{error.filename}: {error.strerror}", 1
    return said if isinstance(error, FloatingPointError | BrokenPipeError) else "", 1


def parse(cls, argv=None):
    """An instance of the dataclass `cls` from the flags in `argv`. Raises UserError for what does not fit."""
    return build(cls, read_flags(cls, argv))


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError where argparse would exit."""

    def error(self, message):
        raise UserError(message)


def read_flags(cls, argv, with_toml=False):
    """The values of the flags that `argv` has, by name."""
    parser = Parser(
        description=sys.modules[cls.__module__].__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    if with_toml:
        parser.add_argument("--config", metavar="FILE.toml", help="read options from this file; flags override them")
    for f in fields(cls):
        how = {"help": help_of(f).replace("%", "%%")}
        if f.type is bool:
            parser.add_argument(f"--{f.name}", action=argparse.BooleanOptionalAction, **how)
        elif f.default is MISSING:
            parser.add_argument(f.name, type=f.type, **how)
        else:
            choices = ",".join(filter(None, f.metadata["choices"] or ()))
            metavar = f"{{{choices}}}" if choices else f.type.__name__.upper()
            parser.add_argument(f"--{f.name}", type=f.type, metavar=metavar, **how)
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].split("=")[0]
        raise UserError(f"there is no flag {name}{nearest(name, parser._option_string_actions)}")
    return vars(given)


def help_of(f):
    """What `--help` says of a field: "decoder blocks (default: 3; with --size full: 6)"."""
    if f.default in ("", MISSING):
        return f.metadata["meaning"]
    default = {True: "on", False: "off"}[f.default] if f.type is bool else f.default
    full = "" if f.metadata["full"] is None else f"; with --size full: {f.metadata['full']}"
    return f"{f.metadata['meaning']} (default: {default}{full})"


def build(cls, values):
    """An instance of `cls`. Raises UserError for a value that its option does not allow."""
    for f in fields(cls):
        if f.name in values:
            check(f, values[f.name], f"--{f.name} {values[f.name]}")
    try:
        return cls(**values)
    except ValueError as error:  # from the dataclass's own __post_init__
        raise UserError(error) from None


def check(f, value, said):
    """Raises UserError if the option does not allow the value; `said` is what the message starts with."""
    if f.metadata["choices"] and value not in f.metadata["choices"]:
        raise UserError(f"{said}: must be one of {', '.join(filter(None, f.metadata['choices']))}")
    if f.type in (int, float):
        bounds = {name: f.metadata[name] for name in BOUNDS if f.metadata[name] is not None}
        if not bounds.keys() & {"least", "above"}:
            bounds = {"least": 1 if f.type is int else 0} | bounds
        if not bounds.keys() & {"most", "below"}:
            bounds["below"] = 2**31 if f.type is int else math.inf
        if not all(BOUNDS[name][0](value, bound) for name, bound in bounds.items()):  # NaN fails them all
            words = " and ".join(f"{BOUNDS[name][1]} {bound}" for name, bound in bounds.items())
            raise UserError(f"{said}: must be {words.replace('below inf', 'finite')}")


def typed(cls, given, where):
    """Options that somebody wrote down, each of its own type; an int may stand for a float. Raises UserError."""
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
    """The end of a message about an unknown name: the most similar of those that there are, if any is."""
    close = difflib.get_close_matches(name, names, 1)
    return f"; did you mean {close[0]}?" if close else ""
