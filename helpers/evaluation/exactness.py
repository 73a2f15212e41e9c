"""Held-out evaluation: does the answer state the true counts, and does it come from the image?

The same questions are asked with the right images, with the images of other items ("shuffled") and
with grey ones ("blank"). A model that reads the image falls to chance on the latter two; one that
does not never needed them. Taught in notebook 07.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import ProcessorMixin

from helpers import models
from helpers.data import CountedImage, counting_questions, is_exact, is_well_formed, parse_counts
from helpers.files import open_image
from helpers.models import VLM
from helpers.statistics import Proportion, derangement, proportion

CONDITIONS = ("right", "shuffled", "blank")


@dataclass(frozen=True)
class CountingResult:
    """Answers to one set of counting questions; all sequences are in the order of the items."""

    items: Sequence[CountedImage]
    answers: list[str]
    images: str  # "right", "shuffled" or "blank"
    temperature: float
    seed: int

    @property
    def exact(self) -> np.ndarray:  # (items,) bool: every count is true
        return np.array(
            [is_exact(a, item.counts) for a, item in zip(self.answers, self.items, strict=True)]
        )

    @property
    def well_formed(self) -> np.ndarray:  # (items,) bool: exactly the answer sentence
        return np.array(
            [
                is_well_formed(a, list(i.counts))
                for a, i in zip(self.answers, self.items, strict=True)
            ]
        )

    @property
    def exact_share(self) -> Proportion:
        return proportion(int(self.exact.sum()), len(self.items))

    @property
    def well_formed_share(self) -> Proportion:
        return proportion(int(self.well_formed.sum()), len(self.items))

    def errors(self) -> dict[str, np.ndarray]:
        """Stated minus true count of each class, (items,); NaN where the answer has no counts."""
        rows = [
            parse_counts(a, list(item.counts))
            for a, item in zip(self.answers, self.items, strict=True)
        ]
        return {
            cls: np.array(
                [
                    np.nan if r is None else r[cls] - i.counts[cls]
                    for r, i in zip(rows, self.items, strict=True)
                ]
            )
            for cls in self.items[0].counts
        }


def images_for(
    items: Sequence[CountedImage], condition: str = "right", seed: int = 0
) -> list[Image.Image]:
    """The images to show with the questions about `items`: their own, each other's, or grey ones."""
    images = [open_image(item.path) for item in items]
    if condition == "right":
        return images
    if condition == "shuffled":
        return [images[i] for i in derangement(len(images), seed)]
    if condition == "blank":
        return [Image.new("RGB", image.size, (127, 127, 127)) for image in images]
    raise ValueError(f"unknown condition {condition!r}: choose from {CONDITIONS}")


def evaluate_counting(
    model: VLM,
    processor: ProcessorMixin,
    items: Sequence[CountedImage],
    *,
    images: str = "right",
    temperature: float = 0.0,
    seed: int = 0,
) -> CountingResult:
    """Ask the counting question about every item (greedy at temperature 0)."""
    asked = counting_questions(items)
    answers = models.generate_answers(
        model,
        processor,
        images_for(items, images, seed),
        asked.questions,
        temperature=temperature,
        seed=seed,
        max_new_tokens=models.answer_budget(processor, asked.answers),
        description=f"{images} images, T = {temperature:g}",
    )
    return CountingResult(items, answers, images, temperature, seed)


@dataclass(frozen=True)
class GreedyAndSampled:
    """Greedy answers to some counting questions, and answers sampled at temperature 1."""

    greedy: CountingResult
    sampled: CountingResult

    def shares(self) -> dict[str, Proportion]:
        """The three shares that tell whether a training worked."""
        return {
            "exact": self.greedy.exact_share,
            "exact, sampled": self.sampled.exact_share,
            "well formed, sampled": self.sampled.well_formed_share,
        }


def evaluate_greedy_and_sampled(
    model: VLM, processor: ProcessorMixin, items: Sequence[CountedImage]
) -> GreedyAndSampled:
    """Ask the counting question about every item twice: greedy, and sampled with seed 0."""
    greedy, sampled = (
        evaluate_counting(model, processor, items, temperature=t) for t in (0.0, 1.0)
    )
    return GreedyAndSampled(greedy, sampled)


def chance_exact(items: Sequence[CountedImage]) -> float:
    """Probability that the true counts of another item happen to be right for this one."""
    keys = [tuple(item.counts.values()) for item in items]
    n = len(keys)
    return sum(k * (k - 1) for k in Counter(keys).values()) / (n * (n - 1))
