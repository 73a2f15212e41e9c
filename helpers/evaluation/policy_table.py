"""What reinforcement learning has reached: a table of policies, and scores of their greedy answers.

Every policy answers the held-out questions that the base has answered. Taught in
notebook 05.
"""

from collections.abc import Sequence

import numpy as np
from transformers import ProcessorMixin

from helpers import models
from helpers.data import Task
from helpers.models import VLM
from helpers.rewards import Scorer, score_all
from helpers.statistics import TableRows, mcnemar_p
from helpers.training import PPOTrainer, log_mean

from .task_results import GreedyAndSampled

LAST_ROWS = 5  # iterations that the KL of a row is the mean of


class PolicyTable:
    """Rows for `report.Section.table`: the head, the base, and each policy that was added."""

    def __init__(self, base: GreedyAndSampled):
        self.base = base
        # Names with a comma say already how the answers were made
        shares = [f"greedy {name}" if "," not in name else name for name in base.shares()]
        first, *rest = shares or [""]
        head = ["policy", f"{first.removeprefix('greedy ')} as a judge", first, *rest]
        self.rows: TableRows = [
            [*head, "p (McNemar)", "samples", "seconds", "KL"],
            [
                "base",
                "",
                *_share_texts(base),
                "",
                "",
                "",
                "0",  # it is where the KL is measured from
            ],
        ]

    def add(self, name: str, trainer: PPOTrainer, result: GreedyAndSampled) -> None:
        """Add what a trained policy reached.

        p compares its greedy answers with the base's. What was the reward is a circular judge of
        the policy that it trained; without a known truth there is no judge here.
        """
        measures = self.base.judge.measures
        judge, p = "no truth is known", ""
        if measures:
            # a sum of scorers has all their names
            parts = trainer.sampler.score.__name__.split("+")
            is_reward = any(part in measures[0].rewards for part in parts)
            judge = "circular" if is_reward else "independent"
            p = f"{mcnemar_p(self.base.greedy.right, result.greedy.right):.1g}"
        samples = int(trainer.log[-1]["samples"])
        kl = log_mean(trainer.log[-LAST_ROWS:], "objective/kl")
        costs = [
            p,
            str(samples),
            f"{trainer.seconds:.0f}",
            f"{kl:.2f}",
        ]
        self.rows.append([name, judge, *_share_texts(result), *costs])


def _share_texts(result: GreedyAndSampled) -> list[str]:
    return [share.short_text() for share in result.shares().values()] or [""]


def score_greedy_answers(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    *scorers: Scorer,
) -> list[np.ndarray]:
    """Totals of the greedy answers to the tasks by each scorer, (tasks,) each.

    The scorers see no image.
    """
    answers = models.answer_tasks(model, processor, tasks)
    rows = []
    for task, text in zip(tasks, answers, strict=True):
        rows.append(task.scorer_inputs([], text))
    totals = []
    for scorer in scorers:
        scores = score_all(scorer, rows)
        totals.append(np.array([score.total for score in scores], dtype=float))
    return totals
