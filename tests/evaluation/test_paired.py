import dataclasses

import numpy as np
import pytest
from scipy.stats import binom

from helpers.evaluation.paired import (
    Metric,
    compare_policies,
    comparison_rows,
    describe_sight,
    find_reward_hacking,
    power_note,
)
from helpers.files import UsageError
from helpers.statistics import proportion

ITEMS = [f"photo {number}" for number in range(40)]


def right(*numbers, n=40):
    values = np.zeros(n, dtype=bool)
    values[list(numbers)] = True
    return values


def test_the_test_is_mcnemar_by_hand():
    """Base right on 0–9, policy on 5–24: 15 fixed, 5 broken; p = 2·P(X ≤ 5 of 20) = .0414; one test, so Holm leaves it."""
    (row,) = compare_policies(
        [Metric("exact", {"base": right(*range(10)), "dpo": right(*range(5, 25))})], ITEMS
    )
    assert (row.fixed, row.broken, row.test, row.n) == (15, 5, "McNemar", 40)
    assert (
        row.p
        == row.adjusted
        == pytest.approx(2 * binom.cdf(5, 20, 0.5))
        == pytest.approx(0.0414, abs=1e-4)
    )
    assert (row.before, row.after, row.difference.value) == (0.25, 0.5, 0.25)
    assert row.difference.low > 0 and row.verdict == "better" and "15 fixed, 5 broken" in str(row)


def test_another_baseline_than_the_base_by_hand():
    """SFT right on 0–9, DPO on 5–24, as above; the base and SFT's other seed are no rows."""
    values = {"base": right(), "dpo/a": right(*range(5, 25)), "sft/a": right(*range(10))}
    values["sft/b"] = right(*range(30))
    (row,) = compare_policies([Metric("exact", values)], ITEMS, baseline="sft/a")
    assert (row.policy, row.baseline, row.before, row.after) == ("dpo/a", "sft/a", 0.25, 0.5)
    assert (row.fixed, row.broken) == (15, 5) and row.p == pytest.approx(0.0414, abs=1e-4)
    assert str(row).startswith("dpo/a against sft/a, exact: 0.250 before")
    against_base = compare_policies([Metric("exact", values)], ITEMS)
    assert [one.policy for one in against_base] == ["dpo/a", "sft/a", "sft/b"]
    assert str(against_base[0]).startswith("dpo/a, exact: 0.000 before")


def test_holm_takes_it_back_when_two_are_tried():
    """.0414 of two tests becomes .0828."""
    same = right(*range(10))
    rows = compare_policies(
        [Metric("exact", {"base": same, "dpo": right(*range(5, 25)), "ppo": same})], ITEMS
    )
    assert (
        rows[0].adjusted == pytest.approx(0.0828, abs=1e-4)
        and rows[0].verdict == "no difference can be claimed"
    )
    assert rows[1].p == 1 and rows[1].difference.value == 0 and rows[1].direction == 0


def test_swapping_base_and_policy_turns_the_sign():
    worse, better = right(*range(3)), right(*range(3, 30))
    up, down = (
        compare_policies([Metric("m", {"base": a, "x": b})], ITEMS)[0]
        for a, b in ((worse, better), (better, worse))
    )
    assert (up.direction, down.direction) == (1, -1) and down.verdict == "WORSE"
    assert up.difference.value == -down.difference.value and up.p == down.p


def test_copies_of_a_photo_count_once():
    """20 gains on 20 photos are a sure thing; the same 20 on copies of two photos are two coin tosses (p = .5)."""
    metric = Metric("exact", {"base": right(), "x": right(*range(20))})
    (apart,) = compare_policies([metric], ITEMS)
    (together,) = compare_policies([metric], ["photo A"] * 10 + ["photo B"] * 30)
    assert (
        apart.adjusted < 1e-4
        and together.test == "sign-flip"
        and together.adjusted == pytest.approx(0.5)
    )


def test_scores_are_tested_by_turning_signs():
    """Four gains of one sign on four items: 2 of the 16 sign patterns are as extreme, p = .125."""
    values = {"base": np.zeros(4), "x": np.array([0.1, 0.2, 0.3, 0.4])}
    (row,) = compare_policies([Metric("score", values)], ITEMS[:4])
    assert row.test == "sign-flip" and row.p == pytest.approx(0.125) and row.fixed is None
    assert comparison_rows([row])[1][5] == ""


def test_a_hacked_policy_is_marked_circular_and_called_hacked():
    rows = compare_policies(
        [
            Metric(
                "heuristic", {"base": np.zeros(40), "bad": np.full(40, 0.6)}, rewards=("heuristic",)
            ),
            Metric("exact", {"base": right(*range(20)), "bad": right()}, truth=True),
        ],
        ITEMS,
        {"bad": "heuristic"},
    )
    assert [row.circular for row in rows] == [True, False]
    assert (
        rows[0].verdict == "better (circular: the training reward)" and rows[1].verdict == "WORSE"
    )
    (sentence,) = find_reward_hacking(rows)
    assert (
        "bad: REWARD HACKING. heuristic, its training reward, rose from 0.000 to 0.600" in sentence
    )
    assert "exact fell from 0.500 to 0.000" in sentence
    assert not find_reward_hacking(rows[:1]), "nothing fell"
    assert not find_reward_hacking([dataclasses.replace(rows[0], circular=False), rows[1]]), (
        "not its reward: merely worse at one"
    )


def test_a_price_in_form_is_no_hacking():
    """Rewarded with the truth itself, and fewer answers well formed: worse at that, but nothing was gamed."""
    rows = compare_policies(
        [
            Metric(
                "exact",
                {"base": right(), "ppo": right(*range(40))},
                rewards=("count_exact",),
                truth=True,
            ),
            Metric("well formed", {"base": right(*range(40)), "ppo": right(*range(20))}),
        ],
        ITEMS,
        {"ppo": "count_exact"},
    )
    assert (
        [row.direction for row in rows] == [1, -1]
        and rows[0].circular
        and not find_reward_hacking(rows)
    )


def test_a_reward_of_another_policy_is_not_circular_and_a_lonely_one_is_refused():
    metric = Metric("heuristic", {"base": np.zeros(40), "x": np.ones(40)}, rewards=("heuristic",))
    assert not compare_policies([metric], ITEMS, {"x": "count_exact"})[0].circular
    with pytest.raises(UsageError, match="x is only judged by its own training reward, heuristic"):
        compare_policies([metric], ITEMS, {"x": "heuristic"})
    with pytest.raises(UsageError, match="heuristic of base: 40 values for 3 items"):
        compare_policies([metric], ITEMS[:3])


def test_what_is_said_of_power():
    rows = compare_policies(
        [Metric("exact", {"base": right(*range(10)), "dpo": right(*range(5, 25))})], ITEMS
    )
    assert power_note(400).startswith("400 items detect a difference of 0.07")
    assert "if two models disagree on 50% of them" in power_note(40, rows)
    assert power_note(5).startswith("5 items can show no difference")  # 2·½⁵ = .0625


@pytest.mark.parametrize(
    ("shuffled", "expected"),
    [(0, "falls to chance"), (80, "cannot be shown"), (30, "differs from chance")],
)
def test_a_blind_model_is_told_from_one_that_sees(shuffled, expected):
    """Right on 90 of 100. With other images: 0 is chance (.005), 80 is the same, 30 is neither."""
    assert expected in describe_sight(proportion(90, 100), proportion(shuffled, 100), 0.005)
