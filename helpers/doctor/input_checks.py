"""Checks of what goes into the model: images, lengths, answers. The first half of `helpers/doctor/checks.py`.

A sample of the rows goes through the processor, some of them through the trainer's collator; nothing is
computed but the vision tower's features, to count them. Taught in notebook 04.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import ImageStat
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin
from trl import DPOTrainer

from helpers.data import from_trl
from helpers.files import UsageError
from helpers.models import backbone_of, image_vectors, prompts

from .dry_run import Examples, collate

Batches = Sequence[dict[str, Any]]
MIN_KEPT_PIXELS = 0.05  # share of an image's pixels under which small things are gone


@dataclass(frozen=True)
class Check:
    name: str
    passed: bool
    measured: str
    remedy: str  # what to do if it failed
    warns: bool = False  # only a warning if it failed


@dataclass(frozen=True)
class RowInputs:
    """Tokens, contrast and kept pixels of a row after the processor."""

    tokens: int  # image, prompt and the longer answer
    contrast: (
        float | None
    )  # largest standard deviation of a colour in the flattest image, 0–255; None: no image
    kept_pixels: float | None  # smallest share of pixels, at most 1


def row_inputs(processor: ProcessorMixin, row: dict[str, Any]) -> RowInputs:
    pair = from_trl(row)
    images = pair.images
    prompt = prompts.render_conversation(processor, pair.prompt, len(images))
    inputs = prompts.tokenize(processor, [prompt], [images])
    longer = max(
        len(prompts.answer_ids(processor, answer)) for answer in (pair.chosen, pair.rejected)
    )
    tokens = inputs["input_ids"].shape[1] + longer
    if not images or "pixel_values" not in inputs:
        return RowInputs(tokens, None, None)
    contrast = min(max(ImageStat.Stat(image.convert("RGB")).stddev) for image in images)
    pixels = sum(image.width * image.height for image in images)
    return RowInputs(tokens, contrast, min(1.0, _pixels(processor, inputs, len(images)) / pixels))


def _pixels(processor: ProcessorMixin, inputs: BatchFeature, images: int) -> int:
    """How many pixels the model gets to see: patches × patch², or tiles without the small views of the whole."""
    if "image_grid_thw" in inputs:
        return (
            int(inputs["image_grid_thw"].prod(-1).sum()) * processor.image_processor.patch_size**2
        )
    *_, colours, height, width = inputs["pixel_values"].shape
    tiles = inputs["pixel_values"].numel() // (colours * height * width)
    return (tiles if tiles == images else tiles - images) * height * width


def check_image_tokens(trainer: DPOTrainer, examples: Examples) -> Check:
    """Image tokens of each pair = vectors that the vision tower makes of its images."""
    remedy = (
        "The image is not in the prompt as the model expects it: keep the column name `images` in the data of "
        "notebook 02, and load model and processor of one and the same checkpoint in the cell of new_trainer."
    )
    in_prompt, made = [], []
    for example in examples:
        try:
            batch = collate(trainer, [example])
        except (torch.OutOfMemoryError, UsageError):
            raise
        except (
            RuntimeError,
            ValueError,
        ) as error:  # Qwen-VL's positions are made from the number of tokens
            return Check(
                "image tokens", False, f"no batch can be made: {str(error).splitlines()[0]}", remedy
            )
        tokens = _inputs(batch)["input_ids"] == prompts.image_token_id(trainer.processing_class)
        in_prompt.append(tokens.sum(1).tolist())
        made.append(_vectors(trainer, batch) / len(tokens))
    right = all(
        min(rows) > 0 and sum(rows) == n * len(rows)
        for rows, n in zip(in_prompt, made, strict=True)
    )
    return Check(
        "image tokens",
        right,
        f"{sorted({n for rows in in_prompt for n in rows})} in the prompts, "
        f"{sorted({round(n) for n in made})} from the vision tower",
        remedy,
    )


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for the model, from a batch of either layout."""
    return batch["packed"].inputs if "packed" in batch else batch


@torch.no_grad()
def _vectors(trainer: DPOTrainer, batch: dict[str, Any]) -> int:
    kept = batch["packed"].features if "packed" in batch else {}
    if not kept:
        known = ("pixel_values", "pixel_attention_mask", "image_grid_thw", "image_sizes")
        arguments = {name: _inputs(batch)[name] for name in known if name in _inputs(batch)}
        if not arguments:
            return 0
        with trainer.accelerator.autocast():
            output = backbone_of(trainer.model).get_image_features(**arguments).pooler_output
        kept = {"pooled": output if isinstance(output, Tensor) else torch.cat(list(output))}
    return len(image_vectors(kept))


