"""Questions of five published benchmarks, from their copies on the hub.

POPE, MME, HallusionBench, LLaVA-Bench (in the wild) and MMHal-Bench. Where the columns come from:
the readers in github.com/EvolvingLMMs-Lab/lmms-eval (`lmms_eval/tasks/{pope,mme,hallusion_bench,
llava-in-the-wild}`), HallusionBench.json of github.com/tianyi-lab/HallusionBench, and
response_template.json and MMHal-Bench.py of Shengcao1006/MMHal-Bench. Prompts are the questions as
they stand in the file; what an evaluation suite appends to them ("Answer the question using a
single word or phrase.") is not.

The items are downloaded or given by the reader, never part of this repository. Each revision is a
commit of the data set's page (`benchmarks.toml`); downloads at them have not been run here, only
files of the same columns.
"""

import itertools
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from helpers.data import (
    DatasetRow,
    HubSet,
    load_rows,
    store_images,
)
from helpers.files import UsageError, write_lines

from ..keyed import by_id, placed_rows

POPE_SPLITS = ("random", "popular", "adversarial")
PERCEPTION = (
    "existence",
    "count",
    "position",
    "color",
    "posters",
    "celebrity",
    "scene",
    "landmark",
    "artwork",
    "OCR",
)
COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
HALLUSION_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")
SHOWN_ROW_ERRORS = 10  # bad rows that a message lists
_Fields = dict[str, Any]  # of a question


class BenchmarkQuestion(BaseModel):
    """One question of a benchmark, with what its rule needs to know."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    id: str
    prompt: str
    image: Path | None  # None: asked without one
    label: str  # "yes" or "no", or the reference answer
    group: str  # split, subtask, category or question type
    about: dict[str, str] = {}  # further columns of the benchmark


@dataclass(frozen=True)
class OfficialBenchmark:
    """A published benchmark, and where it is."""

    title: str
    source: HubSet
    # how to get the file, where the hub's own cannot be read without running its code
    manual: str | None = None


# --- one row --------------------------------------------------------------------------------------


def _text(row: DatasetRow, *names: str) -> str:
    """The first of the fields that is there. Raises UsageError if none is, or it is no text."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"field {' or '.join(names)} is missing or no text ({value!r}).")
    return str(value)


def _choice(row: DatasetRow, field: str, known: Sequence[str]) -> str:
    value = _text(row, field)
    if value not in known:
        raise UsageError(f"unknown {field} {value!r}: {', '.join(known)}.")
    return value


def _fields(row: DatasetRow, name: str, label: str, group: str, **about: str) -> _Fields:
    """Fields of a question whose row has the columns question and image."""
    return {
        "id": name,
        "prompt": _text(row, "question"),
        "image": row.get("image"),
        "label": label,
        "group": group,
        "about": about,
    }


def _yes_no(row: DatasetRow) -> str:
    answer = {"answer": _text(row, "answer").strip().lower()}
    return _choice(answer, "answer", ("yes", "no"))


def _pope(row: DatasetRow, number: int) -> _Fields:
    split = _choice(row, "category", POPE_SPLITS)
    return _fields(row, f"{split}-{_text(row, 'question_id')}", _yes_no(row), split)


def _mme(row: DatasetRow, number: int) -> _Fields:
    """Both questions about an image carry its name as `question_id`: they are numbered later."""
    task = _choice(row, "category", PERCEPTION + COGNITION)
    image_name = _text(row, "question_id")
    return _fields(row, image_name, _yes_no(row), task, pair=image_name)


def hallusion_id(row: DatasetRow) -> str:
    """The name by which the official code tells questions apart."""
    return "_".join(_text(row, name) for name in HALLUSION_KEYS)


def _hallusion(row: DatasetRow, number: int) -> _Fields:
    visual = _choice(row, "visual_input", ("0", "1", "2"))
    about = {name: _text(row, name) for name in (*HALLUSION_KEYS[1:], "gt_answer_details")}
    label = "yes" if _choice(row, "gt_answer", ("0", "1")) == "1" else "no"
    image = row.get("image") or row.get("filename")
    if visual == "0":  # asked without its image, whatever the row holds
        image = None
    elif image is None:
        raise UsageError(
            f"visual_input {visual} needs an image, and neither image nor filename names one."
        )
    category = _choice(row, "category", ("VD", "VS"))
    fields = _fields(row, hallusion_id(row), label, category, **about, visual_input=visual)
    return fields | {"image": image}


def _llava(row: DatasetRow, number: int) -> _Fields:
    category = _choice(row, "category", ("conv", "detail", "complex"))
    caption = row.get("caption")
    caption = "\n".join(caption) if isinstance(caption, list) else _text(row, "caption")
    name = _text(row, "question_id")
    return _fields(row, name, _text(row, "gpt_answer"), category, caption=caption)


