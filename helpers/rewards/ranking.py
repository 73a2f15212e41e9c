"""How the rules of the heuristic rank answers, whatever their weights, beside the truth. `widgets.ScorerPlayground` shows it.

What each rule says of each answer is worked out once; then a score is a dot product with the weights.
Simplifications: the share of pairs has a Wilson interval as if pairs of one record were independent; the
interval of the correlation is the percentile bootstrap over records (Efron 1979), always with the same draws,
so that it moves with the weights only.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.stats import spearmanr
from transformers import ProcessorMixin

from helpers import models
from helpers.data import (
    Answer,
    CountedImage,
    PreferenceRecord,
    Ranking,
    counting_questions,
    question_for,
    record_of_item,
)
from helpers.files import UsageError
from helpers.models import VLM
from helpers.statistics import Proportion, proportion

from .heuristic import HEURISTIC_RULES
from .scoring import Scorer, count_graded, score_all

BOOTSTRAP_DRAWS = 1000
FEW_RECORDS = 10  # records: simulated without any correlation, the interval misses 0 in 7 % of the cases; with 5 in 9 %


@dataclass(frozen=True)
class AnswerTable:
    """The answers of all records, one row each."""

    record: np.ndarray  # (answers,) int: place of its record
    truth: np.ndarray  # (answers,): count_graded
    pairs: (
        np.ndarray
    )  # (pairs, 2) int: answers of one record, the truer one first; equally true ones are no pair


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ with its 95 % interval; `value` is None where all are equal, the limits also for few records."""

    value: float | None
    low: float | None
    high: float | None
    n: int  # answers
    records: int

    def __str__(self) -> str:
        n = f"n = {self.n:,} answers of {self.records:,} records"
        if self.value is None:
            return f"not defined, since every answer scores the same or is equally true ({n})"
        interval = (
            "no interval from so few records"
            if self.low is None
            else f"[{self.low:+.3f}, {self.high:+.3f}]"
        )
        return f"{self.value:+.3f} {interval} ({n})"

    @property
    def is_chance(self) -> bool:
        """True unless the interval is wholly on one side of 0."""
        return self.low is None or self.low <= 0 <= self.high


def flatten(records: Sequence[PreferenceRecord]) -> AnswerTable:
    """`records` have known counts, see `select_with_counts`."""
    numbers = np.repeat(np.arange(len(records)), [len(record.answers) for record in records])
    truth = np.array(
        [score.total for score in score_all(count_graded, [(None, *row) for row in _rows(records)])]
    )
    pairs = [
        (i, j) if truth[i] > truth[j] else (j, i)
        for _, members in itertools.groupby(range(len(numbers)), key=numbers.__getitem__)
        for i, j in itertools.combinations(members, 2)
        if truth[i] != truth[j]
    ]
    return AnswerTable(numbers, truth, np.array(pairs, dtype=int).reshape(-1, 2))


