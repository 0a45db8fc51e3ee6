"""Writes the tables of README.md and results/*.md anew from the files, each between its markers.

python -m studies.tables

They are of the runs in results/published/, and of the rungs' own lines (the glossary).
"""

import csv
import json
import math
import re
import statistics
from functools import partial

from data import UserError
from data.files import write_atomically
from results import Parser, run_main
from results.plot import RESULTS, read
from studies import ablation, gains, graphs
from studies.ablation import PUBLISHED, finished, spread

ROOT = RESULTS.parent
PAGES = [ROOT / "README.md", *sorted(RESULTS.glob("*.md"))]

# What is new in a rung, the rung to compare it with, its run, what a run of the same rung is said to come to elsewhere,
# and where Karpathy's lecture comes to it: hours, minutes, seconds.
LADDER = [
    ("bigram.py", "each character predicts the next from a lookup table", "", "bigram", "2.58", "22:11"),
    ("single_head.py", "one head of masked self-attention", "bigram.py", "single_head", "2.41", "1:02:00"),
    ("multi_head.py", "several heads side by side", "single_head.py", "multi_head", "2.28", "1:21:59"),
    ("block.py", "feed-forward, residual connections, LayerNorm", "multi_head.py", "block", "2.17", "1:24:25"),
    ("transformer.py", "depth: blocks stacked, and what they need", "block.py", "transformer", "", "1:37:49"),
    ("gpt.py", "speed: the same model learns more in the same time", "transformer.py", "gpt", "1.636", ""),
    ("modern_gpt.py", "what has changed since GPT-2", "gpt.py", "modern_gpt", "", ""),
    ("pyg_free_gat.py", "attention as message passing: GATv2", "gpt.py", "gatv2", "", ""),
    ("windowed_gpt.py", "each query learns how far it looks", "gpt.py", "soft_window", "", ""),
    ("long_gat.py", "GAT over 4,096 characters", "gpt.py", "long_gat", "", ""),
]
STEPS = "A step of training, sizes as by default on a CPU"  # the table of studies.speed that has all rungs
LECTURE = "https://www.youtube.com/watch?v=kCc8FmEb1nY"
OTHERS = {  # further runs of the same rungs: after which rung's, and what is different
    "one_block": ("block.py", "[gpt.py](../gpt.py) with one block, the sizes and steps of block.py", ""),
    "student": ("modern_gpt.py", "the same, [learning from an ensemble](../studies/student.py) as well", ""),
    "modern_256": ("modern_gpt.py", "[modern_gpt.py](../modern_gpt.py), 256 characters at a time, 900 steps", ""),
    "long": ("modern_gpt.py", "[modern_gpt.py](../modern_gpt.py) with six blocks, wider, more steps", "1.4697"),
    "long_windows": ("modern_gpt.py", "the same with [soft windows](../studies/modern_windows.py)", "1.4571"),
    "long_512": ("modern_gpt.py", "[modern_gpt.py](../modern_gpt.py) with six blocks, 512 characters at a time", ""),
}
LAYERS = {  # its run, the score e_ij, the value of j, and the run with as many parameters as the dot product
    "`dot`": ("dot", "q_i · k_j / √D", "v_j", "dot"),
    "`gatv2`": ("gatv2", "a · LeakyReLU(W_r x_i + W_l x_j)", "W_l x_j", "gatv2_matched"),
    "`gat`": ("gat", "LeakyReLU(a_dst · h_i + a_src · h_j), where h = W x", "h_j", "gat_matched"),
    "`mean`": ("mean", "0", "W x_j", ""),
    "[max](studies/maximum.py)": ("max", "no weights", "W max_j x_j, in each channel", ""),
}
ATTENTIONS = {  # of windowed_gpt.py: what it does, and its run
    "plain": ("attends as `gpt.py`", "gpt"),
    "soft_window": ("score + 1 - (d + 1) / w_i", "soft_window"),
    "hard_window": ("weight × (1 - exp(-relu(1 - (d + 1) / w_i)))", "hard_window"),
    "head_gate": ("scales heads by how strongly, where and how widely all look", "head_gate"),
    "location_mlp": ("tells the feed-forward where they look", "location_mlp"),
    "location_gate": ("scales and shifts channels by where they look", "location_gate"),
}
TEXTS = ("gat", "gat_256", "long_gat_256", "long_gat")  # runs of GAT over windows that grow
TOKENS = ("0", "512", "1024", "4096")  # --vocab_size
FULL = {  # what was run, and what nanoGPT says of its own or gpt-pyg-attention's plot reads for it
    "full_gpt": ("`gpt.py --size full`", "1.4697"),
    "full_modern_gpt": ("`modern_gpt.py --size full`", ""),
    "full_pyg_free_gat": ("`pyg_free_gat.py --size full`, GATv2", ""),
    "full_windowed_gpt": ("`windowed_gpt.py --size full`", ""),
    "full_dot": ("`--layer dot`", "1.50"),
    "full_dot_no_dropout": ("`--layer dot --dropout 0`", "1.50"),
    "full_dot_decay": ("`--layer dot --dropout 0 --weight_decay 0.3`", "1.50"),
    "full_dot_decay_dropout": ("`--layer dot --dropout 0.1 --weight_decay 0.3`", "1.50"),
    "full_dot_128": ("`--layer dot --dropout 0`, 16 windows, weight decay 0.5", "1.50"),
    "full_gatv2": ("`--layer gatv2`", "1.57"),
    "full_gatv2_no_dropout": ("`--layer gatv2 --dropout 0`", "1.57"),
    "full_gat": ("`--layer gat`", "1.66"),
    "full_gat_no_dropout": ("`--layer gat --dropout 0`", "1.66"),
    "full_modern": ("`modern_gpt.py`", ""),
}
RECORD = {  # the model, and how it was trained
    "full_modern_gpt": ("`modern_gpt.py --size full`", "16 windows of 256"),
    "full_modern_512": ("`modern_gpt.py --size full`", "8 windows of 512"),
    "full_modern_512_long": ("`modern_gpt.py --size full`", "8 windows of 512, twice the steps"),
    "full_student": ("a student of the three models of 2,000 steps", "8 windows of 512"),
    "full_student_long": ("a student of the same three", "8 windows of 512, twice the steps"),
    "full_student_teachers": ("a student of the same three, `--share 1`", "8 windows of 512, twice the steps"),
}


