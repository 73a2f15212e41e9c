"""Preference files of any format ↔ files of records.

The rows are turned in `helpers/data/convert_rows.py`; here are the files: lines or one JSON array,
the format recognised from the columns, image paths kept pointing at the images. A row that cannot
be read is named with its number and the reason, never skipped.
"""

import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from helpers.files import UsageError, parse_json, write_lines, write_text

from .convert_rows import from_row, read_mention, to_rows
from .formats import FORMATS
from .preferences import RawRow, RecordLine, open_records, raw_lines, scan_line, write_records
from .record import PairChoice, PreferenceRecord, name_images, resolve_images
from .templates import strip_record

LEADING_BLANKS = b"\xef\xbb\xbf \t\r\n"  # what may stand before the first character
SHOWN_ERRORS = 10  # more would push the first out of sight
_DECODER = json.JSONDecoder()  # finds where an item ends; `parse_json` reads it
_SEPARATOR = re.compile(r"\s*([,\]]?)\s*")  # of two items, or the end of an array


# --- reading --------------------------------------------------------------------------------------


def detect_format(row: Any) -> str:
    """Name the format of a row: "record" for this project's own. Raises UsageError if none fits."""
    columns = type(row).__name__
    if isinstance(row, dict):
        for name, form in FORMATS.items():
            if form.is_format(row):
                return name
        if row.keys() & {"image", "images"} and "prompt" in row:
            return "record"
        columns = ", ".join(row)
    raise UsageError(
        f"unknown format (columns: {columns}). Known: record, {', '.join(FORMATS)}; "
        "see helpers/data/formats.py."
    )


def scan_file(path: Path) -> Iterator[RecordLine]:
    """Yield every record of a file of any format, with the numbers of lines or of items.

    The format is that of the first row in which one is recognised; without any, every line is an
    error.
    """
    rows, ahead = itertools.tee(raw_rows(path))
    name, reason = _format_of(ahead)
    del ahead  # it would keep every row
    if name == "record":  # one line at a time, however long the file is
        yield from map(scan_line, rows)
        return
    rows = list(rows)  # the pairs of one record may stand apart
    whole = {read_mention(row.value, "key") for row in rows}
    # One row of a record with several pairs holds all of it; the others only mention it.
    for row in rows:
        key = read_mention(row.value, "pair_of")
        if name and key and key in whole:
            continue  # one more pair of a record that another row holds whole
        try:
            record, change = from_row(name, _checked_value(row, reason))
            yield RecordLine(row.number, record, change=change)
        except UsageError as error:
            yield RecordLine(row.number, error=str(error))


def _format_of(rows: Iterable[RawRow]) -> tuple[str | None, str]:
    """The first format that is recognised, or None and why the first readable row is of none."""
    reason = ""
    for row in rows:
        if row.error is None:
            try:
                return detect_format(row.value), ""
            except UsageError as error:
                reason = reason or str(error)
    return None, reason


def _checked_value(row: RawRow, reason: str) -> dict:
    """Return the value of a row. Raises UsageError without one, or for `reason` if there is one."""
    if row.error or reason:
        raise UsageError(row.error or reason)
    if not isinstance(row.value, dict):
        raise UsageError(f"a row is an object with named fields, not {type(row.value).__name__}.")
    return row.value


def raw_rows(path: Path) -> Iterator[RawRow]:
    """Yield every line that is not blank, or every item of a JSON array."""
    if is_array(path):
        yield from _array_items(path.read_bytes())
    else:
        with path.open("rb") as file:
            yield from raw_lines(file)


def is_array(path: Path) -> bool:
    """Is the file one JSON array, or what is left of one? False: it is a file of lines.

    One that is not sound is read the way that gives more rows.
    """
    with open_records(path) as file:
        if not file.read(100).lstrip(LEADING_BLANKS).startswith(b"["):
            return False
        file.seek(0)
        # A line may begin with "[" by a slip: the file is what more of it can be read as.
        errors = [item.error for item in _array_items(file.read())]
        if not any(errors):
            return True
        file.seek(0)
        objects = sum(isinstance(row.value, dict) for row in raw_lines(file))
        return errors.count(None) > objects


