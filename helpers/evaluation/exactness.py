"""Held-out evaluation: does the answer state the true counts, and does it come from the image?

The same questions are asked with the right images, with the images of other items ("shuffled") and
with grey ones ("blank"). A model that reads the image falls to chance on the latter two; one that
does not never needed them. Taught in notebook 07.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers import ProcessorMixin

from helpers import models
from helpers.data import (
    CountedImage,
    Counts,
    counting_questions,
    is_exact,
    is_well_formed,
    parse_counts,
)
from helpers.files import open_image
from helpers.models import VLM
from helpers.statistics import Proportion, derangement, share_of

Items = Sequence[CountedImage]
# which images are shown with the questions
CONDITIONS = ("right", "shuffled", "blank")
# the middle of black and white
GREY = (127, 127, 127)


@dataclass(frozen=True)
class CountingResult:
    """Answers to one set of counting questions; all sequences are in the order of the items."""

    items: Items
    answers: list[str]
    images: str  # "right", "shuffled" or "blank"
    temperature: float
    seed: int

    @property
    def exact(self) -> np.ndarray:  # (items,) bool: every count is true
        return np.array(self._judge(is_exact))

    @property
    def well_formed(self) -> np.ndarray:  # (items,) bool: exactly the answer sentence
        return np.array(self._judge(lambda answer, counts: is_well_formed(answer, list(counts))))

    def _judge(self, judge: Callable) -> list:
        """What `judge(answer, true counts)` says of every answer."""
        pairs = zip(self.answers, self.items, strict=True)
        return [judge(answer, item.counts) for answer, item in pairs]

    @property
    def exact_share(self) -> Proportion:
        return share_of(self.exact)

    @property
    def well_formed_share(self) -> Proportion:
        return share_of(self.well_formed)

    def errors(self) -> dict[str, np.ndarray]:
        """Stated minus true count of each class, (items,); NaN where the answer has no counts."""
        # an answer without counts is off by nobody knows how much: NaN
        classes = list(self.items[0].counts)

        def differences(answer: str, counts: Counts) -> list[float]:
            stated = parse_counts(answer, classes) or dict.fromkeys(classes, math.nan)
            return [stated[cls] - counts[cls] for cls in classes]

        columns = np.array(self._judge(differences)).T
        return dict(zip(classes, columns, strict=True))


def images_for(items: Items, condition: str = "right", seed: int = 0) -> list[Image.Image]:
    """The images to show with the questions about `items`: their own, each other's, or grey."""
    images = [open_image(item.path) for item in items]
    if condition == "right":
        return images
    if condition == "shuffled":
        return [images[i] for i in derangement(len(images), seed)]
    if condition == "blank":
        return [Image.new("RGB", image.size, GREY) for image in images]
    raise ValueError(f"unknown condition {condition!r}: choose from {CONDITIONS}")


def evaluate_counting(
    model: VLM,
    processor: ProcessorMixin,
    items: Items,
    *,
    images: str = "right",
    temperature: float = 0.0,
    seed: int = 0,
) -> CountingResult:
    """Ask the counting question about every item (greedy at temperature 0)."""
    # the questions, and the true answers, whose length sets the budget of tokens
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
    model: VLM, processor: ProcessorMixin, items: Items
) -> GreedyAndSampled:
    """Ask the counting question about every item twice: greedy, and sampled with seed 0."""
    greedy = evaluate_counting(model, processor, items)
    sampled = evaluate_counting(model, processor, items, temperature=1.0)
    return GreedyAndSampled(greedy, sampled)


def chance_exact(items: Items) -> float:
    """Probability that the true counts of another item happen to be right for this one."""
    n = len(items)
    same = Counter(tuple(item.counts.values()) for item in items)
    # ordered pairs of items with the same counts, of all pairs
    return sum(k * (k - 1) for k in same.values()) / (n * (n - 1))
