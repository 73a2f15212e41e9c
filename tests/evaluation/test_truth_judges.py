"""What is measured of answers whose truth is an answer, people's answers, or not known."""

from pathlib import Path

import numpy as np
import pytest
from shipped import TRAFFIC

from helpers.data import ask, read_prepared
from helpers.evaluation import (
    TaskResult,
    binary_measures,
    describe_sight,
    describe_unreadable,
    judges,
)
from helpers.evaluation.exam import ExamResult, exam_metrics, exam_rows
from helpers.evaluation.paired import compare_policies
from helpers.files import UsageError
from helpers.statistics import proportion

IMAGE = TRAFFIC / "valid" / "images" / "scene-100000.png"


def asked(*truths, kind="exact_match"):
    """A question with each truth, about an image of its own."""
    tasks = []
    for number, truth in enumerate(truths):
        tasks.append(ask(f"What is {number}?", [Path(f"{number}.png")], truth, kind))
    return tasks


def test_answers_are_compared_with_their_own_truth():
    judge = judges(asked("red", ["blue", "navy"], "green"))
    result = TaskResult(judge, ["Red.", "navy", "blue"])
    assert result.right.tolist() == [True, True, False]
    assert result.right_share == proportion(2, 3) and [*result.values] == ["right"]
    assert judge.expected == ["red", "blue", "green"] and judge.short == judge.tasks
    assert judge.others == [] and judge.polls("random", 9) == [] and judge.errors(["a"]) == {}


def test_a_degree_is_measured_beside_right_and_wrong():
    judge = judges(asked("a red car on a road", "two dogs", kind="token_f1"))
    result = TaskResult(judge, ["red car", "cats"])
    right, degree = judge.measures
    assert (right.short, degree.short) == ("right", "token_f1")
    # 2 shared words of 2 and 4 (articles do not count): 2 · 2 / 6
    assert result.values["token_f1"] == pytest.approx([4 / 6, 0])
    assert result.right.tolist() == [True, False]
    assert binary_measures(judge) == [right]
    assert judge.short == []  # answers of five words are not short


def test_without_a_truth_nothing_is_measured():
    judge = judges(asked(None, None, kind="none"))
    assert judge.measures == () and judge.chance is None and judge.expected == []
    assert TaskResult(judge, ["a", "b"]).values == {} and judge.details(["a", "b"]) == []
    assert judge.short == []


def test_questions_without_a_known_answer_are_left_out_and_counted(capsys):
    judge = judges([*asked("red"), *asked(None, None, kind="none")])
    assert len(judge.tasks) == 1
    assert "2 of 3 questions have no known answer and are left out here." in capsys.readouterr().out


def test_truths_of_several_kinds_are_refused():
    with pytest.raises(UsageError, match="several kinds"):
        judges([*asked("red"), *asked("yes", kind="yes_no")])


def test_the_judge_of_counts_asks_what_was_not_trained():
    judge = judges(read_prepared(TRAFFIC).tasks("valid")[:8])
    assert [task.kind for task in judge.others] == ["exact_match"] * 8
    assert all(task.facts in ("yes", "no", "Yes.", "No.") for task in judge.short)
    titles = [title for title, _ in judge.details(judge.expected, judge.others and ["no"] * 8)]
    assert titles == ["class by class", "one class: texts", "one class: hallucination (CHAIR)"]
    assert len(judge.polls("random", 8)) >= 8


@pytest.mark.parametrize(
    "truths",
    [
        [{"cars": 0}, {"cars": 1}],
        [{"cars": 1, "buses": 2}, {"cars": 3, "buses": 1}],  # all of them in every image
        [{"cars": 0, "buses": 0}, {"cars": 1, "buses": 0}],  # one class that occurs
        [{"cars": 0, "buses": 0}],
    ],
)
def test_where_no_image_lacks_what_others_show_nothing_is_polled(capsys, truths):
    tasks = [ask("How many?", [IMAGE], truth, "counts") for truth in truths]
    assert judges(tasks).polls("popular", 2) == []
    assert "POPE is left out" in capsys.readouterr().out


def exam(judge, greedy):
    result = TaskResult(judge, greedy)
    other = TaskResult(judge, ["?"] * len(greedy), "shuffled")
    return ExamResult(result, (result, other), other, other, [], 1.0)


def test_an_exam_of_reference_answers_by_hand():
    truths = [f"word{number}" for number in range(20)]
    judge = judges(asked(*truths))
    examined = {"base": exam(judge, ["no"] * 20), "dpo/a": exam(judge, truths)}
    head, base, after = exam_rows(examined)
    assert head == ["model", "right, greedy", "sampled, 2 seeds", "images shuffled", "images blank",
                    "seconds"]  # fmt: skip
    assert base[1].startswith("0.000") and after[1].startswith("1.000")
    metrics = exam_metrics(examined)
    assert [metric.name for metric in metrics] == ["right", "right, sampled", "heuristic"]
    # right in one of two seeds
    assert metrics[1].values["dpo/a"].tolist() == [0.5] * 20
    rows = compare_policies(metrics, [task.photo for task in judge.tasks])
    assert (rows[0].fixed, rows[0].broken, rows[0].direction) == (20, 0, 1)


@pytest.mark.parametrize(
    ("reward", "circular"),
    [("exact_match", True), ("exact_match+clip", True), ("clip", False), (None, False)],
)
def test_a_policy_that_was_trained_on_its_judge_is_marked(reward, circular):
    judge = judges(asked("a", "b"))
    examined = {"base": exam(judge, ["a", "b"]), "ppo/a": exam(judge, ["a", "b"])}
    rows = compare_policies(exam_metrics(examined), ["1", "2"], {"ppo/a": reward})
    assert rows[0].circular == circular and not rows[-1].circular


def test_sight_without_a_chance():
    right, shuffled = proportion(90, 100), proportion(40, 100)
    said = describe_sight(right, shuffled, None)
    assert "falls by 0.500" in said and "without looking" in said
    blind = describe_sight(right, proportion(88, 100), None)
    assert blind == "it cannot be shown that the answers depend on the image"


def test_stated_minus_true_is_nan_where_nothing_is_stated():
    tasks = [ask("How many?", [IMAGE], {"cars": 1, "buses": n}, "counts") for n in (0, 2)]
    errors = judges(tasks).errors(["There are 3 cars, 0 buses in the image.", "many"])
    assert errors["cars"][0] == 2 and errors["buses"][0] == 0
    assert np.isnan(errors["cars"][1]) and np.isnan(errors["buses"][1])


def test_a_base_that_cannot_read_is_named_with_one_that_can():
    tasks = [ask("How many?", [IMAGE], {"cars": 1}, "counts") for _ in range(10)]
    (said,) = describe_unreadable(tasks, ["blue blue"] * 9 + ["There are 1 cars."], "tiny")
    assert "'tiny' cannot read these images: 0.900" in said and "smolvlm-256m" in said
    # wrong counts are counts
    assert describe_unreadable(tasks, ["There are 7 cars in the image."] * 10, "tiny") == []
    assert describe_unreadable(asked("red"), ["?"], "tiny") == []
    assert describe_unreadable(asked(None, kind="none"), ["?"], "tiny") == []
