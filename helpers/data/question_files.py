"""Files of JSON that hold preferences in any format, or questions with or without answers.

    {"image": "1.jpg", "question": "What is this?", "answer": "a boat"}     also "images", "answers"
    [{"id": 1, "qas": [{"image_id": 1, "question": …, "answer": …}]}]       Visual Genome

Preferences are read by `convert_files.py`, line for line; questions by the names of their fields,
as tables are. A file may also be one object that holds the list of rows, as many data sets have it.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from helpers.files import UsageError, parse_json, write_text

from .columns import Layout, find_header, header_fit, match_columns
from .convert_files import detect_format, is_array, raw_rows, scan_file
from .image_names import ImageFinder
from .leftovers import Leftovers
from .own_rows import CellRow, ReadRows, RowReader
from .preferences import RawRow, RecordLine
from .record import PreferenceRecord, resolve_images
from .split_names import split_name
from .tables import TABLE_SUFFIXES, decode_text, read_sheets
from .truth import TruthKind, check_kind

JSON_SUFFIXES = {".json", ".jsonl", ".ndjson", ".jsonlines"}
# Of POPE's own files (Li et al. 2023, arXiv 2305.10355), whose `text` is a question
POPE_FIELDS = {"image", "text", "label", "question_id"}


class FileReader:
    """Reads one file of JSON; what cannot be used is added to the leftovers with its line.

    truth: the kind of all truths, or None. questions: asked where a row has no question.
    """

    def __init__(
        self,
        path: Path,
        finder: ImageFinder,
        left: Leftovers,
        truth: TruthKind | None = None,
        questions: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.finder = finder
        self.left = left
        self.truth = truth
        self.questions = questions

    def read(self) -> ReadRows:
        """Read all rows. Raises UsageError if the file is none of a known form."""
        with ExitStack() as stack:
            # A copy lives until the rows are read
            file = self._plain_copy(stack)
            rows = list(raw_rows(file))
            values = [row.value for row in rows if isinstance(row.value, dict)]
            if not values:
                reason = rows[0].error if rows else None
                raise UsageError(f"{self.path}: {reason or 'holds no objects with named fields.'}")
            # By any of the rows: the first may be damaged
            if any("qas" in value for value in values):
                return self._read_visual_genome(rows)
            if any(is_preference(value) for value in values):
                return self._read_preferences(file)
            return self._read_questions(rows)

    def _plain_copy(self, stack: ExitStack) -> Path:
        """The file, or a copy of it that is UTF-8 and an array or lines of rows."""
        text, encoding = decode_text(self.path.read_bytes())
        plain = encoding in ("utf-8", "utf-8-sig")
        wrapped = None if is_array(self.path) and plain else _wrapped_rows(text)
        if wrapped is None and plain:
            return self.path
        if not plain:
            self.left.say(f"{self.path.name}: read as {encoding}, not UTF-8")
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if wrapped is None:
            return write_text(folder / self.path.name, text.lstrip("\ufeff"))
        name, rows = wrapped
        self.left.say(f"{self.path.name}: the rows are those under {name!r}")
        return write_text(folder / self.path.name, json.dumps(rows, ensure_ascii=False))

    # --- preferences ---

    def _read_preferences(self, file: Path) -> ReadRows:
        found = ReadRows()
        changes = Counter()
        for line in scan_file(file):
            place = f"{self.path.name}:{line.number}"
            if line.error:
                self.left.add("the line cannot be read", f"{place} {line.error}")
                continue
            try:
                record = self._resolve(line)
            except UsageError as error:
                self.left.add("the image cannot be found", f"{place} {error}")
                continue
            # As in tables, a column may say to which split a row belongs
            split = split_name(str(record.extra.get("split", "")))
            found.records[split].append(record)
            if line.change:
                changes[line.change] += 1
        for change, n in changes.items():
            self.left.say(f"{self.path.name}: changed in {n} rows: {change}")
        return found

    def _resolve(self, line: RecordLine) -> PreferenceRecord:
        """The record with its images where they are, and the kind of truth that was named."""
        names = line.record.images, line.record.negative_images
        resolved = resolve_images(line.record, self.path, line.number)
        update: dict[str, Any] = {}
        for role, named in zip(("images", "negative_images"), names, strict=True):
            update[role] = [str(self.finder.find(name)) for name in named]
        if self.truth and resolved.truth:
            kind = None if self.truth == "none" else self.truth
            update["truth"] = resolved.truth if kind else None
            update["truth_kind"] = kind
            try:
                check_kind(kind, resolved.truth)
            except ValueError as error:
                raise UsageError(f"{self.path}:{line.number}: {error}") from None
        return resolved.model_copy(update=update)

    # --- questions ---

    def _read_questions(self, rows: Sequence[RawRow]) -> ReadRows:
        # Rows may lack fields, so the titles are those of all rows, in their order
        titles: dict[str, None] = {}
        for row in rows:
            titles |= dict.fromkeys(row.value if isinstance(row.value, dict) else ())
        named = list(titles)
        if titles.keys() >= POPE_FIELDS:
            named = ["question" if title == "text" else title for title in titles]
        layout = match_columns(named)
        if layout is None or "image" not in layout.columns:
            raise UsageError(
                f"{self.path}: neither preferences nor questions about images (fields: "
                f"{', '.join(titles)}). A question has image, question and, if it is known, answer."
            )
        self.left.say(f"{self.path.name}: read as {layout}")
        if layout.unused:
            self.left.say(f"{self.path.name}: fields not used: {', '.join(layout.unused)}")
        cells = []
        for row in rows:
            place = f"{self.path.name}:{row.number}"
            if not isinstance(row.value, dict):
                reason = row.error or "not an object with named fields."
                self.left.add("the line cannot be read", f"{place} {reason}")
                continue
            cells.append(CellRow(place, [row.value.get(title) for title in titles]))
        return self._read_cells(layout, cells)

    def _read_visual_genome(self, rows: Sequence[RawRow]) -> ReadRows:
        """Krishna et al. 2017, arXiv 1602.07332; the questions about one image share a group."""
        titles = ("image", "question", "answer", "group", "id")
        layout = match_columns(titles)
        cells = []
        for row in rows:
            place = f"{self.path.name}:{row.number}"
            try:
                for entry in row.value["qas"]:
                    image = str(entry.get("image_id", row.value.get("id")))
                    asked = [entry["question"].strip(), entry["answer"].strip()]
                    name = f"vg-{entry['qa_id']}" if "qa_id" in entry else None
                    cells.append(CellRow(place, [f"{image}.jpg", *asked, image, name]))
            except (KeyError, TypeError, AttributeError) as error:
                self.left.add("an entry that is not Visual Genome's", f"{place} ({error!r})")
        return self._read_cells(layout, cells)

    def _read_cells(self, layout: Layout, cells: list[CellRow]) -> ReadRows:
        reader = RowReader(
            layout,
            self.finder,
            self.left,
            self.truth,
            self.questions,
        )
        return reader.read(cells)


def is_preference(row: dict[str, Any]) -> bool:
    """Is it a row with answers to choose from, in a format of `formats.py` or our own?"""
    try:
        name = detect_format(row)
    except UsageError:
        return False
    # Our own questions have the fields of a record, but for the answers
    if name != "record":
        return True
    if {"chosen", "rejected", "ranking"} & row.keys():
        return True
    answers = row.get("answers")
    return isinstance(answers, list) and any(
        isinstance(answer, dict) and "text" in answer for answer in answers
    )


def _wrapped_rows(text: str) -> tuple[str, list] | None:
    """Name and rows of the longest list in a file that is one object; None if it is not one."""
    try:
        value = parse_json(text.encode())
    except UsageError:
        return None
    if not isinstance(value, dict):
        return None
    lists = {}
    for name, part in value.items():
        if isinstance(part, list) and part and isinstance(part[0], dict):
            lists[name] = part
    # A row of a preference or a conversation holds lists of objects, too
    if not lists or is_preference(value) or match_columns(list(value)) or "qas" in value:
        return None
    # Beside the rows there may be short lists: of licences, of authors
    name = max(lists, key=lambda key: len(lists[key]))
    return name, lists[name]


def read_question_list(path: Path) -> tuple[str, ...]:
    """Read questions that are asked of every image: a text with one a line, a table, or JSON.

    Raises UsageError if there is none.
    """
    suffix = path.suffix.lower()
    texts: list[str] = []
    if suffix in TABLE_SUFFIXES:
        for sheet in read_sheets(path, header_fit):
            header = find_header(sheet)
            # A list needs no title: then it is the first column
            for row in header.rows if header else sheet.rows:
                texts += header.layout.values("question", row.cells) if header else row.cells[:1]
    elif suffix in JSON_SUFFIXES:
        for row in raw_rows(path):
            value = row.value
            texts.append(value.get("question", "") if isinstance(value, dict) else str(value or ""))
    else:
        texts = decode_text(path.read_bytes())[0].splitlines()
    texts = [text.strip().lstrip("\ufeff") for text in texts if text.strip()]
    if not texts:
        raise UsageError(f"{path}: holds no questions. Write one a line.")
    return tuple(dict.fromkeys(texts))
