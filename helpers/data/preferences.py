"""The preference record, one JSON object a line, and the file of them.

The shortest record that a person writes by hand:

    {"image": "images/7.png", "prompt": "How many cars?", "chosen": "There are 2.", "rejected": "There are 3."}

is read as the full form: images, chat messages, N answers in the order shown (here drawn by a hash),
and a `ranking` in tiers, best first, ties together. A pair, an A/B vote and a ranked list of N are the same record, and
the position of an answer never says how good it is. Answers are referred to by their place in
`answers`, counted from 0. In a file, images are named relative to it; a record that was read knows where they are:
`read_records` makes the paths absolute, `write_records` makes them relative again. Taught in notebook 02;
`data/preference_record.schema.json` is its JSON Schema.
"""

import hashlib
import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import PIL.Image
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)
from tqdm.auto import tqdm

from helpers.files import UsageError, open_image, parse_json, write_lines

if TYPE_CHECKING:
    from datasets import Dataset

EMPTY_ANSWER = "the answer is empty: write its text or remove the record"
Ranking = list[list[int]]  # places in `answers`: tiers, best first, ties together
FiniteNumber = Annotated[float, Field(allow_inf_nan=False)]


def _kind_of_truth(value: Any) -> str:
    return {dict: "counts", list: "answers"}.get(type(value), "answer")


Truth = Annotated[  # told apart by type, so that an error speaks of the one that was meant
    Annotated[dict[str, Annotated[int, Field(ge=0)]], Tag("counts")]
    | Annotated[str, Tag("answer")]
    | Annotated[list[str], Tag("answers")],
    Discriminator(_kind_of_truth),
]


