"""Public preference data sets: from the Hugging Face hub, at a fixed revision, to records and images.

A data set on the hub can change under its name; a pinned revision cannot. Images that come inside the
tables are written as files, once each, under a name that is their hash, and records of one image share
a group. Data sets that only name their images (COCO photos, for example) need the folder of them.

The licence of every set is its own: read it before use. Nothing of them is in this repository.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Image, List, load_dataset
from tqdm.auto import tqdm

from helpers.files import UsageError, write_lines

from .convert_files import detect_format
from .convert_rows import from_row
from .formats import DatasetRow
from .preferences import PreferenceRecord, write_records


@dataclass(frozen=True)
class HubSet:
    """Where a data set is. Its format follows from its columns, which differ between revisions."""

    repository: str
    revision: str
    split: str = "train"
    file: str | None = None  # the file to read, if the repository holds several things
    licence: str = "see the data set's page"
    reshape: Callable[[DatasetRow], DatasetRow] | None = (
        None  # into a known format, for a set whose own format is none of them
    )


HUB_SETS = {
    "rlhf_v": HubSet("openbmb/RLHF-V-Dataset", "5b59b49cea78face616294336369cd8ab81b970e", licence="CC BY-NC 4.0"),
    "rlaif_v": HubSet("openbmb/RLAIF-V-Dataset", "07932ffc61a31e8e8b3685442a509c66275cb774", licence="CC BY-NC 4.0"),
    "rlaif_v_first": HubSet("openbmb/RLAIF-V-Dataset", "afeec44778bba57243a18831b38cf70b3a01644f", licence="CC BY-NC 4.0"),
    "vl_rewardbench": HubSet("MMInstruction/VL-RewardBench", "60630ac36ca93c0ca30249bd1ab3706170836cea", split="test", licence="MIT"),
    "vlfeedback": HubSet("MMInstruction/VLFeedback", "0bd5e141605f55ce04e845c65ac2c716ef89e8ec", file="vlfeedback_80k.jsonl"),
    "llava_rlhf": HubSet("zhiqings/LLaVA-Human-Preference-10K", "e60c9e520dde0c331f1b833ec991789ed238554c", file="llava_7b_v1_preference.json", licence="Apache-2.0"),
}  # fmt: skip


def fetch_hub_set(
    name: str,
    folder: Path,
    *,
    images: Path | None = None,
    rows: int | None = None,
    file: Path | None = None,
    source: HubSet | None = None,
) -> Path:
    """Write the records of a public data set to `folder/NAME.jsonl`, its images to `folder/images/`.

    images: folder of the images, for sets that only name them. rows: no more than so many. file: a
    Parquet, JSON or JSONL file of the same columns that is already here, instead of the hub. Rows that
    cannot be read go to `NAME.bad.jsonl` with the reason, and their number is printed. source: of a set
    that is not in `HUB_SETS`. Raises UsageError.
    """
    source = source or HUB_SETS.get(name)
    if source is None:
        raise UsageError(f"unknown data set {name!r}: choose from {', '.join(HUB_SETS)}.")
    data = disable_decoding(load_rows(source, file))
    data = data.select(range(min(rows, len(data)))) if rows else data
    good, bad, changes = [], [], Counter()
    for number, row in enumerate(tqdm(data, desc=name, unit="row"), start=1):
        try:
            record, change = _record(source, row, folder, images)
            good.append(record)
            changes[change] += change is not None
        except UsageError as error:
            bad.append({"row": number, "error": str(error), "columns": list(row)})
    for change, times in (+changes).items():
        print(f"changed in {times} rows: {change}")
    if bad:
        path = write_lines(
            folder / f"{name}.bad.jsonl", (json.dumps(entry, ensure_ascii=False) for entry in bad)
        )
        print(
            f"{len(bad)} of {len(data)} rows could not be read. Reasons: {path}; the first: {bad[0]['error']}"
        )
    return write_records(folder / f"{name}.jsonl", good)


def load_rows(source: HubSet, file: Path | None) -> Dataset:
    try:
        if file is not None:
            kind = "parquet" if file.suffix == ".parquet" else "json"
            return load_dataset(kind, data_files=str(file), split="train")
        files = {"data_files": source.file} if source.file else {}
        return load_dataset(
            source.repository, revision=source.revision, split=source.split, **files
        )
    except (
        Exception
    ) as error:  # the library's many kinds of "no network", "no such revision", "no such split"
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{source.repository} at {source.revision[:8]} cannot be had ({type(error).__name__}: {reason}). "
            "Check the network, or download it elsewhere and give its Parquet or JSON file."
        ) from error


def disable_decoding(data: Dataset) -> Dataset:
    """Images as the bytes they are stored as: written to disk, they stay what they are."""
    for column, feature in data.features.items():
        if isinstance(feature, Image):
            data = data.cast_column(column, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            data = data.cast_column(column, List(Image(decode=False)))
    return data


def _record(
    source: HubSet, row: DatasetRow, folder: Path, images: Path | None
) -> tuple[PreferenceRecord, str | None]:
    row = source.reshape(row) if source.reshape else row
    stored = {key: store_images(value, folder) for key, value in row.items()}
    record, change = from_row(detect_format(stored), stored)
    if (
        images is not None and stored == row
    ):  # no image came with the row: the names are of files elsewhere
        record.images = [(images.resolve() / name).as_posix() for name in record.images]
    about = {"source": f"{source.repository}@{source.revision}", "licence": source.licence}
    return record.model_copy(update={**about, "group": record.group or record.images[0]}), change


def store_images(value: Any, folder: Path) -> Any:
    """The value, with an image in it replaced by the path of its file."""
    if isinstance(value, list):
        return [store_images(item, folder) for item in value]
    if not isinstance(value, dict) or not isinstance(value.get("bytes"), bytes):
        return value
    content = value["bytes"]
    suffix = (
        ".png"
        if content.startswith(b"\x89PNG")
        else ".webp"
        if content[8:12] == b"WEBP"
        else ".jpg"
    )
    path = folder / "images" / (hashlib.blake2b(content, digest_size=12).hexdigest() + suffix)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return path.relative_to(folder).as_posix()
