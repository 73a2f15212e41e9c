"""Rankers of every kind say which answers are better, and what that costs."""

import math

import pytest
from made_up_tasks import tasks_about
from shipped import TRAFFIC
from small_rewards import QUICK

from helpers import models
from helpers.data import Judgement, PreferenceRecord, read_records, tasks_of
from helpers.files import UsageError
from helpers.rewards import (
    RewardRanker,
    ScorerRanker,
    VoteRanker,
    as_ranker,
    best_answers,
    get_scorer,
    make_scorer,
    new_reward_model,
    score_records,
)
from helpers.rewards.rankers import TASKS_AT_ONCE

length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})


def test_a_scorer_ranks_by_its_totals(tmp_path):
    tasks = tasks_about(tmp_path, ["x", "y"])
    ranker = as_ranker(length)
    first, second = ranker.rank(tasks, [["aa", "b", "cc"], ["d"]])
    assert (first.ranking, first.best, first.confidence) == ([[0, 2], [1]], 0, None)
    assert [score.total for score in first.scores] == [2, 1, 2]
    assert first.tiers(3) == [0, 1, 0] and second.tiers(1) == [0]
    assert ranker.name == "length" and ranker.kind == "rule" and not ranker.annotates
    assert ranker.cost.answers == 4 and ranker.cost.seconds > 0 and "4 answers" in str(ranker.cost)
    assert best_answers(ranker, tasks, [["aa", "b", "ccc"], ["d"]]) == ["ccc", "d"]
    assert as_ranker(ranker) is ranker


def test_more_tasks_than_are_open_at_once(tmp_path):
    number = 2 * TASKS_AT_ONCE + 3
    tasks = tasks_about(tmp_path, ["x"]) * number
    ranked = as_ranker(length).rank(tasks, [["a" * (k + 1), "b"] for k in range(number)])
    assert [own.scores[0].total for own in ranked] == list(range(1, number + 1))


def test_the_truth_is_told_or_hidden(tmp_path):
    tasks = tasks_about(tmp_path, ["x"], facts="2", kind="exact_match")
    knows = make_scorer("knows", lambda image, question, answer, facts: {"known": facts == answer})
    assert ScorerRanker(knows).rank(tasks, [["1", "2"]])[0].ranking == [[1], [0]]
    assert ScorerRanker(knows, told=False).rank(tasks, [["1", "2"]])[0].ranking == [[0, 1]]
    assert ScorerRanker(knows).title == "knows (is told the truth)"
    assert ScorerRanker(knows, told=False).title == "knows"


def test_a_ready_scorer_is_tried_before_anything_is_sampled(tmp_path):
    tasks = tasks_about(tmp_path, ["x"], facts="two", kind="exact_match")
    with pytest.raises(UsageError, match="count_exact: facts must be true counts"):
        as_ranker(get_scorer("count_exact")).check(tasks)
    as_ranker(get_scorer("exact_match")).check(tasks)
    with pytest.raises(UsageError, match="exact_match: facts must be"):
        ScorerRanker(get_scorer("exact_match"), told=False).check(tasks)
    as_ranker(length).check(tasks)


def test_a_reward_model_knows_how_sure_it_is():
    reward = new_reward_model(*models.load_model("tiny"), QUICK)
    records = read_records(TRAFFIC / "preferences_valid.jsonl")[:3]
    ranker = as_ranker(reward)
    answers = [[answer.text for answer in record.answers] for record in records]
    ranked = ranker.rank(tasks_of(records), answers)
    expected = score_records(reward, records)
    for own, scores in zip(ranked, expected, strict=True):
        assert [score.total for score in own.scores] == pytest.approx(scores, abs=1e-4)
        best, following = sorted(scores, reverse=True)[:2]
        assert own.confidence == pytest.approx(1 / (1 + math.exp(following - best)), abs=1e-4)
        assert scores[own.best] == max(scores)
    assert isinstance(ranker, RewardRanker) and ranker.kind == "model"
    assert ranker.reward_hash and ranker.confidence([1.0]) is None
    assert ranker.confidence([2.0, 2.0]) == 0.5


def test_people_rank_by_their_votes(tmp_path):
    """Two of three prefer b to a; c was never shown to anyone."""
    tasks = tasks_about(tmp_path, ["x", "y"])

    def vote(name, ranking, kind="human"):
        return Judgement(kind=kind, annotator=name, verdict="ranked", ranking=ranking)

    votes = [
        vote("ann", [[1], [0]]),
        vote("bob", [[1], [0]]),
        vote("eve", [[0], [1]]),
        vote("a judge", [[0], [1]], "model"),
    ]
    record = PreferenceRecord(
        images=[str(tasks[0].images[0])],
        prompt=list(tasks[0].turns),
        answers=[{"text": "a"}, {"text": "b"}],
        judgements=votes,
    )
    people = VoteRanker([record])
    assert people.kind == "human"
    first, swapped, more = people.rank([tasks[0]] * 3, [["a", "b"], ["b", "a"], ["a", "c"]])
    assert first.ranking == [[1], [0]] and swapped.ranking == [[0], [1]]
    assert more.ranking is None and people.rank([tasks[1]], [["a", "b"]])[0].ranking is None
