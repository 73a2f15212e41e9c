"""Figures of answers to counting questions: exact counts, errors of each class, and who is said to be there.

An answer that `counting.parse_counts` cannot read states no counts. Such answers are a figure of their
own (`unparsed`) and never counts of 0:

    over all answers          unparsed, exact, exact of a class (an unparsed answer is wrong)
    over parsed answers only  absolute error, bias, precision, recall and F1 of presence

A model that only answers what is easy looks good in the second group; read it beside `unparsed`.

Simplification: intervals take answers as independent, though questions may share an image.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np

from helpers.data import Counts, parse_counts
from helpers.files import UsageError
from helpers.statistics import Estimate, Proportion, proportion, sample_mean


@dataclass(frozen=True)
class ClassMetrics:
    """Figures of one class, over the questions that ask for it; None where there is nothing to divide by."""

    name: str
    exact: Proportion  # share of all answers with the true count; an unparsed one is wrong
    absolute_error: Estimate | None  # mean of |stated − true|, parsed answers
    bias: Estimate | None  # mean of stated − true, parsed answers: below 0 is under-counting
    precision: (
        Proportion | None
    )  # of the parsed answers that state more than 0: truth is more than 0
    recall: (
        Proportion | None
    )  # of the parsed answers whose truth is more than 0: more than 0 is stated
    f1: float | None  # of presence; None if no truth of a parsed answer is more than 0


@dataclass(frozen=True)
class CountMetrics:
    unparsed: Proportion  # share of all answers that state no readable counts
    exact: Proportion  # share of all answers with the true count of every class; an unparsed one is wrong
    classes: tuple[ClassMetrics, ...]

    @property
    def macro(self) -> dict[str, float | None]:
        """Mean of each figure over the classes in which it is defined; None if it is in none."""
        names = ("exact", "absolute_error", "bias", "precision", "recall", "f1")
        defined = {
            name: [_value(v) for cls in self.classes if (v := getattr(cls, name)) is not None]
            for name in names
        }
        return {
            name: float(np.mean(values)) if values else None for name, values in defined.items()
        }

    def rows(self) -> list[list[str]]:
        """A table: a header, a row for each class, their mean, and the figures of whole answers."""
        figures = list(self.macro)
        head = [
            "class",
            *(f"{name.replace('_', ' ')}, {_denominator_name(name)}" for name in figures),
        ]
        classes = [
            [cls.name, *(_cell(getattr(cls, name)) for name in figures)] for cls in self.classes
        ]
        mean = ["mean of the classes", *map(_cell, self.macro.values())]
        filler = [""] * (len(figures) - 1)
        whole = [
            ["every class at once", str(self.exact), *filler],
            ["unparsed", str(self.unparsed), *filler],
        ]
        return [head, *classes, mean, *whole]


def _denominator_name(figure: str) -> str:
    return "all" if figure == "exact" else "parsed"


def _value(figure: Proportion | Estimate | float) -> float:
    return figure if isinstance(figure, float) else figure.value


def _cell(figure: Proportion | Estimate | float | None) -> str:
    if figure is None:
        return "not defined"
    return f"{figure:.3f}" if isinstance(figure, float) else str(figure)


def count_metrics(answers: Sequence[str], truths: Sequence[Mapping[str, int]]) -> CountMetrics:
    """Figures of `answers`, whose true counts are `truths`; the module says which are over which answers.

    Questions may ask for different classes. Raises UsageError for lists of different lengths, no
    answers, and truths that are no counts.
    """
    if len(answers) != len(truths) or not answers:
        raise UsageError(
            f"{len(answers)} answers and {len(truths)} truths: as many of each, and at least one."
        )
    if not all(isinstance(answer, str) for answer in answers):
        raise UsageError("answers: one is not a text; an empty answer is ''.")
    known = [_check_truth(truth, place) for place, truth in enumerate(truths)]
    stated = [
        parse_counts(answer, list(truth)) for answer, truth in zip(answers, known, strict=True)
    ]
    names = dict.fromkeys(name for truth in known for name in truth)
    return CountMetrics(
        proportion(sum(counts is None for counts in stated), len(answers)),
        proportion(
            sum(counts == truth for counts, truth in zip(stated, known, strict=True)), len(answers)
        ),
        tuple(_class_metrics(name, stated, known) for name in names),
    )


def _check_truth(truth: Mapping[str, int], place: int) -> Counts:
    if (
        isinstance(truth, Mapping)
        and truth
        and all(isinstance(n, Integral) and n >= 0 for n in truth.values())
    ):
        return {name: int(n) for name, n in truth.items()}
    raise UsageError(
        f"truths[{place}] is {truth!r}; give true counts such as {{'cars': 2, 'buses': 0}}."
    )


def _class_metrics(
    name: str, stated: Sequence[Counts | None], truths: Sequence[Counts]
) -> ClassMetrics:
    asked = [
        (counts, truth[name]) for counts, truth in zip(stated, truths, strict=True) if name in truth
    ]
    parsed = [(counts[name], true) for counts, true in asked if counts is not None]
    errors = [said - true for said, true in parsed]
    found = sum(said > 0 and true > 0 for said, true in parsed)
    claimed, present = sum(said > 0 for said, _ in parsed), sum(true > 0 for _, true in parsed)
    return ClassMetrics(
        name,
        proportion(sum(error == 0 for error in errors), len(asked)),
        sample_mean([abs(error) for error in errors]),
        sample_mean(errors),
        proportion(found, claimed) if claimed else None,
        proportion(found, present) if present else None,
        2 * found / (claimed + present) if present else None,
    )
