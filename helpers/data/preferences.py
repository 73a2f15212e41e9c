"""The file of preference records, one JSON object a line; a bad line is named with what to do.

`read_records` makes the paths of images absolute, `write_records` makes them relative again.
`data/preference_record.schema.json` is the JSON Schema of a line. Taught in notebook 02.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from pydantic import ValidationError

from helpers.files import UsageError, parse_json, read_json, write_lines

from .judgement import explain_validation_error
from .record import PreferenceRecord, name_images, resolve_images


class RawRow(NamedTuple):
    """A line of a file, or an item of its JSON array, before anybody asks for a record."""

    number: int  # counted from 1
    raw: bytes
    value: Any
    error: str | None = None  # why there is no value


@dataclass(frozen=True)
class RecordLine:
    """One line of a file of records: the record, or why there is none."""

    number: int  # counted from 1
    record: PreferenceRecord | None = None
    error: str | None = None
    change: str | None = None  # what was altered to make the record, if another format was read


def open_records(path: Path) -> BinaryIO:
    """Open a file of records to read its bytes. Raises UsageError if there is none."""
    if not path.is_file():
        raise UsageError(
            f"{path}: no such file. Run notebook 02 to make one, or give another path."
        )
    return path.open("rb")


def raw_lines(file: BinaryIO) -> Iterator[RawRow]:
    """Yield every line of a JSONL file that is not blank."""
    for number, raw in enumerate(file, start=1):
        if raw.strip():
            try:
                yield RawRow(number, raw, parse_json(raw))
            except UsageError as error:
                yield RawRow(number, raw, None, f"{error} Each line must be one whole object.")


def scan_line(row: RawRow) -> RecordLine:
    """Read the record of a line, or say what is wrong with it."""
    error = row.error
    if error is None:
        try:
            return RecordLine(row.number, PreferenceRecord.model_validate(row.value))
        except ValidationError as problem:
            error = f"{explain_validation_error(problem)}. Correct the line or remove it."
    return RecordLine(row.number, error=error)


def scan_records(path: Path) -> Iterator[RecordLine]:
    """Yield every line of a JSONL file that is not blank; a bad one does not stop the rest."""
    with open_records(path) as file:
        yield from map(scan_line, raw_lines(file))


def read_records(path: Path) -> list[PreferenceRecord]:
    """Read a JSONL file of records (blank lines allowed); their image paths are absolute.

    Raises UsageError naming file, line and remedy at the first line that is not a valid record;
    `python -m helpers check FILE` lists them all.
    """
    records = []
    for line in scan_records(path):
        if line.error:
            raise UsageError(f"{path}:{line.number}: {line.error}")
        records.append(resolve_images(line.record, path, line.number))
    if not records:
        raise UsageError(f"{path}: holds no records. Run notebook 02 again, or give another file.")
    return records


def write_records(path: Path, records: Iterable[PreferenceRecord]) -> Path:
    """Write records as JSONL, without empty fields; image paths are relative to the file."""
    named = (name_images(record, path.parent) for record in records)
    return write_lines(path, (record.model_dump_json(exclude_defaults=True) for record in named))


def file_of(records: Sequence[PreferenceRecord]) -> str:
    """The file that records were read from, for errors about all of them."""
    return str(records[0].file or "these records") if records else "no records"


def json_schema() -> dict:
    """Return the JSON Schema of a line, the short form included."""
    schema = PreferenceRecord.model_json_schema()
    short = read_json(Path(__file__).with_name("short_form.schema.json"))
    # The prompt is a text, or the list of messages.
    properties = short.pop("properties")
    properties["prompt"] = {"anyOf": [properties["prompt"], schema["properties"]["prompt"]]}
    schema["properties"] |= properties
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, **short}
