"""Best of n: sample n answers to a question and keep the one that a ranker likes best.

No training is needed, only samples; and the curve over n shows at once what training against the
ranker would come to. What the ranker says rises with n, always. What is true rises with it as far
as the ranker knows it, and falls where it is *hacked*: the more answers there are to choose from,
the likelier one is among them that it overrates (Gao et al. 2023, arXiv 2210.10760). Taught in
notebook 07.

N answers to each task are sampled and scored once. The best of n < N is then the mean over all
subsets of n of them, in closed form: in the order of the scores, answer i of N is the best of
C(i − 1, n − 1) of the C(N, n) subsets. Answers of equal scores share what they have together, as a
coin among them would. So the curve is smooth, and nothing is sampled twice.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import gammaln
from scipy.stats import rankdata
from transformers import ProcessorMixin

from helpers.data import Task
from helpers.models import VLM, SampledAnswer, sample_task_answers
from helpers.rewards import Ranker
from helpers.statistics import (
    SIGNIFICANCE_LEVEL,
    Estimate,
    TableRows,
    cluster_bootstrap,
    sign_flip_p,
)

from .rightness import Rightness

SIZES = (1, 2, 4, 8, 16, 32, 64)


def kl_bound(n: int) -> float:
    """Return how far best-of-n is from the policy at most: KL ≤ log n − (n − 1) / n, in nats.

    Stiennon et al. 2020 (arXiv 2009.01325) give it; that it is a bound is shown by Beirami et al.
    2024 (arXiv 2401.01879).

    >>> round(kl_bound(1), 3), round(kl_bound(8), 3)
    (0.0, 1.204)
    """
    return math.log(n) - (n - 1) / n


def best_weights(scores: np.ndarray, n: int) -> np.ndarray:
    """Return how often each of N answers is the best of n of them: (tasks, N) → (tasks, N).

    A row sums up to 1. Raises ValueError for n outside 1 … N.
    """
    number = scores.shape[1]
    if not 1 <= n <= number:
        raise ValueError(f"the best of {n} of {number} samples: n is 1 to {number}")
    places = np.arange(1, number + 1)
    # log C(i − 1, n − 1) − log C(N, n); below n there is no such subset
    with np.errstate(all="ignore"):
        logs = gammaln(places) - gammaln(places - n + 1) - gammaln(n)
    logs -= gammaln(number + 1) - gammaln(n + 1) - gammaln(number - n + 1)
    by_place = np.where(places >= n, np.exp(logs), 0.0)
    # sums up to a place, so that equal scores can share
    sums = np.concatenate([[0.0], np.cumsum(by_place)])
    first = rankdata(scores, "min", axis=1).astype(int)
    last = rankdata(scores, "max", axis=1).astype(int)
    return (sums[last] - sums[first - 1]) / (last - first + 1)


@dataclass(frozen=True)
class BestOfN:
    """What the best of n answers scores, and how often it is right, for every n up to N."""

    ranker: str
    scores: np.ndarray  # (tasks, N), the ranker's
    right: np.ndarray | None  # (tasks, N), 1 where an answer is right; None: nobody knows
    photos: Sequence[str]  # of each task: what its interval and tests take as one

    @property
    def sizes(self) -> list[int]:
        """The n of the table: 1, 2, 4, … up to N."""
        return [n for n in SIZES if n <= self.scores.shape[1]]

    def score_of(self, n: int) -> Estimate:
        """The mean score of the best of n."""
        return self._mean(self.scores, n)

    def right_of(self, n: int) -> Estimate | None:
        """How often the best of n is right; None if nobody knows."""
        return None if self.right is None else self._mean(self.right, n)

    def _mean(self, values: np.ndarray, n: int) -> Estimate:
        of_tasks = self._of_tasks(values, n)
        return cluster_bootstrap(np.zeros_like(of_tasks), of_tasks, self.photos)

    def _of_tasks(self, values: np.ndarray, n: int) -> np.ndarray:
        return (values * best_weights(self.scores, n)).sum(1)

    def p_against(self, n: int, other: int) -> float:
        """Test whether the best of n is as right as the best of `other` (`sign_flip_p`)."""
        gains = self._of_tasks(self.right, n) - self._of_tasks(self.right, other)
        return sign_flip_p(gains, self.photos)

    @property
    def best_size(self) -> int | None:
        """The n of the table whose answers are right most often; None if nobody knows."""
        if self.right is None:
            return None
        return max(self.sizes, key=lambda n: self._of_tasks(self.right, n).mean())

    @property
    def is_hacked(self) -> bool:
        """Are the largest n's answers less right than those of a smaller n, by more than chance?"""
        best = self.best_size
        most = self.sizes[-1]
        return best not in (None, most) and self.p_against(most, best) < SIGNIFICANCE_LEVEL

    def rows(self) -> TableRows:
        """The table, the head first."""
        rows = [["n", "score of the best", "right", "KL at most, nats"]]
        for n in self.sizes:
            right = self.right_of(n)
            cells = [self.score_of(n).short_text(), right.short_text() if right else "not known"]
            rows.append([str(n), *cells, f"{kl_bound(n):.2f}"])
        return rows

    def sentences(self) -> list[str]:
        """What the table allows to say."""
        most = self.sizes[-1]
        first, last = self.score_of(1), self.score_of(most)
        said = [
            f"Best of {most} by {self.ranker}: its score rises from {first.value:.3f} to "
            f"{last.value:.3f}."
        ]
        if self.right is None:
            return [*said, "Whether the answers get better, nobody has said what is right for."]
        before, after = self.right_of(1), self.right_of(most)
        said.append(
            f"Right answers: {before} for one sample, {after} for the best of {most} "
            f"(p = {self.p_against(most, 1):.2g})."
        )
        if self.is_hacked:
            best = self.best_size
            said.append(
                f"⚠️ {self.ranker} is hacked: from n = {best} on its score still rises, and fewer "
                f"answers are right ({self.right_of(best)} at n = {best}; "
                f"p = {self.p_against(most, best):.2g})."
            )
        return said


def sample_best_of_n(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task],
    ranker: Ranker,
    number: int = SIZES[-1],
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> BestOfN:
    """Sample `number` answers to each task, let `ranker` score them, and ask how right they are.

    max_new_tokens: as in `sample_task_answers`.
    """
    how = {"temperature": temperature, "seed": seed, "max_new_tokens": max_new_tokens}
    return choose_among(tasks, sample_task_answers(model, processor, tasks, number, **how), ranker)


def choose_among(
    tasks: Sequence[Task],
    sampled: Sequence[Sequence[SampledAnswer]],
    ranker: Ranker,
) -> BestOfN:
    """Let `ranker` score the answers to each task, (tasks, N), and ask how right they are.

    A ranker that only compares gives places in place of scores.
    """
    # equal answers are scored once: many samples are alike
    texts = []
    for answers in sampled:
        texts.append([answer.text for answer in answers])
    distinct = [list(dict.fromkeys(own)) for own in texts]
    ranked = ranker.rank(tasks, distinct)
    rightness = Rightness(tasks)
    scores = []
    right = []
    for task, own, different, order in zip(tasks, texts, distinct, ranked, strict=True):
        by_text = dict(zip(different, order.values(len(different)), strict=True))
        scores.append([by_text[text] for text in own])
        if rightness.is_known:
            known = {text: float(rightness.is_right(task, text) or 0) for text in different}
            right.append([known[text] for text in own])
    return BestOfN(
        ranker.name,
        np.array(scores),
        np.array(right) if right else None,
        [task.photo for task in tasks],
    )
