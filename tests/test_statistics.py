import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from scipy.stats import binomtest

from helpers.statistics import (
    binomial_p,
    cluster_bootstrap,
    clustered_share,
    derangement,
    detectable_difference,
    drawn_share,
    holm_adjust,
    items_needed,
    mcnemar_p,
    mcnemar_power,
    mean_interval,
    proportion,
    repeated_share,
    sample_mean,
    sign_flip_p,
    sign_test_p,
    votes_needed,
    win_rate,
)


def test_wilson_by_hand():
    # 8 of 10, z = 1.96: centre (0.8 + 1.92/10) / (1 + 3.84/10) = 0.7167, half width 0.2266
    share = proportion(8, 10)
    assert (share.value, share.n) == (0.8, 10)
    assert share.low == pytest.approx(0.4902, abs=1e-4) and share.high == pytest.approx(
        0.9433, abs=1e-4
    )
    assert str(share) == "0.800 [0.490, 0.943] (n = 10)"


def test_wilson_at_the_ends():
    assert proportion(0, 20).low == 0 and proportion(0, 20).high == pytest.approx(0.1611, abs=1e-4)
    assert proportion(20, 20).high == pytest.approx(1)


def test_mcnemar_by_hand():
    # 9 broken → fixed, 1 fixed → broken: p = 2 · (C(10,0) + C(10,1)) / 2¹⁰ = 22 / 1024
    before = [False] * 9 + [True] + [True] * 50
    after = [True] * 9 + [False] + [True] * 50
    assert mcnemar_p(before, after) == pytest.approx(22 / 1024)
    assert mcnemar_p(after, before) == pytest.approx(22 / 1024)
    assert mcnemar_p([True, False], [True, False]) == 1


def test_binomial_by_hand():
    assert binomial_p(0, 10, 0.5) == pytest.approx(2 / 1024)
    assert math.isclose(binomial_p(5, 10, 0.5), 1)


def test_the_interval_of_a_mean_by_hand():
    """Values 1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.303: 2 ± 4.303 / √3."""
    mean = mean_interval([1, 2, 3])
    assert (mean.value, mean.low, mean.high) == pytest.approx((2, 2 - 2.484, 2 + 2.484), abs=1e-3)
    assert str(mean) == "2 [-0.484, 4.48]"


def test_a_sample_mean_has_no_interval_where_there_is_none():
    assert str(sample_mean([1, 2, 3])) == "2 [-0.484, 4.48] (n = 3)"
    assert sample_mean([]) is None
    one, equal = sample_mean([4]), sample_mean([0.1] * 20)
    assert (one.value, one.low, one.high, one.n) == (4, None, None, 1)
    assert (equal.value, equal.low, equal.n) == (0.1, None, 20) and str(
        equal
    ) == "0.1 [no interval] (n = 20)"
    with pytest.raises(ValueError, match="value 1 is not a finite"):
        sample_mean([1, math.nan])


# --- clusters ---


def test_a_cluster_counts_with_all_its_items():
    # gains 1, 1, 1 of image a and −1 of image b: mean 2/4. Draws aa, ab, ba, bb have means 1, ½, ½, −1
    found = cluster_bootstrap([0, 0, 0, 1], [1, 1, 1, 0], ["a", "a", "a", "b"])
    assert (found.value, found.low, found.high, found.n) == (0.5, -1, 1, 2)
    # gains 1 0 0 0: four draws have mean 1 in 1/256 and ¾ in 12/256 of the cases, so that 97.5 % lie at ¾ or under
    assert cluster_bootstrap([0] * 4, [1, 0, 0, 0], range(4)).high == 0.75


def test_copies_of_an_item_tell_nothing_new():
    """Ten questions about each of 40 images that all come out alike: the interval is that of 40 items."""
    before, after = np.random.default_rng(0).integers(0, 2, (2, 40))
    once = cluster_bootstrap(before, after, range(40))
    tenfold = cluster_bootstrap(
        np.repeat(before, 10), np.repeat(after, 10), np.repeat(range(40), 10).tolist()
    )
    alone = cluster_bootstrap(np.repeat(before, 10), np.repeat(after, 10), range(400))
    assert tenfold == once
    assert (tenfold.high - tenfold.low) / (alone.high - alone.low) == pytest.approx(
        10**0.5, rel=0.1
    )


def test_the_interval_over_single_items_is_that_of_their_mean():
    gains = np.random.default_rng(1).normal(size=200)
    found, expected = cluster_bootstrap(np.zeros(200), gains, range(200)), mean_interval(gains)
    assert found.value == pytest.approx(expected.value)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.02)
    assert cluster_bootstrap(gains, np.zeros(200), range(200)).high == pytest.approx(-found.low)


