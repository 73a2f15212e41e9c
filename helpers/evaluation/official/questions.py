"""Questions of POPE, MME, HallusionBench, LLaVA-Bench (in the wild) and MMHal-Bench, from their copies on the hub.

Where the columns come from: the readers in github.com/EvolvingLMMs-Lab/lmms-eval (`lmms_eval/tasks/{pope,mme,
hallusion_bench,llava-in-the-wild}`), HallusionBench.json of github.com/tianyi-lab/HallusionBench, and
response_template.json and MMHal-Bench.py of Shengcao1006/MMHal-Bench. Prompts are the questions as they stand in the
file; what an evaluation suite appends to them ("Answer the question using a single word or phrase.") is not.

The items are downloaded or given by the reader, never part of this repository. Each revision is a commit of the data
set's page; downloads at them have not been run here, only files of the same columns.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from helpers.data import (
    DatasetRow,
    HubSet,
    explain_validation_error,
    load_rows,
    raw_rows,
    store_images,
)
from helpers.files import UsageError, write_lines


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
    """A published benchmark: where it is, and the figures its authors' code prints."""

    title: str
    paper: str
    licence: str
    source: HubSet
    metrics: tuple[str, ...]
    read: Callable[
        [DatasetRow, int], dict[str, Any]
    ]  # row, its number → fields of a Question, `image` as it is stored
    manual: str | None = (
        None  # how to get the file, where the hub's own cannot be read without running its code
    )


# --- one row --------------------------------------------------------------------------------------


def _text(row: DatasetRow, *names: str) -> str:
    """The first of the fields that is there. Raises UsageError if none is, or it is no text."""
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UsageError(f"field {' or '.join(names)} is missing or no text ({value!r}).")
    return str(value)


def _choice(value: str, known: dict[str, str] | Sequence[str], field: str) -> str:
    if value not in known:
        raise UsageError(f"unknown {field} {value!r}: {', '.join(known)}.")
    return known[value] if isinstance(known, dict) else value


def _yes_no(row: DatasetRow) -> str:
    return _choice(_text(row, "answer").strip().lower(), ("yes", "no"), "answer")


def _pope(row: DatasetRow, number: int) -> dict[str, Any]:
    split = _choice(_text(row, "category"), ("random", "popular", "adversarial"), "category")
    name = f"{split}-{_text(row, 'question_id')}"
    return {"id": name, "prompt": _text(row, "question"), "label": _yes_no(row), "group": split, "image": row.get("image")}  # fmt: skip


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


def _mme(row: DatasetRow, number: int) -> dict[str, Any]:
    """Both questions about an image carry its name as `question_id`: `load` numbers them."""
    task = _choice(_text(row, "category"), PERCEPTION + COGNITION, "category")
    name = _text(row, "question_id")
    return {"id": name, "prompt": _text(row, "question"), "label": _yes_no(row), "group": task, "image": row.get("image"), "about": {"pair": name}}  # fmt: skip


HALLUSION_KEYS = ("category", "subcategory", "set_id", "figure_id", "question_id")


def hallusion_id(row: DatasetRow) -> str:
    """The name by which the official code tells questions apart."""
    return "_".join(_text(row, name) for name in HALLUSION_KEYS)


def _hallusion(row: DatasetRow, number: int) -> dict[str, Any]:
    visual = _choice(_text(row, "visual_input"), ("0", "1", "2"), "visual_input")
    about = {name: _text(row, name) for name in (*HALLUSION_KEYS[1:], "gt_answer_details")} | {
        "visual_input": visual
    }
    label = _choice(_text(row, "gt_answer"), {"0": "no", "1": "yes"}, "gt_answer")
    image = None if visual == "0" else row.get("image") or row.get("filename")
    if visual != "0" and image is None:
        raise UsageError(
            f"visual_input {visual} needs an image, and neither image nor filename names one."
        )
    category = _choice(_text(row, "category"), ("VD", "VS"), "category")
    return {"id": hallusion_id(row), "prompt": _text(row, "question"), "label": label, "group": category, "image": image, "about": about}  # fmt: skip


