"""Images beside the records: copied, and reduced to what the model looks at.

A folder with its own images can be moved to Google Drive or to another machine. What is small
enough is copied as it is; what comes with the repository stays there, since every machine has it.
"""

import math
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

from helpers.files import HEIF_SUFFIXES, ROOT, UsageError, file_hash, open_image

from .leftovers import Leftovers

JPEG_QUALITY = 95
# A model may look at less, but people rank answers by these images and see them in the report.
LEAST_SEEN = 448 * 448
DRAWN_SUFFIXES = {".png", ".bmp"}  # without loss: reduced, they stay so
SHIPPED = ROOT / "data"


def copy_images(
    images: Iterable[Path], folder: Path, max_pixels: int | None, left: Leftovers
) -> dict[Path, Path]:
    """Copy images to `folder/images` and return where each one is now, equal files once.

    max_pixels: larger ones are reduced to it (or to LEAST_SEEN), their proportions kept. One that
    cannot be read is among the leftovers and not in the result. The folder of an earlier call is
    replaced at the end, so that images may come from it.
    """
    if max_pixels is not None:
        max_pixels = max(max_pixels, LEAST_SEEN)
    target, half = folder / "images", folder / "images.part"
    shutil.rmtree(half, ignore_errors=True)
    places: dict[Path, Path] = {}
    names: dict[str, str] = {}  # hash → name of its copy
    taken: set[str] = set()
    for image in tqdm(list(dict.fromkeys(images)), "images", leave=False):
        if image.is_relative_to(SHIPPED):
            places[image] = image
            continue
        try:
            content = file_hash(image)
            if content not in names:
                names[content] = _store(image, half, max_pixels, taken)
        except UsageError as error:
            left.add("the image cannot be read", str(error))
            continue
        places[image] = target / names[content]
    shutil.rmtree(target, ignore_errors=True)
    if half.exists():
        half.rename(target)
    return places


def _store(image: Path, folder: Path, max_pixels: int | None, taken: set[str]) -> str:
    """Write one image and return its name, a new one if the name is taken."""
    picture = open_image(image)  # whole: the header may be sound and the rest cut off
    pixels = picture.width * picture.height
    small = max_pixels is None or pixels <= max_pixels
    as_it_is = small and image.suffix.lower() not in HEIF_SUFFIXES
    suffix = image.suffix.lower()
    if not as_it_is:
        suffix = ".png" if suffix in DRAWN_SUFFIXES else ".jpg"
    name = f"{image.stem}{suffix}"
    number = 2
    while name.casefold() in taken:
        name = f"{image.stem}-{number}{suffix}"
        number += 1
    taken.add(name.casefold())
    folder.mkdir(parents=True, exist_ok=True)
    if as_it_is:
        shutil.copyfile(image, folder / name)
    else:
        reduce_image(picture, max_pixels or pixels).save(folder / name, quality=JPEG_QUALITY)
    return name


def reduce_image(image: Image.Image, max_pixels: int) -> Image.Image:
    """The image with at most so many pixels and its proportions; a small one as it is."""
    factor = math.sqrt(max_pixels / (image.width * image.height))
    if factor >= 1:
        return image
    size = (max(1, int(image.width * factor)), max(1, int(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS)


def same_place(path: Path) -> Path:
    """An absolute path without "..", links as they are: the key of `copy_images`."""
    return Path(os.path.abspath(path))
