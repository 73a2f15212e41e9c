"""Checks that run before training, on the very trainer that will train.

Each is a way in which preference training of a vision-language model has failed in silence: the
image never inserted into the prompt, pixel values dropped, pairs equal after tokenisation, a policy
that does not start at the reference, gradients that reach nothing, answers that ignore the image.
Taught in notebook 04.
"""

import copy
import math
from dataclasses import dataclass

import torch
from trl import DPOTrainer

from helpers.losses import completion_logps
from helpers.runtime import UsageError

LN2 = math.log(2)  # loss of a policy that equals its reference


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    found: str  # what was measured
    remedy: str  # what to do if it failed


def preflight(trainer: DPOTrainer, pairs: int = 8) -> list[Check]:
    """Run all checks on the first `pairs` pairs; prints a table, leaves weights and logs as they were.

    Raises UsageError listing the failed checks with their remedies.
    """
    examples = [trainer.train_dataset[i] for i in range(min(pairs, len(trainer.train_dataset)))]
    batch = _collate(trainer, examples)
    trainable = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    was_training = trainer.model.training
    trainer.model.eval()  # dropout off
    checks = [_image_tokens(trainer, batch), _pixel_values(batch)]
    if all(check.passed for check in checks):  # else the model cannot run, or would run on text alone
        checks += [_different_answers(batch), _end_of_turn(trainer, batch), _ln2(trainer, batch)]
        checks += [_gradients(trainer, batch, trainable), _image_matters(trainer, batch, examples)]
    trainer.model.train(was_training)
    trainer._metrics["eval"].clear()
    _print(checks)
    failed = [f"{c.name}: {c.found}. {c.remedy}" for c in checks if not c.passed]
    if failed:
        raise UsageError("preflight failed, nothing was trained. " + " | ".join(failed))
    return checks


def _collate(trainer: DPOTrainer, examples: list[dict]) -> dict:
    """The batch that the trainer would make (its collator changes the examples, so it gets a copy)."""
    return trainer._prepare_inputs(trainer.data_collator(copy.deepcopy(examples)))


def _print(checks: list[Check]) -> None:
    width = max(len(c.name) for c in checks)
    for c in checks:
        print(f"{'✓' if c.passed else '✗'} {c.name:<{width}}  {c.found}")


def _image_tokens(trainer: DPOTrainer, batch: dict) -> Check:
    """Image tokens in each sequence = patches of its image / merge²."""
    processor = trainer.processing_class
    in_prompt = (batch["input_ids"] == processor.image_token_id).sum(-1).tolist()
    if "image_grid_thw" in batch:
        merge = processor.image_processor.merge_size**2
        made = (batch["image_grid_thw"].prod(-1) // merge).tolist()
    else:
        made = [in_prompt[0]] * len(in_prompt)  # fixed number of tokens an image
    return Check(
        "image tokens",
        in_prompt == made and min(in_prompt) > 0,
        f"{sorted(set(in_prompt))} in the prompts, {sorted(set(made))} from the processor",
        "The image is not in the prompt: keep the column name `images`, use chat messages instead of a "
        "hand-written template, and leave max_length at None.",
    )


def _pixel_values(batch: dict) -> Check:
    pixels = batch.get("pixel_values")
    found = "missing" if pixels is None else f"{tuple(pixels.shape)}, standard deviation {pixels.float().std():.2f}"
    return Check(
        "pixel values",
        pixels is not None and bool(pixels.float().std() > 0),
        found,
        "The batch holds no picture: the data set needs a column `images`.",
    )


def _completions(batch: dict) -> list[list[int]]:
    """Token ids of the completions: first the chosen ones, then the rejected ones."""
    rows = zip(batch["input_ids"], batch["completion_mask"], strict=True)
    return [ids[mask.bool()].tolist() for ids, mask in rows]


def _different_answers(batch: dict) -> Check:
    completions = _completions(batch)
    half = len(completions) // 2
    equal = sum(c == r for c, r in zip(completions[:half], completions[half:], strict=True))
    return Check(
        "chosen ≠ rejected",
        equal == 0,
        f"{half - equal} of {half} pairs differ in their tokens",
        "Remove the pairs whose answers are the same.",
    )


def _end_of_turn(trainer: DPOTrainer, batch: dict) -> Check:
    """Every answer ends in the end-of-turn token; white space may follow it (Qwen2-VL's template has a newline)."""
    tokenizer = trainer.processing_class.tokenizer
    closed = 0
    completions = _completions(batch)
    for ids in completions:
        while ids and not tokenizer.decode(ids[-1:]).strip():
            ids = ids[:-1]
        closed += bool(ids) and ids[-1] == tokenizer.eos_token_id
    return Check(
        "end of turn",
        closed == len(completions),
        f"{closed} of {len(completions)} answers end in {tokenizer.eos_token}",
        "The chat template does not close the answer: the model would never learn to stop.",
    )


def _ln2(trainer: DPOTrainer, batch: dict) -> Check:
    """The preference term alone, without the SFT term, as TRL computes it."""
    loss_types, loss_weights = trainer.loss_types, trainer.loss_weights
    trainer.loss_types, trainer.loss_weights = ["sigmoid"], [1.0]
    try:
        with torch.no_grad():
            loss = float(trainer.compute_loss(trainer.model, batch))
    finally:
        trainer.loss_types, trainer.loss_weights = loss_types, loss_weights
    return Check(
        "first-step loss",
        abs(loss - LN2) < 1e-3,
        f"{loss:.4f}, ln 2 = {LN2:.4f}",
        "Policy and reference differ before the first step: start from a fresh adapter, with dropout 0.",
    )


def _gradients(trainer: DPOTrainer, batch: dict, trainable: set[str]) -> Check:
    """One backward pass: every adapter matrix B gets a gradient (A's is zero while B = 0), nothing else does.

    trainable: the weights that required a gradient before any pass. peft makes the whole adapter
    trainable again whenever it is switched off and on, but an optimizer that exists by then does not
    know the weights that were frozen.
    """
    model = trainer.model
    model.zero_grad()
    loss = trainer.compute_loss(model, batch)
    if loss.requires_grad:
        loss.backward()
    reached = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.any()} & trainable
    model.zero_grad()
    adapter = {name for name, _ in model.named_parameters() if "lora_B" in name}
    missed = sorted(adapter - reached)
    foreign = sorted(name for name in trainable if "lora_" not in name)
    return Check(
        "gradient",
        bool(adapter) and not foreign and not missed,
        f"reaches {len(adapter) - len(missed)} of {len(adapter)} adapter layers and {len(foreign)} other weights",
        f"Freeze the base and train the adapter (first outside: {foreign[:1]}, first missed: {missed[:1]}).",
    )


def _image_matters(trainer: DPOTrainer, batch: dict, examples: list[dict]) -> Check:
    """Log-probs of the same answers, with each image replaced by the next one of the batch."""
    others = examples[1:] + examples[:1]
    exchanged = [{**e, "images": other["images"]} for e, other in zip(examples, others, strict=True)]
    with torch.no_grad():
        change = float((_logps(trainer, batch) - _logps(trainer, _collate(trainer, exchanged))).abs().mean())
    return Check(
        "image matters",
        change > 1e-3,
        f"exchanging the images moves the log-probs by {change:.3f} on average",
        "The answers do not depend on the image: check the prompt template and that the pictures differ.",
    )


def _logps(trainer: DPOTrainer, batch: dict) -> torch.Tensor:
    inputs = {k: v for k, v in batch.items() if k != "completion_mask"}
    return completion_logps(trainer.model(**inputs).logits, batch["input_ids"], batch["completion_mask"])
