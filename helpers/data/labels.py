"""Labelled images: boxes become counts.

YOLO, as Roboflow exports it (the traffic scenes are kept in this layout too):

    data.yaml                   names: [cars, motorcycles, …]
    train/images/*.png          train/labels/*.txt      one line an object: class x y width height
    valid/…  test/…             coordinates relative to the image, centre first

COCO: one JSON with `images`, `annotations`, `categories`; `train/_annotations.coco.json` beside the
images (Roboflow), or `annotations/instances_train.json` and `train/`.
Pascal VOC: one XML an image; beside the images (Roboflow), or `Annotations/`, `JPEGImages/` and
`ImageSets/Main/train.txt`.

Only counts are read from boxes: where a box is and how large is not kept.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import yaml

from helpers.files import UsageError, read_json

from .counting import Counts

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".heic", ".heif"}


@dataclass(frozen=True)
class CountedImage:
    """An image and the true number of objects of every class in it."""

    path: Path
    counts: Counts
    group: str  # equal for all augmented copies of one photo
    # What it was called and asked before; None: see `pairs.py`
    name: str | None = None
    question: str | None = None


def read_counts(
    folder: Path,
    split: str,
    classes: Sequence[str] | None = None,
) -> list[CountedImage]:
    """Read the images of one split with their counts, whichever of three layouts the folder has.

    classes: count only these, in this order (default: all that the labels name). Raises UsageError.
    """
    if (folder / "data.yaml").exists() or (folder / split / "labels").is_dir():
        items = read_yolo(folder, split)
    elif coco := _coco_files(folder, split):
        items = read_coco(*coco)
    elif voc := _voc_files(folder, split):
        items = read_voc(*voc)
    else:
        raise UsageError(
            f"{folder}: no labels of a split {split!r}. Expected YOLO (data.yaml), COCO "
            f"({split}/_annotations.coco.json) or Pascal VOC ({split}/*.xml); "
            "see helpers/data/labels.py."
        )
    return [_keep_classes(item, classes, folder) for item in items] if classes else items


def label_splits(folder: Path) -> list[str]:
    """The splits of a folder for which there are labels in one of the three layouts."""
    splits = []
    for split in ("train", "valid", "test"):
        yolo = (folder / split / "labels").is_dir()
        if yolo or _coco_files(folder, split) or _voc_files(folder, split):
            splits.append(split)
    return splits


def _keep_classes(item: CountedImage, classes: Sequence[str], folder: Path) -> CountedImage:
    unknown = [cls for cls in classes if cls not in item.counts]
    if unknown:
        raise UsageError(
            f"{folder}: no class {', '.join(unknown)}. The labels name {', '.join(item.counts)}."
        )
    return replace(item, counts={cls: item.counts[cls] for cls in classes})


# --- YOLO -----------------------------------------------------------------------------------------


def read_classes(folder: Path) -> list[str]:
    """Read the class names of a YOLO folder, in the order of their numbers. Raises UsageError."""
    path = folder / "data.yaml"
    if not path.exists():
        raise UsageError(
            f"{path}: no such file. A YOLO folder needs it: export as 'YOLOv8' from Roboflow."
        )
    try:
        names = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("names")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        raise UsageError(
            f"{path}: not YAML with a 'names:' entry. Export the data set again."
        ) from None
    # Both forms are in use: [cars, buses] and {0: cars, 1: buses}.
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names:
        raise UsageError(
            f"{path}: 'names:' must list the classes, for example names: [cars, buses]."
        )
    return [str(name) for name in names]


def read_yolo(folder: Path, split: str) -> list[CountedImage]:
    """Read the images of one split ("train", "valid" or "test") with counts from their label files.

    An empty label file means "no objects"; a missing one is an error, since it would be read as
    zero of everything. Raises UsageError naming file, line and remedy.
    """
    classes = read_classes(folder)
    images = folder / split / "images"
    if not images.is_dir():
        raise UsageError(
            f"{images}: no such folder. {folder} must hold {split}/images and {split}/labels."
        )
    items = []
    for path in list_images(images.iterdir(), images):
        labels = folder / split / "labels" / f"{path.stem}.txt"
        items.append(CountedImage(path, _count_labels(labels, classes), photo_group(path)))
    return items


def list_images(files: Iterable[Path], folder: Path) -> list[Path]:
    """List the images among the `files` of a folder, sorted. Raises UsageError if there is none."""
    paths = sorted(path for path in files if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UsageError(
            f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}). Give another folder."
        )
    return paths


def _count_labels(path: Path, classes: list[str]) -> Counts:
    if not path.exists():
        raise UsageError(
            f"{path}: label file is missing. "
            "Add it (empty if nothing is to be counted) or drop the image."
        )
    counts = dict.fromkeys(classes, 0)
    text = path.read_text(encoding="utf-8", errors="replace")
    # One line an object: number of its class, then its box, which is not kept.
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        name = fields[0]
        if not name.isdecimal() or int(name) >= len(classes):
            raise UsageError(
                f"{path}:{number}: class {name!r} is not one of 0 … {len(classes) - 1}. "
                "Correct the line, or add the class to data.yaml."
            )
        if len(fields) < 5:
            raise UsageError(
                f"{path}:{number}: {len(fields)} fields; a box has 5: class x y width height."
            )
        counts[classes[int(name)]] += 1
    return counts


# --- COCO, Pascal VOC -----------------------------------------------------------------------------


def _coco_files(folder: Path, split: str) -> tuple[Path, Path] | None:
    """Find (annotation file, folder of images) in the layouts of Roboflow and of COCO itself."""
    layouts = [(folder / split / "_annotations.coco.json", folder / split)]
    # The files of 2017 are the ones that most people have.
    for name in (split, f"{split}2017"):
        layouts.append((folder / "annotations" / f"instances_{name}.json", folder / name))
    return next((layout for layout in layouts if layout[0].exists()), None)


def read_coco(path: Path, images: Path) -> list[CountedImage]:
    """Read the images of a COCO annotation file, with the counts of each category that occurs.

    A crowd region (`iscrowd`) stands for objects that nobody counted, so the image it is in has no
    true count: such images are left out, and their number is printed. Raises UsageError naming file
    and annotation.
    """
    data = read_json(path)
    try:
        names = {category["id"]: str(category["name"]) for category in data["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in data["images"]}
        objects = [(entry["image_id"], entry["category_id"]) for entry in data["annotations"]]
        crowded = {entry["image_id"] for entry in data["annotations"] if entry.get("iscrowd")}
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not COCO annotations ({error!r} is missing). Export the data set again."
        ) from None
    # COCO names 80 categories; those that never occur would be zeros in every answer.
    occurring = {category for _, category in objects}
    classes = [name for category, name in names.items() if category in occurring]
    counts = {image: dict.fromkeys(classes, 0) for image in files}
    # Crowds are counted in too, but their images are left out below.
    for number, (image, category) in enumerate(objects):
        if image not in counts or category not in names:
            raise UsageError(
                f"{path}: annotation {number} speaks of image {image}, category {category}: "
                "not in the file."
            )
        counts[image][names[category]] += 1
    if crowded:
        print(
            f"{path.name}: {len(crowded)} of {len(files)} images left out: "
            "they have crowd regions, not counts."
        )
    items = []
    for image in sorted(files.keys() - crowded):
        file = images / files[image]
        items.append(CountedImage(file, counts[image], photo_group(file)))
    return items


def _voc_files(folder: Path, split: str) -> tuple[list[Path], Path] | None:
    """Find (XML files, folder of images) in the layouts of Roboflow and of Pascal VOC itself."""
    beside = sorted((folder / split).glob("*.xml"))
    if beside:
        return beside, folder / split
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.exists():
        return None
    files = []
    for line in listed.read_text(encoding="utf-8").splitlines():
        if line.strip():
            files.append(folder / "Annotations" / f"{line.split()[0]}.xml")
    return files, folder / "JPEGImages"


def read_voc(annotations: Sequence[Path], images: Path) -> list[CountedImage]:
    """Read images with the counts of each class that occurs in any of the Pascal VOC files.

    Objects marked `difficult` are there, so they are counted. Raises UsageError naming the file.
    """
    found = []  # (image, names of its objects)
    for path in annotations:
        try:
            root = ElementTree.parse(path).getroot()
        except (OSError, ElementTree.ParseError) as error:
            raise UsageError(
                f"{path}: not a Pascal VOC file ({error}). Export it again or drop the image."
            ) from None
        file = root.findtext("filename")
        names = [node.findtext("name") for node in root.iter("object")]
        if not file or None in names:
            raise UsageError(
                f"{path}: <filename> or the <name> of an object is missing. Export it again."
            )
        found.append((images / file, names))
    # VOC has no list of its classes: they are those that occur.
    classes = sorted({name for _, names in found for name in names})
    items = []
    for path, names in found:
        counts = {cls: names.count(cls) for cls in classes}
        items.append(CountedImage(path, counts, photo_group(path)))
    return items


# --- splits ---------------------------------------------------------------------------------------


def photo_group(path: Path) -> str:
    """Return what the copies of one photo share: `street_jpg.rf.60d1.jpg` → `street_jpg`.

    Roboflow names its augmented copies so.
    """
    return re.sub(r"\.rf\.[0-9a-f]+$", "", path.stem)
