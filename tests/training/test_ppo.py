"""The loop of PPO, RLOO and GRPO: what moves and what stays, the three log-probabilities, going on after a kill."""

import dataclasses
import inspect
import itertools
import math
import re

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from small_ppo import RECORDS, SMALL, moved, shift_answers, trainer, weights
from torch.testing import assert_close

from helpers import losses, models
from helpers.config import PPO_PRESETS, RewardSettings
from helpers.data import tasks as task_module
from helpers.data.record import Message
from helpers.data.tasks import Task, tasks_of
from helpers.files import ROOT, UsageError
from helpers.models import encoded_prompts
from helpers.models.shared_prefix import answer_logits, answer_logps
from helpers.rewards import reward_model
from helpers.rewards.catalogue import get_scorer
from helpers.rewards.scoring import count_exact, make_scorer, weighted_scorer
from helpers.runtime import TOLERANCES
from helpers.training import ppo
from helpers.training.actor_critic import CRITIC_ADAPTER, TokenFigures
from helpers.training.advantages import ADVANTAGES, AdvantageWay
from helpers.training.ppo import PPOTrainer, critic_loss, policy_loss, set_learning_rates
from helpers.training.rollout import ROLLOUT_FILTERS, MiniBatch, Rollout
from helpers.training.warm_up import warm_up_critic

pytestmark = pytest.mark.heavy(reason="trains the tiny model")

STEPS = ("Sample", "Look", "Reward", "Advantage", "Policy update", "Critic update")
ONE_UPDATE = dataclasses.replace(SMALL, epochs=1, mini_batch=4)  # in an iteration
constant = make_scorer("constant", lambda *given: {"constant": 0.5})


@pytest.mark.parametrize("own", [False, True], ids=["head", "adapter"])
def test_adapter_and_critic_move_and_the_base_stays(own):
    run = trainer(dataclasses.replace(SMALL, critic_adapter=own))
    before = weights(run)
    (row,) = run.train(1)
    changed = moved(run, before)
    assert any(".default." in name for name in changed) and any(
        name.startswith("critic.") for name in changed
    )
    assert own == any(f".{CRITIC_ADAPTER}." in name for name in changed)
    assert all(name.startswith("critic.") or "lora_" in name for name in changed)
    assert row["ppo/ratio_first"] == pytest.approx(1, abs=1e-5) and row["grad_norm/critic"] > 0


@pytest.mark.parametrize("advantages", ["gae", "rloo", "grpo"])
def test_without_advantages_the_weights_stay_bit_for_bit(advantages):
    """Equal scores, no KL, no entropy, no critic: also after a step that gave Adam momentum."""
    how = {"advantages": advantages, "kl_weight": 0.0, "critic_layers": 0}
    run = trainer(dataclasses.replace(SMALL, **how))
    start = weights(run)
    run.train(1)
    assert moved(run, start)
    run.sampler.score = constant
    before = weights(run)
    row = run.train(1)[-1]
    assert not moved(run, before) and row["ppo/advantages/size"] == 0 == row["grad_norm/adapter"]
    assert row["groups/zero_variance"] == 1


