"""Wins of a policy over the base by a judge: by hand, against scipy, and by a real reward model."""

import warnings

import numpy as np
import pytest
from made_up_tasks import tasks_about
from PIL import Image
from scipy.stats import binomtest
from shipped import TRAFFIC
from small_rewards import QUICK

from helpers import models
from helpers.data import read_records, tasks_of
from helpers.evaluation import is_circular, tiers_of_answers, win_rates
from helpers.rewards import (
    PairJudge,
    as_ranker,
    as_scorer,
    head_hash,
    make_scorer,
    new_reward_model,
    score_all,
)

LENGTH = make_scorer("length", lambda image, question, answer, facts: {"length": len(answer)})


def test_wins_by_hand_and_a_sign_test_over_photos(tmp_path):
    """Photos: a a b b c c d d e e; the policy wins in both of a to c, ties in d, splits e."""
    photos = [name for name in "abcde" for _ in range(2)]
    tasks = tasks_about(tmp_path, photos)
    base = ["xx"] * 10
    policy = ["xxx"] * 6 + ["yy"] * 2 + ["x", "xxx"]
    (row,) = win_rates(tasks, {"base": base, "dpo": policy}, {"length": LENGTH}).found
    assert (row.wins, row.ties, row.losses) == (7, 2, 1)
    assert row.rate.value == pytest.approx((7 + 2 / 2) / 10) and row.rate.n == 5
    # d and e gain nothing: 3 of 3
    assert row.p == pytest.approx(binomtest(3, 3).pvalue) == pytest.approx(0.25)
    assert (
        row.agreement is None
        and "not known"
        in win_rates(tasks, {"base": base, "dpo": policy}, {"length": LENGTH}).rows()[1]
    )


def test_a_clear_win_is_claimed_and_holm_counts_all_rows(tmp_path):
    tasks = tasks_about(tmp_path, [str(i) for i in range(10)])
    said = {"base": ["xx"] * 10, "dpo": ["xxx"] * 10, "ppo": ["x"] * 10}
    better, worse = win_rates(tasks, said, {"length": LENGTH}).found
    assert better.p == pytest.approx(2 / 2**10) and better.adjusted == pytest.approx(4 / 2**10)
    assert (better.verdict, worse.verdict) == ("better", "WORSE")


def test_the_truth_says_how_often_the_judge_is_right(tmp_path):
    tasks = tasks_about(tmp_path, [str(i) for i in range(6)])
    said = {"base": ["xx"] * 6, "dpo": ["xxx", "xxx", "x", "xx", "xxx", "x"]}
    right = {"base": [0, 0, 1, 0, 0, 0], "dpo": [1, 0.5, 0, 1, 0, 0]}
    found = win_rates(tasks, said, {"length": LENGTH}, right=right)
    # decided: 0, 1 and 2 as the truth has it, 3 a tie of the judge, ½; 4 and 5 are equally right
    assert found.found[0].agreement.value == 3.5 / 4 and found.found[0].agreement.n == 4
    assert "0.875" in " ".join(found.sentences())
    alike = {"base": [1] * 6, "dpo": [1] * 6}
    assert win_rates(tasks, said, {"length": LENGTH}, right=alike).found[0].agreement is None


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_questions_are_no_crash(tmp_path, number):
    tasks = tasks_about(tmp_path, [str(i) for i in range(number)])
    said = {"base": ["x"] * number, "dpo": ["xx"] * number}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = win_rates(
            tasks, said, {"length": LENGTH}, right={"base": [0] * number, "dpo": [1] * number}
        )
        text = str(found.rows()) + " ".join(found.sentences())
    assert "nan" not in text and "better" not in text
    assert len(found.rows()) == (2 if number else 1)


def test_what_trained_a_policy_is_circular(tmp_path):
    first = new_reward_model(*models.load_model("tiny"), QUICK, seed=0)
    second = new_reward_model(first.backbone, first.processor, QUICK, seed=1)
    trained = {"reward": "reward_model", "reward_hash": head_hash(first)}
    assert is_circular(trained, first) and not is_circular(trained, second)
    assert is_circular({"reward": "heuristic+reward_model"}, second), (
        "no hash: to be on the safe side"
    )
    assert is_circular({"reward": "length"}, LENGTH) and not is_circular({"reward": None}, LENGTH)
    assert not is_circular({"reward": "count_exact"}, first) and not is_circular({}, first)
    tasks = tasks_about(tmp_path, ["a", "b"])
    said = {"base": ["one", "two"], "ppo": ["three", "four"]}
    both = win_rates(tasks, said, {"the same": first, "other half": second}, {"ppo": trained})
    assert [row.circular for row in both.found] == [True, False]
    assert not any("only judged by" in sentence for sentence in both.sentences())
    alone = win_rates(tasks, said, {"the same": first}, {"ppo": trained})
    assert "circular" in alone.rows()[1][-1] and "only judged by" in alone.sentences()[-1]


def test_a_reward_model_ranks_by_its_scores_and_equal_answers_stand_in_one_place():
    reward = new_reward_model(*models.load_model("tiny"), QUICK)
    records = read_records(TRAFFIC / "preferences_valid.jsonl")[:20]
    tasks = tasks_of(records)
    said = {"base": ["There are 2 cars."] * 20, "dpo": ["No.", "There are 2 cars."] * 10}
    tiers = tiers_of_answers(as_ranker(reward), tasks, said)
    assert (tiers["base"][1::2] == 0).all() and (tiers["dpo"][1::2] == 0).all()
    scorer = as_scorer(reward)
    rows = {name: [] for name in said}
    for name, texts in said.items():
        for task, text in zip(tasks, texts, strict=True):
            rows[name].append(task.scorer_inputs(task.open_images(), text))
    totals = {name: [one.total for one in score_all(scorer, own)] for name, own in rows.items()}
    better = np.greater(totals["base"], totals["dpo"])[::2]
    assert (tiers["dpo"][::2] == better).all() and (tiers["base"][::2] == ~better).all()


def test_a_judge_that_is_asked_decides_between_policies(tmp_path):
    """It prefers what holds an x, in either order."""
    tasks = tasks_about(tmp_path, ["a", "b"])
    said = {"base": ["one", "two x"], "dpo": ["one x", "two x"]}

    def ask(images, prompts):
        parts = [prompt.split("[Answer B]") for prompt in prompts]
        return ["[[A]]" if " x" in first else "[[B]]" for first, _ in parts]

    judge = PairJudge(ask, "asked")
    (row,) = win_rates(tasks, said, {"judge": judge}).found
    assert (row.wins, row.ties, row.losses, row.circular) == (1, 1, 0, False)
    assert len(judge.replies) == 2 and is_circular({"reward": "asked"}, judge)


def test_a_judge_is_given_no_truth(tmp_path):
    def parts(image, question, answer, facts):
        assert facts is None and isinstance(image, Image.Image)
        return {"one": 1}

    tasks = tasks_about(tmp_path, ["a"], facts="2", kind="exact_match")
    found = win_rates(tasks, {"base": ["1"], "dpo": ["2"]}, {"one": make_scorer("one", parts)})
    assert found.found[0].ties == 1
