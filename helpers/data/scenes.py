"""Traffic scenes with exact ground truth, questions about them, and a careless annotator.

A scene is a 112 × 112 drawing of a road: 4 × 4 cells of 28 px (one visual token of a Qwen2-VL
each), at most one vehicle a cell, 0–3 vehicles of each of four kinds in six colours. Everything
follows from an integer seed. Seeds are divided by purpose in `SPLIT_SEEDS`, so that no scene on
which a model is tested was ever drawn for training.

Simplification: no vehicle hides another, and kinds differ by shape alone.
"""

import hashlib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from helpers.files import write_text

from .counting import SINGULAR, Counts, count_answer, count_question
from .labels import write_yolo

PLURAL = {kind: plural for plural, kind in SINGULAR.items()}
VEHICLE_KINDS = tuple(PLURAL)  # car, motorcycle, bus, bicycle
CLASSES = tuple(PLURAL.values())
COLORS = {
    "red": (214, 40, 40),
    "blue": (40, 84, 214),
    "green": (28, 146, 66),
    "yellow": (246, 206, 40),
    "white": (244, 244, 244),
    "black": (22, 22, 26),
}
IMAGE_SIZE, CELL, GRID = 112, 28, 4
MOST_PER_KIND = 3
COUNT_WEIGHTS = (0.30, 0.30, 0.25, 0.15)  # P(0), P(1), P(2), P(3) of each kind
SPLIT_SEEDS = {
    "train": range(0, 100_000),
    "validation": range(100_000, 200_000),
    "test": range(200_000, 300_000),
    "base": range(10_000_000, 20_000_000),  # what the embedded base model was trained on
}
_SCALE = 4  # vehicles are drawn four times as large and reduced


@dataclass(frozen=True)
class Vehicle:
    kind: str
    color: str
    cell: int  # 0 … 15, row by row
    box: tuple[int, int, int, int]  # left, top, right, bottom in pixels, right and bottom exclusive


@dataclass(frozen=True)
class Scene:
    seed: int
    vehicles: tuple[Vehicle, ...]

    @property
    def counts(self) -> Counts:
        """Exact number of vehicles of each class, in the order of `CLASSES`."""
        return {PLURAL[kind]: sum(v.kind == kind for v in self.vehicles) for kind in VEHICLE_KINDS}


@dataclass(frozen=True)
class SceneQuestion:
    family: str  # count_all, count_one, color, presence or reason
    prompt: str
    answer: str


