"""The loop of PPO, RLOO and GRPO: what moves and what stays, the three log-probabilities, going on after a kill."""

import dataclasses

import numpy as np
import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from small_ppo import RECORDS, SMALL, moved, trainer, weights
from torch.testing import assert_close

from helpers import losses, models
from helpers.config import PPO_PRESETS, RewardSettings
from helpers.files import UsageError
from helpers.models import shared_prefix
from helpers.models.shared_prefix import answer_logps
from helpers.rewards import reward_model
from helpers.rewards.scoring import count_exact, make_scorer, weighted_scorer
from helpers.training import rollout as rollouts
from helpers.training.actor_critic import CRITIC_ADAPTER
from helpers.training.ppo import PPOTrainer
from helpers.training.rollout import tasks_of

pytestmark = pytest.mark.heavy(reason="trains the tiny model")

constant = make_scorer("constant", lambda *given: {"constant": 0.5})


@pytest.mark.parametrize("own", [False, True], ids=["head", "adapter"])
def test_adapter_and_critic_move_and_the_base_stays(own):
    run = trainer(dataclasses.replace(SMALL, critic_adapter=own))
    before = weights(run)
    row = run.iterate()
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
    run.iterate()
    assert moved(run, start)
    run.score, run.iteration = constant, 1
    before = weights(run)
    row = run.iterate()
    assert not moved(run, before) and row["ppo/advantages/size"] == 0 == row["grad_norm/adapter"]
    assert row["groups/zero_variance"] == 1


def test_three_log_probabilities():
    """old = new before the update; the reference is the base; afterwards all three differ."""
    run = trainer(dataclasses.replace(SMALL, learning_rate=5e-3))
    run.iterate()
    run.iteration = 1
    experience = run.experience(run.sample())
    packed = run.pack(experience.rollout)
    with torch.no_grad(), models.disable_adapters(run.model):
        base = answer_logps(run.model, packed)
    assert_close(
        experience.reference_logps, base, rtol=1e-4, atol=1e-4
    )  # image tokens are left out of ours: 1e-5
    assert (experience.old_logps - experience.reference_logps).abs().max() > 0.01
    with torch.no_grad():
        assert_close(run.actor(packed).logps, experience.old_logps)
    run.update(experience)
    with torch.no_grad():
        new = run.actor(packed).logps
    assert (new - experience.old_logps).abs().max() > 0.01 and (
        new - experience.reference_logps
    ).abs().max() > 0.01


def test_rewards_and_advantages_of_an_iteration():
    """As the formulas say, from the scores and log-probabilities of the iteration."""
    for advantages in ("gae", "rloo", "grpo"):
        run = trainer(
            dataclasses.replace(SMALL, advantages=advantages, kl_weight=0.1, learning_rate=3e-3)
        )
        run.iterate()
        run.iteration = 1
        e = run.experience(run.sample())
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
    whole = run.pack

    def shifted(rollout, tasks=None):
        """In an update, not in the look before."""
        updates = torch.is_grad_enabled()
        changed = (
            dataclasses.replace(rollout, ids=[ids.roll(1) for ids in rollout.ids])
            if updates
            else rollout
        )
        return whole(changed, tasks)

    monkeypatch.setattr(run, "pack", shifted)
    with pytest.raises(RuntimeError, match="before any update"):
        run.iterate()


def test_temperature_and_top_p_keep_the_ratio():
    row = trainer(dataclasses.replace(SMALL, temperature=0.7, top_p=0.9)).iterate()
    assert row["ppo/ratio_first"] == pytest.approx(1, abs=1e-5)


def test_the_questions_answers_of_one_word_have_nothing_to_learn_from():
    """A project trained on one answer of a word or two at a time: whitening takes the score out of the advantages."""
    settings = dataclasses.replace(PPO_PRESETS["vqa"], iterations=1, max_new_tokens=40)
    one, two = (
        trainer(settings, make_scorer("score", lambda *given, size=size: {"score": size}))
        for size in (0.2, 1.0)
    )
    pair = [run.experience(run.sample()) for run in (one, two)]
    assert pair[0].rollout.texts == pair[1].rollout.texts
    assert pair[0].rollout.scores.tolist() != pair[1].rollout.scores.tolist()
    assert_close(pair[0].advantages, pair[1].advantages, rtol=1e-4, atol=1e-4)


