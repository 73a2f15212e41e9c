"""How the rules of the heuristic rank answers, whatever their weights, beside the truth.

What each rule says of each answer is worked out once; then a score is a dot product with the
weights. `widgets.ScorerPlayground` shows it. Below, answers that a model samples are ranked by any
scorer, which makes preference records of them.

Simplifications: the share of pairs has a Wilson interval as if pairs of one record were
independent; the interval of the correlation is the percentile bootstrap over records (Efron 1979),
always with the same draws, so that it moves with the weights only.
"""

import itertools
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array
from scipy.stats import spearmanr
from transformers import ProcessorMixin

from helpers.data import (
    Answer,
    CountedImage,
    Facts,
    PreferenceRecord,
    Ranking,
    Task,
    TruthKind,
    ask,
    counting_tasks,
    plain_kind,
    seen_text,
    tasks_of,
    tier_of_each,
)
from helpers.files import UsageError
from helpers.models import VLM, SampledAnswer, sample_task_answers
from helpers.statistics import Proportion, proportion

from .catalogue import SCORERS
from .heuristic import HEURISTIC_RULES, warn_if_not_english
from .scoring import Score, Scorer, score_all
from .truths import degree_of, token_budget

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


# --- answers that were sampled --------------------------------------------------------------------

# Tasks whose images are open at a time, so that a scorer with a model in it gets many answers.
TASKS_AT_ONCE = 16


def rank(
    images: Path | str | Sequence[Path | str],
    question: str,
    answers: Sequence[str | SampledAnswer],
    score: Scorer | None,
    facts: Facts = None,
    kind: TruthKind | None = None,
) -> PreferenceRecord:
    """Rank answers to one question about an image, or about several, as `rank_samples` does.

    facts: what is true, for scorers that compare with it; kind: how they do (`TruthKind`). Raises
    UsageError if there are not two different answers.
    """
    shown = [images] if isinstance(images, Path | str) else images
    task = ask(question, list(map(Path, shown)), facts, kind or plain_kind(facts))
    texts = distinct_answers(answers)
    if len(texts) < 2:
        raise UsageError(
            f"{question!r}: {len(texts)} different answers are no ranking. Give two or more."
        )
    return _ranked([task], [texts], score)[0]


def rank_samples(
    tasks: Sequence[Task] | Sequence[CountedImage],
    answers: Sequence[Sequence[str | SampledAnswer]],
    score: Scorer | None,
) -> list[PreferenceRecord]:
    """Rank the answers to each task by `score`, which gets its images; equal scores together.

    tasks: or counted images, each with the counting question. score: None leaves the ranking to
    people (`widgets.AnswerRanker`). Gives one record a task: answers in the order sampled, equal
    texts once. An answer that was cut off has no score and comes last, together with all others of
    its kind: no answer is better for having been stopped. A task whose answers are all alike gives
    no record, since there is nothing to rank (the number of these is printed); one whose scores
    are all equal gives a tie, and so no pair.
    """
    asked = _as_tasks(tasks)
    # an answer that came twice is no preference over itself
    distinct = [distinct_answers(texts) for texts in answers]
    if len(asked) != len(distinct):
        raise UsageError(
            f"{len(distinct)} lists of answers do not belong to {len(asked)} questions. Give one "
            "list for each."
        )
    kept = [place for place, texts in enumerate(distinct) if len(texts) > 1]
    records = []
    for start in range(0, len(kept), TASKS_AT_ONCE):
        part = kept[start : start + TASKS_AT_ONCE]
        some = [asked[i] for i in part]
        texts = [distinct[i] for i in part]
        records += _ranked(some, texts, score)
    _say_what_is_missing(len(asked), records)
    return records


def rank_again(records: Sequence[PreferenceRecord], score: Scorer | None) -> list[PreferenceRecord]:
    """Rank the answers of records by another score, in place of the ranking that they have."""
    ranked = []
    for start in range(0, len(records), TASKS_AT_ONCE):
        part = records[start : start + TASKS_AT_ONCE]
        answers = []
        for record in part:
            answers.append([SampledAnswer(one.text, not one.cut_off) for one in record.answers])
        for record, new in zip(part, _ranked(tasks_of(part), answers, score), strict=True):
            # what was known of an answer stays, but for its score
            known = [
                old.model_copy(update={"score": one.score, "scores": one.scores})
                for old, one in zip(record.answers, new.answers, strict=True)
            ]
            ranked.append(record.model_copy(update={"answers": known, "ranking": new.ranking}))
    return ranked


def _as_tasks(tasks: Sequence[Task] | Sequence[CountedImage]) -> list[Task]:
    if tasks and isinstance(tasks[0], CountedImage):
        return counting_tasks(tasks)
    return list(tasks)


