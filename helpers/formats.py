"""Importers and exporters. First form: folders of images with YOLO labels, as Roboflow exports them.

    data.yaml                   names: [cars, motorcycles, …]
    train/images/*.png          train/labels/*.txt      one line an object: class x y width height
    valid/…  test/…             coordinates relative to the image, centre first

The traffic scenes are kept in the same layout, so that photos of anything take the same path.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import yaml

from helpers.counting import Counts
from helpers.runtime import UsageError

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class CountedImage:
    """An image and the true number of objects of every class in it."""

    path: Path
    counts: Counts
    group: str  # equal for all augmented copies of one photo


def read_classes(folder: Path) -> list[str]:
    """Class names of a YOLO folder, in the order of their numbers. Raises UsageError."""
    path = folder / "data.yaml"
    if not path.exists():
        raise UsageError(f"{path}: no such file. A YOLO folder needs it: export as 'YOLOv8' from Roboflow.")
    try:
        names = (yaml.safe_load(path.read_text(encoding="utf-8")) or {}).get("names")
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError):
        raise UsageError(f"{path}: not YAML with a 'names:' entry. Export the data set again.") from None
    if isinstance(names, dict):  # {0: cars, 1: buses}
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names:
        raise UsageError(f"{path}: 'names:' must list the classes, for example names: [cars, buses].")
    return [str(name) for name in names]


def read_yolo(folder: Path, split: str) -> list[CountedImage]:
    """The images of one split ("train", "valid" or "test") with counts from their label files.

    An empty label file means "no objects"; a missing one is an error, since it would be read as
    zero of everything. Raises UsageError naming file, line and remedy.
    """
    classes = read_classes(folder)
    images_dir, labels_dir = folder / split / "images", folder / split / "labels"
    if not images_dir.is_dir():
        raise UsageError(f"{images_dir}: no such folder. {folder} must hold {split}/images and {split}/labels.")
    paths = sorted(p for p in images_dir.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UsageError(f"{images_dir}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return [CountedImage(p, _count_labels(labels_dir / f"{p.stem}.txt", classes), photo_group(p)) for p in paths]


def evaluation_split(folder: Path) -> str:
    """ "test" if the folder has one, else "valid" (then nothing else may be chosen on it)."""
    return "test" if (folder / "test" / "images").is_dir() else "valid"


def _count_labels(path: Path, classes: list[str]) -> Counts:
    if not path.exists():
        raise UsageError(
            f"{path}: label file is missing. Add it (empty if nothing is to be counted) or drop the image."
        )
    counts = dict.fromkeys(classes, 0)
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        fields = line.split()
        if not fields:
            continue
        if not fields[0].isdecimal() or int(fields[0]) >= len(classes):
            raise UsageError(
                f"{path}:{number}: class {fields[0]!r} is not one of 0 … {len(classes) - 1}. "
                "Correct the line, or add the class to data.yaml."
            )
        if len(fields) < 5:
            raise UsageError(f"{path}:{number}: {len(fields)} fields; a box has 5: class x y width height.")
        counts[classes[int(fields[0])]] += 1
    return counts


def photo_group(path: Path) -> str:
    """`street_jpg.rf.60d1.jpg` → `street_jpg`: Roboflow's augmented copies of one photo share a group."""
    return re.sub(r"\.rf\.[0-9a-f]+$", "", path.stem)


def write_yolo(folder: Path, split: str, name: str, image, boxes: list[tuple[int, tuple[int, ...]]]) -> None:
    """Add one image and its boxes `(class number, (left, top, right, bottom))` to a YOLO folder."""
    images, labels = folder / split / "images", folder / split / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    image.save(images / f"{name}.png", optimize=True)
    width, height = image.size
    lines = []
    for number, (left, top, right, bottom) in boxes:
        x, y, w, h = (
            (left + right) / 2 / width,
            (top + bottom) / 2 / height,
            (right - left) / width,
            (bottom - top) / height,
        )
        lines.append(f"{number} {x:.6f} {y:.6f} {w:.6f} {h:.6f}\n")
    (labels / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
