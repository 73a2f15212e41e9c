"""The questions and the careless labels with which the embedded base was trained."""

import numpy as np
import pytest

from data.base_questions import careless_counts, make_question
from helpers.data.counting import parse_counts
from helpers.data.scenes import CLASSES, make_scene


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