def test_without_packing_an_iteration_is_the_same():
    """One row an answer: another way to the same numbers."""
    runs = [
        trainer(dataclasses.replace(SMALL, critic_layers=0), packs=packs) for packs in (True, False)
    ]
    packed, rows = (run.iterate() for run in runs)
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
        type(run.processor).__call__,
        shared_prefix.images_hash,
        rollouts.open_image,
    )

    def count_texts(self, **given):
        read.extend(given["text"])
        return call(self, **given)

    monkeypatch.setattr(type(run.processor), "__call__", count_texts)
    monkeypatch.setattr(
        shared_prefix, "images_hash", lambda images: hashed.append(images) or hash_of(images)
    )
    monkeypatch.setattr(rollouts, "open_image", lambda path: opened.append(path) or open_file(path))
    run.iterate()
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
        run.iterate()
    assert runs[1].model.is_gradient_checkpointing and not runs[0].model.is_gradient_checkpointing
    for name, value in weights(runs[0]).items():
        assert_close(weights(runs[1])[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_slices_change_no_figure_of_an_iteration():
    """Old policy, reference, critic, advantages: 4 prompts looked at one by one and all at once."""
    for own in (False, True):
        run = trainer(dataclasses.replace(SMALL, critic_adapter=own))
        run.iteration = 1
        rollout = run.sample()
        rollout = dataclasses.replace(
            rollout, ids=[ids[: 5 + 2 * (n // 4)] for n, ids in enumerate(rollout.ids)]
        )
        whole = run.experience(rollout)
        for size in (1, 3):
            run.settings = dataclasses.replace(run.settings, sampling_batch=size)
            sliced = run.experience(rollout)
            names = (
                "mask",
                "old_logps",
                "reference_logps",
                "values",
                "entropy",
                "rewards",
                "advantages",
                "returns",
            )
            for name in names:
                assert_close(
                    getattr(sliced, name), getattr(whole, name), rtol=1e-4, atol=1e-5, msg=name
                )


def test_slices_ask_the_same_questions_and_are_drawn_apart():
    whole = trainer(dataclasses.replace(SMALL, temperature=3.0))
    run = trainer(dataclasses.replace(SMALL, temperature=3.0, sampling_batch=1))
    same = [whole.tasks[0]] * len(whole.tasks)
    assert whole.sample().prompts.texts == run.sample().prompts.texts and whole.asked == run.asked
    run.tasks = same
    rollout = run.sample()
    groups = [tuple(rollout.texts[4 * n : 4 * n + 4]) for n in range(4)]
    assert len(set(groups)) == 4  # equal questions, different answers
    assert rollout.texts == run.sample().texts and len(rollout.scores) == 16
    row = run.iterate()
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
    run.warm_up_critic(run.tasks[:6], [["A.", "B."]] * 6, epochs=1, prompts_per_step=6)
    assert seen == {True: [2, 2, 2], False: []}
    run.iterate()
    assert set(seen[True]) == {2} and set(seen[False]) == {1}


def test_a_short_run_learns():
    """From .43 exact answers when sampled."""
    settings = dataclasses.replace(SMALL, prompts_per_iteration=16, mini_batch=8, iterations=8)
    log = trainer(settings, count_exact).train()
    scores = [row["objective/scores"] for row in log]
    assert np.mean(scores[-2:]) > np.mean(scores[:2]) + 0.15
    assert [row["samples"] for row in log] == [64 * n for n in range(1, 9)]


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
        run.iterate()
        run.iteration, score, run.score = 1, run.score, constant
        before = weights(run)
        run.iterate()
        assert not moved(run, before)
        run.iteration, run.score = 2, score
        run.iterate()
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
        ({"advantages": "dpo"}, "choose gae, rloo or grpo"),
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
