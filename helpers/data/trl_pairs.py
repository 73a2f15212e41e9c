"""Records as a TRL vision-preference data set, and a row of it in this package's words again."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import PIL.Image
from datasets import Dataset, Image, List
from datasets.features.features import register_feature
from tqdm.auto import tqdm

from helpers.files import UsageError, open_image

from .preferences import file_of
from .record import Message, PairChoice, PreferenceRecord


@dataclass
class OpenedImage(Image):
    """An image of a data set that is decoded as everywhere here: by `open_image`.

    The library's own decoding makes 16 bits white and transparency black.
    """

    _type: str = field(default="OpenedImage", init=False, repr=False)

    def decode_example(self, value: dict[str, Any], **_more: object) -> PIL.Image.Image:
        raw = value["bytes"]
        return open_image(Path(value["path"]) if raw is None else io.BytesIO(raw), value["path"])


# so that a copy of the data set, such as TRL makes, still has it
with warnings.catch_warnings():
    # that this is experimental, which readers can do nothing about
    warnings.simplefilter("ignore", UserWarning)
    register_feature(OpenedImage, "OpenedImage")


def with_images(dataset: Dataset, *columns: str) -> Dataset:
    """The data set with lists of paths in these columns as images, decoded when they are used."""
    for column in columns:
        dataset = dataset.cast_column(column, List(OpenedImage()))
    return dataset


def to_trl(records: Sequence[PreferenceRecord], which: PairChoice = "all") -> Dataset:
    """Make a TRL vision-preference data set of the pairs; images are decoded when they are used.

    Columns `images` (RGB), `prompt`, `chosen`, `rejected` (chat messages), and `negative_images` if
    records have some. TRL decides by the column name `images` that this is vision data; under any
    other name the images would be ignored. Raises UsageError naming file, line and record for an
    image that cannot be read.
    """
    rows = []
    spoilt = any(record.negative_images for record in records)
    for record in tqdm(records, "images", leave=False):
        # An image that cannot be read fails here, with a name, rather than in mid-training.
        for image in record.image_paths + record.negative_image_paths:
            open_image(image, record.place)
        prompt = [message.model_dump() for message in record.prompt]
        for pair in record.pairs(which):
            row = {
                "images": record.images,
                "prompt": prompt,
                "chosen": [{"role": "assistant", "content": pair.chosen.text}],
                "rejected": [{"role": "assistant", "content": pair.rejected.text}],
            }
            if spoilt:
                row["negative_images"] = record.negative_images
            rows.append(row)
    if not rows:
        raise UsageError(
            f"{file_of(records)}: all answers are tied, so there is no pair to train on. "
            "Rank some of them."
        )
    return with_images(Dataset.from_list(rows), *["images", "negative_images"][: 1 + spoilt])


class TrlPair(NamedTuple):
    """A row of a TRL vision-preference data set in this package's words."""

    images: list[PIL.Image.Image]
    prompt: list[Message]
    chosen: str
    rejected: str


def from_trl(row: dict) -> TrlPair:
    """Read a row that `to_trl` made: TRL's dictionaries become messages here and nowhere else."""
    prompt = [Message(role=turn["role"], content=turn["content"]) for turn in row["prompt"]]
    return TrlPair(
        images=list(row["images"]),
        prompt=prompt,
        chosen=row["chosen"][0]["content"],
        rejected=row["rejected"][0]["content"],
    )
