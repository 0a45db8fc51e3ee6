"""The record of one training run, in a folder of its own."""

import contextlib
import itertools
import json
import math
import os
import platform
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
from data.files import lock, write_atomically
from data.processes import mean, rank, several, world_size

from .checkpoint import BEST, copy_into, fitting, load_best, load_checkpoint, make_state, save_checkpoint
from .main import in_notebook
from .metrics import COLUMNS, columns_of
from .options import command_of, rung_of
from .sampling import Sampling, sample_text

VERSION = "1.0"  # of the project, as CHANGELOG.md has it
SAMPLE_LENGTH = 500  # characters that a run writes at its end, about
SAVE_INTERVAL = 60  # seconds between checkpoints, at most
LOG_INTERVAL = 10  # steps from one row of metrics.csv to the next; a row has the mean training loss since the last one


class Interrupted(KeyboardInterrupt):
    """A signal ended the training: (its number,). All is saved. In a notebook that is one line, as for UserError."""

    def _render_traceback_(self):
        return ["KeyboardInterrupt"]


class Run:
    """Keeps config.json, metrics.csv, checkpoint.pt, best.pt, lock, loss.png and sample.txt in the folder `config.out`.

    If a run is already there, it is moved aside, unless it is training. With `config.resume` it continues instead: the
    model, the optimizers, `data` and every random generator are set to where they stopped. Raises UserError if the
    folder holds something else, a damaged run, or one that is training. Of several processes only the first writes.
    """

    # ------------------------------------------------ begin

    def __init__(self, config, data, model, *optimizers):
        self.config, self.data, self.model, self.optimizers = config, data, model, optimizers
        self.device = torch.device(config.device)
        self.folder = Path(os.path.realpath(config.out))  # before anything is moved: the user may be in a folder below
        self.step, self.losses, self.interrupted = 0, [], 0
        self.metrics, self.best = ",".join(COLUMNS) + "\n", math.inf  # metrics.csv so far, the lowest validation loss
        self.files = []  # those that are open while the run trains: its lock and metrics.csv
        self.start = self.saved = time.perf_counter()
        if not rank():
            if not config.resume:
                make_room(self.folder)
            self.files.append(hold(self.folder))  # until training ends
        try:
            commands = self.restore() if config.resume else []
            parameters = sum(p.numel() for p in model.parameters())
            print(f"{rung_of(type(config))}: {parameters:,} parameters, results in {config.out}", flush=True)
            about = {
                "rung": rung_of(type(config)),
                "commands": [*commands, command_of(config)],
                "config": asdict(config),
                "parameters": parameters,
                "corpus_sha256": data.sha256,
                "characters_per_token": data.token_length,
                "versions": {"ladder": VERSION, "python": platform.python_version(), "torch": torch.__version__},
                "machine": machine(self.device) + f", {world_size()} processes" * several(),
            }
            self.write("config.json", json.dumps(about, indent=2) + "\n")
            if not rank():
                file = open(self.folder / "metrics.csv", "w", encoding="utf-8", newline="\n", buffering=1)
                self.files.append(file)
                file.write(self.metrics)
        except BaseException:
            self.release()
            raise
        self.first_step, self.begun = self.step, time.perf_counter()
        self.logged, self.pace = (data.drawn, self.begun), math.nan  # tokens and time at the last row; tokens a second

    def write(self, name, text):
        if not rank():
            write_atomically(self.folder / name, text.encode())

    def release(self):
        """Closes the files of the folder, so that others may have it."""
        for file in self.files:
            with contextlib.suppress(OSError):  # of rows for which the disk has no room
                file.close()

    def replicate(self, model):
        """`model` itself, or if there are several processes a replica that averages the gradients over them."""
        if not several():
            return model
        replica = DistributedDataParallel(model, device_ids=[self.device] if self.device.type == "cuda" else None)
        replica.config = self.config  # the model has it too
        return replica

    # ------------------------------------------------ train

    def steps(self):
        """Yields the steps that are left, up to max_iters. After Ctrl-C or SIGTERM the current step is the last.

        Several processes ask each other every LOG_INTERVAL steps, since they wait for the answers.
        """

        def interrupt(number, _):
            self.interrupted = number
            if number == signal.SIGINT:
                signal.signal(number, handlers[number])  # a second Ctrl-C does not wait

        main_thread = threading.current_thread() is threading.main_thread()  # no other one can catch signals
        signals = (signal.SIGINT, signal.SIGTERM) if main_thread else ()
        handlers = {number: signal.signal(number, interrupt) for number in signals}
        try:
            for step in range(self.step + 1, self.config.max_iters + 1):
                if rank():  # each process draws its own dropout, and draws it again in a resumed run
                    torch.manual_seed(self.config.seed + 2**20 * step + rank())
                yield step
                ask = not several() or step % LOG_INTERVAL == 0 or step == self.config.max_iters
                if ask and mean(self.interrupted) > 0:  # any process was interrupted
                    self.interrupted = self.interrupted or signal.SIGINT  # one that came while mean() waited stays
                    self.save()
                    resume = "; --resume continues from here" if step < self.config.max_iters else ""
                    print(f"\ninterrupted after step {step}{resume}", flush=True)
                    break
                if time.perf_counter() - self.saved > SAVE_INTERVAL:
                    self.save()
        except BaseException:
            self.release()
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

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
        now, (tokens, then) = time.perf_counter(), self.logged
        if val_loss is None or self.config.eval_interval <= LOG_INTERVAL or math.isnan(self.pace):
            self.pace = (self.data.drawn - tokens) / (now - then)  # evaluations left out if possible
        self.losses.clear()
        for name, value in (("loss", train_loss), ("validation loss", val_loss)):
            if value is not None and not math.isfinite(value):
                rate = self.optimizers[0].param_groups[0]["lr"]
                raise FloatingPointError(f"the {name} is {value} at step {step} with learning rate {rate:.3g}")
        val = "" if val_loss is None else f"{val_loss:.6f}"
        row = f"{step},{self.data.drawn},{now - self.start:.2f},{train_loss:.6f},{val}\n"
        self.metrics += row
        if not rank():
            self.files[-1].write(row)
        if val_loss is not None:
            self.save(val_loss)
        self.show(train_loss, val_loss)
        self.logged = self.data.drawn, time.perf_counter()

    def show(self, train_loss, val_loss):
        """Writes one live line on a terminal or in a notebook. An evaluation's line stays, and a new one begins.

        Where lines cannot be overwritten, as in a file, only those of evaluations are written.
        """
        last = self.config.max_iters
        whole_pace = (time.perf_counter() - self.begun) / (self.step - self.first_step)  # evaluations included
        eta = timedelta(seconds=round(whole_pace * (last - self.step)))
        line = f"step {self.step:>{len(str(last))}}/{last}  train {train_loss:.4f}"
        if val_loss is not None:
            line += f"  val {val_loss:.4f} ({val_loss / math.log(2):.4f} bits/char)"
        line += f"  {self.pace:,.0f} tokens/s  ETA {eta}"
        live = sys.stdout.isatty() or in_notebook()
        if live:
            width = shutil.get_terminal_size().columns - 1 if sys.stdout.isatty() else 120
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        if val_loss is not None:
            print("" if live else line, flush=True)

    # ------------------------------------------------ save and restore

    def save(self, val_loss=math.inf):
        """Writes a checkpoint, from which training continues exactly; if `val_loss` is the lowest so far, best.pt too.

        Raises FloatingPointError for a loss or a weight like NaN, and leaves the last checkpoint as it is.
        """
        if rank():
            return
        if not all(loss.isfinite() for loss in self.losses):
            raise FloatingPointError(f"the loss is {self.losses[-1].item()} at step {self.step}")
        if not all(parameter.isfinite().all() for parameter in self.model.parameters()):
            raise FloatingPointError(f"the weights are not finite after step {self.step}")
        is_best = val_loss < self.best
        self.best = min(val_loss, self.best)
        state = self.state()
        if is_best:  # first, so that no checkpoint tells of a loss whose weights are not there
            save_checkpoint(self.folder, {**state, "optimizers": []}, BEST)
        save_checkpoint(self.folder, state)
        self.saved = time.perf_counter()

    def state(self):
        """All that a checkpoint keeps."""
        generators = {"batches": self.data.generator.get_state(), "cpu": torch.get_rng_state()}
        if self.device.type != "cpu":
            generators[self.device.type] = torch.get_device_module(self.device).get_rng_state(self.device)
        return {
            "rung": rung_of(type(self.config)),
            "config": asdict(self.config),
            "tokenizer": self.data.tokenizer.state,
            "corpus_sha256": self.data.sha256,
            "step": self.step,
            "seconds": time.perf_counter() - self.start,
            "drawn": self.data.drawn,
            "best": self.best,
            "metrics": self.metrics,
            "losses": [loss.item() for loss in self.losses],
            "model": self.model.state_dict(),
            "optimizers": [{"state": optimizer.state_dict()["state"]} for optimizer in self.optimizers],
            "generators": generators,
        }

    def restore(self):
        """Sets everything to where the run stopped. Returns the commands that led there.

        The checkpoint may be from an untrusted file: raises UserError if any part of it does not fit.
        """
        saved = load_checkpoint(self.folder, rung_of(type(self.config)))
        try:
            if saved["corpus_sha256"] != self.data.sha256:
                raise UserError(f"{self.folder}: this run was trained on another text")
            if [type(saved[name]) for name in ("step", "losses", "optimizers")] != [int, list, list]:
                raise TypeError("its step, its losses or its optimizers are of another type")
            if "drawn" not in saved:
                raise UserError(
                    f"{self.folder}: this run is from before version 1.0; sample.py can use it, --resume not"
                )
            losses = [float(loss) for loss in saved["losses"]]
            columns_of(saved["metrics"])
            for optimizer, its in zip(self.optimizers, saved["optimizers"], strict=True):
                make_state(optimizer, its["state"])
            ours = {name: part for name, part in self.state().items() if name not in ("config", "tokenizer", "losses")}
            theirs = {
                **{name: saved[name] for name in saved if name in ours},
                "optimizers": [{"state": its["state"]} for its in saved["optimizers"]],
                "generators": {name: saved["generators"].get(name) for name in ours["generators"]},
            }
            kind = self.device.type
            if kind != "cpu" and theirs["generators"][kind] is None:  # it ran on a device of another kind
                theirs["generators"][kind] = ours["generators"][kind]
            if os.path.isfile(self.folder / BEST):  # a damaged one is better known now than when it is needed
                fitting(ours["model"], load_best(self.folder)["model"], BEST)
            if not 0 <= theirs["step"] <= self.config.max_iters:  # equal: it may have stopped before its sample
                done = f"this run has done its {theirs['step']} steps; a larger --max_iters continues it"
                raise UserError(f"{self.folder}: {done}")
            commands = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))["commands"]
            commands = [str(command) for command in commands]
            copy_into(ours, theirs)
            self.data.generator.set_state(ours["generators"]["batches"])
            torch.set_rng_state(ours["generators"]["cpu"])
            if kind != "cpu":
                torch.get_device_module(self.device).set_rng_state(ours["generators"][kind], self.device)
        except (ArithmeticError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError) as error:
            raise UserError(f"{self.folder}: a damaged run, or one of another version ({error})") from None
        self.losses = [torch.tensor(loss, device=self.device) for loss in losses]
        self.step, self.data.drawn, self.best = theirs["step"], theirs["drawn"], theirs["best"]
        self.metrics, self.start = theirs["metrics"], self.start - theirs["seconds"]
        return commands

    # ------------------------------------------------ finish

    def finish(self, generate):
        """Writes a page of text with the rung's `generate`, from the best weights, and draws the loss curve.

        Raises KeyboardInterrupt if a signal ended the training; only after Ctrl-C is there time for text and picture.
        """
        try:
            if not rank() and self.interrupted in (0, signal.SIGINT):
                text = self.sample(generate)
                self.draw()
                files = "config.json metrics.csv checkpoint.pt best.pt loss.png sample.txt".split()
                files = [name for name in files if (self.folder / name).exists()]
                print(f"{text}\n\n{self.config.out}: {' '.join(files)}", flush=True)
        finally:
            self.release()
        if self.interrupted:
            raise Interrupted(self.interrupted)

    def sample(self, generate):
        """Writes sample.txt; for it the model gets the weights with the lowest validation loss. Returns the text."""
        best = load_best(self.folder)
        if best["step"] < self.step:
            copy_into(self.model.state_dict(), best["model"])
            print(f"the text is by the weights of step {best['step']}, whose validation loss is the lowest: {BEST}")
        how = Sampling(max_new_tokens=round(SAMPLE_LENGTH / self.data.token_length))
        (text,) = sample_text(self.model, generate, self.data.tokenizer, how, self.config.seed)
        self.write("sample.txt", text)
        return text

    def draw(self):
        """Draws loss.png. A picture that cannot be drawn is one line: it is an ornament of the run."""
        try:
            from . import plot  # here, so that `python -m results.plot` does not find itself imported already

            write_atomically(self.folder / "loss.png", plot.picture(plot.plot([self.folder])))
        except Exception as error:  # a wrong MPLBACKEND, a full disk, whatever a drawing library may raise
            print(f"loss.png: not drawn ({' '.join(str(error).split())})", flush=True)


