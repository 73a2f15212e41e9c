"""Checks that run before training, on the very trainer that will train.

Each is a way in which preference training of a vision-language model has failed in silence: the
image never inserted into the prompt, pictures blank or reduced beyond recognition, rows cut,
weights in the wrong precision, a base whose figures are not numbers, pairs equal after
tokenisation, a policy that does not start at the reference, gradients that reach nothing, learning
rates that add up to too little, answers that ignore the image, a loss that cannot fall. Those of
the inputs are in `helpers/doctor/input_checks.py`, that of the learning rate in
`helpers/doctor/reach.py`, those of the model here, time and memory in `helpers/doctor/dry_run.py`.
Taught in notebook 04.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from trl import DPOTrainer

from helpers.files import UsageError
from helpers.losses import completion_logps
from helpers.machine import USABLE_SHARE
from helpers.models import disable_adapters, images_hash, plain_english, why_no_text
from helpers.runtime import compute_dtype, tolerances_of

from .dry_run import (
    Examples,
    Forecast,
    backward,
    collate,
    evenly_spaced,
    forecast_run,
    loss_of,
    preference_only,
    restoring_state,
    training_mode,
)
from .input_checks import (
    Batches,
    Check,
    check_different_answers,
    check_end_of_turn,
    check_image_size,
    check_image_tokens,
    check_pixel_values,
    check_truncation,
    row_inputs,
)
from .reach import check_reach

LN2 = math.log(2)  # loss of a policy that equals its reference
START_TOLERANCE = 1e-3  # of that loss, beside what rounding explains
SAMPLED_ROWS = 64  # rows that are tokenised and whose images are looked at
LEARNT_LOSS = 0.1  # preference loss of pairs that are known by heart
# Learning rates of the updates: 1e-3 is usual for LoRA, and a pretrained model needs only a few
# updates with it. A tiny one has fewer features that each update can use; it goes on with more.
BY_HEART_RATES = (*[1e-3] * 10, *[4e-3] * 30)


class PreflightChecks(list[Check]):
    """The checks in their order, and what the run will take."""

    forecast: Forecast


def preflight(trainer: DPOTrainer, pairs: int = 8) -> PreflightChecks:
    """Run all checks on `pairs` pairs spread over the data; leaves trainer and model as they were.

    trainer: of `dpo.dpo_trainer`, in either layout. Prints a line for each check and the forecast.
    Raises UsageError listing the failed checks with their remedies.
    """
    checks = PreflightChecks()
    try:
        with restoring_state(trainer):
            for check in _run(trainer, pairs, checks):
                print(check)
                checks.append(check)
    except torch.OutOfMemoryError:
        size = trainer.args.per_device_train_batch_size
        raise UsageError(
            f"the GPU's memory is too small for {size} pairs in one forward: "
            "lower batch_size of `settings` in the Parameters cell of notebook 04 "
            "and raise accumulation as much, or set gradient_checkpointing."
        ) from None
    failed = [check for check in checks if not check.passed]
    reasons = [f"{c.name}: {c.measured}. {c.remedy}" for c in failed if not c.warns]
    if reasons:
        raise UsageError("preflight failed, nothing was trained. " + " | ".join(reasons))
    for warning in failed:
        print(f"⚠️  {warning.name}: {warning.remedy}")
    print(checks.forecast)
    return checks


def _run(trainer: DPOTrainer, pairs: int, checks: PreflightChecks) -> Iterator[Check]:
    model = trainer.model
    data = trainer.train_dataset
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    rows = evenly_spaced(len(data), pairs)
    examples = [data[row] for row in rows]
    if "images" not in examples[0]:
        raise UsageError(
            f"the data has no column `images`, only {sorted(examples[0])}: "
            "make it with preferences.to_trl."
        )
    # inputs: quick, so more rows are looked at than go through the model
    looked_at = sorted({*rows, *evenly_spaced(len(data), SAMPLED_ROWS)})
    sample = [row_inputs(trainer.processing_class, data[row]) for row in looked_at]
    yield check_image_tokens(trainer, examples)
    yield check_pixel_values(sample)
    yield check_image_size(sample, len(data))
    yield check_truncation(trainer, sample, len(data))
    yield _check_dtypes(trainer, trainable)
    for check in checks:
        if check.name in ("image tokens", "truncation") and not check.passed:
            return  # the model cannot run, or would run on something else
    # forwards and backwards
    yield _check_language(trainer)
    batches = _batches(trainer, examples)
    yield check_different_answers(batches)
    yield check_end_of_turn(trainer, batches)
    yield _check_ln2(trainer, batches)
    yield _check_gradients(trainer, batches[0], trainable)
    yield check_reach(trainer, batches, trainable)
    yield _check_image_matters(trainer, batches, examples)
    yield _check_learning_by_heart(trainer, _choose_different(examples, 4), trainable)
    checks.forecast = forecast_run(trainer, rows)
    yield _check_memory(checks.forecast)


def _batches(trainer: DPOTrainer, examples: Examples) -> Batches:
    """The examples in batches of the training's size, so that the checks need no more memory."""
    size = trainer.args.per_device_train_batch_size
    starts = range(0, len(examples), size)
    return [collate(trainer, examples[start : start + size]) for start in starts]


