"""A round of DPO on pairs that the policy has just made."""

import dataclasses
import math

import pytest

from helpers import models
from helpers.config import DPO_PRESETS
from helpers.data.pairs import counting_tasks
from helpers.rewards.scoring import count_graded, make_scorer
from helpers.training.on_policy import on_policy_round

pytestmark = pytest.mark.heavy(reason="trains the tiny model")

CHANGES = {"steps": 2, "batch_size": 4, "sft_weight": 0.0}
SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], **CHANGES)


def test_each_round_begins_at_the_policy_that_the_one_before_has_left(valid_items, tmp_path):
    policy, processor = models.load_model("tiny")
    for number in (1, 2):
        done = on_policy_round(
            policy, processor, counting_tasks(valid_items[:12]), count_graded, SETTINGS,
            sampling_seed=1000 * number, cache=tmp_path / "cache",
        )  # fmt: skip
        assert 0 < done.pairs <= 12 and len(done.run.log) == 2
        # the reference is the policy at the start of the round, so that no margin is there: ln 2
        assert done.run.log[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        policy = done.policy


def test_a_round_without_pairs_leaves_the_policy_and_says_so(tiny, valid_items):
    nothing = make_scorer("nothing", lambda *given: {"nothing": 0.0})
    tasks = counting_tasks(valid_items[:4])
    done = on_policy_round(*tiny, tasks, nothing, SETTINGS, sampling_seed=0)
    assert done.policy is tiny[0] and (done.pairs, done.run) == (0, None)
    assert str(done).startswith("left out")
