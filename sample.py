"""Writes text from the checkpoint of any rung.

python sample.py results/gpt --prompt "ROMEO:" --temperature 0.8 --top_k 40
"""

from dataclasses import MISSING, asdict, dataclass

import torch

import bigram
import gpt
import modern_gpt
import multi_head
import pyg_free_gat
import single_head
from data import CharTokenizer, UserError, choose_device
from results import load_checkpoint, option, parse, run_main, sample_text
from results.cli import saved_options

# What a checkpoint may name: nothing else is ever built or imported because a file says so.
RUNGS = {
    "bigram": (bigram, bigram.LanguageModel),
    "single_head": (single_head, single_head.LanguageModel),
    "multi_head": (multi_head, multi_head.LanguageModel),
    "gpt": (gpt, gpt.GPT),
    "modern_gpt": (modern_gpt, modern_gpt.GPT),
    "pyg_free_gat": (pyg_free_gat, pyg_free_gat.GPT),
}


@dataclass
class Config:
    run: str = option(MISSING, "the run's folder, like results/gpt")
    prompt: str = option("", "what the text goes on from; else from a new line")
    max_new_tokens: int = option(500, "characters to write")
    num_samples: int = option(1, "texts to write")
    temperature: float = option(0.8, "below 1 safer, above 1 wilder; 0 takes the likeliest character")
    top_k: int = option(0, "draw from the k likeliest characters alone; 0: from all", least=0)
    top_p: float = option(1.0, "draw from the likeliest that together have this probability")
    seed: int = option(1, "of the draws", least=0, below=2**63)
    device: str = option("auto", "cpu, cuda, cuda:1, mps, or auto")


def load(folder, device):
    """The rung's module, its model and its tokenizer from a run's checkpoint. Raises UserError for a damaged one."""
    state = load_checkpoint(folder)
    try:
        if state["rung"] not in RUNGS:
            raise UserError(f"{folder}: a checkpoint of {state['rung']!r}, which is no rung of this ladder")
        module, build = RUNGS[state["rung"]]
        tokenizer = CharTokenizer(state["alphabet"])
        with torch.device("meta"):  # takes no memory, whatever sizes the file claims
            model = build(module.Config(**saved_options(module.Config, state, folder)), len(tokenizer))
        model.load_state_dict(state["model"], assign=True)
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"{folder}: a damaged checkpoint ({type(error).__name__})") from None
    return module, model.to(device), tokenizer


def main(argv=None):
    config = parse(Config, argv)
    device, _ = choose_device(config.device)
    module, model, tokenizer = load(config.run, device)
    how = asdict(config)
    del how["run"], how["device"]
    print(f"\n{'-' * 80}\n".join(sample_text(model, module.generate, tokenizer, **how)))


if __name__ == "__main__":
    run_main(main)
