"""A judge of pairs: places drawn by seed, majorities, abstentions, and what its answers say."""

import pytest
from benchmark_pairs import RECORDS, VL, record

from helpers.evaluation.judge import judge_pairs, parse_verdict
from helpers.evaluation.reward_benchmarks import grade, read_scores, write_scores
from helpers.files import UsageError

MANY = [record(f"{start}-{k}") for start in ("wildvision", "RLHF", "mmmu") for k in range(100, 200)]


def truthful(record, order):
    return "first" if order[0] == record.ranking[0][0] else "second"


def test_a_truthful_judge_is_right_wherever_the_better_answer_is_shown():
    result = judge_pairs(RECORDS + MANY, truthful, VL, votes=3)
    assert result.grade.overall.value == result.grade.macro.value == 1.0 and result.grade.ties == 0
    assert result.first.low < 0.5 < result.first.high and result.first.n == result.votes == 3 * 307
    assert "POSITION BIAS" not in str(result)


def test_a_judge_of_places_is_found_out():
    """All better answers stand first in `MANY`: shown in that order, this judge would be right every time."""
    result = judge_pairs(MANY, lambda record, order: "first", VL)
    assert result.first.value == 1.0 and result.first.low > 0.98 and "POSITION BIAS" in str(result)
    assert result.grade.overall.low < 0.5 < result.grade.overall.high
    assert "POSITION BIAS" in str(judge_pairs(MANY, lambda record, order: "second", VL))


def test_the_order_depends_on_seed_id_and_vote_only():
    seen = {}

    def ask(record, order):
        seen.setdefault(record.id, []).append(order)
        return "first"

    whole = judge_pairs(MANY, ask, VL, votes=5, seed=1)
    orders, seen = seen, {}
    judge_pairs(MANY[::-1][:50], ask, VL, votes=5, seed=1)
    assert all(seen[name] == orders[name] for name in seen) and len(seen) == 50
    assert any(len(set(votes)) == 2 for votes in orders.values())  # within a record it changes, too
    assert judge_pairs(MANY, ask, VL, votes=5, seed=2).scores != whole.scores
    assert {order for votes in orders.values() for order in votes} == {(0, 1), (1, 0)}


def in_turn(*verdicts):
    """A judge that means the first of `answers` for "a", the second for "b", and says nothing for None."""
    left = iter(verdicts)

    def ask(record, order):
        meant = next(left)
        return None if meant is None else "first" if order[0] == "ab".index(meant) else "second"

    return ask


@pytest.mark.parametrize(
    ("votes", "scores"),
    [
        ("aab", [1.0, 0.0]),
        ("abb", [0.0, 1.0]),
        ("ab", [0.0, 0.0]),  # no majority
        (["a", "a", None, None], [0.0, 0.0]),  # two of four are no majority
        (["a", None, None], [0.0, 0.0]),
        (["a", "a", None], [1.0, 0.0]),
    ],
)
def test_majority_of_all_votes(votes, scores):
    result = judge_pairs(RECORDS[:1], in_turn(*votes), VL, votes=len(votes))
    assert result.scores == {"wildvision-1": scores} and result.grade.ties == (scores == [0.0, 0.0])
    assert result.unreadable == list(votes).count(None) and result.votes == len(votes)
    assert result.first.n == len(votes) - list(votes).count(None)


def test_abstentions_count_half_and_are_shown(tmp_path):
    # better are a a b a a a a: right, right, abstains, right, wrong, abstains, right
    result = judge_pairs(RECORDS, in_turn("a", "a", None, "a", "b", None, "a"), VL)
    assert result.grade.overall.value == 5 / 7  # (4 + 2 · ½) / 7
    assert result.grade.decided.value == 4 / 5 and result.grade.ties == result.unreadable == 2
    assert "2 abstentions (a tie above); 2 of 7 votes unreadable" in str(result)
    path = write_scores(tmp_path / "scores.jsonl", RECORDS, result.scores)
    assert grade(RECORDS, read_scores(path, RECORDS), VL) == result.grade


def test_a_silent_judge_and_wrong_arguments():
    result = judge_pairs(RECORDS, lambda *_: None, VL, votes=2)
    assert (
        result.first is None
        and result.grade.overall.value == 0.5
        and "shown first none" in str(result)
    )
    with pytest.raises(UsageError, match="record wildvision-1: ask gave 'A'"):
        judge_pairs(RECORDS, lambda *_: "A", VL)
    with pytest.raises(UsageError, match="votes = 0"):
        judge_pairs(RECORDS, truthful, VL, votes=0)


@pytest.mark.parametrize(
    ("text", "verdict"),
    [
        ("Both are fine, but A has more detail. [[A]]", "first"),
        ("Final verdict: [[B]]", "second"),
        ("Assistant A is better. [[b]]", "second"),  # the mark counts
        ("[[A]] if assistant A is better, [[B]] if assistant B is better", None),
        ("[[C]]", None),
        ("[[tie]]", None),
        ("B", "second"),
        (" **Answer 1**. ", "first"),
        ("Answer: 2", "second"),
        ("The second answer", "second"),
        ("3", None),
        ("Overall Judgment: Answer 2 is better.", "second"),
        ("### Overall Judgment\n**Answer 1 is superior** due to its accuracy.", "first"),
        ("Answer 1 is better in style. Overall Judgment: Answer 2 is slightly better.", "second"),
        ("Answer 1 is better in style. Answer 2 is better in detail.", None),
        ("Answer 1 is better in style. Overall judgement: both are equal.", None),
        ("Answer 1 is better than Answer 2.", "first"),
        ("The better response is Response B", "second"),
        ("The better answer is a matter of taste.", None),
        ("The better answer is 2 lines long.", None),
        ("Assistant B's response is clearly better", "second"),
        ("ANSWER 2 IS BETTER", "second"),
        ("Answer 1 is best described as short.", None),
        ("<think>Answer 1 is better? No.</think><answer>Answer 2 is better</answer>", "second"),
        ("<think>Hm.</think>\n<answer>1</answer>", "first"),
        ("Verdict: (A)", "first"),
        ("Answer 1 is not better.", None),
        ("It is hard to say whether Answer 1 is better.", None),
        ("I cannot say that Answer 2 is better.", None),
        ("Answer 12 is better.", None),
        ("Answer 1 and Answer 2 are equally good.", None),
        ("I am sorry, I cannot help with that.", None),
        ("", None),
    ],
)
def test_parse_verdict(text, verdict):
    assert parse_verdict(text) == verdict