def about(run):
    return json.loads((PUBLISHED / run / "config.json").read_text(encoding="utf-8"))


def parameters(run):
    return f"{about(run)['parameters']:,}"


def losses(run):
    return [read(folder)["val_loss"][-1] for folder in finished(run)]


def seconds(run):
    """How long the run with seed 1 trained, evaluations included."""
    return minutes(read(PUBLISHED / run)["seconds"][-1])


def minutes(seconds):
    whole, rest = divmod(round(seconds), 60)
    return f"{whole} min {rest} s" if whole else f"{rest} s"


def training_time(rung, run):
    """All steps of a rung, by the median time of a step when all rungs were timed by turns: studies.speed."""
    with open(PUBLISHED / "speed.csv", encoding="utf-8", newline="") as file:
        times = [row for row in csv.DictReader(file) if row["what"] == STEPS and row["side"] == rung]
    seconds = statistics.median(float(row["seconds"]) for row in times)
    return minutes(seconds * about(run)["config"]["max_iters"])


def row(*cells):
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells):
    yield row(*cells)
    yield "|---" * len(cells) + "|"


def ladder():
    yield from head("", "rung", "the new idea", "compare with", "loss before", "loss", "parameters", "time", "lecture")
    runs = {rung: run for rung, _, _, run, *_ in LADDER}
    for rung, idea, below, run, _, chapter in LADDER:
        number = (ROOT / rung).read_text(encoding="utf-8").split()[1].rstrip(":")  # the 4 of """Rung 4: ...
        before = f"{statistics.mean(losses(runs[below])):.3f}" if below else f"{math.log(65):.3f}"
        loss, link = f"**{spread(losses(run))}**", ""
        if chapter:
            second = sum(60**power * int(part) for power, part in enumerate(reversed(chapter.split(":"))))
            link = f"[{chapter}]({LECTURE}&t={second}s)"
        compare = f"`{below}`" if below else "chance"
        time = training_time(rung, run)
        yield row(number, f"[{rung}]({rung})", idea, compare, before, loss, parameters(run), time, link)


def elsewhere():
    yield from head("run", "nats", "bits", "elsewhere, nats")
    for rung, _, _, run, said, _ in LADDER:
        shown = [(f"[{rung}](../{rung})", run, said)]
        shown += [(what, other, said) for other, (after, what, said) in OTHERS.items() if after == rung]
        for what, run, said in shown:
            nats, bits = spread(losses(run)), spread([loss / math.log(2) for loss in losses(run)])
            yield row(what, nats, bits, said)


def layers():
    yield from head("`--layer`", "score e_ij", "value", "loss", "loss, parameters matched")
    for layer, (run, score, value, matched) in LAYERS.items():
        yield row(layer, score, value, spread(losses(run)), spread(losses(matched)) if matched else "")