def check_pixel_values(looks: Sequence[RowInputs]) -> Check:
    missing = sum(look.contrast is None for look in looks)
    flattest = min((look.contrast for look in looks if look.contrast is not None), default=0.0)
    blank = sum(look.contrast == 0 for look in looks)
    return Check(
        "pixel values",
        not missing and not blank,
        f"of {len(looks)} rows {missing} have no image and {blank} a blank one; least contrast {flattest:.1f} of 255",
        "Look at the pictures in the data of notebook 02: remove the rows without one, or correct their paths.",
    )


def check_image_size(looks: Sequence[RowInputs], rows: int) -> Check:
    kept = [look.kept_pixels for look in looks if look.kept_pixels is not None] or [0.0]
    return Check(
        "image size",
        min(kept) >= MIN_KEPT_PIXELS,
        f"the model sees at least {min(kept):.0%} of an image's pixels ({len(looks)} of {rows} rows)",
        f"Under {MIN_KEPT_PIXELS:.0%} small things are gone: give check_machine, whose plan the model is loaded with, a larger "
        "max_pixels, or cut the images to what matters in the data of notebook 02.",
        warns=True,
    )


def check_truncation(trainer: DPOTrainer, looks: Sequence[RowInputs], rows: int) -> Check:
    cut = trainer.args.max_length or getattr(trainer.data_collator, "max_length", None)
    positions = trainer.model.config.get_text_config().max_position_embeddings
    limit = min(positions, trainer.processing_class.tokenizer.model_max_length)
    longest = max(look.tokens for look in looks)
    return Check(
        "truncation",
        cut is None and longest <= limit,
        f"longest row {longest} tokens ({len(looks)} of {rows} rows), the model takes {limit}, max_length {cut}",
        "Leave max_length at None in the trainer of the cell of new_trainer; if rows are too long, give check_machine, "
        "whose plan the model is loaded with, a smaller max_pixels, or remove the longest rows from the data of notebook 02.",
    )


def _completions(batches: Batches) -> list[tuple[list[int], list[int]]]:
    """Token ids of the (chosen, rejected) answers."""
    pairs = []
    for batch in batches:
        rows = zip(batch["input_ids"], batch["completion_mask"], strict=True)
        answers = [ids[mask.bool()].tolist() for ids, mask in rows]
        pairs += zip(answers[: len(answers) // 2], answers[len(answers) // 2 :], strict=True)
    return pairs


def check_different_answers(batches: Batches) -> Check:
    pairs = _completions(batches)
    different = sum(chosen != rejected for chosen, rejected in pairs)
    return Check(
        "chosen ≠ rejected",
        different == len(pairs),
        f"{different} of {len(pairs)} pairs differ in their tokens",
        "Remove the pairs whose answers are the same from the data of notebook 02.",
    )


def check_end_of_turn(trainer: DPOTrainer, batches: Batches) -> Check:
    """Every answer ends in the token that ends a turn in the chat template and at which sampling stops.

    White space may follow it (Qwen2-VL's template has a newline). A template that ends no turn
    (LLaVA's) does no harm where the collator itself ends the answers.
    """
    processor = trainer.processing_class
    tokenizer, stops = processor.tokenizer, trainer.model.generation_config.eos_token_id
    answers = [ids for pair in _completions(batches) for ids in pair]
    closed = sum(tokenizer.decode(ids).rstrip().endswith(tokenizer.eos_token) for ids in answers)
    after = prompts.text_after_answer(processor)
    stopping = tokenizer.eos_token_id in (stops if isinstance(stops, list) else [stops])
    return Check(
        "end of turn",
        closed == len(answers) and after in ("", tokenizer.eos_token) and stopping,
        f"{closed} of {len(answers)} answers end in {tokenizer.eos_token}, the template writes {after or 'nothing'}, "
        f"sampling {'stops' if stopping else 'does not stop'} there",
        "The model would not learn to stop: give the tokenizer, in the cell of new_trainer, the eos_token with which "
        "the chat template closes an answer, and generation_config the same.",
    )
