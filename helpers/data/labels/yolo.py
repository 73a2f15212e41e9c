"""Labels in the form of YOLO: a text file an image, a line an object.

The folders of images are those that `data.yaml` names, else they are known by their names:
`train/images`, `images/train`, or `images` without splits. An image in `…/images/…` has its labels
in `…/labels/…`, or beside it.
"""

import math
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from helpers.files import UsageError

from ..image_names import ImageFinder, list_folder_images
from ..leftovers import Leftovers
from ..split_names import split_name
from .counted import LabelledImage, Labels

YAML_FILES = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
NAME_FILES = ("classes.txt", "obj.names")  # a name a line: LabelImg, CVAT
LARGEST_YAML = 2**20  # bytes; a thousand classes take a hundredth of it
MOST_BRACKETS = 1_000  # a list of classes has one; the parser takes minutes for very many
MOST_DIGITS = 9  # of the number of a class
BOX_FIELDS = 5  # class, x, y, width, height
SMALLEST_POLYGON = 7  # class and three points
TOLERANCE = 0.01  # tools round: a share of 1.0000001 is no mistake


class YoloLabels(Labels[Path]):
    """The labels of a folder in the form of YOLO."""

    def __init__(self, folder: Path, images: dict[str, list[Path]], left: Leftovers) -> None:
        """images: the folders of each split's images, or lists of them."""
        super().__init__(folder, images, left)
        self.left_out |= {folder / name for name in NAME_FILES}

    @cached_property
    def classes(self) -> dict[int, str]:
        """The number of each class in the label files, and its name."""
        return read_classes(self.folder)

    @cached_property
    def keypoint_fields(self) -> int:
        """How many fields the key points of an object take; 0 where there are none."""
        path = _yaml_file(self.folder)
        shape = _read_yaml(path).get("kpt_shape") if path else None
        match shape:
            case [int(points), int(values)]:
                return points * values
        return 0

    def class_names(self) -> list[str]:
        return list(self.classes.values())

    def read(self, split: str) -> list[LabelledImage]:
        """Read the images of a split with the objects that their label files list.

        An empty label file means "no objects"; a missing one is an error, since it would be read as
        zero of everything. Raises UsageError naming file, line and remedy.
        """
        read = []
        for path in self._list_images(split):
            label = _label_file(path, self.folder)
            names = self._read_label(label)
            read.append(LabelledImage(path, names, label))
        return read

    def has_any(self) -> bool:
        """Has any image a file of labels?"""
        images = [image for split in self.splits for image in self._list_images(split)]
        return any(_label_file(image, self.folder).is_file() for image in images)

    def _list_images(self, split: str) -> list[Path]:
        """Its images, sorted. Raises UsageError if there is none."""
        paths = []
        # Several folders may make one split; a list names its images one by one
        for place in self.places[split]:
            paths += list_folder_images(place) if place.is_dir() else [place]
        if not paths:
            places = ", ".join(map(str, self.places[split]))
            raise UsageError(f"{places}: holds no image. Correct data.yaml, or put them there.")
        return sorted(dict.fromkeys(paths))

    def _read_label(self, path: Path) -> tuple[str, ...]:
        if not path.is_file():
            raise UsageError(
                f"{path}: label file is missing. "
                "Add it (empty if nothing is to be counted) or drop the image."
            )
        rows: dict[tuple[str, ...], str] = {}
        # With or without the mark that Windows puts before a text
        text = path.read_text(encoding="utf-8-sig", errors="replace")
        for number, line in enumerate(text.splitlines(), start=1):
            fields = tuple(line.split())
            if not fields:
                continue
            try:
                name = self._read_row(fields)
            except UsageError as error:
                raise UsageError(f"{path}:{number}: {error}") from None
            # The same box twice is one object, here as in ultralytics
            if fields in rows:
                self.left.add("a label line that stands twice", f"{path}:{number}", harmless=True)
            rows[fields] = name
        return tuple(rows.values())

    def _read_row(self, fields: Sequence[str]) -> str:
        """The class of an object. Raises UsageError for what is no label of one."""
        name = fields[0].removesuffix(".0")
        # Python reads no number of thousands of digits
        known = name.isdecimal() and len(name) <= MOST_DIGITS and int(name) in self.classes
        if not known:
            numbers = list(self.classes)
            several = f"0 … {numbers[-1]}" if numbers == list(range(len(numbers))) else numbers
            raise UsageError(
                f"class {fields[0]!r} is not one of {several}. "
                "Correct the line, or add the class to data.yaml."
            )
        _check_form(len(fields), self.keypoint_fields)
        # What follows a box are key points, of which those that nobody saw may lie anywhere
        shares = fields[1:BOX_FIELDS] if self.keypoint_fields else fields[1:]
        for text in shares:
            if not _is_share(text):
                raise UsageError(
                    f"{text!r} is no share of the image between 0 and 1. Export the labels again, "
                    "with coordinates relative to the image."
                )
        return self.classes[int(name)]


