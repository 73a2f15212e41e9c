"""The same questions to every policy: all counts (greedy, sampled, wrong images), one class.

`examine` asks, `exam_metrics` makes of the answers what `helpers/evaluation/paired.py` compares.
Taught in notebook 07.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helpers import models
from helpers.data import CountedImage, one_class_question
from helpers.models import Policies
from helpers.rewards import exact_match, heuristic_scorer
from helpers.statistics import Estimate, Proportion, TableRows, sample_mean

from .counting_metrics import CountMetrics, count_metrics
from .exactness import CountingResult, chance_exact, evaluate_counting
from .paired import (
    Metric,
    PolicyComparison,
    comparison_rows,
    describe_sight,
    find_reward_hacking,
    power_note,
)

EXAM_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class ExamResult:
    """The answers of one model to all questions of the exam, in the order of the items."""

    greedy: CountingResult
    sampled: tuple[CountingResult, ...]  # at temperature 1, one for each seed
    shuffled: CountingResult  # greedy, with the images of other items
    blank: CountingResult  # greedy, with grey images
    one_class: list[str]  # greedy answers to `pairs.one_class_question`
    seconds: float

    @property
    def sampled_exact(self) -> Estimate:
        """Mean share of exact sampled answers; the interval is over items, seeds averaged first."""
        return sample_mean(self.over_seeds("exact"))

    @property
    def sampled_well_formed(self) -> Estimate:
        return sample_mean(self.over_seeds("well_formed"))

    def over_seeds(self, name: str) -> np.ndarray:
        """Share of the seeds whose sampled answer is `exact` or `well_formed`, (items,)."""
        return np.mean([getattr(result, name) for result in self.sampled], axis=0)

    def shares(self) -> dict[str, Proportion]:
        """The shares of a chart, all of single answers: sampled ones are of the first seed."""
        sampled = self.sampled[0]
        return {
            "exact, greedy": self.greedy.exact_share,
            f"exact, sampled (seed {sampled.seed})": sampled.exact_share,
            "exact, images shuffled": self.shuffled.exact_share,
            "exact, images blank": self.blank.exact_share,
            f"well formed, sampled (seed {sampled.seed})": sampled.well_formed_share,
        }

    def describe_sight(self) -> str:
        """Do the answers come from the image? In words."""
        chance = chance_exact(self.greedy.items)
        return describe_sight(self.greedy.exact_share, self.shuffled.exact_share, chance)


Exams = Mapping[str, ExamResult]  # by the names of the models


@dataclass(frozen=True)
class PolicyFindings:
    """What the report and a model card say of one policy; all of it can be written as JSON."""

    about: dict[str, Any]  # how it was made: about.json of its adapter
    n: int  # items that were asked about
    rows: TableRows  # its comparison with the base, the first row heads of columns
    counting: TableRows  # counting metrics of its greedy answers, likewise
    sight: str  # do the answers come from the image?
    failures: list[str]  # a sentence each


def examine(
    policies: Policies, name: str, items: Sequence[CountedImage], seeds: Sequence[int] = EXAM_SEEDS
) -> ExamResult:
    """Ask the policy `name` everything.

    Two greedy generations an item, `len(seeds)` sampled ones, and two with wrong images.
    """
    started = time.monotonic()
    # the same questions, images and seeds for every policy
    with policies.use_policy(name) as model:
        asked = model, policies.processor, items
        return ExamResult(
            evaluate_counting(*asked),
            tuple(evaluate_counting(*asked, temperature=1.0, seed=seed) for seed in seeds),
            evaluate_counting(*asked, images="shuffled"),
            evaluate_counting(*asked, images="blank"),
            models.generate_answers(
                model,
                policies.processor,
                [item.path for item in items],
                [question for question, _ in _one_class_questions(items)],
                description="one class",
            ),
            time.monotonic() - started,
        )


def _one_class_questions(items: Sequence[CountedImage]) -> list[tuple[str, str]]:
    """(question, true answer) about each item."""
    return [one_class_question(item.counts, number) for number, item in enumerate(items)]


def exam_rows(examined: Exams) -> TableRows:
    """What every model reached, for `report.Section.table`, the head first."""
    seeds = len(next(iter(examined.values())).sampled)
    head = ["model", "all counts right, greedy", f"sampled, {seeds} seeds", "images shuffled"]
    rows = [[*head, "images blank", "well formed, greedy", "well formed, sampled", "seconds"]]
    for name, found in examined.items():
        shares = [
            found.greedy.exact_share,
            found.sampled_exact,
            found.shuffled.exact_share,
            found.blank.exact_share,
            found.greedy.well_formed_share,
            found.sampled_well_formed,
        ]
        texts = [share.short_text() for share in shares]
        rows.append([name, *texts, f"{found.seconds:.0f}"])
    return rows


def exam_metrics(examined: Exams) -> list[Metric]:
    """Compute every metric of every model on every item.

    The first two and the last are rewards of this suite.
    """
    # all models were asked about the same items
    items = next(iter(examined.values())).greedy.items
    asked = _one_class_questions(items)
    heuristic = heuristic_scorer()

    # `exam` is the `ExamResult` of one model; each function gives its values, (items,)
    def score_one_class(exam):
        rows = zip(exam.one_class, asked, strict=True)
        return np.array([heuristic(None, question, text).total for text, (question, _) in rows])

    def check_one_class(exam):
        rows = zip(exam.one_class, asked, strict=True)
        scores = [exact_match(None, question, text, true) for text, (question, true) in rows]
        return np.array([score.total > 0 for score in scores])

    def metric(name, measure, reward=None, truth=False):
        values = {model: measure(exam) for model, exam in examined.items()}
        return Metric(name, values, reward, truth)

    # (name, measure, scorer that gives it, does it compare with the truth?)
    return [
        metric("all counts right", lambda exam: exam.greedy.exact, "count_exact", True),
        metric(
            "all counts right, sampled",
            lambda exam: exam.over_seeds("exact"),
            "count_exact",
            True,
        ),
        metric("well formed, sampled", lambda exam: exam.over_seeds("well_formed")),
        metric("one class: right", check_one_class, truth=True),
        metric("one class: heuristic", score_one_class, "heuristic"),
    ]


def policy_findings(
    policies: Policies, examined: Exams, rows: Sequence[PolicyComparison]
) -> dict[str, PolicyFindings]:
    """Collect what the report and the model cards need of every policy except the base."""
    found = {}
    for name, saved in policies.saved.items():
        if name not in examined:
            continue
        own = [row for row in rows if row.policy == name]
        # its rows of the table, and how it counts
        greedy = examined[name].greedy
        counting = count_metrics(greedy.answers, [item.counts for item in greedy.items])
        found[name] = PolicyFindings(
            about=saved.about,
            n=len(greedy.items),
            rows=comparison_rows(own),
            counting=counting.rows(),
            sight=examined[name].describe_sight(),
            failures=policy_failures(own, counting),
        )
    return found


def policy_failures(rows: Sequence[PolicyComparison], counting: CountMetrics) -> list[str]:
    """List what went wrong with one policy, a sentence each.

    If nothing did, say what these items cannot show.
    """
    found = find_reward_hacking(rows)
    # what can be claimed to be worse, then what merely broke
    found += [str(row) for row in rows if row.direction < 0]
    for row in rows:
        if row.broken and row.direction >= 0:
            found.append(
                f"{row.broken} items that the base had right are wrong now ({row.metric})."
            )
    if counting.unparsed.value:
        found.append(f"Answers without readable counts: {counting.unparsed}.")
    return found or [f"None found by these questions. {power_note(rows[0].n, rows)}"]