class StrictModel(BaseModel):
    """Unknown fields are errors, and nothing is converted in silence: "2" is not 2."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Message(StrictModel):
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


class Answer(StrictModel):
    text: str
    id: str | None = None
    model: str | None = None  # who wrote it, if a model did
    origin: str | None = None  # how it came about: "truth", "own", "edit", "other image", …
    score: FiniteNumber | None = None  # by which it was ranked
    scores: dict[str, FiniteNumber] = Field(
        default_factory=dict
    )  # parts of the score, or ratings by criterion

    @field_validator("text")
    @classmethod
    def _check_not_empty(cls, text: str) -> str:
        if not text.strip():
            raise ValueError(EMPTY_ANSWER)
        return text


class Judgement(StrictModel):
    """What one annotator said about the answers of one record."""

    kind: Literal["human", "model", "rule"]
    annotator: str
    verdict: Literal["ranked", "tie", "all bad", "skip"]
    ranking: Ranking | None = None  # one tier for "tie" and "all bad", none for "skip"
    order: list[int] | None = None  # order[k]: place in `answers` of the answer shown k-th
    criteria: dict[str, list[FiniteNumber]] = Field(
        default_factory=dict
    )  # criterion → a score for each answer
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    time: str | None = None  # ISO 8601

    @field_validator("time")
    @classmethod
    def _check_time(cls, time: str | None) -> str | None:
        if time is not None:
            datetime.fromisoformat(time)  # its ValueError says what is wrong
        return time

    @model_validator(mode="after")
    def _check_ranking_fits_verdict(self) -> "Judgement":
        tiers = {
            "skip": self.ranking is None,
            "ranked": bool(self.ranking) and len(self.ranking) > 1,
        }
        if not tiers.get(self.verdict, bool(self.ranking) and len(self.ranking) == 1):
            raise ValueError(f"verdict {self.verdict!r} does not go with ranking {self.ranking}")
        return self


class Pair(StrictModel):
    """Two answers of one record, the better one first; `margin` is the difference of their scores."""

    chosen: Answer
    rejected: Answer
    margin: float | None = None


def is_first_shown_second(first: Any, second: Any) -> bool:
    """Decide whether to put the first answer second, for files that do not say in which order answers were shown.

    A coin that only the texts decide (their hashes), so that the place of an answer does not say how
    good it is, and reading the same line twice gives the same record.
    """
    digests = [
        hashlib.sha256(str(text).encode(errors="replace")).digest() for text in (first, second)
    ]
    return digests[1] < digests[0]


class Origin(NamedTuple):
    """Where a record was read."""

    file: Path
    line: int
    names: dict[str, str]  # absolute path of an image → its name in the file


class PreferenceRecord(StrictModel):
    images: list[Annotated[str, Field(min_length=1)]] = Field(
        min_length=1
    )  # in a file: relative to it; else absolute
    prompt: list[Message] = Field(min_length=1)
    answers: list[Answer] = Field(min_length=2)
    ranking: Ranking | None = None  # None: nobody has judged yet, so there are no pairs
    id: str | None = None
    judgements: list[Judgement] = Field(default_factory=list)
    truth: Truth | None = None  # counts by class, an answer, or the answers of several people
    negative_images: list[str] = Field(
        default_factory=list
    )  # spoilt images, with which the best answer is wrong
    group: str | None = None  # records of one photo share a group and stay on one side of a split
    source: str | None = None
    licence: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)  # what another format has beyond this one
    _origin: Origin | None = PrivateAttr(None)  # None: the record was made, not read

    @model_validator(mode="before")
    @classmethod
    def _accept_short_form(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if "image" in data and "images" not in data:
            data["images"] = [data.pop("image")]
        if isinstance(data.get("prompt"), str):
            data["prompt"] = [{"role": "user", "content": data["prompt"]}]
        if "chosen" in data and "rejected" in data and not {"answers", "ranking"} & data.keys():
            if empty := [
                side
                for side in ("chosen", "rejected")
                if data[side] == "" or str(data[side]).isspace()
            ]:
                raise ValueError(f"{empty[0]}: {EMPTY_ANSWER}")
            sides = [data.pop("chosen"), data.pop("rejected")]
            data["answers"] = [{"text": side} if isinstance(side, str) else side for side in sides]
            data["ranking"] = [[0], [1]]
            if is_first_shown_second(
                *(
                    answer.get("text") if isinstance(answer, dict) else answer
                    for answer in data["answers"]
                )
            ):
                data["answers"], data["ranking"] = data["answers"][::-1], [[1], [0]]
        return data

    @field_validator("extra")
    @classmethod
    def _check_extra_is_json(cls, extra: dict[str, Any]) -> dict[str, Any]:
        if extra:  # TypeError, ValueError and UnicodeEncodeError all mean that writing would lose something
            try:
                json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
            except (TypeError, RecursionError) as error:
                raise ValueError(str(error)) from None
        return extra

    @model_validator(mode="after")
    def _check_all_places(self) -> "PreferenceRecord":
        if self.prompt[-1].role != "user":
            raise ValueError("the prompt must end with a message of the user")
        n = len(self.answers)
        ids = [answer.id for answer in self.answers if answer.id is not None]
        if len(set(ids)) < len(ids):
            raise ValueError(f"answer ids {ids} must differ")
        _check_places("ranking", self.ranking, n)
        for judgement in self.judgements:
            _check_places("ranking of a judgement", judgement.ranking, n)
            _check_places("order of a judgement", judgement.order and [judgement.order], n)
            for criterion, scores in judgement.criteria.items():
                if len(scores) != n:
                    raise ValueError(
                        f"criterion {criterion!r} has {len(scores)} scores for {n} answers"
                    )
        for better, worse in self.tier_pairs():
            if self.answers[better].text == self.answers[worse].text:
                raise ValueError(
                    f"answers {better} and {worse} have the same text but different ranks"
                )
        return self

    def __eq__(self, other: object) -> bool:
        """Equal records say the same; where they were read does not count."""
        return isinstance(other, PreferenceRecord) and self.__dict__ == other.__dict__

    @property
    def image_paths(self) -> list[Path]:
        """Paths of the images of a record that was read or made (not of one in a `RecordLine`)."""
        return [Path(name) for name in self.images]

    @property
    def negative_image_paths(self) -> list[Path]:
        """Paths of the spoilt images, likewise."""
        return [Path(name) for name in self.negative_images]

    @property
    def file(self) -> Path | None:
        """The file that the record was read from; None for one that was made."""
        return self._origin.file if self._origin else None

    @property
    def place(self) -> str:
        """File, line and id of the record, as far as it has them: what an error has to name."""
        read = f"{self._origin.file}:{self._origin.line}" if self._origin else ""
        return (
            f"{read} (record {self.id})".strip()
            if self.id is not None
            else read or "a record without an id"
        )

    def image_names(self, folder: Path | None = None) -> list[str]:
        """The images as a file names them: as they were read, else relative to `folder` if one is given."""
        names = self._origin.names if self._origin else {}
        return [
            names.get(image) or (_relative_name(image, folder) if folder else image)
            for image in self.images
        ]

    def tier_pairs(self) -> Iterator[tuple[int, int]]:
        """Places of every (better, worse) pair of answers."""
        for better, worse in itertools.combinations(self.ranking or [], 2):
            yield from itertools.product(better, worse)

    def pairs(self, which: Literal["all", "extremes"] = "all") -> list[Pair]:
        """Every (better, worse) pair of answers, or only best against worst; ties give none.

        "extremes" is one pair: the first of the best tier against the first of the worst.
        """
        places = list(self.tier_pairs())
        if which == "extremes" and places:
            places = [(self.ranking[0][0], self.ranking[-1][0])]
        return [_pair(self.answers[i], self.answers[j]) for i, j in places]


def _check_places(what: str, tiers: Ranking | None, n: int) -> None:
    if tiers is None:
        return
    if sorted(itertools.chain.from_iterable(tiers)) != list(range(n)):
        raise ValueError(f"{what} {tiers} must name each of the {n} answers once")
    if not all(tiers):
        raise ValueError(f"{what} {tiers} has an empty tier")


def _pair(chosen: Answer, rejected: Answer) -> Pair:
    known = chosen.score is not None and rejected.score is not None
    return Pair(
        chosen=chosen, rejected=rejected, margin=chosen.score - rejected.score if known else None
    )


def record_key(record: PreferenceRecord) -> str:
    """Key of a record: its id, else a hash of its images, prompt and answers."""
    if record.id is not None:
        return record.id
    named = record.model_copy(update={"images": record.image_names()})
    content = named.model_dump_json(include={"images", "prompt", "answers"})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def consensus(judgements: Iterable[Judgement], n: int) -> Ranking | None:
    """One ranking of `n` answers from several judgements: by mean rank, ties where it is equal.

    Tied answers share the mean of their ranks (mid-ranks); skips do not count. None without a vote.
    """
    votes = [judgement.ranking for judgement in judgements if judgement.ranking is not None]
    if not votes:
        return None
    total = [0.0] * n
    for ranking in votes:
        place = 0
        for tier in ranking:
            for answer in tier:
                total[answer] += place + (len(tier) - 1) / 2
            place += len(tier)
    levels = sorted(set(total))
    return [[answer for answer in range(n) if total[answer] == level] for level in levels]


def json_schema() -> dict[str, Any]:
    """JSON Schema of a line, the short form included."""
    schema = PreferenceRecord.model_json_schema()
    text_or_answer = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/Answer"}]}
    messages = schema["properties"]["prompt"]
    schema["properties"] |= {
        "image": {"type": "string", "description": "short for images of one"},
        "prompt": {"anyOf": [{"type": "string", "minLength": 1}, messages]},
        "chosen": {**text_or_answer, "description": "short for two answers, with rejected"},
        "rejected": text_or_answer,
    }
    schema["required"] = ["prompt"]
    short = {"required": ["chosen", "rejected"], "not": {"required": ["ranking"]}}
    full = {
        "required": ["answers"],
        "not": {"anyOf": [{"required": ["chosen"]}, {"required": ["rejected"]}]},
    }
    schema["allOf"] = [
        {"oneOf": [{"required": ["image"]}, {"required": ["images"]}]},
        {"oneOf": [short, full]},
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def explain_validation_error(error: ValidationError) -> str:
    """pydantic's findings as one line of plain words."""
    findings = []
    for item in error.errors():
        field = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        findings.append(f"{field}: {message}" if field else message)
    return "; ".join(findings)


