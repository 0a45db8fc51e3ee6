import time

import torch

from .errors import UserError
from .processes import mean, total

DTYPES = ("auto", "float32", "bfloat16")
BUILT = torch.version.cuda or torch.version.hip  # AMD's GPUs are "cuda" too
WITHOUT_CUDA = "" if BUILT else "; this torch is built without CUDA, pytorch.org/get-started has others"


def choose_device(name="auto"):
    """The device to compute on and why, as in ("cuda:1", "as asked").

    name: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1, mps. Raises UserError if it is not on this machine.
    """
    if name == "auto":
        # is_available() asks the driver; it makes no context and holds no memory on a GPU that is then not used.
        if torch.cuda.is_available():
            return "cuda", "found"
        if torch.backends.mps.is_available():
            return "mps", "found, and no CUDA device"
        return "cpu", f"found no CUDA or MPS device{WITHOUT_CUDA}"
    if name != "cpu":
        there = ["cpu"] + ["mps"] * torch.backends.mps.is_available()
        if torch.cuda.is_available():
            there += ["cuda"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if name not in there:
            why = WITHOUT_CUDA if name.startswith("cuda") else ""
            raise UserError(f"--device {name}: not on this machine, which has {', '.join(there)}{why}")
    return name, "as asked"


def choose_dtype(name, device):
    """The precision of the matrix products on `device` and why: bfloat16 where the hardware is fast at it.

    name: auto, float32 or bfloat16.
    """
    if name != "auto":
        return name, "as asked"
    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        return "bfloat16" if major >= 8 else "float32", f"compute capability {major}.{minor}"
    if device == "cpu":
        amx = torch.cpu._is_amx_tile_supported()
        lacking = not amx and not torch.cpu._is_avx512_bf16_supported()
        if total(lacking):  # emulated, up to 600 times slower; of several processes, none takes it then
            return "float32", "the CPU has neither AMX nor AVX512-BF16"
        # Some CPUs have the instructions and are slower in them. Processes take their mean, so that they agree.
        ratio = mean(bfloat16_speed())
        why = f"the CPU has {'AMX' if amx else 'AVX512-BF16'}, where bfloat16 is {ratio:.1f} times as fast as float32"
        return "bfloat16" if ratio > 1.3 else "float32", why
    return "float32", f"{device} is not faster in bfloat16"


def bfloat16_speed():
    """How many times as fast as in float32 the CPU multiplies matrices in bfloat16, the best of five of each."""
    best = []
    for dtype in (torch.float32, torch.bfloat16):
        a, seconds = torch.ones(512, 512, dtype=dtype), []
        for _ in range(5):
            start = time.perf_counter()
            a @ a
            seconds.append(time.perf_counter() - start)
        best.append(min(seconds))
    return best[0] / best[1]