def matched():
    yield from head("run", "parameters", "validation loss")
    for run in ("dot", "gatv2_matched", "gat_matched"):
        command, _, _ = about(run)["commands"][0].partition(" --out")
        yield row(f"`{command}`", parameters(run), spread(losses(run)))


def windows():
    yield from head("`--attention`", "what it does", "parameters", "seeds", "loss")
    for name, (what, run) in ATTENTIONS.items():
        yield row(f"`{name}`", what, parameters(run), len(finished(run)), spread(losses(run)))


def texts():
    yield from head("run", "characters in a window", "recency", "seeds", "loss")
    for run in TEXTS:
        config = about(run)["config"]
        command, _, _ = about(run)["commands"][0].partition(" --out")
        length, recency = f"{config['block_size']:,}", "yes" if config.get("recency") else "no"
        yield row(f"`{command}`", length, recency, len(finished(run)), spread(losses(run)))


def tokens():
    yield from head("`--vocab_size`", "characters a token", "rung", "parameters", "steps", "nats", "bits", "time")
    for size in TOKENS:
        for rung in ("gpt", "modern_gpt"):
            run = f"tokens_{rung}_{size}"
            nats, bits = spread(losses(run)), spread([loss / math.log(2) for loss in losses(run)])
            length, steps = about(run)["characters_per_token"], about(run)["config"]["max_iters"]
            yield row(size, f"{length:.2f}", f"`{rung}.py`", parameters(run), steps, nats, bits, seconds(run))


def full():
    yield from head("run", "parameters", "steps", "characters", "validation loss", "time", "elsewhere")
    for run, (flags, elsewhere) in FULL.items():
        columns = read(PUBLISHED / run)
        seen = (f"{columns[name][-1]:,.0f}" for name in ("step", "tokens"))
        yield row(flags, parameters(run), *seen, spread(losses(run)), seconds(run), elsewhere)


def record():
    yield from head("model", "trained on", "steps", "seeds", "validation loss", "bits")
    for run, (model, how) in RECORD.items():
        steps = f"{about(run)['config']['max_iters']:,}"
        bits = spread([loss / math.log(2) for loss in losses(run)])
        yield row(model, how, steps, len(finished(run)), spread(losses(run)), bits)


def lines():
    """A line that each of the first rungs wrote: its first that is neither very short nor very long."""
    yield "```"
    for rung, *_, run, _, _ in LADDER[:7]:
        written = (PUBLISHED / run / "sample.txt").read_text(encoding="utf-8").splitlines()
        yield f"{rung:<16}{next(line for line in written if 35 <= len(line) <= 75)}"
    yield "```"


