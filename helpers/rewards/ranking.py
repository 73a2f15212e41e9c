"""How the rules of the heuristic rank answers, whatever their weights, beside the truth.

What each rule says of each answer is worked out once; then a score is a dot product with the
weights. `widgets.ScorerPlayground` shows it. Below, answers that a model samples are ranked by any
scorer, which makes preference records of them.

Simplifications: the share of pairs has a Wilson interval as if pairs of one record were
independent; the interval of the correlation is the percentile bootstrap over records (Efron 1979),
always with the same draws, so that it moves with the weights only.
"""

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.stats import spearmanr
from transformers import ProcessorMixin

from helpers.data import (
    Answer,
    CountedImage,
    PreferenceRecord,
    Ranking,
    question_for,
    record_of_item,
)
from helpers.files import UsageError
from helpers.models import VLM, sample_counting_answers
from helpers.statistics import Proportion, proportion

from .heuristic import HEURISTIC_RULES
from .scoring import Scorer, count_graded, score_all

BOOTSTRAP_DRAWS = 1000
# Simulated without any correlation, the interval misses 0 in 7 % of the cases; with 5 records
# in 9 %
FEW_RECORDS = 10


@dataclass(frozen=True)
class AnswerTable:
    """The answers of all records, one row each."""

    record: np.ndarray  # (answers,) int: place of its record
    truth: np.ndarray  # (answers,): count_graded
    # (pairs, 2) int: answers of one record, the truer one first; equally true ones are no pair
    pairs: np.ndarray


@dataclass(frozen=True)
class Correlation:
    """Spearman's ρ with its 95 % interval.

    `value` is None where all are equal, the limits also for few records.
    """

    value: float | None
    low: float | None
    high: float | None
    n: int  # answers
    records: int

    def __str__(self) -> str:
        n = f"n = {self.n:,} answers of {self.records:,} records"
        if self.value is None:
            return f"not defined, since every answer scores the same or is equally true ({n})"
        interval = "no interval from so few records"
        if self.low is not None:
            interval = f"[{self.low:+.3f}, {self.high:+.3f}]"
        return f"{self.value:+.3f} {interval} ({n})"

    @property
    def is_chance(self) -> bool:
        """True unless the interval is wholly on one side of 0."""
        return self.low is None or self.low <= 0 <= self.high


