"""What does a longer context cost? A step of training with 4,096 characters, cut into windows of 64 up to 4,096.

python -m studies.contexts

A table for each model, a row for each length T. The columns: the median time of a step, its range over the rounds, the
ratio to windows of 64, the characters that are trained on in a second, and the memory of a step above that of the
weights and the optimizer.
"""

from results import run_main
from studies import measure
from studies.speed import training_step

CONTEXTS = (64, 256, 1024, 4096)


def tables():
    models = {"gpt.py": ("gpt", {}), "modern_gpt.py": ("modern_gpt", {})}
    models |= {"windowed_gpt.py": ("windowed_gpt", {}), "long_gat.py": ("long_gat", {})}
    models |= {f"pyg_free_gat.py --layer {layer}": ("pyg_free_gat", {"layer": layer}) for layer in ("gat", "gatv2")}
    return {
        f"A step of training with 4,096 tokens in windows of T, {name}": {
            f"T = {T}": training_step(rung, **options, block_size=T, batch_size=4096 // T) for T in CONTEXTS
        }
        for name, (rung, options) in models.items()
    }


if __name__ == "__main__":
    run_main(lambda: measure.main(tables))