def _array_items(data: bytes) -> Iterator[RawRow]:
    """Yield the items of a JSON array up to where it is damaged; from there on all is one error."""
    text = data.decode(errors="surrogateescape")  # bytes that are not UTF-8 survive the way back
    number = 1
    place = re.compile(r"\[\s*").search(text).end()
    separator = ","
    # An empty array has no items, but it has an end.
    if text.startswith("]", place):
        match = _SEPARATOR.match(text, place)
        separator, place = match[1], match.end()
    while separator == ",":
        # The decoder says where the item ends, the strict parser whether it is sound.
        try:
            end = _DECODER.raw_decode(text, place)[1]
        except (ValueError, RecursionError):
            break
        raw = text[place:end].encode(errors="surrogateescape")
        try:
            yield RawRow(number, raw, parse_json(raw))
        except UsageError as error:
            yield RawRow(number, raw, None, str(error))
        number += 1
        match = _SEPARATOR.match(text, end)
        separator, place = match[1], match.end()
    # Cut off, damaged in the middle, or followed by something else.
    if separator != "]" or text[place:]:
        rest = text[place:].encode(errors="surrogateescape")
        line = text.count("\n", 0, place) + 1
        column = place - text.rfind("\n", 0, place)
        error = f"the JSON array is damaged at line {line}, column {column}."
        yield RawRow(number, rest, None, error)


# --- writing --------------------------------------------------------------------------------------


def write_file(
    path: Path,
    records: Iterable[PreferenceRecord],
    name: str = "record",
    which: PairChoice = "all",
) -> list[str]:
    """Write records in a format; returns a line for every record that the format cannot hold."""
    if name == "record":
        write_records(path, records)
        return []
    rows, left_out = [], []
    # One record that a format cannot hold does not stop the others.
    for number, record in enumerate(records, start=1):
        try:
            rows += to_rows(name, name_images(record, path.parent), which)
        except UsageError as error:
            left_out.append(f"record {record.id or number}: {error}")
    if not rows:
        reason = left_out[0] if left_out else "There are no records."
        raise UsageError(f"{path}: nothing to write. {reason}")
    if FORMATS[name].array:
        write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    else:
        write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))
    return left_out


def convert_file(
    source: Path,
    target: Path,
    to: str = "record",
    which: PairChoice = "all",
    strip: bool = False,
) -> str:
    """Convert a file, and say what was read, changed and left out.

    strip: take marks of chat templates off all texts. Raises UsageError if a row is bad.
    """
    if to != "record" and to not in FORMATS:
        raise UsageError(f"unknown format {to!r}: choose from record, {', '.join(FORMATS)}.")
    lines = list(scan_file(source))
    _refuse_bad_lines(source, lines)
    records = [resolve_images(line.record, source, line.number) for line in lines]
    bare = [strip_record(record) for record in records] if strip else records
    left_out = write_file(target, bare, to, which)
    summary = [f"{len(records) - len(left_out)} records → {target} ({to})"]
    if strip:
        summary.append(f"marks of templates taken off: {count_changed(records, bare)} records")
    for change, n in Counter(line.change for line in lines if line.change).items():
        summary.append(f"changed in {n} rows: {change}")
    summary += [f"left out: {reason}" for reason in left_out]
    return "\n".join(summary)


def count_changed(before: Sequence[PreferenceRecord], after: Sequence[PreferenceRecord]) -> int:
    """In how many records did the texts change?"""
    both = zip(before, after, strict=True)
    return sum((old.prompt, old.answers) != (new.prompt, new.answers) for old, new in both)


def _refuse_bad_lines(source: Path, lines: list[RecordLine]) -> None:
    bad = [f"{source}:{line.number}: {line.error}" for line in lines if line.error]
    if not bad:
        return
    shown = bad[:SHOWN_ERRORS]
    if len(bad) > len(shown):
        shown.append(f"… and {len(bad) - len(shown)} more")
    raise UsageError(
        f"{len(bad)} of {len(lines)} rows cannot be read, so nothing was written:\n"
        + "\n".join(shown)
        + "\nCorrect them, or sort them out: "
        f"python -m helpers check {source} --salvage OUT"
    )
