"""The files of benchmarks of rankers: VL-RewardBench, Multimodal RewardBench and its successor.

* VL-RewardBench (Li et al. 2024, arXiv 2411.17451), at the revision in `helpers/data/hub.py`: the
  paper's 1,250 pairs; later revisions hold 1,247. Groups by the start of the id. The better answer
  stands first in nearly all pairs of the file: in that order, a judge that always names the first
  is right. `rewards.PairJudge` shows both orders, or draws one.
* Multimodal RewardBench (Yasunaga et al. 2025, arXiv 2502.14191). Groups as in the official
  `scripts/2_get_accuracy.py`. No revision is pinned, because the authors' script builds it out of
  other sets: give its `all_data.json`, or a Parquet file of the same columns; the file's hash is
  kept as the source. The toxicity pairs of the paper's overall are not public.
* Multimodal RewardBench 2 (Hu et al. 2025, arXiv 2512.16899), which the authors' scripts build out
  of other sets, too: give one of its files, such as `reasoning.json`, whose name says the task.
  Here answers are texts: pairs with an image in an answer, which are all of `t2i.json` and
  `edit.json`, are left out, counted and named.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from helpers.data import (
    HUB_SETS,
    DatasetRow,
    HubSet,
    PreferenceRecord,
    fetch_hub_set,
    read_records,
    record_key,
    write_records,
)
from helpers.files import UsageError, file_hash, write_json
from helpers.rewards import JSON_PAIR_PROMPT, NUMBERED_PAIR_PROMPT, PAIR_PROMPT, Orders, PairPrompt


@dataclass(frozen=True)
class Benchmark:
    title: str
    groups: tuple[str, ...]
    group_of: Callable[[PreferenceRecord], str | None]
    macro: bool  # does the benchmark define the mean of its groups?
    # what a judge is asked, so that the benchmark's own code can read its replies
    prompt: PairPrompt = PAIR_PROMPT
    orders: Orders = "both"


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


def _task_group(record: PreferenceRecord) -> str | None:
    return record.extra.get("task")


def _own_id(record: PreferenceRecord) -> str:
    if name := record.id or _column(record, "ID"):
        return name
    raise UsageError(f"record {record_key(record)} has no id of the benchmark. Load it again.")


BENCHMARKS = {
    "vl_rewardbench": Benchmark(
        "VL-RewardBench",
        ("general", "hallucination", "reasoning"),
        _vl_group,
        macro=True,
        prompt=NUMBERED_PAIR_PROMPT,
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
        orders="drawn",  # its code takes one reply a pair
    ),
    "multimodal_rewardbench_2": Benchmark(
        "Multimodal RewardBench 2",
        ("t2i", "edit", "interleaved", "reasoning"),
        _task_group,
        macro=False,
        prompt=JSON_PAIR_PROMPT,
    ),
}


# --- loading --------------------------------------------------------------------------------------


def load_benchmark(
    name: str,
    folder: Path,
    *,
    file: Path | str | None = None,
    images: Path | None = None,
    rows: int | None = None,
) -> list[PreferenceRecord]:
    """The records of a benchmark, also written to `folder/NAME.jsonl`.

    The arguments are those of `fetch_hub_set`. Both of Multimodal RewardBench need `file`; the
    images it names are looked for beside it, or in `images`. Some sets give one id to two pairs:
    the second is called ID#2, by its place in the file. Raises UsageError.
    """
    if name not in BENCHMARKS:
        raise UsageError(f"unknown benchmark {name!r}: choose from {', '.join(BENCHMARKS)}.")
    source = HUB_SETS.get(name) or _BUILT_SETS[name]
    # a file of one's own has no revision: its hash says what was graded
    if file is not None:
        file = Path(file)
        source = replace(source, revision=f"file {file_hash(file)}")
        if name not in HUB_SETS:
            images = images or file.parent
        if source.reshape is _from_mmrb2:
            source = replace(source, reshape=partial(_from_mmrb2, task=file.stem))
    elif name in _BUILT_SETS:
        raise UsageError(
            f"{BENCHMARKS[name].title} has no pinned revision. Clone "
            f"github.com/{source.repository}, run its {source.file}."
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


def _from_mmrb2(row: DatasetRow, task: str = "") -> DatasetRow:
    """A row of Multimodal RewardBench 2 as a record of this project; task: the file that it is of.

    Contents are lists of ["text" or "image", what]; images of the prompt stand before its text.
    """
    for name in ("id", "prompt_content", "response_a", "response_b", "chosen"):
        if row.get(name) is None:
            raise UsageError(
                f"field {name} is missing. A row of Multimodal RewardBench 2 needs it, once the "
                "authors' scripts have put the prompts in."
            )
    if row["chosen"] not in ("A", "B"):
        raise UsageError(f"unknown chosen {row['chosen']!r}: A or B")
    answers = []
    for name in ("response_a", "response_b"):
        images, text = _take_apart(row[name]["response_content"])
        if images:
            raise UsageError(f"{name} holds an image, and answers are texts here")
        answers.append({"text": text, "model": row[name].get("model_name")})
    images, question = _take_apart(row["prompt_content"])
    return {
        "id": row["id"],
        "images": images,
        "prompt": question,
        "answers": answers,
        "ranking": [[0], [1]] if row["chosen"] == "A" else [[1], [0]],
        "extra": {"task": task, "prompt_source": row.get("prompt_source")},
    }


def _take_apart(content: Sequence[Sequence[str]]) -> tuple[list[str], str]:
    """Images and text of a content, each in its order."""
    images = [what for kind, what in content if kind == "image"]
    return images, "\n".join(what.strip() for kind, what in content if kind == "text")


# Sets that their authors' scripts build; `file`: what to run, and what to give then
_BUILT_SETS = {
    "multimodal_rewardbench": HubSet(
        "facebookresearch/multimodal_rewardbench",
        "",
        file="scripts/0_download_data.py, and give file=…/data/all_data.json",
        licence="CC BY-NC",
        reshape=_to_ab_vote,
    ),
    "multimodal_rewardbench_2": HubSet(
        "facebookresearch/MMRB2",
        "",
        file="benchmark/build_from_hf.py, and give file=…/benchmark/reasoning.json",
        licence="CC BY-NC 4.0",
        key="pairs",
        reshape=_from_mmrb2,
    ),
}


def write_as_benchmark(records: Sequence[PreferenceRecord], path: Path) -> Path:
    """Write the pairs of records of your own in the columns of Multimodal RewardBench.

    Of each record with one image, best against worst, all of the category "vqa". The better answer
    is the first as often as the second. Raises UsageError if there is no such pair.
    """
    rows = []
    for number, record in enumerate(record for record in records if len(record.images) == 1):
        for pair in record.pairs("extremes"):
            texts = [pair.chosen.text, pair.rejected.text]
            # in turn, so that "the first one" is right in half of them
            first = number % 2
            rows.append(
                {
                    "ID": f"own_{record.id or number}",
                    "Category": "vqa",
                    "Text": record.prompt[-1].content,
                    "Image": str(record.image_paths[0].resolve()),
                    "Output1": texts[first],
                    "Output2": texts[1 - first],
                    "Better": f"Output{first + 1}",
                }
            )
    if not rows:
        raise UsageError(
            "no answer of these records with one image is better than another: nothing to write."
        )
    return write_json(path, rows)


def own_benchmark(records: Sequence[PreferenceRecord], folder: Path) -> list[PreferenceRecord]:
    """Your own pairs, read again from a file of Multimodal RewardBench; says if there are none.

    So what is done with a published file can be tried without one.
    """
    try:
        file = write_as_benchmark(records, folder / "own_pairs.json")
    except UsageError as error:
        print(f"No benchmark of your own pairs: {error}")
        return []
    return load_benchmark("multimodal_rewardbench", folder, file=file)
