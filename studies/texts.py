"""What grows with the text? 10 MB, 100 MB and 1 GB of generated text, each loaded, trained on and evaluated.

python -m studies.texts

The columns: the median time to load the text, its range over the rounds, the ratio to the first row. Then, of the last
round, the memory that loading takes at its peak, the time of a step of gpt.py, the time of an evaluation between two
steps, and the characters that it is over. Memory is measured on Linux alone.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import gpt
from data import Dataset, choose_dtype
from results import parse, run_main
from studies import measure
from studies.measure import QUICK, resident, timed

SIZES = {"10 MB": 10**7, "100 MB": 10**8, "1 GB": 10**9}


class Flags(measure.Flags):
    """Of this study, so that --help shows its docstring."""


def measured(size, flags, folder):
    """The seconds of loading a text of so many characters, written to `folder`, and the other columns."""
    path, options = Path(folder) / "text.txt", QUICK if flags.quick else {}
    with open(path, "wb") as file:
        for _ in range(size // 10**4):
            file.write(b"to be, or not to be\n" * 500)
    config = gpt.Config(data=str(path), device=flags.device, **options)
    config.dtype, _ = choose_dtype(config.dtype, config.device)
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the highest so far
        before = resident("VmRSS")
    found = []
    seconds = timed(lambda: found.append(Dataset(config)), flags.device)
    memory = f"{(resident('VmHWM') - before) / 1e6:,.0f}" if sys.platform == "linux" else ""
    (data,) = found
    model = gpt.GPT(config, data.vocab_size).to(flags.device)
    step = partial(gpt.update, model, gpt.make_optimizers(config, model))
    steps = min(timed(lambda: step([data.batch("train")]), flags.device) for _ in range(5))
    evaluation = timed(lambda: gpt.evaluate(model, data), flags.device)
    over = sum(y.numel() for _, y in data.windows("val"))
    return seconds, memory, f"{1000 * steps:,.0f}", f"{evaluation:,.1f}", f"{over:,}"


def tables(flags):
    """Yields the one table as measure.report() takes it."""
    sizes = {name: size // 1000 if flags.quick else size for name, size in SIZES.items()}
    seconds, last = {name: [] for name in sizes}, {}
    for name in measure.turns(sizes, flags.rounds):
        with tempfile.TemporaryDirectory() as folder:
            took, *last[name] = measure.apart(measured, sizes[name], flags, folder)
        seconds[name].append(took)
    heads = ("memory, MB", "a step, ms", "an evaluation, s", "over characters")
    yield "Loading a text", seconds, {head: {name: last[name][i] for name in sizes} for i, head in enumerate(heads)}


def main(argv=None):
    flags = parse(Flags, argv)
    measure.report(flags, tables(flags))


if __name__ == "__main__":
    run_main(main)
