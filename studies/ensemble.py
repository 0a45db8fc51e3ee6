"""What do several models know together? The loss of the mean of their probabilities.

python -m studies.ensemble results/published/modern_gpt results/published/soft_window

Models that were trained apart are wrong in different places, so the mean of what they predict is better than most of
them alone. It costs as much as all of them together. Each model reads the validation split in windows of its own
length. The weights are those of best.pt, in float32.
"""

import math

import torch

from data import UserError
from data.dataset import PART
from results import Parser, run_main
from studies.measuring import model_and_text


@torch.inference_mode()
def probabilities(folder):
    """What a run's model gives to each character of the validation split but the first. And the sha256 of the text."""
    model, data = model_and_text(folder)
    if len(data.splits["val"]) > PART:
        raise UserError(f"{folder}: its text is so long that an evaluation leaves out parts of it")
    found = []
    for x, y in data.windows("val"):
        p = model(x).double().softmax(dim=-1)  # (B, T, V)
        found.append(p.gather(-1, y[..., None]).flatten())
    return torch.cat(found), data.sha256


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="+", metavar="FOLDER", help="a run whose tokens are characters")
    folders = parser.parse_args(argv).runs
    print("| the first of them | this one, nats | together, nats | bits |\n|---|---|---|---|")
    together, text = 0, ""
    for count, folder in enumerate(folders, 1):
        p, sha256 = probabilities(folder)
        if text not in ("", sha256):
            raise UserError(f"{folder}: this run was trained on another text than {folders[0]}")
        together, text = together + p, sha256
        alone, loss = -p.log().mean().item(), -(together / count).log().mean().item()
        print(f"| {count}: {folder} | {alone:.4f} | {loss:.4f} | {loss / math.log(2):.4f} |", flush=True)


if __name__ == "__main__":
    run_main(main)
