"""Copies runs to results/published/: what the tables are made from, and of seed 1 the best weights in half precision.

python -m studies.publish results/reproduced/gpt results/reproduced/gpt-2

The weights are those that best.pt has, rounded to 16 bits a number. sample.py and the studies read them like any other
checkpoint. Of further seeds, whose folders end in -2 or -3, no weights are kept.
"""

import re
from pathlib import Path

from data import UserError
from data.files import write_atomically
from results import Parser, load_best, run_main
from results.checkpoint import BEST, save_checkpoint
from studies.ablation import PUBLISHED, at_its_end

TEXTS = ("config.json", "metrics.csv", "sample.txt")
KEPT = ("rung", "config", "tokenizer", "corpus_sha256", "step")  # of a checkpoint, beside the weights


def in_half(state):
    """What sample.py needs of a checkpoint, with weights in 16 bits."""
    weights = {name: weight.half() if weight.is_floating_point() else weight for name, weight in state["model"].items()}
    return {name: state[name] for name in KEPT} | {"model": weights}


def publish(folder):
    """Raises UserError unless there is a run that has come to its end."""
    if missing := [name for name in TEXTS if not (folder / name).is_file()]:
        raise UserError(f"{folder}: no {missing[0]} here; a run that is published has come to its end")
    if not at_its_end(folder):
        raise UserError(f"{folder}: this run was stopped before its last step; --resume continues it")
    first_seed, there = not re.search(r"-\d+$", folder.name), PUBLISHED / folder.name
    try:  # all is read before anything is written
        texts = {name: (folder / name).read_text(encoding="utf-8") for name in TEXTS}
        best = in_half(load_best(folder)) if first_seed else None
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: a damaged run ({error})") from None
    there.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        text = text.replace(f"/{folder.parent.name}/{folder.name}", f"/{PUBLISHED.name}/{folder.name}")
        write_atomically(there / name, text.encode())
    if best:
        save_checkpoint(there, best, BEST)
    return there


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="a finished run, in results/reproduced/ say")
    for folder in parser.parse_args(argv).runs:
        print(publish(Path(folder).resolve()))


if __name__ == "__main__":
    run_main(main)
