"""What is the last tenth of the training split worth? modern_gpt.py, trained with it and without it.

python -m studies.names    # trains one model, which takes some minutes; the other one's weights are published

The validation split begins in the middle of a play, whose first scenes are in the training split. They introduce most
of those who speak in it. A model that was trained without them has never seen the names that it has to predict. The
table shows the validation loss on three kinds of characters: lines that name who speaks; other words with a capital
that the shorter training text never has; all the rest. The last column is what each kind adds to the mean loss of all
characters.
"""

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from data import choose_device
from results import option, parse, run_main
from studies.ablation import PUBLISHED
from studies.gains import BASE, Trial
from studies.measuring import model_and_text

SPEAKERS = re.compile(r"(?:^|\n\n)([^\n:]+:)(?=\n)")  # "First Citizen:", a line of its own at the start of a paragraph


def kinds(text: str, known: str) -> dict:
    """The kind of each character of a text, by what the text `known` has: name of the kind -> (len(text),) of bools."""
    speakers, others = torch.zeros(2, len(text), dtype=torch.bool)
    for found in SPEAKERS.finditer(text):
        speakers[slice(*found.span(1))] = True
    words = {*re.findall("[A-Za-z]+", known)}
    for found in re.finditer("[A-Z][A-Za-z]*", text):
        others[slice(*found.span())] = found.group() not in words
    others &= ~speakers
    return {"names of speakers": speakers, "other new words with a capital": others, "the rest": ~(speakers | others)}


@torch.inference_mode()
def every_loss(model, data) -> Tensor:
    """The loss of every character of the validation split but the first, on the CPU."""
    losses = [F.cross_entropy(model(x).float().mT, y, reduction="none").flatten() for x, y in data.windows("val")]
    return torch.cat(losses).cpu()


@dataclass
class Flags:
    device: str = option("auto", "where to compute: cpu, mps, cuda or cuda:1; auto takes cuda, else mps, else cpu")


def main(argv=None):
    device, _ = choose_device(parse(Flags, argv).device)
    losses = every_loss(*model_and_text(PUBLISHED / "modern_gpt"))
    trial = Trial(BASE, 1, device)
    print("training without the last tenth of the training split", flush=True)
    trial.losses()  # after that the split "val" is the validation split
    without = every_loss(trial.model.eval(), trial.data)
    known, text = (trial.data.tokenizer.decode(ids.cpu()) for ids in trial.data.splits.values())
    of_kind = kinds(text, known)
    print("| characters | share | trained with it | trained without it | added to the mean |\n|---|---|---|---|---|")
    for kind, mask in {**of_kind, "all": torch.ones(len(text), dtype=torch.bool)}.items():
        mask = mask[1:]  # nothing predicts the first
        ours, theirs = (value[mask].mean().item() for value in (losses, without))
        added = ((without - losses) * mask).mean().item()
        print(f"| {kind} | {100 * mask.float().mean():.1f}% | {ours:.3f} | {theirs:.3f} | {added:+.3f} |")


if __name__ == "__main__":
    run_main(main)
