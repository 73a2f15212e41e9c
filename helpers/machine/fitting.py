"""Settings that fit into the memory there is, by the forecast of `helpers/machine/memory.py`.

What changes the result least goes first: fewer prompts at once where nothing is learnt (PPO),
gradient checkpointing, then a smaller batch with as many pairs a step as before. Only where not
even the smallest batch fits are images reduced to fewer pixels, for all stages alike. Used by
`helpers/machine/fits.py`.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from helpers.config import PPOSettings
from helpers.files import UsageError
from helpers.models import PRESETS, smaller_limits

from .memory import (
    USABLE_SHARE,
    forecast_memory,
    largest_batch,
    least_memory,
    phases,
)
from .workload import (
    STAGES,
    GenerationSettings,
    StageSettings,
    Workload,
    batch_of,
    default_settings,
    set_batch,
    smallest_settings,
    stage_of,
)

# Pixels; no larger image is asked about
LARGEST_PIXELS = 4096**2


def fit_images(workload: Workload, stages: Sequence[StageSettings], gigabytes: float) -> Workload:
    """Return the workload with images of which the smallest batch of every stage fits.

    Its limit of pixels stays (None: the model's own) if that fits into the usable share of
    `gigabytes`. Else it is the largest smaller one that does, else the smallest there is. The
    images of a LLaVA cannot be made smaller.
    """
    # Images are reduced only if not even these fit
    least = [smallest_settings(settings) for settings in stages]
    # LFM2-VL has none of its own while it cuts images
    limit = workload.pixel_limit or LARGEST_PIXELS
    smaller = smaller_limits(workload.model, limit)
    while not _is_fitting(workload, least, gigabytes) and smaller:
        workload = replace(workload, max_pixels=smaller.pop(0))
    return workload


def largest_image(workload: Workload, stages: Sequence[StageSettings], gigabytes: float) -> int:
    """Return the largest limit of pixels with which the stages fit as they are set.

    It is 0 if they do not fit with any, and for a LLaVA.
    """
    limits = [0, *reversed(smaller_limits(workload.model, LARGEST_PIXELS))]

    def is_too_large(limit: int) -> bool:
        side = math.isqrt(limit)
        square = replace(workload, width=side, height=side, max_pixels=limit)
        return not _is_fitting(square, stages, gigabytes)

    # The limit before the first that does not fit
    return limits[bisect_left(limits, True, lo=1, key=is_too_large) - 1]


def _is_fitting(workload: Workload, stages: Sequence[StageSettings], gigabytes: float) -> bool:
    return all(forecast_memory(workload, settings).fits(gigabytes) for settings in stages)


def fit_settings(
    workload: Workload, settings: StageSettings, gigabytes: float
) -> tuple[StageSettings, int]:
    """Return the settings, changed only if they do not fit, and the largest batch that does.

    What is to fit into is the usable share of `gigabytes`. Gradient checkpointing comes before a
    smaller batch. That of SFT, DPO or reward training is accumulated more often, so that a step has
    as many pairs; PPO also samples in slices. Raises UsageError if nothing fits.
    """
    if isinstance(settings, PPOSettings):
        settings = _fit_sampling_batch(workload, settings, gigabytes)
    tries = [settings]
    if not isinstance(settings, GenerationSettings) and not settings.gradient_checkpointing:
        tries.append(replace(settings, gradient_checkpointing=True))
    for settings in tries:
        largest = largest_batch(workload, settings, gigabytes) or 0
        if forecast_memory(workload, settings).fits(gigabytes):
            return settings, max(largest, batch_of(settings))
    # Not even with gradient checkpointing, where that can be: a smaller batch
    sizes = [size for size in _sizes(settings) if size <= largest]
    if not sizes:
        raise _too_large_error(workload, settings, gigabytes)
    smaller = set_batch(settings, sizes[-1])
    # A step still learns from as many pairs
    if not isinstance(settings, GenerationSettings | PPOSettings):
        pairs = settings.batch_size * settings.accumulation
        smaller = replace(smaller, accumulation=pairs // sizes[-1])
    return smaller, largest


def _fit_sampling_batch(workload: Workload, settings: PPOSettings, gigabytes: float) -> PPOSettings:
    """Lower `sampling_batch` until passes without gradients fit.

    They are to fit even if all answers have the full length.
    """
    most = settings.sampling_batch or settings.prompts_per_iteration // settings.shards
    longest = replace(workload, answer_tokens=settings.max_new_tokens)
    # The largest slice of a sample that is cut into 1, 2, … parts
    for size in sorted({math.ceil(most / parts) for parts in range(1, most + 1)}, reverse=True):
        *before, _ = phases(longest, replace(settings, sampling_batch=size))
        if all(phase.fits(gigabytes) for phase in before):
            break
    return settings if size == most else replace(settings, sampling_batch=size)


def changed_fields(before: StageSettings, after: StageSettings) -> dict[str, Any]:
    """Return the names and new values of the settings that differ."""
    changed = {}
    for field in fields(after):
        value = getattr(after, field.name)
        if value != getattr(before, field.name):
            changed[field.name] = value
    return changed


def _sizes(settings: StageSettings) -> list[int]:
    """Return the smaller batches that a step can be cut into without a rest, the smallest first.

    PPO's iteration is what is cut, and prompts are shared among shards.
    """
    least = 1
    if isinstance(settings, GenerationSettings):
        return [*range(1, settings.batch_size)]
    if isinstance(settings, PPOSettings):
        least = settings.shards
        whole = settings.prompts_per_iteration
    else:
        whole = settings.batch_size * settings.accumulation
    return [size for size in range(least, batch_of(settings), least) if whole % size == 0]


def _too_large_error(workload: Workload, settings: StageSettings, gigabytes: float) -> UsageError:
    """Return the error that says by how much a stage is too large, and which presets are not."""
    need = least_memory(workload, settings)
    fitting = []
    for name in PRESETS:
        other = replace(workload, model=name, max_pixels=None)
        if all(least_memory(other, default_settings(stage)).fits(gigabytes) for stage in STAGES):
            fitting.append(name)
    lower = ""
    if isinstance(settings, PPOSettings) and need.phase != "training":
        lower = " PPO's group_size decides that: lower it, or take another model."
    stage = stage_of(settings)
    return UsageError(
        f"{workload.model} does not fit: stage {stage} takes {need.total:.1f} GB while "
        f"{need.phase}, with the smallest batch and images of {workload.visual_tokens:,} visual "
        f"tokens, and {USABLE_SHARE * gigabytes:.1f} GB can be used here.{lower} "
        f"All stages fit with: {', '.join(fitting) or 'no preset'}."
    )
