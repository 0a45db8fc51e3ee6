"""How does attention grow with the text? GAT by prefix sums, GAT dense, and the fused kernel of the dot product.

python -m studies.lengths
python -m studies.lengths --longest 131072 --forward

Attention alone, forward and backward or --forward alone, over one text of T characters with 6 heads of 64 channels, T
doubling from 256. The dense form stops where one of its (H, T, T) tensors would take more than 4 GB. The columns are
those of the other timing studies. At the end each side's time is drawn over T, both logarithmic, with the slopes
between its last two points, in lengths.png in the folder --out. --quick draws nothing.
"""

import math
import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

from data.files import write_output
from long_gat import StaticAttention, dense_attention
from results import option, parse, run_main
from results.plot import MADE_BY, RESULTS, picture
from studies import measure

H, D, SLOPE = 6, 64, 0.2


@dataclass
class Flags(measure.Flags):
    longest: int = option(65536, "the longest text", within="[512, 1e9)")
    forward: bool = option(False, "the forward pass alone")
    out: str = option(str(RESULTS), "the folder for the picture")

    def __post_init__(self):
        super().__post_init__()
        if self.quick:
            self.longest = 512
        if not Path(self.out).is_dir():
            raise ValueError(f"--out {self.out}: is no folder")


def graph_attention(attend, T):
    """A case: scores of deviation 1, and values."""

    def case(flags):
        length = 64 if flags.quick else T
        parts = [torch.randn(H, length, *last, device=flags.device, requires_grad=True) for last in ((), (), (D,))]
        return timed(lambda: attend(*parts, SLOPE), parts, flags)

    return case


def dot_product(T):
    def case(flags):
        length = 64 if flags.quick else T
        parts = [torch.randn(1, H, length, D, device=flags.device, requires_grad=True) for _ in range(3)]
        return timed(lambda: F.scaled_dot_product_attention(*parts, is_causal=True), parts, flags)

    return case


def timed(forward, parts, flags):
    """What is called and timed: the forward pass, and the way back unless --forward."""

    def once():
        with torch.no_grad():
            forward()

    def both():
        for part in parts:
            part.grad = None
        out = forward()
        out.backward(out.detach())

    return once if flags.forward else both


def table(T):
    cases = {"long_gat.py": graph_attention(StaticAttention.apply, T), "dot product, fused kernel": dot_product(T)}
    if 4 * H * T * T < 4e9:
        cases["GAT, dense"] = graph_attention(dense_attention, T)
    return {f"T = {T:,}": cases}


def draw(path, found):
    """found: side -> T -> seconds."""
    figure = Figure(figsize=(8.3, 3.6), dpi=120, layout="constrained")
    axes = figure.subplots()
    longest = max(max(times) for times in found.values())
    for colour, (side, times) in zip(("#0072B2", "#D55E00", "#777777"), found.items()):
        if len(times) < 2:
            continue
        *_, before, last = sorted(times)
        slope = math.log(times[last] / times[before]) / math.log(last / before)
        axes.plot(times.keys(), times.values(), marker="o", color=colour)
        label = f"{side}, slope {slope:.1f}"
        x, ha = (8, "left") if last == longest else (-8, "right")  # left of its end where another line goes on
        where = dict(xytext=(x, 0), textcoords="offset points", va="center", ha=ha)
        axes.annotate(label, (last, times[last]), color=colour, **where)
    axes.set(xscale="log", yscale="log", xlabel="characters in the text", ylabel="seconds")
    axes.set_xlim(right=1.2 * longest)
    axes.spines[["top", "right"]].set_visible(False)
    write_output(path, picture(figure), MADE_BY.encode())


def main(argv=None):
    flags, found = parse(Flags, argv), {}

    def measured():
        for T in (2**n for n in range(8, flags.longest.bit_length())):
            for title, seconds, columns in measure.compare(partial(table, T), flags):
                for side, times in seconds.items():
                    found.setdefault(side, {})[T] = statistics.median(times)
                yield title, seconds, columns

    measure.report(flags, measured())
    if not flags.quick:
        draw(Path(flags.out) / "lengths.png", found)


if __name__ == "__main__":
    run_main(main)
