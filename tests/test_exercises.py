"""The exercises: the rung's lines pass, others that are right pass, and every usual mistake is called by its name."""

import json
import textwrap

import pytest
from conftest import run

from data import UserError
from studies import exercises
from studies.exercises import judge
from studies.exercises.catalogue import EXERCISES

NAMES = [*EXERCISES]
MISSING = "The lines to write are still missing: they take the place of the `raise`."
MISTAKES = [(name, says) for name in NAMES for says in EXERCISES[name].mistakes]
OTHERS = [(name, n) for name in NAMES for n in range(len(EXERCISES[name].others))]


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setattr(exercises, "FOLDER", tmp_path / "exercises")
    return tmp_path / "exercises"


def fill(file, code):
    """Writes a learner's lines between the marks of a file."""
    text = file.read_text(encoding="utf-8")
    before, after = text.split(exercises.BEGIN)[0], text.split(exercises.END)[1]
    indent = before[len(before.rstrip(" ")) :]
    lines = textwrap.indent(textwrap.dedent(code).strip("\n"), indent)
    file.write_text(f"{before}{exercises.BEGIN}\n{lines}\n{indent}{exercises.END}{after}", encoding="utf-8")


def judged(name, code):
    return judge.verdict(EXERCISES[name], judge.module_of(judge.with_lines(EXERCISES[name], code)))


def test_there_are_enough_and_each_has_mistakes_and_another_solution():
    rungs = {exercise.file for exercise in EXERCISES.values()}
    assert len(NAMES) >= 15 and len(MISTAKES) >= 60
    assert all(len(exercise.mistakes) >= 4 and exercise.others and exercise.hints for exercise in EXERCISES.values())
    for rung in ("bigram", "single_head", "multi_head", "block", "transformer", "gpt", "modern_gpt", "pyg_free_gat"):
        assert rung in rungs


@pytest.mark.parametrize("name", NAMES)
def test_without_its_lines_it_says_that_they_are_missing_and_with_them_it_is_right(name, folder, tmp_path):
    exercises.main([name])
    file = folder / f"{name}.py"
    assert judge.judged(name, file) == {"holds": {}, "says": MISSING}
    fill(file, judge.solution(EXERCISES[name]))
    found = judge.judged(name, file)
    assert found["says"] == "" and all(found["holds"].values())


@pytest.mark.parametrize("name, n", OTHERS)
def test_another_right_solution_passes(name, n):
    holds, says = judged(name, EXERCISES[name].others[n])
    assert says == "" and all(holds.values())


@pytest.mark.parametrize("name, says", MISTAKES)
def test_a_usual_mistake_is_called_by_its_name(name, says):
    holds, said = judged(name, EXERCISES[name].mistakes[says])
    assert not holds[judge.EQUAL] and said == says


def test_a_mistake_is_known_however_it_is_written():
    holds, says = judged(
        "mask",
        """
        scores = torch.einsum("bid,bjd->bij", q, k) / q.size(-1) ** 0.5
        scores = scores + torch.full((T, T), float("-inf")).triu(1)
        weights = F.softmax(scores, dim=1)""",
    )
    assert (
        says.startswith("Your columns add up to 1, your rows should") and not holds["the weights of a row add up to 1"]
    )


@pytest.mark.parametrize(
    "lines, says",
    {
        "weights = (": "was never closed",
        "weights = missing": "NameError: name 'missing' is not defined",
        "weights = torch.zeros(B, T, T + 1)": "line ",
        "weights = torch.ones(B, T, T)": "I do not recognise this mistake. The first number that is wrong at [0, 0",
        "raise NotImplementedError\nweights = 1": "so is the `raise`: delete it",
        "weights = torch.full((B, T, T), math.nan)": "There is a nan at [0, 0, 0]",
        "weights = None": "TypeError",
        "return None": "Your lines return nothing (None): is a `return` missing?",
        "return [v, v]": "is wanted",
    }.items(),
)
def test_whatever_a_learner_writes_is_a_sentence(lines, says, folder):
    exercises.main(["mask"])
    fill(folder / "mask.py", lines)
    assert says in judge.judged("mask", folder / "mask.py")["says"]


@pytest.mark.parametrize(
    "lines, says",
    {
        "while True: pass": "did not end within",
        "import os; os._exit(3)": "ended before it was judged, with exit code 3",
        "print('hello'); raise KeyError('mine')": "It printed: hello",
    }.items(),
)
def test_a_check_survives_what_a_learner_runs(lines, says, folder, monkeypatch, capsys):
    monkeypatch.setattr(exercises, "LIMIT", 5 if "True" in lines else 100)
    exercises.main(["mask"])
    fill(folder / "mask.py", lines)
    with pytest.raises(SystemExit) as ended:
        exercises.main(["mask", "--check"])
    assert ended.value.code == 1 and says in capsys.readouterr().out


def test_a_function_that_is_gone_is_said(tmp_path):
    file = tmp_path / "loop.py"
    file.write_text("x = 1\n")
    assert judge.judged("loop", file) == {"holds": {}, "says": "loop.py has no by_loop any more; --again begins anew"}


def test_nothing_of_a_learner_is_overwritten(folder, capsys):
    exercises.main(["loop"])
    (folder / "loop.py").write_text("mine\n")
    with pytest.raises(UserError, match="--again begins anew"):
        exercises.main(["loop"])
    exercises.main(["loop", "--again"])
    assert (folder / "loop-1.py").read_text() == "mine\n" and exercises.BEGIN in (folder / "loop.py").read_text()
    with pytest.raises(UserError, match="there is no exercise 'lop'; did you mean loop"):
        exercises.main(["lop"])
    with pytest.raises(UserError, match="not there yet"):
        exercises.main(["mask", "--check"])


def test_hints_come_one_by_one_and_the_list_knows_what_is_done(folder, capsys):
    exercises.main(["merge"])
    for count in (1, 2, 2):
        capsys.readouterr()
        exercises.main(["merge", "--hint"])
        said = capsys.readouterr().out
        assert said.count(". ") >= count and (f"{count}. {EXERCISES['merge'].hints[count - 1]}" in said)
    fill(folder / "merge.py", EXERCISES["merge"].others[0])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        exercises.main(["merge", "--check"])
    assert ended.value.code == 0, capsys.readouterr().out
    exercises.main(["merge", "--solution"])
    assert "Yours:" in (said := capsys.readouterr().out) and "while i < len(ids):" in said
    exercises.main([])
    assert any("merge" in line and "done" in line for line in capsys.readouterr().out.splitlines())
    assert json.loads((folder / "state.json").read_text())["merge"] == {"done": True, "hints": 2}
    for damaged in ("[]", '{"merge": 3}', '{"merge": {"hints": "x"}}', "{"):
        (folder / "state.json").write_text(damaged)
        exercises.main([])
        assert not any("done" in line.split() for line in capsys.readouterr().out.splitlines())


def test_a_function_of_a_notebook_is_judged(capsys):
    def forward(self, x):
        q, k, v = self.query(x), self.key(x), self.value(x)
        return (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v

    exercises.check("mask", forward)
    said = capsys.readouterr().out
    assert "There is no mask yet" in said and "no   later tokens have no influence" in said
    with pytest.raises(UserError, match="did you mean mask"):
        exercises.check("masks", forward)


def test_the_command_lists_them():
    done = run("-m", "studies.exercises")
    assert done.returncode == 0 and all(name in done.stdout for name in NAMES)
