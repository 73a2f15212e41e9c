"""Figures of answers to counting questions: exact counts, errors of each class, presence.

An answer that `counting.parse_counts` cannot read states no counts. Such answers are a figure of
their own (`unparsed`) and never counts of 0:

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
from helpers.statistics import Estimate, Proportion, TableRows, format_figure, sample_mean, share_of

FIGURES = ("exact", "absolute_error", "bias", "precision", "recall", "f1")  # of a class


@dataclass(frozen=True)
class ClassMetrics:
    """Figures of one class, over the questions that ask for it; None: nothing to divide by."""

    name: str
    exact: Proportion  # share of all answers with the true count; an unparsed one is wrong
    absolute_error: Estimate | None  # mean of |stated − true|, parsed answers
    bias: Estimate | None  # mean of stated − true, parsed answers: below 0 is under-counting
    precision: Proportion | None  # of parsed answers that state more than 0: truth is, too
    recall: Proportion | None  # of parsed answers whose truth is more than 0: stated is, too
    f1: float | None  # of presence; None if no truth of a parsed answer is more than 0


@dataclass(frozen=True)
class CountMetrics:
    unparsed: Proportion  # share of all answers that state no readable counts
    exact: Proportion  # share of all answers with every true count; an unparsed one is wrong
    classes: tuple[ClassMetrics, ...]

    @property
    def macro(self) -> dict[str, float | None]:
        """Mean of each figure over the classes in which it is defined; None if it is in none."""
        means = {}
        for name in FIGURES:
            figures = [getattr(cls, name) for cls in self.classes]
            values = [getattr(f, "value", f) for f in figures if f is not None]
            means[name] = float(np.mean(values)) if values else None
        return means

    def rows(self) -> TableRows:
        """A table: a header, a row for each class, their mean, and the figures of whole answers."""
        head = ["class"]
        for name in FIGURES:
            denominator = "all" if name == "exact" else "parsed"
            head.append(f"{name.replace('_', ' ')}, {denominator}")
        table = [head]
        for cls in self.classes:
            figures = [format_figure(getattr(cls, name)) for name in FIGURES]
            table.append([cls.name, *figures])
        table.append(["mean of the classes", *map(format_figure, self.macro.values())])
        # figures of whole answers stand in the column of `exact`
        filler = [""] * (len(FIGURES) - 1)
        table.append(["every class at once", str(self.exact), *filler])
        table.append(["unparsed", str(self.unparsed), *filler])
        return table


def count_metrics(answers: Sequence[str], truths: Sequence[Mapping[str, int]]) -> CountMetrics:
    """Figures of `answers`, whose true counts are `truths`; the module says which are over which.

    Questions may ask for different classes. Raises UsageError for lists of different lengths, no
    answers, and truths that are no counts.
    """
    if len(answers) != len(truths) or not answers:
        raise UsageError(
            f"{len(answers)} answers and {len(truths)} truths: as many of each, and at least one."
        )
    if not all(isinstance(answer, str) for answer in answers):
        raise UsageError("answers: one is not a text; an empty answer is ''.")
    rows = []  # (stated counts or None, true counts) of every answer
    for place, (answer, truth) in enumerate(zip(answers, truths, strict=True)):
        known = _check_truth(truth, place)
        rows.append((parse_counts(answer, list(known)), known))
    names = dict.fromkeys(name for _, truth in rows for name in truth)
    return CountMetrics(
        share_of(stated is None for stated, _ in rows),
        share_of(stated == truth for stated, truth in rows),
        tuple(_class_metrics(name, rows) for name in names),
    )


def _check_truth(truth: Mapping[str, int], place: int) -> Counts:
    counts = truth.values() if isinstance(truth, Mapping) else ()
    if not counts or not all(isinstance(n, Integral) and n >= 0 for n in counts):
        raise UsageError(
            f"truths[{place}] is {truth!r}; give true counts such as {{'cars': 2, 'buses': 0}}."
        )
    return {name: int(n) for name, n in truth.items()}


def _class_metrics(name: str, rows: Sequence[tuple[Counts | None, Counts]]) -> ClassMetrics:
    # (stated counts or None, true count) of every question about the class
    asked = [(stated, truth[name]) for stated, truth in rows if name in truth]
    parsed = [(stated[name], true) for stated, true in asked if stated is not None]
    errors = [said - true for said, true in parsed]
    # is it there where the answer says so, and is it said where it is there?
    claimed = [true > 0 for said, true in parsed if said > 0]
    present = [said > 0 for said, true in parsed if true > 0]
    # the harmonic mean of precision and recall
    f1 = 2 * sum(claimed) / (len(claimed) + len(present)) if present else None
    return ClassMetrics(
        name,
        share_of(stated is not None and stated[name] == true for stated, true in asked),
        sample_mean([abs(error) for error in errors]),
        sample_mean(errors),
        share_of(claimed),
        share_of(present),
        f1,
    )
