"""modern_gpt.py with the soft windows of windowed_gpt.py, a run like any other: python -m studies.modern_windows

Its flags are those of modern_gpt.py.
"""

from dataclasses import dataclass

import torch

import modern_gpt
from data import Dataset
from modern_gpt import evaluate, generate, loss_of, make_optimizers, update  # noqa: F401 (its own too)
from results import parse_config, run_main
from studies.ablation import soft_windows


@dataclass
class Config(modern_gpt.Config):
    pass


class GPT(modern_gpt.GPT):
    """Takes ids of tokens (B, T), returns the logits of the token that follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__(config, vocab_size)
        soft_windows(self)


def main(argv=None):
    config = parse_config(Config, argv)
    torch.manual_seed(config.seed)
    data = Dataset(config)
    modern_gpt.train(config, data, GPT(config, data.vocab_size).to(config.device))


if __name__ == "__main__":
    run_main(main)
