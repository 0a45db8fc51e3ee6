"""modern_gpt.py with the soft windows of windowed_gpt.py, a run like any other: python -m studies.modern_windows

Its flags are those of modern_gpt.py. sample.py does not know the windows, and refuses its checkpoint.
"""

import modern_gpt
from results import run_main
from studies.ablation import soft_windows


class GPT(modern_gpt.GPT):
    """Takes ids of tokens (B, T), returns the logits of what follows each, (B, T, V)."""

    def __init__(self, config, vocab_size):
        super().__init__(config, vocab_size)
        soft_windows(self)


def main(argv=None):
    modern_gpt.GPT = GPT
    modern_gpt.main(argv)


if __name__ == "__main__":
    run_main(main)
