"""Rows of tables and of question files become preference records and questions.

A row is a list of cells in the columns of a layout (`helpers/data/columns.py`): texts of a table,
or whatever values the objects of a JSON file have. The kind of truth is decided for a whole file,
or named by whoever reads it.
"""

import itertools
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from helpers.files import UsageError

from .columns import Column, Layout, as_questions, plain_title
from .image_names import ImageFinder
from .judgement import Ranking, explain_validation_error, rank_by_score
from .leftovers import Leftovers
from .pairs import DEFAULT_QUESTION
from .record import Message, PreferenceRecord
from .split_names import split_name
from .tasks import Task
from .truth import LEAST_PEOPLE, TRUTH_KINDS, Facts, TruthKind, check_kind, plain_kind

# As people write them, in several languages and tools, by their plain titles
_TIES = {"tie", "both", "equal", "same", "draw", "neither", "gleich", "unentschieden", "bothbad"}
_UNJUDGED = {"", "none", "skip", "skipped", "unjudged", "null", "na"}
_SIDES = {"left": 0, "first": 0, "links": 0, "right": 1, "second": 1, "rechts": 1}


class CellRow(NamedTuple):
    """A row of a file, and where it stands."""

    place: str  # "votes.csv:7"
    cells: Sequence[Any]


@dataclass
class ReadRows:
    """What rows have given, by split; "" where they name none."""

    records: dict[str, list[PreferenceRecord]] = field(default_factory=lambda: defaultdict(list))
    tasks: dict[str, list[Task]] = field(default_factory=lambda: defaultdict(list))

    def add(self, others: "ReadRows") -> None:
        """Add what other rows have given."""
        for split, records in others.records.items():
            self.records[split] += records
        for split, tasks in others.tasks.items():
            self.tasks[split] += tasks


