"""Preference files of any format ↔ files of records.

The rows are turned in `helpers/data/convert_rows.py`; here are the files: lines or one JSON array, the format
recognised from the columns, image paths kept pointing at the images. A row that cannot be read is
named with its number and the reason, never skipped.
"""

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from helpers.files import UsageError, parse_json, write_lines, write_text

from .convert_rows import from_row, read_mention, to_rows
from .formats import FORMATS, DatasetRow
from .preferences import (
    PreferenceRecord,
    RecordLine,
    name_images,
    resolve_images,
    scan_line,
    scan_records,
    write_records,
)

LEADING_BLANKS = b"\xef\xbb\xbf \t\r\n"  # what may stand before the first character
_DECODER = json.JSONDecoder()  # finds where an item ends; `parse_json` reads it


def detect_format(row: Any) -> str:
    """Name of the format of a row: "record" for this project's own. Raises UsageError if none fits."""
    if isinstance(row, dict):
        known = [name for name, form in FORMATS.items() if form.is_format(row)]
        if known:
            return known[0]
        if row.keys() & {"image", "images"} and "prompt" in row:
            return "record"
    columns = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise UsageError(
        f"unknown format (columns: {columns}). Known: record, {', '.join(FORMATS)}; see helpers/data/formats.py."
    )


def scan_file(path: Path) -> Iterator[RecordLine]:
    """Every record of a file of any format, with line numbers (item numbers in a JSON array), as `scan_records`.

    The format is that of the first row in which one is recognised; without any, every line is an error.
    """
    array = is_array(path)
    name, reason = _format_of(_rows(path, array))
    if name == "record":  # one line at a time, however long the file is
        yield from (
            (scan_line(*row[:2]) for row in _rows(path, array)) if array else scan_records(path)
        )
        return
    rows = list(_rows(path, array))  # pairs of one record may stand apart
    whole = {key for _, _, row, _ in rows if (key := read_mention(row, "key"))}
    for number, raw, row, error in rows:
        if error is None and name and read_mention(row, "pair_of") in whole:
            continue  # one more pair of a record that another row holds whole
        try:
            if name is None:
                raise UsageError(error or reason)
            record, change = from_row(name, _row_or_error(row, error))
            yield RecordLine(number, raw, record, None, change)
        except UsageError as problem:
            yield RecordLine(number, raw, None, str(problem))


def _format_of(rows: Iterable[tuple[int, bytes, Any, str | None]]) -> tuple[str | None, str]:
    """The first format that is recognised, or None and why the first row that could be read is of none."""
    reason = ""
    for _, _, row, error in rows:
        if error is None:
            try:
                return detect_format(row), ""
            except UsageError as problem:
                reason = reason or str(problem)
    return None, reason


def raw_rows(path: Path) -> Iterator[tuple[int, bytes, Any, str | None]]:
    """(number, bytes, value, error) of every line that is not blank, or of every item of a JSON array."""
    yield from _rows(path, is_array(path))


def _rows(path: Path, array: bool) -> Iterator[tuple[int, bytes, Any, str | None]]:
    if array:
        yield from _array_items(path.read_bytes())
        return
    with path.open("rb") as file:
        yield from _json_lines(file)


def is_array(path: Path) -> bool:
    """Is the file one JSON array, or what is left of one? False: it is a file of lines.

    One that is not sound is read the way that gives more rows.
    """
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file. Run notebook 02 to make one, or give another path."
        )
    with path.open("rb") as file:
        if not file.read(100).lstrip(LEADING_BLANKS).startswith(b"["):
            return False
        file.seek(0)
        errors = [error for *_, error in _array_items(file.read())]
        file.seek(0)
        return not any(errors) or errors.count(None) > sum(
            isinstance(row, dict) for _, _, row, _ in _json_lines(file)
        )


def _array_items(data: bytes) -> Iterator[tuple[int, bytes, Any, str | None]]:
    """The items of a JSON array up to the place where it is damaged; from there on all is one error."""
    text, rest = data.decode(errors="surrogateescape"), re.compile(r"\s*([,\]]?)\s*")
    number, place, separator = 1, text.index("[") + 1, ","
    place += len(text[place:]) - len(text[place:].lstrip())
    if text[place : place + 1] == "]":
        separator, place = "]", rest.match(text, place).end()
    while separator == ",":
        try:
            end = _DECODER.raw_decode(text, place)[1]
        except (ValueError, RecursionError):
            break
        raw = text[place:end].encode(errors="surrogateescape")
        try:
            yield number, raw, parse_json(raw), None
        except UsageError as error:
            yield number, raw, None, str(error)
        match = rest.match(text, end)
        number, place, separator = number + 1, match.end(), match[1]
    if separator != "]" or text[place:]:
        line = text.count("\n", 0, place) + 1
        error = f"the JSON array is damaged at line {line}, column {place - text.rfind(chr(10), 0, place)}."
        yield number, text[place:].encode(errors="surrogateescape"), None, error


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, bytes, Any, str | None]]:
    for number, raw in enumerate(file, start=1):
        if raw.strip():
            try:
                yield number, raw, parse_json(raw), None
            except UsageError as error:
                yield number, raw, None, f"{error} Each line must be one whole object."


def _row_or_error(row: Any, error: str | None) -> DatasetRow:
    if error:
        raise UsageError(error)
    if not isinstance(row, dict):
        raise UsageError(f"a row is an object with named fields, not {type(row).__name__}.")
    return row


def write_file(
    path: Path,
    records: Iterable[PreferenceRecord],
    name: str = "record",
    which: Literal["all", "extremes"] = "all",
) -> list[str]:
    """Write records in a format; returns a line for every record that the format cannot hold."""
    if name == "record":
        write_records(path, records)
        return []
    rows, left_out = [], []
    for number, record in enumerate(records, start=1):
        try:
            rows += to_rows(name, name_images(record, path.parent), which)
        except UsageError as error:
            left_out.append(f"record {record.id or number}: {error}")
    if not rows:
        raise UsageError(
            f"{path}: nothing to write. {left_out[0] if left_out else 'There are no records.'}"
        )
    if FORMATS[name].array:
        write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    else:
        write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))
    return left_out


def convert_file(
    source: Path, target: Path, to: str = "record", which: Literal["all", "extremes"] = "all"
) -> str:
    """Convert a file, and say what was read, changed and left out. Raises UsageError if a row is bad."""
    if to != "record" and to not in FORMATS:
        raise UsageError(f"unknown format {to!r}: choose from record, {', '.join(FORMATS)}.")
    lines = list(scan_file(source))
    if bad := [f"{source}:{line.number}: {line.error}" for line in lines if line.record is None]:
        more = f"\n… and {len(bad) - 10} more" if len(bad) > 10 else ""
        raise UsageError(
            f"{len(bad)} of {len(lines)} rows cannot be read, so nothing was written:\n"
            + "\n".join(bad[:10])
            + more
            + f"\nCorrect them, or sort them out: python -m helpers check {source} --salvage OUT"
        )
    records = [resolve_images(line.record, source, line.number) for line in lines]
    left_out = write_file(target, records, to, which)
    summary = [f"{len(records) - len(left_out)} records → {target} ({to})"]
    changes = Counter(line.change for line in lines if line.change)
    summary += [f"changed in {n} rows: {change}" for change, n in changes.items()]
    return "\n".join(summary + [f"left out: {reason}" for reason in left_out])
