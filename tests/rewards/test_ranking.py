"""Answers ranked by rules: totals, ties and rank correlation, by hand and against scipy."""

import numpy as np
import pytest
from made_up import record
from PIL import Image
from scipy.stats import spearmanr

from helpers.data.counting import count_answer
from helpers.data.pairs import counting_tasks, question_for
from helpers.data.preferences import read_records, write_records
from helpers.data.record import Message
from helpers.data.tasks import Task, ask
from helpers.data.votes import Votes, apply_votes
from helpers.files import ROOT, UsageError
from helpers.models.generation import SampledAnswer, sample_counting_answers
from helpers.rewards import rule_ranking
from helpers.rewards.catalogue import SCORERS
from helpers.rewards.ranking import (
    distinct_answers,
    rank,
    rank_again,
    rank_samples,
    sample_and_rank,
)
from helpers.rewards.rule_ranking import AnswerTable
from helpers.rewards.scoring import Score, heuristic_scorer, make_scorer
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


def test_samples_are_ranked_by_a_score_with_margins(valid_items, capsys):
    item, same = valid_items[:2]
    counts = item.counts
    first, second = list(counts)[:2]
    right = count_answer(counts)
    off_by_one = count_answer({**counts, first: counts[first] + 1})
    both_off = count_answer({**counts, first: counts[first] + 1, second: counts[second] + 1})
    samples = [[off_by_one, right, off_by_one, " ", both_off], [right, right]]
    tasks = counting_tasks([item, same])
    (record,) = rank_samples(tasks, samples, SCORERS["count_per_class"])
    # as sampled, each once
    assert [a.text for a in record.answers] == [off_by_one, right, both_off]
    assert [a.score for a in record.answers] == [0.75, 1.0, 0.5]  # of four classes
    assert record.ranking == [[1], [0], [2]]
    assert [pair.margin for pair in record.pairs()] == [0.25, 0.5, 0.25]
    (extreme,) = record.pairs("extremes")
    assert extreme.margin == 0.5
    assert extreme.chosen.text == right and extreme.rejected.text == both_off
    assert "1 of 2 questions give no record" in capsys.readouterr().out
    (tie,) = rank_samples(tasks[:1], [[off_by_one, both_off]], SCORERS["count_exact"])
    assert tie.ranking == [[0, 1]] and tie.pairs() == []


def test_counted_images_are_asked_the_counting_question(valid_items):
    item = valid_items[0]
    right, wrong = count_answer(item.counts), count_answer(dict.fromkeys(item.counts, 7))
    (record,) = rank_samples([item], [[wrong, right]], SCORERS["count_graded"])
    assert record.id == f"valid-{item.path.stem}" and record.group is None
    assert record.prompt[0].content == question_for(item, 0)
    assert record.truth == item.counts and record.ranking == [[1], [0]]
    line = record.model_dump_json(exclude_defaults=True)
    assert "truth_kind" not in line and "cut_off" not in line  # as files had it before


SHOWN = []


def widths(image, question, answer, facts=None):
    """How wide all that is shown is together; keeps what it was given."""
    images = image if isinstance(image, list) else [image]
    SHOWN.append((len(images), str(question), answer, facts))
    total = float(sum(one.width for one in images) - len(answer))
    return Score(total, {"widths": total})


def test_a_scorer_sees_all_images_of_a_task_and_the_record_keeps_the_task(tmp_path):
    paths = []
    for number, width in enumerate((40, 60)):
        paths.append(tmp_path / f"{number}.png")
        Image.new("RGB", (width, 30)).save(paths[-1])
    turns = (
        Message(role="user", content="Which house is larger?"),
        Message(role="assistant", content="The second."),
        Message(role="user", content="And which boat?"),
    )
    both = Task(tuple(paths), turns, ["first", "one"], "token_f1", "photo 7")
    one = ask("What is it?", paths[:1])
    SHOWN.clear()
    records = rank_samples([both, one], [["first", "second"], ["a boat", "boat"]], widths)
    assert SHOWN == [
        (2, "And which boat?", "first", ["first", "one"]),
        (2, "And which boat?", "second", ["first", "one"]),
        (1, "What is it?", "a boat", None),
        (1, "What is it?", "boat", None),
    ]
    first, second = records
    assert [answer.score for answer in first.answers] == [95.0, 94.0]  # 100 − 5 and 100 − 6
    assert first.image_paths == paths and first.prompt == list(turns)
    assert (first.truth, first.kind, first.group) == (["first", "one"], "token_f1", "photo 7")
    assert second.ranking == [[1], [0]] and second.truth is None and second.kind == "none"
    # and it is a line of a file like any other
    read = read_records(write_records(tmp_path / "ranked.jsonl", records))
    assert read == records