class RowReader:
    """Reads the rows of one table or file.

    truth: the kind of all truths, or None. questions: asked where a row has no question of its own.
    """

    def __init__(
        self,
        layout: Layout,
        finder: ImageFinder,
        left: Leftovers,
        truth: TruthKind | None = None,
        questions: Sequence[str] = (),
    ) -> None:
        self.layout = layout
        self.finder = finder
        self.left = left
        self.truth = truth
        self.questions = questions
        self.found = ReadRows()

    def read(self, rows: Iterable[CellRow]) -> ReadRows:
        """Read all rows; what cannot be read is among the leftovers with its place."""
        rows = list(rows)
        if self.layout.shape == "ranked rows":
            rows = self._join_ranked_rows(rows)
        # One answer alone never says of which kind it is: the whole file does
        people = self.layout.shape == "questions" and _several_people(self._all_answers(rows))
        for row in rows:
            try:
                self._read_row(row, people)
            except UsageError as error:
                self.left.add(_reason(error), f"{row.place} {error}")
        return self.found

    # --- one row ---

    def _read_row(self, row: CellRow, people: bool) -> None:
        # An empty cell gives no value, which is "" here
        split = split_name("".join(map(str, self._values("split", row))))
        facts, kind = self._truth(row, people)
        group = "".join(map(str, self._values("group", row)[:1]))
        name = "".join(map(str, self._values("id", row)[:1])) or None
        for turns in self._turns(row):
            # A row whose image is missing is left out whole
            images = self._images(row)
            if self.layout.shape == "questions":
                task = Task(
                    tuple(images),
                    turns,
                    facts,
                    kind,
                    group,
                    name,
                )
                self.found.tasks[split].append(task)
                continue
            fields = {
                "images": [str(image) for image in images],
                "prompt": [turn.model_dump() for turn in turns],
                "truth": facts,
                "truth_kind": None if kind == plain_kind(facts) else kind,
                "group": group or None,
                "id": name,
            }
            # A row with fewer than two answers stops here: nobody can prefer one of them
            record = _validate(fields | self._answers(row))
            self.found.records[split].append(record)

    def _values(self, role: str, row: CellRow) -> list[Any]:
        return self.layout.values(role, row.cells)

    def _images(self, row: CellRow) -> list[Path]:
        names = []
        for value in self._values("image", row):
            names += value if isinstance(value, list) else [value]
        if not names:
            raise UsageError("no image is named.")
        images = []
        for name in names:
            # The hub writes {"path": …}, COCO {"file_name": …}
            name = name.get("path", name.get("file_name", "")) if isinstance(name, dict) else name
            images += self._find_images(str(name))
        return images

    def _find_images(self, name: str) -> list[Path]:
        try:
            return [self.finder.find(name)]
        except UsageError:
            # Several names in one cell, unless a file is really called so
            parts = [part for part in re.split(r"[;|\n]", name) if part.strip()]
            if len(parts) < 2:
                raise
            return [self.finder.find(part) for part in parts]

    def _turns(self, row: CellRow) -> list[tuple[Message, ...]]:
        """The conversation that is asked; several where every image gets several questions."""
        asked = self._values("question", row)
        # A list is a conversation, of which the last turn is the question
        if asked and isinstance(asked[0], list):
            return [_messages(asked[0])]
        texts = [str(value) for value in asked[:1]] or list(self.questions)
        if not texts and "question" in self.layout.columns:
            raise UsageError("the question is empty.")
        if not texts:
            # Captions are often ranked without any question, and a model needs one
            texts = [DEFAULT_QUESTION]
            self.left.say(f"there is no column of questions: {DEFAULT_QUESTION!r} is asked")
        return [(Message(role="user", content=text),) for text in texts]

    # --- truth ---

    def _truth(self, row: CellRow, people: bool) -> tuple[Facts, TruthKind]:
        """What is right, and how answers are compared with it."""
        named = self.truth or "".join(map(str, self._values("truth_kind", row)[:1]))
        if named and named not in TRUTH_KINDS:
            kinds = ", ".join(TRUTH_KINDS)
            raise UsageError(f"unknown kind of truth {named!r}: choose from {kinds}.")
        facts = self._facts(row)
        # Whoever names "none" does not want what the data says is right
        if named == "none" or facts is None:
            return None, "none"
        kind = named or ("vqa_accuracy" if people else plain_kind(facts))
        # A named kind may not fit what is in the cells
        try:
            check_kind(kind, facts)
        except ValueError as error:
            raise UsageError(f"{error}") from None
        return facts, kind

    def _facts(self, row: CellRow) -> Facts:
        values = self._values("answer", row) + self._values("references", row)
        # {"cars": 2, "buses": 0}
        if len(values) == 1 and _is_counts(values[0]):
            return {str(name): int(n) for name, n in values[0].items()}
        texts = []
        for value in values:
            texts += reference_texts(value)
        texts = [text for text in texts if text.strip()]
        if not texts:
            return None
        # A list means that there are several right answers
        return texts[0] if len(texts) == 1 else texts

    def _all_answers(self, rows: Sequence[CellRow]) -> list[tuple[list[Any], list[str]]]:
        """Of each row with answers, these as they are and as texts."""
        found = []
        for row in rows:
            values = self._values("answer", row) + self._values("references", row)
            # JSON has one list where a table has several columns
            if len(values) == 1 and isinstance(values[0], list):
                values = values[0]
            texts = []
            for value in values:
                texts += reference_texts(value)
            if texts:
                found.append((values, texts))
        return found

    # --- answers to choose from ---

    def _answers(self, row: CellRow) -> dict[str, Any]:
        """`chosen` and `rejected`, or `answers` and `ranking`, of a record."""
        # The short form: a record decides by the texts which of them was shown first
        if self.layout.shape == "pairs":
            sides = {}
            for role in ("chosen", "rejected"):
                texts = [str(value) for value in self._values(role, row)]
                if not texts:
                    raise UsageError(f"the {role} answer is empty.")
                sides[role] = texts[0]
            return sides
        if self.layout.shape == "ranked rows":
            return dict(row.cells[-1])  # put there by _join_ranked_rows
        columns = self.layout.columns["answers"]
        # Rows may have fewer answers than the table has columns; 0 is an answer
        shown = []
        for column in columns:
            if _cell(column, row) != "":
                shown.append((column, str(_cell(column, row))))
        if len(shown) < 2:
            raise UsageError("fewer than two answers are given.")
        return {
            "answers": [{"text": text} for _, text in shown],
            "ranking": self._ranking(row, shown),
        }

    def _ranking(self, row: CellRow, shown: Sequence[tuple[Column, str]]) -> Ranking | None:
        if self.layout.shape == "unjudged":
            return None
        for role in ("ranks", "scores"):
            if role in self.layout.columns:
                return self._ranking_by_numbers(row, shown, role)
        texts = self._values("vote", row) + self._values("ranking", row)
        stated = str(texts[0]).strip() if texts else ""
        if self.layout.shape == "votes":
            return _read_vote(stated, shown)
        return _read_ranking(stated, shown)

    def _ranking_by_numbers(
        self,
        row: CellRow,
        shown: Sequence[tuple[Column, str]],
        role: str,
    ) -> Ranking:
        of_mark = {column.mark: _cell(column, row) for column in self.layout.columns[role]}
        numbers = []
        for column, _ in shown:
            number = read_number(of_mark.get(column.mark))
            if number is None:
                raise UsageError(f"{column.title!r} has no {role.removesuffix('s')}.")
            # Rank 1 is the best, and so is the highest score
            numbers.append(-number if role == "ranks" else number)
        return rank_by_score(numbers)

    def _join_ranked_rows(self, rows: Sequence[CellRow]) -> list[CellRow]:
        """Join the rows about one image and question into one with all their answers.

        Where each question has one row only, its answer is what is right, and these are questions.
        """
        # They may stand anywhere in the table
        alike = defaultdict(list)
        for row in rows:
            asked = []
            for role in ("image", "question", "group", "split"):
                asked.append(self._values(role, row))
            # Lists cannot be keys, their JSON can
            key = json.dumps(asked, default=str)
            alike[key].append(row)
        if all(len(members) == 1 for members in alike.values()):
            self.layout = as_questions(self.layout)
            self.left.say(f"each question has one answer, so these are no rankings: {self.layout}")
            return list(rows)
        joined = []
        for members in alike.values():
            answers = self._ranked_answers(members)
            if answers:
                # The first row stands for all of them; the answers ride behind its cells
                first = members[0]
                joined.append(CellRow(first.place, [*first.cells, answers]))
        return joined

    def _ranked_answers(self, members: Sequence[CellRow]) -> dict[str, Any] | None:
        """The answers of some rows and their ranking; None if there are fewer than two."""
        role = "rank" if "rank" in self.layout.columns else "score"
        answers = []
        numbers = []
        for row in members:
            number = read_number("".join(map(str, self._values(role, row)[:1])))
            texts = [str(value) for value in self._values("response", row)]
            if number is None or not texts:
                self.left.add(f"an answer without text or {role}", row.place)
                continue
            answers.append({"text": texts[0]})
            numbers.append(-number if role == "rank" else number)
        if len(answers) < 2:
            self.left.add("fewer than two ranked answers to a question", members[0].place)
            return None
        return {
            "answers": answers,
            "ranking": rank_by_score(numbers),
        }