def _mmhal(row: DatasetRow, number: int) -> _Fields:
    """The file has no ids: the place counts, as in the official code.

    Images are named by the end of their address.
    """
    content = row.get("image_content")
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise UsageError(f"field image_content must be a list of texts, not {content!r}.")
    image = row.get("image") or _text(row, "image_src").split("/")[-1]
    kind = _text(row, "question_type")
    label = _text(row, "gt_answer")
    fields = _fields(row, str(number), label, kind, image_content=", ".join(content))
    return fields | {"image": image}


# (row, its number) → fields of a BenchmarkQuestion, `image` as it is stored
_READERS = {
    "pope": _pope,
    "mme": _mme,
    "hallusion_bench": _hallusion,
    "llava_bench": _llava,
    "mmhal_bench": _mmhal,
}


def _read_catalogue() -> dict[str, OfficialBenchmark]:
    text = Path(__file__).with_name("benchmarks.toml").read_text(encoding="utf-8")
    found = {}
    for name, entry in tomllib.loads(text).items():
        title = entry.pop("title")
        manual = entry.pop("manual", None)
        found[name] = OfficialBenchmark(title, HubSet(**entry), manual)
    return found


OFFICIAL_BENCHMARKS = _read_catalogue()


# --- all rows -------------------------------------------------------------------------------------


def load_questions(
    name: str,
    folder: Path,
    *,
    file: Path | None = None,
    images: Path | None = None,
    rows: int | None = None,
) -> list[BenchmarkQuestion]:
    """The questions of a benchmark, also written to `folder/NAME.jsonl`.

    Images inside the rows go to `folder/images/`. file: a Parquet, JSON or JSONL file of the hub's
    columns, instead of the hub. images: folder of the images where rows only name them (default:
    that of `file`). rows: only the first so many; what is graded then is no longer the benchmark.
    Raises UsageError if a single row cannot be read, and then writes nothing.
    """
    if name not in OFFICIAL_BENCHMARKS:
        known = ", ".join(OFFICIAL_BENCHMARKS)
        raise UsageError(f"unknown benchmark {name!r}: choose from {known}.")
    official = OFFICIAL_BENCHMARKS[name]
    if file is None and official.manual:
        raise UsageError(
            f"{official.title} cannot be read from the hub without running its code. "
            f"{official.manual}"
        )
    # where the files lie that rows only name
    named = images or (file.parent if file else folder)
    taken = itertools.islice(_rows(official.source, file), rows)
    questions, bad = [], []
    for number, (where, row) in enumerate(taken, start=1):
        try:
            fields = _READERS[name](row, number)
            # stored images become files, named ones must be there
            fields["image"] = _image(fields["image"], folder, named)
            questions.append(BenchmarkQuestion(**fields))
        except UsageError as error:
            bad.append(f"{where}: {error}")
    if bad:
        _refuse(bad, len(bad) + len(questions))
    # both questions about an image have its name until here
    if name == "mme":
        questions = _number_ids(questions)
    by_id(questions)  # refuses none, and two of one id
    write_questions(folder / f"{name}.jsonl", questions)
    return questions


def _refuse(bad: Sequence[str], rows: int) -> None:
    shown = list(bad[:SHOWN_ROW_ERRORS])
    if len(bad) > SHOWN_ROW_ERRORS:
        shown.append(f"… and {len(bad) - SHOWN_ROW_ERRORS} more")
    raise UsageError(f"{len(bad)} of {rows} rows cannot be read:\n" + "\n".join(shown))


def _rows(source: HubSet, file: Path | None) -> Iterator[tuple[str, DatasetRow]]:
    """(place, row); images inside a table as the bytes they are stored as."""
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: no such file. Check the path, or leave it out to download.")
    if file is None or file.suffix == ".parquet":
        for number, row in enumerate(load_rows(source, file), start=1):
            yield f"{file or source.repository}, row {number}", row
    else:
        yield from placed_rows(file)


def _image(value: Any, folder: Path, named: Path) -> Path | None:
    """The file of an image that is stored in the row, or that it names."""
    if value is None:
        return None
    name = value.get("path") if isinstance(value, dict) else value
    # a table holds the bytes of its images
    if isinstance(value, dict) and isinstance(value.get("bytes"), bytes):
        return folder / store_images(value, folder)
    if not isinstance(name, str):
        raise UsageError(f"the image must be stored or a file name, not {type(value).__name__}.")
    path = named / name
    if not path.is_file():
        raise UsageError(f"image {path} does not exist. Give images=, the folder of the images.")
    return path


def _number_ids(questions: Sequence[BenchmarkQuestion]) -> list[BenchmarkQuestion]:
    seen = Counter()
    numbered = []
    for question in questions:
        seen[question.id] += 1
        numbered.append(question.model_copy(update={"id": f"{question.id}#{seen[question.id]}"}))
    return numbered


def write_questions(path: Path, questions: Sequence[BenchmarkQuestion]) -> Path:
    """JSONL; images below the file's folder are named relative to it, so that it can be moved."""
    here = path.parent.resolve()
    lines = []
    for question in questions:
        image = question.image and question.image.resolve()
        # so that the folder can be moved
        if image and image.is_relative_to(here):
            image = image.relative_to(here)
        lines.append(question.model_copy(update={"image": image}).model_dump_json())
    return write_lines(path, lines)
