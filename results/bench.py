"""Times and memory, each beside what it is measured against, all in one run on one machine.

python results/bench.py --only gat      # graph attention against the dot product and PyTorch Geometric

In each round every side has its turn, in a new order, so that whatever else slows the machine slows all of them; a turn
is two calls, of which the second counts. The table shows the median and the range over the rounds, and the ratio to the
first row's median. Memory is the peak of one more call, in a process of its own, over what that held before the call
(for a CPU: on Linux alone); so weights and the optimizer's state are not in it. --csv FILE keeps every single time.
"""

import argparse
import contextlib
import csv
import ctypes
import gc
import importlib.util
import math
import multiprocessing
import os
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python, run on this file, has put results/ itself

import gpt
import pyg_free_gat
from data import UserError, choose_device
from pyg_free_gat import GAT, LAYERS, GATv2, adjacency_of, gatv2_scores_by_hand, log_adjacency
from results.cli import Parser, run_main

# ---------------------------------------------------------------- Graph attention


class Given(nn.Module):
    """In the place of a linear map: gives what the map would, (..., C)."""

    def __init__(self, given):
        super().__init__()
        self.given = given

    def forward(self, x):
        return self.given.view(*x.shape[:-1], -1)


class Fused(nn.Module):
    """The attention of gpt.py but for its output projection: the kernel is told that the graph is causal."""

    def __init__(self, in_channels, out_channels, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(in_channels, heads * out_channels) for _ in range(3))

    def forward(self, x, adjacency):
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class GATv2ByHand(GATv2):
    """GATv2 with its scores from the line by hand, and autograd's way back through it."""

    def forward(self, x, adjacency):
        src, dst = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.lin_l, self.lin_r))
        scores = gatv2_scores_by_hand(src, dst, self.att[0], self.negative_slope)
        return self.aggregate(scores + log_adjacency(adjacency, scores.dtype), src, adjacency)


class PyG(nn.Module):
    """A layer of PyTorch Geometric behind the protocol of LAYERS: over a list of edges of B graphs side by side."""

    name = "GATConv"

    def __init__(self, in_channels, out_channels, heads):
        super().__init__()
        from torch_geometric import nn as geometric

        options = {} if self.name.startswith("Dense") else {"add_self_loops": False}
        self.conv = getattr(geometric, self.name)(in_channels, out_channels, heads, **options)
        self.edges = None

    def forward(self, x, adjacency):
        B, T, _ = x.shape
        if self.edges is None:  # listed once, since that is no part of the layer
            i, j = adjacency.nonzero().T
            starts = T * torch.arange(B, device=x.device)[:, None]
            self.edges = torch.stack(((starts + j).flatten(), (starts + i).flatten()))
        return self.conv(x.flatten(0, 1), self.edges).unflatten(0, (B, T))


class PyGv2(PyG):
    name = "GATv2Conv"


class PyGDense(PyG):
    name = "DenseGATConv"

    def forward(self, x, adjacency):
        return self.conv(x, adjacency, add_loop=False)


LINEAR = ("lin", "lin_l", "lin_r", "query", "key", "value")


def core(build, compile=False):
    """A case: a layer forward and backward, with what its linear maps would give already there."""

    def case(device, quick):
        B, T, H, D = (2, 16, 2, 8) if quick else (64, 128, 6, 64)
        layer = build(H * D, D, heads=H).to(device)
        linears = [name for name, _ in layer.named_modules() if name.split(".")[-1] in LINEAR]
        given = [nn.Parameter(torch.randn(B, T, H * D, device=device)) for _ in linears]
        for name, tensor in zip(linears, given):
            layer.set_submodule(name, Given(tensor))
        layer = torch.compile(layer) if compile else layer
        weights = torch.randn(B, T, H * D, device=device)
        adjacency = adjacency_of("causal", torch.arange(T, device=device))

        def call():
            layer.zero_grad()
            layer(weights, adjacency).backward(weights)

        return call

    return case


def training_step(rung, layer=None, compile=False):
    """A case: a whole step of training of a GPT."""

    def case(device, quick):
        sizes = dict(n_layer=6, n_head=6, n_embd=384, block_size=128, batch_size=16)
        sizes = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2) if quick else sizes
        if layer:
            sizes["layer"] = layer
        config = rung.Config(**sizes, dropout=0.2, optimizer="adamw", device=device, dtype="float32")
        model = rung.GPT(config, 65).to(device)
        compiled = torch.compile(model) if compile else model
        (optimizer,) = rung.make_optimizers(config, model)
        ids = torch.randint(65, (config.batch_size, config.block_size + 1), device=device)

        def call():
            model.zero_grad()
            rung.loss_of(compiled, ids[:, :-1], ids[:, 1:]).backward()
            optimizer.step()

        return call

    return case


