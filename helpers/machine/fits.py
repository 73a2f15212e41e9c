"""Is this machine enough for what a notebook will do?

Asked before anything is downloaded, and without the network. `check_machine`, which every notebook
calls first, prints what the machine is (`helpers/machine/facts.py`), which packages differ from
those that the suite is tested with, and, for each stage, the memory of `helpers/machine/memory.py`
and the minutes of `helpers/machine/duration.py`, both arithmetic on the model's shapes. A batch
that does not fit is made smaller, and then the images (`helpers/machine/fitting.py`).

A plan is made by pure functions (`plan_images`, `plan_stages`), and written out by others
(`machine_text`, `stages_text`). Only `check_machine` measures and prints.
"""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from helpers.config import DPOSettings, PPOSettings, RewardSettings, SFTSettings
from helpers.files import ROOT
from helpers.models import has_four_bits, in_four_bits, is_known, visual_tokens
from helpers.runtime import choose_threads, compute_dtype, has_cuda

from .duration import StageSeconds
from .facts import MachineFacts, download_gb, measure_machine, untested_versions
from .fitting import changed_fields, fit_images, fit_settings, largest_image
from .memory import USABLE_SHARE, PhaseMemory, forecast_memory
from .speed import MachineSpeed, bf16_gain, measure_speed
from .workload import GenerationSettings, StageSettings, Workload, stage_of

# Why a machine computes in this precision, as `runtime.compute_dtype` chooses it
DTYPE_REASONS = {
    torch.float16: "this GPU only emulates bfloat16 (its compute capability is below 8.0)",
    torch.bfloat16: "this GPU has it in hardware",
    torch.float32: "there is no GPU",
}

# bf16 is offered where its products are so many times as fast, and a stage takes so long
BF16_GAIN = 1.5
LONG_MINUTES = 5


@dataclass(frozen=True)
class StageForecast:
    """What a stage takes on this machine."""

    given: StageSettings  # settings before anything was changed
    memory: PhaseMemory  # with those that fit
    largest_batch: int  # that fits
    minutes: float  # about, from arithmetic


@dataclass(frozen=True)
class MachinePlan:
    """Settings that fit this machine; those that fitted already are as they were given."""

    workload: Workload
    free_gb: float  # that a run can have
    load: GenerationSettings
    sft: SFTSettings | None = None
    dpo: DPOSettings | None = None
    reward: RewardSettings | None = None
    ppo: PPOSettings | None = None
    largest_pixels: int = 0  # of images that fit; 0: a LLaVA's, or the batches must be made smaller
    forecasts: Mapping[str, StageForecast] = field(default_factory=dict)  # by stage
    warnings: tuple[str, ...] = ()

    @property
    def max_pixels(self) -> int | None:
        """For `load_model`; None: the model's own limit, or none at all."""
        return self.workload.max_pixels

    @property
    def stages(self) -> list[StageSettings]:
        """The settings of all stages that are planned."""
        given = [self.load, self.sft, self.dpo, self.reward, self.ppo]
        return [settings for settings in given if settings is not None]


def check_machine(
    model: str | Path = "tiny",
    *,
    image: tuple[int, int] = (1024, 1024),
    max_pixels: int | None = None,
    load: GenerationSettings | None = None,
    sft: SFTSettings | None = None,
    dpo: DPOSettings | None = None,
    reward: RewardSettings | None = None,
    ppo: PPOSettings | None = None,
    examples: int = 500,
    four_bit: bool | None = None,
) -> MachinePlan:
    """Print what this machine is and what the given stages take on it; return settings that fit.

    image: width and height in pixels. max_pixels: that images are reduced to (default: the model's
    own limit); the plan's is smaller if the smallest batch does not fit. load: answers generated at
    once (default: `generate_answers`'s). examples: records trained on. Raises UsageError naming the
    presets that fit if the smallest batch of a stage does not.
    """
    name = str(model)
    known = is_known(name)
    four_bit = in_four_bits(name, four_bit) and has_four_bits()
    # What is to run, and what the machine is
    workload = replace(
        workload_here(name, image, four_bit), max_pixels=max_pixels, examples=examples
    )
    facts = measure_machine(download_gb(name, four_bit and has_cuda()) if known else None)
    warnings = machine_warnings(facts)
    if not known:
        warnings += (f"no forecast for {name}: only presets and checkpoints in a folder have one.",)
    stages = (load or GenerationSettings(), sft, dpo, reward, ppo)
    plan = MachinePlan(workload, facts.free_gb, *stages, warnings=warnings)
    if known:
        plan = plan_images(plan)
    # First what the machine is: a stage that does not fit raises
    print(machine_text(facts, plan))
    if known:
        plan = plan_stages(plan, speed_here(workload))
        print(stages_text(plan) + bf16_text(plan))
    for warning in plan.warnings:
        print(f"⚠️  {warning}")
    return plan


