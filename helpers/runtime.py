"""What every stage needs from the machine: device, dtype, seeds, memory."""

import hashlib
import random
import sys
from collections.abc import Iterable

import numpy as np
import psutil
import torch


def tensors_hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash of named tensors, in order: their names and bytes (BLAKE2b, 128 bits)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + data.numpy().tobytes())
    return digest.hexdigest()


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype() -> torch.dtype:
    """fp32 on a CPU, bf16 on a GPU that has it in hardware, else fp16.

    `torch.cuda.is_bf16_supported()` is True on a T4, which only emulates bf16, so the compute
    capability decides: ≥ (8, 0).
    """
    if not torch.cuda.is_available():
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def peak_memory_gb() -> float:
    """Peak memory of this process in GB (10⁹ bytes): GPU memory if there is a GPU, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    import resource  # not on Windows

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024) / 1e9  # bytes on macOS, KiB on Linux


def machine_summary() -> str:
    """One line: device, cores or GPU memory, dtype, versions that matter."""
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        place = f"{properties.name}, {properties.total_memory / 1e9:.1f} GB"
    else:
        place = f"CPU, {torch.get_num_threads()} threads"
    return f"{place}, {str(compute_dtype()).removeprefix('torch.')}, torch {torch.__version__}"