def test_clusters_that_give_no_interval_and_input_that_is_refused():
    assert cluster_bootstrap([0, 1], [1, 1], ["a", "a"]).low is None
    assert cluster_bootstrap([0.1, 0.2], [0.1, 0.2], ["a", "b"]).high is None
    for before, after, clusters in (([0], [1, 1], "ab"), ([0, 1], [1, 1], "a"), ([], [], "")):
        with pytest.raises(ValueError, match="as many of each"):
            cluster_bootstrap(before, after, clusters)
    with pytest.raises(ValueError, match="not a finite number"):
        cluster_bootstrap([0, math.inf], [1, 1], "ab")


# --- several tests, votes ---


def test_holm_by_hand():
    # .01 · 3, .03 · 2, then .04 · 1 is under the one before and is lifted to it
    assert holm_adjust({"a": 0.01, "b": 0.04, "c": 0.03}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06}
    )
    assert (
        holm_adjust({"a": 0.6, "b": 0.9}) == {"a": 1, "b": 1}
        and holm_adjust({"a": 0.2}) == {"a": 0.2}
        and holm_adjust({}) == {}
    )
    for p in (math.nan, -0.1, 1.1):
        with pytest.raises(ValueError, match="p of b is"):
            holm_adjust({"a": 0.5, "b": p})


def test_a_tie_is_half_a_win():
    assert win_rate(6, 4, 2) == proportion(7, 12) and win_rate(3, 0) == proportion(3, 3)
    assert win_rate(2, 5, 3).value + win_rate(5, 2, 3).value == 1
    for votes in ((0, 0, 0), (-1, 3, 0)):
        with pytest.raises(ValueError, match="at least one vote"):
            win_rate(*votes)


# --- power ---


@pytest.mark.parametrize(
    ("n", "difference", "disagree"), [(12, 0.4, 0.5), (20, 0.3, 0.3), (15, 0.2, 1.0)]
)
def test_power_is_what_enumeration_of_all_outcomes_gives(n, difference, disagree):
    """Better, worse and same of n items are multinomial; each outcome goes through `mcnemar_p` itself."""
    up, down, total = (disagree + difference) / 2, (disagree - difference) / 2, 0.0
    for better in range(n + 1):
        for worse in range(min(better, n + 1 - better)):  # fewer worse than better: the right sign
            before = [False] * better + [True] * worse
            if before and mcnemar_p(before, [not hit for hit in before]) <= 0.05:
                ways = math.comb(n, better) * math.comb(n - better, worse)
                total += ways * up**better * down**worse * (1 - disagree) ** (n - better - worse)
    assert mcnemar_power(n, difference, disagree) == pytest.approx(total, abs=1e-9)


def test_400_items_detect_a_difference_of_seven_percent():
    """If the models disagree on a quarter of the items; the power is that of 20,000 simulated comparisons."""
    difference = detectable_difference(400)
    assert difference == pytest.approx(0.0718, abs=1e-4) and round(difference, 2) == 0.07
    assert detectable_difference(400, 0.2374) == pytest.approx(0.07, abs=1e-4)
    assert detectable_difference(400, 0.5) == pytest.approx(0.101, abs=1e-3)
    rng = np.random.default_rng(0)
    better, worse, _ = rng.multinomial(
        400, [(0.25 + difference) / 2, (0.25 - difference) / 2, 0.75], 20_000
    ).T
    pairs, times = np.unique([better, worse], axis=1, return_counts=True)
    found = [b > w and binomtest(int(w), int(b + w), 0.5).pvalue <= 0.05 for b, w in pairs.T]
    assert (times * found).sum() / 20_000 == pytest.approx(
        0.8, abs=0.009
    )  # 3 · √(.8 · .2 / 20,000) = .0085


def test_six_items_are_the_fewest_that_show_anything():
    # all 6 must get better, p = 2/64: d⁶ = .8 → d = .8^(1/6) = .9635
    assert detectable_difference(6) == pytest.approx(0.8 ** (1 / 6), abs=1e-5)
    with pytest.raises(ValueError, match="5 items cannot"):
        detectable_difference(5)


@given(st.integers(30, 600), st.floats(0.05, 1), st.floats(0.5, 0.95))
@settings(max_examples=25, deadline=None)
def test_the_detectable_difference_has_the_power_asked_for(n, disagree, power):
    difference = detectable_difference(n, disagree, power)
    at = [mcnemar_power(n, d, max(disagree, d)) for d in (difference, difference - 2e-6)]
    assert at[1] < power <= at[0]
    assert detectable_difference(4 * n, disagree, power) < difference


