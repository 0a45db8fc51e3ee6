"""Exercises: climb the ladder by writing it. Lines of a rung are taken out, and you write them.

python -m studies.exercises                   # the list, in the order of the ladder
python -m studies.exercises mask              # writes exercises/mask.py: a rung without the lines that you write
python -m studies.exercises mask --check      # says what holds and what does not
python -m studies.exercises mask --hint       # one more hint each time
python -m studies.exercises mask --solution   # your lines, and the rung's
python -m studies.exercises mask --again      # begins anew; your file is kept under another name

exercises/mask.py is a whole rung: once it is right, `python exercises/mask.py` trains it. In a notebook, after
`from studies import exercises`, `exercises.check("mask", forward)` judges a function of a cell, here forward(self, x).
"""

import difflib
import itertools
import json
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

from data import UserError
from data.files import write_atomically
from results import Parser
from studies.exercises.catalogue import EXERCISES
from studies.exercises.judge import (
    BEGIN,
    END,
    ROOT,
    Wrong,
    described,
    located,
    marks_of,
    module_of,
    solution,
    source_of,
    verdict,
)

FOLDER = ROOT / "exercises"
LIMIT = 30  # seconds that a check may take
PATH = """import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # where data and results are

"""


def state():
    """What is done and how many hints were given: name -> {"done": bool, "hints": int}. Of a damaged file, nothing."""
    try:
        kept = json.loads((FOLDER / "state.json").read_text(encoding="utf-8"))
        return {name: dict(done=bool(it.get("done")), hints=int(it.get("hints", 0))) for name, it in kept.items()}
    except (ArithmeticError, AttributeError, OSError, TypeError, ValueError):
        return {}


def remember(name, **what):
    kept = state()
    kept[name] = kept.get(name, {}) | what
    write_atomically(FOLDER / "state.json", json.dumps(kept, indent=2).encode())


def task_of(exercise):
    return " ".join(exercise.task.split())


def written(name):
    """The text of an exercise's file: the rung with a task in the place of its lines."""
    exercise = EXERCISES[name]
    lines, start, end = located(exercise, source_of(exercise))
    indent = lines[start][: len(lines[start]) - len(lines[start].lstrip())]
    comment = [f"# {line}" for line in textwrap.wrap(task_of(exercise), 116 - len(indent))]
    todo = [BEGIN, *comment, f'raise NotImplementedError("{name}")  # your lines take the place of this one', END]
    lines[start:end] = [indent + line for line in todo]
    text = "\n".join(lines) + "\n"
    after = text.index('"""', 3) + 3  # its docstring comes first
    return f"{text[:after]}\n\n{PATH}{text[after:].lstrip()}"


def write(name, again):
    path = FOLDER / f"{name}.py"
    FOLDER.mkdir(exist_ok=True)
    if path.exists() and not again:
        raise UserError(f"{path} is there already: --check judges it, --again begins anew and keeps it as {name}-1.py")
    if path.exists():
        aside = next(p for n in itertools.count(1) if not (p := FOLDER / f"{name}-{n}.py").exists())
        path.rename(aside)
        print(f"your former file is now {aside}")
    write_atomically(path, written(name).encode())
    remember(name, done=False, hints=0)
    exercise = EXERCISES[name]
    print(f"{path}\n\n{exercise.definition}, in {exercise.file}.py:\n{textwrap.fill(task_of(exercise), 100)}\n")
    print(f"Write the lines between {BEGIN!r} and {END!r}, then: python -m studies.exercises {name} --check")


def told(holds, says):
    """A verdict as lines of text."""
    lines = [f"{'yes' if true else 'no '}  {name}" for name, true in holds.items()]
    return "\n".join([*lines, says] if says else lines)


