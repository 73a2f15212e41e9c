"""Is this machine enough for what a notebook will do? Asked before anything is downloaded, and without the network.

`check_machine` prints what the machine is, which packages differ from those that the suite is tested with, and, for each
stage, the memory of `helpers/machine/memory.py` and the minutes of `helpers/machine/duration.py`, both arithmetic on the model's shapes. A
batch that does not fit is made smaller, and then the images (`helpers/machine/fitting.py`). The first cell of every notebook.

Simplifications: a download that was begun counts as done; packages are compared by the first two numbers of their versions.
"""

import importlib.metadata
import importlib.util
import math
import os
import platform
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import torch
from huggingface_hub import constants
from packaging.version import Version

from helpers.config import DPOSettings, PPOSettings, RewardSettings
from helpers.files import ROOT, artifacts_dir
from helpers.machine import memory
from helpers.machine.duration import StageSeconds, measure_rates
from helpers.machine.fitting import changed_fields, fit_images, fit_settings, largest_image
from helpers.machine.memory import BATCH_FIELDS, USABLE_SHARE, GenerationSettings, PhaseMemory, StageSettings
from helpers.models.presets import preset_of
from helpers.models.shapes import default_max_pixels, is_known, shapes_of, visual_tokens, weight_bytes
from helpers.runtime import compute_dtype

# Lowest and highest version that the suite is tested with: Colab's of August 2026 where it keeps its own, and those of
# constraints.txt. Only the first two numbers count: a patch is taken to change nothing.
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
OPTIONAL_PACKAGES = {"bitsandbytes", "unsloth"}  # do not exist everywhere
TESTED_PYTHON = ("3.11", "3.13")
SPARE_DISK_GB = 2.0  # GB of disk for artifacts


@dataclass
class MachinePlan:
    """Settings that fit this machine; those that fitted already are as they were given."""

    load: GenerationSettings
    dpo: DPOSettings | None = None
    reward: RewardSettings | None = None
    ppo: PPOSettings | None = None
    max_pixels: int | None = None  # for `load_model`; None: the model's own limit, or none at all
    memory: dict[str, PhaseMemory] = field(default_factory=dict)  # by stage
    largest: dict[str, int] = field(default_factory=dict)  # batch that fits
    minutes: dict[str, float] = field(default_factory=dict)  # about, from arithmetic
    warnings: list[str] = field(default_factory=list)


def check_machine(
    model: str | Path = "tiny",
    *,
    image: tuple[int, int] = (1024, 1024),
    max_pixels: int | None = None,
    load: GenerationSettings | None = None,
    dpo: DPOSettings | None = None,
    reward: RewardSettings | None = None,
    ppo: PPOSettings | None = None,
    examples: int = 500,
    four_bit: bool = True,
    **options: int,
) -> MachinePlan:
    """Print what this machine is and what the given stages will take on it; the plan holds settings that fit.

    image: width and height in pixels. max_pixels: that images are reduced to (default: the model's own limit); the plan's
    is smaller if the smallest batch does not fit. load: answers generated at once (default: `generate_answers`'s).
    examples: records trained on. options: prompt_tokens, answer_tokens and answers of `memory.phases`. Raises UsageError
    naming the presets that fit if the smallest batch of a stage does not.
    """
    name, on_gpu = str(model), torch.cuda.is_available()
    four_bit = four_bit and importlib.util.find_spec("bitsandbytes") is not None
    options |= {"width": image[0], "height": image[1], "max_pixels": max_pixels}
    options |= {"four_bit": four_bit, "compute_bytes": 2 if on_gpu else 4}
    plan = MachinePlan(load or GenerationSettings(), dpo, reward, ppo, max_pixels)
    free, total = available_gb()  # asked once: images and batches are to fit into the same
    rows = _machine_rows(plan, free, total)
    if is_known(name):
        rows.append(_disk_row(download_gb(name, four_bit and on_gpu), plan))
        rows.append(_images_row(name, plan, free, options))
    else:
        plan.warnings.append(f"no forecast for {name}: only presets and checkpoints in a folder have one.")
    print("\n".join(f"{label:<12}{text}" for label, text in rows))
    if is_known(name):
        print(_stage_table(name, plan, free, examples, options))
    print("".join(f"⚠️  {warning}\n" for warning in plan.warnings), end="")
    return plan


