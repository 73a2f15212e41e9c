"""Benchmarks of rankers (reward models, judges, rules): VL-RewardBench, Multimodal RewardBench.

* VL-RewardBench (Li et al. 2024, arXiv 2411.17451), at the revision in `helpers/data/hub.py`: the
  paper's 1,250 pairs; later revisions hold 1,247. Groups by the start of the id and both figures as
  in the official `cal.py` (github.com/vl-rewardbench/VL_RewardBench): overall = right / all pairs,
  macro = mean of the accuracies of general, hallucination and reasoning. The better answer stands
  first in nearly all pairs of the file: in that order, a judge that always names the first is
  right. `rewards.PairJudge` shows both orders, or draws one.
* Multimodal RewardBench (Yasunaga et al. 2025, arXiv 2502.14191). Groups as in the official
  `scripts/2_get_accuracy.py`; overall = right / all pairs, no macro. No revision is pinned, because
  the authors' script builds it out of other sets: give its `all_data.json`, or a Parquet file of
  the same columns; the file's hash is kept as the source. The toxicity pairs of the paper's overall
  are not public.

What differs: the official codes have no ties. Here a tie, or a judge's abstention, counts ½, and
`decided` leaves it out. VL-RewardBench's code leaves pairs without a majority out everywhere;
Multimodal RewardBench's code tosses a coin for what cannot be read. Judges are in
`helpers/rewards/judge.py`; `helpers/evaluation/official/reward_judges.py` has the official
readings of their replies, with which a published figure may be compared.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from helpers.data import (
    HUB_SETS,
    DatasetRow,
    HubSet,
    PreferenceRecord,
    fetch_hub_set,
    read_records,
    record_key,
    tasks_of,
    write_records,
)
from helpers.files import UsageError, file_hash, write_lines
from helpers.rewards import Ranker
from helpers.statistics import Proportion, share_of

from .keyed import by_id, check_each, read_each

Records = Sequence[PreferenceRecord]
ScoresById = Mapping[str, list[float]]  # id → a score for each answer, in the order of `answers`


@dataclass(frozen=True)
class Benchmark:
    title: str
    groups: tuple[str, ...]
    group_of: Callable[[PreferenceRecord], str | None]
    macro: bool  # does the benchmark define the mean of its groups?


# start of an id, up to the first - or _ → its group; ids of POVID start with "hallucination"
_VL_GROUPS = {
    "rlaif": "hallucination",
    "rlhf": "hallucination",
    "povid": "hallucination",
    "hallucination": "hallucination",
    "mathverse": "reasoning",
    "mmmu": "reasoning",
}


def _vl_group(record: PreferenceRecord) -> str:
    """Group a record by the start of its id; as in the official code, others are general."""
    start = re.split("[-_]", _own_id(record))[0].lower()
    return _VL_GROUPS.get(start, "general")


def _multimodal_group(record: PreferenceRecord) -> str | None:
    category = _column(record, "Category")
    name = _own_id(record).lower()
    if category == "safety":
        return "safety/bias" if name.startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if name.startswith("math") else "reasoning/coding"
    return category


def _column(record: PreferenceRecord, name: str) -> str | None:
    return record.extra.get("ab", {}).get("row", {}).get(name)


def _own_id(record: PreferenceRecord) -> str:
    if name := record.id or _column(record, "ID"):
        return name
    raise UsageError(f"record {record_key(record)} has no id of the benchmark. Load it again.")


BENCHMARKS = {
    "vl_rewardbench": Benchmark(
        "VL-RewardBench", ("general", "hallucination", "reasoning"), _vl_group, macro=True
    ),
    "multimodal_rewardbench": Benchmark(
        "Multimodal RewardBench",
        (
            "open_generation/correctness_task",
            "open_generation/preference_task",
            "knowledge",
            "reasoning/math",
            "reasoning/coding",
            "safety/bias",
            "safety/toxicity",
            "vqa",
        ),
        _multimodal_group,
        macro=False,
    ),
}


# --- loading --------------------------------------------------------------------------------------


def load_benchmark(
    name: str,
    folder: Path,
    *,
    file: Path | None = None,
    images: Path | None = None,
    rows: int | None = None,
) -> list[PreferenceRecord]:
    """The records of a benchmark, also written to `folder/NAME.jsonl`.

    The arguments are those of `fetch_hub_set`. Multimodal RewardBench needs `file`; the images it
    names are looked for beside it, or in `images`. Both sets give some ids to two pairs: the second
    is called ID#2, by its place in the file. Raises UsageError.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}.")
    source = HUB_SETS.get(name, _MULTIMODAL)
    # a file of one's own has no revision: its hash says what was graded
    if file is not None:
        source = replace(source, revision=f"file {file_hash(file)}")
        if name not in HUB_SETS:
            images = images or file.parent
    elif source is _MULTIMODAL:
        raise UsageError(
            f"{BENCHMARKS[name].title} has no pinned revision. Clone "
            f"github.com/{source.repository}, run its scripts/0_download_data.py, and give "
            "file=…/data/all_data.json."
        )
    # rows become records here; then ids are made unique
    path = fetch_hub_set(name, folder, images=images, rows=rows, file=file, source=source)
    seen = Counter()
    records = []
    for record in read_records(path):
        own = _own_id(record)
        seen[own] += 1
        unique = f"{own}#{seen[own]}" if seen[own] > 1 else own
        records.append(record.model_copy(update={"id": unique}))
    write_records(path, records)
    return records


# columns of Multimodal RewardBench → those of an A/B vote; the id and category end up in `extra`
_VOTE_COLUMNS = {
    "ID": "ID",
    "Category": "Category",
    "Text": "instruction",
    "Image": "image_path",
    "Output1": "response_a",
    "Output2": "response_b",
}


def _to_ab_vote(row: DatasetRow) -> DatasetRow:
    """A row of Multimodal RewardBench as an A/B vote."""
    missing = [column for column in (*_VOTE_COLUMNS, "Better") if row.get(column) is None]
    if missing:
        raise UsageError(
            f"field {', '.join(missing)} is missing. A row of Multimodal RewardBench needs it."
        )
    # the vote goes to one of the two outputs
    better = row["Better"]
    if better not in ("Output1", "Output2"):
        raise UsageError(f"unknown Better {better!r}: Output1 or Output2")
    vote = {new: row[old] for old, new in _VOTE_COLUMNS.items()}
    return vote | {"preference": _VOTE_COLUMNS[better]}


_MULTIMODAL = HubSet(
    "facebookresearch/multimodal_rewardbench", "", licence="CC BY-NC", reshape=_to_ab_vote
)


# --- scores and their figures ---------------------------------------------------------------------


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
        if ranked.scores:
            found = [score.total for score in ranked.scores]
        else:
            found = [-float(tier) for tier in ranked.tiers(len(record.answers))]
        scores[record_key(record)] = found
    return scores


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
