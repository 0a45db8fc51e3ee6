"""A dataclass as a command line: each field is a flag, and what does not fit is an error of one line."""

import argparse
import difflib
import sys
from dataclasses import MISSING, field, fields
from pathlib import Path

from data import UserError

WITHIN = {int: "[1, 1e9)", float: "[0, 1e30)"}  # the range of a number, if its option names none
ENDS = {"[": "at least", "(": "above", "]": "at most", ")": "below"}


def option(default, meaning, *, choices=None, within=None):
    """A dataclass field that is a flag; `--help` shows its meaning, its default and its range.

    default: MISSING if the flag is required. choices: the values it may have. within: the range of a number in
    mathematical notation, like "[0, 1)" for at least 0 and below 1.
    """
    return field(default=default, metadata=dict(meaning=meaning, choices=choices, within=within))


def parse(cls, argv=None):
    """An instance of the dataclass `cls` from the flags in `argv`. Raises UserError for what does not fit."""
    return build(cls, read_flags(cls, argv))


def program():
    """What the user calls the program: gpt.py, or studies.page of `python -m studies.page`."""
    path = Path(sys.argv[0])
    return f"{path.parents[1].name}.{path.parent.name}" if path.name == "__main__.py" else path.name


class Parser(argparse.ArgumentParser):
    """An argparse parser that raises UserError where argparse would exit. A description keeps its line breaks."""

    def __init__(self, **how):
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, prog=program(), **how)

    def error(self, message):
        raise UserError(message)


def read_flags(cls, argv, add_config=False, add_help=True):
    """The values of the flags that `argv` has, by name; with or without --config and --help among them."""
    parser = Parser(
        description=sys.modules[cls.__module__].__doc__,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
        add_help=add_help,
    )
    if add_config:
        parser.add_argument("--config", metavar="FILE.toml", help="read options from this file; flags override them")
    for f in fields(cls):
        how = {"help": help_of(f, getattr(cls, "full", {})).replace("%", "%%")}
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
        close = difflib.get_close_matches(name, parser._option_string_actions, 1)
        raise UserError(f"there is no flag {name}" + (f"; did you mean {close[0]}?" if close else ""))
    return vars(given)


def help_of(f, full):
    """What `--help` says of a field: "transformer blocks (default: 3; with --size full: 6)"."""
    said = [] if f.default in ("", MISSING) else [f"default: {f.default}"]
    if f.type is bool:
        said = [f"default: {'on' if f.default else 'off'}"]
    if f.name in full:
        said.append(f"with --size full: {full[f.name]}")
    if f.metadata["within"]:
        said.append(in_words(f.metadata["within"]))
    return f.metadata["meaning"] + (f" ({'; '.join(said)})" if said else "")


def in_words(interval):
    """An interval like [0, 1) in words: at least 0 and below 1."""
    low, high = interval[1:-1].split(", ")
    return f"{ENDS[interval[0]]} {low} and {ENDS[interval[-1]]} {high}"


def build(cls, values):
    """An instance of `cls`. Raises UserError for a value that its option does not allow."""
    for f in fields(cls):
        if f.name in values:
            check(f, values[f.name])
    try:
        return cls(**values)
    except ValueError as error:  # from the dataclass's own __post_init__
        raise UserError(error) from None


def check(f, value):
    """Raises UserError if the option does not allow the value."""
    if f.metadata["choices"] and value not in f.metadata["choices"]:
        raise UserError(f"--{f.name} {value}: must be one of {', '.join(filter(None, f.metadata['choices']))}")
    if f.type is str and "\0" in value:
        raise UserError(f"--{f.name} {value!r}: must have no null character")
    if f.type in WITHIN:
        interval = f.metadata["within"] or WITHIN[f.type]
        low, high = map(float, interval[1:-1].split(", "))
        above = value >= low if interval[0] == "[" else value > low  # NaN is neither above nor below
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise UserError(f"--{f.name} {value}: must be {in_words(interval)}")
