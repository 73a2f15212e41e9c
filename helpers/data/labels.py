"""Labelled images: boxes become counts, question-answer lists become questions with their answer.

YOLO, as Roboflow exports it (the traffic scenes are kept in this layout too):

    data.yaml                   names: [cars, motorcycles, …]
    train/images/*.png          train/labels/*.txt      one line an object: class x y width height
    valid/…  test/…             coordinates relative to the image, centre first

COCO: one JSON with `images`, `annotations`, `categories`; `train/_annotations.coco.json` beside the
images (Roboflow), or `annotations/instances_train.json` and `train/`.
Pascal VOC: one XML an image; beside the images (Roboflow), or `Annotations/`, `JPEGImages/` and
`ImageSets/Main/train.txt`.
Visual Genome: `question_answers.json` and a folder of `<image id>.jpg`.

Only counts are read from boxes: where a box is and how large is not kept.
"""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from xml.etree import ElementTree

import yaml

from helpers.files import ROOT, UsageError, artifact, file_hash, read_json

from .counting import Counts

IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


@dataclass(frozen=True)
class CountedImage:
    """An image and the true number of objects of every class in it."""

    path: Path
    counts: Counts
    group: str  # equal for all augmented copies of one photo


@dataclass(frozen=True)
class AnsweredQuestion:
    """A question about an image and its true answer."""

    path: Path
    question: str
    answer: str
    group: str
    id: str


def read_classes(folder: Path) -> list[str]:
    """Class names of a YOLO folder, in the order of their numbers. Raises UsageError."""
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
    if isinstance(names, dict):  # {0: cars, 1: buses}
        names = [names[key] for key in sorted(names)]
    if not isinstance(names, list) or not names:
        raise UsageError(
            f"{path}: 'names:' must list the classes, for example names: [cars, buses]."
        )
    return [str(name) for name in names]


def read_counts(
    folder: Path, split: str, classes: Sequence[str] | None = None
) -> list[CountedImage]:
    """The images of one split with their counts, whichever of the three layouts the folder has.

    classes: count only these, in this order (default: all that the labels name). Raises UsageError.
    """
    if (folder / "data.yaml").exists() or (folder / split / "labels").is_dir():
        items = read_yolo(folder, split)
    elif coco := next((p for p in _coco_files(folder, split) if p[0].exists()), None):
        items = read_coco(*coco)
    elif voc := _voc_files(folder, split):
        items = read_voc(*voc)
    else:
        raise UsageError(
            f"{folder}: no labels of a split {split!r}. Expected YOLO (data.yaml), COCO "
            f"({split}/_annotations.coco.json) or Pascal VOC ({split}/*.xml); see helpers/data/labels.py."
        )
    return [_keep_classes(item, classes, folder) for item in items] if classes else items


def _keep_classes(item: CountedImage, classes: Sequence[str], folder: Path) -> CountedImage:
    unknown = [cls for cls in classes if cls not in item.counts]
    if unknown:
        raise UsageError(
            f"{folder}: no class {', '.join(unknown)}. The labels name {', '.join(item.counts)}."
        )
    return replace(item, counts={cls: item.counts[cls] for cls in classes})


def read_yolo(folder: Path, split: str) -> list[CountedImage]:
    """The images of one split ("train", "valid" or "test") with counts from their label files.

    An empty label file means "no objects"; a missing one is an error, since it would be read as
    zero of everything. Raises UsageError naming file, line and remedy.
    """
    classes = read_classes(folder)
    images_dir, labels_dir = folder / split / "images", folder / split / "labels"
    if not images_dir.is_dir():
        raise UsageError(
            f"{images_dir}: no such folder. {folder} must hold {split}/images and {split}/labels."
        )
    paths = _images_in(images_dir)
    return [
        CountedImage(p, _count_labels(labels_dir / f"{p.stem}.txt", classes), photo_group(p))
        for p in paths
    ]


def _images_in(folder: Path) -> list[Path]:
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise UsageError(f"{folder}: holds no image ({', '.join(sorted(IMAGE_SUFFIXES))}).")
    return paths


