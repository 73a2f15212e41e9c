"""Checks of what goes into the model: images, lengths, answers.

The first half of `helpers/doctor/checks.py`. A sample of the rows goes through the processor, some
of them through the trainer's collator; nothing is computed but the vision tower's features, to
count them. Taught in notebook 04.
"""

import operator
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
from helpers.models import backbone_of, image_vectors, prompts, stop_ids, vision_inputs

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

    def __str__(self) -> str:
        failed = "⚠️" if self.warns else "✗"
        return f"{'✓' if self.passed else failed} {self.name:<19}  {self.measured}"


@dataclass(frozen=True)
class RowInputs:
    """Tokens, contrast and kept pixels of a row after the processor; None where is no image."""

    tokens: int  # image, prompt and the longer answer
    # largest standard deviation of a colour in the flattest image, 0–255
    contrast: float | None = None
    kept_pixels: float | None = None  # smallest share of pixels, at most 1


def row_inputs(processor: ProcessorMixin, row: dict[str, Any]) -> RowInputs:
    pair = from_trl(row)
    images = pair.images
    # what the model reads of the row: prompt with images, and an answer
    prompt = prompts.render_conversation(processor, pair.prompt, len(images))
    inputs = prompts.tokenize(processor, [prompt], [images])
    answers = (prompts.answer_ids(processor, text) for text in (pair.chosen, pair.rejected))
    tokens = inputs["input_ids"].shape[1] + max(map(len, answers))
    if not images or "pixel_values" not in inputs:
        return RowInputs(tokens)
    # what it sees of the images
    contrast = min(max(ImageStat.Stat(image.convert("RGB")).stddev) for image in images)
    pixels = sum(image.width * image.height for image in images)
    kept = _pixels(processor, inputs, len(images)) / pixels
    return RowInputs(tokens, contrast, min(1.0, kept))


def _pixels(processor: ProcessorMixin, inputs: BatchFeature, images: int) -> int:
    """How many pixels the model gets to see: patches × patch², or tiles.

    Tiles without the small views of the whole.
    """
    images_processor = processor.image_processor
    if "image_grid_thw" in inputs:  # Qwen-VL
        patches = int(inputs["image_grid_thw"].prod(-1).sum())
        return patches * images_processor.patch_size**2
    if "image_position_ids" in inputs:  # Gemma 4; −1 where no patch is
        patches = int((inputs["image_position_ids"][..., 0] >= 0).sum())
        return patches * images_processor.patch_size**2
    if "spatial_shapes" in inputs:  # LFM2-VL
        patches = int(inputs["spatial_shapes"].prod(-1).sum())
        return patches * images_processor.encoder_patch_size**2
    shape = inputs["pixel_values"].shape  # (…, colours, height, width)
    tiles = shape.numel() // shape[-3:].numel()
    if tiles > images:
        tiles -= images
    return tiles * shape[-2:].numel()


def check_image_tokens(trainer: DPOTrainer, examples: Examples) -> Check:
    """Image tokens of each pair = vectors that the vision tower makes of its images."""
    remedy = (
        "The image is not in the prompt as the model expects it: "
        "keep the column name `images` in the data of notebook 02, and load model and processor "
        "of one and the same checkpoint in the cell of new_trainer."
    )
    right = True
    in_prompt = set()
    made = set()
    for example in examples:
        try:
            batch = collate(trainer, [example])
        except (torch.OutOfMemoryError, UsageError):
            raise
        except (RuntimeError, ValueError) as error:
            # Qwen-VL's positions are made from the number of tokens
            reason = str(error).splitlines()[0]
            return Check("image tokens", False, f"no batch can be made: {reason}", remedy)
        is_image = _inputs(batch)["input_ids"] == prompts.image_token_id(trainer.processing_class)
        tokens = is_image.sum(1).tolist()  # one number a row of the batch
        vectors = _vectors(trainer, batch)
        right &= min(tokens) > 0 and sum(tokens) == vectors
        in_prompt.update(tokens)
        made.add(round(vectors / len(tokens)))
    measured = f"{sorted(in_prompt)} in the prompts, {sorted(made)} from the vision tower"
    return Check("image tokens", right, measured, remedy)