def _check_dtypes(trainer: DPOTrainer, trainable: set[str]) -> Check:
    """Trained weights in fp32; no bf16 at all where the GPU only emulates it."""
    model = trainer.model
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    in_fp32 = sum(kinds[name] == torch.float32 for name in trainable)
    measured = f"{in_fp32} of {len(trainable)} trained tensors in fp32"
    emulated = []
    if compute_dtype() == torch.float16:
        kinds |= {name: buffer.dtype for name, buffer in model.named_buffers()}
        # layers of 4 bits compute in another type than they are stored in
        for name, module in model.named_modules():
            kinds[name] = getattr(module, "compute_dtype", None)
        emulated = [name for name, kind in kinds.items() if kind == torch.bfloat16]
    if emulated:
        measured += f", {len(emulated)} in bf16, which this GPU only emulates ({emulated[0]})"
    return Check(
        "dtypes",
        in_fp32 == len(trainable) and not emulated,
        measured,
        "Make the trainer with dpo.dpo_trainer and load the model with models.load_model, "
        "as in the cell of new_trainer, and cast nothing afterwards.",
    )


def _check_language(trainer: DPOTrainer) -> Check:
    """How well the base reads plain English, which is what a policy may forget.

    A base that speaks none is no fault; one whose figures are not numbers is.
    """
    processor = trainer.processing_class
    fault = why_no_text(processor)
    remedy = (
        "The base's own log-probabilities are not numbers: "
        "load another checkpoint, or in another precision, in the cell of new_trainer."
    )
    if fault:
        measured = f"not measured, the processor takes no text without an image ({fault})"
        return Check("plain English", True, measured, remedy)
    with disable_adapters(trainer.model) as base:
        found = plain_english(base, processor)
    is_number = math.isfinite(found.value)
    measured = found.describe() if is_number else str(found)
    return Check("plain English", is_number, measured, remedy)


@torch.no_grad()
def _check_ln2(trainer: DPOTrainer, batches: Batches) -> Check:
    with preference_only(trainer):
        losses = [float(loss_of(trainer, batch)) for batch in batches]
    # the one that is farthest off; a loss that is no number most of all
    loss = max(losses, key=lambda value: math.inf if math.isnan(value) else abs(value - LN2))
    # −log σ(β · margin) falls by β / 2 a nat
    allowed = START_TOLERANCE + trainer.beta / 2 * tolerances_of(trainer.model).nats
    return Check(
        "first-step loss",
        abs(loss - LN2) < allowed,
        f"{loss:.4f}, ln 2 = {LN2:.4f} ± {allowed:.4f}",
        "Policy and reference differ before the first step: "
        "make a new trainer in the cell of new_trainer and change no weights afterwards.",
    )


def _check_gradients(trainer: DPOTrainer, batch: dict[str, Any], trainable: set[str]) -> Check:
    """One backward pass: every adapter matrix B gets a gradient, nothing else does.

    A's is zero while B = 0. trainable: the weights that required a gradient before any pass. peft
    makes the whole adapter trainable again whenever it is switched off and on, but an optimizer
    that exists by then does not know the weights that were frozen. Fewer than half of the layers
    that see may be missed: LLaVA's vision tower never uses its last ones.
    """
    model = trainer.model
    with training_mode(trainer):
        backward(loss_of(trainer, batch))
    # which of the adapter's layers the gradient reached
    weights = dict(model.named_parameters())
    with_gradient = {n for n, p in weights.items() if p.grad is not None and p.grad.any()}
    model.zero_grad()
    adapter = {n for n in weights if "lora_B" in n and f".{model.active_adapter}." in n}
    missed = adapter - (with_gradient & trainable)
    language = set(map(id, model.get_base_model().get_decoder().parameters()))
    vision = {name for name in adapter if id(weights[name]) not in language}
    needed = missed
    if 2 * len(missed & vision) < len(vision):
        needed = missed - vision
    foreign = sorted(name for name in trainable if "lora_" not in name)
    reaches = len(adapter) - len(missed)
    return Check(
        "gradient",
        bool(adapter) and not foreign and not needed,
        f"reaches {reaches} of {len(adapter)} adapter layers and {len(foreign)} other weights",
        "Train the whole adapter and nothing else: make the trainer with dpo.dpo_trainer "
        "in the cell of new_trainer and freeze or unfreeze nothing afterwards "
        f"(first outside: {foreign[:1]}, first missed: {sorted(needed)[:1]}).",
    )