# --- the plan ---


def workload_here(name: str, image: tuple[int, int], four_bit: bool) -> Workload:
    """Return the workload of a model, and of images of that size, on this machine."""
    number = compute_dtype().itemsize
    return Workload(name, *image, four_bit=four_bit, compute_bytes=number, on_gpu=has_cuda())


def speed_here(workload: Workload) -> MachineSpeed:
    """Measure this machine, on as many threads as `load_model` will compute with."""
    choose_threads(workload.shapes.hidden)
    return measure_speed(workload.shapes)


def machine_warnings(facts: MachineFacts) -> tuple[str, ...]:
    """Return a sentence for all that is amiss with the machine, whatever runs on it."""
    warnings = []
    if facts.colab and not facts.on_drive:
        lost = "artifacts and checkpoints are lost with this session."
        warnings.append(f"Drive is not mounted: {lost}")
    warnings += untested_versions(facts.versions)
    for disk in facts.disks:
        if disk.free_gb < disk.needed_gb:
            free = f"{disk.free_gb:.1f} GB free at {disk.folder}"
            warnings.append(f"disk: {free}, {disk.needed_gb:.1f} GB are needed. Make room.")
    return tuple(warnings)


def plan_images(plan: MachinePlan) -> MachinePlan:
    """Return the plan with images of which the smallest batch of each stage fits.

    Larger ones that would fit are only told.
    """
    asked = plan.workload
    fitting = fit_images(asked, plan.stages, plan.free_gb)
    most = largest_image(fitting, plan.stages, plan.free_gb)
    plan = replace(plan, workload=fitting, largest_pixels=most)
    if fitting == asked:
        return plan
    before = asked.pixel_limit
    instead = f"instead of {before:,} " if before else ""
    warning = (
        f"images are reduced to {fitting.max_pixels:,} {instead}pixels, "
        f"{fitting.visual_tokens:,} visual tokens instead of {asked.visual_tokens:,}, so that the "
        "smallest batch fits. Small things may be lost to sight."
    )
    return replace(plan, warnings=(*plan.warnings, warning))


def plan_stages(plan: MachinePlan, speed: MachineSpeed) -> MachinePlan:
    """Return the plan with settings that fit, and what they take.

    Raises UsageError if the smallest batch of a stage does not fit.
    """
    workload = plan.workload
    seconds = StageSeconds(workload, speed)
    # By stage
    settings = {}
    forecasts = {}
    warnings = [*plan.warnings]
    for given in plan.stages:
        stage = stage_of(given)
        fitting, largest = fit_settings(workload, given, plan.free_gb)
        minutes = seconds.of_stage(fitting) / 60
        settings[stage] = fitting
        need = forecast_memory(workload, fitting)
        forecasts[stage] = StageForecast(given, need, largest, minutes)
        if isinstance(fitting, PPOSettings):
            warnings += _long_answers_warning(workload, fitting, plan.free_gb)
    return replace(plan, **settings, forecasts=forecasts, warnings=tuple(warnings))


def _long_answers_warning(workload: Workload, settings: PPOSettings, gigabytes: float) -> list[str]:
    # The forecast is for answers of the usual length; a model that does not end takes more
    longest = replace(workload, answer_tokens=settings.max_new_tokens)
    need = forecast_memory(longest, settings)
    if need.fits(gigabytes):
        return []
    return [
        f"ppo: answers that use all of max_new_tokens = {settings.max_new_tokens} would take "
        f"{need.total:.1f} GB. Lower it, or mini_batch, if the model does not come to an end."
    ]


