import hashlib
import itertools

import numpy as np
import pytest
from shipped import TRAFFIC

from data.scene_folders import write_split
from helpers.data import read_counts
from helpers.data.scenes import (
    CELL,
    GRID,
    SPLIT_SEEDS,
    draw_scene,
    make_scene,
)
from helpers.files import open_image


def image_hash(image):
    """Equal pictures have equal hashes."""
    return hashlib.sha256(repr(image.size).encode() + image.convert("RGB").tobytes()).hexdigest()


def test_a_seed_is_a_scene():
    assert make_scene(7) == make_scene(7)
    assert image_hash(draw_scene(make_scene(7))) == image_hash(draw_scene(make_scene(7)))
    assert image_hash(draw_scene(make_scene(7))) != image_hash(draw_scene(make_scene(8)))


def test_vehicles_stand_in_cells_of_their_own_and_boxes_hold_them():
    for seed in range(200):
        scene = make_scene(seed)
        assert (
            len({v.cell for v in scene.vehicles})
            == len(scene.vehicles)
            == sum(scene.counts.values())
        )
        for v in scene.vehicles:
            left, top, right, bottom = v.box
            x, y = (v.cell % GRID) * CELL, (v.cell // GRID) * CELL
            assert x <= left < right <= x + CELL and y <= top < bottom <= y + CELL


def test_the_picture_shows_the_vehicles_and_nothing_else_at_their_places():
    scene = next(s for s in map(make_scene, range(100)) if len(s.vehicles) >= 3)
    full = np.asarray(draw_scene(scene)).astype(int)
    empty = np.asarray(draw_scene(type(scene)(scene.seed, ()))).astype(int)
    changed = np.abs(full - empty).sum(-1) > 0
    inside = np.zeros_like(changed)
    for v in scene.vehicles:
        left, top, right, bottom = v.box
        assert changed[top:bottom, left:right].mean() > 0.2
        inside[top:bottom, left:right] = True
    assert not changed[~inside].any()


def test_splits_do_not_share_a_seed():
    for a, b in itertools.combinations(SPLIT_SEEDS.values(), 2):
        assert max(a.start, b.start) >= min(a.stop, b.stop)


@pytest.mark.heavy(reason="reads all shipped pictures")
def test_no_shipped_picture_is_in_two_splits_or_was_seen_by_the_base():
    hashes = {
        split: {image_hash(open_image(i.path)) for i in read_counts(TRAFFIC, split)}
        for split in ("train", "valid", "test")
    }
    assert [len(h) for h in hashes.values()] == [512, 64, 400]
    for a, b in itertools.combinations(hashes.values(), 2):
        assert not a & b
    start = SPLIT_SEEDS["base"].start
    seen = {image_hash(draw_scene(make_scene(seed))) for seed in range(start, start + 2000)}
    assert not seen & (hashes["train"] | hashes["valid"] | hashes["test"])


def test_shipped_scenes_are_those_of_their_seeds(tmp_path):
    write_split(tmp_path, "validation", 8)
    for item in read_counts(tmp_path, "valid"):
        shipped = TRAFFIC / "valid" / "images" / item.path.name
        seed = int(item.path.stem.removeprefix("scene-"))
        assert seed in SPLIT_SEEDS["validation"] and item.counts == make_scene(seed).counts
        difference = np.asarray(open_image(shipped)).astype(int) - np.asarray(open_image(item.path))
        assert np.abs(difference).mean() < 1  # versions of Pillow may differ in a grey level
