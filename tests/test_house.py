"""The house: imports go one way, and whatever file or command is named somewhere is there."""

import ast
import importlib.util
import re
import tomllib

from conftest import ROOT

from results.run import VERSION

FLOORS = {"data": 0, "results": 1, "studies": 3}  # the rungs and sample.py, which stand in the root, are floor 2
CODE = [file for pattern in ("*.py", "*/*.py", "*/*/*.py") for file in ROOT.glob(pattern)]
PROSE = ["*.md", "*.ipynb", "results/*.md", "*/*.sh", ".ci/run", ".github/workflows/*"]
NAMED = r"(?<![\w/.])((?:data|results|studies|tests)/[\w/-]+\.(?:py|sh))\b"
RUN = r"python -m ((?:data|results|studies|tests)\.\w+)"


def floor(top):
    """The floor of a module, by the first part of its name; None for what is not ours."""
    return FLOORS.get(top, 2 if (ROOT / f"{top}.py").exists() else None)


def imported(file):
    """The first part of the name of every module that a file imports, within its functions too."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level < 2, f"{file}: an import from above its folder"
            yield file.relative_to(ROOT).parts[0] if node.level else node.module.split(".")[0]


def test_imports_go_one_way():
    """From studies/ to the rungs, to results/, to data/; a module of the tests imports none but conftest."""
    for file in CODE:
        if file.parent == ROOT / "tests":
            assert not {top for top in imported(file) if top.startswith("test_")}, file
        else:
            here = floor(file.relative_to(ROOT).with_suffix("").parts[0])
            assert not {top for top in imported(file) if floor(top) is not None and floor(top) > here}, file


def test_what_is_named_is_there():
    for file in [*CODE, *(file for pattern in PROSE for file in ROOT.glob(pattern))]:
        text = file.read_text(encoding="utf-8")
        assert [path for path in re.findall(NAMED, text) if not (ROOT / path).is_file()] == [], file
        assert [module for module in re.findall(RUN, text) if not importlib.util.find_spec(module)] == [], file


def test_versions_are_the_same_everywhere():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["version"] == VERSION and f"\n## {VERSION}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert project["dependencies"] == (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
