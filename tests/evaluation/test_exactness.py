import numpy as np
import pytest
from shipped import TRAFFIC

from helpers.data.labels import CountedImage, read_yolo
from helpers.evaluation.exactness import (
    CountingResult,
    GreedyAndSampled,
    chance_exact,
    evaluate_counting,
    evaluate_greedy_and_sampled,
    images_for,
)
from helpers.statistics import derangement


def items_with(*totals):
    return [
        CountedImage(TRAFFIC / "valid" / "images" / "scene-100000.png", {"cars": n}, str(i))
        for i, n in enumerate(totals)
    ]


def test_chance_by_hand():
    # counts 1, 1, 2: ordered pairs of different items 6, with equal counts 2
    assert chance_exact(items_with(1, 1, 2)) == pytest.approx(2 / 6)
    assert chance_exact(items_with(1, 2, 3)) == 0


def test_result_measures_by_hand():
    texts = ["There are 1 cars in the image.", "1 cars", "There are 5 cars in the image.", "none"]
    result = CountingResult(items_with(1, 1, 2, 3), texts, "right", 0.0, 0)
    assert result.exact.tolist() == [True, True, False, False]
    assert result.well_formed.tolist() == [True, False, True, False]
    errors = result.errors()["cars"]
    assert errors[:3].tolist() == [0, 0, 3] and np.isnan(errors[3])
    assert result.exact_share.value == 0.5 and result.well_formed_share.n == 4


def test_conditions_show_the_images_they_say():
    items = read_yolo(TRAFFIC, "valid")[:6]
    right, shuffled, blank = (images_for(items, c, seed=3) for c in ("right", "shuffled", "blank"))
    order = derangement(6, 3)
    assert all(np.array_equal(shuffled[i], right[order[i]]) for i in range(6))
    assert all(image.getcolors() == [(112 * 112, (127, 127, 127))] for image in blank)
    with pytest.raises(ValueError, match="unknown condition 'upside down'"):
        images_for(items, "upside down")


def test_the_base_under_counts_two_wheelers_and_reads_the_image(tiny, valid_items):
    right = evaluate_counting(*tiny, valid_items)
    shuffled = evaluate_counting(*tiny, valid_items, images="shuffled")
    assert right.well_formed.all() and 0.2 < right.exact_share.value < 0.6
    assert shuffled.exact_share.high < right.exact_share.low
    errors = right.errors()
    for cls in ("cars", "buses"):
        assert np.abs(errors[cls]).mean() < 0.05
    for cls in ("motorcycles", "bicycles"):
        assert set(np.unique(errors[cls])) <= {-1.0, 0.0} and (errors[cls] == -1).mean() > 0.2


def test_the_three_shares_by_hand():
    right, wrong = "There are 1 cars in the image.", "no idea"
    items = items_with(1, 1)
    greedy = CountingResult(items, [right, right], "right", 0.0, 0)
    sampled = CountingResult(items, [right, wrong], "right", 1.0, 0)
    shares = GreedyAndSampled(greedy, sampled).shares()
    assert {name: share.value for name, share in shares.items()} == {
        "exact": 1.0, "exact, sampled": 0.5, "well formed, sampled": 0.5,
    }  # fmt: skip


def test_greedy_and_sampled_answers_are_those_of_two_evaluations(tiny, valid_items):
    found = evaluate_greedy_and_sampled(*tiny, valid_items[:4])
    assert found.greedy == evaluate_counting(*tiny, valid_items[:4])
    assert found.sampled == evaluate_counting(*tiny, valid_items[:4], temperature=1.0)
