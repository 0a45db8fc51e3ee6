import torch

from .errors import UserError

DTYPES = ("auto", "float32", "bfloat16")


def choose_device(device="auto", dtype="auto"):
    """Where to compute and how precisely, as names: ("cuda:1", "bfloat16"). Prints both with the reason.

    device: auto (cuda, else mps, else cpu), cpu, cuda, cuda:1 or mps. Raises UserError if it is not there.
    dtype: auto (bfloat16 where the hardware is fast at it), float32 or bfloat16.
    """
    why = "as asked"
    if device == "auto":
        # torch.cuda.is_available() asks the driver and makes no context, so nothing is held on a GPU.
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        why = "no CUDA or MPS device found" if device == "cpu" else "the best one found"
    else:
        check(device)
    why_dtype = "as asked"
    if dtype == "auto":
        dtype, why_dtype = fast_dtype(torch.device(device))
    print(f"device {device} ({why}), {dtype} ({why_dtype})", flush=True)
    return device, dtype


def check(device):
    there = ["cpu"] + ["mps"] * torch.backends.mps.is_available()
    if device not in there:
        there += ["cuda"] * torch.cuda.is_available() + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        if device not in there:
            raise UserError(f"--device {device} is not there; this machine has {', '.join(there)}")


def fast_dtype(device):
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return ("bfloat16" if major >= 8 else "float32"), f"compute capability {major}.{minor}"
    if device.type == "cpu":
        # Emulated bfloat16 is several times slower than float32, so only what the CPU does natively counts.
        for name, supported in (("AMX", torch.cpu._is_amx_tile_supported), ("AVX512-BF16", torch.cpu._is_avx512_bf16_supported)):
            if supported():
                return "bfloat16", f"this CPU has {name}"
        return "float32", "this CPU has neither AMX nor AVX512-BF16"
    return "float32", f"bfloat16 is not faster on {device.type}"
