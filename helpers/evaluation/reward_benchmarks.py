"""Benchmarks of reward models and judges: VL-RewardBench and Multimodal RewardBench; judges in `helpers/evaluation/judge.py`.

* VL-RewardBench (Li et al. 2024, arXiv 2411.17451), at the revision in `helpers/data/hub.py`: the paper's
  1,250 pairs; later revisions hold 1,247. Groups by the start of the id and both figures as in the
  official `cal.py` (github.com/vl-rewardbench/VL_RewardBench): overall = right / all pairs, macro = mean
  of the accuracies of general, hallucination and reasoning. The better answer stands first in nearly all
  pairs of the file: in that order, a judge that always names the first is right. `judge` draws the order.
* Multimodal RewardBench (Yasunaga et al. 2025, arXiv 2502.14191). Groups as in the official
  `scripts/2_get_accuracy.py`; overall = right / all pairs, no macro. No revision is pinned, because the
  authors' script builds it out of other sets: give its `all_data.json`, or a Parquet file of the same
  columns; the file's hash is kept as the source. The toxicity pairs of the paper's overall are not public.

What differs: the official codes have no ties. Here a tie, or a judge's abstention, counts ½, and `decided`
leaves it out. VL-RewardBench's code leaves abstentions out everywhere, with every pair that has one
unreadable vote; Multimodal RewardBench's code tosses a coin for them.
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
    raw_rows,
    read_records,
    record_key,
    write_records,
)
from helpers.files import UsageError, file_hash, write_lines
from helpers.statistics import Proportion, proportion

ScoresById = Mapping[str, list[float]]  # id → a score for each answer, in the order of `answers`


@dataclass(frozen=True)
class Benchmark:
    title: str
    groups: tuple[str, ...]
    group_of: Callable[[PreferenceRecord], str | None]
    macro: bool  # does the benchmark define the mean of its groups?


def _vl_group(record: PreferenceRecord) -> str:
    """Group a record by the start of its id, up to the first - or _; as in the official code, others are general."""
    start = re.split("[-_]", _own_id(record))[0].lower()
    hallucination = start in (
        "rlaif",
        "rlhf",
        "povid",
        "hallucination",
    )  # ids of POVID start with the last
    return (
        "hallucination"
        if hallucination
        else "reasoning"
        if start in ("mathverse", "mmmu")
        else "general"
    )


def _multimodal_group(record: PreferenceRecord) -> str | None:
    category, name = _column(record, "Category"), _own_id(record).lower()
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


_MULTIMODAL_GROUPS = (
    "open_generation/correctness_task",
    "open_generation/preference_task",
    "knowledge",
)
_MULTIMODAL_GROUPS += "reasoning/math", "reasoning/coding", "safety/bias", "safety/toxicity", "vqa"
BENCHMARKS = {
    "vl_rewardbench": Benchmark(
        "VL-RewardBench", ("general", "hallucination", "reasoning"), _vl_group, True
    ),
    "multimodal_rewardbench": Benchmark(
        "Multimodal RewardBench", _MULTIMODAL_GROUPS, _multimodal_group, False
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
    """The records of a benchmark, also written to `folder/NAME.jsonl`; arguments as of `hub.fetch`.

    Multimodal RewardBench needs `file`; the images it names are looked for beside it, or in `images`. Both
    sets give some ids to two pairs: the second is called ID#2, by its place in the file. Raises UsageError.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}.")
    source = HUB_SETS.get(name, _MULTIMODAL)
    if source is _MULTIMODAL and file is None:
        raise UsageError(
            f"{BENCHMARKS[name].title} has no pinned revision. Clone github.com/{source.repository}, run its "
            "scripts/0_download_data.py, and give file=…/data/all_data.json."
        )
    if file is not None:
        source = replace(source, revision=f"file {file_hash(file)}")
        images = images or (file.parent if name not in HUB_SETS else None)
    path = fetch_hub_set(name, folder, images=images, rows=rows, file=file, source=source)
    seen, records = Counter(), []
    for record in read_records(path):
        seen[own := _own_id(record)] += 1
        records.append(
            record.model_copy(update={"id": f"{own}#{seen[own]}" if seen[own] > 1 else own})
        )
    write_records(path, records)
    return records


def _to_ab_vote(row: DatasetRow) -> DatasetRow:
    """A row of Multimodal RewardBench as an A/B vote; its id and category end up in `extra`."""
    columns = ("ID", "Category", "Text", "Image", "Output1", "Output2", "Better")
    if missing := [column for column in columns if row.get(column) is None]:
        raise UsageError(
            f"field {', '.join(missing)} is missing. A row of Multimodal RewardBench needs it."
        )
    if row["Better"] not in ("Output1", "Output2"):
        raise UsageError(f"unknown Better {row['Better']!r}: Output1 or Output2")
    answers = {"response_a": row["Output1"], "response_b": row["Output2"]}
    preference = "response_a" if row["Better"] == "Output1" else "response_b"
    kept = {"ID": row["ID"], "Category": row["Category"]}
    return {
        "image_path": row["Image"],
        "instruction": row["Text"],
        **answers,
        "preference": preference,
        **kept,
    }


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
        return [
            *self.groups.items(),
            ("overall", self.overall),
            ("macro", self.macro),
            ("decided", self.decided),
        ]

    def __str__(self) -> str:
        lines = [f"  {name:32} {value or 'not defined'}" for name, value in self.rows()]
        return "\n".join(
            [f"{self.title}: pair accuracy, {self.ties} of {self.overall.n} tied", *lines]
        )


