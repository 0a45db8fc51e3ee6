"""The contract between the rungs: what is the same is the same to the byte, and a diff shows the new idea alone."""

import ast
import subprocess
import sys

import pytest
from conftest import CACHED, GPTS, ROOT, RUNGS

import sample

FIRST = RUNGS[:4]
ALIKE = ["gpt", "pyg_free_gat", "windowed_gpt", "long_gat"]  # all but modern_gpt, whose schedule is another
SAME = [
    ("generate", [rung for rung in RUNGS if rung not in CACHED]),
    ("generate", CACHED),
    ("evaluate", [*FIRST, "transformer"]),
    ("evaluate", GPTS),
    ("loss_of", [*FIRST, "transformer"]),
    ("loss_of", GPTS),
    ("update", GPTS),
    ("train", FIRST),
    ("train", ALIKE),
    ("main", FIRST[1:]),
    ("main", ["transformer", *GPTS]),
    ("Config.__post_init__", ["multi_head", "block", "transformer", "gpt", "windowed_gpt", "long_gat"]),
    ("Attention", ["multi_head", "block", "transformer"]),
    ("Attention.__init__", ["multi_head", "block", "transformer", "gpt", "windowed_gpt"]),
    ("Block", ["gpt", "long_gat"]),
    ("Block.__init__", ["transformer", "gpt", "pyg_free_gat", "long_gat"]),
    ("GPT.__init__", ["transformer", *ALIKE]),
    ("GPT.initialize", ["transformer", "gpt", "windowed_gpt"]),
    ("GPT.forward", ["gpt", "windowed_gpt", "long_gat"]),
    ("GPT.new_cache", ["gpt", "windowed_gpt"]),
    ("orthogonalize", GPTS),
    ("Muon", GPTS),
    ("make_optimizers", GPTS),
    ("learning_rate_at", ["transformer", *ALIKE]),
]
SECTIONS = ["Config", "Model", "Training", "main()"]


def source(rung):
    return (ROOT / f"{rung}.py").read_text(encoding="utf-8")


def definition(rung, name):
    """The text of a function, class or method with its decorators."""
    text = source(rung)
    node = ast.parse(text)
    for part in name.split("."):
        node = next(child for child in node.body if getattr(child, "name", None) == part)
    first = min([node.lineno] + [decorator.lineno for decorator in node.decorator_list])
    return "\n".join(text.splitlines()[first - 1 : node.end_lineno])


@pytest.mark.parametrize("name, rungs", SAME)
def test_shared_blocks_are_the_same_to_the_byte(name, rungs):
    assert len({definition(rung, name) for rung in rungs}) == 1


@pytest.mark.parametrize("rung", RUNGS)
def test_sections(rung):
    banners = [line.strip("# -") for line in source(rung).splitlines() if line.startswith("# ---")]
    assert [banner for banner in banners if "skip this" not in banner] == SECTIONS


@pytest.mark.parametrize("rung", RUNGS)
def test_imports_torch_the_standard_library_data_and_results_alone(rung):
    imported = set()
    for node in ast.walk(ast.parse(source(rung))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= set(sys.stdlib_module_names) | {"torch", "data", "results"}


def test_importing_runs_nothing(tmp_path):
    script = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import {', '.join(RUNGS)}, sample"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr, list(tmp_path.iterdir())) == ("", "", [])


def test_sample_knows_every_rung():
    assert list(sample.RUNGS) == [*RUNGS, "gpt2", "gates", "modern_windows", "student"]
    for name in sample.RUNGS:
        module, model = sample.rung(name)
        assert model.__module__ == module.__name__ and module.__name__.split(".")[-1] == name
