import torch

from .errors import UserError

DTYPES = ("auto", "float32", "bfloat16")


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
        return "cpu", "found no CUDA or MPS device"
    if name != "cpu":
        there = ["cpu"] + ["mps"] * torch.backends.mps.is_available()
        if torch.cuda.is_available():
            there += ["cuda"] + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if name not in there:
            raise UserError(f"--device {name}: not on this machine, which has {', '.join(there)}")
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
        # Without such instructions bfloat16 is emulated, several times slower than float32.
        if torch.cpu._is_amx_tile_supported():
            return "bfloat16", "the CPU has AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return "bfloat16", "the CPU has AVX512-BF16"
        return "float32", "the CPU has neither AMX nor AVX512-BF16"
    return "float32", f"{device} is not faster in bfloat16"