def grade(records: Sequence[PreferenceRecord], scores: ScoresById, benchmark: Benchmark) -> Grade:
    """How often the better of two answers has the higher score.

    Raises UsageError for a record without exactly two ranked answers or without its scores.
    """
    groups = check_records(records, benchmark)
    _check_scores(scores, records, "scores")
    points: dict[str, list[float]] = {name: [] for name in benchmark.groups}
    for record in records:
        better, worse = (scores[record_key(record)][place] for place in _better_and_worse(record))
        points[groups[record_key(record)]].append(
            1.0 if better > worse else 0.5 if better == worse else 0.0
        )
    found = {
        name: proportion(sum(values), len(values)) for name, values in points.items() if values
    }
    every = [point for values in points.values() for point in values]
    decided = [point for point in every if point != 0.5]
    return Grade(
        benchmark.title,
        found,
        proportion(sum(every), len(every)),
        macro_mean(list(found.values())) if benchmark.macro and len(found) == len(points) else None,
        proportion(sum(decided), len(decided)) if decided else None,
        len(every) - len(decided),
    )


def macro_mean(groups: Sequence[Proportion]) -> Proportion:
    """Mean of the proportions of independent groups, all of the same weight.

    Interval out of theirs (MOVER, Zou & Donner 2008, Statistics in Medicine 27:1693): the lower limit is
    mean − √Σ(value − low)² / number of groups, the upper one accordingly.
    """
    mean = sum(group.value for group in groups) / len(groups)
    below = math.hypot(*(group.value - group.low for group in groups)) / len(groups)
    above = math.hypot(*(group.high - group.value for group in groups)) / len(groups)
    return Proportion(mean, mean - below, mean + above, sum(group.n for group in groups))


def check_records(records: Sequence[PreferenceRecord], benchmark: Benchmark) -> dict[str, str]:
    """The group of every record by its id. Raises UsageError if one is unfit for pair accuracy."""
    groups = {key: benchmark.group_of(record) for key, record in _records_by_id(records).items()}
    for record in records:
        _better_and_worse(record)
        if (group := groups[record_key(record)]) not in benchmark.groups:
            known = ", ".join(benchmark.groups)
            raise UsageError(
                f"record {record_key(record)}: {benchmark.title} has no group {group!r}, but {known}."
            )
    return groups


def _records_by_id(records: Sequence[PreferenceRecord]) -> dict[str, PreferenceRecord]:
    if not records:
        raise UsageError("there are no records. Load the benchmark first.")
    (name, times), *_ = Counter(map(record_key, records)).most_common(1)
    if times > 1:
        raise UsageError(
            f"{times} records have the id {name}. `benchmarks.load` gives each an id of its own."
        )
    return {record_key(record): record for record in records}


def _better_and_worse(record: PreferenceRecord) -> tuple[int, int]:
    """Places of the two answers. Raises UsageError if there are more, or none is better."""
    if len(record.answers) != 2 or record.ranking is None or len(record.ranking) != 2:
        raise UsageError(
            f"record {record_key(record)}: {len(record.answers)} answers, ranking {record.ranking}. Pair accuracy "
            "needs exactly two answers of which one is better: leave this record out, or split it into pairs."
        )
    return record.ranking[0][0], record.ranking[1][0]


def _check_scores(
    scores: ScoresById, records: Sequence[PreferenceRecord], where: str | Path
) -> None:
    """Raises UsageError unless `scores` has the scores of each of the records, and of no others."""
    by_id = _records_by_id(records)
    for key, values in scores.items():
        if problem := _describe_bad_scores(key, values, by_id):
            raise UsageError(f"{where}: {problem}")
    if missing := [key for key in by_id if key not in scores]:
        raise UsageError(
            f"{where}: {len(missing)} of {len(by_id)} records have no scores, the first {missing[0]}. Score them too."
        )


def _describe_bad_scores(
    key: object, values: object, by_id: Mapping[str, PreferenceRecord]
) -> str | None:
    """Say what is wrong with the scores of one record; None if nothing is."""
    if not isinstance(key, str) or key not in by_id:
        return f"no record has the id {key!r}. Give the records that were scored."
    n = len(by_id[key].answers)
    numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
    if not numbers or len(values) != n:
        return f"record {key}: {values!r} must be a list of {n} numbers, one for each answer in its order."
    if not all(map(math.isfinite, values)):
        return f"record {key}: {values!r} cannot be ranked. Find out why the model gives NaN or infinity."
    return None


def write_scores(path: Path, records: Sequence[PreferenceRecord], scores: ScoresById) -> Path:
    """JSONL, `{"id": …, "scores": […]}` a line in the order of the records; floats are kept exactly."""
    _check_scores(scores, records, path)
    keys = map(record_key, records)
    return write_lines(
        path, (json.dumps({"id": key, "scores": scores[key]}, ensure_ascii=False) for key in keys)
    )


def read_scores(path: Path, records: Sequence[PreferenceRecord]) -> dict[str, list[float]]:
    """The scores of `records`, of each exactly once. Raises UsageError naming file and line."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file. Check the path, or score the benchmark first.")
    by_id, scores = _records_by_id(records), {}
    for number, _, row, error in raw_rows(path):
        if error is None and (not isinstance(row, dict) or row.keys() != {"id", "scores"}):
            error = 'a line must be {"id": …, "scores": […]} and nothing else. Write it with `write_scores`.'
        if error := error or _describe_bad_scores(row["id"], row["scores"], by_id):
            raise UsageError(f"{path}:{number}: {error}")
        if row["id"] in scores:
            raise UsageError(f"{path}:{number}: a second line of the id {row['id']}. Keep one.")
        scores[row["id"]] = row["scores"]
    _check_scores(scores, records, path)
    return scores
