"""One answer at a time against a truth of any kind."""

import pytest
from made_up_tasks import tasks_about

from helpers.evaluation import Rightness
from helpers.files import UsageError

COUNTS = {"cars": 2, "buses": 1}


@pytest.mark.parametrize(
    ("kind", "facts", "right", "wrong", "words"),
    [
        ("counts", COUNTS, "There are 2 cars, 1 buses in the image.", "A car.", "2 cars"),
        ("exact_match", ["red", "dark red"], "Dark red.", "blue", "red"),
        ("yes_no", "Yes, there is.", "yes", "No.", "Yes"),
        ("choice", "B. a dog", "(b)", "A", "B"),
        ("token_f1", "a small red bus", "the red bus", "two cars", "red bus"),
    ],
)
def test_every_kind_judges(tmp_path, kind, facts, right, wrong, words):
    (task,) = tasks_about(tmp_path, ["a"], facts, kind)
    rightness = Rightness([task])
    assert rightness.is_known and rightness.heading
    assert rightness.is_right(task, right) is True and rightness.is_right(task, wrong) is False
    assert words in rightness.truth(task)
    assert rightness.is_right_elsewhere(task, task.question, right) is True


def test_without_a_truth_nothing_is_said(tmp_path):
    known, unknown = (
        *tasks_about(tmp_path, ["a"], "2", "exact_match"),
        *tasks_about(tmp_path, ["b"]),
    )
    some = Rightness([known, unknown])
    assert some.is_right(unknown, "2") is None and some.truth(unknown) is None
    none = Rightness([unknown])
    assert not none.is_known and none.degree(unknown, "x") is None
    assert none.faults(unknown, "x") == frozenset()


def test_another_question_is_judged_where_counts_tell(tmp_path):
    (task,) = tasks_about(tmp_path, ["a"], COUNTS, "counts")
    rightness = Rightness([task])
    assert rightness.is_right_elsewhere(task, "How many cars?", "There are 2 cars.") is True
    assert rightness.is_right_elsewhere(task, "How many cars?", "There are 3 cars.") is False
    assert rightness.is_right_elsewhere(task, "Is there a car?", "Yes.") is None
    (text,) = tasks_about(tmp_path, ["b"], "red", "exact_match")
    assert Rightness([text]).is_right_elsewhere(text, "What else?", "red") is None


def test_several_kinds_are_refused(tmp_path):
    tasks = tasks_about(tmp_path, ["a"], "2", "exact_match")
    tasks += tasks_about(tmp_path, ["b"], "yes", "yes_no")
    with pytest.raises(UsageError, match="several kinds"):
        Rightness(tasks)