def select_with_counts(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """Choose the records whose truth is counts. Raises UsageError if there are none."""
    known = [record for record in records if isinstance(record.truth, dict) and record.truth]
    if not known:
        raise UsageError(
            "None of the records has known counts as its truth. Build some with notebook 02."
        )
    return known


def _rows(records: Sequence[PreferenceRecord]) -> list[tuple[str, str, dict[str, int]]]:
    """Question, text and true counts of each answer."""
    return [
        (record.prompt[-1].content, answer.text, record.truth)
        for record in records
        for answer in record.answers
    ]


def flatten(records: Sequence[PreferenceRecord]) -> AnswerTable:
    """The table of the answers of `records`, whose counts are known (`select_with_counts`)."""
    scores = score_all(count_graded, [(None, *row) for row in _rows(records)])
    truth = np.array([score.total for score in scores])
    numbers = []
    pairs = []
    # both orders of two answers are tried, and at most one of them has the truer answer first
    for number, record in enumerate(records):
        members = range(len(numbers), len(numbers) + len(record.answers))
        numbers += [number] * len(members)
        pairs += [(i, j) for i, j in itertools.permutations(members, 2) if truth[i] > truth[j]]
    return AnswerTable(
        np.array(numbers),
        truth,
        np.array(pairs, dtype=int).reshape(-1, 2),
    )


def rule_values(records: Sequence[PreferenceRecord], counts_known: bool) -> np.ndarray:
    """Value of each rule for each answer before weighting, (answers, rules).

    Without counts, rules see words only.
    """
    values = []
    for question, text, truth in _rows(records):
        facts = truth if counts_known else None
        values.append([rule.value(question, text, facts) for rule in HEURISTIC_RULES])
    return np.array(values)


def weighted_sum(values: np.ndarray, weights: Mapping[str, float]) -> np.ndarray:
    """Total of each answer, (answers,); rounded, so that 3 × 0.1 and 0.3 are a tie."""
    column = np.array([weights[rule.name] for rule in HEURISTIC_RULES])
    return np.round(values @ column, 9) + 0.0


def pair_agreement(totals: np.ndarray, pairs: np.ndarray) -> Proportion | None:
    """Share of `pairs` whose truer answer has the higher total; equal totals count ½.

    None without pairs.
    """
    if not len(pairs):
        return None
    truer, other = totals[pairs].T
    right = (truer > other).sum() + (truer == other).sum() / 2
    return proportion(float(right), len(pairs))


def correlate(
    totals: np.ndarray,
    answers: AnswerTable,
    resamples: np.ndarray,
) -> Correlation:
    """Spearman's ρ of `totals` and truth over all answers, midranks for ties.

    resamples: see `draw_records`.
    """
    n = len(totals)
    records = resamples.shape[1]
    if np.ptp(totals) == 0 or np.ptp(answers.truth) == 0:
        return Correlation(None, None, None, n, records)
    # the interval is of the resamples, the value of all answers
    low = high = None
    if records >= FEW_RECORDS:
        found = spearman_resamples(totals, answers, resamples)
        low, high = np.percentile(found, [2.5, 97.5]).tolist()
    value = float(spearmanr(totals, answers.truth).statistic)
    return Correlation(value, low, high, n, records)


def draw_records(records: int) -> np.ndarray:
    """How often each record is in each resample, (draws, records); seed 0."""
    shares = np.full(records, 1 / records)
    draw = np.random.default_rng(0)
    return draw.multinomial(records, shares, size=BOOTSTRAP_DRAWS).astype(float)


def spearman_resamples(
    totals: np.ndarray,
    answers: AnswerTable,
    resamples: np.ndarray,
) -> np.ndarray:
    """ρ in each resample, (draws,); 0 where all its answers are equal.

    Leaving such a resample out would hide that a single odd answer makes the whole correlation.
    Answers with equal totals that are equally true form a cell; a resample is how many answers each
    cell has.
    """
    (total, truth), cell = np.unique(np.stack([totals, answers.truth]), axis=1, return_inverse=True)
    # a sparse table, since an answer is in one cell and in one record
    members = _count_table(cell.ravel(), answers.record, len(total), resamples.shape[1])
    weights = (members @ resamples.T).T  # (draws, cells)
    first = _centred_ranks(total, weights)
    second = _centred_ranks(truth, weights)
    covariance = (weights * first * second).sum(1)
    variances = (weights * first * first).sum(1) * (weights * second * second).sum(1)
    product = np.sqrt(variances)
    return np.divide(covariance, product, out=np.zeros(len(resamples)), where=product > 0)


def _count_table(rows: np.ndarray, columns: np.ndarray, *shape: int) -> coo_array:
    """How often each (row, column) is there, as a sparse array."""
    return coo_array((np.ones(len(rows)), (rows, columns)), shape).tocsr()


def _centred_ranks(levels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Midrank of each cell less their mean, (draws, cells); levels: (cells,)."""
    # answers with the same level share the middle of their places
    names, level = np.unique(levels, return_inverse=True)
    places = np.arange(len(levels))
    mass = weights @ _count_table(places, level, len(levels), len(names))  # (draws, names)
    ranks = (mass.cumsum(axis=1) - mass / 2)[:, level]
    total = (weights * ranks).sum(axis=1, keepdims=True)
    return ranks - total / weights.sum(axis=1, keepdims=True)


def rank_samples(
    items: Sequence[CountedImage],
    own_answers: Sequence[Sequence[str]],
    score: Scorer,
) -> list[PreferenceRecord]:
    """Rank the model's own answers to each image by `score`, equal scores together.

    Gives one record an image: answers in the order sampled, equal texts once. An image whose
    samples are all alike gives no record, since there is nothing to rank (the number of these is
    printed); one whose scores are all equal gives a tie, and so no pair.
    """
    records = []
    for number, (item, texts) in enumerate(zip(items, own_answers, strict=True)):
        distinct = list(dict.fromkeys(text for text in texts if text.strip()))
        if len(distinct) < 2:
            continue
        # scores are kept with the answers: margins of pairs come from them
        answers = []
        for text in distinct:
            found = score(None, question_for(item, number), text, item.counts)
            answers.append(Answer(text=text, origin="own", score=found.total, scores=found.parts))
        records.append(record_of_item(item, number, answers, _tiers(answers)))
    # nothing is left out in silence
    left_out = len(items) - len(records)
    if left_out:
        print(f"{left_out} of {len(items)} images give no record: all their samples are alike.")
    return records


def _tiers(answers: Sequence[Answer]) -> Ranking:
    """Places of the answers with the same score together, the best score first."""
    places = defaultdict(list)
    for place, answer in enumerate(answers):
        places[answer.score].append(place)
    return [places[score] for score in sorted(places, reverse=True)]


def sample_and_rank(
    model: VLM,
    processor: ProcessorMixin,
    items: Sequence[CountedImage],
    score: Scorer,
    number: int = 4,
    *,
    seed: int = 0,
) -> list[PreferenceRecord]:
    """Let the model answer the counting question about each item `number` times, and rank that."""
    answers = sample_counting_answers(model, processor, items, number, seed=seed)
    return rank_samples(items, answers, score)