GLOSSARY = {  # what a term means, the file that computes it first, and a text on that line
    "token": (
        "What the model reads at a time: here a character, or a longer piece of text.",
        "data/tokenizer.py",
        "def encode",
    ),
    "logits": (
        "Numbers, one for each token that could come next. A softmax turns them into probabilities.",
        "bigram.py",
        "return self.table(ids)",
    ),
    "softmax": (
        "exp(x), divided by its sum over a row: positive numbers that sum to 1, the largest x first.",
        "single_head.py",
        "scores.softmax",
    ),
    "cross-entropy, nats": (
        "The loss: the mean of -ln p, where p is the probability that the model gave to the token that came. "
        "Its unit is the nat. In bits it is that over ln 2.",
        "bigram.py",
        "F.cross_entropy",
    ),
    "AdamW": (
        "An optimizer: each weight's step is its averaged gradient, divided by the root of the averaged squared "
        "gradient.",
        "bigram.py",
        "torch.optim.AdamW",
    ),
    "context, window": (
        "The characters that the model reads at a time, and that the next one is predicted from.",
        "single_head.py",
        "block_size: int",
    ),
    "embedding": (
        "A vector of C learned numbers for each token, or for each position.",
        "single_head.py",
        "Embedding(v",
    ),
    "query, key, value": (
        "Three vectors that linear layers make of a token: what it looks for, what it can be found by, what it gives.",
        "single_head.py",
        "q = self.query(x)",
    ),
    "attention weights": (
        "The softmax of the scores of query and keys: how much token i reads of token j.",
        "single_head.py",
        "weights = scores.softmax",
    ),
    "causal mask, adjacency": (
        "Who may read from whom, a matrix of True and False. Causal: no token reads from a later one.",
        "single_head.py",
        "adjacency = ",
    ),
    "attention head": (
        "One set of queries, keys and values. (The language modelling head is something else: the output layer.)",
        "multi_head.py",
        "q = self.query(x)",
    ),
    "projection": (
        "The linear layer that mixes what the heads, concatenated, have read.",
        "multi_head.py",
        "return self.proj",
    ),
    "residual connection": (
        "A part of the model adds to its input instead of replacing it. The sum that runs through all blocks is the "
        "residual stream.",
        "block.py",
        "x = x + self.attention",
    ),
    "LayerNorm, pre-norm": (
        "Brings each token's vector to mean 0 and standard deviation 1, then scales and shifts it. Pre-norm: before "
        "attention and feed-forward, not after.",
        "block.py",
        "self.norm_1 = ",
    ),
    "feed-forward network": (
        "Two linear layers with a GELU (a smooth maximum of x and 0) between, for each token alone.",
        "block.py",
        "nn.Sequential(",
    ),
    "dropout": ("In training, a fraction of the activations is set to 0.", "transformer.py", "self.dropout = nn.Drop"),
    "weight tying": (
        "The output layer shares its weights with the token embedding.",
        "transformer.py",
        "return F.linear",
    ),
    "weight decay": (
        "The optimizer also pulls weights a little towards 0.",
        "transformer.py",
        '"weight_decay": config',
    ),
    "warm-up": ("The learning rate rises from 0 before it falls.", "transformer.py", "rise = "),
    "gradient clipping": ("A gradient that is longer than 1 is shortened to 1.", "transformer.py", "clip_grad_norm_"),
    "fused attention": (
        "One kernel, a routine that the device runs as a whole, computes attention and never writes the T x T weights "
        "to memory (FlashAttention).",
        "gpt.py",
        "F.scaled_dot_product_attention",
    ),
    "bfloat16, autocast": (
        "Numbers of 16 bits with the range of float32 and 8 bits of precision. Autocast uses them for matrix products.",
        "gpt.py",
        "torch.autocast",
    ),
    "Muon": (
        "An optimizer for weight matrices: it makes all singular values of the averaged gradient alike.",
        "gpt.py",
        "updates = orthogonalize",
    ),
    "KV cache": (
        "The keys and values of the tokens so far are kept, so that only a new token goes through the model.",
        "gpt.py",
        "cache[:, :, :, past : past + T] =",
    ),
    "RoPE": (
        "Rotary position embedding: queries and keys are rotated by an angle that grows with the position.",
        "modern_gpt.py",
        "def rotate",
    ),
    "message passing": (
        "Each node of a graph reads a weighted sum of what its neighbours hold: attention, on a graph of tokens.",
        "pyg_free_gat.py",
        "weights @ ",
    ),
    "LeakyReLU": (
        "x where x is positive, and slope times x below 0, with slope 0.2.",
        "pyg_free_gat.py",
        "F.leaky_relu",
    ),
    "prefix sum": ("The sums of the first 1, 2, 3, ... numbers of a list.", "long_gat.py", "cumsum"),
}


def glossary():
    yield from head("term", "meaning", "first computed in")
    for term, (meaning, file, text) in GLOSSARY.items():
        code = (ROOT / file).read_text(encoding="utf-8").splitlines()
        line = next(number for number, found in enumerate(code, 1) if text in found)
        yield row(term, meaning, f"[{file}, line {line}]({file}#L{line})")


TABLES = {
    "lines": lines,
    "ladder": ladder,
    "glossary": glossary,
    "elsewhere": elsewhere,
    "layers": layers,
    "matched": matched,
    "windows": windows,
    "texts": texts,
    "tokens": tokens,
    "full": full,
    "record": record,
    "ablation": ablation.table,
    "gains": gains.table,
    "gains_full": partial(gains.table, size="full"),
    "graphs": graphs.table,
    "graphs_full": partial(graphs.table, size="full"),
}


def rewritten(text):
    """A page with its tables as the files have them. Raises UserError unless each table has its two markers."""
    begun = re.findall(r"<!-- (\w+): python -m studies.tables -->\n", text)
    if unknown := [name for name in begun if name not in TABLES]:
        raise UserError(f"there is no table {unknown[0]}")
    if re.findall(r"<!-- (end|\w+: python -m studies.tables) -->", text)[1::2] != ["end"] * len(begun):
        raise UserError("a table lacks its marker <!-- end -->")
    between = re.compile(r"(<!-- (\w+): python -m studies.tables -->\n).*?(<!-- end -->)", re.S)
    return between.sub(lambda marks: marks[1] + "\n".join(TABLES[marks[2]]()) + "\n" + marks[3], text)


def main(argv=None):
    Parser(description=__doc__).parse_args(argv)
    for page in PAGES:
        try:
            write_atomically(page, rewritten(page.read_text(encoding="utf-8")).encode())
        except UserError as error:
            raise UserError(f"{page}: {error}") from None


if __name__ == "__main__":
    run_main(main)