def test_items_needed_is_the_inverse():
    assert (
        items_needed(0.07) == 421
        and items_needed(0.0718) == 400
        and items_needed(0.0718, power=0.9) > 500
    )
    for difference, disagree in ((0.1, 0.2), (0.3, 0.3), (0.15, 0.8), (0.4, 1.0)):
        brute = next(n for n in range(1, 1000) if mcnemar_power(n, difference, disagree) >= 0.8)
        assert items_needed(difference, disagree) == brute
    for difference, disagree, power in (
        (0.3, 0.25, 0.8),
        (0.0, 0.25, 0.8),
        (0.1, 1.1, 0.8),
        (0.1, 0.25, 1.0),
    ):
        with pytest.raises(ValueError, match=r"difference|power"):
            items_needed(difference, disagree, power)


def test_199_votes_tell_six_in_ten_from_one_half():
    def power(n: int) -> float:
        """In whole numbers: the largest number of lost votes with 2 · Σ C(n, k) / 2ⁿ ≤ .05, at a chance of .4."""
        most = max(k for k in range(n) if 40 * sum(math.comb(n, i) for i in range(k + 1)) <= 2**n)
        return sum(math.comb(n, k) * 0.4**k * 0.6 ** (n - k) for k in range(most + 1))

    assert votes_needed(0.1) == 199 == next(n for n in range(100, 300) if power(n) >= 0.8)
    assert power(200) < 0.8  # the steps of an exact test
    assert votes_needed(0.5) == 6
    with pytest.raises(ValueError, match="½"):
        votes_needed(0.6)


def test_a_drawn_share_is_part_of_a_larger_one_and_never_empty():
    letters = "abcdefghijklmnopqrst"
    tenth, half = drawn_share(letters, 0.1, seed=3), drawn_share(letters, 0.5, seed=3)
    assert len(tenth) == 2 and len(half) == 10 and set(tenth) < set(half)
    # their order stays, whatever was drawn first
    assert half == sorted(half) and drawn_share(letters, 0.5, seed=4) != half
    assert drawn_share(letters, 1.0, seed=3) == list(letters)
    assert len(drawn_share(letters, 0.001, seed=3)) == 1


def test_a_derangement_leaves_nothing_in_place_and_loses_nothing():
    for n in (2, 3, 10, 400):
        order = derangement(n, seed=n)
        assert sorted(order) == list(range(n)) and not (order == np.arange(n)).any()
    with pytest.raises(ValueError, match="at least 2"):
        derangement(1, 0)


def test_repeated_3_grams():
    assert repeated_share([1, 2, 3, 1, 2, 3, 1]) == pytest.approx(0.4)  # 123 231 312 123 231
    assert repeated_share([1, 2, 3, 4]) == 0 and repeated_share([1, 2]) == 0


def test_a_share_over_clusters_by_hand():
    # every cluster a single item: Wilson
    assert clustered_share([1, 0, 1, 0.5], list("abcd")) == proportion(2.5, 4)
    # two clusters of two, all alike: as many points as clusters, not an interval of no width
    assert clustered_share([1, 1, 1, 1], list("aabb")) == proportion(2, 2)
    clustered = clustered_share([1, 1, 0, 0] * 5, [i // 2 for i in range(20)])
    alone = clustered_share([1, 1, 0, 0] * 5, range(20))
    assert clustered.value == alone.value == 0.5 and (clustered.n, alone.n) == (10, 20)
    assert clustered.high - clustered.low > alone.high - alone.low, "items of a cluster are alike"
    assert clustered_share([], []) is None


def test_signs_of_whole_clusters_are_turned():
    # three clusters with gains 2, 1, 1: all signs alike in 2 of 8
    assert sign_flip_p([1, 1, 1, 1], list("aabc")) == pytest.approx(2 / 8)
    # 3, −1: |3 − 1| = 2 or |3 + 1| = 4, of which all four are at least 2
    assert sign_flip_p([3, -1], list("ab")) == 1
    for gains, clusters in (([], []), ([1], ["a"]), ([1, 1], ["a", "a"]), ([0, 0], ["a", "b"])):
        assert sign_flip_p(gains, clusters) == 1


def test_the_sign_test_counts_a_cluster_once():
    # a gains, b loses, c is level, d to h gain: 6 of 7
    gains = [1, 1, -1, 1, -1, 1, 1, 1, 1, 1]
    p = sign_test_p(gains, list("aabccdefgh"))
    assert p == pytest.approx(binomtest(6, 7).pvalue)
    assert sign_test_p([0, 1, -1], ["a", "b", "b"]) == 1 == sign_test_p([], [])
