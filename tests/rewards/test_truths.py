"""What each kind of truth says of an answer, by hand."""

import pytest

from helpers.data import TRUTH_KINDS, ask, kind_of
from helpers.files import UsageError
from helpers.rewards import (
    TRUTHS,
    are_right,
    chosen_letter,
    degree_of,
    degrees,
    known_answers,
    reward_of,
    right_share,
)
from helpers.statistics import proportion


def test_every_kind_that_there_is_has_its_line():
    assert {*TRUTHS, "none"} == set(TRUTH_KINDS)


CASES = [
    ("counts", {"cars": 2, "buses": 0}, "There are 2 cars, 1 buses in the image.", 0.75, False),
    ("counts", {"cars": 2}, "There are 2 cars in the image.", 1.0, True),
    ("exact_match", "two", "2.", 1.0, True),
    ("exact_match", ["red", "dark red"], "Dark red!", 1.0, True),
    ("vqa_accuracy", ["cat"] * 2 + ["dog"] * 8, "cat", 0.6, True),
    ("vqa_accuracy", ["cat"] * 1 + ["dog"] * 9, "cat", 0.3, False),
    ("anls", "Main Street", "Main Stret", 1 - 1 / 11, True),
    ("anls", "Main Street", "Elm Avenue", 0.0, False),
    ("token_f1", "a red car and a bus", "red car", 2 * 2 / (2 + 4), True),
    ("token_f1", "because it rains", "the sun", 0.0, False),
    ("choice", "B", "(b)", 1.0, True),
    ("choice", "B. a dog", "a dog", 1.0, True),
    ("choice", "B. a dog", "C", 0.0, False),
    ("yes_no", "Yes", "Yes, there is one.", 1.0, True),
    ("yes_no", "no", "Yes and no.", 0.0, False),
]


@pytest.mark.parametrize(("kind", "truth", "answer", "degree", "right"), CASES)
def test_by_hand(kind, truth, answer, degree, right):
    row = TRUTHS[kind]
    found = row.degree([truth])(None, "", answer, truth).total
    assert found == pytest.approx(degree)
    assert (found >= row.right_from) == right


@pytest.mark.parametrize("kind", TRUTHS)
def test_the_answer_in_words_is_right(kind):
    truth = {"cars": 1} if kind == "counts" else "yes" if kind == "yes_no" else "B. a red dog"
    if kind == "vqa_accuracy":
        truth = ["a cat", *4 * ["a dog"]]
    row = TRUTHS[kind]
    assert row.degree([truth])(None, "", row.answer(truth), truth).total >= row.right_from
    assert row.reward([truth])(None, "", row.answer(truth), truth).total == pytest.approx(1)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"), ("(b)", "B"), ("B. a dog", "B"), ("Answer: B", "B"), ("The answer is C.", "C"),
        ("A dog", None), ("I think A or B", None), ("", None),
    ],
)  # fmt: skip
def test_the_letter_of_a_choice(answer, letter):
    assert chosen_letter(answer) == letter


def test_one_table_judges_one_kind():
    known = ask("Is it?", [], "yes", "yes_no")
    assert kind_of([ask("Why?", []), known]) == "yes_no"
    assert kind_of([ask("Why?", [])]) == "none"
    assert reward_of([ask("Why?", [])]) is None
    assert reward_of([ask("Why?", []), known])(None, "", "Yes!", "yes").total == 1
    with pytest.raises(UsageError, match=r"several kinds.*'Is it\?'.*'Count'"):
        kind_of([known, ask("Count", [], {"cars": 1}, "counts")])


def test_shares_are_of_the_questions_whose_truth_is_known():
    tasks = [ask("1?", [], "a", "exact_match"), ask("2?", []), ask("3?", [], "b", "exact_match")]
    assert right_share(tasks, ["a", "a", "a"]) == proportion(1, 2)
    assert right_share(tasks[1:2], ["a"]) is None


def test_counts_are_rewarded_for_being_right_and_graded_by_how_far():
    tasks = [ask("How many?", [], {"cars": 2}, "counts")]
    assert (reward_of(tasks).__name__, degree_of(tasks).__name__) == ("count_exact", "count_graded")
    assert degrees(tasks, ["There are 3 cars in the image."]).tolist() == [0.5]
    assert are_right(tasks, ["There are 3 cars in the image."]).tolist() == [False]
    assert degree_of([ask("Why?", [])]) is None


def test_a_critic_learns_from_answers_that_are_right_elsewhere():
    truths = ["red", ["blue", "navy"], "Red."]
    tasks = [ask(f"{n}?", [], truth, "exact_match") for n, truth in enumerate(truths)]
    rows = known_answers(tasks, seed=1)
    for task, (first, second, *wrong) in zip(tasks, rows, strict=True):
        assert first == second and are_right([task], [first]).all()
        assert len(wrong) == 2 and not are_right([task, task], wrong).any()
    assert known_answers(tasks, seed=1) == rows
    # nothing that is wrong is known, and nothing at all
    assert known_answers([tasks[0], tasks[2]]) is None
    assert known_answers([*tasks, ask("Why?", [])]) is None
