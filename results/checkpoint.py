import os
from pathlib import Path

import torch

from data import UserError


def write_atomically(path, write):
    """Has `write(file)` fill a file beside `path`, then renames it, so that `path` is always whole."""
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def save_checkpoint(folder, state):
    write_atomically(Path(folder) / "checkpoint.pt", lambda file: torch.save(state, file))


def load_checkpoint(folder, rung=None):
    """The state that `save_checkpoint` was given, on the CPU; nothing in the file is executed.

    Raises UserError if there is none, if it cannot be read, or if it is of another rung than `rung`.
    """
    path = Path(folder) / "checkpoint.pt"
    if not path.exists():
        raise UserError(f"{path}: there is no checkpoint here")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        found = state["rung"]
    except Exception as error:  # bytes that are no checkpoint can raise anything in the unpickler
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if rung not in (None, found):
        raise UserError(f"{path}: this is a checkpoint of {found}.py, not of {rung}.py")
    return state
