"""Writes the README's tables of runs, and the text that one wrote, anew from results/published/ between their markers.

python results/table.py
"""

import json
import math
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python, run on this file, has put results/ itself

from results import ablation
from results.ablation import spread
from results.cli import Parser, run_main
from results.plot import read

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "results" / "published"

# What is new in a rung, the rung below, its run, and what a run of the same rung is said to come to elsewhere.
LADDER = [
    ("bigram.py", "each character predicts the next from a lookup table", "", "bigram", "2.58"),
    ("single_head.py", "one head of masked self-attention", "bigram.py", "single_head", "2.41"),
    ("multi_head.py", "several heads side by side", "single_head.py", "multi_head", "2.28"),
    ("gpt.py", "residual stream, feed-forward, LayerNorm: one block", "multi_head.py", "one_block", "2.17"),
    ("gpt.py", "depth: three blocks, wider, a longer context", "multi_head.py", "gpt", "1.636"),
    ("modern_gpt.py", "what has changed since GPT-2; more context and steps", "gpt.py", "modern_gpt", ""),
    ("modern_gpt.py", "the same with six blocks, wider, more steps of half the size", "gpt.py", "long", "1.4697"),
    ("pyg_free_gat.py", "attention as message passing: GATv2", "gpt.py", "gatv2", ""),
]
LAYERS = {
    "dot": ("q_i · k_j / √D", "v_j"),
    "gatv2": ("a · LeakyReLU(W_r x_i + W_l x_j)", "W_l x_j"),
    "gat": ("LeakyReLU(a_dst · h_i + a_src · h_j), h = W x", "h_j"),
    "mean": ("0: all alike", "W mean_j x_j"),
    "max": ("no softmax", "W max_j x_j, by channel"),
}
FULL = {  # what was run, and what gpt-pyg-attention's plot reads for it
    "full_dot": ("`--layer dot`", "1.50"),
    "full_dot_no_dropout": ("`--layer dot --dropout 0`", "1.50"),
    "full_dot_decay": ("`--layer dot --dropout 0 --weight_decay 0.3`", "1.50"),
    "full_dot_decay_dropout": ("`--layer dot --dropout 0.1 --weight_decay 0.3`", "1.50"),
    "full_gatv2": ("`--layer gatv2`", "1.57"),
    "full_gatv2_no_dropout": ("`--layer gatv2 --dropout 0`", "1.57"),
    "full_gat": ("`--layer gat`", "1.66"),
    "full_gat_no_dropout": ("`--layer gat --dropout 0`", "1.66"),
    "full_modern": ("`modern_gpt.py`", ""),
}


def seeds(run):
    """The folders of a run's seeds that are done: results/published/gpt, gpt-2, gpt-3."""
    return [folder for end in ("", "-2", "-3") if (folder := PUBLISHED / (run + end)).joinpath("sample.txt").exists()]


def about(run):
    return json.loads((PUBLISHED / run / "config.json").read_text(encoding="utf-8"))


def parameters(run):
    return f"{about(run)['parameters']:,}"


def losses(run):
    return [read(folder)["val_loss"][-1] for folder in seeds(run)]


def seconds(run):
    """How long the run with seed 1 trained, evaluations included."""
    minutes, rest = divmod(round(read(PUBLISHED / run)["seconds"][-1]), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells):
    yield row(*cells)
    yield "|---" * len(cells) + "|"


def ladder():
    yield from head("the new idea", "rung", "lines", "read", "parameters", "nats", "bits", "elsewhere, nats", "time")
    for rung, idea, below, run, elsewhere in LADDER:
        code = (ROOT / rung).read_text(encoding="utf-8").splitlines()
        name = f"{code[0].split()[1]} [{rung}]({rung})"  # the 4: of """Rung 4: ...
        diff = f"`diff {below} {rung}`" if below else ""
        nats, bits = spread(losses(run)), spread([loss / math.log(2) for loss in losses(run)])
        yield row(idea, name, len(code), diff, parameters(run), nats, bits, elsewhere, seconds(run))


def layers():
    weight = "how much i reads from j: a softmax over the j with `adjacency[i, j]` of"
    yield from head("`--layer`", weight, "what it reads", "parameters", "validation loss", "time")
    for run, (score, value) in LAYERS.items():
        yield row(f"`{run}`", score, value, parameters(run), f"{losses(run)[0]:.3f}", seconds(run))


def matched():
    yield from head("run", "parameters", "validation loss")
    for run in ("dot", "gatv2_matched", "gat_matched"):
        command, _, _ = about(run)["commands"][0].partition(" --out")
        yield row(f"`{command}`", parameters(run), spread(losses(run)))


def full():
    yield from head("run", "parameters", "steps", "characters", "validation loss", "time", "elsewhere")
    for run, (flags, elsewhere) in FULL.items():
        columns = read(PUBLISHED / run)
        seen = (f"{columns[name][-1]:,.0f}" for name in ("step", "tokens"))
        yield row(flags, parameters(run), *seen, f"{losses(run)[0]:.3f}", seconds(run), elsewhere)


def sample():
    """The first three speeches that gpt.py wrote."""
    speeches = (PUBLISHED / "gpt" / "sample.txt").read_text(encoding="utf-8").strip().split("\n\n")
    yield from ("```", *"\n\n".join(speeches[:3]).splitlines(), "```")


TABLES = {
    "sample": sample,
    "ladder": ladder,
    "layers": layers,
    "matched": matched,
    "full": full,
    "ablation": ablation.table,
}


def rewritten(text):
    """The README with its tables as the files have them."""
    between = re.compile(r"(<!-- (\w+): [^\n]* -->\n).*?(<!-- end -->)", re.S)
    return between.sub(lambda marks: marks[1] + "\n".join(TABLES[marks[2]]()) + "\n" + marks[3], text)


def main(argv=None):
    Parser(description=__doc__).parse_args(argv)
    path = ROOT / "README.md"
    text = path.read_text(encoding="utf-8")
    path.write_text(rewritten(text), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    run_main(main)