def check_file(name):
    """Judges a learner's file in a process of its own, and says what was found. True if all is right."""
    path = existing(name)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder) / "answer.json"
        print("checking ...", flush=True)
        judge = "from studies.exercises.judge import main; main()"
        command = [sys.executable, "-c", judge, name, str(path), str(answer)]
        try:
            done = subprocess.run(command, cwd=ROOT, timeout=LIMIT, capture_output=True, text=True, errors="replace")
        except subprocess.TimeoutExpired:
            print(f"It did not end within {LIMIT} seconds: is there an endless loop?")
            return False
        if done.stdout.strip():
            print(f"It printed: {done.stdout.strip()[:300]}")
        if not answer.exists():
            last = (done.stderr.strip().splitlines() or [""])[-1]
            print(f"It ended before it was judged, with exit code {done.returncode}. {last}".strip())
            return False
        found = json.loads(answer.read_text(encoding="utf-8"))
    print(told(**found))
    right = bool(found["holds"]) and all(found["holds"].values())
    remember(name, done=right)
    if right:
        rung = "" if not EXERCISES[name].trains else f" python {path.relative_to(ROOT)} trains it."
        later = [*EXERCISES][[*EXERCISES].index(name) + 1 :]
        print(f"Right.{rung} --solution shows the rung's lines." + f" Next: {later[0]}." * bool(later))
    return right


def check(name, function):
    """Judges a function of a notebook's cell in the place of an exercise's definition; prints what was found."""
    exercise = EXERCISES[named(name)]
    module = module_of(source_of(exercise))
    *owners, last = exercise.definition.split(".")
    target = module
    for owner in owners:
        target = getattr(target, owner)
    setattr(target, last, function)
    try:
        holds, says = verdict(exercise, module)
    except Wrong as error:
        holds, says = {}, str(error)
    except Exception as error:
        holds, says = {}, described(error, getattr(function, "__code__", None) and function.__code__.co_filename)
    print(told(holds, says or "Right."))


def named(name):
    """The exercise of this name, or of this number in the list. Raises UserError."""
    names = [*EXERCISES]
    if name.isdecimal() and 0 < int(name) <= len(names):
        return names[int(name) - 1]
    if name.lower() not in EXERCISES:
        close = difflib.get_close_matches(name.lower(), names, n=1)
        raise UserError(
            f"there is no exercise {name!r}; did you mean {close[0]}?"
            if close
            else f"there is no exercise {name!r}; python -m studies.exercises lists them"
        )
    return name.lower()


def existing(name):
    path = FOLDER / f"{name}.py"
    if not path.is_file():
        raise UserError(f"{path}: not there yet; python -m studies.exercises {name} writes it")
    return path


def hint(name):
    hints, given = EXERCISES[name].hints, state().get(name, {}).get("hints", 0)
    remember(name, hints=min(given + 1, len(hints)))
    for number, text in enumerate(hints[: given + 1], 1):
        print(f"{number}. {text}")
    if given + 1 >= len(hints):
        print("There are no more hints: --solution shows the rung's own lines.")


def compare(name):
    mine = marks_of(existing(name).read_text(encoding="utf-8", errors="replace"))
    print("Yours:\n")
    print(textwrap.indent(textwrap.dedent(mine).strip("\n") or "(the marks around your lines are gone)", "    "))
    print("\nThe rung's:\n")
    print(textwrap.indent(solution(EXERCISES[name]), "    "))


def show_list():
    kept = state()
    for number, (name, exercise) in enumerate(EXERCISES.items(), 1):
        mark = "done" if kept.get(name, {}).get("done") else "begun" if (FOLDER / f"{name}.py").exists() else ""
        print(f"{number:2}  {name:14} {mark:6} {exercise.title} ({Path(exercise.file).name}.py)")
    print("\nBegin with: python -m studies.exercises counts")


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("name", nargs="?", help="an exercise; without one they are listed")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="say what holds and what does not")
    what.add_argument("--hint", action="store_true", help="one hint more")
    what.add_argument("--solution", action="store_true", help="show your lines and the rung's")
    what.add_argument("--again", action="store_true", help="begin anew, and keep the former file under another name")
    flags = parser.parse_args(argv)
    if flags.name is None:
        if flags.check or flags.hint or flags.solution or flags.again:
            raise UserError("which exercise? python -m studies.exercises lists them")
        return show_list()
    name = named(flags.name)
    if flags.check:
        sys.exit(not check_file(name))
    if flags.hint:
        return hint(name)
    if flags.solution:
        return compare(name)
    return write(name, flags.again)
