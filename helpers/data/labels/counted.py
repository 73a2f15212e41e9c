"""What is made of labels: images with their objects, and with the number of each kind."""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ..counting import Counts
from ..leftovers import Leftovers
from ..split_names import SPLITS

LabelPlace = TypeVar(
    "LabelPlace"
)  # a folder, a file, a file's content: what a reader of a form needs

IMAGE_SUFFIXES = {
    ".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic",
    ".heif",
}  # fmt: skip


@dataclass(frozen=True)
class LabelledImage:
    """An image, the class of every object in it, and the file that says so."""

    path: Path
    objects: tuple[str, ...]
    label: Path


@dataclass(frozen=True)
class CountedImage:
    """An image and the true number of objects of every class in it."""

    path: Path
    counts: Counts
    group: str  # equal for all augmented copies of one photo; "" if its name says nothing of it
    # What it was called and asked before; None: see `pairs.py`
    name: str | None = None
    question: str | None = None


class Labels(ABC, Generic[LabelPlace]):
    """The labels of a folder, in one of the forms.

    places: where each split is read; "" is the split of a folder without splits.
    """

    def __init__(
        self, folder: Path, places: Mapping[str, Sequence[LabelPlace]], left: Leftovers
    ) -> None:
        self.folder = folder
        self.places = places
        self.left = left
        # images and label files that are not used, for a reason that was named
        self.left_out: set[Path] = set()

    @property
    def splits(self) -> list[str]:
        """Those that there are, in the order train, valid, test."""
        return [split for split in ("", *SPLITS) if split in self.places]

    @abstractmethod
    def class_names(self) -> list[str]:
        """The classes of all splits as they are written, in their order; a name may stand twice."""

    @abstractmethod
    def read(self, split: str) -> list[LabelledImage]:
        """The images of a split. Raises UsageError naming file and line of what is wrong."""


def join_names(lists: Iterable[Iterable[str]]) -> list[str]:
    """Names of several lists, each once; one that stands twice in one list stays so."""
    joined: list[str] = []
    for names in lists:
        joined += (Counter(names) - Counter(joined)).elements()
    return joined


def photo_group(path: Path) -> str:
    """Return what the copies of one photo share: `street_jpg.rf.60d1.jpg` → `street_jpg`.

    Roboflow names its augmented copies so. Other names say nothing: "", since many folders have a
    photo that is called 1.jpg.
    """
    name = re.sub(r"\.rf\.[0-9a-f]+$", "", path.stem)
    return name if name != path.stem else ""
