"""How good are rankers (reward models, judges, rules) on a benchmark of pairs?

Figures as in the official codes: of VL-RewardBench's `cal.py` overall = right / all pairs, and
macro = mean of the accuracies of its groups; of the others overall alone. What differs: the
official codes have no ties. Here a tie, or a judge's abstention, counts ½, and `decided` leaves it
out. `helpers/evaluation/official/reward_judges.py` has the official readings of judges' replies,
with which a published figure may be compared. Taught in notebook 03.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.data import DatasetRow, PreferenceRecord, Task, record_key, tasks_of
from helpers.files import UsageError, write_lines
from helpers.rewards import (
    AnswersOfTasks,
    AskModel,
    PairJudge,
    RankedAnswers,
    Ranker,
    as_ranker,
    make_scorer,
)
from helpers.statistics import Proportion, TableRows, share_of

from .keyed import by_id, check_each, read_each
from .reward_benchmark_files import Benchmark

Records = Sequence[PreferenceRecord]
ScoresById = Mapping[str, list[float]]  # id → a score for each answer, in the order of `answers`


@dataclass(frozen=True)
class Grade:
    """Pair accuracies with 95 % intervals; a tie counts ½, except in `decided`."""

    title: str
    groups: dict[str, Proportion]  # those that occur
    overall: Proportion
    macro: Proportion | None  # None: the benchmark has none, or a group has no record
    decided: Proportion | None  # of the pairs without a tie; None if all are ties
    ties: int

    def rows(self) -> list[tuple[str, Proportion | None]]:
        """(name, accuracy) for a table: the groups, then the three figures of the whole."""
        whole = {"overall": self.overall, "macro": self.macro, "decided": self.decided}
        return list((self.groups | whole).items())

    def __str__(self) -> str:
        lines = [f"  {name:32} {value or 'not defined'}" for name, value in self.rows()]
        head = f"{self.title}: pair accuracy, {self.ties} of {self.overall.n} tied"
        return "\n".join([head, *lines])


def grade(records: Records, scores: ScoresById, benchmark: Benchmark) -> Grade:
    """How often the better of two answers has the higher score.

    Raises UsageError for a record without exactly two ranked answers or without its scores.
    """
    groups = check_records(records, benchmark)
    _check_scores(scores, records, "scores")
    points = {name: [] for name in benchmark.groups}
    every = []
    for record in records:
        key = record_key(record)
        better, worse = (scores[key][place] for place in _better_and_worse(record))
        # 1 right, ½ tied, 0 wrong
        point = (better > worse) + 0.5 * (better == worse)
        points[groups[key]].append(point)
        every.append(point)
    found = {name: share_of(values) for name, values in points.items() if values}
    decided = [point for point in every if point != 0.5]
    # a mean without one of its groups would be another figure
    has_macro = benchmark.macro and len(found) == len(points)
    return Grade(
        benchmark.title,
        found,
        share_of(every),
        macro_mean(list(found.values())) if has_macro else None,
        share_of(decided),
        len(every) - len(decided),
    )


def rank_benchmark(records: Records, ranker: Ranker, benchmark: Benchmark) -> ScoresById:
    """What a ranker says of each pair, as scores for `grade`: its own, or places from behind.

    Where it does not say which answer is better, both have the same. Raises UsageError before
    anything is asked if a record is unfit.
    """
    # before hours of asking
    check_records(records, benchmark)
    answers = []
    for record in records:
        answers.append([answer.text for answer in record.answers])
    scores = {}
    for record, ranked in zip(records, ranker.rank(tasks_of(records), answers), strict=True):
        # only the order counts, so that places from behind do as well
        scores[record_key(record)] = ranked.values(len(record.answers))
    return scores


class FirstShown(Ranker):
    """Prefers whatever stands first: what a file gives away by its order."""

    def __init__(self):
        super().__init__("shown first")

    def _rank(self, tasks: Sequence[Task], answers: AnswersOfTasks) -> list[RankedAnswers]:
        ranked = []
        for texts in answers:
            ranked.append(RankedAnswers([[place] for place in range(len(texts))]))
        return ranked


def blind_rankers() -> dict[str, Ranker]:
    """Rankers that never look, by name: what a benchmark gives to those."""
    longer = make_scorer("longer", lambda image, question, answer, facts: {"n": len(answer)})
    shorter = make_scorer("shorter", lambda image, question, answer, facts: {"n": -len(answer)})
    return {
        "shown first": FirstShown(),
        "longer": as_ranker(longer),
        "shorter": as_ranker(shorter),
    }


def judge_for(benchmark: Benchmark, ask: AskModel, name: str = "judge") -> PairJudge:
    """A judge whose replies have the form that the benchmark's own code reads."""
    return PairJudge(ask, name, prompt=benchmark.prompt, orders=benchmark.orders)