def test_three_log_probabilities():
    """old = new before the update; the reference is the base; afterwards all three differ."""
    run = trainer(dataclasses.replace(SMALL, learning_rate=5e-3))
    run.train(1)
    packed = run.sampler.sample(1).pack(run.sampler.packer)
    with torch.no_grad():
        old = run.actor(packed).logps
    with torch.no_grad(), models.disable_adapters(run.model):
        base = answer_logps(run.model, packed)
    run.train(1)
    experience = run.last
    assert_close(old, experience.old_logps)
    # image tokens are left out of ours: 1e-5
    assert_close(experience.reference_logps, base, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        new = run.actor(packed).logps
    gaps = [old - base, new - old, new - base]
    assert all(gap.abs().max() > 0.01 for gap in gaps)


@pytest.mark.parametrize("advantages", ["gae", "rloo", "grpo"])
def test_rewards_and_advantages_of_an_iteration(advantages):
    """As the formulas say, from the scores and log-probabilities of the iteration."""
    how = {"advantages": advantages, "kl_weight": 0.1, "learning_rate": 3e-3}
    run = trainer(dataclasses.replace(ONE_UPDATE, **how))
    run.train(2)
    e = run.last
    kl = (e.old_logps - e.reference_logps) * e.mask
    weight = 0.0 if advantages == "grpo" else 0.1
    totals = e.rollout.scores - weight * kl.sum(1)
    assert_close(e.rewards.sum(1), totals)
    last = e.mask.sum(1) - 1
    at_end = e.rewards.gather(1, last[:, None]).squeeze(1)
    assert_close(at_end, e.rollout.scores - weight * kl.gather(1, last[:, None]).squeeze(1))
    if advantages == "gae":
        expected, returns = losses.gae(e.rewards, e.values, e.mask, 1.0, 0.95)
        expected = losses.whiten(expected, e.mask)
        assert_close(e.returns, returns)
    else:
        assert_close(e.values, totals.mean() * e.mask)
        groups = totals.view(-1, 4)
        centred = groups - groups.mean(1, keepdim=True)
        each = (
            centred * 4 / 3
            if advantages == "rloo"
            else centred / (groups.std(1, keepdim=True) + 1e-4)
        )
        expected = each.flatten()[:, None] * e.mask
    assert_close(e.advantages, expected)


def test_answers_that_are_not_those_sampled_stop_the_run(monkeypatch):
    run = trainer()
    shift_answers(run, monkeypatch)
    before = weights(run)
    with pytest.raises(RuntimeError, match="before any update"):
        run.train()
    # but for the critic, which starts at the mean score
    assert moved(run, before) <= {"critic.value.4.bias"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_ruins_no_weight(value):
    """One of 16 answers: it would be in the mean of all, and so in every gradient."""
    run = trainer(score=make_scorer("broken", lambda *given: {"half": value, "whole": 1.0}))
    before = weights(run)
    with pytest.raises(UsageError, match=f"scorer broken: half is {value} for the answer"):
        run.train()
    assert not moved(run, before) and run.log == []


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_no_step_is_taken_on_a_gradient_that_is_not_finite(value):
    run = trainer()
    run.train(1)
    before = weights(run)
    named = dict(run.actor.named_parameters())
    for weight in named.values():
        if weight.requires_grad:
            weight.grad = torch.ones_like(weight)
    next(iter(run.optimizer.param_groups[0]["params"])).grad[0] = value
    norms = ppo.take_step(run.accelerator, run.optimizer, 1.0)
    assert not math.isfinite(norms["adapter"]) and math.isfinite(norms["critic"])
    assert not moved(run, before)
    # The next one is taken
    for weight in named.values():
        if weight.requires_grad:
            weight.grad = torch.ones_like(weight)
    ppo.take_step(run.accelerator, run.optimizer, 1.0)
    assert moved(run, before)


@pytest.mark.parametrize("is_broken", [False, True])
def test_a_state_that_a_watcher_calls_broken_is_not_kept(tmp_path, is_broken):
    """The one before it is, from which a run can go on."""

    def stop_at_two(run):
        run.stopped = run.iteration == 2
        run.is_broken = run.stopped and is_broken

    run = trainer(folder=tmp_path, watch=[stop_at_two])
    run.train()
    assert run.iteration == 2
    again = trainer(folder=tmp_path)
    assert again.iteration == (1 if is_broken else 2)


def test_how_far_rounding_may_take_the_first_ratio():
    """A token by 0.8 in bf16, and the mean of 100 tokens by 0.8 / √100 = 0.08."""
    mask = torch.ones(4, 25)

    def check(ratio, kl=0.0):
        ppo.check_first_ratio(losses.PolicyLoss(torch.zeros(()), 0.0, kl, ratio), mask, 0.8)

    check(1.07)
    # ratios of other answers may cancel in the mean, not in KL: 0.8 · 0.08 / 2 = 0.032
    check(1.0, kl=0.03)
    for wrong in ({"ratio": 1.09}, {"ratio": 0.91}, {"ratio": 1.0, "kl": 0.035}):
        with pytest.raises(RuntimeError, match="before any update"):
            check(**wrong)


def test_the_tolerance_follows_the_precision_unless_it_is_set():
    assert trainer().tolerance == TOLERANCES[torch.float32].nats
    assert trainer(dataclasses.replace(SMALL, ratio_tolerance=0.25)).tolerance == 0.25


def test_temperature_and_top_p_keep_the_ratio():
    (row,) = trainer(dataclasses.replace(SMALL, temperature=0.7, top_p=0.9)).train(1)
    assert row["ppo/ratio_first"] == pytest.approx(1, abs=1e-5)


def test_the_questions_answers_of_one_word_have_nothing_to_learn_from():
    """A project trained on one answer of a word or two at a time: whitening takes the score out of the advantages."""
    settings = dataclasses.replace(PPO_PRESETS["vqa"], iterations=1, max_new_tokens=40)
    one, two = (
        trainer(settings, make_scorer("score", lambda *given, size=size: {"score": size}))
        for size in (0.2, 1.0)
    )
    one.train()
    two.train()
    pair = [one.last, two.last]
    assert pair[0].rollout.texts == pair[1].rollout.texts
    assert pair[0].rollout.scores.tolist() != pair[1].rollout.scores.tolist()
    assert_close(pair[0].advantages, pair[1].advantages, rtol=1e-4, atol=1e-4)


def test_without_packing_an_iteration_is_the_same():
    """One row an answer: another way to the same numbers."""
    runs = [
        trainer(dataclasses.replace(SMALL, critic_layers=0), packs=packs) for packs in (True, False)
    ]
    packed, rows = (run.train(1)[0] for run in runs)
    assert packed.keys() == rows.keys()
    for key in (
        "objective/scores",
        "objective/entropy",
        "ppo/advantages/size",
        "ppo/loss/policy",
        "ppo/policy/approxkl",
    ):
        assert packed[key] == pytest.approx(rows[key], rel=2e-2, abs=1e-4), key


@pytest.mark.parametrize("packs", [True, False], ids=["packed", "plain"])
def test_an_iteration_reads_each_prompt_and_image_once(packs, monkeypatch):
    """Sampling reads them; three passes without gradients and two epochs of updates only pack what was read."""
    run = trainer(
        dataclasses.replace(SMALL, epochs=2, critic_adapter=True, sampling_batch=2), packs=packs
    )
    read, hashed, opened = [], [], []
    call, hash_of, open_file = (
        type(run.sampler.packer.processor).__call__,
        encoded_prompts.images_hash,
        task_module.open_image,
    )

    def count_texts(self, **given):
        read.extend(given["text"])
        return call(self, **given)

    monkeypatch.setattr(type(run.sampler.packer.processor), "__call__", count_texts)
    monkeypatch.setattr(
        encoded_prompts, "images_hash", lambda images: hashed.append(images) or hash_of(images)
    )
    monkeypatch.setattr(
        task_module, "open_image", lambda path: opened.append(path) or open_file(path)
    )
    run.train(1)
    asked = run.last.rollout.prompts
    assert len(set(zip(asked.texts, asked.image_hashes, strict=True))) == 4 and sorted(
        read
    ) == sorted(asked.texts)
    assert len(hashed) == len(opened) == 4


def test_gradient_checkpointing_changes_no_number():
    runs = [
        trainer(dataclasses.replace(SMALL, critic_adapter=True, gradient_checkpointing=on))
        for on in (False, True)
    ]
    for run in runs:
        run.train(1)
    assert runs[1].model.is_gradient_checkpointing and not runs[0].model.is_gradient_checkpointing
    for name, value in weights(runs[0]).items():
        assert_close(weights(runs[1])[name], value, rtol=1e-4, atol=1e-5, msg=name)


TOKEN_FIGURES = (
    "mask",
    "old_logps",
    "reference_logps",
    "values",
    "entropy",
    "learnt",
    "rewards",
    "advantages",
    "returns",
)


@pytest.mark.parametrize(("own", "size"), [(False, 3), (True, 1)], ids=["head", "adapter"])
def test_slices_change_no_figure_of_an_iteration(own, size, monkeypatch):
    """Old policy, reference, critic, advantages: 4 prompts all at once and in slices."""
    settings = dataclasses.replace(ONE_UPDATE, critic_adapter=own)
    seen = []
    for at_once in (4, size):
        run = trainer(dataclasses.replace(settings, sampling_batch=at_once))
        rollout = run.sampler.sample(0) if not seen else seen[0].rollout
        # answers of 5, 7, 9 and 11 tokens
        ids = [ids[: 5 + 2 * (n // 4)] for n, ids in enumerate(rollout.ids)]
        cut = dataclasses.replace(rollout, ids=ids)
        monkeypatch.setattr(run.sampler, "sample", lambda iteration, cut=cut: cut)
        run.train(1)
        seen.append(run.last)
    whole, sliced = seen
    for name in TOKEN_FIGURES:
        expected = getattr(whole, name)
        assert_close(getattr(sliced, name), expected, rtol=1e-4, atol=1e-5, msg=name)


def test_slices_ask_the_same_questions_and_are_drawn_apart():
    whole = trainer(dataclasses.replace(SMALL, temperature=3.0))
    run = trainer(dataclasses.replace(SMALL, temperature=3.0, sampling_batch=1))
    at_once, sliced = whole.sampler.sample(0), run.sampler.sample(0)
    assert at_once.prompts.texts == sliced.prompts.texts
    assert at_once.tasks == sliced.tasks
    run.sampler.tasks = [whole.sampler.tasks[0]] * len(whole.sampler.tasks)
    rollout = run.sampler.sample(0)
    groups = [tuple(rollout.texts[4 * n : 4 * n + 4]) for n in range(4)]
    assert len(set(groups)) == 4  # equal questions, different answers
    assert rollout.texts == run.sampler.sample(0).texts and len(rollout.scores) == 16
    (row,) = run.train(1)
    assert row["ppo/ratio_first"] == pytest.approx(1, abs=1e-5) and row["samples"] == 16


def test_no_more_rows_than_fit_are_in_a_pass(monkeypatch):
    run = trainer(dataclasses.replace(SMALL, critic_adapter=True, sampling_batch=1, mini_batch=2))
    seen = {True: [], False: []}  # with and without gradients

    def counted(forward):
        def look(packed, *rest, **more):
            seen[torch.is_grad_enabled()].append(packed.inputs["input_ids"].shape[0])
            return forward(packed, *rest, **more)

        return look

    monkeypatch.setattr(run.actor, "forward", counted(run.actor.forward))
    tasks = run.sampler.tasks[:6]
    warm_up_critic(run, tasks, [["A.", "B."]] * 6, 1, prompts_per_step=6)
    assert seen == {True: [2, 2, 2], False: []}
    run.train(1)
    assert set(seen[True]) == {2} and set(seen[False]) == {1}


def test_a_short_run_learns():
    """From .43 exact answers when sampled."""
    settings = dataclasses.replace(SMALL, prompts_per_iteration=16, mini_batch=8, iterations=8)
    log = trainer(settings, count_exact).train()
    scores = [row["objective/scores"] for row in log]
    assert np.mean(scores[-2:]) > np.mean(scores[:2]) + 0.15
    assert [row["samples"] for row in log] == [64 * n for n in range(1, 9)]


def two_tokens(*, values=(1.0, 1.0), count=2.0):
    """A mini-batch of one answer of two tokens, and one that is no token."""
    nothing = 9.0

    def row(*figures):
        return torch.tensor([[*figures, nothing]])

    return MiniBatch(
        packed=None,
        mask=torch.tensor([[True, True, False]]),
        old_logps=row(-1.0, -1.0),
        reference_logps=row(-1.0, -1.0),
        values=row(*values),
        advantages=row(2.0, -1.0),
        returns=row(2.0, 2.0),
        count=torch.tensor(count),
    )


def test_the_policys_loss_by_hand():
    logps = torch.tensor([[math.log(1.5) - 1, -1.0, 5.0]])
    new = TokenFigures(logps, torch.tensor([[0.5, 1.5, 9.0]]), None)
    gae = dataclasses.replace(SMALL, entropy_weight=0.0)
    # ratios 1.5 and 1, advantages 2 and −1: −(min(3, 1.2 · 2) − 1) / 2
    loss, policy = policy_loss(new, two_tokens(), gae, kl_weight=0.3)
    assert_close(loss, torch.tensor(-0.7))
    assert policy.loss is loss and policy.ratio == pytest.approx(1.25) and policy.clip_share == 0.5
    # of two processes the other one has no token: sums are divided by (2 + 0) / 2
    loss, _ = policy_loss(new, two_tokens(count=1.0), gae, kl_weight=0.3)
    assert_close(loss, torch.tensor(-1.4))
    # a bonus of 0.1 for an entropy of 1 on average
    bonus = dataclasses.replace(gae, entropy_weight=0.1)
    loss, policy = policy_loss(new, two_tokens(), bonus, kl_weight=0.3)
    assert_close(loss, torch.tensor(-0.8))
    assert_close(policy.loss, torch.tensor(-0.7))
    # GRPO pays here, x = ln 1.5 and 0: (1 / 1.5 − 1 + ln 1.5) / 2 = 0.0360659, times 0.3
    grpo = dataclasses.replace(gae, advantages="grpo")
    loss, _ = policy_loss(new, two_tokens(), grpo, kl_weight=0.3)
    assert_close(loss, torch.tensor(-0.7 + 0.0108198))


def test_the_critics_loss_by_hand():
    values = torch.tensor([[1.1, 1.5, 5.0]])
    # old values 1, returns 2, clip 0.2: ½ · 0.9² = 0.405 and, held at 1.2, ½ · 0.8² = 0.32
    assert_close(critic_loss(values, two_tokens(), SMALL), torch.tensor(0.3625))
    assert critic_loss(None, two_tokens(), SMALL) == 0


@pytest.mark.parametrize("own", [False, True], ids=["head", "adapter"])
def test_the_critics_gradient_has_its_weight(own):
    how = {"critic_adapter": own, "max_grad_norm": 1e9}
    norms = []
    for weight in (0.5, 1.5):
        settings = dataclasses.replace(ONE_UPDATE, value_weight=weight, **how)
        (row,) = trainer(settings).train(1)
        norms.append(row["grad_norm/critic"])
    assert norms[1] == pytest.approx(3 * norms[0], rel=1e-3)


def test_learning_rates_fall_linearly():
    settings = dataclasses.replace(SMALL, critic_learning_rate=0.5, learning_rate=1.0)
    run = trainer(settings)
    rates = []
    for iteration in (0, 1, 3):
        set_learning_rates(run.optimizer, settings, iteration)
        rates.append([group["lr"] for group in run.optimizer.param_groups])
    assert rates == [[1.0, 0.5], [0.75, 0.375], [0.25, 0.125]]
    set_learning_rates(run.optimizer, dataclasses.replace(settings, anneal_lr=False), 3)
    assert [group["lr"] for group in run.optimizer.param_groups] == [1.0, 0.5]


def test_probabilities_are_those_that_answers_are_sampled_with():
    """At a temperature of 0.7, and without the tokens of images."""
    run = trainer(dataclasses.replace(SMALL, temperature=0.7))
    packed = run.sampler.sample(0).pack(run.sampler.packer)
    with torch.no_grad():
        logits = answer_logits(run.model, packed)[:, :-1]
        figures = run.actor(packed)
    logits[..., models.banned_tokens(run.sampler.packer.processor)] = -torch.inf
    expected = torch.distributions.Categorical(logits=logits / 0.7)
    mask = packed.mask[:, 1:]
    logps = expected.log_prob(packed.ids[:, 1:])
    assert_close(figures.logps[mask], logps[mask], rtol=1e-4, atol=1e-4)
    assert_close(figures.entropy[mask], expected.entropy()[mask], rtol=1e-4, atol=1e-4)
    assert not figures.logps[~mask].any() and not figures.entropy[~mask].any()


def rollout_with(scores, group_size):
    """A rollout of which only the scores are known."""
    nothing = dict.fromkeys(("tasks", "prompts", "images", "ids", "texts", "ended", "results"))
    return Rollout(**nothing, group_size=group_size, scores=torch.tensor(scores))


def test_filters_by_hand():
    # three tasks, two answers each: equal, different, equal
    rollout = rollout_with([1.0, 1.0, 0.0, 1.0, 0.0, 0.0], 2)
    assert rollout.equal_scores().tolist() == [True, False, True]
    assert ROLLOUT_FILTERS["all"](rollout).tolist() == [True] * 6
    kept = ROLLOUT_FILTERS["different_scores"](rollout)
    assert kept.tolist() == [False, False, True, True, False, False]


def half_decided(tasks):
    """A scorer that says 0 and 1 in turn of the answers to two of the tasks, and .5 of all others."""
    turns = itertools.cycle((0.0, 1.0))
    decided = [id(task.facts) for task in tasks[:2]]

    def parts(image, question, answer, facts):
        return {"part": next(turns) if id(facts) in decided else 0.5}

    return make_scorer("half", parts)


COMPARED = dataclasses.replace(ONE_UPDATE, advantages="rloo", kl_weight=0.0, max_grad_norm=1e9)


def test_what_a_filter_leaves_out_is_neither_packed_nor_counted():
    """Without advantages its gradient is 0 anyway: the mean is over fewer tokens, so it is larger."""
    norms, runs = {}, {}
    for name in ("all", "different_scores"):
        run = runs[name] = trainer(dataclasses.replace(COMPARED, rollout_filter=name))
        asked = run.sampler.next_tasks(0, 0)
        run.sampler.score = half_decided(asked)
        (row,) = run.train(1)
        assert row["groups/zero_variance"] == 0.5
        norms[name] = row["grad_norm/adapter"]
    last = runs["different_scores"].last
    assert row["answers/learnt"] == 0.5 and row["answers/tokens"] == last.mask.sum() / 16
    assert last.learnt[:8].equal(last.mask[:8]) and not last.learnt[8:].any()
    (batch,) = runs["different_scores"].sampler.mini_batches(last, 0)
    assert len(batch.mask) == 8 and batch.mask.equal(batch.packed.mask[:, 1:])
    assert batch.count == last.learnt.sum()
    larger = last.mask.sum() / last.learnt.sum()
    assert norms["different_scores"] == pytest.approx(float(larger) * norms["all"], rel=1e-3)


@pytest.mark.parametrize("shards", [1, 2])
def test_mini_batches_of_which_a_filter_leaves_nothing_are_left_out(shards):
    """Of 4 mini-batches of 2 tasks, two epochs of two, those without a task that is decided."""
    how = {"epochs": 2, "mini_batch": 2, "shards": shards, "rollout_filter": "different_scores"}
    run = trainer(dataclasses.replace(COMPARED, **how))
    asked = [task for shard in range(shards) for task in run.sampler.next_tasks(0, shard)]
    run.sampler.score = half_decided(asked)
    run.train(1)
    batches = list(run.sampler.mini_batches(run.last, 0))
    sizes = sum(len(batch.mask) for batch in batches)
    assert sizes == 2 * 8 and all(batch.mask.any() for batch in batches)


@pytest.mark.parametrize("own", [False, True], ids=["rloo", "critic"])
def test_a_filter_that_leaves_nothing_says_so_and_moves_nothing(own, capsys):
    how = {"rollout_filter": "different_scores"}
    how |= {"advantages": "gae", "critic_adapter": True} if own else {"advantages": "rloo"}
    run = trainer(dataclasses.replace(SMALL, **how))
    run.train(1)
    before, score = weights(run), run.sampler.score
    capsys.readouterr()
    run.sampler.score = constant
    row = run.train(1)[-1]
    said = capsys.readouterr().out
    assert "Iteration 2: rollout_filter='different_scores' left no answer to learn from" in said
    assert not moved(run, before)
    assert row["answers/learnt"] == 0 == row["ppo/advantages/size"] == row["grad_norm/adapter"]
    assert row["objective/scores"] == 0.5 and row["ppo/ratio_first"] == 1
    run.sampler.score = score
    run.train(1)
    assert moved(run, before)


def test_another_method_enters_by_its_line_in_a_table(monkeypatch):
    """REINFORCE with the mean as baseline, on answers that have ended."""

    def from_mean(rewards, values, mask, settings, mean):
        totals = rewards.sum(1, keepdim=True)
        return (totals - totals.mean()) * mask, totals * mask

    def reinforce(logps, old_logps, advantages, mask, clip, count):
        loss = -losses.masked_mean(logps * advantages, mask, count)
        return losses.PolicyLoss(loss, clip_share=0.0, approx_kl=0.0, ratio=1.0)

    monkeypatch.setitem(ADVANTAGES, "mean", AdvantageWay(from_mean))
    monkeypatch.setitem(losses.POLICY_LOSSES, "reinforce", reinforce)
    monkeypatch.setitem(ROLLOUT_FILTERS, "ended", lambda rollout: rollout.ended)
    names = {"advantages": "mean", "policy_loss": "reinforce", "rollout_filter": "ended"}
    how = {"temperature": 2.0, "max_new_tokens": 24, "kl_weight": 0.0}
    run = trainer(dataclasses.replace(SMALL, **how, **names))
    before = weights(run)
    (row,) = run.train(1)
    assert run.actor.critic is None and moved(run, before)
    assert row["answers/learnt"] == pytest.approx(1 - row["answers/not_ended"])
    assert 0 < row["answers/learnt"] < 1
    scores = run.last.rollout.scores
    assert_close(run.last.advantages[:, 0], (scores - scores.mean()) * run.last.learnt[:, 0])


def test_losses_may_be_scaled_as_for_fp16():
    """A scaler refuses to unscale twice, or again before a step was tried: after an iteration without advantages, too."""
    how = {"advantages": "grpo", "kl_weight": 0.0, "critic_layers": 0}
    plain, scaled = (trainer(dataclasses.replace(SMALL, **how)) for _ in range(2))
    scaler = scaled.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaled.optimizer = AcceleratedOptimizer(scaled.optimizer.optimizer, scaler=scaler)
    scaled.accelerator.unscale_gradients = lambda _: scaler.unscale_(
        scaled.optimizer.optimizer
    )  # as in fp16
    for run in (plain, scaled):
        run.train(1)
        score, run.sampler.score = run.sampler.score, constant
        before = weights(run)
        run.train(1)
        assert not moved(run, before)
        run.sampler.score = score
        run.train(1)
        assert moved(run, before)
    for name, value in weights(plain).items():
        assert_close(weights(scaled)[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_kl_controller_follows_its_target():
    """KL is 0 in the first iteration (policy = reference), and over the target in the second: × 0.8, × 1.2."""
    how = {
        "kl_target": 1e-6,
        "kl_horizon": 16,
        "kl_weight": 0.1,
        "learning_rate": 5e-3,
        "iterations": 2,
    }
    run = trainer(dataclasses.replace(SMALL, **how))
    run.train()
    assert [row["objective/kl_weight"] for row in run.log] == pytest.approx([0.1, 0.08])
    assert run.log[0]["objective/kl"] == pytest.approx(
        0, abs=1e-5
    ) and run.kl.weight == pytest.approx(0.096)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"advantages": "dpo"}, "advantages='dpo': choose from gae, rloo, grpo"),
        ({"policy_loss": "dpo"}, "policy_loss='dpo': choose from clip"),
        ({"rollout_filter": "none"}, "rollout_filter='none': choose from all, different_scores"),
        ({"kl_estimator": "k4"}, "kl_estimator='k4': choose from k1, k2, k3"),
        ({"advantages": "rloo", "group_size": 1}, "set group_size to 2"),
        ({"temperature": 0.0}, "temperature over 0"),
        ({"prompts_per_iteration": 64}, "32 tasks"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, words, tiny):
    with pytest.raises(UsageError, match=words):
        PPOTrainer(*tiny, tasks_of(RECORDS), count_exact, dataclasses.replace(SMALL, **change))


def test_a_reward_model_scores_as_it_does_on_records(tiny):
    """In batches, one by one, scaled, and within a sum."""
    base, processor = models.load_model("tiny")
    reward = reward_model.new_reward_model(base, processor, RewardSettings())
    records = RECORDS[:3]
    expected = [score for row in reward_model.score_records(reward, records) for score in row]
    tasks = tasks_of(records)
    images = [task.open_images() for task in tasks]
    rows = [
        task.scorer_inputs(pictures, answer.text)
        for task, pictures, record in zip(tasks, images, records, strict=True)
        for answer in record.answers
    ]
    score = reward_model.as_scorer(reward, mean=1.0, scale=2.0)
    scaled = [(value - 1) / 2 for value in expected]
    assert [result.total for result in score.batch(rows)] == pytest.approx(scaled, abs=1e-4)
    assert [score(*row).total for row in rows] == pytest.approx(scaled, abs=1e-4)
    both = weighted_scorer({score: 0.5, count_exact: 1.0}).batch(rows)
    assert both[0].total == pytest.approx(0.5 * scaled[0] + count_exact(*rows[0]).total, abs=1e-4)
    assert both[0].parts.keys() == {"reward_model", "count_exact"}


@pytest.mark.heavy(reason="trains for some seconds")
def test_questions_about_two_images_in_two_turns_with_an_own_reward(tmp_path):
    """The reward sees both images and all turns; a run with another one is another run."""
    source = (
        "from pathlib import Path\n\n"
        "def long(image, question, answer, truth):\n"
        "    with Path(__file__).with_name('seen.txt').open('a') as file:\n"
        "        print(len(image), len(question.turns), truth, question, file=file)\n"
        "    return len(answer.split())\n"
    )
    (tmp_path / "mine.py").write_text(source)
    turns = [Message(role="user", content="How many?"), Message(role="assistant", content="Two.")]
    tasks = []
    for first, second in zip(RECORDS[:4], RECORDS[4:8], strict=True):
        images = (*first.image_paths, *second.image_paths)
        tasks.append(Task(images, (*turns, *first.prompt), None, "none"))
    settings = dataclasses.replace(SMALL, iterations=2, max_new_tokens=8)

    def start():
        score = get_scorer("mine.py:long", tmp_path)
        model = models.load_model("tiny")
        return PPOTrainer(*model, tasks, score, settings, folder=tmp_path / "run")

    log = start().train()
    assert len(log) == 2 and all(row["objective/scores"] > 0 for row in log)
    seen = set((tmp_path / "seen.txt").read_text().splitlines())
    assert seen and seen <= {f"2 3 None {task.question}" for task in tasks}
    assert start().iteration == 2  # it is finished
    (tmp_path / "mine.py").write_text(source.replace("split()", "split('.')"))
    with pytest.raises(UsageError, match="of a run with other reward"):
        start()


def page_of_ppo():
    """The pieces of code in docs/ppo.md."""
    page = (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
    return re.findall(r"```python\n(.+?)\n```", page, re.DOTALL)


def lines_of(source):
    return [line.strip() for line in source.splitlines() if line.strip()]


def test_the_page_quotes_the_whole_loop_in_its_order():
    """docs/ppo.md walks through `PPOTrainer.train`: not a line is left out, and none is another."""
    loop = lines_of(inspect.getsource(PPOTrainer.train))
    pieces = [lines_of(piece) for piece in page_of_ppo()]
    of_loop = [piece for piece in pieces if set(piece) <= set(loop)]
    # without decorator, signature and docstring
    assert [line for piece in of_loop for line in piece] == loop[3:]
    formulas = lines_of(inspect.getsource(losses))
    others = [piece for piece in pieces if piece not in of_loop]
    assert len(others) == 3
    for piece in others:
        places = [n for n, line in enumerate(formulas) if line == piece[0]]
        assert any(formulas[n : n + len(piece)] == piece for n in places), piece


def test_the_loop_is_one_page():
    source = inspect.getsource(PPOTrainer.train)
    assert len(source.splitlines()) <= 60
    for number, step in enumerate(STEPS, 1):
        assert f"# {number}. {step}: " in source
        assert f"## {number}. {step}\n" in (ROOT / "docs" / "ppo.md").read_text(encoding="utf-8")