@dataclass(frozen=True)
class RecordLine:
    """One line of a file of records: the record, or why there is none."""

    number: int  # counted from 1
    raw: bytes
    record: PreferenceRecord | None
    error: str | None
    change: str | None = None  # what was altered to make the record, if another format was read


def scan_records(path: Path) -> Iterator[RecordLine]:
    """Every line of a JSONL file that is not blank, one at a time; a bad one does not stop the rest."""
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file. Run notebook 02 to make one, or give another path."
        )
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if raw.strip():
                yield scan_line(number, raw)


def scan_line(number: int, raw: bytes) -> RecordLine:
    """The record in one line, or what is wrong with it."""
    try:
        record = PreferenceRecord.model_validate(parse_json(raw))
    except ValidationError as error:
        return RecordLine(
            number, raw, None, f"{explain_validation_error(error)}. Correct the line or remove it."
        )
    except UsageError as error:
        return RecordLine(number, raw, None, f"{error} Each line must be one whole object.")
    return RecordLine(number, raw, record, None)


def read_records(path: Path) -> list[PreferenceRecord]:
    """Read a JSONL file of records (blank lines allowed).

    Their image paths are absolute. Raises UsageError naming file, line and remedy at the first line that is not a
    valid record;
    `python -m helpers check FILE` lists them all.
    """
    records = []
    for line in scan_records(path):
        if line.record is None:
            raise UsageError(f"{path}:{line.number}: {line.error}")
        records.append(resolve_images(line.record, path, line.number))
    if not records:
        raise UsageError(f"{path}: holds no records. Run notebook 02 again, or give another file.")
    return records


