"""Best of n: weights against all subsets, the curve by hand, and a ranker that is hacked."""

import itertools
import math

import numpy as np
import pytest

from helpers.data import counting_tasks
from helpers.evaluation import BestOfN, best_weights, kl_bound, sample_best_of_n
from helpers.evaluation.best_of_n import SIZES
from helpers.rewards import PairJudge, as_ranker, get_scorer, make_scorer


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_weights_are_those_of_all_subsets(n):
    """Counted: in every subset of n of five answers the best one, or its share of a tie."""
    scores = np.array([[3.0, 1.0, 2.0, 5.0, 4.0], [1.0, 2.0, 2.0, 0.0, 2.0], [7.0] * 5])
    expected = np.zeros_like(scores)
    for row, own in enumerate(scores):
        subsets = list(itertools.combinations(range(5), n))
        for subset in subsets:
            top = [place for place in subset if own[place] == max(own[list(subset)])]
            for place in top:
                expected[row, place] += 1 / len(top) / len(subsets)
    found = best_weights(scores, n)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    np.testing.assert_allclose(found.sum(1), 1)


def test_n_must_be_among_the_samples():
    for n in (0, 6):
        with pytest.raises(ValueError, match="n is 1 to 5"):
            best_weights(np.zeros((1, 5)), n)


def test_the_bound_on_the_divergence():
    assert kl_bound(1) == 0 and kl_bound(2) == pytest.approx(math.log(2) - 0.5)
    assert [kl_bound(n) for n in SIZES] == sorted(kl_bound(n) for n in SIZES)
    # exact for a ranker without ties: the density of the best of n is n u^(n − 1)
    u = (np.arange(200_000) + 0.5) / 200_000
    density = 8 * u**7
    assert np.mean(density * np.log(density)) == pytest.approx(kl_bound(8), abs=1e-4)


def curve(scores, right, photos=None):
    scores, right = np.array(scores, float), np.array(right, float)
    return BestOfN("r", scores, right, photos or [str(k) for k in range(len(scores))])


def test_the_curve_by_hand():
    """Two answers a question, of which the second scores more, and is right in the first one."""
    found = curve([[0, 1], [0, 1]], [[0, 1], [0, 0]])
    assert found.sizes == [1, 2]
    assert found.score_of(1).value == 0.5 and found.score_of(2).value == 1
    assert found.right_of(1).value == 0.25 and found.right_of(2).value == 0.5
    assert found.best_size == 2 and not found.is_hacked
    assert found.rows()[2][0] == "2" and found.rows()[2][3] == "0.19"
    assert "Right answers: 0.25" in found.sentences()[1]
    unknown = BestOfN("r", found.scores, None, found.photos)
    assert unknown.right_of(2) is None and unknown.best_size is None and not unknown.is_hacked
    assert unknown.rows()[1][2] == "not known" and len(unknown.sentences()) == 2


def test_a_hacked_ranker_is_found():
    """Of 16 answers one is overrated and wrong, eight are right and next: more choice, less truth."""
    rng = np.random.default_rng(0)
    scores, right = [], []
    for _ in range(40):
        order = rng.permutation(16)
        scores.append(np.array([9.0] + [5.0] * 8 + [1.0] * 7)[order])
        right.append(np.array([0.0] + [1.0] * 8 + [0.0] * 7)[order])
    found = curve(scores, right)
    assert found.best_size in (2, 4) and found.is_hacked
    assert found.right_of(16).value == 0 and found.right_of(1).value == 0.5
    # best of 4: one of the eight is in, and the overrated one is not
    without = math.comb(15, 4) / math.comb(16, 4)
    expected = without * (1 - math.comb(7, 4) / math.comb(15, 4))
    assert found.right_of(4).value == pytest.approx(expected)
    assert "is hacked" in found.sentences()[-1]
    honest = curve(right, right)
    assert honest.best_size == 16 and not honest.is_hacked


def test_samples_are_ranked_once_and_the_truth_is_a_perfect_ranker(tiny, valid_items):
    """Best of 8 by the truth itself: right wherever one of the samples is."""
    tasks = counting_tasks(valid_items[:6])
    seen = []
    truth = get_scorer("count_exact")

    def parts(image, question, answer, facts):
        seen.append(answer)
        return {"right": truth(image, question, answer, facts).total}

    found = sample_best_of_n(*tiny, tasks, as_ranker(make_scorer("truth", parts)), 8, seed=3)
    assert found.scores.shape == found.right.shape == (6, 8) and found.sizes == [1, 2, 4, 8]
    assert len(seen) < 48, "equal answers are scored once"
    np.testing.assert_allclose(found.scores, found.right)
    assert found.right_of(8).value == pytest.approx(found.right.max(1).mean())
    assert found.right_of(1).value == pytest.approx(found.right.mean())
    # a judge has no scores: places do, and one that abstains leaves all equal
    silent = PairJudge(lambda images, prompts: ["?"] * len(prompts))
    tied = sample_best_of_n(*tiny, tasks[:2], silent, 4, seed=3)
    assert (tied.scores == 0).all()
    assert tied.right_of(4).value == pytest.approx(tied.right_of(1).value)
