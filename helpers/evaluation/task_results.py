"""Held-out evaluation: is the answer right, and does it come from the image?

The same questions are asked with the right images, with the images of other questions ("shuffled")
and with grey ones ("blank"). A model that reads the image falls to chance on the latter two; one
that does not never needed them. What is right is said by `truth_judges.py`. Taught in
notebook 07.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image
from transformers import ProcessorMixin

from helpers import models
from helpers.data import Task
from helpers.models import VLM
from helpers.rewards import token_budget
from helpers.statistics import Proportion, derangement, share_of

from .truth_judges import AnswerMeasure, Judge, judges

# which images are shown with the questions
CONDITIONS = ("right", "shuffled", "blank")
# the middle of black and white
GREY = (127, 127, 127)


@dataclass(frozen=True)
class TaskResult:
    """Answers to the questions of a judge, in their order."""

    judge: Judge
    answers: list[str]
    images: str = "right"  # or "shuffled", "blank"
    temperature: float = 0.0
    seed: int = 0

    @cached_property
    def values(self) -> dict[str, np.ndarray]:
        """Every measure of the judge, (tasks,) each, by its short name."""
        return {found.short: found.values(self.answers) for found in self.judge.measures}

    @property
    def right(self) -> np.ndarray:
        """Which answers are right, (tasks,) bool. Raises IndexError where no truth is known."""
        return self.values[self.judge.measures[0].short]

    @property
    def right_share(self) -> Proportion:
        return share_of(self.right)

    def share(self, short: str) -> Proportion:
        """The share of a measure that is right or wrong, by its short name."""
        return share_of(self.values[short])

    def errors(self) -> dict[str, np.ndarray]:
        """Stated minus true number of each thing that is counted, (tasks,)."""
        return self.judge.errors(self.answers)


def task_images(
    tasks: Sequence[Task], condition: str = "right", seed: int = 0
) -> list[list[Image.Image]]:
    """The images to show with each question: its own, those of another question, or grey ones."""
    images = [task.open_images() for task in tasks]
    if condition == "right":
        return images
    if condition == "shuffled":
        return [images[i] for i in derangement(len(images), seed)]
    if condition == "blank":
        return [_greyed(row) for row in images]
    raise ValueError(f"unknown condition {condition!r}: choose from {CONDITIONS}")


def _greyed(images: Sequence[Image.Image]) -> list[Image.Image]:
    return [Image.new("RGB", image.size, GREY) for image in images]


def evaluate_tasks(
    model: VLM,
    processor: ProcessorMixin,
    judge: Judge,
    *,
    images: str = "right",
    temperature: float = 0.0,
    seed: int = 0,
) -> TaskResult:
    """Ask every question of a judge (greedy at temperature 0)."""
    answers = models.answer_tasks(
        model,
        processor,
        judge.tasks,
        images=task_images(judge.tasks, images, seed),
        temperature=temperature,
        seed=seed,
        max_new_tokens=token_budget(processor, judge.tasks),
        description=f"{images} images, T = {temperature:g}",
    )
    return TaskResult(judge, answers, images, temperature, seed)


@dataclass(frozen=True)
class GreedyAndSampled:
    """Greedy answers to some questions, and answers sampled at temperature 1."""

    greedy: TaskResult
    sampled: TaskResult

    @property
    def judge(self) -> Judge:
        return self.greedy.judge

    def shares(self) -> dict[str, Proportion]:
        """The shares that tell whether a training worked; empty where no truth is known."""
        shares = {}
        for place, found in enumerate(binary_measures(self.judge)):
            if place == 0:
                shares[found.short] = self.greedy.share(found.short)
            shares[f"{found.short}, sampled"] = self.sampled.share(found.short)
        return shares


def binary_measures(judge: Judge) -> list[AnswerMeasure]:
    """The measures of a judge that are right or wrong."""
    probe = [""] * len(judge.tasks)
    return [found for found in judge.measures if found.values(probe).dtype == bool]


def evaluate_greedy_and_sampled(
    model: VLM, processor: ProcessorMixin, tasks: Sequence[Task]
) -> GreedyAndSampled:
    """Ask every question twice: greedy, and sampled with seed 0."""
    judge = judges(tasks)
    greedy = evaluate_tasks(model, processor, judge)
    sampled = evaluate_tasks(model, processor, judge, temperature=1.0)
    return GreedyAndSampled(greedy, sampled)