def resolve_images(record: PreferenceRecord, file: Path, line: int) -> PreferenceRecord:
    """The record of a line of `file` with absolute image paths; addresses (https://…) stay as they are."""
    folder = Path(os.path.abspath(file)).parent
    names: dict[str, str] = {}

    def resolve(name: str) -> str:
        path = name if "://" in name else os.path.normpath(folder / name)
        names[path] = name
        return path

    resolved = _rename_images(record, resolve)
    resolved._origin = Origin(file, line, names)
    return resolved


def name_images(record: PreferenceRecord, folder: Path) -> PreferenceRecord:
    """The record as a file in `folder` states it: image paths relative to it, but for those that were absolute before."""
    read = record._origin.names if record._origin else {}

    def name(image: str) -> str:
        return image if os.path.isabs(read.get(image, "")) else _relative_name(image, folder)

    return _rename_images(record, name)


def _rename_images(record: PreferenceRecord, rename: Callable[[str], str]) -> PreferenceRecord:
    fields = ("images", "negative_images")
    return record.model_copy(
        update={field: [rename(name) for name in getattr(record, field)] for field in fields}
    )


def _relative_name(image: str, folder: Path) -> str:
    """`image` relative to `folder`, with slashes; what is no absolute path, or on another drive, stays as it is."""
    if not os.path.isabs(image):
        return image
    try:
        return Path(os.path.relpath(image, os.path.abspath(folder))).as_posix()
    except ValueError:  # on Windows there is no way from one drive to another
        return image


def file_of(records: Sequence[PreferenceRecord]) -> str:
    """The file that records were read from, for errors about all of them."""
    return str(records[0].file or "these records") if records else "no records"


def write_records(path: Path, records: Iterable[PreferenceRecord]) -> Path:
    """Write records as JSONL, one a line, without the fields that hold nothing; image paths relative to the file."""
    named = (name_images(record, path.parent) for record in records)
    return write_lines(path, (record.model_dump_json(exclude_defaults=True) for record in named))


def to_trl(
    records: Sequence[PreferenceRecord], which: Literal["all", "extremes"] = "all"
) -> "Dataset":
    """The pairs of `records` as a TRL vision-preference data set; images are decoded when they are used.

    Columns `images` (RGB), `prompt`, `chosen`, `rejected` (chat messages), and `negative_images` if records
    have some. TRL decides by the column name `images` that this is vision data; under any other name the
    images would be ignored. Raises UsageError naming file, line and record for an image that cannot be read.
    """
    from datasets import Dataset, Image, List  # takes seconds, and reading records needs none of it

    rows, spoilt = [], any(record.negative_images for record in records)
    for record in tqdm(records, desc="images", leave=False):
        for image in record.image_paths + record.negative_image_paths:
            open_image(
                image, record.place
            )  # fails here, with a name, rather than in the middle of training
        prompt = [message.model_dump() for message in record.prompt]
        rows += [
            {
                "images": record.images,
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": pair.chosen.text}],
                "rejected": [{"role": "assistant", "content": pair.rejected.text}],
                **({"negative_images": record.negative_images} if spoilt else {}),
            }
            for pair in record.pairs(which)
        ]
    if not rows:
        raise UsageError(
            f"{file_of(records)}: all answers are tied, so there is no pair to train on. Rank some of them."
        )
    dataset = Dataset.from_list(rows)
    for column in {"images", "negative_images"} & set(dataset.column_names):
        dataset = dataset.cast_column(column, List(Image(mode="RGB")))
    return dataset


class TrlPair(NamedTuple):
    """A row of a TRL vision-preference data set in this package's words."""

    images: list[PIL.Image.Image]
    prompt: list[Message]
    chosen: str
    rejected: str


def from_trl(row: dict[str, Any]) -> TrlPair:
    """Read a row that `to_trl` made: TRL's dictionaries become messages here and nowhere else."""
    prompt = [Message(role=turn["role"], content=turn["content"]) for turn in row["prompt"]]
    return TrlPair(
        list(row["images"]), prompt, row["chosen"][0]["content"], row["rejected"][0]["content"]
    )
