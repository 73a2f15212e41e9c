"""Labels in the form of COCO: a JSON file with `images`, `annotations` and `categories`.

A crowd region (`iscrowd`) stands for objects that nobody counted, so the image it is in has no true
count: such images are left out, counted and named.
"""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from helpers.files import UsageError, read_json

from ..image_names import ImageFinder
from ..leftovers import Leftovers
from ..split_names import split_of_file
from .counted import LabelledImage, Labels, join_names

# COCO's own files of other kinds stand beside those of boxes
OTHER_KINDS = ("captions", "person_keypoints", "panoptic", "image_info", "stuff")
# Where annotations stand, but for `annotations/*.json`: Roboflow, CVAT, Label Studio, FiftyOne
COCO_PLACES = (
    "_annotations.coco.json",
    "*/_annotations.coco.json",
    "instances*.json",
    "annotations.json",
    "labels.json",
    "result.json",
    "annotations/*.json",
)
OWN_NAME = "*_annotations.coco.json"  # nothing but annotations is called so
CROWDED = "an image with crowd regions, which nobody counted"
COCO_FIELDS = {"images", "annotations", "categories"}


class CocoFile:
    """One file of annotations: the objects of its images."""

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        try:
            self.names = self._by_id("categories", content["categories"], "name")
            self.files = self._by_id("images", content["images"], "file_name")
            self.objects = [self._read_object(*each) for each in enumerate(content["annotations"])]
            crowds = [each for each in content["annotations"] if each.get("iscrowd")]
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}: not COCO annotations ({error!r} is missing). Export the data set again."
            ) from None
        self.crowded = {each["image_id"] for each in crowds}

    def _by_id(self, what: str, entries: list[dict[str, Any]], field: str) -> dict[Any, str]:
        """A field of entries by their ids. Raises UsageError for an id of two entries."""
        found: dict[Any, str] = {}
        for entry in entries:
            number, text = entry["id"], str(entry[field]).strip()
            if number in found:
                raise UsageError(
                    f"{self.path}: {what} {found[number]!r} and {text!r} have one id, {number}, so "
                    "nobody knows whose the boxes are. Files that were joined need new ids."
                )
            found[number] = text
        return found

    def _read_object(self, number: int, entry: dict[str, Any]) -> tuple[Any, str]:
        """The image of an annotation and its class. Raises UsageError naming the annotation."""
        where = f"{self.path}: annotation {number}"
        image, category = entry["image_id"], entry["category_id"]
        if image not in self.files or category not in self.names:
            raise UsageError(
                f"{where} speaks of image {image}, category {category}: not in the file. Export "
                "the data set again."
            )
        if "score" in entry:
            raise UsageError(
                f"{where} has a score: a model's predictions are no truth. Take the labels that "
                "people made."
            )
        box = entry.get("bbox") or ()
        if any(not isinstance(side, int | float) or not math.isfinite(side) for side in box):
            raise UsageError(f"{where}: its bbox holds what is no number. Correct it.")
        return image, self.names[category]


class CocoLabels(Labels[CocoFile]):
    """The labels of a folder in the form of COCO: a file of annotations a split, or several."""

    def class_names(self) -> list[str]:
        """The categories that occur in any split: COCO names 80, which would mostly be zeros."""
        everything = [file for split in self.splits for file in self.places[split]]
        occurring = {name for file in everything for _, name in file.objects}
        # Two categories of one file may have one name, which is then there twice
        joined = join_names(file.names.values() for file in everything)
        names = [name for name in joined if name in occurring]
        if not names:
            paths = ", ".join(str(file.path) for file in everything)
            raise UsageError(f"{paths}: no object is labelled in any image.")
        return names

    def read(self, split: str) -> list[LabelledImage]:
        """Read the images of a split, but those with crowds and those that are not there."""
        read = []
        for file in self.places[split]:
            read += self._read_file(file, split)
        return read

    def _read_file(self, file: CocoFile, split: str) -> list[LabelledImage]:
        objects = defaultdict(list)
        for image, name in file.objects:
            objects[image].append(name)
        finder = ImageFinder([*self._image_folders(file, split), self.folder])
        read = []
        places: dict[Path, str] = {}
        for image in sorted(file.files, key=str):
            name = file.files[image]
            try:
                path = finder.find(name)
            except UsageError as error:
                self.left.add("the image of a label is not there", f"{file.path.name}: {error}")
                continue
            if path in places:
                raise UsageError(
                    f"{file.path}: images {places[path]!r} and {name!r} are one file, {path}, so "
                    "its objects stand in two places. Leave one of them."
                )
            places[path] = name
            if image in file.crowded:
                self.left.add(CROWDED, path.name, harmless=True)
                self.left_out.add(path)
                continue
            read.append(LabelledImage(path, tuple(objects[image]), file.path))
        return read

    def _image_folders(self, file: CocoFile, split: str) -> list[Path]:
        """Where the images of a file are, the likeliest first."""
        stem = file.path.stem.removeprefix("instances_")
        home = self.folder
        places = [home / stem, home / "images" / stem, home / "images" / split, home / split]
        # FiftyOne: data beside labels.json
        places += [file.path.parent, home / "images", home / "data"]
        return [place for place in places if place.is_dir()]


def find_coco(folder: Path, left: Leftovers) -> CocoLabels | None:
    """Find labels in the form of COCO; None if the folder has none."""
    files: dict[str, list[CocoFile]] = {}
    for pattern in COCO_PLACES:
        for path in sorted(folder.glob(pattern)):
            if path.name.startswith(OTHER_KINDS):
                continue
            try:
                content = read_json(path)
            except UsageError:
                if path.match(OWN_NAME):
                    raise
                continue  # what else it may be is read, and its faults are named, elsewhere
            if isinstance(content, dict) and content.keys() >= COCO_FIELDS:
                files.setdefault(split_of_file(path, folder), []).append(CocoFile(path, content))
    return CocoLabels(folder, files, left) if files else None
