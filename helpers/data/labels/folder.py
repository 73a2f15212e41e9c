"""Which form the labels of a folder have, and how many objects of each class its images show.

All splits are counted by the same classes: those that any of them names. Names that an answer
cannot tell apart (`Car` and `car`) are refused, or counted as one where CLASSES names that one.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from helpers.files import UsageError

from ..counting import like_classes, spelled_class, unreadable_classes
from ..image_names import list_folder_images
from ..leftovers import Leftovers
from ..split_names import split_name
from .coco import find_coco
from .counted import CountedImage, LabelledImage, Labels, photo_group
from .voc import find_voc
from .yolo import find_yolo

LABEL_SUFFIXES = {".txt", ".xml"}
FINDERS: tuple[Callable[[Path, Leftovers], Labels | None], ...] = (find_yolo, find_coco, find_voc)


class LabelFolder:
    """The labels of a folder, whichever form they have."""

    def __init__(self, folder: Path, labels: Labels, left: Leftovers) -> None:
        self.folder = folder
        self.left = left
        self._labels = labels
        self._read: dict[str, list[LabelledImage]] = {}

    @property
    def splits(self) -> list[str]:
        """Those that it has, in the order train, valid, test; [""] if it is not split."""
        return list(self._labels.splits)

    @cached_property
    def class_names(self) -> list[str]:
        """The names of the classes of all splits, as they are written."""
        return self._labels.class_names()

    def read(self, split: str, counted_as: Mapping[str, str]) -> list[CountedImage]:
        """The images of a split with the count of every class.

        counted_as: the class that each name in the labels is counted as (see `classes_counted`);
        objects with other names are not counted.
        """
        images = self._labels.read(split)
        self._read[split] = images
        names = Counter(image.path.stem for image in images)
        items = []
        for image in images:
            counts = dict.fromkeys(counted_as.values(), 0)
            for name in image.objects:
                if name in counted_as:
                    counts[counted_as[name]] += 1
            # Photos of two folders may have one name: then it is the name of neither
            alone = names[image.path.stem] == 1
            name = f"{split or 'image'}-{image.path.stem}" if alone else None
            items.append(CountedImage(image.path, counts, photo_group(image.path), name))
        return items

    def name_unused(self) -> None:
        """Count and name the images and label files of the folder that no split has read."""
        read = [image for images in self._read.values() for image in images]
        known = {image.path for image in read} | {image.label for image in read}
        known |= self._labels.left_out
        for path in list_folder_images(self.folder):
            if path not in known:
                self.left.add("an image that no label speaks of", self._name(path), harmless=True)
        # Only beside those that were read: elsewhere a .txt is something else
        for folder in sorted({image.label.parent for image in read}):
            for path in sorted(folder.iterdir()):
                if path.suffix in LABEL_SUFFIXES and path not in known:
                    self.left.add("a label file without an image", self._name(path), harmless=True)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()


def open_labels(folder: Path, left: Leftovers | None = None) -> LabelFolder | None:
    """Find the labels of a folder; None if it has none in a known form.

    left: takes the notes, and what is not used.
    """
    left = Leftovers() if left is None else left
    for find in FINDERS:
        labels = find(folder, left)
        if labels:
            return LabelFolder(folder, labels, left)
    return None


def read_counts(
    folder: Path,
    split: str,
    classes: Sequence[str] | None = None,
) -> list[CountedImage]:
    """Read the images of one split with their counts, whichever of three forms the labels have.

    classes: count only these, in this order (default: all that the labels name). Raises UsageError.
    """
    labels = open_labels(folder)
    if labels is None or split_name(split) not in labels.splits:
        found = f" There is {', '.join(labels.splits)}." if labels and any(labels.splits) else ""
        raise UsageError(
            f"{folder}: no labels of a split {split!r}.{found} Expected YOLO (data.yaml), COCO "
            f"({split}/_annotations.coco.json) or Pascal VOC ({split}/*.xml); "
            "see helpers/data/labels/__init__.py."
        )
    counted_as = classes_counted(labels.class_names, classes, folder)
    return labels.read(split_name(split), counted_as)


def classes_counted(
    names: Iterable[str],
    classes: Sequence[str] | None,
    folder: Path,
) -> dict[str, str]:
    """Which class each name in the labels is counted as.

    classes: count only these; a name that differs from one by case or a plural s alone is counted
    as it. Raises UsageError for classes that no label names, and for names that an answer cannot
    tell apart, or that cannot be read in it.
    """
    names = list(names)
    if classes is None:
        counted_as = {name: name for name in names}
        alike = like_classes(names)
    else:
        counted_as = {}
        for name in names:
            cls = spelled_class(name, classes)
            if cls is not None:
                counted_as[name] = cls
        alike = like_classes(classes)
    if alike:
        one_each = [name for name in dict.fromkeys(names) if name not in alike[1:]]
        raise UsageError(
            f"{folder}: classes {' and '.join(map(repr, alike))} are one to an answer, which knows "
            "neither case nor a plural s. Rename them in the labels, or count them as one: "
            f"CLASSES = {one_each}."
        )
    unknown = [cls for cls in classes or () if cls not in counted_as.values()]
    if unknown:
        raise UsageError(
            f"{folder}: no class {', '.join(unknown)}. The labels name {', '.join(names)}."
        )
    kept = list(dict.fromkeys(classes or names))
    unreadable = unreadable_classes(kept)
    if unreadable:
        raise UsageError(
            f"{folder}: an answer that names the classes {', '.join(map(repr, unreadable))} could "
            "not be read again. Give them names of letters, such as 'zeros' for '0'."
        )
    # In the order of the classes, which is that of every answer
    return dict(sorted(counted_as.items(), key=lambda item: kept.index(item[1])))
