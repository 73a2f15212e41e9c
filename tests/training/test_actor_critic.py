"""The critic beside the policy: whose weights it moves, and how it warms up."""

import dataclasses

import numpy as np
import pytest
import torch
from small_ppo import RECORDS, SMALL, moved, trainer, weights
from torch.testing import assert_close

from helpers import losses, models
from helpers.config import RewardSettings
from helpers.data.tasks import tasks_of
from helpers.files import UsageError
from helpers.rewards import reward_model
from helpers.rewards.scoring import make_scorer
from helpers.training.actor_critic import CRITIC_ADAPTER
from helpers.training.advantages import ADVANTAGES, AdvantageWay
from helpers.training.ppo import PPOTrainer
from helpers.training.warm_up import warm_up_critic

pytestmark = pytest.mark.heavy(reason="trains the tiny model")


def no_advantage(rewards, values, mask, settings, mean):
    """Returns for the critic, and nothing for the policy to learn from."""
    _, returns = losses.gae(rewards, values, mask, settings.gamma, settings.lam)
    return torch.zeros_like(rewards), returns


def test_a_critic_with_its_own_adapter_leaves_the_policy_alone(monkeypatch):
    """Its loss reaches its adapter and head; one on the policy's states reaches the policy, too.

    Unless it is detached.
    """
    monkeypatch.setitem(ADVANTAGES, "none", AdvantageWay(no_advantage, learns_values=True))
    kinds = {
        "own": {"critic_adapter": True},
        "detached": {"critic_detached": True},
        "joint": {"critic_detached": False},
    }
    reached = {}
    for name, how in kinds.items():
        settings = dataclasses.replace(SMALL, learning_rate=0.0, advantages="none", **how)
        run = trainer(settings)
        run.actor.critic.value[-1].weight.data.fill_(0.1)
        (row,) = run.train(1)
        assert row["grad_norm/critic"] > 0
        reached[name] = row["grad_norm/adapter"]
    assert reached["own"] == reached["detached"] == 0 < reached["joint"]


def test_one_base_serves_all_roles():
    """No second copy: the frozen weights that policy, reference, critic and reward model use are the same storage."""
    base, processor = models.load_model("tiny")
    before = {p.data_ptr() for p in base.parameters()}
    policy = models.add_adapter(base, SMALL.lora)
    reward = reward_model.new_reward_model(policy, processor, RewardSettings())
    settings = dataclasses.replace(SMALL, critic_adapter=True)
    run = PPOTrainer(policy, processor, tasks_of(RECORDS), reward_model.as_scorer(reward), settings)
    assert run.actor.policy is run.model is reward.backbone is policy
    frozen = {name: p for name, p in policy.named_parameters() if "lora_" not in name}
    assert {p.data_ptr() for p in frozen.values()} == before
    kept = {
        name: p.detach().clone()
        for name, p in policy.named_parameters()
        if f".{reward_model.REWARD_ADAPTER}." in name
    }
    kept |= {name: p.detach().clone() for name, p in frozen.items()}
    run.train(1)
    assert all(torch.equal(p, kept[name]) for name, p in policy.named_parameters() if name in kept)
    assert policy.active_adapter == models.POLICY_ADAPTER


def test_a_critic_warms_up_in_parts_as_in_one():
    yes = make_scorer(
        "yes", lambda image, question, answer, facts: {"yes": float(answer == "Yes.")}
    )
    tasks, answers = tasks_of(RECORDS[:8]), [["Yes.", "No, not at all."], ["No."]] * 4
    runs, histories = [], []
    for parts, saving in ((4, False), (1, False), (2, True)):
        settings = dataclasses.replace(
            SMALL, critic_adapter=True, mini_batch=parts, gradient_checkpointing=saving
        )
        runs.append(trainer(settings, yes))
        histories.append(warm_up_critic(runs[-1], tasks, answers, 3, prompts_per_step=4))
    for run, history in zip(runs[1:], histories[1:], strict=True):
        assert len(history) == 6 and history == pytest.approx(histories[0], rel=1e-3)
        for name, value in weights(runs[0]).items():
            assert_close(weights(run)[name], value, rtol=1e-3, atol=1e-4, msg=name)
    assert runs[2].model.is_gradient_checkpointing


def test_a_warm_critic_learns_from_answers_that_nobody_sampled():
    yes = make_scorer(
        "yes", lambda image, question, answer, facts: {"yes": float(answer == "Yes.")}
    )
    run = trainer(dataclasses.replace(SMALL, critic_adapter=True), yes)
    before, tasks = weights(run), tasks_of(RECORDS[:8])
    history = warm_up_critic(run, tasks, [["Yes.", "No."]] * 8, 20, prompts_per_step=4)
    assert len(history) == 40 and np.mean(history[-4:]) < 0.7 * np.mean(history[:4])
    assert all(
        name.startswith("critic.") or f".{CRITIC_ADAPTER}." in name for name in moved(run, before)
    )
    with pytest.raises(UsageError, match="critic_adapter=True"):
        warm_up_critic(trainer(), tasks, [["No."]] * 8)
