import numpy as np
import pytest
from hypothesis import given, strategies as st

from helpers.data.counting import (
    count_answer,
    count_question,
    edited_counts,
    is_exact,
    is_well_formed,
    parse_counts,
)

CLASSES = ["cars", "motorcycles", "buses", "bicycles"]
TRUTH = {"cars": 2, "motorcycles": 3, "buses": 0, "bicycles": 1}
SENTENCE = "There are 2 cars, 3 motorcycles, 0 buses, 1 bicycles in the image."


def test_answer_and_question_texts():
    assert count_answer(TRUTH) == SENTENCE
    assert (
        count_question(CLASSES)
        == "How many cars, motorcycles, buses and bicycles are in the image?"
    )
    assert count_question(["RBC"], 1) == "Please count the RBC you see."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SENTENCE, TRUTH),
        (
            "There are 2 cars, 3 motorcycles, 0 buss, 1 bicycles in the image.",
            TRUTH,
        ),  # published spelling
        (
            "I see 1 bicycle, 2 Cars, 3 motorcycles and 0 buses",
            TRUTH,
        ),  # other order, case, singular
        ("There are 2 cars, 3 motorcycles, 0 buses in the image.", None),  # a class is missing
        (SENTENCE + " There are 2 cars.", None),  # a class is stated twice
        (
            "There are 2 cars, 3 motorcycles, 0 buses, 1 bicycles, 4 trucks in the image.",
            None,
        ),  # unknown class
        (
            "There are 2 cars, 3 motorcycles, 0 buses, -1 bicycles in the image.",
            {**TRUTH, "bicycles": 1},
        ),
        (
            "There are 2 cars, 3 motorcycles, 0 buses, 1.5 bicycles in the image.",
            None,
        ),  # no whole number
        (
            "2 carsharing places, 3 motorcycles, 0 buses, 1 bicycles",
            None,
        ),  # a longer word is another word
        ("", None),
    ],
)
def test_parser(text, expected):
    assert parse_counts(text, CLASSES) == expected


def test_exact_and_well_formed_are_different_questions():
    assert is_well_formed(SENTENCE, CLASSES) and is_exact(SENTENCE, TRUTH)
    wrong = SENTENCE.replace("3 m", "2 m")
    assert is_well_formed(wrong, CLASSES) and not is_exact(wrong, TRUTH)
    chatty = "Well, " + SENTENCE
    assert not is_well_formed(chatty, CLASSES) and is_exact(chatty, TRUTH)


names = st.lists(
    st.from_regex(r"[A-Z][a-z]{3,8}(-[a-z]{2,4}[a-rt-z])?", fullmatch=True),
    min_size=1,
    max_size=6,
    unique_by=lambda n: n.lower().rstrip("s"),
)


@given(names, st.data())
def test_any_counts_of_any_classes_survive_the_round_trip(classes, data):
    counts = {name: data.draw(st.integers(0, 999_999)) for name in classes}
    assert parse_counts(count_answer(counts), classes) == counts
    assert is_well_formed(count_answer(counts), classes)


def test_class_names_with_spaces():
    counts = {"white blood cells": 2, "blood cells": 7}
    assert parse_counts(count_answer(counts), list(counts)) == counts


def test_edits_are_one_step_within_range_and_balanced():
    rng = np.random.default_rng(0)
    highest = dict.fromkeys(CLASSES, 3)
    steps = []
    for _ in range(2000):
        truth = {cls: int(rng.integers(4)) for cls in CLASSES}
        edited = edited_counts(truth, highest, rng)
        difference = [edited[cls] - truth[cls] for cls in CLASSES]
        assert sum(abs(d) for d in difference) == 1
        assert all(0 <= n <= 3 for n in edited.values())
        steps.append(sum(difference))
    # 2,000 fair directions: standard deviation of the mean 1/√2000 = 0.022
    assert abs(np.mean(steps)) < 0.07


def test_an_edit_that_cannot_be_made_is_an_error():
    with pytest.raises(ValueError, match="can be edited"):
        edited_counts({"cars": 0}, {"cars": 0}, np.random.default_rng(0))
    # at the lower end only "up" is left
    assert edited_counts({"cars": 0}, {"cars": 1}, np.random.default_rng(0)) == {"cars": 1}
