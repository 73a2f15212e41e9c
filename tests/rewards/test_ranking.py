"""Answers ranked by rules: totals, ties and rank correlation, by hand and against scipy."""

import numpy as np
import pytest
from made_up import made_up_items, record
from scipy.stats import spearmanr

from helpers.data.counting import count_answer
from helpers.data.pairs import counting_questions
from helpers.data.preferences import read_records
from helpers.files import ROOT
from helpers.models.generation import answer_budget, sample_answers
from helpers.rewards import ranking as rule_ranking
from helpers.rewards.catalogue import SCORERS
from helpers.rewards.ranking import AnswerTable, rank_samples, sample_and_rank
from helpers.rewards.scoring import heuristic_scorer
from helpers.widgets import playground as widgets

TRAFFIC = ROOT / "data" / "traffic" / "preferences_train.jsonl"


def answers(record_of, truth):
    return AnswerTable(
        np.array(record_of), np.array(truth, dtype=float), np.zeros((0, 2), dtype=int)
    )


@pytest.mark.parametrize("counts_known", [True, False])
def test_totals_are_those_of_the_scorer(counts_known):
    records = read_records(TRAFFIC)[:30]
    values = rule_ranking.rule_values(records, counts_known)
    draw = np.random.default_rng(0)
    for _ in range(3):
        weights = dict(
            zip(
                widgets.DEFAULT_WEIGHTS,
                draw.uniform(-2, 2, len(widgets.DEFAULT_WEIGHTS)),
                strict=True,
            )
        )
        score = heuristic_scorer(weights)
        expected = [
            score(None, r.prompt[-1].content, answer.text, r.truth if counts_known else None).total
            for r in records
            for answer in r.answers
        ]
        np.testing.assert_allclose(rule_ranking.weighted_sum(values, weights), expected, atol=1e-8)


def test_truth_and_pairs_by_hand():
    found = rule_ranking.flatten(
        [record(0), record(1, ["2 cars, 0 buses", "0 buses, 2 cars", "nothing"])]
    )
    np.testing.assert_allclose(found.truth[:3], [(1 / 3 + 1 / 2) / 2, 1, 0.75])
    assert found.record.tolist() == [0, 0, 0, 1, 1, 1]
    equal = found.truth[3] == found.truth[4]
    assert {(1, 0), (2, 0), (1, 2)} == {(i, j) for i, j in found.pairs.tolist() if j < 3}
    assert equal and {(i, j) for i, j in found.pairs.tolist() if j > 2} <= {(3, 5), (4, 5)}


def test_agreement_by_hand():
    pairs = np.array([[0, 1], [0, 2], [1, 2], [3, 4]])
    totals = np.array([1.0, 0.5, 1.0, 0.2, 0.9])  # right, tie, wrong, wrong: 1.5 of 4
    share = rule_ranking.pair_agreement(totals, pairs)
    assert share.value == 1.5 / 4 and share.n == 4 and share.low < share.value < share.high
    assert rule_ranking.pair_agreement(-totals, pairs).value == 1 - share.value
    assert rule_ranking.pair_agreement(totals, np.zeros((0, 2), dtype=int)) is None


def test_rank_correlation_by_hand_and_with_ties_as_scipy_has_it():
    drawn = rule_ranking.draw_records(5)
    # ranks 1 2 3 4 5 and 2 1 4 3 5: Σd² = 4, ρ = 1 − 6·4/(5·24) = .8
    found = rule_ranking.correlate(
        np.array([10.0, 20, 30, 40, 50]), answers(range(5), [2, 1, 4, 3, 5]), drawn
    )
    assert found.value == pytest.approx(0.8) and found.n == found.records == 5
    assert found.low is None and found.is_chance and "no interval" in str(found), (
        "five records are too few"
    )
    assert rule_ranking.correlate(np.ones(5), answers(range(5), range(5)), drawn).value is None
    assert (
        rule_ranking.correlate(np.arange(5.0), answers(range(5), np.ones(5)), drawn).value is None
    )