def _check_form(fields: int, keypoints: int) -> None:
    """Raise UsageError if a line is neither a box nor a polygon, nor has so many key points."""
    if fields < BOX_FIELDS:
        raise UsageError(f"{fields} fields; a box has 5: class x y width height.")
    if fields == BOX_FIELDS:
        return
    if fields == BOX_FIELDS + 1:
        raise UsageError(
            "6 fields: a model's predictions have a confidence behind the box, and are no truth. "
            "Take the labels that people made."
        )
    polygon = fields >= SMALLEST_POLYGON and fields % 2
    if fields != BOX_FIELDS + keypoints and not polygon:
        raise UsageError(
            f"{fields} fields: neither a box (class x y width height) nor a polygon (class and "
            "pairs of x y). With key points, data.yaml needs their kpt_shape."
        )


def _is_share(text: str) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and -TOLERANCE <= value <= 1 + TOLERANCE


def _label_file(image: Path, folder: Path) -> Path:
    """Where the labels of an image are: in `labels` instead of `images`, else beside it."""
    beside = image.with_suffix(".txt")
    parts = list(image.relative_to(folder).parts)
    if "images" not in parts[:-1]:
        return beside
    # The last one, as ultralytics does: the data set itself may be called images
    place = len(parts) - 2 - parts[-2::-1].index("images")
    parts[place] = "labels"
    apart = folder.joinpath(*parts).with_suffix(".txt")
    return apart if apart.is_file() or not beside.is_file() else beside


# --- where the images are -------------------------------------------------------------------------


def find_yolo(folder: Path, left: Leftovers) -> YoloLabels | None:
    """Find labels in the form of YOLO; None if the folder has none."""
    about = _yaml_file(folder)
    apart = [child for child in _folders(folder) if (child / "labels").is_dir()]
    if about is not None and not apart and "names" not in _read_yaml(about):
        about = None  # a file of that name may be about anything
    if about is None and _names_file(folder) is None and not apart:
        return None
    # What data.yaml names says more than the names of folders, where it names a split
    images = _known_places(folder)
    for split, places in _named_places(folder, left).items():
        images.pop("", None)  # the folder as a whole, of which this is a part
        images[split] = places
    labels = YoloLabels(folder, images, left)
    if about is None and not apart and not labels.has_any():
        return None
    if not images:
        raise UsageError(f"{folder}: holds no image. Put them into train/images and valid/images.")
    return labels


def _known_places(folder: Path) -> dict[str, list[Path]]:
    """The folders of images by the names that are in use."""
    places: dict[str, list[Path]] = {}
    # train/images, or train with images and labels side by side; CVAT writes obj_train_data
    for child in _folders(folder):
        name = re.sub(r"^obj_(\w+)_data$", r"\1", child.name)
        images = child / "images" if (child / "images").is_dir() else child
        if split_name(name) and list_folder_images(images):
            places.setdefault(split_name(name), []).append(images)
    if places:
        return places
    # images/train
    images = folder / "images"
    for child in _folders(images):
        if split_name(child.name) and list_folder_images(child):
            places.setdefault(split_name(child.name), []).append(child)
    if places:
        return places
    # No splits at all
    for place in (images, folder):
        if list_folder_images(place):
            return {"": [place]}
    return {}


def _folders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return sorted(child for child in folder.iterdir() if child.is_dir())


def _named_places(folder: Path, left: Leftovers) -> dict[str, list[Path]]:
    """The places that data.yaml names, if they are there and inside the folder."""
    path = _yaml_file(folder)
    if path is None:
        return {}
    about = _read_yaml(path)
    places: dict[str, list[Path]] = {}
    # The keys of ultralytics; each names a folder, a list of images, or several of these
    for key in ("train", "val", "valid", "test"):
        named = about.get(key)
        for name in named if isinstance(named, list) else [named]:
            if not isinstance(name, str):
                continue
            place = _inside(folder, name, str(about.get("path") or ""))
            if place is None:
                left.say(f"{path.name}: {key}: {name} is not in the folder, and not used")
            elif place.suffix == ".txt":
                places.setdefault(split_name(key), []).extend(_listed_images(place, folder))
            else:
                places.setdefault(split_name(key), []).append(place)
    return places


