"""What reinforcement learning has reached: a table of policies, and scores of their greedy answers.

Every policy answers the held-out counting questions that the base has answered. Taught in
notebook 05.
"""

from collections.abc import Sequence

import numpy as np
from transformers import ProcessorMixin

from helpers import models
from helpers.data import Task
from helpers.models import VLM
from helpers.rewards import Scorer, count_exact, score_all
from helpers.statistics import TableRows, mcnemar_p
from helpers.training import PPOTrainer, log_mean

from .exactness import GreedyAndSampled

LAST_ROWS = 5  # iterations that the KL of a row is the mean of


class PolicyTable:
    """Rows for `report.Section.table`: the head, the base, and each policy that was added."""

    HEAD = (
        "policy",
        "exact as a judge",
        "greedy exact",
        "sampled exact",
        "sampled, well formed",
        "p (McNemar)",
        "samples",
        "seconds",
        "KL",
    )

    def __init__(self, base: GreedyAndSampled):
        self.base = base
        self.rows: TableRows = [
            list(self.HEAD),
            ["base", "", *_share_texts(base), "", "", "", "0"],
        ]

    def add(self, name: str, trainer: PPOTrainer, result: GreedyAndSampled) -> None:
        """Add what a trained policy reached.

        p compares its greedy answers with the base's. Exact counts are a circular judge of a policy
        whose reward they were.
        """
        # what was the reward cannot judge the policy that it trained
        judge = "circular" if trainer.sampler.score is count_exact else "independent"
        p = mcnemar_p(self.base.greedy.exact, result.greedy.exact)
        samples = int(trainer.log[-1]["samples"])
        kl = log_mean(trainer.log[-LAST_ROWS:], "objective/kl")
        costs = [f"{p:.1g}", str(samples), f"{trainer.seconds:.0f}", f"{kl:.2f}"]
        self.rows.append([name, judge, *_share_texts(result), *costs])


def _share_texts(result: GreedyAndSampled) -> list[str]:
    return [share.short_text() for share in result.shares().values()]


def score_greedy_answers(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    *scorers: Scorer,
) -> list[np.ndarray]:
    """Totals of the greedy answers to the tasks by each scorer, (tasks,) each.

    The model sees the first image and the last turn of a task; the scorers see no image.
    """
    paths = [task.images[0] for task in tasks]
    questions = [task.question for task in tasks]
    answers = models.generate_answers(model, processor, paths, questions)
    rows = [task.scorer_inputs([], text) for task, text in zip(tasks, answers, strict=True)]
    totals = []
    for scorer in scorers:
        totals.append(np.array([score.total for score in score_all(scorer, rows)], dtype=float))
    return totals
