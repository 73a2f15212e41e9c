"""Faults provoked in short runs of the tiny model, samples spoilt by hand, and the panel.

The critic that learns nothing and the run that learns nothing are in `test_ppo_rules.py` only: both
need 20 iterations.
"""

import contextlib
import dataclasses
import io
import math
from types import SimpleNamespace

import pytest
import torch
from ppo_logs import MADE, later, log
from shipped import TRAFFIC
from torch.testing import assert_close

from helpers import losses, models, runtime
from helpers.config import PPO_PRESETS
from helpers.data.preferences import read_records
from helpers.data.tasks import tasks_of
from helpers.doctor import ppo_doctor
from helpers.doctor.ppo_doctor import PPODoctor, find_misplaced_rewards
from helpers.doctor.ppo_rules import diagnose_ppo, look_ppo, replay_ppo
from helpers.rewards.scoring import count_exact, make_scorer
from helpers.training import sampler
from helpers.training.ppo import PPOTrainer

pytestmark = pytest.mark.heavy(reason="trains the tiny model")
SLOW = pytest.mark.slow(reason="a long run; test_ppo_rules.py has its rules on made-up logs")

SETTINGS = dataclasses.replace(
    PPO_PRESETS["tiny"],
    max_new_tokens=40,
    prompts_per_iteration=4,
    group_size=4,
    mini_batch=2,
    kl_weight=0.01,
    iterations=3,
)


@pytest.fixture(scope="module")
def tasks():
    path = TRAFFIC / "preferences_train.jsonl"
    return tasks_of(read_records(path)[:80])


@pytest.fixture(scope="module")
def watch(tasks):
    """Train with a doctor (or without one); `fault` is done to the trainer before."""

    def run(score=count_exact, truth=None, fault=None, every=10, doctor=True, **settings):
        model, processor = models.load_model("tiny")
        settings = dataclasses.replace(SETTINGS, **settings)
        doctor = PPODoctor(every) if doctor else None
        trainer = PPOTrainer(
            model, processor, tasks, score, settings, truth=truth, watch=[doctor] if doctor else []
        )
        if fault:
            fault(trainer)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            log = trainer.train()
        return SimpleNamespace(
            doctor=doctor, trainer=trainer, log=log, settings=settings, printed=printed.getvalue()
        )

    return run


@pytest.fixture(scope="module")
def healthy(watch):
    return watch(iterations=10)


def kinds(watched):
    return {verdict.kind: verdict.step for verdict in watched.doctor.verdicts}


# Runs of the tiny model


def test_a_healthy_run_has_no_finding(healthy):
    assert healthy.doctor.verdicts == [] and healthy.printed == "" and len(healthy.log) == 10
    assert healthy.doctor.state().startswith("Iteration 10 of 10, healthy so far: score 0.")
    assert replay_ppo(healthy.log, healthy.settings) == []


def test_a_doctor_that_has_seen_nothing_says_so():
    assert "No iteration yet." in PPODoctor()._repr_html_()


def test_the_doctor_changes_nothing_of_a_run(watch):
    """Neither random numbers nor weights, and it scores the samples at every iteration."""
    seen, alone = watch(every=1, iterations=2), watch(doctor=False, iterations=2)
    for row, other in zip(seen.log, alone.log, strict=True):
        for name in row.keys() - {"seconds", "tokens_per_second"}:
            assert row[name] == pytest.approx(other[name], abs=1e-6, nan_ok=True), name


@SLOW
def test_a_learning_rate_that_is_far_too_high(watch):
    watched = watch(learning_rate=5e-2, kl_weight=0.0, iterations=8)
    found = kinds(watched)
    assert found.keys() == {"answers do not end", "collapse", "KL runaway"}
    # Two updates at such a rate destroy the policy; the rules then look at the last three
    # iterations.
    assert max(found.values()) <= 5
    assert len(watched.log) == found["collapse"] and watched.trainer.stopped, (
        "a collapse ends the run"
    )
    assert f"STOP at step {found['collapse']}, collapse: the score is " in watched.printed
    assert watched.printed.count("⚠️") == 3
    replayed = {verdict.kind: verdict.step for verdict in replay_ppo(watched.log, watched.settings)}
    assert replayed == kinds(watched)


def test_no_learning_rate(watch):
    watched = watch(learning_rate=0.0, iterations=4)
    assert kinds(watched).keys() == {"KL flat zero"} and len(watched.log) == 4, (
        "a warning ends nothing"
    )
    # the KL is 0 from the start, and the rule needs three iterations
    assert kinds(watched)["KL flat zero"] <= 3
    assert watched.printed.count("⚠️") == 1, "it was seen twice, and is said once"


