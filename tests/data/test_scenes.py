import itertools

import numpy as np
import pytest
from shipped import TRAFFIC

from helpers.data.counting import parse_counts
from helpers.data.labels import read_yolo
from helpers.data.scenes import (
    CELL,
    CLASSES,
    GRID,
    SPLIT_SEEDS,
    careless_counts,
    draw_scene,
    image_hash,
    make_question,
    make_scene,
    write_split,
)
from helpers.files import open_image


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


def test_no_shipped_picture_is_in_two_splits_or_was_seen_by_the_base():
    hashes = {
        split: {image_hash(open_image(i.path)) for i in read_yolo(TRAFFIC, split)}
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
    for item in read_yolo(tmp_path, "valid"):
        shipped = TRAFFIC / "valid" / "images" / item.path.name
        seed = int(item.path.stem.removeprefix("scene-"))
        assert seed in SPLIT_SEEDS["validation"] and item.counts == make_scene(seed).counts
        difference = np.asarray(open_image(shipped)).astype(int) - np.asarray(open_image(item.path))
        assert np.abs(difference).mean() < 1  # versions of Pillow may differ in a grey level


def test_careless_labels_have_the_stated_rates():
    rng = np.random.default_rng(0)
    truth = {"cars": 1, "motorcycles": 2, "buses": 2, "bicycles": 1}
    noted = [careless_counts(truth, rng) for _ in range(4000)]
    # standard deviation of a rate from 4,000 draws: √(.65 · .35 / 4000) = .0075
    assert np.mean([n["motorcycles"] == 1 for n in noted]) == pytest.approx(0.65, abs=0.03)
    assert all(n["bicycles"] == 1 for n in noted), "a single one is never missed"
    assert np.mean([n["cars"] != 1 for n in noted]) == pytest.approx(0.10, abs=0.02)
    assert np.mean([n["buses"] == 3 for n in noted]) == pytest.approx(0.05, abs=0.02)


def test_question_families_are_answered_truthfully():
    rng = np.random.default_rng(0)
    scene = next(
        s
        for s in map(make_scene, range(100))
        if s.counts["buses"] == 1 and sum(s.counts.values()) > 4
    )
    assert parse_counts(make_question(scene, "count_all", rng).answer, CLASSES) == scene.counts
    for _ in range(20):
        one = make_question(scene, "count_one", rng)
        kind = one.prompt.removeprefix("How many ").removesuffix(" are there?")
        assert one.answer == f"There are {scene.counts[kind]} {kind}."
        presence = make_question(scene, "presence", rng)
        assert presence.answer == (
            "Yes."
            if any(
                scene.counts[c] and c.startswith(presence.prompt.split()[3][:3]) for c in CLASSES
            )
            else "No."
        )
        color = make_question(scene, "color", rng)
        kind = color.prompt.removeprefix("What color is the ").removesuffix("?")
        assert [v.color.capitalize() + "." for v in scene.vehicles if v.kind == kind] == [
            color.answer
        ]
    total = sum(scene.counts.values())
    assert (
        make_question(scene, "reason", rng).answer
        == f"Because there are {total} vehicles, so the road is busy."
    )


def test_impossible_questions_are_errors():
    rng = np.random.default_rng(0)
    empty = next(s for s in map(make_scene, range(1000)) if 1 not in s.counts.values())
    with pytest.raises(ValueError, match="no kind that occurs exactly once"):
        make_question(empty, "color", rng)
    with pytest.raises(ValueError, match="unknown question family"):
        make_question(empty, "weather", rng)