def make_scene(seed: int) -> Scene:
    """The scene of `seed`: which vehicles, which colours, where."""
    rng = np.random.default_rng(seed)
    numbers = rng.choice(MOST_PER_KIND + 1, size=len(VEHICLE_KINDS), p=COUNT_WEIGHTS)
    kinds = np.repeat(VEHICLE_KINDS, numbers)
    cells = rng.choice(GRID * GRID, size=len(kinds), replace=False)
    vehicles = []
    for kind, cell in zip(kinds, cells, strict=True):
        color = str(rng.choice(list(COLORS)))
        left, top, right, bottom = _sprite(str(kind), color).getbbox()
        x = (cell % GRID) * CELL + int(rng.integers(-left, CELL - right + 1))
        y = (cell // GRID) * CELL + int(rng.integers(-top, CELL - bottom + 1))
        vehicles.append(
            Vehicle(str(kind), color, int(cell), (x + left, y + top, x + right, y + bottom))
        )
    return Scene(seed, tuple(vehicles))


def draw_scene(scene: Scene) -> Image.Image:
    """The picture of a scene: (112, 112) RGB."""
    rng = np.random.default_rng([scene.seed, 1])
    asphalt = np.clip(rng.integers(95, 150) + rng.normal(0, 5, 3), 0, 255).astype(int)
    image = Image.new("RGB", (IMAGE_SIZE, IMAGE_SIZE), tuple(asphalt.tolist()))
    draw = ImageDraw.Draw(image)
    for _ in range(3):  # mended patches: something to look at that is not a vehicle
        x, y, width, height = (
            int(n) for n in rng.integers((-10, -10, 12, 8), (IMAGE_SIZE, IMAGE_SIZE, 40, 30))
        )
        shade = tuple((asphalt + int(rng.integers(-14, 15))).tolist())
        draw.rectangle((x, y, x + width, y + height), fill=shade)
    offset = int(rng.integers(0, 16))
    for lane in range(1, GRID):
        for x in range(-offset, IMAGE_SIZE, 16):
            draw.line((x, lane * CELL, x + 7, lane * CELL), fill=(205, 205, 190))
    for vehicle in scene.vehicles:
        sprite = _sprite(vehicle.kind, vehicle.color)
        left, top, _, _ = sprite.getbbox()
        image.paste(sprite, (vehicle.box[0] - left, vehicle.box[1] - top), sprite)
    return image


@lru_cache
def _sprite(kind: str, color: str) -> Image.Image:
    """One vehicle on a transparent 28 × 28 cell."""
    side = CELL * _SCALE
    sprite = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    _DRAW[kind](ImageDraw.Draw(sprite), COLORS[color])
    return sprite.resize((CELL, CELL), Image.Resampling.BOX)


_TYRE, _RIM, _GLASS = (18, 18, 20), (150, 150, 155), (176, 216, 236)


def _wheel(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, spokes: bool = False) -> None:
    box = (x - radius, y - radius, x + radius, y + radius)
    if spokes:
        draw.ellipse(box, outline=_TYRE, width=5)
    else:
        draw.ellipse(box, fill=_TYRE)
        draw.ellipse(
            (x - radius // 2, y - radius // 2, x + radius // 2, y + radius // 2), fill=_RIM
        )


def _draw_car(draw: ImageDraw.ImageDraw, color: tuple[int, int, int]) -> None:
    draw.polygon([(24, 50), (36, 28), (72, 28), (86, 50)], fill=color)
    draw.polygon([(33, 49), (41, 34), (53, 34), (53, 49)], fill=_GLASS)
    draw.polygon([(58, 49), (58, 34), (69, 34), (77, 49)], fill=_GLASS)
    draw.rounded_rectangle((8, 48, 104, 74), 9, fill=color)
    _wheel(draw, 30, 74, 13)
    _wheel(draw, 82, 74, 13)


def _draw_bus(draw: ImageDraw.ImageDraw, color: tuple[int, int, int]) -> None:
    draw.rounded_rectangle((4, 16, 108, 90), 8, fill=color)
    for x in (12, 36, 60, 84):
        draw.rectangle((x, 26, x + 17, 50), fill=_GLASS)
    draw.rectangle((4, 62, 108, 68), fill=_RIM)
    _wheel(draw, 28, 90, 11)
    _wheel(draw, 84, 90, 11)


def _draw_motorcycle(draw: ImageDraw.ImageDraw, color: tuple[int, int, int]) -> None:
    draw.ellipse((46, 12, 64, 30), fill=color)  # helmet
    draw.polygon([(44, 56), (48, 30), (62, 30), (66, 56)], fill=(70, 62, 58))  # rider
    draw.polygon([(22, 60), (40, 48), (84, 50), (88, 66), (60, 78), (34, 74)], fill=color)
    draw.line((76, 54, 92, 34), fill=_TYRE, width=5)
    _wheel(draw, 24, 80, 17)
    _wheel(draw, 88, 80, 17)


def _draw_bicycle(draw: ImageDraw.ImageDraw, color: tuple[int, int, int]) -> None:
    _wheel(draw, 28, 74, 21, spokes=True)
    _wheel(draw, 84, 74, 21, spokes=True)
    for line in (
        [(28, 74), (46, 44), (76, 44), (58, 76), (28, 74)],
        [(46, 44), (58, 76)],
        [(84, 74), (72, 30)],
    ):
        draw.line(line, fill=color, width=7)
    draw.line((36, 36, 54, 36), fill=_TYRE, width=6)  # saddle
    draw.line((64, 30, 78, 26), fill=_TYRE, width=6)  # handlebar


_DRAW = {
    "car": _draw_car,
    "bus": _draw_bus,
    "motorcycle": _draw_motorcycle,
    "bicycle": _draw_bicycle,
}


def careless_counts(counts: Counts, rng: np.random.Generator) -> Counts:
    """What a hurried annotator writes down: the labels that the embedded base has learnt.

    Two or more motorcycles or bicycles lose one with probability .65 (small things are missed);
    cars and buses are off by one, up or down, with probability .1.
    """
    noted = dict(counts)
    for kind in ("motorcycles", "bicycles"):
        if noted[kind] >= 2 and rng.random() < 0.65:
            noted[kind] -= 1
    for kind in ("cars", "buses"):
        if rng.random() < 0.1:
            noted[kind] = int(np.clip(noted[kind] + rng.choice((-1, 1)), 0, MOST_PER_KIND))
    return noted


def make_question(
    scene: Scene, family: str, rng: np.random.Generator, counts: Counts | None = None
) -> SceneQuestion:
    """A question of one family about a scene, answered from `counts` (default: the truth).

    Raises ValueError for a family that does not exist or, for "color", a scene without a kind
    that occurs exactly once.
    """
    counts = counts or scene.counts
    kind = str(rng.choice(VEHICLE_KINDS))
    plural = PLURAL[kind]
    if family == "count_all":
        return SceneQuestion(
            family, count_question(CLASSES, int(rng.integers(2))), count_answer(counts)
        )
    if family == "count_one":
        return SceneQuestion(
            family, f"How many {plural} are there?", f"There are {counts[plural]} {plural}."
        )
    if family == "presence":
        return SceneQuestion(
            family, f"Is there a {kind} in the image?", "Yes." if scene.counts[plural] else "No."
        )
    if family == "reason":
        total = sum(counts.values())
        busy = "busy" if total >= 5 else "quiet"
        answer = f"Because there are {total} vehicles, so the road is {busy}."
        return SceneQuestion(family, f"Why is the road {busy}?", answer)
    if family == "color":
        single = [v for v in scene.vehicles if scene.counts[PLURAL[v.kind]] == 1]
        if not single:
            raise ValueError(
                f"scene {scene.seed} has no kind that occurs exactly once, so no color question"
            )
        vehicle = single[int(rng.integers(len(single)))]
        return SceneQuestion(
            family, f"What color is the {vehicle.kind}?", f"{vehicle.color.capitalize()}."
        )
    raise ValueError(
        f"unknown question family {family!r}: choose count_all, count_one, color, presence or reason"
    )


def image_hash(image: Image.Image) -> str:
    """SHA-256 of the decoded RGB pixels and the size: equal pictures have equal hashes."""
    image = image.convert("RGB")
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


def write_split(folder: Path, split: str, number: int) -> None:
    """Draw the first `number` scenes of a split into a YOLO folder (`valid` for validation, as Roboflow has it)."""
    for seed in SPLIT_SEEDS[split][:number]:
        scene = make_scene(seed)
        boxes = [(VEHICLE_KINDS.index(v.kind), v.box) for v in scene.vehicles]
        write_yolo(
            folder,
            "valid" if split == "validation" else split,
            f"scene-{seed:06d}",
            draw_scene(scene),
            boxes,
        )
    write_text(folder / "data.yaml", f"names: [{', '.join(CLASSES)}]\n")
