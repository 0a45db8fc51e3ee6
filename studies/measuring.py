"""How much does a loss depend on how it is measured? The same weights, evaluated in the ways that people publish.

python -m studies.measuring                    # gpt.py's published weights
python -m studies.measuring results/mine       # a run of yours

The model reads every window of T characters in the validation split, where T is its context. That takes T times as long
as an evaluation. Every way but the last is a mean over some of these losses. A sliding window with stride n begins n
characters further on each time: of the first window all characters count, and of each later one its last n. The weights
are those of best.pt, in float32.
"""

import math
import os
import statistics
from pathlib import Path

import torch
from torch.nn import functional as F

import sample
from data import CharTokenizer, Dataset, UserError
from results import Parser, load_best, run_main
from studies.ablation import PUBLISHED

BATCHES, ESTIMATES = 200, 20  # nanoGPT's estimate is a mean over 200 random batches


@torch.inference_mode()
def every_window(model, ids, T):
    """-ln p of each character of each window (len(ids) - 1, T): row s is the window that begins at s.

    NaN is where the last windows reach beyond the end.
    """
    model.eval()
    padded = torch.cat((ids.long(), torch.full((T,), -1)))
    windows = padded.unfold(0, T + 1, 1)[: len(ids) - 1]  # (len(ids) - 1, T + 1), in the memory of `padded`
    rows = []
    for some in windows.split(max(1, 2**14 // T)):
        x, y = some[:, :-1].clamp(min=0), some[:, 1:]
        losses = F.cross_entropy(model(x).float().mT, y, ignore_index=-1, reduction="none")  # (2^14 / T, T)
        rows.append(losses.masked_fill(y < 0, math.nan))
    return torch.cat(rows)


def apart(losses, T):
    """The mean over non-overlapping windows of T characters."""
    return losses[::T, :T].nanmean().item()


def sliding(losses, n):
    """The mean over a sliding window with stride n."""
    return torch.cat((losses[0], losses[n::n, -n:].flatten())).nanmean().item()


def estimates(losses, batch_size):
    """Means over random windows, as many as are in BATCHES batches."""
    generator = torch.Generator().manual_seed(0)
    windows = losses[: 1 - losses.shape[1]].mean(dim=1)  # those that do not reach beyond the end
    for _ in range(ESTIMATES):
        yield windows[torch.randint(len(windows), (BATCHES * batch_size,), generator=generator)].mean().item()


@torch.inference_mode()
def in_upper_case(model, data):
    """The loss if the text is to be predicted in upper case: p is then that of a letter's two cases together.

    The model still reads the text as it is.
    """
    letters = [character.upper() for character in data.tokenizer.alphabet]
    group = torch.tensor([letters.index(letter) for letter in letters])  # the same number for both cases
    model.eval()
    total = count = 0
    for x, y in data.windows("val"):
        p = model(x).float().softmax(dim=-1)  # (B, T, V)
        p = torch.zeros_like(p).index_add_(-1, group, p).gather(-1, group[y][..., None])
        total, count = total - p.log().sum().item(), count + y.numel()
    return total / count


def ways(losses, batch_size):
    """Yields how a loss was measured, and the loss."""
    T = losses.shape[1]
    yield f"non-overlapping windows of {T}, as in this repository", apart(losses, T)
    for shorter in (T // 2, T // 4):
        yield f"non-overlapping windows of {shorter}", apart(losses, shorter)
    for stride in (T // 2, 1):
        yield f"a sliding window of {T} with stride {stride}", sliding(losses, stride)
    found = list(estimates(losses, batch_size))
    deviation = statistics.stdev(found)
    yield f"{BATCHES} random batches of {batch_size} (± {deviation:.4f} over {ESTIMATES} estimates)", found[0]
    yield f"the lowest of {ESTIMATES} such estimates", min(found)


def model_and_text(folder):
    """The model with a run's best weights, and the text of its training. Raises UserError if that has changed."""
    _, model, tokenizer = sample.load(folder, "cpu")
    if not isinstance(tokenizer, CharTokenizer):
        raise UserError(f"{folder}: its tokens are not characters")
    model.config.device = "cpu"
    if model.config.data and not os.path.isfile(model.config.data):
        raise UserError(f"{folder}: its text {model.config.data} is not a file")
    data = Dataset(model.config, tokenizer)
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise UserError(f"{folder}: its weights are not finite")
    if load_best(folder).get("corpus_sha256") != data.sha256:
        raise UserError(f"{folder}: this run was trained on another text")
    return model.eval(), data


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="FOLDER", help="a run whose tokens are characters")
    folders = parser.parse_args(argv).runs or [PUBLISHED / "gpt"]
    for folder in folders:
        model, data = model_and_text(folder)
        config = model.config
        if config.block_size < 4:
            raise UserError(f"{folder}: its context is {config.block_size} characters; this needs 4 or more")
        count = len(data.splits["val"])
        if count * config.block_size > 2**30:
            raise UserError(f"{folder}: {count:,} windows of {config.block_size} characters are too many")
        losses = every_window(model, data.splits["val"], config.block_size)
        found = [
            *ways(losses, config.batch_size),
            (f"non-overlapping windows of {config.block_size}, in upper case", in_upper_case(model, data)),
        ]
        first = found[0][1]
        print(f"\n| {Path(folder).name} | nats | bits | differs by |\n|---|---|---|---|")
        for way, loss in found:
            print(f"| {way} | {loss:.4f} | {loss / math.log(2):.4f} | {loss - first:+.4f} |", flush=True)


if __name__ == "__main__":
    run_main(main)