def _llava(row: DatasetRow, number: int) -> dict[str, Any]:
    category = _choice(_text(row, "category"), ("conv", "detail", "complex"), "category")
    caption = row.get("caption")
    about = {"caption": "\n".join(caption) if isinstance(caption, list) else _text(row, "caption")}
    return {"id": _text(row, "question_id"), "prompt": _text(row, "question"), "label": _text(row, "gpt_answer"), "group": category, "image": row.get("image"), "about": about}  # fmt: skip


def _mmhal(row: DatasetRow, number: int) -> dict[str, Any]:
    """The file has no ids: the place counts, as in the official code. Images are named by the end of their address."""
    content = row.get("image_content")
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise UsageError(f"field image_content must be a list of texts, not {content!r}.")
    image = row.get("image") or _text(row, "image_src").split("/")[-1]
    return {"id": str(number), "prompt": _text(row, "question"), "label": _text(row, "gt_answer"), "group": _text(row, "question_type"), "image": image, "about": {"image_content": ", ".join(content)}}  # fmt: skip


_MMHAL = HubSet(
    "Shengcao1006/MMHal-Bench", "8c04a4a8ae40b80763eee9b3eadf115e2267bfa6", licence="Apache-2.0"
)
OFFICIAL_BENCHMARKS = {
    "pope": OfficialBenchmark(
        "POPE", "Li et al. 2023, arXiv 2305.10355", "MIT (questions); COCO's terms (images)",
        HubSet("lmms-lab/POPE", "4db1276663dfa5eb8ad16a52d24c31a09e470896", split="test"),
        ("accuracy", "precision", "recall", "F1", "yes ratio"), _pope,
    ),
    "mme": OfficialBenchmark(
        "MME", "Fu et al. 2023, arXiv 2306.13394", "see the authors' page",
        HubSet("lmms-lab/MME", "d6c9023f017b564f7b3ccccf5348166bce8fdbcd", split="test"),
        ("perception", "cognition", "acc", "acc+", "score"), _mme,
    ),
    "hallusion_bench": OfficialBenchmark(
        "HallusionBench", "Guan et al. 2024, arXiv 2310.14566", "BSD-3-Clause",
        HubSet("lmms-lab/HallusionBench", "ea5fd49f1b711d12cc8b0ec75be0c0593e17befe", split="image+non_image"),
        ("aAcc", "qAcc", "fAcc", "easy", "hard", "yes/no bias"), _hallusion,
    ),
    "llava_bench": OfficialBenchmark(
        "LLaVA-Bench (in the wild)", "Liu et al. 2023, arXiv 2304.08485", "Apache-2.0",
        HubSet("lmms-lab/llava-bench-in-the-wild", "2c88d835d509b1372066db42ab7799255dbe9da2", split="train"),
        ("all", "conv", "detail", "complex"), _llava,
    ),
    "mmhal_bench": OfficialBenchmark(
        "MMHal-Bench", "Sun et al. 2023, arXiv 2309.14525", "Apache-2.0", _MMHAL,
        ("average score", "hallucination rate", "average score by question type"), _mmhal,
        manual=f"Unpack test_data.zip of huggingface.co/datasets/{_MMHAL.repository} at {_MMHAL.revision}, and give "
        "file=…/response_template.json, images=…/images.",
    ),
}  # fmt: skip


# --- all rows -------------------------------------------------------------------------------------