def test_an_answer_that_was_cut_off_is_never_preferred(tmp_path, capsys):
    """Longer is better for this scorer, so that it would choose the two that did not end."""
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 9)).save(path)
    length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})
    tasks = [ask("Describe it.", [path])] * 2
    answers = [
        [
            SampledAnswer("A long sentence that does not", False),
            SampledAnswer("A house.", True),
            SampledAnswer("A house and a boat.", True),
            SampledAnswer("Another long sentence without its", False),
        ],
        [SampledAnswer("One without", False), SampledAnswer("Another one without", False)],
    ]
    record, none_ended = rank_samples(tasks, answers, length)
    assert record.ranking == [[2], [1], [0, 3]]
    assert [answer.cut_off for answer in record.answers] == [True, False, False, True]
    assert [answer.score for answer in record.answers] == [None, 8.0, 19.0, None]
    assert not any(pair.chosen.cut_off for pair in record.pairs())
    assert none_ended.ranking == [[0, 1]] and none_ended.pairs() == []
    assert "4 answers were cut off" in capsys.readouterr().out
    # what ended once has ended: the text is whole
    (again,) = distinct_answers([SampledAnswer("Yes.", False), SampledAnswer("Yes.", True)])
    assert again == SampledAnswer("Yes.", True)


def test_answers_to_one_question_are_ranked(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 9)).save(path)
    texts = ["a red boat", "a boat", "a house"]
    record = rank(path, "What is red?", texts, SCORERS["token_f1"], facts="red boat")
    assert record.ranking == [[0], [1], [2]]
    # normalised: 2 of 2 words; 1 of 2 with 1 of 1: F1 2/3; none
    assert [answer.score for answer in record.answers] == pytest.approx([1, 2 / 3, 0])
    assert record.images == [str(path)]
    assert rank(str(path), "What is red?", texts, SCORERS["token_f1"], facts="red boat") == record
    with pytest.raises(UsageError, match=r"'What is red\?': 1 different answers are no ranking"):
        rank(path, "What is red?", ["a boat", "a boat"], SCORERS["heuristic"])
    with pytest.raises(UsageError, match="2 lists of answers do not belong to 1 questions"):
        rank_samples([ask("?", [path])], [["a"], ["b"]], None)


def test_records_are_ranked_again_by_another_score(tmp_path):
    """What is known of the answers stays; one that was cut off stays last."""
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 9)).save(path)
    texts = ["a red boat", "boat", SampledAnswer("a red boat which is", False)]
    first = rank(path, "What is red?", texts, SCORERS["token_f1"], facts="boat")
    first.answers[0].model = "somebody"
    assert first.ranking == [[1], [0], [2]]
    (again,) = rank_again([first], widths)
    # 9 pixels less the letters: the longer one of the two is worse here, too
    assert [answer.score for answer in again.answers] == [-1.0, 5.0, None]
    assert again.answers[0].model == "somebody" and again.answers[2].cut_off
    assert again.ranking == [[1], [0], [2]] and again.truth == "boat"
    longer = make_scorer("longer", lambda image, question, answer, facts: {"n": len(answer)})
    assert rank_again([first], longer)[0].ranking == [[0], [1], [2]]
    assert rank_again([first], None)[0].ranking is None


def test_people_rank_what_no_score_has(tmp_path):
    path = tmp_path / "photo.png"
    Image.new("RGB", (9, 9)).save(path)
    tasks = [ask("What is it?", [path, path]), ask("Where is it?", [path])]
    records = rank_samples(tasks, [["A.", "B.", "C."], ["here", "there"]], None)
    assert [record.ranking for record in records] == [None, None]
    votes = Votes(tmp_path / "votes.jsonl", records, annotator="me")
    while item := votes.next():
        # the first in the alphabet is the best
        shown = sorted(range(len(item.texts)), key=lambda k: item.texts[k])
        assert votes.vote(item, "ranked", [[k] for k in shown])
    ranked = apply_votes(records, votes.path)
    assert [record.ranking for record in ranked] == [[[0], [1], [2]], [[0], [1]]]


@pytest.mark.heavy(reason="generates for two seconds")
def test_what_is_sampled_is_ranked(tiny, valid_items):
    items, score = valid_items[:6], SCORERS["count_graded"]
    ranked = sample_and_rank(*tiny, items, score, 3, seed=5)
    own = sample_counting_answers(*tiny, items, 3, seed=5)
    assert ranked == rank_samples(items, own, score) and 0 < len(ranked) <= 6


def test_free_questions_are_sampled_and_ranked(tiny, valid_items):
    """The tiny model says some colour: it has seen no such question."""
    question = "What is in the image?"
    tasks = [ask(question, [item.path]) for item in valid_items[:3]]
    records = sample_and_rank(*tiny, tasks, SCORERS["heuristic"], 3, seed=1)
    assert 0 < len(records) <= 3
    assert {(one.prompt[0].content, one.kind) for one in records} == {(question, "none")}
    answers = [answer for one in records for answer in one.answers]
    assert all(answer.origin == "own" and answer.score is not None for answer in answers)