def grade_rankers(
    records: Records, rankers: Mapping[str, Ranker], benchmark: Benchmark
) -> dict[str, Grade]:
    """The figures of each ranker, and of those that never look (`blind_rankers`)."""
    grades = {}
    for name, ranker in {**rankers, **blind_rankers()}.items():
        grades[name] = grade(records, rank_benchmark(records, ranker, benchmark), benchmark)
    return grades


def grade_rows(grades: Mapping[str, Grade]) -> TableRows:
    """A row for each ranker, a column for each group and for the whole; the head first."""
    # every group that occurs in one of them
    names: dict[str, None] = {}
    for found in grades.values():
        names |= dict.fromkeys(name for name, _ in found.rows())
    rows = [["", *names, "ties"]]
    for ranker, found in grades.items():
        figures = dict(found.rows())
        cells = [figures[name].short_text() if figures.get(name) else "–" for name in names]
        rows.append([ranker, *cells, str(found.ties)])
    return rows


def macro_mean(groups: Sequence[Proportion]) -> Proportion:
    """Mean of the proportions of independent groups, all of the same weight.

    Interval out of theirs (MOVER, Zou & Donner 2008, Statistics in Medicine 27:1693): the lower
    limit is mean − √Σ(value − low)² / number of groups, the upper one accordingly.
    """
    # all groups weigh the same, whatever their size
    mean = sum(group.value for group in groups) / len(groups)
    below = math.hypot(*(group.value - group.low for group in groups)) / len(groups)
    above = math.hypot(*(group.high - group.value for group in groups)) / len(groups)
    return Proportion(mean, mean - below, mean + above, sum(group.n for group in groups))


def check_records(records: Records, benchmark: Benchmark) -> dict[str, str]:
    """The group of every record by its id. Raises UsageError if one is unfit for pair accuracy."""
    known = by_id(records, "record")
    groups = {key: benchmark.group_of(record) for key, record in known.items()}
    for key, record in known.items():
        _better_and_worse(record)
        if groups[key] not in benchmark.groups:
            raise UsageError(
                f"record {key}: {benchmark.title} has no group {groups[key]!r}, "
                f"but {', '.join(benchmark.groups)}."
            )
    return groups


def _better_and_worse(record: PreferenceRecord) -> tuple[int, int]:
    """Places of the two answers. Raises UsageError if there are more, or none is better."""
    ranking = record.ranking
    if len(record.answers) != 2 or ranking is None or len(ranking) != 2:
        raise UsageError(
            f"record {record_key(record)}: {len(record.answers)} answers, ranking {ranking}. "
            "Pair accuracy needs exactly two answers of which one is better: "
            "leave this record out, or split it into pairs."
        )
    return ranking[0][0], ranking[1][0]


def _check_scores(scores: ScoresById, records: Records, place: str | Path) -> None:
    """Raise UsageError unless `scores` has the scores of each of the records, and of no others."""
    check_each(scores, records, place, "scores", "record")
    for record in records:
        _check_numbers(scores[record_key(record)], record, f"{place}: ")


def _check_numbers(scores: object, record: PreferenceRecord, place: str = "") -> None:
    where = f"{place}record {record_key(record)}: {scores!r}"
    # bool is an int in Python, and no score
    n = len(record.answers)
    numbers = isinstance(scores, list) and all(type(score) in (int, float) for score in scores)
    if not numbers or len(scores) != n:
        raise UsageError(
            f"{where} must be a list of {n} numbers, one for each answer in its order."
        )
    if not all(map(math.isfinite, scores)):
        raise UsageError(f"{where} cannot be ranked. Find out why the model gives NaN or infinity.")


def write_scores(path: Path, records: Records, scores: ScoresById) -> Path:
    """JSONL, `{"id": …, "scores": […]}` a line in the order of the records; floats are exact."""
    _check_scores(scores, records, path)
    rows = ({"id": key, "scores": scores[key]} for key in map(record_key, records))
    return write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))


def read_scores(path: Path, records: Records) -> dict[str, list[float]]:
    """The scores of `records`, of each exactly once. Raises UsageError naming file and line."""
    known = by_id(records, "record")

    def read(row: DatasetRow, place: int) -> tuple[str, list[float]]:
        if row.keys() != {"id", "scores"}:
            raise UsageError(
                'a line must be {"id": …, "scores": […]} and nothing else. '
                "Write it with `write_scores`."
            )
        key = row["id"]
        if isinstance(key, str) and key in known:
            _check_numbers(row["scores"], known[key])
        return key, row["scores"]

    return read_each([path], records, "list of scores", read, "record")
