import torch


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


def sample_text(model, generate, tokenizer, max_new_tokens, prompt="", num_samples=1, seed=1, **choice):
    """The prompt with a continuation, `num_samples` times; `generate` is the rung's, `choice` sample_token's.

    Without a prompt the text starts after tokenizer.start. Raises UserError for a character that has no id.
    """
    device = next(model.parameters()).device
    ids = (tokenizer.encode(prompt) if prompt else tokenizer.start).expand(num_samples, -1).to(device)  # (B, T)
    ids = generate(model, ids, max_new_tokens, generator=torch.Generator(device).manual_seed(seed), **choice)
    texts = map(tokenizer.decode, ids.tolist())
    return [text.encode(errors="replace").decode() for text in texts]  # bytes that form no character become ?
