"""Times and memory, each beside what it is measured against, all in one run on one machine.

python results/bench.py --only train      # a step of training: every rung
python results/bench.py --only loss       # from the start to the loss that nanoGPT's quickstart reaches
python results/bench.py --only generate   # writing 1,000 characters, with the cache and without
python results/bench.py --only context    # a step of training with a context of 64 to 4096
python results/bench.py --only gat        # graph attention against the dot product and PyTorch Geometric

In each round every side has its turn, in a new order, so that whatever else slows the machine slows all of them; a turn
is two calls, of which the second counts, or one call that takes more than a second. The tables show the median and the
range over the rounds, and the ratio to the first row's median. Memory is the peak of one more call, in a process of its
own, over what that held before the call (for a CPU: on Linux alone); so weights and the optimizer's state are not in
it. --csv FILE keeps every single time.
"""

import argparse
import contextlib
import csv
import ctypes
import gc
import importlib.util
import io
import math
import multiprocessing
import os
import platform
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # where Python, run on this file, has put results/ itself

import bigram
import gpt
import modern_gpt
import multi_head
import pyg_free_gat
import single_head
from data import Dataset, UserError, choose_device, choose_dtype
from pyg_free_gat import GAT, LAYERS, GATv2, adjacency_of, gatv2_scores_by_hand, log_adjacency
from results import sample_token
from results.cli import Parser, run_main

# ---------------------------------------------------------------- A step of training

QUICK = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2)


def full_sizes(rung):
    """The options that `--size full` sets in a rung."""
    return {f.name: f.metadata["full"] for f in fields(rung.Config) if f.metadata["full"] is not None}


def config_of(rung, device, quick, **sizes):
    names = {f.name for f in fields(rung.Config)}
    config = rung.Config(**sizes | {name: QUICK[name] for name in QUICK if quick and name in names}, device=device)
    if "dtype" in names:
        config.dtype, _ = choose_dtype(config.dtype, device)
    return config


def model_of(rung, config):
    return (rung.GPT if hasattr(rung, "GPT") else rung.LanguageModel)(config, 65).to(config.device)


def training_step(rung, compile=False, **sizes):
    """A case: a whole step of training, which gives the number of its tokens."""

    def case(device, quick):
        config = config_of(rung, device, quick, **sizes)
        model = model_of(rung, config)
        compiled = torch.compile(model) if compile else model
        if hasattr(rung, "make_optimizers"):
            optimizers = rung.make_optimizers(config, model)
        else:
            optimizers = [torch.optim.AdamW(model.parameters(), fused=True)]
        ids = torch.randint(65, (config.batch_size, config.block_size + 1), device=device)

        def call():
            model.zero_grad()
            rung.loss_of(compiled, ids[:, :-1], ids[:, 1:]).backward()
            if hasattr(rung, "make_optimizers"):  # the first three rungs do not clip
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in optimizers:
                optimizer.step()
            return config.batch_size * config.block_size

        return call

    return case


def train():
    rungs = {"bigram.py": bigram, "single_head.py": single_head, "multi_head.py": multi_head}
    gpts = {"gpt.py": gpt, "modern_gpt.py": modern_gpt, "pyg_free_gat.py": pyg_free_gat}
    return {
        "A step of training, sizes as by default on a CPU": {
            name: training_step(rung) for name, rung in (rungs | gpts).items()
        },
        "A step of training at full size": {
            name: training_step(rung, **full_sizes(rung)) for name, rung in gpts.items()
        },
    }


CONTEXTS = (64, 256, 1024, 4096)


