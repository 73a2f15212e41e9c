"""Traffic scenes with exact ground truth.

A scene is a 112 × 112 drawing of a road: 4 × 4 cells of 28 px (one visual token of a Qwen2-VL
each), at most one vehicle a cell, 0–3 vehicles of each of four kinds in six colours. Everything
follows from an integer seed. Seeds are divided by purpose in `SPLIT_SEEDS`, so that no scene on
which a model is tested was ever drawn for training. The shapes are in `vehicles.toml`.

Simplification: no vehicle hides another, and kinds differ by shape alone.
"""

import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from .counting import SINGULAR, Counts

PLURAL = {kind: plural for plural, kind in SINGULAR.items()}
VEHICLE_KINDS = tuple(PLURAL)  # car, motorcycle, bus, bicycle
CLASSES = tuple(PLURAL.values())
# 4 × 4 cells, each as large as one visual token of a Qwen2-VL
IMAGE_SIZE = 112
CELL = 28
GRID = 4
MOST_PER_KIND = 3
COUNT_WEIGHTS = (0.30, 0.30, 0.25, 0.15)  # P(0), P(1), P(2), P(3) of each kind
SPLIT_SEEDS = {
    "train": range(100_000),
    "validation": range(100_000, 200_000),
    "test": range(200_000, 300_000),
    "base": range(10_000_000, 20_000_000),  # what the embedded base model was trained on
}

_LOOKS = tomllib.loads(Path(__file__).with_name("vehicles.toml").read_text(encoding="utf-8"))
COLORS = _LOOKS["body_colors"]
LINE_COLOR = (205, 205, 190)  # of the lanes
_SCALE = 4  # vehicles are drawn four times as large and reduced


class Box(NamedTuple):
    """Where a vehicle is, in pixels; right and bottom exclusive."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True)
class Vehicle:
    kind: str
    color: str
    cell: int  # 0 … 15, row by row
    box: Box


@dataclass(frozen=True)
class Scene:
    seed: int
    vehicles: tuple[Vehicle, ...]

    @property
    def counts(self) -> Counts:
        """Exact number of vehicles of each class, in the order of `CLASSES`."""
        kinds = [vehicle.kind for vehicle in self.vehicles]
        return {PLURAL[kind]: kinds.count(kind) for kind in VEHICLE_KINDS}


def make_scene(seed: int) -> Scene:
    """Draw lots for the scene of `seed`: which vehicles, which colours, where."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(MOST_PER_KIND + 1, size=len(VEHICLE_KINDS), p=COUNT_WEIGHTS)
    kinds = np.repeat(VEHICLE_KINDS, numbers).tolist()
    cells = rng.choice(GRID * GRID, size=len(kinds), replace=False)
    vehicles = []
    for kind, cell in zip(kinds, cells, strict=True):
        color = str(rng.choice(list(COLORS)))
        # Anywhere in its cell, as long as all of the drawing is inside.
        drawn = Box(*_sprite(kind, color).getbbox())
        right = int(rng.integers(-drawn.left, CELL - drawn.right + 1))
        down = int(rng.integers(-drawn.top, CELL - drawn.bottom + 1))
        x = cell % GRID * CELL + right
        y = cell // GRID * CELL + down
        box = Box(
            left=x + drawn.left,
            top=y + drawn.top,
            right=x + drawn.right,
            bottom=y + drawn.bottom,
        )
        vehicles.append(Vehicle(kind, color, int(cell), box))
    return Scene(seed, tuple(vehicles))


def draw_scene(scene: Scene) -> Image.Image:
    """Draw a scene: (112, 112) RGB."""
    # A stream of its own: what is drawn does not depend on how the lots were drawn.
    rng = np.random.default_rng([scene.seed, 1])
    grey = rng.integers(95, 150) + rng.normal(0, 5, 3)
    asphalt = np.clip(grey, 0, 255).astype(int)
    size = (IMAGE_SIZE, IMAGE_SIZE)
    image = Image.new("RGB", size, tuple(asphalt.tolist()))
    draw = ImageDraw.Draw(image)
    _draw_road(draw, asphalt, rng)
    for vehicle in scene.vehicles:
        sprite = _sprite(vehicle.kind, vehicle.color)
        drawn = Box(*sprite.getbbox())
        corner = (vehicle.box.left - drawn.left, vehicle.box.top - drawn.top)
        image.paste(sprite, corner, sprite)
    return image


def _draw_road(
    draw: ImageDraw.ImageDraw,
    asphalt: np.ndarray,
    rng: np.random.Generator,
) -> None:
    # Mended patches: something to look at that is not a vehicle.
    smallest = (-10, -10, 12, 8)  # left, top, width, height
    largest = (IMAGE_SIZE, IMAGE_SIZE, 40, 30)
    for _ in range(3):
        patch = rng.integers(smallest, largest)
        patch[2:] += patch[:2]  # width and height → the lower right corner
        shade = asphalt + int(rng.integers(-14, 15))
        draw.rectangle(patch.tolist(), fill=tuple(shade.tolist()))
    # Dashed lines between the lanes.
    offset = int(rng.integers(0, 16))
    for lane in range(1, GRID):
        y = lane * CELL
        for x in range(-offset, IMAGE_SIZE, 16):
            draw.line((x, y, x + 7, y), fill=LINE_COLOR)


@lru_cache
def _sprite(kind: str, color: str) -> Image.Image:
    """One vehicle on a transparent 28 × 28 cell."""
    side = CELL * _SCALE
    sprite = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(sprite)
    palette = _LOOKS["part_colors"] | {"body": COLORS[color]}
    # Names of colours become colours; what is left are arguments of Pillow.
    for shape in _LOOKS["shapes"][kind]:
        options = dict(shape)
        method = getattr(draw, options.pop("draw"))
        for paint in {"fill", "outline"} & options.keys():
            options[paint] = tuple(palette[options[paint]])
        method(options.pop("at"), **options)
    return sprite.resize((CELL, CELL), Image.Resampling.BOX)
