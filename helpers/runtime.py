"""What every stage needs from the machine: device, dtype, threads, seeds, memory, tolerances."""

import functools
import hashlib
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import psutil
import torch

from .files import UsageError

# So many times as fast must all threads be as one to be taken: they may gain 1.3 on layers of the
# tiny model, and lose 3 to 25 as soon as another program runs.
THREAD_GAIN = 1.5
THREAD_ROUNDS = 3  # of each kind, in turn, so that what else runs slows both

DEVICES = ("cuda", "mps", "cpu")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def tensors_hash(tensors: Iterable[tuple[str, torch.Tensor]]) -> str:
    """Hash of named tensors, in order: their names and bytes (BLAKE2b, 128 bits)."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in tensors:
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(name.encode() + data.numpy().tobytes())
    return digest.hexdigest()


def device() -> torch.device:
    """Return where models are: on a GPU if there is one, else on the CPU.

    VLM_DEVICE names another: cpu, or mps, the GPU of an Apple computer. That one is not taken by
    itself, since these models have not been run on one. Raises UsageError for an unknown name.
    """
    asked = os.environ.get("VLM_DEVICE") or ("cuda" if torch.cuda.is_available() else "cpu")
    if asked not in DEVICES:
        raise UsageError(f"VLM_DEVICE={asked}: no such device. Choose {', '.join(DEVICES)}.")
    if asked == "mps" and not torch.backends.mps.is_available():
        raise UsageError("VLM_DEVICE=mps: PyTorch finds no GPU of Apple here. Leave it out.")
    return torch.device(asked)


def has_cuda() -> bool:
    """Are models on a GPU of NVIDIA (or AMD) here?"""
    return device().type == "cuda"


def compute_dtype() -> torch.dtype:
    """Return fp32 on a CPU or Apple's GPU, bf16 on a GPU that has it in hardware, else fp16.

    VLM_DTYPE names another (fp32, bf16, fp16), such as bf16 for a CPU that is fast at it.
    `torch.cuda.is_bf16_supported()` is True on a T4, which only emulates bf16, so the compute
    capability decides: ≥ (8, 0). Raises UsageError for an unknown name.
    """
    asked = os.environ.get("VLM_DTYPE")
    if asked and asked not in DTYPES:
        raise UsageError(f"VLM_DTYPE={asked}: no such precision. Choose {', '.join(DTYPES)}.")
    if asked:
        return DTYPES[asked]
    if not has_cuda():
        return torch.float32
    return torch.bfloat16 if torch.cuda.get_device_capability() >= (8, 0) else torch.float16


@functools.cache
def choose_threads(width: int) -> None:
    """Compute on one thread of a CPU, unless all are much faster on layers of this width; say so.

    Called when a model is loaded, once for each width. Nothing is measured or changed where
    OMP_NUM_THREADS is set, and `torch.set_num_threads` after it counts. How a sum is shared among
    threads can change its last bits: for figures that are equal on every machine and under every
    load, set OMP_NUM_THREADS=1 before Python starts.
    """
    threads = torch.get_num_threads()
    if has_cuda() or "OMP_NUM_THREADS" in os.environ or threads == 1:
        return
    # one layer and its gradient; filled, as random weights would move the seeds of what follows
    tokens = torch.ones(256, width)
    up = torch.full((width, 4 * width), 1 / width, requires_grad=True)
    down = torch.full((4 * width, width), 1 / width, requires_grad=True)
    seconds: dict[int, list[float]] = {1: [], threads: []}
    for _ in range(THREAD_ROUNDS):
        for number, taken in seconds.items():
            torch.set_num_threads(number)
            started = time.perf_counter()
            (torch.nn.functional.silu(tokens @ up) @ down).sum().backward()
            taken.append(time.perf_counter() - started)
    gain = statistics.median(seconds[1]) / statistics.median(seconds[threads])
    chosen = threads if gain >= THREAD_GAIN else 1
    torch.set_num_threads(chosen)
    print(
        f"CPU: {chosen} of {threads} threads, as all are {gain:.1f} times as fast as one here "
        "(OMP_NUM_THREADS sets another number)."
    )


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def peak_memory_gb() -> float:
    """Peak memory of this process in GB (10⁹ bytes): of the GPU if there is one, else resident."""
    if has_cuda():
        return torch.cuda.max_memory_allocated() / 1e9
    if sys.platform == "win32":
        return psutil.Process().memory_info().peak_wset / 1e9
    if sys.platform == "linux":
        # In KiB. `ru_maxrss` would start with what the process had that started this one
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1e9
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9  # bytes on macOS


def machine_summary() -> str:
    """One line: device, cores or GPU memory, dtype, versions that matter."""
    if has_cuda():
        properties = torch.cuda.get_device_properties(0)
        place = f"{properties.name}, {properties.total_memory / 1e9:.1f} GB"
    else:
        place = f"CPU, {torch.get_num_threads()} threads"
    return f"{place}, {str(compute_dtype()).removeprefix('torch.')}, torch {torch.__version__}"


# --- how far rounding reaches ---


class Tolerances(NamedTuple):
    """How far apart a figure may be that is computed twice, such as in batches of other sizes."""

    relative: float  # hidden states and logits, of their norm
    nats: float  # the log-probability of a token, or of an answer of a sentence or two
    score: float  # of a reward model, of 1 + its size


# The one place for tolerances. Each precision has its own, as each rounds to another number of
# bits; with weights in 4 bits it is that in which they are multiplied. They allow some three times
# the largest figure, in brackets, of SmolLM2-135M in SmolVLM (30 layers): 18 answers of 22 tokens,
# packed and in a row each. `python benchmarks/rounding.py MODEL` measures a model.
TOLERANCES = {
    # 24 bits (2e-6, 1e-5, 2e-6), which other machines and matrices may round more
    torch.float32: Tolerances(relative=1e-4, nats=1e-3, score=1e-3),
    # 11 bits (4e-3, 0.03, 3e-3)
    torch.float16: Tolerances(relative=2e-2, nats=0.1, score=0.02),
    # 8 bits (3e-2, 0.3, 0.05)
    torch.bfloat16: Tolerances(relative=0.1, nats=0.8, score=0.15),
}


def precision_of(model: torch.nn.Module) -> torch.dtype:
    """The coarsest type in which `model` computes: that of its weights, or of mixed precision."""
    kinds = {compute_dtype(), *(weight.dtype for weight in model.parameters())}
    # weights in 4 bits are multiplied in a type of their own
    kinds |= {getattr(module, "compute_dtype", None) for module in model.modules()}
    return max(kinds & TOLERANCES.keys(), key=lambda kind: torch.finfo(kind).eps)


def tolerances_of(model: torch.nn.Module) -> Tolerances:
    """What rounding explains in figures of `model`."""
    return TOLERANCES[precision_of(model)]
