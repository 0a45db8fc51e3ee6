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
EQUAL = "it computes what the rung computes"


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


@torch.no_grad()
def numbers_of(exercise, module):
    """What the lines compute, as a list of tensors."""
    found = exercise.probe(module)
    return [torch.as_tensor(part) for part in (found if isinstance(found, list | tuple) else [found])]


def alike(ours, theirs, tolerance):
    """None if two lists of tensors are equal, else in what they differ."""
    for a, b in zip(ours, theirs, strict=True):
        if a.shape != b.shape:
            return f"the result has the shape {tuple(b.shape)} instead of {tuple(a.shape)}"
        if not torch.allclose(a.double(), b.double(), atol=tolerance, rtol=tolerance, equal_nan=True):
            return f"numbers differ by up to {(a.double() - b.double()).abs().nan_to_num(nan=torch.inf).max():.3g}"
    return None


def verdict(exercise, module):
    """Whether each property holds, name -> bool, and what to say about it; all hold if the exercise is done."""
    right = numbers_of(exercise, module_of(source_of(exercise)))
    found = numbers_of(exercise, module)
    differs = alike(right, found, exercise.tolerance)
    holds = {}
    for name, holds_for in exercise.properties.items():
        holds[name] = bool(holds_for(module))
    holds[EQUAL] = differs is None
    if differs is None:
        return holds, ""
    for says, code in exercise.mistakes.items():
        wrong = numbers_of(exercise, module_of(with_lines(exercise, code)))
        if alike(wrong, found, exercise.tolerance) is None:
            return holds, says
    return holds, f"It is not one of the usual mistakes: {differs}."


def described(error, path):
    """An error in a learner's file in one sentence, with the line of theirs where it happened."""
    says = " ".join(f"{type(error).__name__}: {error}".split())
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}: {(error.text or '').strip()}"
    theirs = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    return f"line {theirs[-1].lineno}, {theirs[-1].line or theirs[-1].name}: {says}" if theirs else says


def judged(name, path):
    """What to say about a learner's file: {"holds": name -> bool, "says": a sentence}."""
    exercise = EXERCISES[name]
    try:
        text = Path(path).read_text(encoding="utf-8")
        located(exercise, source_of(exercise))
        module = module_of(text, path)
        target = module
        for part in exercise.definition.split("."):
            if not hasattr(target, part):
                return {"holds": {}, "says": f"there is no {exercise.definition} in it"}
            target = getattr(target, part)
        holds, says = verdict(exercise, module)
    except NotImplementedError as error:
        return {"holds": {}, "says": str(error)}
    except Exception as error:
        return {"holds": {}, "says": described(error, path)}
    return {"holds": holds, "says": says}


if __name__ == "__main__":
    torch.set_num_threads(1)
    name, path, answer = sys.argv[1:]
    Path(answer).write_text(json.dumps(judged(name, path)), encoding="utf-8")