def test_one_answer_an_iteration(watch):
    watched = watch(prompts_per_iteration=1, group_size=1, mini_batch=1)
    assert kinds(watched) == {"fixed advantages": 1}
    assert "Set prompts_per_iteration and group_size in `settings`" in watched.printed


def test_whitening_one_answer_does_take_its_score_out():
    """What "fixed advantages" says: with values of 0, scores of 0.1 and 10 have one and the same
    advantages.
    """
    mask, values = torch.ones(1, 3), torch.zeros(1, 3)
    rewards = [
        losses.token_rewards(torch.tensor([score]), values, mask, 0.0) for score in (0.1, 10.0)
    ]
    small, large = (
        losses.whiten(losses.gae(reward, values, mask, 1.0, 0.95)[0], mask) for reward in rewards
    )
    assert_close(small, large, rtol=1e-4, atol=1e-4)


def test_answers_that_are_cut_off(watch):
    watched = watch(max_new_tokens=5)
    assert kinds(watched).keys() == {"answers do not end", "advantages zero"}
    assert kinds(watched)["answers do not end"] == 1  # all of the first iteration are cut off
    # no answer scores from the start, and the rule needs three iterations
    assert kinds(watched)["advantages zero"] <= 3
    assert "1.000 [0.806, 1.000] (n = 16)" in watched.printed  # Wilson: 16 of 16


@SLOW
def test_a_reward_for_wrong_counts(watch):
    wrong = make_scorer("wrong", lambda *given: {"wrong": 1 - count_exact(*given).total})
    watched = watch(
        score=wrong,
        truth=count_exact,
        learning_rate=2e-4,
        kl_weight=0.0,
        anneal_lr=False,
        iterations=14,
    )
    assert kinds(watched).keys() == {"reward hacking"}
    assert "reward hacking" not in {
        verdict.kind
        for verdict in diagnose_ppo(
            [row | {"objective/truth": row["objective/scores"]} for row in watched.log],
            watched.settings,
        )
    }


def test_scores_in_another_order_than_their_answers(watch, monkeypatch):
    sample = sampler.roll_out

    def shuffled(*args, **kwargs):
        rollout = sample(*args, **kwargs)
        return dataclasses.replace(rollout, scores=1 - rollout.scores)

    monkeypatch.setattr(sampler, "roll_out", shuffled)
    watched = watch()
    assert kinds(watched) == {"scores misplaced": 1} and len(watched.log) == 1
    assert (
        "the tokens of answer 1 say 'There are" in watched.printed and "(16 so)" in watched.printed
    )


def test_a_reward_one_token_early(watch, monkeypatch):
    right = losses.token_rewards

    def early(scores, kl, mask, kl_weight):
        rewards = right(scores, kl, mask, kl_weight)
        return torch.cat([rewards[:, 1:], torch.zeros_like(rewards[:, :1])], 1) * mask

    monkeypatch.setattr(losses, "token_rewards", early)
    watched = watch()
    assert kinds(watched) == {"scores misplaced": 1} and len(watched.log) == 1
    assert "and the largest is at token 21 of 22" in watched.printed


@pytest.mark.parametrize(
    "changes",
    [
        {"advantages": "grpo", "kl_weight": 0.5},
        {"kl_estimator": "k3", "kl_weight": 0.5, "kl_target": 0.01, "kl_horizon": 20},
    ],
    ids=["a KL penalty in the loss", "a KL weight that changes"],
)
def test_rewards_of_other_settings_are_in_their_places(watch, changes):
    watched = watch(every=1, iterations=2, **changes)
    assert watched.log[-1]["objective/kl"] != 0 and "scores misplaced" not in kinds(watched)


def test_an_update_that_breaks_the_weights(watch):
    def break_weights(trainer):
        step = trainer.optimizer.step

        def update(*args, **kwargs):
            step(*args, **kwargs)
            if trainer.iteration == 1:
                trainer.actor.adapter[0].data[0, 0] = math.inf

        trainer.optimizer.step = update

    watched = watch(fault=break_weights, epochs=1, mini_batch=4)
    assert kinds(watched) == {"not finite": 2} and len(watched.log) == 2
    assert "weights of: adapter" in watched.printed


# Samples that were spoilt by hand

FIGURES = ("old_logps", "reference_logps", "values", "entropy", "rewards", "advantages", "returns")


@pytest.fixture
def trainer(healthy):
    """That of the healthy run, as it was left."""
    trainer = healthy.trainer
    last, score = trainer.last, trainer.sampler.score
    yield trainer
    trainer.last, trainer.sampler.score = last, score
    trainer.stopped = False


