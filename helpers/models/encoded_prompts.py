"""Prompts and their images as the model reads them: made once, for any answers that will follow.

A prompt is rendered text here (`helpers/models/prompts.py`). `helpers/models/shared_prefix.py` puts
answers behind it, and `helpers/models/generation.py` lets the model go on from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import BatchFeature, ProcessorMixin

from .caches import Features, ImageFeatures, concatenate_features, image_vectors, images_hash
from .prompts import ImageLists, tokenize


@dataclass(frozen=True)
class EncodedPrompts:
    """Prompts that were read; each field holds one entry a prompt."""

    texts: Sequence[str]  # rendered
    image_hashes: Sequence[str]  # `images_hash` of its images
    rows: Sequence[BatchFeature]  # model inputs, (1, seq); without pixels if there are features
    features: Sequence[Features]  # of its images; empty if none are kept

    def __len__(self) -> int:
        return len(self.texts)

    def select(self, numbers: Sequence[int]) -> "EncodedPrompts":
        """Return the prompts with these numbers, in this order."""
        return EncodedPrompts(
            texts=[self.texts[n] for n in numbers],
            image_hashes=[self.image_hashes[n] for n in numbers],
            rows=[self.rows[n] for n in numbers],
            features=[self.features[n] for n in numbers],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["EncodedPrompts"]) -> "EncodedPrompts":
        """Return the prompts of all parts, one part after the other."""
        whole = cls([], [], [], [])
        for part in parts:
            whole.texts.extend(part.texts)
            whole.image_hashes.extend(part.image_hashes)
            whole.rows.extend(part.rows)
            whole.features.extend(part.features)
        return whole

    def mean_features(self) -> Tensor | None:
        """Return the mean image feature of each prompt, (prompts, hidden); None if none are kept.

        It is 0 for a prompt without images.
        """
        kept = [own for own in self.features if own]
        if not kept:
            return None
        # (hidden,), of any prompt that has an image
        no_image = torch.zeros_like(image_vectors(kept[0])[0])
        means = [image_vectors(own).mean(0) if own else no_image for own in self.features]
        return torch.stack(means)


def encode_prompts(
    processor: ProcessorMixin,
    prompts: Sequence[str],
    images: ImageLists,
    features: ImageFeatures | None = None,
) -> EncodedPrompts:
    """Hash the images of each rendered prompt and tokenise it with them, equal ones once.

    With `features`, images that were seen before cost neither the processor nor the vision tower.
    """
    hashes = [images_hash(pictures) for pictures in images]
    if features is not None:
        pairs = features.encode(prompts, images, hashes)
        rows = [inputs for inputs, _ in pairs]
        return EncodedPrompts(prompts, hashes, rows, [own for _, own in pairs])
    known = {}  # (prompt, hash of its images) → model inputs
    rows = []
    for prompt, image_hash, pictures in zip(prompts, hashes, images, strict=True):
        key = prompt, image_hash
        if key not in known:
            known[key] = tokenize(processor, [prompt], [pictures])
        rows.append(known[key])
    return EncodedPrompts(prompts, hashes, rows, [{}] * len(rows))


def prompt_inputs(
    processor: ProcessorMixin, prompts: EncodedPrompts, padding_side: str = "left"
) -> tuple[dict[str, Tensor], Features]:
    """Return the model inputs of all prompts together, and their image features, if kept."""
    # All others are filled up with 0: masked, text, black
    paddings = {"input_ids": processor.tokenizer.pad_token_id}
    inputs = {}
    # A prompt without images has fewer inputs
    for name in {name: None for row in prompts.rows for name in row}:
        values = [row[name] for row in prompts.rows if name in row]
        inputs[name] = _pad_and_concatenate(values, paddings.get(name, 0), padding_side)
    features = concatenate_features(prompts.features)
    if features:
        # Says that there are images; `use_features` says what they are
        inputs["pixel_values"] = torch.zeros(1)
    return inputs, features


def _pad_and_concatenate(values: Sequence[Tensor], padding: int, side: str) -> Tensor:
    """Make one tensor of several, which may differ in all sizes but the first.

    Rows of tokens, (1, seq), are filled up on the given side. All others are filled up behind:
    pixels, (1, tiles, …), of images that were cut into different numbers of tiles.
    """
    shapes = torch.tensor([value.shape for value in values])
    _, *sizes = shapes.amax(0).tolist()
    # Each value stands in a corner of a tensor of the largest sizes
    padded = []
    for value in values:
        filled = value.new_full((len(value), *sizes), padding)
        if side == "left" and value.ndim == 2:
            filled[:, sizes[0] - value.shape[1] :] = value
        else:
            filled[tuple(map(slice, value.shape))] = value
        padded.append(filled)
    return torch.cat(padded)
