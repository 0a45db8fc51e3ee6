from dataclasses import dataclass

import torch

from .flags import option


@dataclass
class Sampling:
    """The options of writing. `sample_text` and `sample_token` take them."""

    prompt: str = option("", "text to continue; without one, a new line, or in gpt2.py a new text")
    max_new_tokens: int = option(500, "tokens to write: characters, or what --vocab_size made")
    num_samples: int = option(1, "texts to write")
    temperature: float = option(0.8, "below 1 writes more safely, above 1 more wildly; 0 takes the likeliest token")
    top_k: int = option(0, "draw from the k likeliest tokens only; 0 draws from all", least=0)
    top_p: float = option(1.0, "draw from the likeliest ones that reach this probability together", above=0, most=1)


def sample_token(logits, temperature=1.0, top_k=0, top_p=1.0, generator=None):
    """Draws the next token from its logits: (B, V) -> (B, 1).

    temperature: divides the logits; below 1e-6 it takes the likeliest. top_k: only the k likeliest may be drawn (0:
    all). top_p: of these, only the likeliest that together reach that probability (nucleus sampling, arXiv:1904.09751).
    """
    if temperature < 1e-6:
        return logits.argmax(-1, keepdim=True)
    logits, tokens = logits.sort(-1, descending=True)  # (B, V), likeliest first
    logits = (logits - logits[:, :1]) / temperature  # below 0, so that no temperature overflows
    if top_k:
        logits[:, top_k:] = -torch.inf
    probs = logits.softmax(-1)
    reached = probs.cumsum(-1) - probs  # by the likelier ones; the first is always kept
    probs[:, 1:][reached[:, 1:] >= top_p] = 0
    # Divided by exponential random numbers, the probability of token i is the largest that often. torch.multinomial
    # draws so too, but first checks the probabilities, for which a GPU waits.
    chances = probs / torch.empty_like(probs).exponential_(generator=generator)
    return tokens.gather(-1, chances.argmax(-1, keepdim=True))


def sample_text(model, generate, tokenizer, how, seed=1):
    """The prompt with a continuation, `how.num_samples` times; `generate` is the rung's, `how` a Sampling.

    Without a prompt the text starts after tokenizer.start. Raises UserError for a character that has no id.
    """
    device = next(model.parameters()).device
    ids = tokenizer.encode(how.prompt) if how.prompt else tokenizer.start
    ids = ids.expand(how.num_samples, -1).to(device)  # (B, T)
    choice = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
    ids = generate(model, ids, how.max_new_tokens, generator=torch.Generator(device).manual_seed(seed), **choice)
    texts = map(tokenizer.decode, ids.tolist())
    return [text.encode(errors="replace").decode() for text in texts]  # bytes that form no character become ?
