"""What does a learned window cost, and what does a short one save?

python -m studies.windows

The first table is a step of training of windowed_gpt.py and of studies/gates.py at default sizes. Then comes
attention alone, forward and backward, over 4,096 characters in texts of T: the fused kernel without windows, soft
windows, and hard ones of T/16 and of T tokens in the median. Hard windows come twice: in blocks of queries that skip
what no window reaches, and whole. The columns: the median time, its range over the rounds, the ratio to the first row,
for steps the characters that are trained on in a second, and the memory above that of the inputs and the weights.
"""

import math

import torch
from torch import nn

from results import run_main
from studies import measure
from studies.gates import IDEAS, HardWindow
from studies.speed import training_step
from windowed_gpt import Attention, Config, SoftWindow

CONTEXTS = (512, 1024, 2048, 4096)


def attention(kind, T, window=None, whole=False):
    """A case: an attention layer forward and backward, with windows of so many tokens in the median."""

    def case(flags):
        length = 16 if flags.quick else T
        layer = kind(Config(block_size=length)).to(flags.device)
        if window:
            nn.init.normal_(layer.window.weight, std=0.02)  # channels of deviation 1: windows vary by a factor of 1.3
            nn.init.constant_(layer.window.bias, math.log((window - 1) / (T / 2)))
        layer.block = length if whole else 128
        x = torch.randn(4096 // T, length, 192, device=flags.device, requires_grad=True)

        def call():
            layer(x).backward(x)

        return call

    return case


def tables():
    steps = {f"--attention {name}": training_step("windowed_gpt", attention=name) for name in ("plain", "soft_window")}
    steps |= {f"studies.gates --attention {name}": training_step("gates", attention=name) for name in IDEAS}
    costs = {"A step of training": {"gpt.py": training_step("gpt"), **steps}}
    for T in CONTEXTS:
        costs[f"Attention alone, forward and backward, 4,096 characters in texts of {T:,}"] = {
            "no window, fused": attention(Attention, T),
            "soft windows": attention(SoftWindow, T, window=T / 16),
            "hard windows of T/16, in blocks": attention(HardWindow, T, window=T / 16),
            "hard windows of T/16, whole": attention(HardWindow, T, window=T / 16, whole=True),
            "hard windows of T, in blocks": attention(HardWindow, T, window=T),
            "hard windows of T, whole": attention(HardWindow, T, window=T, whole=True),
        }
    return costs


if __name__ == "__main__":
    run_main(lambda: measure.main(tables))