def _inputs(batch: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for the model, from a batch of either layout."""
    return batch["packed"].inputs if "packed" in batch else batch


@torch.no_grad()
def _vectors(trainer: DPOTrainer, batch: dict[str, Any]) -> int:
    """How many vectors the vision tower makes of the images; known ones are not made again."""
    kept = batch["packed"].features if "packed" in batch else {}
    if not kept:
        inputs = _inputs(batch)
        arguments = vision_inputs(inputs)
        if not arguments:
            return 0
        with trainer.accelerator.autocast():
            output = backbone_of(trainer.model).get_image_features(**arguments).pooler_output
        kept = {"pooled": output if isinstance(output, Tensor) else torch.cat(list(output))}
    return len(image_vectors(kept))


def check_pixel_values(looks: Sequence[RowInputs]) -> Check:
    contrasts = [look.contrast for look in looks if look.contrast is not None]
    missing = len(looks) - len(contrasts)
    blank = contrasts.count(0)
    return Check(
        "pixel values",
        not missing and not blank,
        f"of {len(looks)} rows {missing} have no image and {blank} a blank one; "
        f"least contrast {min(contrasts, default=0.0):.1f} of 255",
        "Look at the pictures in the data of notebook 02: "
        "remove the rows without one, or correct their paths.",
    )


def check_image_size(looks: Sequence[RowInputs], rows: int) -> Check:
    kept = [look.kept_pixels for look in looks if look.kept_pixels is not None]
    least = min(kept, default=0.0)
    return Check(
        "image size",
        least >= MIN_KEPT_PIXELS,
        f"the model sees at least {least:.0%} of an image's pixels ({len(looks)} of {rows} rows)",
        f"Under {MIN_KEPT_PIXELS:.0%} small things are gone: give check_machine, "
        "whose plan the model is loaded with, a larger max_pixels, "
        "or cut the images to what matters in the data of notebook 02.",
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
        f"longest row {longest} tokens ({len(looks)} of {rows} rows), "
        f"the model takes {limit}, max_length {cut}",
        "Leave max_length at None in the trainer of the cell of new_trainer; "
        "if rows are too long, give check_machine, whose plan the model is loaded with, "
        "a smaller max_pixels, or remove the longest rows from the data of notebook 02.",
    )


def _completions(batches: Batches) -> list[list[int]]:
    """Token ids of the answers: of each batch the chosen ones, then the rejected ones."""
    answers = []
    for batch in batches:
        for ids, mask in zip(batch["input_ids"], batch["completion_mask"], strict=True):
            answers.append(ids[mask.bool()].tolist())
    return answers


def check_different_answers(batches: Batches) -> Check:
    pairs = 0
    different = 0
    for batch in batches:
        # the chosen answers come first, then the rejected ones
        answers = _completions([batch])
        half = len(answers) // 2
        pairs += half
        different += sum(map(operator.ne, answers[:half], answers[half:]))
    return Check(
        "chosen ≠ rejected",
        different == pairs,
        f"{different} of {pairs} pairs differ in their tokens",
        "Remove the pairs whose answers are the same from the data of notebook 02.",
    )


def check_end_of_turn(trainer: DPOTrainer, batches: Batches) -> Check:
    """Every answer ends in the token that ends a turn and at which sampling stops.

    White space may follow it (Qwen2-VL's chat template has a newline). A template that ends no turn
    (LLaVA's) does no harm where the collator itself ends the answers.
    """
    processor = trainer.processing_class
    end = prompts.end_of_turn(processor)
    texts = processor.tokenizer.batch_decode(_completions(batches))
    closed = sum(text.rstrip().endswith(end) for text in texts)
    # three have to agree: the data, the chat template and sampling
    after = prompts.text_after_answer(processor)
    stopping = processor.tokenizer.convert_tokens_to_ids(end) in stop_ids(trainer.model)
    return Check(
        "end of turn",
        closed == len(texts) and after in ("", end) and stopping,
        f"{closed} of {len(texts)} answers end in {end}, the template writes {after or 'nothing'}, "
        f"sampling {'stops' if stopping else 'does not stop'} there",
        "The model would not learn to stop: in the cell of new_trainer, let the chat template "
        "close an answer with one special token, and give generation_config the same.",
    )
