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


def alone(why):
    """Raises UserError if this is one of several processes: each would train the same run over the others."""
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"):
        if (number := os.environ.get(name, "1")) != "1":
            raise UserError(f"{name}={number}: this is one of several processes; {why}")


def join(device):
    """Meets the processes that torchrun started, if it did, and gives the device of this one; only rank 0 prints on.

    On CPUs they exchange tensors by the library gloo, on CUDA devices by nccl. Raises UserError where each cannot have
    a device, or where the processes were started by something else than torchrun.
    """
    if several():
        return device
    if not (distributed.is_available() and distributed.is_torchelastic_launched()):
        alone("start them as torchrun --nproc_per_node N")
        return device
    local, kind = int(os.environ["LOCAL_RANK"]), device.split(":")[0]
    if kind == "mps":
        raise UserError("--device mps: of one process alone; several need cpu or cuda")
    if kind == "cuda":
        if local >= torch.cuda.device_count():
            raise UserError(f"--nproc_per_node is more than the {torch.cuda.device_count()} CUDA devices here")
        device = f"cuda:{local}"
        torch.cuda.set_device(device)
    nccl = kind == "cuda" and distributed.is_nccl_available()  # which Windows lacks
    distributed.init_process_group("cpu:gloo,cuda:nccl" if nccl else "gloo")
    if rank():
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
    return device


def total(value):
    """The sum of a number over the processes, which all wait for it."""
    if not several():
        return value
    value = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(value)
    return value.item()


def mean(value):
    """The mean of a number over the processes, which all wait for it."""
    return total(value) / world_size()


def leave():
    """Takes leave of the other processes, if there are any."""
    if several():
        distributed.destroy_process_group()