def evaluation_split(folder: Path) -> str:
    """ "test" if the folder has one, else "valid" (then nothing else may be chosen on it)."""
    return "test" if (folder / "test").is_dir() else "valid"


def held_out_items(data: str | None) -> tuple[Path, str, list[CountedImage]]:
    """Folder, split and images to evaluate on, none of which is in training; `data`: folder, None for notebook 02's.

    Raises UsageError if a photo is in both.
    """
    classes = None
    if data is None:
        source = artifact(
            "preferences/about.json", "notebook 02", lambda: ROOT / "data" / "traffic"
        )
        about = {"data": source, "classes": None} if source.is_dir() else read_json(source)
        data, classes = about["data"], about["classes"]
    folder = ROOT / data
    split = evaluation_split(folder)
    items = read_counts(folder, split, classes)
    assert_no_photo_in_both(read_counts(folder, "train", classes), items)
    return folder, split, items


def _count_labels(path: Path, classes: list[str]) -> Counts:
    if not path.exists():
        raise UsageError(
            f"{path}: label file is missing. Add it (empty if nothing is to be counted) or drop the image."
        )
    counts = dict.fromkeys(classes, 0)
    for number, line in enumerate(
        path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
    ):
        fields = line.split()
        if not fields:
            continue
        if not fields[0].isdecimal() or int(fields[0]) >= len(classes):
            raise UsageError(
                f"{path}:{number}: class {fields[0]!r} is not one of 0 … {len(classes) - 1}. "
                "Correct the line, or add the class to data.yaml."
            )
        if len(fields) < 5:
            raise UsageError(
                f"{path}:{number}: {len(fields)} fields; a box has 5: class x y width height."
            )
        counts[classes[int(fields[0])]] += 1
    return counts


def _coco_files(folder: Path, split: str) -> list[tuple[Path, Path]]:
    """(annotation file, folder of images) in the layouts of Roboflow and of COCO itself."""
    names = (f"instances_{split}.json", f"instances_{split}2017.json")
    return [(folder / split / "_annotations.coco.json", folder / split)] + [
        (
            folder / "annotations" / name,
            folder / name.removeprefix("instances_").removesuffix(".json"),
        )
        for name in names
    ]


def read_coco(path: Path, images: Path, keep_crowded: bool = False) -> list[CountedImage]:
    """The images of a COCO annotation file with the number of objects of each category that occurs.

    A crowd region (`iscrowd`) stands for objects that nobody counted, so it is never counted, and the
    image it is in has no true count: such images are left out, and their number is printed, unless
    `keep_crowded`. Raises UsageError naming file and annotation.
    """
    data = read_json(path)
    try:
        names = {category["id"]: str(category["name"]) for category in data["categories"]}
        files = {image["id"]: str(image["file_name"]) for image in data["images"]}
        boxes = [
            (a["image_id"], a["category_id"], bool(a.get("iscrowd", 0)))
            for a in data["annotations"]
        ]
    except (KeyError, TypeError) as error:
        raise UsageError(
            f"{path}: not COCO annotations ({error!r} is missing). Export the data set again."
        ) from None
    occurring = {category for _, category, _ in boxes}
    used = [number for number in names if number in occurring]
    counts: dict[int, Counts] = {image: {names[number]: 0 for number in used} for image in files}
    crowded = {image for image, _, crowd in boxes if crowd}
    for number, (image, category, crowd) in enumerate(boxes):
        if image not in counts or category not in names:
            raise UsageError(
                f"{path}: annotation {number} speaks of image {image}, category {category}: not in the file."
            )
        if not crowd:
            counts[image][names[category]] += 1
    if crowded and not keep_crowded:
        print(
            f"{path.name}: {len(crowded)} of {len(files)} images left out: they have crowd regions, not counts."
        )
        files = {image: file for image, file in files.items() if image not in crowded}
    return [
        CountedImage(images / file, counts[image], photo_group(Path(file)))
        for image, file in sorted(files.items())
    ]


