"""The same questions to every policy: greedy, sampled, with wrong images, and further ones.

`examine` asks, `exam_metrics` makes of the answers what `helpers/evaluation/paired.py` compares.
What is measured follows from what is known to be true (`truth_judges.py`). Taught in
notebook 07.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from helpers import models
from helpers.models import Policies
from helpers.rewards import heuristic_scorer
from helpers.statistics import Estimate, Proportion, TableRows, sample_mean

from .forgetting import Forgetting
from .paired import (
    Metric,
    PolicyComparison,
    comparison_rows,
    describe_sight,
    find_reward_hacking,
    power_note,
)
from .task_results import TaskResult, binary_measures, evaluate_tasks
from .truth_judges import Judge, judges

EXAM_SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class ExamResult:
    """The answers of one model to all questions of the exam, in the order of the tasks."""

    greedy: TaskResult
    sampled: tuple[TaskResult, ...]  # at temperature 1, one for each seed
    shuffled: TaskResult  # greedy, with the images of other questions
    blank: TaskResult  # greedy, with grey images
    others: list[str]  # greedy answers to the judge's other questions
    seconds: float

    @property
    def judge(self) -> Judge:
        return self.greedy.judge

    def over_seeds(self, short: str) -> np.ndarray:
        """Mean over the seeds of a measure of the sampled answers, (tasks,)."""
        return np.mean([result.values[short] for result in self.sampled], axis=0)

    def sampled_mean(self, short: str) -> Estimate:
        """Mean of a measure of sampled answers; the interval is over tasks, seeds averaged."""
        return sample_mean(self.over_seeds(short))

    def shares(self) -> dict[str, Proportion]:
        """The shares of a chart, all of single answers: sampled ones are of the first seed."""
        sampled = self.sampled[0]
        main, *rest = [found.short for found in binary_measures(self.judge)]
        shares = {
            f"{main}, greedy": self.greedy.share(main),
            f"{main}, sampled (seed {sampled.seed})": sampled.share(main),
            f"{main}, images shuffled": self.shuffled.share(main),
            f"{main}, images blank": self.blank.share(main),
        }
        for short in rest:
            shares[f"{short}, sampled (seed {sampled.seed})"] = sampled.share(short)
        return shares

    def describe_sight(self) -> str:
        """Do the answers come from the image? In words."""
        shares = self.greedy.right_share, self.shuffled.right_share
        return describe_sight(*shares, self.judge.chance)


Exams = Mapping[str, ExamResult]  # by the names of the models


@dataclass(frozen=True)
class PolicyFindings:
    """What the report and a model card say of one policy; all of it can be written as JSON."""

    about: dict[str, Any]  # how it was made: about.json of its adapter
    n: int  # questions that were asked
    rows: TableRows  # its comparison with the base, the first row heads of columns
    details: list[tuple[str, TableRows]]  # (title, table) of its greedy answers, likewise
    sight: str  # do the answers come from the image?
    failures: list[str]  # a sentence each
    language: str  # does it still speak?


def examine(
    policies: Policies,
    name: str,
    judge: Judge,
    seeds: Sequence[int] = EXAM_SEEDS,
) -> ExamResult:
    """Ask the policy `name` everything.

    One greedy answer to each question, `len(seeds)` sampled ones, two with wrong images, and one to
    each of the judge's other questions.
    """
    started = time.monotonic()
    # the same questions, images and seeds for every policy
    with policies.use_policy(name) as model:
        asked = model, policies.processor, judge
        return ExamResult(
            evaluate_tasks(*asked),
            tuple(evaluate_tasks(*asked, temperature=1.0, seed=seed) for seed in seeds),
            evaluate_tasks(*asked, images="shuffled"),
            evaluate_tasks(*asked, images="blank"),
            models.answer_tasks(
                model, policies.processor, judge.others, description="other questions"
            ),
            time.monotonic() - started,
        )


def exam_rows(examined: Exams) -> TableRows:
    """What every model reached, for `report.Section.table`, the head first."""
    first = next(iter(examined.values()))
    measures = first.judge.measures
    main = measures[0]
    seeds = len(first.sampled)
    # wrong images beside right ones, then the other measures
    head = ["model", f"{main.name}, greedy", f"sampled, {seeds} seeds"]
    head += ["images shuffled", "images blank"]
    for found in measures[1:]:
        head += [f"{found.name}, greedy", f"{found.name}, sampled"]
    rows = [[*head, "seconds"]]
    for name, exam in examined.items():
        figures = [exam.greedy.right_share, exam.sampled_mean(main.short)]
        figures += [exam.shuffled.right_share, exam.blank.right_share]
        for found in measures[1:]:
            greedy = exam.greedy.values[found.short]
            mean = exam.greedy.share(found.short) if greedy.dtype == bool else sample_mean(greedy)
            figures += [mean, exam.sampled_mean(found.short)]
        texts = [figure.short_text() for figure in figures]
        rows.append([name, *texts, f"{exam.seconds:.0f}"])
    return rows


def exam_metrics(examined: Exams) -> list[Metric]:
    """Compute every metric of every model on every question, for `compare_policies`."""
    judge = next(iter(examined.values())).judge
    metrics = []
    for place, measure in enumerate(judge.measures):
        greedy, sampled = {}, {}
        for name, exam in examined.items():
            greedy[name] = exam.greedy.values[measure.short]
            sampled[name] = exam.over_seeds(measure.short)
        if place == 0 or measure.truth:
            metrics.append(Metric(measure.name, greedy, measure.rewards, measure.truth))
        name = f"{measure.name}, sampled"
        metrics.append(Metric(name, sampled, measure.rewards, measure.truth))
    return metrics + _other_metrics(examined, judge)


def _other_metrics(examined: Exams, judge: Judge) -> list[Metric]:
    """Are the answers to the other questions right, and what does the heuristic say of answers?

    It is asked of what was not trained, if there is such a thing.
    """
    answers = {name: exam.others or exam.greedy.answers for name, exam in examined.items()}
    asked = judge.others or judge.tasks
    prefix = f"{judge.other_name}: " if judge.others else ""
    metrics = []
    if judge.others:
        measure = judges(judge.others).measures[0]
        values = {name: measure.values(texts) for name, texts in answers.items()}
        metrics.append(Metric(f"{prefix}right", values, truth=True))
    heuristic, values = heuristic_scorer(), {}
    for name, texts in answers.items():
        rows = zip(asked, texts, strict=True)
        totals = [heuristic(None, task.question, text).total for task, text in rows]
        values[name] = np.array(totals)
    metrics.append(Metric(f"{prefix}heuristic", values, ("heuristic",)))
    return metrics


def policy_findings(
    policies: Policies,
    examined: Exams,
    rows: Sequence[PolicyComparison],
    forgetting: Forgetting,
) -> dict[str, PolicyFindings]:
    """Collect what the report and the model cards need of every policy except the base."""
    found = {}
    for name, saved in policies.saved.items():
        if name not in examined:
            continue
        own = [row for row in rows if row.policy == name]
        # its rows of the table, and its answers in detail
        greedy = examined[name].greedy
        judge = greedy.judge
        found[name] = PolicyFindings(
            about=saved.about,
            n=len(judge.tasks),
            rows=comparison_rows(own),
            details=judge.details(greedy.answers),
            sight=examined[name].describe_sight(),
            failures=policy_failures(own, judge.failures(greedy.answers)),
            language=forgetting.verdict(name),
        )
    return found


def policy_failures(rows: Sequence[PolicyComparison], unreadable: Sequence[str] = ()) -> list[str]:
    """List what went wrong with one policy, a sentence each; `unreadable` are the judge's own.

    If nothing did, say what these questions cannot show.
    """
    found = find_reward_hacking(rows)
    # what can be claimed to be worse, then what merely broke
    found += [str(row) for row in rows if row.direction < 0]
    for row in rows:
        if row.broken and row.direction >= 0:
            found.append(
                f"{row.broken} items that the base had right are wrong now ({row.metric})."
            )
    found += unreadable
    return found or [f"None found by these questions. {power_note(rows[0].n, rows)}"]
