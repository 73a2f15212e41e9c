"""Settings that fit into the memory there is, by the forecast of `helpers/machine/memory.py`. Used by `helpers/machine/fits.py`.

What changes the result least goes first: fewer prompts at once where nothing is learnt (PPO), gradient checkpointing, then a
smaller batch with as many pairs a step as before. Only where not even the smallest batch fits are images reduced to
fewer pixels, for all stages alike.
"""

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from helpers.config import PPOSettings
from helpers.files import UsageError
from helpers.models import PRESETS, default_max_pixels, smaller_limits

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

LARGEST_PIXELS = 4096**2  # pixels; no larger image is asked about


def fit_images(workload: Workload, stages: Sequence[StageSettings], gigabytes: float) -> Workload:
    """Return the workload with images of which the smallest batch of every stage fits.

    Its limit of pixels stays (None: the model's own) if that fits into the usable share of
    `gigabytes`. Else it is the largest smaller one that does, else the smallest there is. The
    images of a LLaVA cannot be made smaller.
    """
    least = [smallest_settings(settings) for settings in stages]
    wish = workload.max_pixels or default_max_pixels(workload.model) or 0
    smaller = (
        replace(workload, max_pixels=limit) for limit in smaller_limits(workload.model, wish)
    )
    tries = [workload, *smaller]
    return next((tried for tried in tries if _is_fitting(tried, least, gigabytes)), tries[-1])


def largest_image(workload: Workload, stages: Sequence[StageSettings], gigabytes: float) -> int:
    """Return the largest limit of pixels with which the stages fit as they are set.

    It is 0 if they do not fit with any, and for a LLaVA.
    """
    ladder = smaller_limits(workload.model, LARGEST_PIXELS)[::-1]
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high + 1) // 2
        limit = ladder[middle - 1]
        side = math.isqrt(limit)
        square = replace(workload, width=side, height=side, max_pixels=limit)
        fits = _is_fitting(square, stages, gigabytes)
        low, high = (middle, high) if fits else (low, middle - 1)
    return ladder[low - 1] if low else 0


def _is_fitting(workload: Workload, stages: Sequence[StageSettings], gigabytes: float) -> bool:
    return all(forecast_memory(workload, settings).fits(gigabytes) for settings in stages)


def fit_settings(
    workload: Workload, settings: StageSettings, gigabytes: float
) -> tuple[StageSettings, int]:
    """Return the settings, changed only if they do not fit, and the largest batch that does.

    What is to fit into is the usable share of `gigabytes`. Gradient checkpointing comes before a
    smaller batch. That of DPO or reward training is accumulated more often, so that a step has as
    many pairs; PPO also samples in slices. Raises UsageError if nothing fits.
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
    sizes = [size for size in _sizes(settings) if size <= largest]
    if not sizes:
        raise _too_large_error(workload, settings, gigabytes)
    smaller = set_batch(settings, sizes[-1])
    if not isinstance(settings, GenerationSettings | PPOSettings):
        pairs = settings.batch_size * settings.accumulation
        smaller = replace(smaller, accumulation=pairs // sizes[-1])
    return smaller, largest


def _fit_sampling_batch(workload: Workload, settings: PPOSettings, gigabytes: float) -> PPOSettings:
    """Lower `sampling_batch` until passes without gradients fit, even if all answers have the full length."""
    most = settings.sampling_batch or settings.prompts_per_iteration // settings.shards
    longest = replace(workload, answer_tokens=settings.max_new_tokens)
    for size in sorted({-(-most // parts) for parts in range(1, most + 1)}, reverse=True):
        *before, _ = phases(longest, replace(settings, sampling_batch=size))
        if all(phase.fits(gigabytes) for phase in before):
            break
    return settings if size == most else replace(settings, sampling_batch=size)


def changed_fields(before: StageSettings, after: StageSettings) -> dict[str, Any]:
    """Return the names and new values of the settings that differ."""
    return {
        f.name: new
        for f in fields(after)
        if (new := getattr(after, f.name)) != getattr(before, f.name)
    }


def _sizes(settings: StageSettings) -> list[int]:
    """Batches that a step, or PPO's iteration, can be cut into without a rest, from the smallest."""
    if isinstance(settings, GenerationSettings):
        return [*range(1, settings.batch_size)]
    if isinstance(settings, PPOSettings):
        least, prompts = settings.shards, settings.prompts_per_iteration
        return [n for n in range(least, settings.mini_batch, least) if prompts % n == 0]
    pairs = settings.batch_size * settings.accumulation
    return [n for n in range(1, settings.batch_size) if pairs % n == 0]


def _too_large_error(workload: Workload, settings: StageSettings, gigabytes: float) -> UsageError:
    need = least_memory(workload, settings)
    fitting = []
    for name in PRESETS:
        other = replace(workload, model=name, max_pixels=None)
        if all(least_memory(other, default_settings(stage)).fits(gigabytes) for stage in STAGES):
            fitting.append(name)
    lower = ""
    if isinstance(settings, PPOSettings) and need.phase != "training":
        lower = " PPO's group_size decides that: lower it, or take another model."
    return UsageError(
        f"{workload.model} does not fit: stage {stage_of(settings)} takes {need.total:.1f} GB while "
        f"{need.phase}, with the smallest batch and images of {workload.visual_tokens:,} visual "
        f"tokens, and {USABLE_SHARE * gigabytes:.1f} GB can be used here.{lower} "
        f"All stages fit with: {', '.join(fitting) or 'no preset'}."
    )
