"""How long does a step of training take, and how much memory does it need? Every rung, at its small and its full size.

python -m studies.speed

The columns: the median time of a step, its range over the rounds, the ratio to the first row, the characters that are
trained on in a second, the floating-point operations a second, and the memory of a step above that of the weights and
the optimizer. Steps differ in how many characters they have, so the tokens/s of two rungs compare, and their times may
not. One large matrix product, the last row of two tables, shows what the device reaches at most: a rung's share of that
is its model FLOP utilisation (PaLM, arXiv:2204.02311). The first table adds the parts of gpt.py one by one. The last
tables show how much of a step Muon takes, and how much torch.optim.Muon would, which multiplies in bfloat16 whatever
the processor is fast at.
"""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from data import choose_dtype
from results import run_main
from results.options import try_compiler
from sample import RUNGS
from studies import measure
from studies.measure import full_sizes, model_of, optimizers_of, train_step


def training_step(name, compile=False, **options):
    """A case: a whole step of training of a rung. Its call returns the number of tokens in the step."""

    def case(flags):
        rung, model = model_of(name, flags, **options)
        optimizers = optimizers_of(rung, model)
        if compile:
            try_compiler(flags.device)
        compiled = torch.compile(model) if compile else model
        B, T = model.config.batch_size, model.config.block_size
        ids = torch.randint(65, (B, T + 1), device=flags.device)
        operations = training_flops(model, ids[:, 1:])

        def call():
            train_step(rung, compiled, optimizers, ids[:, :-1], ids[:, 1:])
            return B * T

        call.operations = operations
        return call

    return case


@torch.no_grad()
def training_flops(model, x):
    """The operations of a step of training on x (B, T): those of the matrix products forward, three times.

    The backward pass has two products for each one of the forward pass. All pairs of tokens count, masked or not, as in
    the paper; attention is written out for that, since fused kernels are not counted on every device.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(x)
    return 3 * counter.get_total_flops()


def matrix_product(flags):
    """A case: one large product in the precision of the rungs."""
    n = 16 if flags.quick else 8192 if flags.device.startswith("cuda") else 2048
    dtype = getattr(torch, choose_dtype("auto", flags.device)[0])
    a, b = torch.randn(2, n, n, device=flags.device, dtype=dtype)

    def call():
        a @ b

    call.operations = 2 * n**3
    return call


def muon_alone(name, of_torch=False, **options):
    """A case: what Muon does in a step of training, with gradients of random numbers."""

    def case(flags):
        rung, model = model_of(name, flags, **options)
        muon = rung.make_optimizers(model.config, model)[-1]
        matrices = muon.param_groups[0]["params"]
        for matrix in matrices:
            matrix.grad = torch.randn_like(matrix)
        return (torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw") if of_torch else muon).step

    return case


def tables():
    rungs = [name for name, where in RUNGS.items() if where.startswith(name) and name != "gpt2"]  # those of the ladder
    full = {name: full_sizes(name) for name in rungs}
    product = {"one large matrix product": matrix_product}
    small = {f"{name}.py": training_step(name) for name in rungs}
    large = {f"{name}.py": training_step(name, **sizes) for name, sizes in full.items() if sizes}
    return {
        "What the parts of gpt.py buy, one more in each row: a step of training": {
            "transformer.py": training_step("transformer"),
            "fused attention: gpt.py --optimizer adamw": training_step("gpt", optimizer="adamw", dtype="float32"),
            "Muon: gpt.py --dtype float32": training_step("gpt", dtype="float32"),
            "the dtype that --dtype auto chooses: gpt.py": training_step("gpt"),
            "compiled: gpt.py --compile": training_step("gpt", compile=True),
        },
        "A step of training, sizes as by default on a CPU": small | product,
        "A step of training at full size": large | product,
    } | {
        f"Muon's part of a step of {name}.py, sizes as by default on a CPU, {dtype}": {
            "the whole step": training_step(name, dtype=dtype),
            "Muon": muon_alone(name, dtype=dtype),
            "torch.optim.Muon": muon_alone(name, of_torch=True, dtype=dtype),
        }
        for name in ("gpt", "modern_gpt")
        for dtype in ("float32", "bfloat16")
    }


if __name__ == "__main__":
    run_main(lambda: measure.main(tables))
