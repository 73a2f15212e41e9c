"""Preference files of any format ↔ files of records.

The rows are turned in `helpers/rows.py`; here are the files: lines or one JSON array, the format
recognised from the columns, image paths kept pointing at the images. A row that cannot be read is
named with its number and the reason, never skipped.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, Literal

from helpers.formats import FORMATS, Row
from helpers.preferences import Line, PreferenceRecord, scan_records, write_records
from helpers.rows import from_row, mention, to_rows
from helpers.runtime import UsageError, parse_json, read_json, write_lines, write_text


def detect(row: Any) -> str:
    """Name of the format of a row: "record" for this project's own. Raises UsageError if none fits."""
    if isinstance(row, dict):
        known = [name for name, form in FORMATS.items() if form.known(row)]
        if known:
            return known[0]
        if row.keys() & {"image", "images"} and "prompt" in row:
            return "record"
    columns = ", ".join(row) if isinstance(row, dict) else type(row).__name__
    raise UsageError(
        f"unknown format (columns: {columns}). Known: record, {', '.join(FORMATS)}; see helpers/formats.py."
    )


def scan_file(path: Path, name: str | None = None) -> Iterator[Line]:
    """Every record of a file of any format, with line numbers (item numbers in a JSON array), as `scan_records`.

    name: the format, if it shall not be recognised from the first row that can be read.
    """
    if name is None:
        first = next((row for _, _, row, error in _rows(path) if error is None), None)
        name = "record" if first is None else detect(first)
    if name == "record":
        yield from scan_records(path)  # one line at a time, however long the file is
        return
    rows = list(_rows(path))  # pairs of one record may stand apart
    whole = {key for _, _, row, _ in rows if (key := mention(row, "key"))}
    for number, raw, row, error in rows:
        if error is None and mention(row, "pair_of") in whole:
            continue  # one more pair of a record that another row holds whole
        try:
            record, change = from_row(name, _row_or_error(row, error))
            yield Line(number, raw, record, None, change)
        except UsageError as problem:
            yield Line(number, raw, None, str(problem))


def _rows(path: Path) -> Iterator[tuple[int, bytes, Any, str | None]]:
    """(number, bytes, value, error) of every line that is not blank, or of every item of a JSON array."""
    if not path.is_file():
        raise UsageError(f"{path}: no such file.")
    with path.open("rb") as file:
        if not file.read(100).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"["):
            file.seek(0)
            yield from _json_lines(file)
            return
    items = read_json(path)
    for number, item in enumerate(items, start=1):
        yield number, json.dumps(item, ensure_ascii=False).encode(), item, None


def _json_lines(file: BinaryIO) -> Iterator[tuple[int, bytes, Any, str | None]]:
    for number, raw in enumerate(file, start=1):
        if raw.strip():
            try:
                yield number, raw, parse_json(raw), None
            except UsageError as error:
                yield number, raw, None, str(error)


def _row_or_error(row: Any, error: str | None) -> Row:
    if error:
        raise UsageError(error)
    if not isinstance(row, dict):
        raise UsageError(f"a row is an object with named fields, not {type(row).__name__}.")
    return row


def write_file(
    path: Path, records: Iterable[PreferenceRecord], name: str = "record", which: Literal["all", "extremes"] = "all"
) -> list[str]:
    """Write records in a format; returns a line for every record that the format cannot hold."""
    if name == "record":
        write_records(path, records)
        return []
    rows, left_out = [], []
    for number, record in enumerate(records, start=1):
        try:
            rows += to_rows(name, record, which)
        except UsageError as error:
            left_out.append(f"record {record.id or number}: {error}")
    if not rows:
        raise UsageError(f"{path}: nothing to write. {left_out[0] if left_out else 'There are no records.'}")
    if FORMATS[name].array:
        write_text(path, json.dumps(rows, indent=1, ensure_ascii=False) + "\n")
    else:
        write_lines(path, (json.dumps(row, ensure_ascii=False) for row in rows))
    return left_out


def rebased(record: PreferenceRecord, old: Path, new: Path) -> PreferenceRecord:
    """The record with image paths relative to folder `new` instead of `old`; absolute ones and addresses stay."""

    def move(name: str) -> str:
        fixed = "://" in name or os.path.isabs(name)
        return name if fixed else Path(os.path.relpath(old / name, new)).as_posix()

    images = {field: [move(name) for name in getattr(record, field)] for field in ("images", "negative_images")}
    return record.model_copy(update=images)


def convert(source: Path, target: Path, to: str = "record", which: Literal["all", "extremes"] = "all") -> str:
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
            + f"\nCorrect them, or keep the good ones: python -m helpers check {source} --salvage OUT"
        )
    records = [rebased(line.record, source.parent.resolve(), target.parent.resolve()) for line in lines]
    left_out = write_file(target, records, to, which)
    summary = [f"{len(records) - len(left_out)} records → {target} ({to})"]
    changes = Counter(line.change for line in lines if line.change)
    summary += [f"changed in {n} rows: {change}" for change, n in changes.items()]
    return "\n".join(summary + [f"left out: {reason}" for reason in left_out])