def gat():
    """Two tables: title -> name -> case."""
    cores = {
        "dot product, fused kernel": core(Fused),
        "GAT": core(GAT),
        "GATv2": core(GATv2),
        "GATv2, compiled": core(GATv2, compile=True),
        "GATv2 by hand": core(GATv2ByHand),
    }
    steps = {
        "gpt.py": training_step(gpt),
        "--layer dot": training_step(pyg_free_gat, "dot"),
        "--layer gat": training_step(pyg_free_gat, "gat"),
        "--layer gatv2": training_step(pyg_free_gat, "gatv2"),
        "--layer gatv2 --compile": training_step(pyg_free_gat, "gatv2", compile=True),
    }
    if importlib.util.find_spec("torch_geometric"):
        cores |= {f"PyG {layer.name}": core(layer) for layer in (PyGDense, PyG, PyGv2)}
        LAYERS.update({layer.name: layer for layer in (PyG, PyGv2)})
        steps |= {f"PyG {layer.name}": training_step(pyg_free_gat, layer.name) for layer in (PyG, PyGv2)}
    return {
        "Attention without its linear maps, forward and backward: B=64 T=128 H=6 D=64, float32": cores,
        "A training step: 6 layers, C=384, T=128, B=16, dropout 0.2, AdamW, float32": steps,
    }


SETS = {"gat": gat}

# ---------------------------------------------------------------- How it is measured


def wait(device):
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def resident(which):
    """Bytes of memory that this process holds (VmRSS), or held at most since it was last asked to forget (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def peak_of(which, title, name, device, quick, answer):
    """Sends through the pipe `answer` the bytes that a call takes over what there was before it."""
    call = SETS[which]()[title][name](device, quick)
    call()  # compiles, and sets up what the first call alone does
    gc.collect()
    if device.startswith("cuda"):
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        answer.send(torch.cuda.max_memory_allocated(device) - before)
    elif device == "cpu" and sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a libc without it
            ctypes.CDLL(None).malloc_trim(0)  # gives back what the first call left behind
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the highest so far
        before = resident("VmRSS")
        call()
        answer.send(resident("VmHWM") - before)


def memory_of(*case):
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=peak_of, args=(*case, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return math.nan  # not measured on this system, or it failed
    finally:
        process.join()


def measure(cases, rounds, device, quick):
    """The seconds of each side's call in each round: name -> list."""
    torch.manual_seed(0)
    calls = {}
    for name, case in cases.items():
        try:
            calls[name] = case(device, quick)
            calls[name]()
        except Exception as error:  # no compiler, no memory: the others are measured all the same
            calls.pop(name, None)
            print(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
    seconds = {name: [] for name in calls}
    shuffle = random.Random(0).sample
    for _ in range(rounds):
        for name in shuffle(list(calls), len(calls)):
            gc.collect()
            calls[name]()
            wait(device)
            start = time.perf_counter()
            calls[name]()
            wait(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def processor():
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(title, seconds, memory):
    """Lines of Markdown: medians and ranges in ms, ratios to the first row, peak memory in MB."""
    first = statistics.median(next(iter(seconds.values())))
    yield from ("", title, "", "| | ms | range | ratio | memory, MB |", "|---|---|---|---|---|")
    for name, times in seconds.items():
        ms = [f"{1000 * f(times):,.{0 if f(times) > 0.1 else 2}f}" for f in (statistics.median, min, max)]
        ratio = f"{statistics.median(times) / first:.2f}"
        size = "" if math.isnan(memory[name]) else f"{memory[name] / 1e6:,.0f}"
        yield f"| {name} | {ms[0]} | {ms[1]} to {ms[2]} | {ratio} | {size} |"


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=SETS, help="one set of measurements instead of all")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (cpu)")
    parser.add_argument("--csv", metavar="FILE", help="keeps every single time in FILE")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    flags = parser.parse_args(argv)
    if flags.rounds < 1:
        parser.error(f"--rounds {flags.rounds}: must be at least 1")
    device, _ = choose_device(flags.device)
    if flags.csv and Path(flags.csv).exists():
        raise UserError(f"--csv {flags.csv}: is there already")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(
        f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}; {versions}; {flags.rounds} rounds", flush=True
    )
    if not importlib.util.find_spec("torch_geometric"):
        print("torch_geometric is not here; pip install -r requirements-dev.txt brings it", file=sys.stderr)
    rows = [("what", "side", "round", "seconds", "peak_bytes")]
    for which in [flags.only] if flags.only else SETS:
        for title, cases in SETS[which]().items():
            memory = {name: memory_of(which, title, name, device, flags.quick) for name in cases}
            seconds = measure(cases, flags.rounds, device, flags.quick)
            shown = f"QUICK, with tiny sizes instead of: {title}" if flags.quick else title
            print("\n".join(table(shown, seconds, memory)), flush=True)
            rows += [(shown, name, n, t, memory[name]) for name in seconds for n, t in enumerate(seconds[name], 1)]
    if flags.csv:
        with open(flags.csv, "x", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    run_main(main)
