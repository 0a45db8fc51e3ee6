"""What the README says is what the files say."""

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from conftest import ROOT, argv_of, tiny_flags

import pyg_free_gat
import sample
import studies.maximum  # noqa: F401 (it adds its layer)
from data import UserError
from pyg_free_gat import LAYERS
from results import parse_config
from results.metrics import read
from results.options import FORMER
from studies import tables

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_its_tables_are_what_the_files_say():
    texts = [page.read_text(encoding="utf-8") for page in tables.PAGES]
    for text in texts:
        assert tables.rewritten(text) == text
    named = [name for text in texts for name in re.findall(r"^<!-- (\w+): python -m studies.tables -->$", text, re.M)]
    assert sum(text.count("<!-- end -->") for text in texts) == len(named)
    assert {*named} == {*tables.TABLES}
    for text in (
        "<!-- nothing: python -m studies.tables -->\n<!-- end -->",
        "<!-- lines: python -m studies.tables -->\n",
    ):
        with pytest.raises(UserError):
            tables.rewritten(text + "<!-- matched: python -m studies.tables -->\n<!-- end -->")


@pytest.mark.skipif(os.name != "posix", reason="a shell script")
def test_the_published_runs_are_those_of_reproduce(tmp_path):
    """Its commands, printed by a `python` of ours, are but for the folder those that the runs say they were made by."""
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho python "$@"\n', encoding="utf-8")
    fake.chmod(0o755)
    script = (ROOT / "studies" / "reproduce.sh").read_text(encoding="utf-8").replace("/sample.txt", "/no such file")
    (tmp_path / "studies").mkdir()
    (tmp_path / "studies" / "reproduce.sh").write_text(script, encoding="utf-8")
    groups = [name for name in re.findall(r"^(\w+)\(\)", script, re.M) if name != "run"]
    command = ["bash", tmp_path / "studies" / "reproduce.sh", *groups]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    printed = {line.replace("/published/", "/reproduced/") for line in printed.splitlines()}
    for folder in (ROOT / "results" / "published").glob("*/config.json"):
        about = json.loads(folder.read_text(encoding="utf-8").replace("/published/", "/reproduced/"))
        assert {line.removesuffix(" --resume") for line in about["commands"]} <= printed, folder
        if not about["config"].get("vocab_size"):
            assert len((folder.parent / "sample.txt").read_text(encoding="utf-8")) == 501


def test_the_command_of_a_published_run_sets_its_options_today():
    """No default has moved since: `gpt.py --size full` is still what was trained to its end."""
    for folder in (ROOT / "results" / "published").glob("*/config.json"):
        about = json.loads(folder.read_text(encoding="utf-8"))
        left_out = {"resume", "device", "cuda_graph", *FORMER}  # a GPU of theirs need not be here
        then = {name: value for name, value in about["config"].items() if name not in left_out}
        words = shlex.split(about["commands"][-1].removesuffix(" --resume"))
        flags = words[3:] if "-m" in words else words[2:]
        flags += ["--layer=max"] * ("studies.maximum" in words)
        flags += ["--device=cpu", *argv_of(**{name: then[name] for name in ("dtype",) if name in then})]
        today = asdict(parse_config(sample.rung(about["rung"])[0].Config, flags))
        assert {name: today[name] for name in then} == then, folder


def snippets():
    return [block.split("```")[0] for block in README.split("```python\n")[1:]]


def test_three_ways_to_average_agree(capsys):
    exec(snippets()[0], {})
    assert capsys.readouterr().out == "True True\n"


@pytest.mark.parametrize("own", [True, False], ids=["a layer of one's own", "a convolution of PyTorch Geometric"])
def test_its_layers_train_as_they_stand(monkeypatch, text_file, tmp_path, own):
    if not own:
        pytest.importorskip("torch_geometric")
    flags = {**tiny_flags("pyg_free_gat"), "max_iters": 40, "warmup_iters": 2}
    flags |= {"data": text_file, "out": tmp_path / "run", "device": "cpu"}
    monkeypatch.setattr(sys, "argv", ["layer.py", *argv_of(**flags)])
    monkeypatch.setattr(pyg_free_gat, "LAYERS", {**LAYERS})
    adapter = (ROOT / "studies" / "pyg.py").read_text(encoding="utf-8")
    exec(snippets()[1] if own else adapter, {"__name__": "__main__"})
    losses = read(tmp_path / "run")["train_loss"]
    assert losses[-1] < losses[0] - 0.5


def test_a_graph_of_ones_own(capsys):
    exec(snippets()[2], {})
    assert capsys.readouterr().out == "torch.Size([1, 4, 16]) torch.Size([1, 2, 4, 4])\n"


def test_a_batch_of_pytorch_geometric(capsys):
    pyg = pytest.importorskip("torch_geometric")
    torch.manual_seed(0)
    graphs = [pyg.data.Data(x=torch.randn(N, 16), edge_index=torch.randint(N, (2, 9)).unique(dim=1)) for N in (5, 9)]
    names = {"batch": pyg.data.Batch.from_data_list(graphs)}
    exec(snippets()[2] + snippets()[3], names)
    theirs = pyg.nn.GATv2Conv(16, 8, heads=2, add_self_loops=False)
    theirs.load_state_dict(names["layer"].state_dict())
    torch.testing.assert_close(names["out"], theirs(names["batch"].x, names["batch"].edge_index))


def commands():
    """The commands of its tables that start a script, each as its words."""
    lines = [shlex.split(line) for line in re.findall(r"^\| `(python [^`]+)`", README, re.M)]
    return [words[1:] for words in lines if words[1].endswith(".py")]


def test_its_commands_run(monkeypatch, text_file, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("my.txt").write_text("ROMEO: " + text_file.read_text(encoding="utf-8"), encoding="utf-8")
    Path("my.toml").write_text("n_layer = 1\n", encoding="utf-8")
    weights, scripts = tmp_path / "weights", {}
    transformers = pytest.importorskip("transformers")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16)).save_pretrained(weights)
    for number, (script, *flags) in enumerate(commands()):
        scripts[script] = scripts.get(script, 0) + 1
        module = importlib.import_module(script.removesuffix(".py").replace("/", "."))
        if script in ("gpt.py", "pyg_free_gat.py"):
            tiny = tiny_flags("gpt") | {"device": "cpu", "data": "my.txt"}
            tiny["max_iters"] = 4 if "--resume" in flags else 2
            if "--out" not in flags:
                tiny["out"] = f"results/{number}"
            flags += argv_of(**tiny)
        elif script == "results/plot.py":
            flags += ["results/mine", "--out=losses.png"]
        elif script == "sample.py":
            flags[0] = "results/mine"
        elif script == "gpt2.py":
            flags = [flag if flag != "DIR" else str(weights) for flag in flags]
            flags += ["--device=cpu", "--data=my.txt", "--max_new_tokens=3", "--max_iters=2", "--out=results/gpt2"]
            flags += ["--block_size=32", *[f"--weights={weights}"] * ("--weights" not in flags)]
        module.main(flags)
    assert scripts["gpt.py"] >= 6 and scripts["pyg_free_gat.py"] >= 3 and {"sample.py", "results/plot.py"} <= {*scripts}
