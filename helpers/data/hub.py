"""Public preference data sets: from the Hugging Face hub to records and images.

A data set on the hub can change under its name; a pinned revision cannot. Images that come inside
the tables are written as files, once each, under a name that is their hash, and records of one
image share a group. Data sets that only name their images (COCO photos, for example) need the
folder of them. The sets stand in `hub_sets.toml`.

The licence of every set is its own: read it before use. Nothing of them is in this repository.
"""

import hashlib
import json
import tomllib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List, load_dataset
from tqdm.auto import tqdm

from helpers.files import UsageError, read_json, replace_file, write_lines

from .convert_files import detect_format
from .convert_rows import from_row
from .formats import DatasetRow
from .preferences import write_records
from .record import PreferenceRecord


@dataclass(frozen=True)
class HubSet:
    """Where a data set is. Its format follows from its columns, which differ between revisions."""

    repository: str
    revision: str
    split: str = "train"
    file: str | None = None  # the file to read, if the repository holds several things
    licence: str = "see the data set's page"
    key: str | None = None  # under which a JSON file holds its rows
    # into a known format, for a set whose own format is none of them
    reshape: Callable[[DatasetRow], DatasetRow] | None = None


# name → where it is; the names are those of the formats where they have one
_TABLE = tomllib.loads(Path(__file__).with_name("hub_sets.toml").read_text(encoding="utf-8"))
HUB_SETS = {name: HubSet(**entry) for name, entry in _TABLE.items()}


def fetch_hub_set(
    name: str,
    folder: Path,
    *,
    images: Path | None = None,
    rows: int | None = None,
    file: Path | None = None,
    source: HubSet | None = None,
) -> Path:
    """Write the records of a data set to `folder/NAME.jsonl`, its images to `folder/images/`.

    images: folder of the images, for sets that only name them. rows: at most so many. file: one of
    the same columns that is already here (Parquet, JSON, JSONL). source: of a set that is not in
    `HUB_SETS`. Rows that cannot be read go to `NAME.bad.jsonl` with the reason. Raises UsageError.
    """
    source = source or HUB_SETS.get(name)
    if not source:
        raise UsageError(f"unknown data set {name!r}: choose from {', '.join(HUB_SETS)}.")
    data = load_rows(source, file)
    data = data[:rows] if isinstance(data, list) else data.select(range(len(data))[:rows])
    records, bad = [], []
    changes = Counter()
    for number, row in enumerate(tqdm(data, name, unit="row"), start=1):
        try:
            record, change = _record(source, row, folder, images)
            records.append(record)
            if change:
                changes[change] += 1
        except UsageError as error:
            bad.append({"row": number, "error": str(error), "columns": list(row)})
    for change, times in changes.items():
        print(f"changed in {times} rows: {change}")
    if bad:
        lines = (json.dumps(entry, ensure_ascii=False) for entry in bad)
        path = write_lines(folder / f"{name}.bad.jsonl", lines)
        print(
            f"{len(bad)} of {len(data)} rows could not be read. "
            f"Reasons: {path}; the first: {bad[0]['error']}"
        )
    return write_records(folder / f"{name}.jsonl", records)


def load_rows(source: HubSet, file: Path | None) -> Dataset | list[DatasetRow]:
    """Load a data set from the hub, or from a file. Images stay the bytes they are stored as.

    It is a list where the rows of a JSON file stand under a key. Raises UsageError if it cannot be
    had.
    """
    if file is not None and source.key:
        return _rows_under(source.key, file)
    try:
        if file is not None:
            kind = "parquet" if file.suffix == ".parquet" else "json"
            data = load_dataset(kind, data_files=str(file), split="train")
        else:
            data = load_dataset(
                source.repository,
                data_files=source.file,
                revision=source.revision,
                split=source.split,
            )
    except Exception as error:  # the library's many kinds of "no network", "no such revision", …
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{source.repository} at {source.revision[:8]} cannot be had "
            f"({type(error).__name__}: {reason}). "
            "Check the network, or download it elsewhere and give its Parquet or JSON file."
        ) from error
    # Written to disk as they are, images stay what they are; decoding would save them anew.
    for column, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            data = data.cast_column(column, List(Image(decode=False)))
    return data


def _rows_under(key: str, file: Path) -> list[DatasetRow]:
    whole = read_json(file)
    rows = whole.get(key) if isinstance(whole, dict) else None
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise UsageError(
            f'{file}: must be {{"{key}": [rows]}}. Build it with its authors\' script.'
        )
    return rows


def _record(
    source: HubSet,
    row: DatasetRow,
    folder: Path,
    images: Path | None,
) -> tuple[PreferenceRecord, str | None]:
    if source.reshape:
        row = source.reshape(row)
    stored = {key: store_images(value, folder) for key, value in row.items()}
    form = detect_format(stored)
    if form == "record":
        record, change = PreferenceRecord.model_validate(stored), None
    else:
        record, change = from_row(form, stored)
    if images is not None and stored == row:
        # No image came with the row: the names are of files elsewhere.
        record.images = [(images.resolve() / name).as_posix() for name in record.images]
    # Records of one image are of one photo, whatever they ask.
    update = {
        "source": f"{source.repository}@{source.revision}",
        "licence": source.licence,
        "group": record.group or next(iter(record.images), None),
    }
    return record.model_copy(update=update), change


def store_images(value: Any, folder: Path) -> Any:
    """Return the value, with an image in it replaced by the path of its file."""
    if isinstance(value, list):
        return [store_images(item, folder) for item in value]
    content = value.get("bytes") if isinstance(value, dict) else None
    if not isinstance(content, bytes):
        return value
    # By its first bytes: the name in the table may be missing or wrong.
    suffix = ".jpg"
    if content.startswith(b"\x89PNG"):
        suffix = ".png"
    elif content[8:12] == b"WEBP":
        suffix = ".webp"
    # Equal images have one file.
    name = f"images/{hashlib.blake2b(content, digest_size=12).hexdigest()}{suffix}"
    path = folder / name
    if not path.exists():
        with replace_file(path) as beside:
            beside.write_bytes(content)
    return name
