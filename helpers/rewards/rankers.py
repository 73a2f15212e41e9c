"""Which of several answers to a question is better, and how sure is that? One protocol for all.

A `Ranker` gets tasks (images, turns, and what is known to be true) and several answers to each, and
says in which order they stand. Rankers are: any scorer, a reward model (`as_ranker`), a
vision-language model that is asked (`helpers/rewards/judge.py`), and people (`VoteRanker`, whose
votes come from `widgets.AnswerRanker`). Sampled answers are ranked by them (`ranking.py`), policies
are compared by them (`helpers/evaluation/win_rate.py`), the best of n answers is chosen by them,
and benchmarks of reward models ask them (`helpers/evaluation/reward_benchmarks.py`). What they cost
is counted.
"""

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from helpers.data import (
    Judgement,
    PreferenceRecord,
    Ranking,
    Task,
    consensus,
    conversation_text,
    rank_by_score,
    tasks_of,
    tier_of_each,
)
from helpers.files import UsageError

from .catalogue import SCORERS
from .reward_model import RewardModel, as_scorer
from .scoring import Score, Scorer, score_all

AnswersOfTasks = Sequence[Sequence[str]]  # the answers to each task
RankerKind = Literal["rule", "model", "human"]

# Tasks whose images are open at a time, so that a scorer with a model in it gets many answers
TASKS_AT_ONCE = 16


@dataclass
class RankingCost:
    """What a ranker has cost so far."""

    answers: int = 0  # that it looked at
    seconds: float = 0.0
    tokens: int = 0  # of prompts and replies, where a model writes replies

    def __str__(self) -> str:
        return f"{self.answers:,} answers, {self.seconds:.1f} s, {self.tokens:,} tokens"


@dataclass(frozen=True)
class RankedAnswers:
    """The order of the answers to one question."""

    # Tiers of places among the answers, the best first; None: the ranker does not say
    ranking: Ranking | None
    # Of each answer, where the ranker scores; empty where it only compares
    scores: tuple[Score, ...] = ()
    # How likely the best answer is better than the next one, .5 … 1; None: the ranker does not know
    confidence: float | None = None

    def tiers(self, number: int) -> list[int]:
        """Return the tier of each of `number` answers, 0 for the best; all 0 without a ranking."""
        if self.ranking is None:
            return [0] * number
        places = tier_of_each(self.ranking)
        return [places[place] for place in range(number)]

    def values(self, number: int) -> list[float]:
        """Return a number for each of `number` answers, higher is better: scores, or −tiers."""
        if self.scores:
            return [score.total for score in self.scores]
        return [-float(tier) for tier in self.tiers(number)]

    @property
    def best(self) -> int:
        """The place of an answer that nothing is better than: of equals the first, or 0."""
        return min(self.ranking[0]) if self.ranking else 0


