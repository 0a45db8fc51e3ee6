"""How the timing studies measure: each side beside what it is compared with, all in one run on one machine.

In each round every side has its turn, in a new order. Whatever else slows the machine then slows all sides alike. A
turn is two calls, of which the second counts, or one call that takes more than a second. The tables show the median and
the range over the rounds, and the ratio of the median to the first row's.

Memory is the most that one more call needs, in a process of its own, above what that process held before the call. The
weights and the optimizer's state are not in it. On a CPU it is measured on Linux alone.
"""

import contextlib
import csv
import ctypes
import gc
import multiprocessing
import os
import platform
import random
import signal
import statistics
import sys
import time
import traceback
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import nn

import sample
from data import UserError, choose_device, choose_dtype
from results import option, parse
from results.main import line_of
from results.run import machine

# ---------------------------------------------------------------- What is measured


@dataclass
class Flags:
    rounds: int = option(5, "turns of each side")
    device: str = option("cpu", "cpu, cuda, cuda:1, mps, or auto: cuda, else mps, else cpu")
    csv: str = option("", "a new file that keeps every single time")
    quick: bool = option(False, "tiny sizes, to see that everything runs; the memory of first rows alone")

    def __post_init__(self):
        self.device, _ = choose_device(self.device)


QUICK = dict(n_layer=1, n_head=2, n_embd=16, block_size=16, batch_size=2)


def full_sizes(name):
    """The options that `--size full` sets in a rung; none in a rung that has one size."""
    return getattr(sample.rung(name)[0].Config, "full", {})


def model_of(name, flags, **options):
    """A rung's module and its model on the device. Its sizes are the defaults for a CPU, but for `options`."""
    rung, build = sample.rung(name)
    known = {f.name for f in fields(rung.Config)}
    if flags.quick:
        options |= {option: size for option, size in QUICK.items() if option in known}
    config = rung.Config(**options, device=flags.device)
    if "dtype" in known:
        config.dtype, _ = choose_dtype(config.dtype, flags.device)
    return rung, build(config, 65).to(flags.device)


def optimizers_of(rung, model):
    """The optimizers with which a rung trains its model."""
    if hasattr(rung, "make_optimizers"):
        return rung.make_optimizers(model.config, model)
    if hasattr(rung, "make_optimizer"):
        return [rung.make_optimizer(model.config, model)]
    return [torch.optim.AdamW(model.parameters(), fused=True)]


def train_step(rung, model, optimizers, x, y):
    """One step of training, as in the rung's train()."""
    if hasattr(rung, "update"):  # from gpt.py on
        rung.update(model, optimizers, [(x, y)])
        return
    model.zero_grad()
    rung.loss_of(model, x, y).backward()
    if hasattr(rung, "learning_rate_at"):  # transformer.py clips
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimizer in optimizers:
        optimizer.step()


# ---------------------------------------------------------------- Time


def wait(device):
    """Until the device has done all that it was given to do."""
    if device != "cpu":
        torch.get_device_module(device).synchronize()


def timed(call, device):
    """The seconds that a call takes."""
    wait(device)
    start = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - start


def turns(names, rounds):
    """Whose turn it is: in each round every name once, in a new order."""
    shuffle = random.Random(0).sample
    for _ in range(rounds):
        yield from shuffle(list(names), len(names))


def by_turns(calls, rounds, device="cpu"):
    """The seconds of each call in each round: name -> list."""
    seconds = {name: [] for name in calls}
    for name in turns(calls, rounds):
        gc.collect()
        took = timed(calls[name], device)
        seconds[name].append(took if took > 1 else timed(calls[name], device))
    return seconds


# ---------------------------------------------------------------- Memory


def apart(target, *args):
    """What target(*args) returns, in a process of its own. Raises what it raises; Ctrl-C ends both processes."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=send, args=(theirs, target, *args))
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)  # the child inherits it, so that this process alone answers
    child.start()
    signal.signal(signal.SIGINT, handler)
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise UserError("a process that measures was killed; there may be too little memory") from None
    finally:
        child.terminate()
        child.join()
    if isinstance(found, Exception):
        raise found
    return found


def send(pipe, target, *args):
    """Sends what target(*args) returns or raises."""
    try:
        pipe.send(target(*args))
    except Exception as error:
        error.add_note(traceback.format_exc())
        pipe.send(error)


def resident(which):
    """Bytes of memory that this process holds (VmRSS), or held at most since it was last asked to forget (VmHWM)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def peak_of(tables, title, name, flags):
    """The bytes that a case's call needs above what there was before it, or None where that is not measured."""
    call = tables()[title][name](flags)
    call()  # compiles, and sets up what the first call alone does
    gc.collect()
    if flags.device.startswith("cuda"):
        before = torch.cuda.memory_allocated(flags.device)
        torch.cuda.reset_peak_memory_stats(flags.device)
        call()
        return torch.cuda.max_memory_allocated(flags.device) - before
    if flags.device == "cpu" and sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # a libc without it
            ctypes.CDLL(None).malloc_trim(0)  # gives back what the first call left behind
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the highest so far
        before = resident("VmRSS")
        call()
        return resident("VmHWM") - before
    return None


