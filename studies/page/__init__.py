"""Writes the ladder as one page, results/ladder.html, which a browser opens from the disk without a network.

python -m studies.page
python -m studies.page --run results/mine --text "To be, or not"  # and what the heads of a run of yours attend to

Any two rungs side by side; the curves of the published runs and of those in results/; what trained heads attend to, and
one head number by number; what every rung writes. The models of results/published/ are in the page, in 8 bits a number:
what is typed there, they read and continue. What has no weights there is left out.
"""

import ast
import base64
import itertools
import json
import statistics
import string
from dataclasses import dataclass
from pathlib import Path

import torch

from data import UserError
from data.files import write_output
from results import option, parse
from results.plot import MADE_BY, RESULTS, X, read, runs_in
from studies import graphs, tables
from studies.ablation import PUBLISHED, finished, spread
from studies.pictures import HEAD_TEXT, TEXT, head_numbers, weights_of

from . import weights
from .side_by_side import coloured, stretches

HERE = Path(__file__).parent
TRAINED = PUBLISHED  # the runs whose weights are in the page
RUNGS = [rung for rung, *_ in tables.LADDER]
LINES = (TEXT, "And every day I cannot come to woo", "So I to her and so she yields to me")  # all validate
HEADS = {  # the runs whose heads stand side by side
    "gpt": ("dot product", "gpt.py"),
    "gat": ("GAT", "pyg_free_gat.py --layer gat"),
    "gatv2": ("GATv2", "pyg_free_gat.py --layer gatv2"),
    "soft_window": ("soft windows", "windowed_gpt.py"),
    "modern_gpt": ("rotary dot product", "modern_gpt.py"),
}
WRITERS = [
    *tables.LADDER,
    ("modern_gpt.py with six blocks, 512 characters at a time", "", "", "long_512", "", ""),
    ("a student of three larger models", "", "", "full_student_long", "", ""),
]
CURVES = {  # the published runs, each with its seeds, in the order of the tables
    "the ladder": [run for *_, run, _, _ in tables.LADDER] + [*tables.OTHERS],
    "layers of pyg_free_gat.py": [run for run, *_ in tables.LAYERS.values()]
    + [matched for *_, matched in tables.LAYERS.values() if matched],
    "sparser graphs": [graphs.run_of(layer, graph) for layer in graphs.LAYERS for graph in graphs.WINDOWS + graphs.SUMS]
    + ["dot_1800", "graph_dot_window_4_1800"],
    "learned windows, and gates": [run for _, run in tables.ATTENTIONS.values()],
    "windows of GAT": [*tables.TEXTS],
    "tokens": [f"tokens_{rung}_{size}" for rung in ("gpt", "modern_gpt") for size in tables.TOKENS],
    "larger models": [*tables.FULL, "full_long_gat"],
    "sparser graphs, full size": [
        graphs.run_of(layer, graph, "full")
        for layer in graphs.LAYERS
        for graph in graphs.WINDOWS
        if graph != "causal" and graphs.losses(layer, graph, size="full")
    ],
    "the lowest loss": [*tables.RECORD],
}

SCRIPTS = ("base", "side_by_side", "curves", "models", "live", "attention", "one_head", "samples", "main")

# ---------------------------------------------------------------- Two rungs side by side


def rungs():
    """Each rung: its place on the ladder, its idea, its numbers as the README has them, and its lines."""
    for rung, idea, below, run, *_ in tables.LADDER:
        code = (tables.ROOT / rung).read_text(encoding="utf-8")
        title, about, *_ = ast.get_docstring(ast.parse(code)).split("\n\n")
        numbers = dict(
            parameters=tables.parameters(run), loss=spread(tables.losses(run)), time=tables.training_time(rung, run)
        )
        yield dict(file=rung, below=below, idea=idea, title=title, about=about, lines=coloured(code), **numbers)


def pairs():
    """What any two rungs share, by their names with a space between."""
    code = {rung: (tables.ROOT / rung).read_text(encoding="utf-8").splitlines() for rung in RUNGS}
    return {f"{a} {b}": stretches(code[a], code[b]) for a, b in itertools.permutations(RUNGS, 2)}


# ---------------------------------------------------------------- Curves and samples


def curve(name, group, folders):
    """A run over its steps. Of several seeds, the validation loss is their mean, with its standard deviation beside.

    Raises ValueError for a metrics.csv that is none.
    """
    seeds = [read(folder) for folder in folders]
    first = seeds[0]
    losses = [dict(zip(seed["step"], seed["val_loss"])) for seed in seeds]
    at = [[loss.get(step) for loss in losses] for step in first["step"]]
    val = [None if None in found else statistics.mean(found) for found in at]
    deviation = [statistics.stdev(found) if len(found) > 1 and None not in found else 0 for found in at]
    axes = {axis: first[column] for axis, column in X.items()}
    return dict(name=name, group=group, seeds=len(seeds), train=first["train_loss"], val=val, spread=deviation, **axes)


