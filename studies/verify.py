"""Are the published losses right? Evaluates every published weight file over the whole validation split.

python -m studies.verify       # all; python -m studies.verify gpt transformer: these alone

The weights are in half precision. That should be the whole of the difference between the loss that was claimed, in the
run's metrics.csv, and the loss that is measured here. The last loss is with the 8 bits a weight that the page has. The
sha256 are of the weight file and of the text.
"""

import hashlib

import sample
from data import Dataset, UserError
from results import Parser, run_main
from results.checkpoint import BEST
from results.metrics import read
from studies.ablation import PUBLISHED
from studies.page.weights import MODELS, in_eight_bits


def claimed(folder):
    """The lowest validation loss in a run's metrics.csv, which is that of its best weights."""
    return min(loss for loss in read(folder)["val_loss"] if loss is not None)


def measured(folder):
    """The validation loss of a run's weights over the whole validation split, in nats, and with weights of 8 bits.

    Last comes the sha256 of the text. With 8 bits it is only measured if the model is in the page, else None.
    """
    module, model, tokenizer = sample.load(folder, "cpu")
    model.config.device = "cpu"
    data = Dataset(model.config, tokenizer)
    loss, rounded = module.evaluate(model, data), None
    if folder.name in MODELS:
        model.load_state_dict(in_eight_bits(model.state_dict()))
        rounded = module.evaluate(model, data)
    return loss, rounded, data.sha256


def main(argv=None):
    parser = Parser(description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="NAME", help="a folder in results/published/ that has weights")
    there = {file.parent.name: file for file in sorted(PUBLISHED.glob(f"*/{BEST}"))}
    names = parser.parse_args(argv).runs or [*there]
    if unknown := [name for name in names if name not in there]:
        raise UserError(f"{unknown[0]}: no weights of such a run; there are {', '.join(there)}")
    print("| run | claimed, nats | measured, nats | difference | 8 bits | sha256 of the weights |")
    print("|---" * 6 + "|")
    for name in names:
        loss, rounded, text = measured(PUBLISHED / name)
        digest, said = hashlib.sha256(there[name].read_bytes()).hexdigest(), claimed(PUBLISHED / name)
        page = f"{rounded:.4f}" if rounded else ""
        print(f"| {name} | {said:.6f} | {loss:.6f} | {loss - said:+.6f} | {page} | {digest} |", flush=True)
    print(f"\nsha256 of the text: {text}")


if __name__ == "__main__":
    run_main(main)