def memory_of(*case):
    """A case's peak in MB, as the table shows it: empty where it is not measured, or where the case failed."""
    try:
        peak = apart(peak_of, *case)
    except Exception as error:
        if not line_of(error)[0]:
            raise
        return ""  # compare() says why
    return "" if peak is None else f"{peak / 1e6:,.0f}"


# ---------------------------------------------------------------- Tables


def compare(tables, flags, memory=True):
    """Measures a study's tables; yields for each its title, the seconds of each side, and the columns beside them.

    tables: a function that gives title -> name of a side -> case. A case is called with the flags, sets everything up
    and returns a call. That is what is timed; it returns the number of tokens that it went through, or None. Its
    attribute `operations`, if it has one, is the number of its floating-point operations.
    """
    for title, cases in tables().items():
        peaks = dict.fromkeys(cases, "")
        for name in list(cases)[: 1 if flags.quick else None] if memory else []:
            peaks[name] = memory_of(tables, title, name, flags)
        torch.manual_seed(0)
        calls, tokens = {}, {}
        for name, case in cases.items():
            try:
                call = case(flags)
                tokens[name], calls[name] = call(), call
            except Exception as error:
                if not (said := line_of(error)[0]):  # no compiler, no memory: the others are measured all the same
                    raise
                print(f"{name}: {said}", file=sys.stderr)
        seconds, columns = by_turns(calls, flags.rounds, flags.device), {}
        if any(tokens.values()):
            pace = {name: (tokens[name] or 0) / statistics.median(seconds[name]) for name in seconds}
            columns["tokens/s"] = {name: f"{pace[name]:,.0f}" if pace[name] else "" for name in seconds}
        operations = {name: getattr(call, "operations", 0) / 1e9 for name, call in calls.items()}
        if any(operations.values()):
            columns["GFLOP/s"] = {
                name: f"{operations[name] / statistics.median(seconds[name]):,.0f}" for name in seconds
            }
        if memory:
            columns["memory, MB"] = peaks
        yield title, seconds, columns


def table(title, seconds, columns):
    """Lines of Markdown: medians and ranges, ratios to the first row, and `columns`: head -> name -> cell."""
    first = statistics.median(next(iter(seconds.values())))
    unit, scale = ("s", 1) if first > 10 else ("ms", 1000)
    heads = ["", unit, "range", "ratio", *columns]
    yield from ("", title, "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|")
    for name, times in seconds.items():
        figures = [scale * f(times) for f in (statistics.median, min, max)]
        median, low, high = (f"{figure:,.{0 if figure > 100 else 1 if figure > 10 else 2}f}" for figure in figures)
        cells = [name, median, f"{low} to {high}", f"{statistics.median(times) / first:.2f}"]
        yield f"| {' | '.join(cells + [columns[head][name] for head in columns])} |"


def processor():
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "processor unknown"


def report(flags, measured):
    """Prints the tables that `measured` yields, each as soon as it is there, and keeps every single time in --csv."""
    try:
        kept = open(flags.csv or os.devnull, "x" if flags.csv else "w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--csv {flags.csv}: {error.strerror}") from None
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    print(f"{processor()}; {machine(torch.device(flags.device))}; {versions}; {flags.rounds} rounds", flush=True)
    with kept:
        rows = csv.writer(kept, lineterminator="\n")
        rows.writerow(("what", "side", "round", "seconds"))
        for title, seconds, columns in measured:
            title = f"QUICK, with tiny sizes instead of: {title}" if flags.quick else title
            if seconds:  # or no side could be measured
                print("\n".join(table(title, seconds, columns)), flush=True)
            rows.writerows((title, name, n, t) for name in seconds for n, t in enumerate(seconds[name], 1))
            kept.flush()


def main(tables, argv=None, memory=True):
    """A study as a command: reads its flags, measures its tables as compare() does, and reports them."""

    class Study(Flags):
        __module__ = tables.__module__  # whose docstring --help shows

    flags = Flags(**vars(parse(Study, argv)))
    report(flags, compare(tables, flags, memory))