def spoil(trainer, **changes):
    trainer.last = dataclasses.replace(trainer.last, **changes)
    return find_misplaced_rewards(trainer)


def test_samples_as_they_should_be(trainer):
    assert find_misplaced_rewards(trainer) == ""


def test_texts_of_other_tokens(trainer):
    rollout = trainer.last.rollout
    scores = rollout.scores.tolist()
    assert 0 in scores and 1 in scores
    assert "worth" in spoil(
        trainer, rollout=dataclasses.replace(rollout, ids=rollout.ids[4:] + rollout.ids[:4])
    )


def test_tasks_in_another_order(trainer):
    rollout = trainer.last.rollout
    other = dataclasses.replace(rollout, tasks=rollout.tasks[::-1])
    assert "worth" in spoil(trainer, rollout=other)


def test_numbers_outside_the_answers(trainer):
    last = trainer.last
    mask = last.mask.clone()
    mask[0, -1] = False
    assert "rewards" in spoil(trainer, mask=mask), "the score lies outside such a mask"
    empty = {name: getattr(last, name) * mask for name in FIGURES}
    assert spoil(trainer, mask=mask, **empty).startswith("the mask: not 0")


def test_a_penalty_that_is_not_that_of_the_settings(trainer):
    last = trainer.last
    assert "and should to" in spoil(trainer, rewards=last.rewards - 0.01 * last.mask)


def test_a_run_that_goes_on_with_wrong_rewards_is_stopped_at_once(trainer):
    """A log does not show them, and the next look at samples would be far away."""
    doctor = PPODoctor(every=1000)
    doctor.go_on(trainer)
    assert doctor.verdicts == [] and not trainer.stopped
    trainer.last = dataclasses.replace(
        trainer.last, rewards=trainer.last.rewards - 0.01 * trainer.last.mask
    )
    doctor(trainer)
    assert [verdict.kind for verdict in doctor.verdicts] == ["scores misplaced"]
    assert trainer.stopped


def test_a_score_that_was_rounded_in_another_batch_is_not_misplaced(trainer, monkeypatch):
    """0.05 more is what bf16 may do to the score of a reward model, and not what fp32 may."""
    own = trainer.sampler.score
    trainer.sampler.score = make_scorer("near", lambda *given: {"n": own(*given).total + 0.05})
    assert "worth" in find_misplaced_rewards(trainer)
    monkeypatch.setattr(runtime, "compute_dtype", lambda: torch.bfloat16)
    assert find_misplaced_rewards(trainer) == ""
    trainer.sampler.score = make_scorer("far", lambda *given: {"n": own(*given).total + 0.5})
    assert "worth" in find_misplaced_rewards(trainer)


def test_a_scorer_that_never_says_the_same_proves_nothing(trainer):
    numbers = iter(range(1000))
    trainer.sampler.score = make_scorer("counter", lambda *given: {"n": next(numbers)})
    assert find_misplaced_rewards(trainer) == ""


def test_where_a_score_should_lie():
    # 2 answers of 3 and 2 tokens, scores 1 and 2, KL penalty 0.1 a token
    penalty = torch.tensor([[0.1, 0.1, 0.1], [0.1, 0.1, 0.0]])
    right = torch.tensor([[-0.1, -0.1, 0.9], [-0.1, 1.9, 0.0]])
    scores, lengths = torch.tensor([1.0, 2.0]), torch.tensor([3, 2])
    assert ppo_doctor._check_reward_places(scores, right, penalty, lengths) == ""
    early = torch.tensor([[-0.1, -0.1, 0.9], [1.9, -0.1, 0.0]])
    said = ppo_doctor._check_reward_places(scores, early, penalty, lengths)
    # 2 − 0.2 = 1.8
    assert (
        said == "the rewards of answer 2 sum to 1.8 and should to 1.8, "
        "and the largest is at token 1 of 2 (1 so)."
    )
    assert "(2 so)" in ppo_doctor._check_reward_places(scores, right + 0.002, penalty, lengths)
    assert ppo_doctor._check_reward_places(scores, right + 0.0009, penalty, lengths) == "", (
        "as far as rounding goes"
    )


# The panel


def test_the_panel_shows_state_and_findings():
    doctor = PPODoctor()
    rows = log(5, scores=later(0.5, -1.0))
    doctor.row, doctor.settings = rows[-1], MADE
    doctor.tell(look_ppo(rows, MADE), 5, aloud=False)
    panel = doctor._repr_html_()
    assert "Iteration 5 of 40, collapse: score -1, KL 0.5 nats an answer." in panel
    assert "stop at step 5: collapse" in panel and "<li>the learning rate is too high</li>" in panel
