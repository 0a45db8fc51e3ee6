"""Writes text from the run of any rung, with the weights whose validation loss was the lowest.

python sample.py results/gpt --prompt "ROMEO:" --temperature 0.8 --top_k 40
python sample.py results/pyg_free_gat --layers decay.py   # a run with a layer of your own, which decay.py adds
"""

import os
import pkgutil
import runpy
import sys
from dataclasses import MISSING, dataclass

import torch

from data import UserError, choose_device, tokenizer_of
from results import Sampling, load_best, option, parse, run_main, sample_text
from results.checkpoint import copy_into, fitting
from results.options import saved_options

# What a checkpoint may name, and where its model is. Nothing else is ever imported because a file says so.
RUNGS = {
    "bigram": "bigram:LanguageModel",
    "single_head": "single_head:LanguageModel",
    "multi_head": "multi_head:LanguageModel",
    "block": "block:LanguageModel",
    "transformer": "transformer:GPT",
    "gpt": "gpt:GPT",
    "modern_gpt": "modern_gpt:GPT",
    "pyg_free_gat": "pyg_free_gat:GPT",
    "windowed_gpt": "windowed_gpt:GPT",
    "long_gat": "long_gat:GPT",
    "gpt2": "gpt2:GPT2",
    "gates": "studies.gates:GPT",
    "modern_windows": "studies.modern_windows:GPT",
    "student": "studies.student:GPT",
}


def rung(name):
    """The module of a rung and the class of its model."""
    model = pkgutil.resolve_name(RUNGS[name])
    return sys.modules[model.__module__], model


@dataclass(kw_only=True)
class Config(Sampling):
    run: str = option(MISSING, "folder of the run, like results/gpt")
    seed: int = option(1, "seed of the draws", within="[0, 9e18)")
    device: str = option("auto", "where to compute: cpu, mps, cuda or cuda:1; auto takes cuda, else mps, else cpu")
    layers: str = option("", "Python file to run first, one that adds a layer of yours to pyg_free_gat.LAYERS")


def load(folder, device, layers=""):
    """The rung's module, its model and its tokenizer from a run's checkpoint.

    layers: a Python file that is run first, to add the run's layer to pyg_free_gat.LAYERS. What it has under
    `if __name__ == "__main__"` does not run. Raises UserError if the file is missing or the checkpoint is damaged.
    """
    if layers and not os.path.isfile(layers):
        raise UserError(f"--layers {layers}: there is no such file")
    if layers:
        runpy.run_path(layers)
    state = load_best(folder)
    try:
        if state["rung"] not in RUNGS:
            raise UserError(f"{folder}: a checkpoint of {state['rung']!r}, which is no rung of this ladder")
        module, build = rung(state["rung"])
        layer = state["config"].get("layer")
        if layer and layer not in module.LAYERS:
            way = "sample.py --layers FILE runs the file that adds it"
            raise UserError(f"{folder}: its layer {layer!r} is unknown; {way}")
        tokenizer = tokenizer_of(state["tokenizer"])
        if not len(tokenizer):
            raise ValueError("it has no tokens")
        config = module.Config(**saved_options(module.Config, state, folder))
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            fitting(build(config, len(tokenizer)).state_dict(), state["model"])
        model = build(config, len(tokenizer))
        copy_into(model.state_dict(), state["model"])
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        other = "a damaged checkpoint, or one of another version of its rung"
        raise UserError(f"{folder}: {other} ({error})") from None
    return module, model.to(device), tokenizer


def main(argv=None):
    config = parse(Config, argv)
    device, _ = choose_device(config.device)
    module, model, tokenizer = load(config.run, device, config.layers)
    print(f"\n{'-' * 80}\n".join(sample_text(model, module.generate, tokenizer, config, config.seed)))


if __name__ == "__main__":
    run_main(main)