def available_gb() -> tuple[float, float]:
    """GB that a run can have, and all there are: of the GPU, else of RAM. What this process holds counts as free, since a
    notebook that starts anew lets go of it."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        return (free + torch.cuda.memory_reserved()) / 1e9, total / 1e9
    ram = psutil.virtual_memory()
    return (ram.available + psutil.Process().memory_info().rss) / 1e9, ram.total / 1e9


def _machine_rows(plan: MachinePlan, free: float, total: float) -> list[tuple[str, str]]:
    if torch.cuda.is_available():
        capability = ".".join(map(str, torch.cuda.get_device_capability()))
        place, kind = f"{torch.cuda.get_device_properties(0).name}, compute capability {capability}", "GPU memory"
    else:
        place, kind = f"CPU, {torch.get_num_threads()} threads", "RAM"
    rows = [
        ("device", place),
        ("memory", f"{free:.1f} GB of {total:.1f} GB {kind} are free"),
        ("computes in", _dtype()),
    ]
    if colab := os.environ.get("COLAB_RELEASE_TAG"):
        kept = artifacts_dir().resolve().is_relative_to("/content/drive") or os.path.ismount("/content/drive")
        rows.append(("Colab", f"{colab}, Drive is {'mounted' if kept else 'not mounted'}"))
        if not kept:
            plan.warnings.append("Drive is not mounted: artifacts and checkpoints are lost with this session.")
    off = untested_versions()
    plan.warnings += off
    rows.append(("versions", f"{len(off)} not as tested, see below" if off else f"as tested, {_versions()}"))
    return rows


def _dtype() -> str:
    dtype = compute_dtype()
    reasons = {
        torch.float16: "this GPU only emulates bfloat16 (its compute capability is below 8.0)",
        torch.bfloat16: "this GPU has it in hardware",
        torch.float32: "there is no GPU",
    }
    return f"{str(dtype).removeprefix('torch.')}: {reasons[dtype]}"


def _versions() -> str:
    return f"Python {platform.python_version()}, torch {torch.__version__}, transformers {_version('transformers')}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def untested_versions() -> list[str]:
    """A sentence for Python and each package that is missing or not among the tested versions."""
    found = {"Python": platform.python_version()} | {package: _version(package) for package in TESTED_VERSIONS}
    off = []
    for package, (low, high) in ({"Python": TESTED_PYTHON} | TESTED_VERSIONS).items():
        version = found[package]
        if version is None:
            off += [] if package in OPTIONAL_PACKAGES else [f"{package} is not installed: run the set-up cell again."]
        elif not Version(low).release <= Version(version).release[:2] <= Version(high).release:
            tested = low if low == high else f"{low} to {high}"
            off.append(f"{package} {version}: tested is {tested}. If something fails, install that first.")
    return off


def _disk_row(download: float, plan: MachinePlan) -> tuple[str, str]:
    """Artifacts need some disk, and so does a download into the hub's cache, which may be another disk."""
    artifacts, cache = artifacts_dir(), Path(constants.HF_HUB_CACHE)
    cache = next(folder for folder in (cache, *cache.parents) if folder.exists())
    needs = {artifacts: SPARE_DISK_GB, cache: download}
    if _disk(artifacts) == _disk(cache):
        needs = {artifacts: sum(needs.values())}
    free = {folder: shutil.disk_usage(folder).free / 1e9 for folder in needs}
    for folder, need in needs.items():
        if free[folder] < need:
            plan.warnings.append(f"disk: {free[folder]:.1f} GB free at {folder}, {need:.1f} GB are needed. Make room.")
    place = artifacts.relative_to(ROOT) if artifacts.is_relative_to(ROOT) else artifacts
    return "disk", f"{free[artifacts]:.1f} GB free at {place}, {sum(needs.values()):.1f} GB are needed"