def _reason(error: UsageError) -> str:
    """A short reason that rows share, from the message about one of them."""
    text = str(error)
    if text.startswith("image "):
        return "the image cannot be found" if "no such file" in text else "the image is not clear"
    return "the row cannot be read"


def _cell(column: Column, row: CellRow) -> Any:
    # A row may end before the last column
    if column.place >= len(row.cells):
        return ""
    value = row.cells[column.place]
    return "" if value is None else value


def _validate(fields: Mapping[str, Any]) -> PreferenceRecord:
    try:
        return PreferenceRecord.model_validate(fields)
    except ValidationError as error:
        raise UsageError(f"{explain_validation_error(error)}.") from None


def _messages(turns: Sequence[Any]) -> tuple[Message, ...]:
    try:
        return tuple(Message.model_validate(turn) for turn in turns)
    except ValidationError as error:
        raise UsageError(f"{explain_validation_error(error)}.") from None


# --- answers --------------------------------------------------------------------------------------


def reference_texts(value: Any) -> list[str]:
    """Reference answers as texts: one, or as many as a list has.

    A number, true or false, and a list of such stay what they are, written as JSON does.
    """
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):  # VQA: {"answer": "yes", "answer_confidence": "maybe"}
        for key in ("answer", "text"):
            if key in value:
                return reference_texts(value[key])
    if isinstance(value, list) and any(isinstance(part, str | dict) for part in value):
        texts = []
        for part in value:
            texts += reference_texts(part)
        return texts
    return [] if value is None else [json.dumps(value, ensure_ascii=False)]


