"""A run's state in a file, and back.

A file may be from somebody else: nothing in it is used before its type, shape, dtype and layout are known to be those
of the model's own, and then it is copied into the model's own tensors.
"""

import os
import pickletools
import zipfile
from pathlib import Path

import torch

from data import UserError
from data.files import write_atomically

CHECKPOINT, BEST = "checkpoint.pt", "best.pt"  # the last step, and the weights with the lowest validation loss
# What the pickle in our files names: tensors, and nothing that could run, or take memory that the file does not have.
NAMED = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2"}
NAMED |= {f"torch {kind}Storage" for kind in ("Float", "Half", "BFloat16", "Byte", "Long", "Double")}


def save_checkpoint(folder, state, name=CHECKPOINT):
    """Keeps `state` in a file of the folder, by torch.save. Raises OSError."""
    write_atomically(Path(folder) / name, lambda file: torch.save(state, file))


def load_best(folder):
    """The state with the lowest validation loss, or that of the last step if none was measured. Raises UserError."""
    return load_checkpoint(folder, name=BEST if os.path.isfile(Path(folder) / BEST) else CHECKPOINT)


def load_checkpoint(folder, rung=None, name=CHECKPOINT):
    """The state that `save_checkpoint` was given, on the CPU; nothing in the file is executed.

    Raises UserError if there is none, if it is damaged, if it would take more memory than the file has bytes, or if it
    is of another rung than `rung`.
    """
    path = Path(folder) / name
    if not os.path.isfile(path):
        raise UserError(f"{path}: there is no checkpoint here")
    try:
        with open(path, "rb") as file:  # once, so that what is checked is what is read
            check(file)
            state = torch.load(file, map_location="cpu", weights_only=True)
        found = str(state["rung"])[:100]
    except Exception as error:  # an untrusted file can raise anything in the unpickler
        raise UserError(f"{path}: not a checkpoint, or a damaged one ({type(error).__name__})") from None
    if rung not in (None, found):
        raise UserError(f"{path}: this is a checkpoint of {found}.py, not of {rung}.py")
    return state


def check(file):
    """Raises an error unless the file is a zip as torch.save writes it: whole, not compressed, of tensors alone."""
    size = file.seek(0, os.SEEK_END)
    with zipfile.ZipFile(file) as parts:
        # torch reads the zip that begins where the file does, and takes DATA.PKL for data.pkl.
        names = {name.lower() for name in parts.namelist()}
        if len(names) < len(parts.namelist()) or min(part.header_offset for part in parts.infolist()):
            raise ValueError("it could be read in two ways")
        if sum(part.file_size for part in parts.infolist()) > size:
            raise ValueError("it would unpack to more than it is")
        if damaged := parts.testzip():
            raise ValueError(f"{damaged} is damaged")
        for name in parts.namelist():
            if name.lower().endswith(".pkl"):
                check_pickle(parts.read(name))
    file.seek(0)


def check_pickle(content):
    """Raises ValueError for objects that our files do not have.

    It also refuses lists that are referred to many times: nested in one another, they take little room in the file and
    practically forever to go through.
    """
    before, kept, again = "", {}, 0  # the operation before this one, what made each object that is kept, uses of them
    for operation, argument, _ in pickletools.genops(content):
        if "GLOBAL" in operation.name and argument not in NAMED:
            raise ValueError(f"it has a {argument}")
        if "PUT" in operation.name:
            kept[argument] = before
        if "GET" in operation.name and kept[argument] not in ("BINUNICODE", "GLOBAL"):
            again += 1
        before = operation.name
    if again > 16:
        raise ValueError("its lists are nested in themselves")


def fitting(ours, theirs, name=CHECKPOINT):
    """The pairs of tensors, ours and theirs, of two nests of dicts and lists.

    Raises ValueError unless they are alike in everything but their numbers: names, types, shapes, dtypes and layouts.
    Weights that are published have half precision; what is float32 with us may be that.
    """
    if isinstance(ours, dict):
        if not isinstance(theirs, dict) or ours.keys() != theirs.keys():
            raise ValueError(f"{name} has other parts")
        return [pair for key in ours for pair in fitting(ours[key], theirs[key], f"{name}: {key}")]
    if type(theirs) is not type(ours):
        raise ValueError(f"{name} is of another type")
    if isinstance(ours, list | tuple):
        if len(ours) != len(theirs):
            raise ValueError(f"{name} has another length")
        return [pair for pair in zip(ours, theirs) for pair in fitting(*pair, name)]
    if not isinstance(ours, torch.Tensor):
        return []
    plain = theirs.layout == torch.strided and theirs.device.type == "cpu" and theirs.is_contiguous()
    published = (ours.dtype, theirs.dtype) == (torch.float32, torch.float16)
    if not plain or theirs.shape != ours.shape or not (theirs.dtype == ours.dtype or published):
        raise ValueError(f"{name} is not a tensor of shape {tuple(ours.shape)} and type {ours.dtype}")
    return [(ours, theirs)]


@torch.no_grad()
def copy_into(ours, theirs):
    """Copies what is in a file into the model's own tensors. Raises ValueError before any of it is copied."""
    for mine, other in fitting(ours, theirs):
        mine.copy_(other)


def make_state(optimizer, saved):
    """Makes the state that an optimizer needs for the parameters named in `saved`, by a step that changes nothing."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        parameter.grad = torch.zeros_like(parameter) if i in saved else None
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros((), device=group["params"][0].device)
    optimizer.step()
    optimizer.zero_grad()
    for group, rate in zip(optimizer.param_groups, rates):
        group["lr"] = rate