def _disk(folder: Path) -> int:
    return folder.stat().st_dev


def download_gb(name: str, quantised: bool) -> float:
    """GB that loading will fetch: 0 if the checkpoint is on this machine. `quantised`: the 4-bit copy, if there is one."""
    preset = preset_of(name)
    if preset is None or (ROOT / preset.location).is_dir():
        return 0.0
    copy = quantised and preset.four_bit is not None
    source = preset.four_bit if copy else preset.location
    if (Path(constants.HF_HUB_CACHE) / f"models--{source.replace('/', '--')}").is_dir():
        return 0.0
    return weight_bytes(shapes_of(name), four_bit=copy) / 1e9


def _images_row(name: str, plan: MachinePlan, budget: float, options: dict) -> tuple[str, str]:
    """Chooses `max_pixels`; larger ones that would fit are only told."""
    stages = {stage: given for stage in BATCH_FIELDS if (given := getattr(plan, stage)) is not None}
    asked, size = options["max_pixels"], (options["width"], options["height"])
    plan.max_pixels = options["max_pixels"] = fit_images(name, stages, budget, options)
    tokens, limit = visual_tokens(name, *size, plan.max_pixels), plan.max_pixels or default_max_pixels(name)
    text = f"{size[0]} × {size[1]} pixels are {tokens:,} visual tokens"
    if plan.max_pixels != asked:
        before = asked or default_max_pixels(name)
        plan.warnings.append(
            f"images are reduced to {limit:,} instead of {before:,} pixels, {tokens:,} visual tokens instead of "
            f"{visual_tokens(name, *size, asked):,}, so that the smallest batch fits. Small things may be lost to sight."
        )
    if limit:
        text += f" (max_pixels {limit:,})"
    if limit and (most := largest_image(name, stages, budget, options)) > limit:
        side = math.isqrt(most)
        text += f"; up to {visual_tokens(name, side, side, most):,} would fit (max_pixels {most:,})"
    return "images", text


def _stage_table(name: str, plan: MachinePlan, budget: float, examples: int, options: dict) -> str:
    model = shapes_of(name)
    seconds = StageSeconds(name, measure_rates(model.hidden, model.intermediate), options)
    most = f"GB of {USABLE_SHARE * budget:.1f}"
    lines = [f"\n{name:<12}{most:>14}{'largest batch':>16}{'minutes*':>10}  changed to fit"]
    for stage in BATCH_FIELDS:
        given = getattr(plan, stage)
        if given is None:
            continue
        fitting, largest = fit_settings(name, stage, given, budget, options)
        setattr(plan, stage, fitting)
        plan.largest[stage], plan.memory[stage] = largest, memory.forecast_memory(name, stage, fitting, **options)
        plan.minutes[stage] = getattr(seconds, stage)(fitting, examples) / 60
        cells = f"{plan.memory[stage].total:>14.1f}{largest:>16}{plan.minutes[stage]:>10.1f}"
        lines.append(f"{stage:<12}{cells}  {_changes(given, fitting)}")
        if stage == "ppo" and (need := _long_answers(name, fitting, options)) > USABLE_SHARE * budget:
            plan.warnings.append(
                f"ppo: answers that use all of max_new_tokens = {fitting.max_new_tokens} would take {need:.1f} GB. "
                "Lower it, or mini_batch, if the model does not come to an end."
            )
    return "\n".join(
        [*lines, "* about, from arithmetic; load: one batch of answers, halved again while running if it does not fit"]
    )


def _long_answers(name: str, settings: PPOSettings, options: dict) -> float:
    return memory.forecast_memory(name, "ppo", settings, **options | {"answer_tokens": settings.max_new_tokens}).total


def _changes(before: StageSettings, after: StageSettings) -> str:
    rows = changed_fields(before, after).items()
    return ", ".join(f"{name} {getattr(before, name)} → {value}" for name, value in rows) or "–"
