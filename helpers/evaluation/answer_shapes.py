"""The shape of answers, which needs no truth: length, repetition, variety, distance from the base.

Training on preferences may change it without anybody's wish: longer answers, the same words again
and again, no end. Taught in notebooks 04, 05 and 07.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from helpers.data import Task
from helpers.models import BASE_POLICY
from helpers.statistics import (
    Estimate,
    Proportion,
    TableRows,
    cluster_bootstrap,
    format_figure,
    repeated_share,
    sample_mean,
    share_of,
)

from .side_by_side import PolicyAnswer
from .text_metrics import distinct_share

SHAPE_COLUMNS = [
    "model",
    "words",
    "tokens",
    "repeated 3-grams",
    "distinct words",
    "empty",
    "cut off",
    "KL to the base, nats",
]
MUCH = 0.1  # share of answers, or of an answer's 3-grams, from which it is worth a sentence


@dataclass(frozen=True)
class AnswerShape:
    """Figures of the answers of one model; None where there is no answer."""

    words: Estimate | None  # of an answer, separated by blanks
    tokens: Estimate | None  # with its end of turn
    repeated: Estimate | None  # share of an answer's 3-grams of tokens that were there before
    distinct: float | None  # different words ÷ words of all answers together
    empty: Proportion | None  # answers of nothing but blanks
    cut: Proportion | None  # answers that came to no end within the tokens that they were given
    kl: Estimate | None  # of an answer: exact KL to the base, summed over its tokens


def answer_shape(answers: Sequence[PolicyAnswer]) -> AnswerShape:
    """Measure the answers of one model."""
    return AnswerShape(
        sample_mean(_words(answers)),
        sample_mean([len(answer.ids) for answer in answers]),
        sample_mean([repeated_share(answer.ids) for answer in answers]),
        distinct_share([answer.text for answer in answers], 1),
        share_of(not answer.text.strip() for answer in answers),
        share_of(not answer.ended for answer in answers),
        sample_mean([sum(answer.kl) for answer in answers]),
    )


def _words(answers: Sequence[PolicyAnswer]) -> list[int]:
    return [len(answer.text.split()) for answer in answers]


@dataclass(frozen=True)
class AnswerShapes:
    """The shapes of several models' answers to the same tasks, the base among them."""

    tasks: Sequence[Task]
    answers: Mapping[str, Sequence[PolicyAnswer]]  # of `ask_all`

    def rows(self) -> TableRows:
        """The table, the head first."""
        rows = [SHAPE_COLUMNS]
        for name, answers in self.answers.items():
            # the base is no distance from itself
            shape = answer_shape(answers)
            cells = [shape.words, shape.tokens, shape.repeated, shape.distinct]
            cells += [shape.empty, shape.cut, shape.kl if name != BASE_POLICY else ""]
            rows.append([name, *map(_cell, cells)])
        return rows

    def sentences(self) -> list[str]:
        """What is worth a word: longer or shorter answers, empty ones, loops, no end."""
        if not self.tasks:
            return ["There is no held-out question: no answers can be looked at."]
        said = []
        for name, answers in self.answers.items():
            if name != BASE_POLICY:
                said.append(self._say_length(name))
            said += _say_what_is_wrong(name, answer_shape(answers))
        return said

    def _say_length(self, name: str) -> str:
        before = _words(self.answers[BASE_POLICY])
        after = _words(self.answers[name])
        # the same questions before and after
        photos = [task.photo for task in self.tasks]
        change = cluster_bootstrap(before, after, photos)
        # an interval without 0 in it
        differs = change.low is not None and not change.low <= 0 <= change.high
        longer = "longer" if change.value > 0 else "shorter"
        found = f"its answers are {longer}" if differs else "no other length can be claimed"
        return (
            f"{name}: {np.mean(after):.1f} words an answer, the base {np.mean(before):.1f}; "
            f"difference {change.short_text()}: {found}."
        )


def _say_what_is_wrong(name: str, shape: AnswerShape) -> list[str]:
    said = []
    if shape.empty.value:
        said.append(f"{name}: answers of nothing but blanks: {shape.empty}.")
    if shape.cut.value >= MUCH:
        said.append(f"⚠️ {name}: answers that came to no end: {shape.cut}. Allow more tokens.")
    if shape.repeated.value >= MUCH:
        said.append(
            f"⚠️ {name}: {shape.repeated.value:.0%} of the 3-grams of an answer were there before: "
            "it says the same again."
        )
    return said


def _cell(figure: Estimate | float | str | None) -> str:
    return figure.short_text() if isinstance(figure, Estimate) else format_figure(figure)