def _is_counts(value: Any) -> bool:
    if not isinstance(value, dict) or not value or {"answer", "text"} & value.keys():
        return False
    # Not isinstance, for which True is a number, too
    return all(type(n) is int and n >= 0 for n in value.values())


def _several_people(answers: Sequence[tuple[list[Any], list[str]]]) -> bool:
    """Are these what several people said of each question, rather than spellings of one answer?

    They are if the file says so (VQA's lists of objects), or if some answers are equal: nobody
    lists one spelling twice.
    """
    # VQA accuracy is not defined for fewer
    if not answers or min(len(texts) for _, texts in answers) < LEAST_PEOPLE:
        return False
    objects = all(isinstance(value, dict) for values, _ in answers for value in values)
    repeated = any(max(Counter(texts).values()) > 1 for _, texts in answers)
    return objects or repeated


def read_number(value: Any) -> float | None:
    """A rank or score; "4,5" has the comma of other countries. None if it is no number."""
    text = str(value if value is not None else "").strip().replace(",", ".").rstrip(".")
    try:
        return float(text)
    except ValueError:
        return None


# --- votes and rankings in words ------------------------------------------------------------------


def _read_vote(stated: str, shown: Sequence[tuple[Column, str]]) -> Ranking | None:
    """The answer that was voted for before the others; None where nobody voted."""
    name = plain_title(stated)
    if name in _UNJUDGED:
        return None
    # The places of all answers
    everyone = list(range(len(shown)))
    if name in _TIES or stated == "=":
        return [everyone]
    best = _place_of(stated, shown)
    # Nothing is known of the others among themselves
    others = [place for place in everyone if place != best]
    return [[best], others]


def _place_of(stated: str, shown: Sequence[tuple[Column, str]]) -> int:
    """The answer that is named by its letter, number, title or text. Raises UsageError."""
    name = plain_title(stated)
    for place, (column, text) in enumerate(shown):
        if stated.strip() == text.strip() or name == plain_title(column.title):
            return place
    # "A", "model b", "Antwort 2"; letters and numbers mean the same places
    mark = re.sub(r"^(answer|response|option|model|output|antwort|modell)", "", name)
    for place, (column, _) in enumerate(shown):
        number = str("abcdefgh".find(column.mark) + 1)
        letter = "abcdefgh"[place] if place < 8 else ""
        if mark in (column.mark, number) or (column.mark.isdigit() and mark == letter):
            return place
    # Of three answers none is on "the right"
    if name in _SIDES and len(shown) == 2:
        return _SIDES[name]
    marks = ", ".join(column.title for column, _ in shown)
    raise UsageError(f"{stated!r} names none of the answers ({marks}) and no tie.")


def _read_ranking(stated: str, shown: Sequence[tuple[Column, str]]) -> Ranking | None:
    """ "B > A = C", "2, 1, 3" or "BAC", the best first; None where nobody ranked."""
    if plain_title(stated) in _UNJUDGED:
        return None
    # "A = C" would fall apart at its blanks
    plain = re.sub(r"\s*=\s*", "=", stated.strip("[]() "))
    parts = re.split(r"[>,;\s]+", plain)
    # "213", "BAC"
    if len(parts) == 1 and len(plain) == len(shown):
        parts = list(plain)
    ranking = []
    for part in parts:
        names = part.split("=")
        ranking.append([_place_of(name, shown) for name in names])
    ranked = sorted(itertools.chain(*ranking))
    if ranked != list(range(len(shown))):
        raise UsageError(f"the ranking {stated!r} must name each of {len(shown)} answers once.")
    return ranking
