"""How much faster does a model write that keeps its keys and values? 1,000 characters at full size.

python -m studies.writing

A table for each model that has such a cache. Its rows: with the cache; without it, over the same windows; without it,
over a window that moves by one character, as nanoGPT's does. The columns: the median time, its range over the rounds,
the ratio to writing with the cache, and the characters that are written in a second.
"""

import torch

from results import run_main, sample_token
from studies import measure
from studies.measure import full_sizes, model_of


@torch.inference_mode()
def generate_uncached(model, ids, max_new_tokens, slide, **choice):
    """generate() of gpt.py without its cache; with `slide` the window moves by one, as in nanoGPT's sample.py."""
    start, block_size = 0, model.config.block_size
    for _ in range(max_new_tokens):
        if ids.shape[1] - start > block_size:
            start = ids.shape[1] - (block_size if slide else (block_size + 1) // 2)
        ids = torch.cat((ids, sample_token(model(ids[:, start:])[:, -1], **choice)), dim=1)
    return ids


def writing(name, way=None, **how):
    """A case: a rung's model of full size writes, in its own way or another. The call returns how many characters."""

    def case(flags):
        rung, model = model_of(name, flags, **full_sizes(name))
        tokens = 40 if flags.quick else 1000

        def call():
            start = torch.zeros(1, 1, dtype=torch.long, device=flags.device)
            (way or rung.generate)(model.eval(), start, tokens, **how)
            return tokens

        return call

    return case


def tables():
    return {
        f"Writing 1,000 characters at full size, float32, {name}.py": {
            "with the cache": writing(name),
            "without, the same windows": writing(name, generate_uncached, slide=False),
            "without, a window that moves by one, as nanoGPT does": writing(name, generate_uncached, slide=True),
        }
        for name in ("gpt", "modern_gpt")
    }


if __name__ == "__main__":
    run_main(lambda: measure.main(tables, memory=False))  # memory would be that of the weights
