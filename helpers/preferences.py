"""The preference record, one JSON object a line, and the file of them.

The shortest record that a person writes by hand:

    {"image": "images/7.png", "prompt": "How many cars?", "chosen": "There are 2.", "rejected": "There are 3."}

is read as the full form: images, chat messages, N answers in the order shown, and a `ranking` in
tiers, best first, ties together. A pair, an A/B vote and a ranked list of N are the same record, and
the position of an answer never says how good it is.
"""

import itertools
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, Image, List
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from tqdm.auto import tqdm

from helpers.runtime import UsageError, open_image, write_text


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Answer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    text: str
    origin: str | None = None  # where it comes from: "truth", "model", "edit", "other image", …
    score: float | None = None

    @field_validator("text")
    @classmethod
    def _not_empty(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("the answer is empty: write its text or remove the record")
        return text


class Pair(BaseModel):
    """Two answers of one record, the better one first."""

    chosen: Answer
    rejected: Answer


class PreferenceRecord(BaseModel):
    model_config = ConfigDict(extra="forbid")
    images: list[str] = Field(min_length=1)  # paths relative to the record's file
    prompt: list[Message] = Field(min_length=1)
    answers: list[Answer] = Field(min_length=2)
    ranking: list[list[int]]  # indices into `answers`: tiers, best first, ties together
    id: str | None = None
    truth: dict[str, int] | None = None  # counts, if they are known
    group: str | None = None  # records of one photo share a group and stay on one side of a split
    extra: dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _accept_short_form(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if "image" in data:
            data.setdefault("images", [data.pop("image")])
        if isinstance(data.get("prompt"), str):
            data["prompt"] = [{"role": "user", "content": data["prompt"]}]
        if "chosen" in data and "rejected" in data and "answers" not in data:
            sides = [data.pop("chosen"), data.pop("rejected")]
            data["answers"] = [{"text": side} if isinstance(side, str) else side for side in sides]
            data["ranking"] = [[0], [1]]
        return data

    @model_validator(mode="after")
    def _ranking_names_every_answer_once(self) -> "PreferenceRecord":
        ranked = sorted(itertools.chain.from_iterable(self.ranking))
        if ranked != list(range(len(self.answers))):
            raise ValueError(f"ranking {self.ranking} must name each of the {len(self.answers)} answers once")
        texts = [answer.text for answer in self.answers]
        for better, worse in self._tier_pairs():
            if texts[better] == texts[worse]:
                raise ValueError(f"answers {better} and {worse} have the same text but different ranks")
        return self

    def _tier_pairs(self) -> Iterable[tuple[int, int]]:
        for better, worse in itertools.combinations(self.ranking, 2):
            yield from itertools.product(better, worse)

    def pairs(self) -> list[Pair]:
        """Every (better, worse) pair of answers; ties give none."""
        return [Pair(chosen=self.answers[i], rejected=self.answers[j]) for i, j in self._tier_pairs()]


def explain(error: ValidationError) -> str:
    """pydantic's findings as one line of plain words."""
    findings = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        findings.append(f"{field}: {message}" if field else message)
    return "; ".join(findings)


def read_records(path: Path) -> list[PreferenceRecord]:
    """Read a JSONL file of records (blank lines allowed).

    Raises UsageError naming file, line and remedy at the first line that is not a valid record.
    """
    if not path.exists():
        raise UsageError(f"{path}: no such file. Run notebook 02 to make one, or give another path.")
    records = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            records.append(PreferenceRecord.model_validate(json.loads(line.decode("utf-8-sig"))))
        except UnicodeDecodeError:
            raise UsageError(f"{path}:{number}: not UTF-8 text. Save the file as UTF-8.") from None
        except json.JSONDecodeError as error:
            raise UsageError(
                f"{path}:{number}: not JSON ({error.msg}, column {error.colno}). Each line must be one whole object."
            ) from None
        except ValidationError as error:
            raise UsageError(f"{path}:{number}: {explain(error)}. Correct the line or remove it.") from None
    if not records:
        raise UsageError(f"{path}: holds no records. Run notebook 02 again, or give another file.")
    return records


def image_paths(path: Path, record: PreferenceRecord) -> list[Path]:
    """Where the images of a record of the file `path` are."""
    return [Path(os.path.normpath(path.parent / name)) for name in record.images]


def write_records(path: Path, records: Iterable[PreferenceRecord]) -> Path:
    """Write records as JSONL, one a line, without the fields that hold nothing."""
    return write_text(path, "".join(r.model_dump_json(exclude_defaults=True) + "\n" for r in records))


def to_trl(path: Path, records: list[PreferenceRecord]) -> Dataset:
    """The pairs of `records` as a TRL vision-preference data set; images are decoded when they are used.

    Columns `images` (RGB), `prompt`, `chosen`, `rejected` (chat messages). TRL decides by the column
    name `images` that this is vision data; under any other name the images would be ignored.
    `path` is the records' file: image paths are relative to it. Raises UsageError naming file and
    record for an image that cannot be read.
    """
    rows = []
    for number, record in enumerate(tqdm(records, desc="images", leave=False), start=1):
        where = f"{path} (record {record.id or number})"
        images = image_paths(path, record)
        for image in images:
            open_image(image, where)  # fails here, with a name, rather than in the middle of training
        prompt = [message.model_dump() for message in record.prompt]
        rows += [
            {
                "images": [str(image) for image in images],
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": pair.chosen.text}],
                "rejected": [{"role": "assistant", "content": pair.rejected.text}],
            }
            for pair in record.pairs()
        ]
    if not rows:
        raise UsageError(f"{path}: all answers are tied, so there is no pair to train on. Rank some of them.")
    return Dataset.from_list(rows).cast_column("images", List(Image(mode="RGB")))
