import itertools
from dataclasses import dataclass

import torch

from .flags import option


@dataclass
class Sampling:
    """The options of writing. `sample_text` and `sample_token` take them."""

    prompt: str = option("", "text to continue; without it the text starts on a new line, in gpt2.py as a new document")
    max_new_tokens: int = option(500, "tokens to write, at most: characters, or what --vocab_size made")
    num_samples: int = option(1, "texts to write")
    temperature: float = option(0.8, "below 1 writes more safely, above 1 more wildly; 0 takes the likeliest token")
    top_k: int = option(0, "draw from the k likeliest tokens only; 0 draws from all", within="[0, 1e9)")
    top_p: float = option(1.0, "draw from the likeliest ones that reach this probability together", within="(0, 1]")


def sample_token(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Draws the next token from its logits: (B, V) -> (B, 1).

    temperature: divides the logits; below 1e-6 it takes the likeliest. top_k: only the k likeliest may be drawn (0:
    all). top_p: of these, only the likeliest that together reach that probability (nucleus sampling, arXiv:1904.09751).
    """
    if temperature < 1e-6:
        return logits.argmax(-1, keepdim=True)
    logits = (logits - logits.amax(-1, keepdim=True)) / temperature  # below 0, so that no temperature overflows
    if top_k:
        values, tokens = logits.topk(min(top_k, logits.shape[-1]))
        logits = torch.full_like(logits, -torch.inf).scatter(-1, tokens, values)
    probs = logits.softmax(-1)
    if top_p < 1:
        likeliest, tokens = probs.sort(-1, descending=True)
        reached = likeliest.cumsum(-1) - likeliest  # by the likelier ones
        reached[:, 0] = -1  # the first is always kept
        probs = torch.zeros_like(probs).scatter(-1, tokens, likeliest.masked_fill(reached >= top_p, 0))
    # p / Exponential(1) is largest for token i with probability p_i. This draws as torch.multinomial does, which first
    # checks the probabilities: a GPU would wait for the answer.
    return (probs / torch.empty_like(probs).exponential_(generator=generator)).argmax(-1, keepdim=True)


def sample_text(model, generate, tokenizer, how, seed=1):
    """The prompt with a continuation, `how.num_samples` times; `generate` is the rung's, `how` a Sampling.

    Without a prompt the text starts after tokenizer.start. It ends before the token that ends documents, if the model
    writes it. Raises UserError for a character that has no id.
    """
    device = next(model.parameters()).device
    ids = tokenizer.encode(how.prompt) if how.prompt else tokenizer.start
    T = len(ids)
    ids = ids.long().expand(how.num_samples, -1).to(device)  # (B, T)
    sampling = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    ids = generate(model, ids, how.max_new_tokens, generator=torch.Generator(device).manual_seed(seed), **sampling)
    texts = []
    for row in ids.tolist():
        if tokenizer.end:  # the last id
            row = row[:T] * bool(how.prompt) + [*itertools.takewhile(lambda i: i < len(tokenizer) - 1, row[T:])]
        texts.append(tokenizer.decode(row).encode(errors="replace").decode())  # bytes that form no character become ?
    return texts
