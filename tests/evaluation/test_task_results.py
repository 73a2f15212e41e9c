import numpy as np
import pytest
from shipped import TRAFFIC

from helpers.data import CountedImage, read_counts
from helpers.data.pairs import counting_tasks
from helpers.evaluation.task_results import (
    GreedyAndSampled,
    TaskResult,
    evaluate_greedy_and_sampled,
    evaluate_tasks,
    task_images,
)
from helpers.evaluation.truth_judges import judges
from helpers.statistics import derangement


def items_with(*totals):
    """The judge of images with so many cars."""
    items = [
        CountedImage(TRAFFIC / "valid" / "images" / "scene-100000.png", {"cars": n}, str(i))
        for i, n in enumerate(totals)
    ]
    return judges(counting_tasks(items))


def test_chance_by_hand():
    # counts 1, 1, 2: ordered pairs of different items 6, with equal counts 2
    assert items_with(1, 1, 2).chance == pytest.approx(2 / 6)
    assert items_with(1, 2, 3).chance == 0


def test_result_measures_by_hand():
    texts = ["There are 1 cars in the image.", "1 cars", "There are 5 cars in the image.", "none"]
    result = TaskResult(items_with(1, 1, 2, 3), texts, "right", 0.0, 0)
    assert result.right.tolist() == [True, True, False, False]
    assert result.values["well formed"].tolist() == [True, False, True, False]
    errors = result.errors()["cars"]
    assert errors[:3].tolist() == [0, 0, 3] and np.isnan(errors[3])
    assert result.right_share.value == 0.5 and result.share("well formed").n == 4


def test_conditions_show_the_images_they_say():
    tasks = counting_tasks(read_counts(TRAFFIC, "valid")[:6])
    right, shuffled, blank = (task_images(tasks, c, seed=3) for c in ("right", "shuffled", "blank"))
    order = derangement(6, 3)
    assert all(np.array_equal(shuffled[i][0], right[order[i]][0]) for i in range(6))
    assert all(row[0].getcolors() == [(112 * 112, (127, 127, 127))] for row in blank)
    with pytest.raises(ValueError, match="unknown condition 'upside down'"):
        task_images(tasks, "upside down")


def test_the_base_under_counts_two_wheelers_and_reads_the_image(tiny, valid_items):
    judge = judges(counting_tasks(valid_items))
    right = evaluate_tasks(*tiny, judge)
    shuffled = evaluate_tasks(*tiny, judge, images="shuffled")
    assert right.values["well formed"].all() and 0.2 < right.right_share.value < 0.6
    assert shuffled.right_share.high < right.right_share.low
    errors = right.errors()
    for cls in ("cars", "buses"):
        assert np.abs(errors[cls]).mean() < 0.05
    for cls in ("motorcycles", "bicycles"):
        assert set(np.unique(errors[cls])) <= {-1.0, 0.0} and (errors[cls] == -1).mean() > 0.2


def test_the_three_shares_by_hand():
    right, wrong = "There are 1 cars in the image.", "no idea"
    items = items_with(1, 1)
    greedy = TaskResult(items, [right, right], "right", 0.0, 0)
    sampled = TaskResult(items, [right, wrong], "right", 1.0, 0)
    shares = GreedyAndSampled(greedy, sampled).shares()
    assert {name: share.value for name, share in shares.items()} == {
        "exact": 1.0, "exact, sampled": 0.5, "well formed, sampled": 0.5,
    }  # fmt: skip


def test_greedy_and_sampled_answers_are_those_of_two_evaluations(tiny, valid_items):
    tasks = counting_tasks(valid_items[:4])
    found = evaluate_greedy_and_sampled(*tiny, tasks)
    greedy = evaluate_tasks(*tiny, judges(tasks))
    sampled = evaluate_tasks(*tiny, judges(tasks), temperature=1.0)
    assert found.greedy.answers == greedy.answers
    assert found.sampled.answers == sampled.answers != greedy.answers
