"""How long does a GPU wait for Python in a step? Every rung from gpt.py on at full size, step by step and recorded.

python -m studies.launches --device cuda

A step of training launches 800 to 6,000 kernels. The rows: a step whose kernels are launched one by one, and one that
is recorded as a CUDA graph (`--cuda_graph`). The columns: the time of the step, the time in which its kernels compute
(by torch's profiler), the share that this is of the step, and how many kernels there are. Without CUDA nothing is
recorded, and the two rows are alike.
"""

import statistics
from functools import partial

import torch
from torch.profiler import ProfilerActivity, profile

from results import parse, recorded, run_main, shared_learning_rate
from sample import RUNGS
from studies import measure
from studies.measure import full_sizes, model_of

STEPS = 10  # in a turn


def training_step(name, flags, cuda_graph):
    """A call that trains a rung at full size by one step, the same batch every time."""
    rung, model = model_of(name, flags, **full_sizes(name), cuda_graph=cuda_graph)
    optimizers = rung.make_optimizers(model.config, model)
    shared_learning_rate(optimizers, flags.device).fill_(1e-3)
    B, T = model.config.batch_size, model.config.block_size
    ids = torch.randint(65, (B, T + 1), device=flags.device)
    step_on = recorded(model.config, partial(rung.update, model, optimizers))
    return lambda: step_on([(ids[:, :-1], ids[:, 1:])])


def kernels(call, device):
    """The time in which the kernels of a step compute, in ms, and how many they are."""
    kind = "CUDA" if device.startswith("cuda") else "CPU"
    with profile(activities=[getattr(ProfilerActivity, kind)]) as profiler:
        for _ in range(STEPS):
            call()
        measure.wait(device)
    events = [event for event in profiler.key_averages() if event.device_type.name == kind]  # not CUDA's calls
    took = "self_device_time_total" if kind == "CUDA" else "self_cpu_time_total"  # in microseconds
    return sum(getattr(event, took) for event in events) / 1000 / STEPS, sum(event.count for event in events) / STEPS


def repeated(call):
    for _ in range(STEPS):
        call()


def tables(flags):
    """Yields a table for each rung, as measure.report() takes it."""
    for name in (name for name, where in RUNGS.items() if where.startswith(f"{name}:") and full_sizes(name)):
        calls = {how: training_step(name, flags, how == "recorded") for how in ("one by one", "recorded")}
        for call in calls.values():
            repeated(call)  # the first steps set up what later ones use, and record
        took = measure.by_turns(
            {how: partial(repeated, call) for how, call in calls.items()}, flags.rounds, flags.device
        )
        seconds = {how: [turn / STEPS for turn in turns] for how, turns in took.items()}
        computing, count = kernels(calls["one by one"], flags.device)
        share = {how: f"{computing / 1000 / statistics.median(times):.2f}" for how, times in seconds.items()}
        columns = {"kernels' own time, ms": dict.fromkeys(seconds, f"{computing:.2f}"), "its share": share}
        columns["kernels"] = dict.fromkeys(seconds, f"{count:,.0f}")
        yield f"A step of {name}.py at full size", seconds, columns


class Flags(measure.Flags):
    """Of this study, so that --help shows its docstring."""


def main(argv=None):
    flags = parse(Flags, argv)
    measure.report(flags, tables(flags))


if __name__ == "__main__":
    run_main(main)