def select_with_counts(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """Choose the records whose truth is counts. Raises UsageError if there are none."""
    known = [record for record in records if isinstance(record.truth, dict) and record.truth]
    if not known:
        raise UsageError(
            "None of the records has known counts as its truth. Build some with notebook 02."
        )
    return known


def _rows(records: Sequence[PreferenceRecord]) -> list[tuple[str, str, dict[str, int]]]:
    return [
        (record.prompt[-1].content, answer.text, record.truth)
        for record in records
        for answer in record.answers
    ]


def rule_values(records: Sequence[PreferenceRecord], counts_known: bool) -> np.ndarray:
    """Value of each rule for each answer before weighting, (answers, rules); without counts, rules see words only."""
    rows = [
        (question, text, truth if counts_known else None)
        for question, text, truth in _rows(records)
    ]
    return np.array([[rule.value(*row) for rule in HEURISTIC_RULES] for row in rows])


def weighted_sum(values: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Total of each answer, (answers,); rounded, so that 3 × 0.1 and 0.3 are a tie."""
    return np.round(values @ np.array([weights[rule.name] for rule in HEURISTIC_RULES]), 9) + 0.0


def pair_agreement(totals: np.ndarray, pairs: np.ndarray) -> Proportion | None:
    """Share of `pairs` whose truer answer has the higher total; equal totals count ½. None without pairs."""
    truer, other = totals[pairs].T
    return (
        proportion(float((truer > other).sum() + (truer == other).sum() / 2), len(pairs))
        if len(pairs)
        else None
    )


def correlate(totals: np.ndarray, answers: AnswerTable, resamples: np.ndarray) -> Correlation:
    """Spearman's ρ of `totals` and truth over all answers, midranks for ties; resamples: see `draw_records`."""
    n, records = len(totals), resamples.shape[1]
    if len(np.unique(totals)) == 1 or len(np.unique(answers.truth)) == 1:
        return Correlation(None, None, None, n, records)
    low = high = None
    if records >= FEW_RECORDS:
        found = spearman_resamples(totals, answers, resamples)
        low, high = (float(limit) for limit in np.percentile(found, [2.5, 97.5]))
    return Correlation(float(spearmanr(totals, answers.truth).statistic), low, high, n, records)


def draw_records(records: int, draws: int = BOOTSTRAP_DRAWS) -> np.ndarray:
    """How often each record is in each resample, (draws, records); seed 0."""
    return (
        np.random.default_rng(0)
        .multinomial(records, np.full(records, 1 / records), size=draws)
        .astype(float)
    )


def spearman_resamples(
    totals: np.ndarray, answers: AnswerTable, resamples: np.ndarray
) -> np.ndarray:
    """ρ in each resample, (draws,); 0 where all its answers are equal: leaving it out would hide that a single
    odd answer makes the whole correlation.

    Answers with equal totals that are equally true form a cell; a resample is how many answers each cell has.
    """
    (total, truth), cell = np.unique(np.stack([totals, answers.truth]), axis=1, return_inverse=True)
    size = (len(total), resamples.shape[1])
    members = coo_array((np.ones(len(totals)), (cell.ravel(), answers.record)), shape=size).tocsr()
    weights = (members @ resamples.T).T  # (draws, cells)
    first, second = (_centred_ranks(levels, weights) for levels in (total, truth))
    covariance, *variances = (
        (weights * a * b).sum(1) for a, b in [(first, second), (first, first), (second, second)]
    )
    product = np.sqrt(variances[0] * variances[1])
    return np.divide(covariance, product, out=np.zeros(len(resamples)), where=product > 0)


def _centred_ranks(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Midrank of each cell less their mean, (draws, cells); levels: (cells,), weights: (draws, cells)."""
    names, level = np.unique(levels, return_inverse=True)
    mass = weights @ coo_array(
        (np.ones(len(levels)), (np.arange(len(levels)), level)), shape=(len(levels), len(names))
    )
    ranks = (mass.cumsum(axis=1) - mass / 2)[:, level]
    return ranks - (weights * ranks).sum(axis=1, keepdims=True) / weights.sum(axis=1, keepdims=True)


def rank_samples(
    items: Sequence[CountedImage], own_answers: Sequence[Sequence[str]], score: Scorer
) -> list[PreferenceRecord]:
    """One record an image: the model's own answers in the order sampled, ranked by `score`, equal scores together.

    Equal texts stand once. An image whose samples are all alike gives no record, since there is nothing
    to rank (the number of these is printed); one whose scores are all equal gives a tie, and so no pair.
    """
    records = []
    for number, (item, texts) in enumerate(zip(items, own_answers, strict=True)):
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        if len(distinct) < 2:
            continue
        scores = [score(None, question_for(item, number), text, item.counts) for text in distinct]
        answers = [
            Answer(text=text, origin="own", score=result.total, scores=result.parts)
            for text, result in zip(distinct, scores, strict=True)
        ]
        records.append(
            record_of_item(item, number, answers, _tiers([result.total for result in scores]))
        )
    if len(records) < len(items):
        print(
            f"{len(items) - len(records)} of {len(items)} images give no record: all their samples are alike."
        )
    return records


def sample_and_rank(
    model: VLM,
    processor: ProcessorMixin,
    items: Sequence[CountedImage],
    score: Scorer,
    number: int = 4,
    *,
    seed: int = 0,
) -> list[PreferenceRecord]:
    """Let the model answer the counting question about each item `number` times; `rank_samples` of that."""
    asked = counting_questions(items)
    budget = models.answer_budget(processor, asked.answers)
    answers = models.sample_answers(
        model, processor, asked.images, asked.questions, number, seed=seed, max_new_tokens=budget
    )
    return rank_samples(items, answers, score)


def _tiers(scores: Sequence[float]) -> Ranking:
    levels = sorted(set(scores), reverse=True)
    return [[place for place, score in enumerate(scores) if score == level] for level in levels]