class Ranker(ABC):
    """Orders answers. `name` is shown in tables, and noted in records as the annotator."""

    kind: RankerKind = "rule"
    annotates = False  # are its verdicts noted in records, as an annotator's are?
    told = False  # is it given what is known to be true?
    reward_hash: str | None = None  # of a reward model's head, see `about_reward`

    def __init__(self, name: str):
        self.name = name
        self.cost = RankingCost()

    @property
    def title(self) -> str:
        """The name, which says so where the truth is told."""
        return f"{self.name} (is told the truth)" if self.told else self.name

    def rank(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        """Return the order of the answers to each task, and count what it costs."""
        if len(tasks) != len(answers):
            raise UsageError(
                f"{len(answers)} lists of answers do not belong to {len(tasks)} questions. Give "
                "one list for each."
            )
        # whatever a ranker does counts, opening images too
        started = time.perf_counter()
        ranked = self._rank(tasks, answers)
        self.cost.seconds += time.perf_counter() - started
        self.cost.answers += sum(map(len, answers))
        return ranked

    @abstractmethod
    def _rank(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        """Return the order of the answers to each task."""

    def check(self, tasks: Sequence[Task]) -> None:
        """Raise UsageError for a task that this ranker cannot judge, before anything is sampled."""
        return

    def sentences(self) -> list[str]:
        """Say what a user should know of how it came to its rankings."""
        return []


class ScorerRanker(Ranker):
    """By a score, the highest first; equal scores are a tie.

    told: whether the scorer is given what is known to be true.
    """

    def __init__(self, score: Scorer, name: str | None = None, told: bool = True):
        super().__init__(name or score.__name__)
        self.score = score
        self.told = told
        self.reward_hash = getattr(score, "reward_hash", None)

    def _rank(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        ranked = []
        for start in range(0, len(tasks), TASKS_AT_ONCE):
            rows = slice(start, start + TASKS_AT_ONCE)
            ranked += self._rank_some(tasks[rows], answers[rows])
        return ranked

    def _rank_some(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        # Answers to one question follow each other: a reward model reads its images once
        rows = []
        for task, texts in zip(tasks, answers, strict=True):
            images = task.open_images()
            for text in texts:
                *seen, facts = task.scorer_inputs(images, text)
                rows.append((*seen, facts if self.told else None))
        scores = iter(score_all(self.score, rows))
        ranked = []
        for texts in answers:
            # the scores come in the order of the rows
            own = tuple(next(scores) for _ in texts)
            totals = [score.total for score in own]
            ranked.append(RankedAnswers(rank_by_score(totals), own, self.confidence(totals)))
        return ranked

    def confidence(self, totals: Sequence[float]) -> float | None:
        """Return how sure the first place is. A score says nothing about that."""
        return None

    def check(self, tasks: Sequence[Task]) -> None:
        """Try a ready scorer on the truth of each task: rather now than after hours of sampling."""
        if self.score not in SCORERS.values():
            return
        for task in tasks:
            try:
                self.score(None, task.question, "?", task.facts if self.told else None)
            except UsageError as error:
                raise UsageError(f"question {task.question!r}: {error}") from None


class RewardRanker(ScorerRanker):
    """By a reward model, which is trained so that σ(difference) is how likely one is better."""

    kind = "model"

    def __init__(self, reward: RewardModel, name: str | None = None):
        super().__init__(as_scorer(reward), name, told=False)

    def confidence(self, totals: Sequence[float]) -> float | None:
        """Return σ(best − next) (Bradley & Terry 1952)."""
        if len(totals) < 2:
            return None
        first, second = sorted(totals, reverse=True)[:2]
        return 1 / (1 + math.exp(second - first))


class VoteRanker(Ranker):
    """By people: the votes in records (`data.apply_votes`), combined by mean rank.

    A task is found by its question and images, an answer by its text. What nobody has judged has no
    ranking.
    """

    kind = "human"

    def __init__(self, records: Sequence[PreferenceRecord], name: str = "people"):
        super().__init__(name)
        self._known: dict[tuple, dict[str, int]] = {}  # question and images → answer → its tier
        for task, record in zip(tasks_of(records), records, strict=True):
            votes = [vote for vote in record.judgements if vote.kind == "human"]
            ranking = consensus(votes, len(record.answers))
            if ranking is not None:
                tiers = tier_of_each(ranking)
                texts = [answer.text for answer in record.answers]
                self._known[_key(task)] = {text: tiers[i] for i, text in enumerate(texts)}

    def _rank(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        # an answer that nobody was shown leaves the question open
        ranked = []
        for task, texts in zip(tasks, answers, strict=True):
            known = self._known.get(_key(task), {})
            judged = all(text in known for text in texts)
            ranking = rank_by_score([-known[text] for text in texts]) if judged else None
            ranked.append(RankedAnswers(ranking))
        return ranked


def _key(task: Task) -> tuple[str, tuple[Path, ...]]:
    return conversation_text(task.turns), task.images


def as_ranker(source: Ranker | RewardModel | Scorer, name: str | None = None) -> Ranker:
    """Return a scorer or a reward model as a ranker; a ranker stays what it is.

    A reward model is given no truth, a scorer is; `ScorerRanker(score, told=False)` hides it.
    """
    if isinstance(source, Ranker):
        return source
    if isinstance(source, RewardModel):
        return RewardRanker(source, name)
    return ScorerRanker(source, name)


def best_answers(
    ranker: Ranker,
    tasks: Sequence[Task],
    answers: AnswersOfTasks,
) -> list[str]:
    """Return the best answer to each task as the ranker has it: best-of-n."""
    ranked = ranker.rank(tasks, answers)
    return [texts[own.best] for texts, own in zip(answers, ranked, strict=True)]


def judgement_of(ranker: Ranker, ranked: RankedAnswers) -> Judgement:
    """Return what a ranker said about the answers to one question, as records hold it."""
    verdict = "skip"
    if ranked.ranking is not None:
        verdict = "ranked" if len(ranked.ranking) > 1 else "tie"
    # criterion → a score of each answer
    criteria = {}
    for score in ranked.scores:
        for name, value in score.parts.items():
            criteria.setdefault(name, []).append(value)
    return Judgement(
        kind=ranker.kind,
        annotator=ranker.name,
        verdict=verdict,
        ranking=ranked.ranking,
        criteria=criteria,
    )