# --- the plan in words ---


def machine_text(facts: MachineFacts, plan: MachinePlan) -> str:
    """Return rows that say what the machine is, and how large the plan's images are."""
    free = f"{facts.free_gb:.1f} GB of {facts.total_gb:.1f} GB {facts.memory} are free"
    dtype = str(facts.dtype).removeprefix("torch.")
    reason = "VLM_DTYPE" if os.environ.get("VLM_DTYPE") else DTYPE_REASONS[facts.dtype]
    rows = {
        "device": facts.device,
        "memory": free,
        "computes in": f"{dtype}: {reason}",
    }
    if facts.colab:
        mounted = "mounted" if facts.on_drive else "not mounted"
        rows["Colab"] = f"{facts.colab}, Drive is {mounted}"
    rows["versions"] = _versions_text(facts.versions)
    if facts.disks:
        # That of the artifacts; a download may need another, which `machine_warnings` looks at
        artifacts = facts.disks[0]
        needed = sum(disk.needed_gb for disk in facts.disks)
        place = artifacts.folder
        place = place.relative_to(ROOT) if place.is_relative_to(ROOT) else place
        rows["disk"] = f"{artifacts.free_gb:.1f} GB free at {place}, {needed:.1f} GB are needed"
    if is_known(plan.workload.model):
        rows["images"] = _images_text(plan)
    return "\n".join(f"{label:<12}{text}" for label, text in rows.items())


def _versions_text(versions: Mapping[str, str | None]) -> str:
    off = untested_versions(versions)
    if off:
        return f"{len(off)} not as tested, see below"
    python, transformers = versions["Python"], versions["transformers"]
    return f"as tested, Python {python}, torch {torch.__version__}, transformers {transformers}"


def _images_text(plan: MachinePlan) -> str:
    workload = plan.workload
    most = plan.largest_pixels
    limit = workload.pixel_limit
    size = f"{workload.width} × {workload.height}"
    text = f"{size} pixels are {workload.visual_tokens:,} visual tokens"
    if not limit:
        return text
    text += f" (max_pixels {limit:,})"
    if most > limit:
        side = math.isqrt(most)
        tokens = visual_tokens(workload.model, side, side, most)
        text += f"; up to {tokens:,} would fit (max_pixels {most:,})"
    return text


def bf16_text(plan: MachinePlan) -> str:
    """Return a line that offers bf16 where a CPU is fast at it and time matters, else nothing."""
    longest = max(forecast.minutes for forecast in plan.forecasts.values())
    if longest < LONG_MINUTES:
        return ""
    gain = bf16_gain(plan.workload.shapes)
    if gain < BF16_GAIN:
        return ""
    return (
        f"\nbf16: matrix products are {gain:.1f} times as fast in it on this CPU. "
        "Set VLM_DTYPE=bf16 before Python starts to compute in it."
    )


def stages_text(plan: MachinePlan) -> str:
    """Return a table of what each stage takes, and what was changed to fit."""
    most = f"GB of {USABLE_SHARE * plan.free_gb:.1f}"
    head = f"{plan.workload.model:<12}{most:>14}{'largest batch':>16}{'minutes*':>10}"
    note = (
        "* about, from arithmetic; load: one batch of answers, halved again while running if it "
        "does not fit"
    )
    rows = []
    for fitting in plan.stages:
        stage = stage_of(fitting)
        row = plan.forecasts[stage]
        changes = []
        for name, value in changed_fields(row.given, fitting).items():
            changes.append(f"{name} {getattr(row.given, name)} → {value}")
        changed = ", ".join(changes) or "–"
        cells = f"{row.memory.total:>14.1f}{row.largest_batch:>16}{row.minutes:>10.1f}"
        rows.append(f"{stage:<12}{cells}  {changed}")
    return "\n".join([f"\n{head}  changed to fit", *rows, note])
