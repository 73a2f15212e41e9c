"""The best of n sampled answers: which one it is, how the others follow, and what it costs."""

from collections import Counter

import pytest
from scripted import let_it_say
from shipped import TRAFFIC

from helpers import models
from helpers.data import ask, read_counts
from helpers.evaluation import RankedText, ask_for_best, ask_policies, blind_to_truth
from helpers.files import UsageError
from helpers.models import DecodingSettings
from helpers.rewards import (
    RankedAnswers,
    Ranker,
    ScorerRanker,
    get_scorer,
    make_scorer,
)

QUESTION = "How many cars, motorcycles, buses and bicycles are in the image?"
HOT = DecodingSettings(temperature=1.5, seed=3)

length = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})


@pytest.fixture(scope="module")
def task():
    return ask(QUESTION, [read_counts(TRAFFIC, "test")[3].path])


def best_of(policies, task, ranker, number, decoding=HOT, **options):
    (found,) = ask_for_best(policies, ["base"], task, ranker, number, decoding, **options)
    return found


def test_texts_are_ranked_once_each_and_what_was_cut_off_comes_last(policies, task, monkeypatch):
    """Lengths: "2 cars" 6, "1" 1, "no buses" 8; the cut one has 14 and would be first."""
    said = ["2 cars", "1", " 2  cars", "no buses", "", "1 car and 1 bu", "2 cars"]
    asked = let_it_say(monkeypatch, policies.processor, said, cut_off=["1 car and 1 bu"])
    ranker = blind_to_truth(length)
    found = best_of(policies, task, ranker, 7)
    assert found.texts == [
        RankedText("no buses", 1, 1, 8.0, True),
        RankedText("2 cars", 3, 2, 6.0, True),
        RankedText("1", 1, 3, 1.0, True),
        RankedText("1 car and 1 bu", 1, 4, 14.0, False),
    ]
    assert (found.answer.text, found.empty) == ("no buses", 1)
    assert found.answer.ended and len(found.answer.logps) == len(found.answer.ids) > 1
    assert (found.answer.best_of, found.answer.ranked_by) == (7, "length")
    assert asked == [7], "all in one call"
    assert ranker.cost.answers == 4, "each text once"


def test_equals_share_a_place_and_the_first_sampled_is_shown(policies, task, monkeypatch):
    """As in a race: two firsts, and then the third."""
    let_it_say(monkeypatch, policies.processor, ["b", "aa", "c", "dd"])
    found = best_of(policies, task, blind_to_truth(length), 4)
    assert [(one.text, one.place) for one in found.texts] == [
        ("aa", 1),
        ("dd", 1),
        ("b", 3),
        ("c", 3),
    ]
    assert found.answer.text == "aa" and [one.text for one in found.first] == ["aa", "dd"]


def test_an_end_is_taken_where_one_of_the_same_text_came_to_it(policies, task, monkeypatch):
    """The text was cut off the first time, and ended the second time."""
    processor = policies.processor
    let_it_say(monkeypatch, processor, ["1 bus ", "1 bus"], cut_off=["1 bus "])
    found = best_of(policies, task, blind_to_truth(length), 2)
    assert [(one.times, one.ended) for one in found.texts] == [(2, True)]
    assert found.answer.ended and found.answer.text == "1 bus"


def test_answers_without_a_word_are_not_ranked(policies, task, monkeypatch):
    let_it_say(monkeypatch, policies.processor, ["", " "])
    ranker = blind_to_truth(length)
    found = best_of(policies, task, ranker, 2)
    assert found.texts == [] and found.empty == 2 and not found.is_ranked
    assert found.answer.text.strip() == "" and ranker.cost.answers == 0


class Abstains(Ranker):
    def _rank(self, tasks, answers):
        return [RankedAnswers(None)] * len(tasks)


def test_a_ranker_that_does_not_say_leaves_the_order(policies, task, monkeypatch):
    let_it_say(monkeypatch, policies.processor, ["b", "aa", "b"])
    found = best_of(policies, task, Abstains("shy"), 3)
    assert found.texts == [
        RankedText("b", 2, None, None, True),
        RankedText("aa", 1, None, None, True),
    ]
    assert found.answer.text == "b" and not found.is_ranked and found.first == []


@pytest.mark.heavy(reason="generates for two seconds")
def test_the_samples_are_those_of_the_sampler_and_stay_as_n_grows(policies, task):
    """Independent: `sample_task_answers` with the same seed; figures of a single answer."""
    for name in policies.names:
        with policies.use_policy(name) as model:
            (expected,) = models.sample_task_answers(
                model, policies.processor, [task], 8, temperature=1.5, seed=3, max_new_tokens=64
            )
        for number in (4, 8):
            (found,) = ask_for_best(policies, [name], task, blind_to_truth(length), number, HOT)
            samples = expected[:number]
            assert Counter({one.text: one.times for one in found.texts}) == Counter(
                sample.text for sample in samples
            )
            longest = max(len(sample.text) for sample in samples if sample.ended)
            assert len(found.answer.text) == longest
        (alone,) = ask_policies(policies, [name], task, HOT)
        first = best_of_first(policies, name, task)
        assert (first.text, first.ids, first.logps, first.kl) == (
            alone.text,
            alone.ids,
            alone.logps,
            alone.kl,
        )


def best_of_first(policies, name, task):
    """The best where all are as good: the first of several."""
    same = make_scorer("same", lambda *given: {"same": 1.0})
    return ask_for_best(policies, [name], task, blind_to_truth(same), 4, HOT)[0].answer


def test_seconds_are_of_this_question_alone(policies, task, monkeypatch):
    let_it_say(monkeypatch, policies.processor, ["a", "bb"])
    ranker = blind_to_truth(length)
    ranker.cost.seconds = 100.0
    found = best_of(policies, task, ranker, 2)
    assert 0 < found.ranking_seconds < 10 and 0 <= found.sampling_seconds < 10


def test_the_best_has_the_score_of_another_judge_that_knows_no_truth(policies, task, monkeypatch):
    let_it_say(monkeypatch, policies.processor, ["a", "bb"])
    told = []

    def parts(image, question, answer, facts):
        told.append(facts)
        return {"words": 10.0 + len(answer.split())}

    found = best_of(policies, task, blind_to_truth(length), 2, reward=make_scorer("words", parts))
    assert found.answer.reward == 11.0 and told == [None]


def test_what_a_ranker_raises_is_one_line_with_its_name(policies, task, monkeypatch):
    let_it_say(monkeypatch, policies.processor, ["a", "bb"])
    broken = make_scorer("broken", lambda image, question, answer, facts: {}["key"])
    with pytest.raises(
        UsageError, match=r"^broken cannot rank the answers \(KeyError: 'key'\)\. .*"
    ):
        best_of(policies, task, blind_to_truth(broken), 2)
    endless = make_scorer("endless", lambda *given: {"endless": float("inf")})
    with pytest.raises(UsageError, match=r"^scorer endless: endless is inf for the answer 'a'"):
        best_of(policies, task, blind_to_truth(endless), 2)


def test_a_ready_scorer_that_cannot_judge_is_found_before_anything_is_sampled(
    policies, task, monkeypatch
):
    asked = let_it_say(monkeypatch, policies.processor, ["a"])
    with pytest.raises(UsageError, match="count_exact: facts must be true counts"):
        best_of(policies, task, ScorerRanker(get_scorer("count_exact"), told=False), 1)
    assert asked == []