def published():
    """The curves of the published runs, each once."""
    groups = {run: group for group, runs in reversed(CURVES.items()) for run in runs}
    runs = dict.fromkeys(itertools.chain(*CURVES.values()))
    return [curve(run, groups[run], folders) for run in runs if (folders := finished(run))]


def own(given):
    """The runs of whoever makes the page, each with its curve: those in results/, but for moved ones, and --run's."""
    folders = runs_in(RESULTS)
    given = [Path(given).resolve()] if given else []
    for folder in folders + [run for run in given if run not in folders]:
        try:
            yield folder, curve(folder.name, "yours", [folder])
        except ValueError as error:
            print(f"left out: {error}")


def samples(runs):
    """What runs wrote, of (name, folder, loss) each."""
    for name, folder, loss in runs:
        if text := written(folder):
            yield dict(name=name, loss=loss, text=text)


def written(folder):
    path = Path(folder) / "sample.txt"
    return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""


# ---------------------------------------------------------------- Attention


def heads_of(name, about, run, texts, layers=""):
    """What each head of a run reads of each text that its tokenizer can encode. Raises UserError if that is none.

    The weights are bytes, 255 for 1: for each block, each head and each token those of the tokens up to it.
    """
    views = []
    for text in texts:
        try:
            weights, tokens = weights_of(run, text, layers=layers)
        except UserError as error:
            views.append(None)
            unread = error
            continue
        weights, T = torch.stack(weights), len(tokens)  # (n_layer, H, T, T)
        start = len(text) - len("".join(tokens))  # in characters; a model with a short context has read the end
        numbers = (weights[:, :, *torch.tril_indices(T, T)] * 255).round().byte().numpy().tobytes()
        views.append(dict(tokens=tokens, start=start, weights=base64.b64encode(numbers).decode()))
    if not any(views):
        raise unread
    return dict(name=name, about=about, layers=len(weights), heads=weights.shape[1], views=views)


def attention(flags):
    """The texts, and the models whose heads read them: that of --run first, then those in results/published/."""
    texts, models = [flags.text] if flags.text else [*LINES], []
    if flags.run:
        if not flags.text:
            texts[:0] = [line[:36] for line in written(flags.run).splitlines() if len(line) > 20][:1]  # its own words
        models.append(heads_of(Path(flags.run).resolve().name, "your run", flags.run, texts, flags.layers))
    for run, names in HEADS.items():
        try:
            models.append(heads_of(*names, TRAINED / run, texts))
        except UserError as error:
            print(f"left out, what the heads of {run} read: {error}")
    return dict(texts=texts, models=models)


# ---------------------------------------------------------------- main()


@dataclass
class Flags:
    run: str = option("", "folder of a run of yours, whose heads and whose curve stand on the page too")
    text: str = option("", "what the heads read, instead of three lines of the validation split")
    layers: str = option("", "with --run, a Python file to run first that adds a layer of yours to pyg_free_gat.LAYERS")
    out: str = option(str(RESULTS / "ladder.html"), "the page")

    def __post_init__(self):
        if not self.out.endswith(".html"):
            raise ValueError(f"--out {self.out}: must end in .html")


def everything(flags):
    """What the page shows, as JSON has it."""
    read_by_heads = attention(flags)  # first, since --run may be wrong
    mine = [*own(flags.run)]
    models = []
    for run in weights.MODELS:
        try:
            models.append(weights.file_of(run, TRAINED / run))
        except UserError as error:
            print(f"left out, the model of {run} in the page: {error}")
    runs = [(rung, PUBLISHED / run, spread(tables.losses(run)) + " nats") for rung, *_, run, _, _ in WRITERS]
    numbers = [matrix.tolist() for matrix in head_numbers(len(HEAD_TEXT))]
    return dict(
        rungs=[*rungs()],
        pairs=pairs(),
        attention=read_by_heads,
        models=models,
        curves=[run for _, run in mine] + published(),
        head=dict(text=HEAD_TEXT, numbers=dict(zip(("X", "W_q", "W_k", "W_v", "W_o"), numbers))),
        samples=[*samples(runs + [(folder.name, folder, "yours") for folder, _ in mine])],
    )


def main(argv=None):
    flags = parse(Flags, argv)
    # Without a "<" no text ends the script that holds it.
    data = json.dumps(everything(flags), separators=(",", ":")).replace("<", "\\u003c")
    template = (HERE / "page.html").read_text(encoding="utf-8")
    script = "\n".join((HERE / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    page = string.Template(template).substitute(data=data, script=script, made_by=MADE_BY)
    write_output(flags.out, page.encode(), MADE_BY.encode())
    print(flags.out)
