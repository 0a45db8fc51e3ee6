import hashlib
import io
import zipfile
from pathlib import Path

import torch

from data import UserError
from data.files import write_atomically

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"  # the last step, and the weights with the lowest validation loss


class Hashed:
    """A file that is written once, from its start to its end, and the sha256 of that."""

    def __init__(self, file):
        self.file, self.flush, self.sha256 = file, file.flush, hashlib.sha256()

    def write(self, content):
        self.sha256.update(content)
        return self.file.write(content)


def save_checkpoint(folder, state, name=CHECKPOINT):
    """Keeps `state` in a file of the folder: as torch.save has it, then the sha256 of that. Raises OSError."""

    def write(file):
        hashed = Hashed(file)
        torch.save(state, hashed)
        file.write(hashed.sha256.digest())

    write_atomically(Path(folder) / name, write)


def load_best(folder):
    """The state with the lowest validation loss, or that of the last step if none was measured. Raises UserError."""
    return load_checkpoint(folder, name=BEST if (Path(folder) / BEST).is_file() else CHECKPOINT)


def load_checkpoint(folder, rung=None, name=CHECKPOINT):
    """The state that `save_checkpoint` was given, on the CPU; nothing in the file is executed.

    Raises UserError if there is none, if a bit of it has changed, if it would take more memory than the file has bytes,
    or if it is of another rung than `rung`.
    """
    path = Path(folder) / name
    try:
        content = path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a path with a null character
        raise UserError(f"{path}: there is no checkpoint here ({getattr(error, 'strerror', error)})") from None
    content, digest = content[:-32], content[-32:]
    if hashlib.sha256(content).digest() != digest:
        raise UserError(f"{path}: not a checkpoint, or a damaged one (its sha256 differs)")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as parts:
            claimed = sum(part.file_size for part in parts.infolist())
        if claimed > len(content):
            raise MemoryError
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        found = state["rung"]
        if sum(tensor.nbytes for tensor in state["model"].values()) > len(content):  # a stride of 0 makes many of one
            raise MemoryError
    except Exception as error:  # what a stranger made can raise anything in the unpickler
        raise UserError(f"{path}: not a checkpoint ({type(error).__name__})") from None
    if rung not in (None, found):
        raise UserError(f"{path}: this is a checkpoint of {found}.py, not of {rung}.py")
    return state