def load_questions(
    name: str,
    folder: Path,
    *,
    file: Path | None = None,
    images: Path | None = None,
    rows: int | None = None,
) -> list[BenchmarkQuestion]:
    """The questions of a benchmark, also written to `folder/NAME.jsonl`, images inside them to `folder/images/`.

    file: a Parquet, JSON or JSONL file of the hub's columns that is already here, instead of the hub. images: folder of
    the images where rows only name them (default: the folder of `file`). rows: only the first so many; what is graded
    then is no longer the benchmark. Raises UsageError if a single row cannot be read, and then writes nothing.
    """
    official = OFFICIAL_BENCHMARKS.get(name)
    if official is None:
        raise UsageError(
            f"unknown benchmark {name!r}: choose from {', '.join(OFFICIAL_BENCHMARKS)}."
        )
    if file is None and official.manual:
        raise UsageError(
            f"{official.title} cannot be read from the hub without running its code. {official.manual}"
        )
    if rows is not None and rows < 1:
        raise UsageError(f"rows = {rows}: take at least one.")
    named = images or (file.parent if file else folder)
    questions, bad = [], []
    for number, (where, row) in enumerate(
        itertools.islice(_rows(official.source, file), rows), start=1
    ):
        try:
            fields = official.read(row, number)
            questions.append(
                BenchmarkQuestion(**fields | {"image": _image(fields["image"], folder, named)})
            )
        except UsageError as error:
            bad.append(f"{where}: {error}")
    if bad:
        shown = "\n".join(bad[:10]) + (f"\n… and {len(bad) - 10} more" if len(bad) > 10 else "")
        raise UsageError(f"{len(bad)} of {len(bad) + len(questions)} rows cannot be read:\n{shown}")
    questions = _number_ids(questions) if name == "mme" else questions
    questions_by_id(questions)
    write_questions(folder / f"{name}.jsonl", questions)
    return questions


def _rows(source: HubSet, file: Path | None) -> Iterator[tuple[str, DatasetRow]]:
    """(place, row); images inside a table as the bytes they are stored as."""
    if file is not None and not file.is_file():
        raise UsageError(f"{file}: no such file. Check the path, or leave it out to download.")
    if file is None or file.suffix == ".parquet":
        for number, row in enumerate(load_rows(source, file), start=1):
            yield f"{file or source.repository}, row {number}", row
        return
    for number, _, row, error in raw_rows(file):
        if error or not isinstance(row, dict):
            raise UsageError(f"{file}:{number}: {error or 'a row is an object with named fields.'}")
        yield f"{file}:{number}", row


def _image(value: Any, folder: Path, named: Path) -> Path | None:
    """The file of an image that is stored in the row, or that it names."""
    if value is None:
        return None
    stored = store_images(value, folder)
    if stored is not value:
        return folder / stored
    name = value.get("path") if isinstance(value, dict) else value
    if not isinstance(name, str):
        raise UsageError(f"the image must be stored or a file name, not {type(value).__name__}.")
    if not (path := named / name).is_file():
        raise UsageError(f"image {path} does not exist. Give images=, the folder of the images.")
    return path


def _number_ids(questions: Sequence[BenchmarkQuestion]) -> list[BenchmarkQuestion]:
    seen: Counter[str] = Counter()
    numbered = []
    for question in questions:
        seen[question.id] += 1
        numbered.append(question.model_copy(update={"id": f"{question.id}#{seen[question.id]}"}))
    return numbered


def questions_by_id(questions: Sequence[BenchmarkQuestion]) -> dict[str, BenchmarkQuestion]:
    """Raises UsageError if there are none, or two have one id."""
    if not questions:
        raise UsageError("there are no questions. Load the benchmark first.")
    (name, times), *_ = Counter(question.id for question in questions).most_common(1)
    if times > 1:
        raise UsageError(f"{times} questions have the id {name}. Remove the copies from the file.")
    return {question.id: question for question in questions}


def write_questions(path: Path, questions: Sequence[BenchmarkQuestion]) -> Path:
    """JSONL; images below the file's folder are named relative to it, so that the folder can be moved."""
    here = path.parent.resolve()

    def line(question: BenchmarkQuestion) -> str:
        image = question.image and question.image.resolve()
        image = image.relative_to(here) if image and image.is_relative_to(here) else image
        return question.model_copy(update={"image": image}).model_dump_json()

    return write_lines(path, map(line, questions))


def read_questions(path: Path) -> list[BenchmarkQuestion]:
    """Read what `write_questions` wrote. Raises UsageError naming file and line."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file. `load` writes it.")
    questions = []
    for number, raw, _, error in raw_rows(path):
        try:
            question = BenchmarkQuestion.model_validate_json(raw) if error is None else None
        except ValidationError as problem:
            error = explain_validation_error(problem)
        if error or question is None:
            raise UsageError(f"{path}:{number}: {error}")
        image = question.image and path.parent / question.image
        questions.append(question.model_copy(update={"image": image}))
    questions_by_id(questions)
    return questions
