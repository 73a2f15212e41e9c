"""Whose answers win, policy or base, if a ranker decides, such as a reward model or a judge?

A policy that was trained against the very model that judges it is *circular*: that it wins says
that training ran. A second reward model, trained on the other half of the pairs (`halves`), has
not been trained against. Where the truth is known anyway, it says how often the judge is right.
Taught in notebooks 05 and 07.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from helpers.data import Task
from helpers.models import BASE_POLICY
from helpers.rewards import (
    TASKS_AT_ONCE,
    Ranker,
    RewardModel,
    Scorer,
    ScorerRanker,
    as_ranker,
)
from helpers.statistics import (
    SIGNIFICANCE_LEVEL,
    Estimate,
    Proportion,
    TableRows,
    clustered_share,
    holm_adjust,
    sign_test_p,
)

WIN_COLUMNS = [
    "policy",
    "judge",
    "won / tied / lost",
    "win rate (ties ½) [95 %]",
    "p (Holm)",
    "agrees with the truth [95 %]",
    "so",
]
REWARD_MODEL = "reward_model"  # name of the scorer that `rewards.as_scorer` makes


@dataclass(frozen=True)
class WinRate:
    """One policy against the base on the same tasks, by one judge."""

    policy: str
    judge: str
    wins: int  # tasks
    ties: int
    losses: int
    rate: Estimate  # a tie is half a win; the interval is over photos
    p: float  # exact sign test, a photo counting once
    adjusted: float  # by Holm, over all rows of the table
    circular: bool
    # of the tasks in which one of the two is more right than the other, the share in which the
    # judge prefers that one; None if no truth is known, or none differs
    agreement: Proportion | None

    @property
    def verdict(self) -> str:
        words = "no difference can be claimed"
        if self.adjusted < SIGNIFICANCE_LEVEL:
            words = "better" if self.wins > self.losses else "WORSE"
        return f"{words} (circular: trained against this judge)" if self.circular else words

    def __str__(self) -> str:
        photos = f"{self.wins + self.ties + self.losses} questions"
        return (
            f"{self.policy} against the base by {self.judge}: {self.wins} won, {self.ties} tied, "
            f"{self.losses} lost of {photos}, win rate {self.rate.short_text()}, sign test over "
            f"photos p = {self.adjusted:.2g}: {self.verdict}."
        )


@dataclass(frozen=True)
class WinRates:
    """All policies by all judges; empty if there is no task."""

    found: Sequence[WinRate]

    def rows(self) -> TableRows:
        """The table, the head first."""
        rows = [WIN_COLUMNS]
        for row in self.found:
            counts = f"{row.wins} / {row.ties} / {row.losses}"
            truth = row.agreement.short_text() if row.agreement else "not known"
            cells = [
                row.policy,
                row.judge,
                counts,
                row.rate.short_text(),
                f"{row.adjusted:.2g}",
                truth,
                row.verdict,
            ]
            rows.append(cells)
        return rows

    def sentences(self) -> list[str]:
        """What the table allows to say."""
        if not self.found:
            return ["No judge has compared answers: there is no question, or no scorer."]
        said = []
        for row in self.found:
            said.append(str(row))
            if row.agreement:
                said.append(
                    f"Where one of the two is more right than the other, {row.judge} prefers that "
                    f"one in {row.agreement} ({row.policy})."
                )
        # a policy without any other judge
        for policy in dict.fromkeys(row.policy for row in self.found if row.circular):
            own = [row for row in self.found if row.policy == policy]
            if all(row.circular for row in own):
                said.append(
                    f"⚠️ {policy} is only judged by what it was trained against. A reward model "
                    "of the other half of the pairs could judge it (evaluation.halves)."
                )
        return said


def blind_to_truth(judge: Ranker | Scorer | RewardModel, name: str | None = None) -> Ranker:
    """The judge as a ranker that is not told what is true; one that is a ranker stays as it is.

    name: None is the scorer's own.
    """
    if isinstance(judge, Ranker | RewardModel):
        return as_ranker(judge, name)
    return ScorerRanker(judge, name, told=False)


def is_circular(about: Mapping[str, Any], judge: Ranker | Scorer | RewardModel) -> bool:
    """Was a policy trained against this judge?

    about: its about.json; `reward` is the name of its scorer, sums having several ("a+b"), and
    `reward_hash` the `rewards.head_hash` of its reward model. Without that hash every reward model
    is taken for the same one, to be on the safe side.
    """
    # a sum of scorers has all their names
    names = str(about.get("reward") or "").split("+")
    ranker = blind_to_truth(judge)
    if ranker.reward_hash is None:
        return ranker.name in names
    return REWARD_MODEL in names and about.get("reward_hash") in (None, ranker.reward_hash)


def win_rates(
    tasks: Sequence[Task],
    answers: Mapping[str, Sequence[str]],
    judges: Mapping[str, Ranker | Scorer | RewardModel],
    abouts: Mapping[str, Mapping[str, Any]] | None = None,
    right: Mapping[str, Sequence[float]] | None = None,
) -> WinRates:
    """Let every judge decide between the answers of the base and those of each policy.

    answers: of each model to every task, the base's among them (`texts_of`). judges: by the name
    that tables show; none is told the truth. abouts: about.json of each
    policy, which says what it was trained against. right: of each model how far each answer is
    right, 0 … 1, where the truth is known. Equal answers tie. The p-values are adjusted for all
    rows (Holm 1979).
    """
    photos = [task.photo for task in tasks]
    rows = []
    for name, judge in judges.items() if tasks else ():
        ranker = blind_to_truth(judge)
        tiers = tiers_of_answers(ranker, tasks, answers)
        for policy in answers:
            if policy != BASE_POLICY:
                # what the judge has trained, it cannot judge
                circular = is_circular((abouts or {}).get(policy, {}), ranker)
                gains = np.sign(tiers[BASE_POLICY] - tiers[policy])
                agreement = None
                if right is not None:
                    better = np.sign(np.subtract(right[policy], right[BASE_POLICY], dtype=float))
                    agreement = _agreement(gains, better, photos)
                rows.append(_win_rate(policy, name, gains, photos, circular, agreement))
    # Holm's family is the whole table
    adjusted = holm_adjust({str(number): row.p for number, row in enumerate(rows)})
    return WinRates(
        [replace(row, adjusted=p) for row, p in zip(rows, adjusted.values(), strict=True)]
    )


def _win_rate(
    policy: str,
    judge: str,
    gains: np.ndarray,
    photos: Sequence[str],
    circular: bool,
    agreement: Proportion | None,
) -> WinRate:
    """gains: 1 where the policy wins, 0 for a tie, −1 where it loses, (tasks,)."""
    p = sign_test_p(gains, photos)
    return WinRate(
        policy,
        judge,
        wins=int((gains > 0).sum()),
        ties=int((gains == 0).sum()),
        losses=int((gains < 0).sum()),
        rate=clustered_share((gains + 1) / 2, photos),
        p=p,
        adjusted=p,
        circular=circular,
        agreement=agreement,
    )


def _agreement(gains: np.ndarray, better: np.ndarray, photos: Sequence[str]) -> Proportion | None:
    """The share of decided tasks in which the judge prefers the one that is more right; ties ½."""
    decided = better != 0
    # the product is 1 where judge and truth agree, −1 where they do not, 0 for a tie
    points = (gains[decided] * better[decided] + 1) / 2
    return clustered_share(points, list(np.array(photos)[decided]))


def tiers_of_answers(
    ranker: Ranker,
    tasks: Sequence[Task],
    answers: Mapping[str, Sequence[str]],
) -> dict[str, np.ndarray]:
    """Where every model's answer to each task stands, 0 for the best, (tasks,) each.

    Equal answers stand in one place, and all do where the ranker does not say.
    """
    found: dict[str, list[int]] = {name: [] for name in answers}
    for start in tqdm(range(0, len(tasks), TASKS_AT_ONCE), desc=ranker.name, leave=False):
        batch = tasks[start : start + TASKS_AT_ONCE]
        # equal answers are ranked once: rounding must not make one of them win
        texts = []  # of each task, its different answers
        for number in range(start, start + len(batch)):
            texts.append(list(dict.fromkeys(said[number] for said in answers.values())))
        ranked = ranker.rank(batch, texts)
        for name, said in answers.items():
            for number, (own, order) in enumerate(zip(texts, ranked, strict=True), start):
                found[name].append(order.tiers(len(own))[own.index(said[number])])
    return {name: np.array(tiers) for name, tiers in found.items()}
