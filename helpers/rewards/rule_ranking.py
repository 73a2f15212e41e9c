"""How the rules of the heuristic rank answers, whatever their weights, beside the truth.

What each rule says of each answer is worked out once; then a score is a dot product with the
weights. `widgets.ScorerPlayground` shows it.

Simplifications: the share of pairs has a Wilson interval as if pairs of one record were
independent; the interval of the correlation is the percentile bootstrap over records (Efron 1979),
always with the same draws, so that it moves with the weights only.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.stats import spearmanr

from helpers.data import Facts, PreferenceRecord, tasks_of, tier_of_each
from helpers.files import UsageError
from helpers.statistics import Proportion, proportion

from .heuristic import HEURISTIC_RULES, warn_if_not_english
from .scoring import score_all
from .truths import degree_of

BOOTSTRAP_DRAWS = 1000
# Simulated without any correlation, the interval misses 0 in 7 % of the cases; with 5 records
# in 9 %
FEW_RECORDS = 10


@dataclass(frozen=True)
class AnswerTable:
    """The answers of all records, one row each."""

    record: np.ndarray  # (answers,) int: place of its record
    truth: np.ndarray  # (answers,): how far each is right, or minus its place in the ranking
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


def select_judged(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """Choose the records whose truth is known; if none is, those that people have ranked.

    Of truths of several kinds, the most frequent one. Raises UsageError if there is neither.
    """
    kinds = Counter(record.kind for record in records if record.truth)
    known = []
    if kinds:
        # one scorer judges all, and it knows one kind
        kind = kinds.most_common(1)[0][0]
        known = [record for record in records if record.kind == kind]
    if not known:
        known = [record for record in records if any(record.tier_pairs())]
    if not known:
        raise UsageError(
            "None of the records has a known truth or a ranking. Build some with notebook 02."
        )
    return known


def worth_name(records: Sequence[PreferenceRecord]) -> str:
    """What the answers of `select_judged` are judged by, in words."""
    score = degree_of(tasks_of(records))
    return f"the truth ({score.__name__})" if score else "what people preferred"


def _worths(records: Sequence[PreferenceRecord]) -> list[float]:
    """How far each answer is right; where no truth is known, minus the place people gave it."""
    score = degree_of(tasks_of(records))
    if score:
        found = score_all(score, [(None, *row) for row in _rows(records)])
        return [one.total for one in found]
    worths = []
    for record in records:
        tiers = tier_of_each(record.ranking)
        worths += [-float(tiers[place]) for place in range(len(record.answers))]
    return worths


def _rows(records: Sequence[PreferenceRecord]) -> list[tuple[str, str, Facts]]:
    """Question, text and truth of each answer."""
    rows = []
    for record in records:
        question = record.prompt[-1].content
        rows += [(question, answer.text, record.truth) for answer in record.answers]
    return rows


def flatten(records: Sequence[PreferenceRecord]) -> AnswerTable:
    """The table of the answers of `records` (`select_judged`)."""
    truth = np.array(_worths(records))
    numbers = []
    pairs = []
    # both orders of two answers are tried, and at most one of them has the truer answer first
    for number, record in enumerate(records):
        members = range(len(numbers), len(numbers) + len(record.answers))
        numbers += [number] * len(members)
        for i, j in itertools.permutations(members, 2):
            if truth[i] > truth[j]:
                pairs.append((i, j))
    return AnswerTable(
        np.array(numbers),
        truth,
        np.array(pairs, dtype=int).reshape(-1, 2),
    )


def rule_values(records: Sequence[PreferenceRecord], counts_known: bool) -> np.ndarray:
    """Value of each rule for each answer before weighting, (answers, rules).

    Without counts, rules see words only.
    """
    rows = _rows(records)
    warn_if_not_english([text for _, text, _ in rows])
    values = []
    for question, text, truth in rows:
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
    first_variance = (weights * first * first).sum(1)
    second_variance = (weights * second * second).sum(1)
    product = np.sqrt(first_variance * second_variance)
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
