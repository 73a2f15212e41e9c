"""Small files of labels, as the tools write them."""

import json
from pathlib import Path

from PIL import Image

# Image 1 has two cars and a crowd of persons, image 2 one car; buses never occur
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}],
    "categories": [
        {"id": 7, "name": "car"},
        {"id": 3, "name": "person"},
        {"id": 9, "name": "bus"},
    ],
    "annotations": [
        {"image_id": 1, "category_id": 7, "iscrowd": 0},
        {"image_id": 1, "category_id": 7},
        {"image_id": 1, "category_id": 3, "iscrowd": 1},
        {"image_id": 2, "category_id": 7, "iscrowd": 0},
    ],
}


def coco_content(**change) -> dict:
    return {**COCO, **change}


def write_image(path: Path, number: int = 0) -> None:
    """A small image; another number is another photo."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.new("RGB", (16, 16), (number % 256, number // 256, 0))
    image.save(path, "PNG")


def write_coco(path: Path, images_folder: Path | None = None, number: int = 0, **change) -> None:
    """A file of annotations, and a.jpg and b.jpg in a folder (default: the file's)."""
    folder = images_folder or path.parent
    path.parent.mkdir(parents=True, exist_ok=True)
    for place, name in enumerate(("a.jpg", "b.jpg")):
        write_image(folder / name, number + place)
    path.write_text(json.dumps(coco_content(**change)))


def write_voc(
    path: Path,
    image: str,
    *names: str,
    images: Path | None = None,
    named: str | None = None,
) -> None:
    """An XML file with objects of these names, and its image in a folder (default: the file's)."""
    objects = "".join(
        f"<object><name>{name}</name><difficult>1</difficult></object>" for name in names
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    file = image if named is None else named
    path.write_text(f"<annotation><filename>{file}</filename>{objects}</annotation>")
    write_image((images or path.parent) / image, sum(map(ord, image)))