def _exchange_images(examples: Examples) -> Examples:
    """The examples, each with the next images that are not its own."""
    hashes = [images_hash(example["images"]) for example in examples]
    exchanged = []
    for place, example in enumerate(examples):
        other = example
        for following in (*range(place + 1, len(examples)), *range(place)):
            if hashes[following] != hashes[place]:
                other = examples[following]
                break
        exchanged.append({**example, "images": other["images"]})
    return exchanged


def _check_image_matters(trainer: DPOTrainer, batches: Batches, examples: Examples) -> Check:
    """Log-probs of the same answers to other images."""
    moves = []
    changed = _batches(trainer, _exchange_images(examples))
    for own, other in zip(batches, changed, strict=True):
        moves.append((_logps(trainer, own) - _logps(trainer, other)).abs())
    change = float(torch.cat(moves).mean())
    # a mean over answers is under the largest of them
    rounding = tolerances_of(trainer.model).nats / 4
    return Check(
        "image matters",
        change > rounding,
        f"exchanging the images moves the log-probs by {change:.3f} on average, rounding by up to "
        f"{rounding:g}",
        "The answers do not depend on the image: "
        "see that the pictures in the data of notebook 02 differ, "
        "and that the model loaded in the cell of new_trainer reads images.",
    )


@torch.no_grad()
def _logps(trainer: DPOTrainer, batch: dict[str, Any]) -> Tensor:
    with trainer.accelerator.autocast():
        logits = trainer.forward(trainer.model, batch)
    return completion_logps(logits, batch["input_ids"], batch["completion_mask"])


def _choose_different(examples: Examples, number: int) -> Examples:
    """Choose `number` of the examples, those whose images and chosen answer are new first."""
    seen = set()
    new = []
    rest = []
    for example in examples:
        own = {images_hash(example["images"]), example["chosen"][0]["content"]}
        if own & seen:
            rest.append(example)
        else:
            new.append(example)
        seen |= own
    return (new + rest)[:number]


def _check_learning_by_heart(trainer: DPOTrainer, examples: Examples, trainable: set[str]) -> Check:
    """Can these pairs be learnt? Their preference term alone, at β = 1.

    How far to go is not the question here. The weights stay trained; `restoring_state` puts them
    back.
    """
    # a wholly frozen model has no weights to train, and AdamW refuses to have none
    weights = [p for name, p in trainer.model.named_parameters() if name in trainable]
    optimizer = torch.optim.AdamW(weights or [torch.zeros(1)], weight_decay=0.0)
    batches = _batches(trainer, examples)
    losses = []
    with preference_only(trainer), training_mode(trainer):
        trainer.beta = 1.0 if trainer.beta > 0 else trainer.beta
        for rate in (*BY_HEART_RATES, 0.0):
            # the gradient over all pairs; a batch has two rows a pair and counts by its size
            trainer.model.zero_grad()
            total = 0.0
            for batch in batches:
                share = len(batch["completion_mask"]) / 2 / len(examples)
                part = loss_of(trainer, batch) * share
                backward(part)
                total += float(part.detach())
            losses.append(total)
            # learnt, or not a number
            if not total >= LEARNT_LOSS or not weights:
                break
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
    return Check(
        "four pairs by heart",
        total < LEARNT_LOSS,
        f"preference loss {losses[0]:.2f} → {total:.3f} after {len(losses) - 1} updates",
        "What cannot learn four pairs learns nothing: see that the data of notebook 02 does not "
        "prefer A to B and B to A for the same image and question, "
        "and that the adapter of new_trainer is trained.",
    )


def _check_memory(expected: Forecast) -> Check:
    total = expected.total_gb
    return Check(
        "memory",
        total is None or expected.peak_gb <= USABLE_SHARE * total,
        f"{expected.peak_gb:.1f} GB at the peak" + (f" of {total:.1f} GB" if total else ""),
        "Set batch_size of `settings` in the Parameters cell of notebook 04 "
        f"to {max(expected.largest_batch or 1, 1)} "
        "and raise accumulation as much, or set gradient_checkpointing.",
        warns=True,
    )
