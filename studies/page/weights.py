"""The models that run in the page: their weights in 8 bits a number, with one scale for each row of a matrix."""

import base64

import torch

import sample

MODELS = {  # a published run, what it is called, and how its attention is called in models.js
    "bigram": ("bigram.py", ""),
    "single_head": ("single_head.py", "dot"),
    "multi_head": ("multi_head.py", "dot"),
    "block": ("block.py", "dot"),
    "gpt": ("gpt.py", "dot"),
    "gat": ("pyg_free_gat.py --layer gat", "gat"),
    "gatv2": ("pyg_free_gat.py", "gatv2"),
    "soft_window": ("windowed_gpt.py", "soft_window"),
}


def eight_bits(matrix):
    """The scale of each row (rows, 1), and integers of at most 127 in size, whose products are the matrix, nearly."""
    scales = matrix.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
    return scales, (matrix / scales).round().to(torch.int8)


def in_eight_bits(state):
    """The weights of a model as the page has them, as numbers of float32 again."""
    rounded = {}
    for name, weight in state.items():
        if weight.ndim == 2:
            scales, numbers = eight_bits(weight)
            weight = scales * numbers
        rounded[name] = weight
    return rounded


def text_of(tensor):
    return base64.b64encode(tensor.contiguous().numpy().tobytes()).decode()


def file_of(run, folder):
    """What models.js needs of a run. Raises UserError if there are no weights."""
    module, model, tokenizer = sample.load(folder, "cpu")
    name, kind = MODELS[run]
    weights = {}
    for key, weight in model.state_dict().items():
        weights[key] = dict(shape=[*weight.shape])
        if weight.ndim == 2:
            scales, numbers = eight_bits(weight)
            weights[key] |= dict(numbers=text_of(numbers), scales=text_of(scales))
        else:
            weights[key]["numbers"] = text_of(weight)
    sizes = ("block_size", "n_head", "n_embd")
    config = {size: getattr(model.config, size) for size in sizes if hasattr(model.config, size)}
    vocabulary = tokenizer.decode(list(range(len(tokenizer))))
    cached = hasattr(model, "new_cache")
    return dict(name=name, kind=kind, config=config, vocabulary=vocabulary, cached=cached, weights=weights)