def _inside(folder: Path, name: str, root: str) -> Path | None:
    """The place that a name means, None if there is none in the folder.

    Roboflow writes ../train/images for a folder that is beside data.yaml; ultralytics writes names
    relative to `path`, which is a folder of another machine.
    """
    plain = PurePosixPath(name.replace("\\", "/"))
    parts = [part for part in plain.parts if part not in ("..", ".", "/")]
    if not parts or (plain.is_absolute() and not Path(name).is_relative_to(folder)):
        return None
    if plain.is_absolute():
        return Path(name) if Path(name).exists() else None
    inner = [part for part in PurePosixPath(root.replace("\\", "/")).parts if part != ".."]
    for start in (folder, folder.joinpath(*inner) if inner and inner[0] != "/" else folder):
        place = start.joinpath(*parts)
        if place.exists():
            return place
    return None


def _listed_images(file: Path, folder: Path) -> list[Path]:
    """The images that a text file lists, a path a line, as they were called where it was made."""
    finder = ImageFinder([folder])
    images = []
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            images.append(finder.find(line))
        except UsageError as error:
            raise UsageError(
                f"{file}:{number}: {error} Correct the list, or take it out of data.yaml: then the "
                "folders' names say what the splits are."
            ) from None
    return images


# --- classes --------------------------------------------------------------------------------------


def read_classes(folder: Path) -> dict[int, str]:
    """Read the class names of a YOLO folder, by their numbers. Raises UsageError."""
    path = _yaml_file(folder)
    names_file = _names_file(folder)
    if path is None and names_file is None:
        raise UsageError(
            f"{folder / YAML_FILES[0]}: no such file. A YOLO folder needs it: export as 'YOLOv8' "
            "from Roboflow."
        )
    if path is None:
        lines = names_file.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        names: Any = [line.strip() for line in lines if line.strip()]
        path = names_file
        about = {}
    else:
        about = _read_yaml(path)
        names = about.get("names")
    # Both forms are in use: [cars, buses] and {0: cars, 1: buses}.
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not isinstance(names, dict) or not names:
        raise UsageError(
            f"{path}: 'names:' must list the classes, for example names: [cars, buses]."
        )
    classes = {}
    # A name that is no text would be counted under a name that nobody gave it
    for key, name in names.items():
        number = _class_number(key)
        if number is None:
            raise UsageError(f"{path}: 'names:' has {key!r} where a class number is expected.")
        if not isinstance(name, str) or not name.strip():
            raise UsageError(
                f"{path}: class {number} is {_short(name)}, which is no text. Put its name in "
                "quotes: YAML reads a bare yes, no or 1 as something else."
            )
        classes[number] = name.strip()
    stated = about.get("nc")
    if isinstance(stated, int) and stated != len(names):
        raise UsageError(
            f"{path}: says nc: {stated}, and names {len(names)} classes. Correct one of them."
        )
    return dict(sorted(classes.items()))


def _class_number(key: Any) -> int | None:
    if isinstance(key, int) and not isinstance(key, bool) and key >= 0:
        return key
    is_number = isinstance(key, str) and key.isdecimal() and len(key) <= MOST_DIGITS
    return int(key) if is_number else None


def _short(value: Any) -> str:
    # A list may hold more than could ever be shown
    return f"a {type(value).__name__}" if isinstance(value, list | dict) else repr(value)[:60]


def _yaml_file(folder: Path) -> Path | None:
    return next((folder / name for name in YAML_FILES if (folder / name).is_file()), None)


def _names_file(folder: Path) -> Path | None:
    return next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)


def _read_yaml(path: Path) -> dict[str, Any]:
    """Read a file of YAML. Raises UsageError for one that would grow while it is read."""
    fault = f"{path}: not YAML with a 'names:' entry. Export the data set again."
    if path.stat().st_size > LARGEST_YAML:
        raise UsageError(fault)
    try:
        text = path.read_text(encoding="utf-8-sig")
        if text.count("[") + text.count("{") > MOST_BRACKETS:
            raise UsageError(fault)
        # A few lines of names for parts of other names are a gigabyte when they are put in
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
            raise UsageError(f"{path}: uses YAML's aliases (*name). Write out what they stand for.")
        about = yaml.safe_load(text)
    except UsageError:
        raise
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError):
        raise UsageError(fault) from None
    return about if isinstance(about, dict) else {}
