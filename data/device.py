import platform
from pathlib import Path

import torch

from .errors import UserError
from .processes import total

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

    name: auto, float32 or bfloat16. A rule, not a measurement, so that a command gives the same bits every time.
    """
    if name != "auto":
        return name, "as asked"
    if device.startswith("cuda"):
        major, minor = torch.cuda.get_device_capability(device)
        return "bfloat16" if major >= 8 else "float32", f"compute capability {major}.{minor}"
    if device != "cpu":
        return "float32", f"{device} is not faster in bfloat16"
    fast, why = cpu_is_fast_in_bfloat16()
    if total(not fast):  # of several processes, all or none
        return "float32", why if not fast else "another process's CPU is slow in bfloat16"
    return "bfloat16", why


def cpu_is_fast_in_bfloat16():
    """Whether the CPU is, and why we think so.

    Without instructions of its own for it, a CPU was up to 600 times slower than in float32. AMX is fast. AVX512-BF16
    was 2.7 to 4.5 times as fast as float32 on AMD's EPYC, but half as fast on an Intel Xeon.
    """
    try:
        cpu = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        cpu = platform.processor()  # the maker's name alone
    if "amx_bf16" in cpu:
        return True, "the CPU has AMX"
    if "avx512_bf16" not in cpu:
        return False, "the CPU has neither AMX nor AVX512-BF16, as far as the system tells"
    if "GenuineIntel" in cpu:
        return False, "the CPU has AVX512-BF16, but Intel's without AMX are slow in it"
    return True, "the CPU has AVX512-BF16"