def _voc_files(folder: Path, split: str) -> tuple[list[Path], Path] | None:
    """(XML files, folder of images) in the layouts of Roboflow and of Pascal VOC itself."""
    if beside := sorted((folder / split).glob("*.xml")):
        return beside, folder / split
    listed = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not listed.exists():
        return None
    names = [
        line.split()[0] for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()
    ]
    return [folder / "Annotations" / f"{name}.xml" for name in names], folder / "JPEGImages"


def read_voc(annotations: Sequence[Path], images: Path) -> list[CountedImage]:
    """Images with the number of objects of each class that occurs in any of the Pascal VOC files.

    Objects marked `difficult` are there, so they are counted. Raises UsageError naming the file.
    """
    found: list[tuple[Path, list[str]]] = []
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
    classes = sorted({name for _, names in found for name in names})
    return [
        CountedImage(path, {cls: names.count(cls) for cls in classes}, photo_group(path))
        for path, names in found
    ]


def read_visual_genome(path: Path, images: Path) -> list[AnsweredQuestion]:
    """The questions of Visual Genome's `question_answers.json`; one image's questions share a group.

    Krishna et al. 2017, arXiv 1602.07332. Raises UsageError naming file and entry, and the first image
    that is missing.
    """
    items = []
    for number, entry in enumerate(read_json(path)):
        try:
            for qa in entry["qas"]:
                image = images / f"{qa['image_id']}.jpg"
                question, answer = qa["question"].strip(), qa["answer"].strip()
                items.append(
                    AnsweredQuestion(
                        image, question, answer, str(qa["image_id"]), f"vg-{qa['qa_id']}"
                    )
                )
        except (KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"{path}: entry {number} is not Visual Genome's ({error!r}). Download it again."
            ) from None
    if missing := next((item.path for item in items if not item.path.exists()), None):
        raise UsageError(
            f"{missing}: no such image. Put Visual Genome's images into one folder and name it."
        )
    return items


def photo_group(path: Path) -> str:
    """`street_jpg.rf.60d1.jpg` → `street_jpg`: Roboflow's augmented copies of one photo share a group."""
    return re.sub(r"\.rf\.[0-9a-f]+$", "", path.stem)


def one_photo_groups(paths: Sequence[Path], groups: Sequence[str]) -> list[str]:
    """Groups in which equal files are one photo too: two groups that share a file become one."""
    first: dict[str, str] = {}
    same = {group: group for group in groups}

    def representative(group: str) -> str:
        while same[group] != group:
            group = same[group]
        return group

    for path, group in zip(paths, groups, strict=True):
        other = first.setdefault(file_hash(path), group)
        same[representative(group)] = representative(other)
    return [representative(group) for group in groups]


def split_photos(items: Sequence[CountedImage], share: float, seed: int = 0) -> tuple[list, list]:
    """Two parts of which the second has about `share` of the photos; all copies of a photo stay together.

    Copies are known by Roboflow's file names and by equal content. Works for `AnsweredQuestion` too.
    """
    groups = one_photo_groups([item.path for item in items], [item.group for item in items])
    photos = sorted(set(groups))
    second = set(random.Random(seed).sample(photos, round(share * len(photos))))
    parts = (
        [item for item, group in zip(items, groups, strict=True) if group not in second],
        [item for item, group in zip(items, groups, strict=True) if group in second],
    )
    assert_no_photo_in_both(*parts)
    return parts


def assert_no_photo_in_both(*splits: Iterable[CountedImage]) -> None:
    """Raises UsageError naming two files if a photo, or a copy of it, is in more than one split."""
    seen: dict[str, tuple[int, Path]] = {}
    for number, items in enumerate(splits):
        for item in items:
            for key in (item.group, file_hash(item.path)):
                split, path = seen.setdefault(key, (number, item.path))
                if split != number:
                    raise UsageError(
                        f"{item.path} and {path} are copies of one photo (equal content, or names that differ only "
                        "by Roboflow's suffix) in two splits. Move them to one side, or rename different photos."
                    )


def write_yolo(
    folder: Path, split: str, name: str, image, boxes: list[tuple[int, tuple[int, ...]]]
) -> None:
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
