"""The record of one training run, in a folder of its own."""

import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import threading
import time
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path

import torch
from torch.nn.parallel import DistributedDataParallel

from data import UserError
from data.files import lock, patiently, write_atomically
from data.processes import mean, rank, several, world_size

from .checkpoint import BEST, load_best, load_checkpoint, save_checkpoint
from .flags import in_notebook
from .options import rung_of
from .sampling import Sampling, sample_text
from .utilisation import peak_flops, training_flops

SAMPLE_LENGTH = 1000  # characters that a run writes at its end, about
SAVE_INTERVAL = 60  # seconds between checkpoints, at most
LOG_INTERVAL = 10  # steps from one row of metrics.csv to the next; a row has the mean training loss since the last one
COLUMNS = "step,tokens,seconds,train_loss,val_loss"  # the first line of metrics.csv

# The signals that end training after the current step: Ctrl-C, a cluster's stop, a closed terminal.
STOPS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


class Interrupted(KeyboardInterrupt):
    """A signal ended the training: (its number,). All is saved. In a notebook that is one line, as for UserError."""

    def _render_traceback_(self):
        return ["KeyboardInterrupt"]


class Run:
    """Keeps config.json, metrics.csv, checkpoint.pt, best.pt, lock, loss.png and sample.txt in `config.out`.

    If a run is already there, it is moved aside, unless it is training. With `config.resume` it goes on instead: the
    model, the optimizers, `data` and every random generator are set to where they stopped. Raises UserError if the
    folder holds something else, a damaged run, or one that is training. Of several processes only the first writes.
    """

    def __init__(self, config, data, model, *optimizers):
        self.config, self.data, self.model, self.optimizers = config, data, model, optimizers
        self.folder, self.lock = Path(config.out), None
        self.step, self.losses, self.interrupted = 0, [], 0
        self.best = math.inf  # the lowest validation loss so far
        self.device = torch.device(config.device)
        self.batch = config.batch_size * config.block_size * getattr(config, "grad_accum", 1)  # tokens of a step
        if not rank():
            if not config.resume:
                make_room(self.folder)
            self.lock = hold(self.folder)  # until training ends
        try:
            self.begin(*self.restore() if config.resume else (0.0, [], COLUMNS + "\n"))
        except BaseException:
            self.release()
            raise

    def begin(self, seconds, commands, metrics):
        """Writes what a run has before its first step. It has trained for `seconds` so far, by `commands`."""
        config, data, model = self.config, self.data, self.model
        module = getattr(sys.modules["__main__"], "__spec__", None)  # of python -m studies.modern_windows
        script = ["-m", module.name] if module else sys.argv[:1]
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{rung_of(type(config))}: {parameters:,} parameters, results in {self.folder}", flush=True)
        about = {
            "rung": rung_of(type(config)),
            "commands": [*commands, shlex.join(["python", *script, *sys.argv[1:]])],
            "config": asdict(config),
            "parameters": parameters,
            "corpus_sha256": data.sha256,
            "characters_per_token": data.token_length,
            "versions": {"python": platform.python_version(), "torch": torch.__version__},
            "machine": machine(self.device) + f", {world_size()} processes" * several(),
        }
        self.write("config.json", json.dumps(about, indent=2) + "\n")
        self.metrics, self.patience = metrics, None
        self.write("metrics.csv", metrics)
        self.written = len(metrics)
        if config.mfu:
            x, _ = data.at("val", torch.zeros(1, 1, dtype=torch.long))
            self.flops = training_flops(model, x) * self.batch  # of a step
            self.peak = peak_flops(self.device, getattr(torch, getattr(config, "dtype", "float32"))) * world_size()
            print(f"peak: {self.peak / 1e9:,.0f} GFLOP/s; a step: {self.flops / 1e9:,.1f} GFLOP", flush=True)
        self.first_step, self.begun = self.step, time.perf_counter()
        self.start, self.saved = self.begun - seconds, self.begun
        self.logged, self.pace = (self.step, self.begun), math.nan

    def release(self):
        """Lets others have the folder."""
        if self.lock:
            self.lock.close()

    def replicate(self, model):
        """`model` itself, or if there are several processes a replica that averages the gradients over them."""
        if not several():
            return model
        replica = DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        replica.config = self.config  # the model has it too
        return replica

    def steps(self):
        """Yields the steps that are left, up to max_iters. After a signal like Ctrl-C the current step is the last.

        Several processes ask each other every LOG_INTERVAL steps, since they wait for the answers.
        """

        def interrupt(number, _):
            if number == signal.SIGINT:
                signal.signal(number, handlers[number])  # a second Ctrl-C does not wait
            elif number != signal.SIGTERM:  # the terminal is gone, and writing to it would fail
                sys.stdout = open(os.devnull, "w", encoding="utf-8")
            self.interrupted = number

        def restore():
            for number, handler in handlers.items():
                signal.signal(number, handler)

        # Python lets no other thread catch signals. Those that are ignored stay so, like SIGHUP under nohup.
        catches = threading.current_thread() is threading.main_thread()
        handlers = {number: signal.getsignal(number) for number in STOPS if catches}
        handlers = {number: handler for number, handler in handlers.items() if handler not in (signal.SIG_IGN, None)}
        try:
            for number in handlers:
                signal.signal(number, interrupt)
            for step in range(self.step + 1, self.config.max_iters + 1):
                if rank():  # each process draws its own dropout, and draws it again in a resumed run
                    torch.manual_seed(self.config.seed + 2**20 * step + rank())
                yield step
                ask = not several() or step % LOG_INTERVAL == 0 or step == self.config.max_iters
                if ask and mean(self.interrupted) > 0:  # any process was interrupted
                    self.interrupted = self.interrupted or signal.SIGINT  # one that came while mean() waited stays
                    self.save()
                    goes_on = "; --resume goes on from here" if step < self.config.max_iters else ""
                    print(f"\ninterrupted after step {step}{goes_on}", flush=True)
                    break
                if time.perf_counter() - self.saved > SAVE_INTERVAL:
                    self.save()
        except BaseException:
            self.release()
            raise
        finally:
            restore()

    def log(self, step, loss, val_loss=None):
        """Records a step's training loss (a scalar tensor). Given a validation loss in nats, saves a checkpoint too.

        Raises FloatingPointError if a loss is not finite, and leaves the last checkpoint as it is.
        """
        self.step = step
        self.losses.append(loss.detach())
        if val_loss is None and step > 1 and step % LOG_INTERVAL:
            return
        train_loss = mean(torch.stack(self.losses).mean().item())  # .item() waits for the device
        train_loss /= self.data.token_length  # now nats per character, as the validation loss is
        now, (last_step, last_time) = time.perf_counter(), self.logged
        if val_loss is None or self.config.eval_interval <= LOG_INTERVAL or math.isnan(self.pace):
            self.pace = (now - last_time) / (step - last_step)  # seconds a step, evaluations left out if possible
        self.losses.clear()
        for name, value in (("loss", train_loss), ("validation loss", val_loss)):
            if value is not None and not math.isfinite(value):
                rate = self.optimizers[0].param_groups[0]["lr"]
                raise FloatingPointError(f"the {name} is {value} at step {step} with learning rate {rate:.3g}")
        val = "" if val_loss is None else f"{val_loss:.6f}"
        self.metrics += f"{step},{step * self.batch},{now - self.start:.2f},{train_loss:.6f},{val}\n"
        self.append()
        if val_loss is not None:
            self.save(val_loss)
        self.show(step, train_loss, val_loss)
        self.logged = step, time.perf_counter()

    def append(self):
        """Adds to metrics.csv what it lacks. If the file cannot be written now, that is said once and done later."""

        def write():
            path = self.folder / "metrics.csv"
            try:
                with open(path, "a", encoding="utf-8", newline="\n") as file:
                    file.write(self.metrics[self.written :])
            except OSError as error:  # that of a full disk does not name the file
                raise OSError(error.errno, error.strerror, str(path)) from None

        if rank():
            return
        try:
            patiently(write, self.patience)
            self.written, self.patience = len(self.metrics), None
        except PermissionError as error:
            if self.patience is None:
                print(f"\n{error.filename}: {error.strerror}; its rows are kept for later", flush=True)
            self.patience = 0

    def show(self, step, train_loss, val_loss):
        """Writes one live line on a terminal or in a notebook. An evaluation's line stays, and a new one begins.

        Where lines cannot be overwritten, as in a file, only those of evaluations are written.
        """
        whole_pace = (time.perf_counter() - self.begun) / (step - self.first_step)  # evaluations included
        eta = timedelta(seconds=round(whole_pace * (self.config.max_iters - step)))
        line = f"step {step:>{len(str(self.config.max_iters))}}/{self.config.max_iters}  train {train_loss:.4f}"
        if val_loss is not None:
            line += f"  val {val_loss:.4f} ({val_loss / math.log(2):.4f} bits/char)"
        line += f"  {self.batch / self.pace:,.0f} tokens/s"
        if self.data.token_length != 1:
            line += f" ({self.batch * self.data.token_length / self.pace:,.0f} characters/s)"
        if self.config.mfu:
            line += f" ({self.flops / self.pace / self.peak:.0%} MFU)"
        line += f"  ETA {eta}"
        live = sys.stdout.isatty() or in_notebook()
        if live:
            print(f"\r{line:<{shutil.get_terminal_size().columns - 1}}", end="", flush=True)
        if val_loss is not None:
            print("" if live else line, flush=True)

    def save(self, val_loss=math.inf):
        """Writes a checkpoint, from which training goes on exactly; if `val_loss` is the lowest so far, best.pt too.

        Raises FloatingPointError for a loss or a weight like NaN, and leaves the last checkpoint as it is.
        """
        if rank():
            return
        losses = [loss.item() for loss in self.losses]
        if not all(map(math.isfinite, losses)):
            raise FloatingPointError(f"the loss is {losses[-1]} at step {self.step}")
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(f"the weights are not finite after step {self.step}")
        state = {
            "rung": rung_of(type(self.config)),
            "step": self.step,
            "seconds": time.perf_counter() - self.start,
            "config": asdict(self.config),
            "tokenizer": self.data.tokenizer.state,
            "corpus_sha256": self.data.sha256,
            "metrics": self.metrics,
            "losses": losses,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "generators": {"batches": self.data.generator.get_state(), **generators(self.device)},
        }
        try:
            if val_loss < self.best:  # first, so that no checkpoint tells of a loss whose weights are not there
                save_checkpoint(self.folder, {**state, "optimizers": []}, BEST)
                self.best = val_loss
            save_checkpoint(self.folder, state)
        except PermissionError as error:
            if self.interrupted or self.step == self.config.max_iters:
                raise
            print(f"\n{error.filename}: {error.strerror}; training goes on", flush=True)
        self.saved = time.perf_counter()

    def restore(self):
        """Sets everything to where the run stopped. Returns its seconds so far, its commands and its metrics.csv."""
        state = load_checkpoint(self.folder, rung_of(type(self.config)))
        load_best(self.folder)  # a damaged one is better known now than when it is needed
        try:
            return self.restore_from(state)
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            other = f"a damaged run, or one of another version of {rung_of(type(self.config))}.py"
            raise UserError(f"{self.folder}: {other} ({type(error).__name__})") from None

    def restore_from(self, state):
        if state["corpus_sha256"] != self.data.sha256:
            raise UserError(f"the run in {self.folder} was trained on another text")
        self.step = int(state["step"])
        if not 0 <= self.step <= self.config.max_iters:  # equal: it may have stopped before its sample
            raise UserError(f"the run in {self.folder} has its {self.step} steps; a larger --max_iters goes on with it")
        self.losses = [torch.tensor(float(loss), device=self.device) for loss in state["losses"]]
        evaluations = [row.split(",")[4] for row in state["metrics"].splitlines()[1:]]
        self.best = min((float(loss) for loss in evaluations if loss), default=math.inf)
        self.model.load_state_dict(state["model"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            groups = optimizer.state_dict()["param_groups"]  # the rates and betas of this run
            optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
            for parameter, kept in optimizer.state.items():
                if any(tensor.shape not in (parameter.shape, ()) for tensor in kept.values()):
                    raise ValueError("not its optimizer's state")
        self.data.generator.set_state(state["generators"]["batches"])
        torch.set_rng_state(state["generators"]["cpu"])
        if self.device.type in state["generators"] and self.device.type != "cpu":
            torch.get_device_module(self.device).set_rng_state(state["generators"][self.device.type], self.device)
        commands = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["commands"]
        if not state["metrics"].startswith(COLUMNS):
            raise ValueError("not its losses")
        return float(state["seconds"]), [*commands], state["metrics"]

    def finish(self, generate):
        """Draws the loss curve and writes a page of text with the rung's `generate`, from the best weights.

        Raises KeyboardInterrupt if a signal ended the training; only after Ctrl-C is there time for picture and text.
        """
        try:
            if not rank():
                self.patience = None
                self.append()
            if not rank() and self.interrupted in (0, signal.SIGINT):
                self.illustrate(generate)
        finally:
            self.release()
        if self.interrupted:
            raise Interrupted(self.interrupted)

    def illustrate(self, generate):
        """Draws loss.png and writes sample.txt; for it the model gets the weights with the lowest validation loss."""
        from .plot import plot  # here, so that `python -m results.plot` does not find itself imported already

        plot([self.folder]).savefig(self.folder / "loss.png")
        best = load_best(self.folder)
        if best["step"] < self.step:
            self.model.load_state_dict(best["model"])
            print(f"the text is by the weights of step {best['step']}, whose validation loss is the lowest: {BEST}")
        length = round(SAMPLE_LENGTH / self.data.token_length)
        how = Sampling(max_new_tokens=length)
        (text,) = sample_text(self.model, generate, self.data.tokenizer, how, self.config.seed)
        self.write("sample.txt", text)
        files = "config.json metrics.csv checkpoint.pt best.pt loss.png sample.txt"
        print(f"{text}\n\n{self.folder}: {files}", flush=True)

    def write(self, name, text):
        if not rank():
            write_atomically(self.folder / name, text.encode())


def generators(device):
    """The states of the random generators that dropout draws from."""
    states = {"cpu": torch.get_rng_state()}
    if device.type != "cpu":
        states[device.type] = torch.get_device_module(device).get_rng_state(device)
    return states


def hold(folder):
    """The open lock of a run's folder. Raises UserError if another run trains in it."""
    try:
        return lock(folder / "lock")
    except BlockingIOError:
        raise UserError(f"--out {folder}: a run is training there; stop it, or name another folder") from None


def make_room(folder):
    """Makes the folder. If a run is there, its folder gets the time added to its name: gpt-2026-11-22-143005."""
    try:
        folder = folder.resolve()
        if folder.exists() and not (folder.is_dir() and {path.name for path in folder.iterdir()} <= {"lock"}):
            config = folder / "config.json"
            if not config.is_file() or '"rung"' not in config.read_text(encoding="utf-8"):
                raise UserError(f"--out {folder}: there is something else than a run here; name another folder")
            hold(folder).close()
            aside = folder.with_name(f"{folder.name}-{datetime.now():%Y-%m-%d-%H%M%S}")
            folder.rename(aside)
            print(f"the run in {folder} is now in {aside}", flush=True)
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path, a config.json without text
        raise UserError(f"--out {folder}: {getattr(error, 'strerror', error)}") from None


def machine(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads"
