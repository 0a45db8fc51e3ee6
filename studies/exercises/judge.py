"""What an exercise's file is worth: which properties hold, and which of the usual mistakes it makes."""

import ast
import json
import re
import sys
import textwrap
import traceback
from pathlib import Path
from types import ModuleType

import torch

from studies.exercises.catalogue import EXERCISES

ROOT = Path(__file__).parents[2]
BEGIN, END = "# Your lines begin here.", "# Your lines end here."
EQUAL = "it computes what is asked for"


# ---------------------------------------------------------------- Lines of a rung


def source_of(exercise):
    return (ROOT / f"{exercise.file}.py").read_text(encoding="utf-8")


def located(exercise, text):
    """The lines of a file as a list, and the first and one past the last of those that the exercise is about.

    Raises LookupError if the rung has changed so that they are not there.
    """
    node = ast.parse(text)
    for part in exercise.definition.split("."):
        found = [child for child in node.body if getattr(child, "name", None) == part]
        if not found:
            raise LookupError(f"{exercise.file}.py has no {exercise.definition}")
        (node,) = found
    lines = text.splitlines()
    inside = range(node.lineno, node.end_lineno)
    starts = [i for i in inside if lines[i].lstrip().startswith(exercise.first)]
    ends = [i for i in inside if starts and i >= starts[0] and lines[i].lstrip().startswith(exercise.last)]
    if not ends:
        raise LookupError(
            f"{exercise.definition} in {exercise.file}.py has no lines {exercise.first!r} to {exercise.last!r}"
        )
    return lines, starts[0], ends[0] + 1


def with_lines(exercise, code):
    """The rung's file with other lines in the place of those of the exercise."""
    lines, start, end = located(exercise, source_of(exercise))
    indent = re.match(" *", lines[start])[0]
    lines[start:end] = textwrap.indent(textwrap.dedent(code).strip("\n"), indent).splitlines()
    return "\n".join(lines) + "\n"


def solution(exercise):
    """The rung's own lines."""
    lines, start, end = located(exercise, source_of(exercise))
    return textwrap.dedent("\n".join(lines[start:end]))


# ---------------------------------------------------------------- What they compute


def module_of(text, path="exercise.py"):
    """A file's text as a module; as when it is imported, its main() does not run."""
    name = f"exercise_{len(sys.modules)}"
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look themselves up there
    exec(compile(text, str(path), "exec"), vars(module))
    return module


class Wrong(Exception):
    """What is wrong with a result, as a sentence for the learner."""


def numbers_of(exercise, module):
    """What the lines compute, as a list of tensors. Raises Wrong if they return something else."""
    found = exercise.probe(module)
    found = found if isinstance(found, list | tuple) else [found]
    if any(part is None for part in found):
        raise Wrong("Your lines return nothing (None): is a `return` missing?")
    return [torch.as_tensor(part).detach() for part in found]


def differs(right, found, tolerance):
    """What is the difference between two lists of tensors, or None."""
    if len(right) != len(found):
        shape = tuple(right[0].shape)
        return f"You return a list of {len(found)}; a tensor of shape {shape} is wanted. torch.stack makes one."
    for ours, theirs in zip(right, found):
        if ours.shape != theirs.shape:
            return f"Your result has the shape {tuple(theirs.shape)}; {tuple(ours.shape)} is wanted."
        ours, theirs = ours.double(), theirs.double()
        wrong = ~torch.isclose(ours, theirs, atol=tolerance, rtol=tolerance, equal_nan=True)
        if wrong.any():
            place = wrong.nonzero()[0].tolist()
            at = f" at {place}" if place else ""
            if theirs[tuple(place)].isnan():
                return f"There is a nan{at}: a mean of nothing, or a softmax over a row in which all is masked?"
            number, wanted = theirs[tuple(place)], ours[tuple(place)]
            return f"The first number that is wrong{at} is {number:.4g}; it should be {wanted:.4g}."
    return None


def outcome(exercise, module):
    """What the lines compute, or the error that they raise as text."""
    try:
        return numbers_of(exercise, module)
    except Wrong:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def the_same(a, b, tolerance):
    if isinstance(a, str) or isinstance(b, str):
        return a == b
    return differs(a, b, tolerance) is None


def property_holds(true_of, module):
    try:
        return bool(true_of(module))
    except Exception:  # of a result that is no tensor, or of another shape
        return False


def verdict(exercise, module):
    """Whether each property holds, name -> bool, and what to say about it; all hold if the exercise is done.

    Raises whatever the lines raise, unless it is what a usual mistake raises too.
    """
    right, found = numbers_of(exercise, module_of(source_of(exercise))), outcome(exercise, module)
    holds, wrong = {}, "" if isinstance(found, str) else differs(right, found, exercise.tolerance)
    if not isinstance(found, str):
        holds = {name: property_holds(true_of, module) for name, true_of in exercise.properties.items()}
        holds[EQUAL] = wrong is None
    if wrong is None:
        return holds, ""
    for says, code in exercise.mistakes.items():
        if the_same(outcome(exercise, module_of(with_lines(exercise, code))), found, exercise.tolerance):
            return holds | {EQUAL: False}, says
    if isinstance(found, str):
        numbers_of(exercise, module)  # raises it
    return holds, f"I do not recognise this mistake. {wrong} --hint may help."


def described(error, path):
    """An error in a learner's file in one sentence, with the line of theirs where it happened."""
    says = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {theirs[-1].lineno}, {theirs[-1].line or theirs[-1].name}: {says}" if theirs else says


def marks_of(text):
    """What stands between the marks of a learner's file."""
    return text.partition(BEGIN)[2].partition(END)[0]


def judged(name, path):
    """What to say about a learner's file: {"holds": name -> bool, "says": a sentence}."""
    exercise = EXERCISES[name]
    try:
        text = Path(path).read_text(encoding="utf-8")
        located(exercise, source_of(exercise))
        module = module_of(text, path)
        target = module
        for part in exercise.definition.split("."):
            if part not in vars(target):
                gone = f"{Path(path).name} has no {exercise.definition} any more; --again begins anew"
                return {"holds": {}, "says": gone}
            target = vars(target)[part]
        if "NotImplementedError" in marks_of(text):
            raise NotImplementedError
        holds, says = verdict(exercise, module)
    except NotImplementedError:
        lines = [line for line in marks_of(text).splitlines() if line.strip() and not line.lstrip().startswith("#")]
        missing = "The lines to write are still missing: they take the place of the `raise`."
        return {
            "holds": {},
            "says": "Your lines are there, but so is the `raise`: delete it." if lines[1:] else missing,
        }
    except Wrong as error:
        return {"holds": {}, "says": str(error)}
    except Exception as error:
        return {"holds": {}, "says": described(error, path)}
    return {"holds": holds, "says": says}


def main():
    torch.set_num_threads(1)
    name, path, answer = sys.argv[1:]
    Path(answer).write_text(json.dumps(judged(name, path)), encoding="utf-8")
