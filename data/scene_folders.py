"""Scenes as files: a folder of images and YOLO labels, as Roboflow exports it."""

from collections.abc import Sequence
from pathlib import Path

from PIL.Image import Image

from helpers.data.scenes import CLASSES, SPLIT_SEEDS, VEHICLE_KINDS, Box, draw_scene, make_scene
from helpers.files import write_text


def scene_name(seed: int) -> str:
    """The name of a scene's files, without their ending."""
    return f"scene-{seed:06d}"


def write_split(folder: Path, split: str, number: int) -> None:
    """Draw the first `number` scenes of a split into a YOLO folder."""
    yolo_split = "valid" if split == "validation" else split  # Roboflow's name
    for seed in SPLIT_SEEDS[split][:number]:
        scene = make_scene(seed)
        boxes = []
        for vehicle in scene.vehicles:
            boxes.append((VEHICLE_KINDS.index(vehicle.kind), vehicle.box))
        write_yolo(folder, yolo_split, scene_name(seed), draw_scene(scene), boxes)
    write_text(folder / "data.yaml", f"names: [{', '.join(CLASSES)}]\n")


def write_yolo(
    folder: Path,
    split: str,
    name: str,
    image: Image,
    boxes: Sequence[tuple[int, Box]],
) -> None:
    """Add one image and its boxes to a YOLO folder.

    boxes: (class number, box) of each object.
    """
    images, labels = folder / split / "images", folder / split / "labels"
    images.mkdir(parents=True, exist_ok=True)
    labels.mkdir(parents=True, exist_ok=True)
    image.save(images / f"{name}.png", optimize=True)
    lines = []
    for number, box in boxes:
        # Centre and size, as shares of the image.
        x = (box.left + box.right) / 2 / image.width
        y = (box.top + box.bottom) / 2 / image.height
        width = (box.right - box.left) / image.width
        height = (box.bottom - box.top) / image.height
        lines.append(f"{number} {x:.6f} {y:.6f} {width:.6f} {height:.6f}\n")
    (labels / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
