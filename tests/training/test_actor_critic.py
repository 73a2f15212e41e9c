"""The critic beside the policy: whose weights it moves, and how it warms up."""

import dataclasses

import numpy as np
import pytest
import torch
from small_ppo import RECORDS, SMALL, moved, trainer, weights
from torch.testing import assert_close

from helpers import models
from helpers.config import RewardSettings
from helpers.files import UsageError
from helpers.rewards import reward_model
from helpers.rewards.scoring import make_scorer
from helpers.training.actor_critic import CRITIC_ADAPTER
from helpers.training.ppo import PPOTrainer
from helpers.training.rollout import tasks_of

pytestmark = pytest.mark.heavy(reason="trains the tiny model")


def test_a_critic_with_its_own_adapter_leaves_the_policy_alone():
    """Its loss reaches its adapter and head only; one on the policy's states reaches the policy unless detached."""
    reached = {}
    for name, how in {
        "own": {"critic_adapter": True},
        "detached": {"critic_detached": True},
        "joint": {"critic_detached": False},
    }.items():
        run = trainer(dataclasses.replace(SMALL, learning_rate=0.0, **how))
        run.actor.critic.value[-1].weight.data.fill_(0.1)
        experience = run.experience(run.sample())
        experience = dataclasses.replace(
            experience, advantages=torch.zeros_like(experience.advantages)
        )
        reached[name] = run.step(experience, [0, 1])["grad_norm/adapter"]
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
    run.iterate()
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
        histories.append(runs[-1].warm_up_critic(tasks, answers, epochs=3, prompts_per_step=4))
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
    history = run.warm_up_critic(tasks, [["Yes.", "No."]] * 8, epochs=20, prompts_per_step=4)
    assert len(history) == 40 and np.mean(history[-4:]) < 0.7 * np.mean(history[:4])
    assert all(
        name.startswith("critic.") or f".{CRITIC_ADAPTER}." in name for name in moved(run, before)
    )
    with pytest.raises(UsageError, match="critic_adapter=True"):
        trainer().warm_up_critic(tasks, [["No."]] * 8)
