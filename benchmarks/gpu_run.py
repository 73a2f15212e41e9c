"""How the parts of `benchmarks/gpu.py` run: what is asked of them, and a process for each.

Imports no model: which loader a part has is decided here, before it is imported.
"""

import importlib
import json
import math
import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from helpers.files import write_json

Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    preset: str
    gigabytes: float | None  # 10⁹ bytes of GPU memory; None: all of it
    dtype: str  # fp16 or bf16; a CPU computes in fp32
    steps: int  # of DPO
    iterations: int  # of PPO
    toy: bool
    folder: Path | None  # where checkpoint, images, adapters and logs go

    @property
    def side(self) -> int:
        """Of the images, in pixels."""
        return 112 if self.toy else 448


@dataclass(frozen=True)
class Part:
    what: str  # a function of benchmarks/gpu_parts.py
    backend: str  # transformers or unsloth
    limit: float  # seconds

    @property
    def name(self) -> str:
        return (
            self.what if self.what in ("checkpoint", "exchange") else f"{self.what}_{self.backend}"
        )


class Notes:
    """Figures of a part; what is noted is on disk at once, so that a crash loses only what was to
    come.
    """

    def __init__(self, path: Path):
        self.path, self.row = path, {}

    def __call__(self, **figures: Any) -> None:
        self.row |= figures
        write_json(self.path, tidy(self.row))


def tidy(value: Any) -> Any:
    """Sorted by name, floats with 4 digits, and what is no number in JSON as text: "nan", "inf"."""
    if isinstance(value, Mapping):
        return {str(key): tidy(value[key]) for key in sorted(value, key=str)}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else str(value)
    return value


def in_process(
    target: Callable[..., None], arguments: tuple, log: Path, leader: bool = True
) -> BaseProcess:
    """`target(*arguments)` begun in a process of its own, which writes to the file `log`.

    leader: of a process group, which whatever it starts belongs to. Without a GPU the process is
    forked, so that nothing has to be imported again; with one it begins afresh, as CUDA wants.
    """
    fork = not torch.cuda.is_available() and sys.platform == "linux"
    context = multiprocessing.get_context("fork" if fork else "spawn")
    process = context.Process(target=_enter, args=(target, arguments, log, leader))
    process.start()
    return process


def _enter(target: Callable[..., None], arguments: tuple, log: Path, leader: bool) -> None:
    if leader:
        os.setsid()
    with log.open("wb") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    try:
        target(*arguments)
    except Exception as error:
        traceback.print_exc(file=sys.__stderr__)
        last = "".join(traceback.format_exception_only(error)).strip().splitlines()[-1]
        log.with_suffix(".error").write_text(
            last, encoding="utf-8"
        )  # a progress bar may yet write to the log
        sys.exit(1)


def run_part(target: Callable[..., None], arguments: tuple, out: Path, limit: float) -> Row:
    """What `target(*arguments, note)` noted within `limit` seconds; if it fails, with the `error`'s
    last line.
    """
    started, log = time.perf_counter(), out.with_suffix(".log")
    process = in_process(target, (*arguments, Notes(out)), log)
    try:
        process.join(limit)
    finally:  # also if this process is interrupted
        late = process.is_alive()
        if late:
            _kill(process)
    row = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    row["process_seconds"] = time.perf_counter() - started
    if late:
        row["error"] = f"not ready after {limit:.0f} s"
    elif process.exitcode:
        row["error"] = _last_line(log, process.exitcode)
    return row


def _kill(process: BaseProcess) -> None:
    """It, and what it has started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it is not yet the leader of its group
        process.kill()
    process.join()


def _last_line(log: Path, code: int) -> str:
    path = next((path for path in (log.with_suffix(".error"), log) if path.exists()), None)
    text = path.read_text(encoding="utf-8", errors="replace") if path else ""
    lines = text.strip().splitlines() or ["it wrote nothing"]
    killed = f"killed by {signal.Signals(-code).name}: " if code < 0 else ""
    return (killed + lines[-1].strip())[:300]


def work(part: Part, plan: Plan, note: Notes | None) -> None:
    """A part, in its own process: unsloth changes other libraries as it is imported, so it is kept
    out elsewhere.
    """
    os.chdir(plan.folder)  # unsloth writes what it compiles to where it is
    prepare, functions = import_parts(part.backend)
    prepare(plan, capped=part.what != "checkpoint")
    functions[part.what](plan, note, part.backend)


def import_parts(backend: str) -> tuple[Callable[..., None], Mapping[str, Callable[..., None]]]:
    """What prepares a process, and all parts by name; with what they import, unsloth only if it is
    wanted.
    """
    for name in ("HF_HUB_OFFLINE", "UNSLOTH_DISABLE_STATISTICS"):
        os.environ.setdefault(name, "1")  # nothing here needs a network
    if backend != "unsloth":
        # "not installed", for those who look for it
        sys.modules["unsloth"] = None  # type: ignore[assignment]
    # by name: both import this module
    prepare = importlib.import_module("benchmarks.gpu_model").prepare
    return prepare, importlib.import_module("benchmarks.gpu_parts").PARTS
