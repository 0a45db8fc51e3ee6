"""How much does a loss depend on how it is measured? The same weights, evaluated in the ways that people publish.

python -m studies.measuring                    # gpt.py's and modern_gpt.py's published weights
python -m studies.measuring results/mine       # a run of yours

The model reads the validation split in every window of T characters that there is, one for each place at which it can
begin. That takes T times as long as an evaluation, and all ways of measuring are means over parts of it. What a window
that moves by n adds to the mean is its last n characters; each of them has T - n or more characters before it.
"""

import math
import statistics
from pathlib import Path

import torch
from torch.nn import functional as F

import sample
from data import Dataset, UserError
from results import Parser, run_main
from studies.ablation import PUBLISHED

BATCHES, ESTIMATES = 200, 20  # nanoGPT's estimate is a mean over 200 random batches


@torch.inference_mode()
def every_window(model, ids, T):
    """-ln p of each character of each window (len(ids) - 1, T): row s is the window that begins at s.

    NaN is where the last windows reach beyond the end.
    """
    model.eval()
    padded = torch.cat((ids.long(), torch.full((T,), -1)))
    windows, rows = padded.unfold(0, T + 1, 1)[: len(ids) - 1], []  # (len(ids) - 1, T + 1) in the memory of `padded`
    for some in windows.split(128):
        x, y = some[:, :-1].clamp(min=0), some[:, 1:]
        losses = F.cross_entropy(model(x).float().mT, y, ignore_index=-1, reduction="none")  # (128, T)
        rows.append(losses.masked_fill(y < 0, math.nan))
    return torch.cat(rows)


def apart(losses, T):
    """The mean over windows of the first T characters of a row, each where the last one ended."""
    return losses[::T, :T].nanmean().item()


def moved_by(losses, n):
    """The mean over windows that begin n characters after each other."""
    return torch.cat((losses[0], losses[n::n, -n:].flatten())).nanmean().item()


def estimates(losses, batch_size):
    """Means over random windows, as many as are in BATCHES batches."""
    generator = torch.Generator().manual_seed(0)
    windows = losses[: 1 - losses.shape[1]].mean(dim=1)  # those that do not reach beyond the end
    for _ in range(ESTIMATES):
        yield windows[torch.randint(len(windows), (BATCHES * batch_size,), generator=generator)].mean().item()


def ways(losses, batch_size):
    """Yields how a loss was measured, and the loss."""
    T = losses.shape[1]
    yield f"windows of {T}, each where the last one ended: this repository", apart(losses, T)
    for shorter in (T // 2, T // 4):
        yield f"the same with windows of {shorter}", apart(losses, shorter)
    yield f"a window of {T} that moves by {T // 2}", moved_by(losses, T // 2)
    yield f"a window of {T} that moves by 1", moved_by(losses, 1)
    found = list(estimates(losses, batch_size))
    deviation = statistics.stdev(found)
    yield f"{BATCHES} random batches of {batch_size} (± {deviation:.4f} over {ESTIMATES} estimates)", found[0]
    yield f"the lowest of {ESTIMATES} such estimates", min(found)


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="FOLDER", help="a run whose tokens are characters")
    folders = parser.parse_args(argv).runs or [PUBLISHED / "gpt", PUBLISHED / "modern_gpt"]
    for folder in folders:
        _, model, tokenizer = sample.load(folder, "cpu")
        config = model.config
        if config.vocab_size:
            raise UserError(f"{folder}: its tokens are not characters")
        losses = every_window(model, Dataset(config, tokenizer).splits["val"], config.block_size)
        first = None
        print(f"\n| {Path(folder).name} | nats | bits | differs by |\n|---|---|---|---|")
        for way, loss in ways(losses, config.batch_size):
            first = loss if first is None else first
            print(f"| {way} | {loss:.4f} | {loss / math.log(2):.4f} | {loss - first:+.4f} |", flush=True)


if __name__ == "__main__":
    run_main(main)