def context():
    rungs = {"gpt.py": (gpt, {}), "modern_gpt.py": (modern_gpt, {})}
    rungs |= {f"pyg_free_gat.py --layer {layer}": (pyg_free_gat, {"layer": layer}) for layer in ("gat", "gatv2")}
    return {
        f"A step of training with 4,096 tokens in windows of T, {name}": {
            f"T = {T}": training_step(rung, **flags, block_size=T, batch_size=4096 // T) for T in CONTEXTS
        }
        for name, (rung, flags) in rungs.items()
    }


# ---------------------------------------------------------------- Writing


@torch.inference_mode()
def generate_uncached(model, ids, max_new_tokens, slide, **choice):
    """generate() of gpt.py without its cache; with `slide` the window moves by one, as in nanoGPT's sample.py."""
    start, block_size = 0, model.config.block_size
    for _ in range(max_new_tokens):
        if ids.shape[1] - start > block_size:
            start = ids.shape[1] - (block_size if slide else (block_size + 1) // 2)
        ids = torch.cat((ids, sample_token(model(ids[:, start:])[:, -1], **choice)), dim=1)
    return ids


def writing(rung, way, **how):
    """A case: 1,000 characters from a model of full size."""

    def case(device, quick):
        model = model_of(rung, config_of(rung, device, quick, **full_sizes(rung))).eval()
        tokens = 40 if quick else 1000

        def call():
            (way or rung.generate)(model, torch.zeros(1, 1, dtype=torch.long, device=device), tokens, **how)
            return tokens

        return call

    return case


def generate():
    return {
        f"Writing 1,000 characters at full size, float32, {name}": {
            "with the cache": writing(rung, None),
            "without, the same windows": writing(rung, generate_uncached, slide=False),
            "without, a window that moves by one, as nanoGPT does": writing(rung, generate_uncached, slide=True),
        }
        for name, rung in {"gpt.py": gpt, "modern_gpt.py": modern_gpt}.items()
    }


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


def gat():
    """Two tables: title -> name -> case."""
    cores = {
        "dot product, fused kernel": core(Fused),
        "GAT": core(GAT),
        "GATv2": core(GATv2),
        "GATv2, compiled": core(GATv2, compile=True),
        "GATv2 by hand": core(GATv2ByHand),
    }
    sizes = dict(n_layer=6, n_head=6, n_embd=384, block_size=128, batch_size=16)
    sizes |= dict(dropout=0.2, optimizer="adamw", dtype="float32")
    steps = {
        "gpt.py": training_step(gpt, **sizes),
        "--layer dot": training_step(pyg_free_gat, **sizes, layer="dot"),
        "--layer gat": training_step(pyg_free_gat, **sizes, layer="gat"),
        "--layer gatv2": training_step(pyg_free_gat, **sizes, layer="gatv2"),
        "--layer gatv2 --compile": training_step(pyg_free_gat, **sizes, layer="gatv2", compile=True),
    }
    if importlib.util.find_spec("torch_geometric"):
        cores |= {f"PyG {layer.name}": core(layer) for layer in (PyGDense, PyG, PyGv2)}
        LAYERS.update({layer.name: layer for layer in (PyG, PyGv2)})
        steps |= {f"PyG {layer.name}": training_step(pyg_free_gat, **sizes, layer=layer.name) for layer in (PyG, PyGv2)}
    return {
        "Attention without its linear maps, forward and backward: B=64 T=128 H=6 D=64, float32": cores,
        "A training step: 6 layers, C=384, T=128, B=16, dropout 0.2, AdamW, float32": steps,
    }


# ---------------------------------------------------------------- Time to a loss

TARGET = 1.886  # nats on the validation split: what nanoGPT's quickstart for a CPU comes to


def quickstart(device, quick):
    """nanoGPT's training as its README has it for a CPU, with this repository's model: the model and the data.

    That is a GPT-2 without biases, AdamW in float32, a cosine schedule, and every 250 steps 20 random batches of either
    split to judge by.
    """
    steps, warmup, highest, lowest = (4 if quick else 2000), 100, 1e-3, 1e-4
    sizes = (
        QUICK | dict(block_size=64) if quick else dict(batch_size=12, block_size=64, n_layer=4, n_head=4, n_embd=128)
    )
    config = gpt.Config(**sizes, device=device, dtype="float32")
    torch.manual_seed(config.seed)
    data = Dataset(config)
    model = gpt.GPT(config, data.vocab_size).to(device)
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    matrices, gains = ([p for p in model.parameters() if (p.ndim == 2) == matrix] for matrix in (True, False))
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": gains, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=(0.9, 0.99))
    for step in range(steps + 1):
        fall = (step - warmup) / (steps - warmup)
        rate = (highest + lowest + (highest - lowest) * math.cos(math.pi * fall)) / 2
        for group in optimizer.param_groups:
            group["lr"] = highest * (step + 1) / (warmup + 1) if step < warmup else rate
        if step % 250 == 0:
            model.eval()
            with torch.no_grad():
                for split in ("train", "val"):
                    statistics.mean(gpt.loss_of(model, *data.batch(split)).item() for _ in range(20))
            model.train()
        loss = gpt.loss_of(model, *data.batch("train"))
        model.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model, data


class Reached(Exception):
    """Ends a training whose loss is at most the target: (loss,)."""


def until_target(rung, device, quick):
    """Trains a rung as by default, but for an evaluation every 20 steps. Raises Reached."""
    evaluate = rung.evaluate

    def watched(model, data):
        loss = evaluate(model, data)
        if loss <= TARGET or quick:
            raise Reached(loss)
        return loss

    rung.evaluate = watched
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        sizes = ["--n_layer=1", "--n_embd=16"] if quick else []
        rung.main([*sizes, "--device", device, "--eval_interval", "20", "--out", folder])


def trained_here(name, device, quick, answer):
    """Sends through the pipe `answer` a word when training is over, then the loss."""
    if name == REBUILT:
        model, data = quickstart(device, quick)
        answer.send("done")
        answer.send(gpt.evaluate(model, data))
    else:
        try:
            until_target(importlib.import_module(name.removesuffix(".py")), device, quick)
        except Reached as reached:
            answer.send("done")
            answer.send(*reached.args)


def seconds_of_checkout(folder, device, quick):
    """Seconds and the last validation loss of nanoGPT's own train.py, by its README's command."""
    flags = "--compile=False --eval_iters=20 --log_interval=1 --block_size=64 --batch_size=12 --n_layer=4 --n_head=4"
    steps = 2 if quick else 2000
    flags += f" --n_embd=128 --max_iters={steps} --lr_decay_iters={steps} --dropout=0.0 --device={device}"
    command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *flags.split()]
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as out:
        done = subprocess.run([*command, f"--out_dir={out}"], cwd=folder, capture_output=True, text=True)
    seconds = time.perf_counter() - start
    if done.returncode:
        raise UserError(f"--nanogpt {folder}: {' '.join(done.stderr.splitlines()[-1:]) or 'it failed'}")
    return seconds, float(re.findall(r"^step .* val loss ([\d.]+)", done.stdout, re.M)[-1])


REBUILT = "nanoGPT's quickstart, rebuilt"
CHECKOUT = "nanoGPT's quickstart, its train.py"


def race(flags, device):
    """One table, from the start of each process; nanoGPT has done all its steps, ours have reached its loss."""
    if flags.nanogpt and not Path(flags.nanogpt, "train.py").is_file():
        raise UserError(f"--nanogpt {flags.nanogpt}: there is no train.py in it")
    sides = [CHECKOUT if flags.nanogpt else REBUILT, "gpt.py", "modern_gpt.py"]
    seconds, losses = {side: [] for side in sides}, {side: [] for side in sides}
    shuffle = random.Random(0).sample
    for _ in range(flags.rounds):
        for side in shuffle(sides, len(sides)):
            if side == CHECKOUT:
                took, loss = seconds_of_checkout(flags.nanogpt, device, flags.quick)
            else:
                start = time.perf_counter()
                with process(trained_here, side, device, flags.quick) as answer:
                    try:
                        answer.recv()
                        took, loss = time.perf_counter() - start, answer.recv()
                    except EOFError:
                        raise UserError(f"{side} did not come to a loss of {TARGET}") from None
            seconds[side].append(took)
            losses[side].append(loss)
    last = {"loss, nats": {side: f"{statistics.median(losses[side]):.3f}" for side in sides}}
    yield f"From the start to a validation loss of {TARGET}, or to the end of the quickstart", seconds, last


SETS = {"train": train, "generate": generate, "context": context, "gat": gat}  # and "loss", which is a race

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


@contextlib.contextmanager
def process(target, *args):
    """Runs target(*args, answer) in a process of its own; gives the end of the pipe that hears its answers."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=target, args=(*args, theirs))
    child.start()
    theirs.close()
    try:
        yield ours
    finally:
        child.join()


def memory_of(*case):
    with process(peak_of, *case) as answer:
        try:
            return answer.recv()
        except EOFError:
            return math.nan  # not measured on this system, or it failed


def timed(call, device):
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def measure(cases, rounds, device, quick):
    """The seconds of each side's call in each round, name -> list, and how many tokens such a call goes through."""
    torch.manual_seed(0)
    calls, tokens = {}, {}
    for name, case in cases.items():
        try:
            calls[name] = case(device, quick)
            tokens[name] = calls[name]()
        except Exception as error:  # no compiler, no memory: the others are measured all the same
            calls.pop(name, None)
            print(f"{name}: {type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
    seconds = {name: [] for name in calls}
    shuffle = random.Random(0).sample
    for _ in range(rounds):
        for name in shuffle(list(calls), len(calls)):
            gc.collect()
            took = timed(calls[name], device)
            seconds[name].append(took if took > 1 else timed(calls[name], device))
    return seconds, tokens


def processor():
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(title, seconds, last):
    """Lines of Markdown: medians and ranges, ratios to the first row, and the columns `last`: head -> cells."""
    first = statistics.median(next(iter(seconds.values())))
    unit, scale = ("s", 1) if first > 10 else ("ms", 1000)
    heads = ["", unit, "range", "ratio", *last]
    yield from ("", title, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|")
    for name, times in seconds.items():
        figures = [scale * f(times) for f in (statistics.median, min, max)]
        median, low, high = (f"{figure:,.{0 if figure > 100 else 1 if figure > 10 else 2}f}" for figure in figures)
        ratio = f"{statistics.median(times) / first:.2f}"
        yield f"| {' | '.join([name, median, f'{low} to {high}', ratio, *(last[head][name] for head in last)])} |"


def compare(which, rounds, device, quick):
    """A set's tables: for each its title, the seconds of all sides, and the columns beside them."""
    for title, cases in SETS[which]().items():
        measured = cases if which != "generate" else ()  # whose calls are long, and whose memory is the weights'
        memory = {name: memory_of(which, title, name, device, quick) for name in measured}
        seconds, tokens = measure(cases, rounds, device, quick)
        last = {}
        if any(tokens.values()):
            last["tokens/s"] = {name: f"{tokens[name] / statistics.median(seconds[name]):,.0f}" for name in seconds}
        if memory:
            sizes = {name: "" if math.isnan(size) else f"{size / 1e6:,.0f}" for name, size in memory.items()}
            last["memory, MB"] = sizes
        yield title, seconds, last


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[*SETS, "loss"], help="one set of measurements instead of all")
    parser.add_argument("--rounds", type=int, default=5, help="(5)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda, mps or auto (cpu)")
    parser.add_argument("--csv", metavar="FILE", help="keeps every single time in FILE")
    parser.add_argument(
        "--nanogpt", metavar="DIR", help="for loss: a checkout of nanoGPT instead of what is rebuilt here"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that everything runs")
    flags = parser.parse_args(argv)
    if flags.rounds < 1:
        parser.error(f"--rounds {flags.rounds}: must be at least 1")
    device, _ = choose_device(flags.device)
    try:
        kept = open(flags.csv or os.devnull, "x" if flags.csv else "w", encoding="utf-8", newline="")
    except OSError as error:
        parser.error(f"--csv {flags.csv}: {error.strerror}")
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else processor()
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(
        f"{name}, {torch.get_num_threads()} threads of {os.cpu_count()}; {versions}; {flags.rounds} rounds", flush=True
    )
    if not importlib.util.find_spec("torch_geometric"):
        print("torch_geometric is not here; pip install -r requirements-dev.txt brings it", file=sys.stderr)
    with kept:
        rows = csv.writer(kept, lineterminator="\n")
        rows.writerow(("what", "side", "round", "seconds"))
        for which in [flags.only] if flags.only else [*SETS, "loss"]:
            measured = race(flags, device) if which == "loss" else compare(which, flags.rounds, device, flags.quick)
            for title, seconds, last in measured:
                if not seconds:
                    continue  # no side could be measured
                shown = f"QUICK, with tiny sizes instead of: {title}" if flags.quick else title
                print("\n".join(table(shown, seconds, last)), flush=True)
                rows.writerows((shown, name, n, t) for name in seconds for n, t in enumerate(seconds[name], 1))
                kept.flush()


if __name__ == "__main__":
    run_main(main)