def make_room(folder):
    """Makes the folder of a new run. A run that is there already is moved aside, to gpt-2026-11-22-143005 say.

    Raises UserError if something else is there, or a run that is training or that cannot be moved.
    """
    try:
        if not folder.exists():
            folder.mkdir(parents=True)
        elif not folder.is_dir() or {path.name for path in folder.iterdir()} - {"lock", "config.json.part"}:
            config = folder / "config.json"  # a start that was killed early leaves the two others alone
            if not config.is_file() or '"rung"' not in config.read_text(encoding="utf-8", errors="replace"):
                raise UserError(f"--out {folder}: there is something else than a run here; name another folder")
            hold(folder).close()
            move_aside(folder)
            folder.mkdir()
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}") from None


def move_aside(folder):
    """Adds the time to the name of a run's folder. Raises UserError if the system does not allow it."""
    name = f"{folder.name}-{datetime.now():%Y-%m-%d-%H%M%S}"
    names = itertools.chain([name], (f"{name}-{n}" for n in itertools.count(2)))
    aside = next(path for path in map(folder.with_name, names) if not os.path.lexists(path))
    try:
        folder.rename(aside)
    except OSError as error:  # it is a mount point, say, or another user's
        why = f"the run there cannot be moved to {aside.name} ({error.strerror})"
        raise UserError(f"--out {folder}: {why}; name another folder, like {folder / 'new'}") from None
    print(f"the run in {folder} is now in {aside}", flush=True)


def hold(folder):
    """The open lock of a run's folder. Raises UserError if another run trains in it, or if it cannot be written to."""
    try:
        return lock(folder / "lock")
    except BlockingIOError:
        raise UserError(f"--out {folder}: a run is training there; stop it, or name another folder") from None
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror}") from None


def machine(device):
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    computes = "MPS" if device.type == "mps" else f"{torch.get_num_threads()} threads"
    return f"{platform.system()} {platform.machine()}, {computes}"
