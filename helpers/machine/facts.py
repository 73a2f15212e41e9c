"""What this machine is: its device and memory, the versions of packages, and its disks.

All that `helpers/machine/fits.py` plans with is measured here, once, and without the network.

Simplifications: a download that was begun counts as done; packages are compared by the first two
numbers of their versions.
"""

import importlib.metadata
import os
import platform
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants
from packaging.version import Version

from helpers.files import ROOT, artifacts_dir
from helpers.install import COLAB, hosted_machine
from helpers.models import preset_of, shapes_of, weight_bytes
from helpers.runtime import compute_dtype, has_cuda

# Lowest and highest version that the suite is tested with: Colab's of August 2026 where it keeps
# its own, and those of constraints.txt. Only the first two numbers count: a patch is taken to
# change nothing.
TESTED_VERSIONS = {
    "torch": ("2.11", "2.14"),
    "torchvision": ("0.26", "0.29"),
    "transformers": ("5.15", "5.17"),
    "accelerate": ("1.14", "1.15"),
    "peft": ("0.20", "0.21"),
    "trl": ("1.14", "1.14"),
    "datasets": ("4.8", "4.8"),
    "numpy": ("2.1", "2.5"),
    "pillow": ("11.3", "13.0"),
    "bitsandbytes": ("0.50", "0.50"),
    "unsloth": ("2026.10", "2026.10"),
}
TESTED_PYTHON = ("3.11", "3.13")

# These do not exist for every machine
OPTIONAL_PACKAGES = {"bitsandbytes", "unsloth"}

# GB of disk for the artifacts of all notebooks
SPARE_DISK_GB = 2.0


@dataclass(frozen=True)
class DiskSpace:
    """A disk that something is written to."""

    folder: Path
    free_gb: float
    needed_gb: float


@dataclass(frozen=True)
class MachineFacts:
    """What was measured of this machine."""

    device: str  # a GPU's name and compute capability, or a CPU's threads
    memory: str  # which the numbers below are of: "GPU memory" or "RAM"
    free_gb: float  # that a run can have
    total_gb: float
    dtype: torch.dtype  # computed in
    versions: Mapping[str, str | None]  # of Python and of each tested package; None: not installed
    colab: str  # Colab's release; empty elsewhere
    on_drive: bool  # artifacts outlive a Colab session
    disks: tuple[DiskSpace, ...]  # that of the artifacts first; empty: model's size not known


def measure_machine(download: float | None) -> MachineFacts:
    """Measure this machine.

    download: GB that loading will fetch (`download_gb`); None: not known.
    """
    device = f"CPU, {torch.get_num_threads()} threads"
    memory = "RAM"
    if has_cuda():
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        name = torch.cuda.get_device_properties(0).name
        device = f"{name}, compute capability {capability}"
        memory = "GPU memory"
    # Artifacts are there, or `use_drive` copies them there
    drive = Path("/content/drive")
    on_drive = artifacts_dir().resolve().is_relative_to(drive) or os.path.ismount(drive)
    free, total = available_gb()
    return MachineFacts(
        device=device,
        memory=memory,
        free_gb=free,
        total_gb=total,
        dtype=compute_dtype(),
        versions=versions_in_use(),
        colab=os.environ.get("COLAB_RELEASE_TAG", "") if hosted_machine() is COLAB else "",
        on_drive=on_drive,
        disks=() if download is None else measure_disks(download),
    )


def available_gb() -> tuple[float, float]:
    """Return the GB that a run can have, and all there are: of the GPU, else of RAM.

    What this process holds counts as free, since a notebook that starts anew lets go of it.
    """
    if has_cuda():
        free, total = torch.cuda.mem_get_info()
        return (free + torch.cuda.memory_reserved()) / 1e9, total / 1e9
    ram = psutil.virtual_memory()
    return (ram.available + psutil.Process().memory_info().rss) / 1e9, ram.total / 1e9


def installed_version(package: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions_in_use() -> dict[str, str | None]:
    """Return the versions of Python and of each tested package; None: not installed."""
    packages = {package: installed_version(package) for package in TESTED_VERSIONS}
    return {"Python": platform.python_version()} | packages


def untested_versions(installed: Mapping[str, str | None]) -> list[str]:
    """Return a sentence for Python and each package that is missing or not as tested."""
    off = []
    for package, (low, high) in ({"Python": TESTED_PYTHON} | TESTED_VERSIONS).items():
        version = installed[package]
        if version is None:
            if package not in OPTIONAL_PACKAGES:
                off.append(f"{package} is not installed: run the set-up cell again.")
            continue
        numbers = Version(version).release[:2]
        if not Version(low).release <= numbers <= Version(high).release:
            tested = low if low == high else f"{low} to {high}"
            off.append(
                f"{package} {version}: tested is {tested}. If something fails, install that first."
            )
    return off


def download_gb(name: str, quantised: bool) -> float:
    """Return the GB that loading will fetch: 0 if the checkpoint is on this machine.

    `quantised`: the 4-bit copy, if there is one.
    """
    preset = preset_of(name)
    if preset is None or (ROOT / preset.location).is_dir():
        return 0.0
    copy = quantised and preset.four_bit is not None
    source = preset.four_bit if copy else preset.location
    folder = f"models--{source.replace('/', '--')}"  # as the hub's library names it
    if (Path(constants.HF_HUB_CACHE) / folder).is_dir():
        return 0.0
    return weight_bytes(shapes_of(name), four_bit=copy) / 1e9


def device_number(folder: Path) -> int:
    """Return the number of the disk that a folder is on."""
    return folder.stat().st_dev


def measure_disks(download: float) -> tuple[DiskSpace, ...]:
    """Return the disks that a run writes to, that of the artifacts first.

    A download goes into the hub's cache, which may be on another disk. download: its GB.
    """
    artifacts = artifacts_dir()
    cache = Path(constants.HF_HUB_CACHE)
    while not cache.exists():  # it is made by the first download
        cache = cache.parent
    needs = {artifacts: SPARE_DISK_GB, cache: download}
    if device_number(artifacts) == device_number(cache):
        needs = {artifacts: SPARE_DISK_GB + download}
    disks = []
    for folder, need in needs.items():
        disks.append(DiskSpace(folder, shutil.disk_usage(folder).free / 1e9, need))
    return tuple(disks)
