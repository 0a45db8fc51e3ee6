"""The processes that torchrun started, if it did: alike in weights, each with its share of every batch."""

import os
import sys

import torch
from torch import distributed

from .errors import UserError


def several():
    """Whether this process has joined those of torchrun."""
    return distributed.is_available() and distributed.is_initialized()


def rank():
    """Which of the processes this is; 0 writes what a run leaves."""
    return distributed.get_rank() if several() else 0


def world_size():
    """How many processes there are."""
    return distributed.get_world_size() if several() else 1


def join(device):
    """Meets the processes that torchrun started, if it did, and gives the device of this one; only rank 0 prints on.

    They speak over gloo, tensors on CUDA over nccl. Raises UserError where each cannot have a device.
    """
    if not (distributed.is_available() and distributed.is_torchelastic_launched()) or several():
        return device
    local, kind = int(os.environ["LOCAL_RANK"]), device.split(":")[0]
    if kind == "mps":
        raise UserError("--device mps: of one process alone; several need cpu or cuda")
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"--nproc_per_node is more than the {torch.cuda.device_count()} CUDA devices here")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    distributed.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return device


def mean(value):
    """The mean of a number over the processes, which all wait for it."""
    if not several():
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return total.item() / world_size()


def leave():
    """Takes leave of the other processes, if there are any."""
    if several():
        distributed.destroy_process_group()
