"""The preference record: images, a prompt, answers, and which of them are better.

The shortest record that a person writes by hand, one JSON object a line:

    {"image": "images/7.png", "prompt": "How many?", "chosen": "2 cars.", "rejected": "3 cars."}

is read as the full form: images, chat messages, N answers in the order shown (here drawn by a
hash), and a `ranking` in tiers, best first, ties together. A pair, an A/B vote and a ranked list of
N are the same record, and the position of an answer never says how good it is. Answers are referred
to by their place in `answers`, counted from 0. In a file, images are named relative to it; a record
that was read knows where they are. Taught in notebook 02; files of records are read and written in
`helpers/data/preferences.py`.
"""

import hashlib
import itertools
import json
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, Field, PrivateAttr, field_validator, model_validator

from helpers.files import did_you_mean

from .judgement import FiniteNumber, Judgement, Ranking, StrictModel
from .truth import Truth, TruthKind, check_kind, plain_kind

PairChoice = Literal["all", "extremes"]  # every pair of a record, or best against worst
EMPTY_ANSWER = "the answer is empty: write its text or remove the record"


def _as_name(value: Any) -> Any:
    """An id that is a number, as in tables and exports of hubs, as the text that it is here."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return str(value) if is_number else value


Name = Annotated[str, BeforeValidator(_as_name)]


# Signs of no width that mean nothing by themselves: zero-width space, word joiner, mark of UTF-8
# files, soft hyphen
_UNSEEN = re.compile("[\u200b\u2060\ufeff\u00ad]")


def seen_text(text: str) -> str:
    """What a reader sees of a text: two answers that differ in nothing else are one.

    Blanks are one blank each, letters with accents are composed, signs without width are gone.
    """
    return " ".join(_UNSEEN.sub("", unicodedata.normalize("NFC", text)).split())


class Message(StrictModel):
    role: Literal["system", "user", "assistant"]
    content: str = Field(min_length=1)


def conversation_text(turns: Sequence[Message]) -> str:
    """The only message, or a longer conversation with its roles."""
    if len(turns) == 1:
        return turns[0].content
    return "\n".join(f"{turn.role}: {turn.content}" for turn in turns)


class Answer(StrictModel):
    text: str
    id: Name | None = None
    model: str | None = None  # who wrote it, if a model did
    origin: str | None = None  # how it came about: "truth", "own", "edit", "other image", …
    cut_off: bool = False  # the model was stopped before the answer came to its end
    score: FiniteNumber | None = None  # by which it was ranked
    # parts of the score, or ratings by criterion
    scores: dict[str, FiniteNumber] = Field(default_factory=dict)

    @field_validator("text")
    @classmethod
    def _check_not_empty(cls, text: str) -> str:
        if not seen_text(text):
            raise ValueError(EMPTY_ANSWER)
        return text


class Pair(StrictModel):
    """Two answers of one record, the better one first."""

    chosen: Answer
    rejected: Answer
    margin: float | None = None  # difference of the scores


def is_first_shown_second(first: Any, second: Any) -> bool:
    """Decide whether to put the first answer second, for files that do not say how they were shown.

    A coin that only the texts decide (their hashes), so that the place of an answer does not say
    how good it is, and reading the same line twice gives the same record.
    """
    digests = []
    for text in (first, second):
        content = str(text).encode(errors="replace")
        digests.append(hashlib.sha256(content).digest())
    return digests[1] < digests[0]


def _read_short_form(sides: dict) -> dict:
    """Return `answers` and `ranking` of the sides "chosen" and "rejected" of the short form."""
    answers = []
    texts = []
    for name, side in sides.items():
        if not seen_text(str(side)):
            raise ValueError(f"{name}: {EMPTY_ANSWER}")
        if isinstance(side, int | float | None):
            raise ValueError(f"{name}: {side!r} is no text: put the answer in quotes")
        answer = {"text": side} if isinstance(side, str) else side
        answers.append(answer)
        texts.append(answer.get("text") if isinstance(answer, dict) else answer)
    ranking = [[0], [1]]
    if is_first_shown_second(*texts):
        answers.reverse()
        ranking.reverse()
    return {"answers": answers, "ranking": ranking}


class Origin(NamedTuple):
    """Where a record was read."""

    file: Path
    line: int
    names: dict[str, str]  # absolute path of an image → its name in the file


class PreferenceRecord(StrictModel):
    # paths: in a file relative to it, else absolute
    images: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    prompt: list[Message] = Field(min_length=1)
    answers: list[Answer] = Field(min_length=2)
    ranking: Ranking | None = None  # None: nobody has judged yet, so there are no pairs
    id: Name | None = None
    judgements: list[Judgement] = Field(default_factory=list)
    truth: Truth | None = None  # counts by class, an answer, or several
    truth_kind: TruthKind | None = None  # how answers are judged by it; None: see `kind`
    # spoilt images, with which the best answer is wrong
    negative_images: list[str] = Field(default_factory=list)
    group: Name | None = None  # records of one photo share a group and stay on one side of a split
    source: str | None = None
    licence: str | None = None
    extra: dict[str, Any] = Field(default_factory=dict)  # what another format has beyond this one
    _origin: Origin | None = PrivateAttr(None)  # None: the record was made, not read

    @model_validator(mode="before")
    @classmethod
    def _accept_short_form(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data  # pydantic says what is wrong with it
        data = dict(data)
        # one image, a prompt as text, two sides
        if "image" in data and "images" not in data:
            data["images"] = [data.pop("image")]
        if isinstance(data.get("prompt"), str):
            data["prompt"] = [{"role": "user", "content": data["prompt"]}]
        if data.keys() >= {"chosen", "rejected"} and not data.keys() & {"answers", "ranking"}:
            sides = {name: data.pop(name) for name in ("chosen", "rejected")}
            data |= _read_short_form(sides)
            return cls._keep_other_columns(data)
        return data

    @classmethod
    def _keep_other_columns(cls, data: dict) -> dict:
        """Move what a row of the short form has beyond it to `extra`: exports have such columns.

        A name that is nearly one of a field stays where it is, to be refused.
        """
        known = set(cls.model_fields)
        other = {name: value for name, value in data.items() if name not in known}
        for name in list(other):
            if did_you_mean(name, known):
                del other[name]
        if not other or not isinstance(data.get("extra", {}), dict):
            return data
        kept = {name: value for name, value in data.items() if name not in other}
        return {**kept, "extra": other | data.get("extra", {})}

    @field_validator("extra")
    @classmethod
    def _check_extra_is_json(cls, extra: dict) -> dict:
        # Any of these errors, UnicodeEncodeError too, means that writing would lose something;
        # pydantic reports ValueErrors by itself.
        try:
            json.dumps(extra, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, RecursionError) as error:
            raise ValueError(str(error)) from None
        return extra

    @model_validator(mode="after")
    def _check_all_places(self) -> "PreferenceRecord":
        if self.prompt[-1].role != "user":
            raise ValueError("the prompt must end with a message of the user")
        ids = [answer.id for answer in self.answers if answer.id is not None]
        if len(set(ids)) < len(ids):
            raise ValueError(f"answer ids {ids} must differ")
        _check_places("ranking", self.ranking, len(self.answers))
        for judgement in self.judgements:
            _check_judgement(judgement, len(self.answers))
        check_kind(self.truth_kind, self.truth)
        # Training on such a pair would only add noise.
        seen = [seen_text(answer.text) for answer in self.answers]
        for better, worse in self.tier_pairs():
            if seen[better] == seen[worse]:
                equal = self.answers[better].text == self.answers[worse].text
                how = "" if equal else ", but for what nobody sees,"
                raise ValueError(
                    f"answers {better} and {worse} have the same text{how} but different ranks"
                )
        return self

    def __eq__(self, other: object) -> bool:
        """Equal records say the same; where they were read does not count."""
        return isinstance(other, PreferenceRecord) and self.__dict__ == other.__dict__

    @property
    def kind(self) -> TruthKind:
        """The kind of the truth: the one that was named, else the plain one of its form."""
        if self.truth_kind is None or not self.truth:
            return plain_kind(self.truth)
        return self.truth_kind

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
        if self.id is None:
            return read or "a record without an id"
        return f"{read} (record {self.id})".strip()

    def image_names(self, folder: Path | None = None) -> list[str]:
        """Name the images as they were read, else relative to `folder` if one is given."""
        read = self._origin.names if self._origin else {}
        names = []
        for image in self.images:
            made = _relative_name(image, folder) if folder else image
            names.append(read.get(image, made))
        return names

    def tier_pairs(self, which: PairChoice = "all") -> Iterator[tuple[int, int]]:
        """Yield the places of the (better, worse) answers of `pairs`."""
        tiers = self.ranking or []
        if which == "extremes" and len(tiers) > 1:
            yield tiers[0][0], tiers[-1][0]
            return
        for better, worse in itertools.combinations(tiers, 2):
            yield from itertools.product(better, worse)

    def pairs(self, which: PairChoice = "all") -> list[Pair]:
        """List every (better, worse) pair of answers, or only best against worst; ties give none.

        "extremes" is one pair: the first of the best tier against the first of the worst.
        """
        pairs = []
        for better, worse in self.tier_pairs(which):
            chosen, rejected = self.answers[better], self.answers[worse]
            margin = None
            if chosen.score is not None and rejected.score is not None:
                margin = chosen.score - rejected.score
            pairs.append(Pair(chosen=chosen, rejected=rejected, margin=margin))
        return pairs


def _check_places(what: str, tiers: Ranking | None, n: int) -> None:
    if tiers is None:
        return
    if sorted(itertools.chain(*tiers)) != list(range(n)):
        raise ValueError(f"{what} {tiers} must name each of the {n} answers once")
    if not all(tiers):
        raise ValueError(f"{what} {tiers} has an empty tier")


def _check_judgement(judgement: Judgement, n: int) -> None:
    _check_places("ranking of a judgement", judgement.ranking, n)
    _check_places("order of a judgement", judgement.order and [judgement.order], n)
    for criterion, scores in judgement.criteria.items():
        if len(scores) != n:
            raise ValueError(f"criterion {criterion!r} has {len(scores)} scores for {n} answers")


def record_key(record: PreferenceRecord) -> str:
    """Key of a record: its id, else a hash of its images, prompt and answers."""
    if record.id is not None:
        return record.id
    # Names as in the file, so that the key is the same on another machine.
    named = record.model_copy(update={"images": record.image_names()})
    content = named.model_dump_json(include={"images", "prompt", "answers"})
    return hashlib.sha256(content.encode()).hexdigest()[:16]


# --- names of images ------------------------------------------------------------------------------


def resolve_images(
    record: PreferenceRecord,
    file: Path,
    line: int,
) -> PreferenceRecord:
    """Make the image paths of a line of `file` absolute; addresses (https://…) stay as they are."""
    folder = os.path.dirname(os.path.abspath(file))
    names = {}
    for name in record.images + record.negative_images:
        # normpath, not resolve: a link keeps its own name.
        path = os.path.normpath(os.path.join(folder, name))
        names[name] = name if "://" in name else path
    resolved = _rename_images(record, names)
    was_named = {path: name for name, path in names.items()}
    resolved._origin = Origin(file, line, was_named)
    return resolved


def name_images(record: PreferenceRecord, folder: Path) -> PreferenceRecord:
    """Name the images as a file in `folder` does: relative to it, or absolute if read so."""
    read = record._origin.names if record._origin else {}
    names = {}
    for image in record.images + record.negative_images:
        was_absolute = os.path.isabs(read.get(image, ""))
        names[image] = image if was_absolute else _relative_name(image, folder)
    return _rename_images(record, names)


def _rename_images(record: PreferenceRecord, names: dict[str, str]) -> PreferenceRecord:
    update = {
        "images": [names[image] for image in record.images],
        "negative_images": [names[image] for image in record.negative_images],
    }
    return record.model_copy(update=update)


def _relative_name(image: str, folder: Path) -> str:
    """Name `image` relative to `folder`, with slashes.

    What is no absolute path, or on another drive, stays as it is.
    """
    if not os.path.isabs(image):
        return image
    try:
        name = os.path.relpath(image, folder)
    except ValueError:  # on Windows there is no way from one drive to another
        return image
    return Path(name).as_posix()
