"""Replies of judges as the authors of two benchmarks read them, by hand."""

import random

import pytest
from benchmark_pairs import record
from PIL import Image

from helpers.evaluation.official import (
    grade_multimodal_rewardbench,
    grade_multimodal_rewardbench_2,
    grade_vl_rewardbench,
    stated_answer,
    votes_of,
)
from helpers.evaluation.reward_benchmark_files import BENCHMARKS
from helpers.evaluation.reward_benchmarks import rank_benchmark
from helpers.files import UsageError
from helpers.rewards import PairJudge


@pytest.mark.parametrize(
    ("reply", "stated"),
    [
        ("Overall Judgment: Answer 1 is better.", 1),
        ("**Overall Judgment:**\n- Answer 2 is the better one", 2),
        ("therefore, answer 2 is slightly better", 2),
        ("Overall Judgment: Answer 2 is clearly better.", None),
        ("Answer 1 is better.", None),  # without a conclusion
        ("Overall Judgment: Answer 1 is better. No: Answer 2 is better.", 2),
        ("Overall Judgment: Answer 3 is better", 3),
        ("Overall Judgment: [[A]]", None),
        ("Overall Judgement: Answer 1 is better", None),  # in British spelling
        ("Overall Judgment: Answer 1\nis better", 1),  # words run together
    ],
)
def test_what_vl_rewardbench_reads(reply, stated):
    assert stated_answer(reply) == stated


FIRST = "Overall Judgment: Answer 1 is better"
SECOND = "Overall Judgment: Answer 2 is better"
NONE = "Overall Judgment: ?"


def test_figures_of_vl_rewardbench():
    """The better answer is the first of every record."""
    records = [record(f"wildvision-{k}") for k in range(4)] + [record("mmmu-1"), record("RLHF-1")]
    shown, swapped = (0, 1), (1, 0)
    votes = {
        "wildvision-0": [(shown, FIRST)],
        "wildvision-1": [(swapped, FIRST)],  # the worse one was shown first
        "wildvision-2": [(shown, NONE), (shown, FIRST), (shown, FIRST)],
        "wildvision-3": [(shown, NONE), (shown, FIRST), (shown, SECOND)],  # no majority
        "mmmu-1": [(shown, "Therefore Answer 7 is better")],  # is not the worse one
        "RLHF-1": [(swapped, SECOND)],
    }
    figures = grade_vl_rewardbench(records, votes).figures
    # a pair with an unreadable vote stays, one without a majority does not
    assert (figures["general"].value, figures["general"].n) == (pytest.approx(2 / 3), 3)
    assert figures["reasoning"].value == figures["hallucination"].value == 1
    assert figures["overall"].value == pytest.approx(4 / 5)
    assert figures["macro"].value == pytest.approx((2 / 3 + 1 + 1) / 3)
    assert figures["left out"].value == pytest.approx(1 / 6)
    only = grade_vl_rewardbench(records[:1], {"wildvision-0": [(shown, NONE)]}).figures
    assert only["overall"] is None and only["macro"] is None


def multimodal(number):
    row = {"ab": {"row": {"Category": "knowledge"}}}
    return record(f"q-{number}").model_copy(update={"extra": row})


def test_multimodal_rewardbench_tosses_its_own_coins():
    records = [multimodal(number) for number in range(40)]
    unread = {each.id: [((0, 1), "I cannot say")] for each in records}
    coins = random.Random(123)
    heads = [coins.random() < 0.5 for _ in records]
    figures = grade_multimodal_rewardbench(records, unread).figures
    # the better answer stands first, so that it is A
    assert figures["all"].value == pytest.approx(sum(heads) / 40) and figures["tossed"].value == 1
    # A counts before B, wherever they stand; a reply that is read tosses no coin
    read = {**unread, "q-0": [((0, 1), "[[B]], or rather [[A]]")], "q-1": [((1, 0), "[[B]]")]}
    figures = grade_multimodal_rewardbench(records, read).figures
    assert figures["all"].value == pytest.approx((2 + sum(heads[:38])) / 40)
    assert figures["knowledge"].n == 40 and figures["tossed"].value == pytest.approx(38 / 40)
    with pytest.raises(UsageError, match="2 votes, where the code takes one"):
        grade_multimodal_rewardbench(records, {**unread, "q-3": unread["q-3"] * 2})


def test_multimodal_rewardbench_2_counts_each_order_for_itself():
    """The better answer is the first of "a", the second of "b"."""
    records = [record("a"), record("b", ((1,), (0,)))]
    records = [one.model_copy(update={"extra": {"task": "reasoning"}}) for one in records]
    shown, swapped = (0, 1), (1, 0)
    says = '{{"reasoning": "…", "better_response": "{}"}}'.format
    votes = {
        "a": [(shown, says("A")), (swapped, says("A"))],  # right, wrong
        "b": [(shown, f"```json\n{says('B')}\n```"), (swapped, says("tie"))],  # right, wrong
    }
    figures = grade_multimodal_rewardbench_2(records, votes).figures
    assert figures["reasoning"].value == figures["all"].value == 0.5 and figures["all"].n == 4
    assert figures["left out"].value == 0
    votes["b"][1] = (swapped, "I cannot say.")
    figures = grade_multimodal_rewardbench_2(records, votes).figures
    assert figures["all"].value == pytest.approx(2 / 3) and figures["left out"].value == 0.25
    with pytest.raises(UsageError, match="one vote in either order"):
        grade_multimodal_rewardbench_2(records, {"a": votes["a"], "b": [votes["b"][0]] * 2})


def test_what_a_judge_has_replied_is_its_votes(tmp_path):
    path = tmp_path / "1.png"
    Image.new("RGB", (8, 8)).save(path)
    one = record("wildvision-1").model_copy(update={"images": [str(path)]})
    judge = PairJudge(lambda images, prompts: [FIRST, SECOND])
    scores = rank_benchmark([one], judge, BENCHMARKS["vl_rewardbench"])
    votes = votes_of(judge)
    assert votes == {"wildvision-1": [((0, 1), FIRST), ((1, 0), SECOND)]}
    # both replies mean answer 0: ours and the official reading agree
    assert scores == {"wildvision-1": [0.0, -1.0]}
    assert grade_vl_rewardbench([one], votes).figures["overall"].value == 1
