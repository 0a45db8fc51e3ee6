"""Times and memory, each beside what it is measured against, all in one run on one machine.

python results/bench.py --only gat      # graph attention against the dot product and PyTorch Geometric

The sides take turns, a round each at a time, so that whatever else slows the machine slows all of them. The table
shows medians and ranges over the rounds, and by how many times the first row's median is exceeded. Memory is the peak
of one call in a process of its own, over what it held before (a CPU's: on Linux). --csv FILE keeps every single time.
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

# ---------------------------------------------------------------- PyTorch Geometric's layers behind our protocol


class PyG(nn.Module):
    """A layer of PyTorch Geometric over the list of edges of B graphs side by side: a layer like those of LAYERS."""

    def __init__(self, conv, in_channels, out_channels, heads, dropout=0.0):
        super().__init__()
        from torch_geometric import nn as geometric

        self.conv = getattr(geometric, conv)(in_channels, out_channels, heads, add_self_loops=False, dropout=dropout)

    def forward(self, x, adjacency):
        B, T, _ = x.shape
        if getattr(self, "edges", None) is None:  # built once: listing them is no part of the layer
            i, j = adjacency.nonzero().T
            starts = T * torch.arange(B, device=x.device)[:, None]
            self.edges = torch.stack(((starts + j).flatten(), (starts + i).flatten()))
        return self.conv(x.flatten(0, 1), self.edges).unflatten(0, (B, T))


def pyg(conv):
    return lambda *args, **options: PyG(conv, *args, **options)


class GATv2ByHand(GATv2):
    """GATv2 with its scores from the line by hand, and autograd's way back through it."""

    def forward(self, x, adjacency):
        src, dst = (f(x).unflatten(-1, (self.heads, -1)) for f in (self.lin_l, self.lin_r))
        scores = gatv2_scores_by_hand(src, dst, self.att[0], self.slope)
        return self.aggregate(scores + log_adjacency(adjacency, scores.dtype), src, adjacency)


# ---------------------------------------------------------------- What is measured


def core(build, compile=False):
    """A call that runs a layer forward and backward, but for its linear maps, which are the identity."""

    def case(device, quick):
        B, T, H, D = (2, 16, 2, 8) if quick else (64, 128, 6, 64)
        layer = build(H * D, D, heads=H).to(device)
        for name, _ in [*layer.named_modules()]:
            if name.split(".")[-1] in ("lin", "lin_l", "lin_r", "query", "key", "value"):
                layer.set_submodule(name, nn.Identity())
        layer = torch.compile(layer) if compile else layer
        x, weights = torch.randn(2, B, T, H * D, device=device)
        x.requires_grad_()
        adjacency = adjacency_of("causal", torch.arange(T, device=device))
        return lambda: layer(x, adjacency).backward(weights)

    return case


class Fused(nn.Module):
    """gpt.py's kernel alone, told that the graph is causal."""

    def __init__(self, in_channels, out_channels, heads):
        super().__init__()
        self.heads = heads

    def forward(self, x, adjacency):
        q = k = v = x.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


def training_step(rung, layer=None, compile=False):
    """A call that runs a whole training step of a GPT of 6 layers, C = 384, T = 128, B = 16, dropout 0.2, AdamW."""

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

        def step():
            model.zero_grad()
            rung.loss_of(compiled, ids[:, :-1], ids[:, 1:]).backward()
            optimizer.step()

        return step

    return case


def gat():
    """The parts of the benchmark of graph attention: title, and name -> case."""
    cores = {
        "dot product (fused kernel)": core(Fused),
        "GAT": core(GAT),
        "GATv2": core(GATv2),
        "GATv2, --compile": core(GATv2, compile=True),
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
        for conv in ("GATConv", "GATv2Conv"):
            cores[f"PyG {conv}"] = core(pyg(conv))
            LAYERS[conv] = pyg(conv)
            steps[f"PyG {conv}"] = training_step(pyg_free_gat, conv)
    else:
        print("torch_geometric is not installed; pip install -r requirements-dev.txt brings it", file=sys.stderr)
    return {
        "Attention without its linear maps, forward and backward: B=64 T=128 H=6 D=64, float32": cores,
        "A training step: 6 layers, C=384, T=128, B=16, dropout 0.2, AdamW, float32": steps,
    }


SETS = {"gat": gat}

# ---------------------------------------------------------------- How it is measured


def wait(device):
    if torch.device(device).type != "cpu":
        torch.get_device_module(device).synchronize()


def resident(which):
    """Bytes of memory that this process holds (VmRSS) or has held at most since it was last asked to forget (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def peak_of(which, title, name, device, quick, answer):
    """Sends through the pipe `answer` the bytes that a call takes over what there was before it (a CPU's: on Linux)."""
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
        return math.nan  # not measured on this system, or it died for want of memory
    finally:
        process.join()


def measure(cases, rounds, device, quick):
    """The seconds of each call in each round, after one that is not counted: name -> list."""
    calls = {name: case(device, quick) for name, case in cases.items()}
    seconds = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, call in calls.items():
            gc.collect()
            wait(device)
            start = time.perf_counter()
            call()
            wait(device)
            if number:
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
    yield from ("", title, "", "| | ms, median | range | ratio | memory, MB |", "|---|---|---|---|---|")
    for name, times in seconds.items():
        median, low, high = (1000 * f(times) for f in (statistics.median, min, max))
        size = "" if math.isnan(memory[name]) else f"{memory[name] / 1e6:,.0f}"
        yield f"| {name} | {median:,.0f} | {low:,.0f} to {high:,.0f} | {median / 1000 / first:.2f} | {size} |"


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
    print(f"{name}, {torch.get_num_threads()} of {os.cpu_count()} threads; torch {torch.__version__};", end=" ")
    print(f"Python {platform.python_version()}; {flags.rounds} rounds", flush=True)
    rows = []
    for which in [flags.only] if flags.only else SETS:
        for title, cases in SETS[which]().items():
            memory = {name: memory_of(which, title, name, device, flags.quick) for name in cases}
            seconds = measure(cases, flags.rounds, device, flags.quick)
            print("\n".join(table(title, seconds, memory)), flush=True)
            rows += [(title, name, n, t, memory[name]) for name in cases for n, t in enumerate(seconds[name], 1)]
    if flags.csv:
        with open(flags.csv, "x", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("what", "side", "round", "seconds", "peak_bytes"), *rows])


if __name__ == "__main__":
    run_main(main)
