"""How much faster does a model write that keeps its keys and values? 1,000 characters at full size, and GPT-2.

python -m studies.writing

A table for each model that has such a cache. Its rows: with the cache; without it, over the same windows; without it,
over a window that moves by one character, as nanoGPT's does. The columns: the median time, its range over the rounds,
the ratio to writing with the cache, and the characters that are written in a second. Then comes what a character
costs after a long text that is read already. The last table is of random weights of GPT-2's size and 200 tokens, each
the likeliest: gpt2.py beside Hugging Face's generate(), both with a cache.
"""

import importlib.util
import tempfile

import torch

import gpt2
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


def after(name, past):
    """A case: a rung's model, small but for its context, writes characters after `past` others, which it has read."""

    @torch.inference_mode()
    def case(flags):
        length, tokens = (12, 4) if flags.quick else (past, 100)  # 16 in all is the context of --quick
        _, model = model_of(name, flags, block_size=length + tokens)
        ids = torch.randint(65, (1, length + tokens), device=flags.device)
        cache = model.eval().new_cache(1)
        model(ids[:, :length], cache, 0)

        @torch.inference_mode()
        def call():
            for i in range(length, length + tokens):
                sample_token(model(ids[:, i : i + 1], cache, i)[:, -1])
            return tokens

        return call

    return case


def writing_gpt2(ours):
    """A case: GPT-2 writes, as gpt2.py loads it from a file, or as Hugging Face's transformers does."""

    def case(flags):
        import transformers

        sizes = dict(n_layer=1, n_head=2, n_embd=16) if flags.quick else {}
        with tempfile.TemporaryDirectory() as folder:
            transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).save_pretrained(folder)
            _, model = gpt2.load(gpt2.Config(weights=folder), range(50257))
            theirs = transformers.GPT2LMHeadModel.from_pretrained(folder)
        start, tokens = torch.zeros(1, 1, dtype=torch.long, device=flags.device), 20 if flags.quick else 200
        how = dict(attention_mask=torch.ones_like(start), do_sample=False, eos_token_id=None)

        def call():
            if ours:
                gpt2.generate(model.to(flags.device), start, tokens, temperature=0)
            else:
                theirs.to(flags.device).generate(start, max_new_tokens=tokens, **how)
            return tokens

        return call

    return case


def tables():
    gpt2s = {}
    if importlib.util.find_spec("transformers"):
        gpt2s["GPT-2 writes 200 tokens, float32"] = {
            "gpt2.py": writing_gpt2(ours=True),
            "Hugging Face's generate": writing_gpt2(ours=False),
        }
    return (
        {
            f"Writing 1,000 characters at full size, float32, {name}.py": {
                "with the cache": writing(name),
                "without, the same windows": writing(name, generate_uncached, slide=False),
                "without, a window that moves by one, as nanoGPT does": writing(name, generate_uncached, slide=True),
            }
            for name in ("gpt", "modern_gpt")
        }
        | {
            f"Writing after {past:,} characters": {f"{name}.py": after(name, past) for name in ("long_gat", "gpt")}
            for past in (4096, 32768)
        }
        | gpt2s
    )


if __name__ == "__main__":
    run_main(lambda: measure.main(tables, memory=False))  # memory would be that of the weights