def test_every_resample_has_the_correlation_that_scipy_gives_it(monkeypatch):
    draw = np.random.default_rng(3)
    of = np.repeat(np.arange(12), [2, 3] * 6)
    totals, truth = draw.integers(0, 4, len(of)).astype(float), draw.integers(0, 3, len(of)) / 2
    monkeypatch.setattr(rule_ranking, "BOOTSTRAP_DRAWS", 50)
    drawn = rule_ranking.draw_records(12)
    assert (
        drawn.shape == (50, 12)
        and (drawn.sum(axis=1) == 12).all()
        and len(np.unique(drawn, axis=0)) > 40
    )
    found = rule_ranking.spearman_resamples(totals, answers(of, truth), drawn)
    for counts, value in zip(drawn.astype(int), found, strict=True):
        rows = [
            i
            for place, times in enumerate(counts)
            for _ in range(times)
            for i in np.flatnonzero(of == place)
        ]
        assert value == pytest.approx(spearmanr(totals[rows], truth[rows]).statistic, abs=1e-12)


def test_whole_records_are_drawn_not_answers():
    """Ten copies of one record's three answers say no more than one record does: every resample is
    the same.
    """
    of = np.repeat(np.arange(10), 3)
    found = rule_ranking.spearman_resamples(
        np.tile([1.0, 2, 3], 10),
        answers(of, np.tile([1.0, 3, 2], 10)),
        rule_ranking.draw_records(10),
    )
    assert np.ptp(found) < 1e-12 and found[0] == pytest.approx(0.5)  # 1 − 6·2/(3·8)


def test_one_odd_answer_is_not_taken_for_a_correlation():
    """Resamples without it have no correlation at all; left out, the rest agreed on a small
    positive one.
    """
    totals, truth = np.ones(100), np.linspace(0, 1, 100)
    totals[99] = 2
    found = rule_ranking.correlate(
        totals, answers(np.repeat(np.arange(50), 2), truth), rule_ranking.draw_records(50)
    )
    assert found.value > 0.1 and found.low == 0 and found.is_chance


def test_samples_are_ranked_by_a_score_with_margins(capsys):
    (item, same) = made_up_items(2)
    cars, buses = item.counts.values()
    right, off_by_one = count_answer(item.counts), count_answer({"cars": cars + 1, "buses": buses})
    both_off = count_answer({"cars": cars + 1, "buses": buses + 1})
    samples = [[off_by_one, right, off_by_one, " ", both_off], [right, right]]
    (record,) = rank_samples([item, same], samples, SCORERS["count_per_class"])
    assert [a.text for a in record.answers] == [
        off_by_one,
        right,
        both_off,
    ]  # as sampled, each once
    assert [a.score for a in record.answers] == [0.5, 1.0, 0.0] and record.ranking == [
        [1],
        [0],
        [2],
    ]
    assert [pair.margin for pair in record.pairs()] == [0.5, 1.0, 0.5]
    (extreme,) = record.pairs("extremes")
    assert (
        extreme.margin == 1.0 and extreme.chosen.text == right and extreme.rejected.text == both_off
    )
    assert "1 of 2 images give no record" in capsys.readouterr().out
    (tie,) = rank_samples([item], [[off_by_one, both_off]], SCORERS["count_exact"])
    assert tie.ranking == [[0, 1]] and tie.pairs() == []


@pytest.mark.heavy(reason="generates for two seconds")
def test_what_is_sampled_is_ranked(tiny, valid_items):
    items, score = valid_items[:6], SCORERS["count_graded"]
    ranked = sample_and_rank(*tiny, items, score, 3, seed=5)
    asked = counting_questions(items)
    budget = answer_budget(tiny[1], asked.answers)
    own = sample_answers(*tiny, asked.images, asked.questions, 3, seed=5, max_new_tokens=budget)
    assert ranked == rank_samples(items, own, score) and 0 < len(ranked) <= 6
