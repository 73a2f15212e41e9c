"""POPE's questions about one's own labelled images."""

from pathlib import Path

import numpy as np
import pytest

from data.base_questions import make_question
from helpers.data import CountedImage, scenes
from helpers.evaluation.official import pope_questions
from helpers.evaluation.official.polling import pope_prompt
from helpers.files import UsageError


def item(name, *present):
    counts = {cls: int(cls in present) for cls in "abcd"}
    return CountedImage(Path(name), counts, name)


ITEMS = [item("1", "a", "b"), item("2", "a", "b"), item("3", "c", "d"), item("4", "c", "d"), item("5", "c", "d"), item("6", "a")]  # fmt: skip


def asked_about(questions, name):
    return [(q.prompt.split()[3], q.label) for q in questions if q.image.stem == name]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("strategy", ["random", "popular", "adversarial"])
def test_polling_is_true_and_half_yes(strategy, seed):
    questions = pope_questions(ITEMS, strategy, per_image=1, seed=seed)
    assert [q.label for q in questions] == ["yes", "no"] * 6 and {q.group for q in questions} == {
        strategy
    }
    counts = {item.path: item.counts for item in ITEMS}
    for q in questions:
        assert (counts[q.image][q.prompt.split()[3]] > 0) == (q.label == "yes")
    assert questions == pope_questions(ITEMS, strategy, per_image=1, seed=seed)
    assert len({q.id for q in questions}) == 12


@pytest.mark.parametrize("seed", range(5))
def test_polling_of_the_image_with_one_object(seed):
    # c and d are in three images each, c seen first; a's only companion is b
    popular = pope_questions(ITEMS, "popular", per_image=1, seed=seed)
    assert asked_about(popular, "6") == [("a", "yes"), ("c", "no")]
    adversarial = pope_questions(ITEMS, "adversarial", per_image=1, seed=seed)
    assert asked_about(adversarial, "6") == [("a", "yes"), ("b", "no")]


def test_polling_never_asks_twice_and_says_what_it_leaves_out(capsys):
    questions = pope_questions(ITEMS, "adversarial", per_image=2)
    assert "1 of 6 images left out" in capsys.readouterr().out  # the sixth has one object only
    for name in "12345":
        assert sorted(word for word, _ in asked_about(questions, name)) == list("abcd")
    with pytest.raises(UsageError, match="no image has 3 objects"):
        pope_questions(ITEMS, "random")
    with pytest.raises(UsageError, match="unknown strategy 'rare'"):
        pope_questions(ITEMS, "rare")


def test_polling_leaves_out_objects_that_never_occur():
    items = [item("1", "a"), item("2", "b")]
    asked = {q.prompt.split()[3] for q in pope_questions(items, "random", per_image=1)}
    assert asked == {"a", "b"}


def test_the_question_is_that_of_the_scenes():
    for seed in range(20):
        question = make_question(scenes.make_scene(seed), "presence", np.random.default_rng(seed))
        kind = question.prompt.split()[3]
        assert kind in scenes.VEHICLE_KINDS and pope_prompt(kind) == question.prompt
    items = [
        CountedImage(Path(f"{seed}"), scenes.make_scene(seed).counts, "") for seed in range(20)
    ]
    words = {q.prompt.removeprefix("Is there a ").removesuffix(" in the image?") for q in pope_questions(items, "random", 1)}  # fmt: skip
    assert words == set(scenes.VEHICLE_KINDS)
    assert pope_prompt("orange") == "Is there an orange in the image?"
