"""Settings that fit into the memory there is, by the forecast of `helpers/machine/memory.py`. Used by `helpers/machine/fits.py`.

What changes the result least goes first: fewer prompts at once where nothing is learnt (PPO), gradient checkpointing, then a
smaller batch with as many pairs a step as before. Only where not even the smallest batch fits are images reduced to
fewer pixels, for all stages alike.
"""

import math
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from helpers.config import PPOSettings
from helpers.files import UsageError
from helpers.machine import memory
from helpers.machine.memory import BATCH_FIELDS, USABLE_SHARE, StageSettings
from helpers.models.presets import PRESETS
from helpers.models.shapes import default_max_pixels, smaller_limits, visual_tokens

LARGEST_PIXELS = 4096**2  # pixels; no larger image is asked about


def fit_images(name: str, stages: Mapping[str, StageSettings], gigabytes: float, options: dict) -> int | None:
    """The limit of pixels with which the smallest batch of every stage fits into the usable share of `gigabytes`.

    It is `max_pixels` of the options (None: the model's own) if that fits, else the largest smaller one that does, else
    the smallest there is. For a LLaVA, whose images cannot be made smaller, what was asked for. Options as in `phases`.
    """
    wish, least = (
        options.get("max_pixels"),
        {stage: memory.smallest_settings(stage, given) for stage, given in stages.items()},
    )
    tries = [wish, *smaller_limits(name, wish or default_max_pixels(name) or 0)]
    fitting = (limit for limit in tries if _is_fitting(name, least, gigabytes, options | {"max_pixels": limit}))
    return next(fitting, tries[-1])


def largest_image(name: str, stages: Mapping[str, StageSettings], gigabytes: float, options: dict) -> int:
    """The largest limit of pixels with which the stages fit as they are set; 0 if they do not, or for a LLaVA."""
    ladder = smaller_limits(name, LARGEST_PIXELS)[::-1]
    low, high = 0, len(ladder)
    while low < high:
        middle = (low + high + 1) // 2
        side = math.isqrt(ladder[middle - 1])
        square = options | {"width": side, "height": side, "max_pixels": ladder[middle - 1]}
        fits = _is_fitting(name, stages, gigabytes, square)
        low, high = (middle, high) if fits else (low, middle - 1)
    return ladder[low - 1] if low else 0


def _is_fitting(name: str, stages: Mapping[str, StageSettings], gigabytes: float, options: dict) -> bool:
    needs = (memory.forecast_memory(name, stage, settings, **options) for stage, settings in stages.items())
    return all(need.total <= USABLE_SHARE * gigabytes for need in needs)


def fit_settings(
    name: str, stage: str, settings: StageSettings, gigabytes: float, options: dict
) -> tuple[StageSettings, int]:
    """The settings, changed only if they do not fit into the usable share of `gigabytes`, and the largest batch.

    Gradient checkpointing comes before a smaller batch. That of DPO or reward training is accumulated more often, so that a
    step has as many pairs; PPO also samples in slices. Raises UsageError if nothing fits.
    """
    if stage == "ppo":
        settings = _fit_sampling_batch(name, settings, gigabytes, options)
    tries = [settings]
    if stage != "load" and not settings.gradient_checkpointing:
        tries.append(replace(settings, gradient_checkpointing=True))
    for settings in tries:
        largest = memory.largest_batch(name, stage, settings, gigabytes, **options) or 0
        if memory.forecast_memory(name, stage, settings, **options).total <= USABLE_SHARE * gigabytes:
            return settings, max(largest, getattr(settings, BATCH_FIELDS[stage]))
    sizes = [size for size in _sizes(stage, settings) if size <= largest]
    if not sizes:
        raise _too_large_error(name, stage, settings, gigabytes, options)
    smaller = memory.set_batch(stage, settings, sizes[-1])
    if stage in ("dpo", "reward"):
        smaller = replace(smaller, accumulation=settings.batch_size * settings.accumulation // sizes[-1])
    return smaller, largest


def _fit_sampling_batch(name: str, settings: PPOSettings, gigabytes: float, options: dict) -> PPOSettings:
    """Lower `sampling_batch` until passes without gradients fit, even if all answers have the full length."""
    most = settings.at_once or settings.prompts // settings.shards
    options = options | {"answer_tokens": settings.max_new_tokens}
    for size in sorted({-(-most // parts) for parts in range(1, most + 1)}, reverse=True):
        *before, _ = memory.phases(name, "ppo", replace(settings, at_once=size), **options)
        if all(phase.total <= USABLE_SHARE * gigabytes for phase in before):
            break
    return settings if size == most else replace(settings, at_once=size)


def changed_fields(before: StageSettings, after: StageSettings) -> dict[str, Any]:
    """Return the names and new values of the settings that differ."""
    return {f.name: new for f in fields(after) if (new := getattr(after, f.name)) != getattr(before, f.name)}


def _sizes(stage: str, settings: StageSettings) -> list[int]:
    """Batches that a step, or PPO's iteration, can be cut into without a rest, from the smallest."""
    if stage == "load":
        return [*range(1, settings.batch_size)]
    if stage == "ppo":
        return [n for n in range(settings.shards, settings.mini_batch, settings.shards) if settings.prompts % n == 0]
    pairs = settings.batch_size * settings.accumulation
    return [n for n in range(1, settings.batch_size) if pairs % n == 0]


def _too_large_error(name: str, stage: str, settings: StageSettings, gigabytes: float, options: dict) -> UsageError:
    need, usable = (
        memory.forecast_memory(name, stage, memory.smallest_settings(stage, settings), **options),
        USABLE_SHARE * gigabytes,
    )
    others = options | {"max_pixels": None}
    fitting = [n for n in PRESETS if all(memory.least_memory(n, s, **others).total <= usable for s in BATCH_FIELDS)]
    tokens = visual_tokens(name, options["width"], options["height"], options.get("max_pixels"))
    lower = " PPO's group decides that: lower it, or take another model." if need.phase != "training" else ""
    return UsageError(
        f"{name} does not fit: stage {stage} takes {need.total:.1f} GB while {need.phase}, with the smallest batch and "
        f"images of {tokens:,} visual tokens, and {usable:.1f} GB can be used here.{lower if stage == 'ppo' else ''} "
        f"All stages fit with: {', '.join(fitting) or 'no preset'}."
    )