def distinct_answers(answers: Sequence[str | SampledAnswer]) -> list[SampledAnswer]:
    """The answers in their order, each text once and none without a word.

    Texts are one that a reader cannot tell apart. One came to its end if any of the same text did;
    of a text alone that is taken for granted.
    """
    texts: dict[str, str] = {}  # as it is seen → as it was first written
    ended: dict[str, bool] = {}
    for answer in answers:
        text, whole = (answer, True) if isinstance(answer, str) else answer
        seen = seen_text(text)
        if seen:
            texts.setdefault(seen, text)
            ended[seen] = ended.get(seen, False) or whole
    return [SampledAnswer(text, ended[seen]) for seen, text in texts.items()]


def _ranked(
    tasks: Sequence[Task],
    answers: Sequence[Sequence[SampledAnswer]],
    score: Scorer | None,
) -> list[PreferenceRecord]:
    """One record a task, its answers scored together with those of the others."""
    # answers to one question follow each other: a reward model reads its images once
    rows = []
    for task, texts in zip(tasks, answers, strict=True):
        images = task.open_images() if score else []
        rows += [task.scorer_inputs(images, answer.text) for answer in texts]
    scores = iter(score_all(score, rows) if score else [])
    records = []
    for task, texts in zip(tasks, answers, strict=True):
        made = [_scored(answer, next(scores, None)) for answer in texts]
        records.append(_record_of(task, made, _tiers(made) if score else None))
    return records


def _scored(answer: SampledAnswer, score: Score | None) -> Answer:
    """The answer with its score, from which margins of pairs come, unless it was cut off."""
    made = Answer(text=answer.text, origin="own", cut_off=not answer.ended)
    if score is None:
        return made
    # its parts are kept to look at, but nothing is ranked by them
    total = score.total if answer.ended else None
    return made.model_copy(update={"score": total, "scores": score.parts})


def _tiers(answers: Sequence[Answer]) -> Ranking:
    """Places of the answers with the same score together, the best first, those cut off last."""
    places = defaultdict(list)
    for place, answer in enumerate(answers):
        places[answer.score].append(place)
    # they have no score
    cut_off = places.pop(None, None)
    tiers = [places[score] for score in sorted(places, reverse=True)]
    return [*tiers, cut_off] if cut_off else tiers


def _record_of(task: Task, answers: list[Answer], ranking: Ranking | None) -> PreferenceRecord:
    """The record of a task. A kind that follows from the truth's form is not written down."""
    return PreferenceRecord(
        id=task.id,
        images=[os.path.abspath(image) for image in task.images],
        prompt=list(task.turns),
        answers=answers,
        ranking=ranking,
        truth=task.facts,
        truth_kind=None if task.kind == plain_kind(task.facts) else task.kind,
        group=task.group or None,
    )


def _say_what_is_missing(number: int, records: Sequence[PreferenceRecord]) -> None:
    """Nothing is left out in silence."""
    left_out = number - len(records)
    if left_out:
        print(
            f"{left_out} of {number} questions give no record: all their samples are alike, or "
            "empty."
        )
    cut_off = [answer for record in records for answer in record.answers if answer.cut_off]
    if cut_off:
        print(
            f"{len(cut_off)} answers were cut off before their end, and rank below those that were "
            "not. Allow more tokens (max_new_tokens) if they are many."
        )


def check_facts(score: Scorer | None, tasks: Sequence[Task]) -> None:
    """Try a ready scorer on the truth of each task: rather now than after hours of sampling.

    Raises UsageError naming the first question whose truth it cannot use.
    """
    if score not in SCORERS.values():
        return
    for task in tasks:
        try:
            score(None, task.question, "?", task.facts)
        except UsageError as error:
            raise UsageError(f"question {task.question!r}: {error}") from None


def sample_and_rank(
    model: VLM,
    processor: ProcessorMixin,
    tasks: Sequence[Task] | Sequence[CountedImage],
    score: Scorer | None,
    number: int = 4,
    *,
    temperature: float = 1.0,
    seed: int = 0,
    max_new_tokens: int | None = None,
) -> list[PreferenceRecord]:
    """Let the model answer each task `number` times, and rank that (`rank_samples`).

    max_new_tokens: of an answer; None is what the truths need (`token_budget`). Raises UsageError
    before the first answer if a ready scorer cannot use the truth of a task.
    """
    asked = _as_tasks(tasks)
    # before hours of sampling
    check_facts(score, asked)
    answers = sample_task_answers(
        model,
        processor,
        asked,
        number,
        temperature=temperature,
        seed=seed,
        max_new_tokens=max_new_tokens or token_budget(processor, asked),
    )
    return rank_samples(asked, answers, score)
