"""Every rule on logs made by hand, on both sides of its limit, and the faults provoked in short runs of the tiny model.

The critic that learns nothing and the run that learns nothing are on logs only: both need 20 iterations.
"""

import contextlib
import dataclasses
import io
import math
from types import SimpleNamespace

import pytest
import torch
from shipped import TRAFFIC
from torch.testing import assert_close

from helpers import losses, models
from helpers.config import PPO_PRESETS, PPOSettings
from helpers.data.preferences import read_records
from helpers.doctor import ppo_doctor
from helpers.doctor.ppo_doctor import PPODoctor, find_misplaced_rewards
from helpers.doctor.ppo_rules import PPO_KINDS, diagnose_ppo, replay_ppo
from helpers.rewards.scoring import count_exact, make_scorer
from helpers.training import ppo
from helpers.training.ppo import PPOTrainer
from helpers.training.rollout import tasks_of

SETTINGS = dataclasses.replace(
    PPO_PRESETS["tiny"], max_new_tokens=40, prompts_per_iteration=4, group_size=4, mini_batch=2, kl_weight=0.01, iterations=3
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
        trainer = PPOTrainer(model, processor, tasks, score, settings, truth=truth, watch=[doctor] if doctor else [])
        if fault:
            fault(trainer)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            log = trainer.train()
        return SimpleNamespace(doctor=doctor, trainer=trainer, log=log, settings=settings, printed=printed.getvalue())

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


def test_a_learning_rate_that_is_far_too_high(watch):
    watched = watch(learning_rate=5e-2, kl_weight=0.0, iterations=8)
    assert kinds(watched) == {"answers do not end": 3, "collapse": 4, "KL runaway": 4}
    assert len(watched.log) == 4 and watched.trainer.stopped, "a collapse ends the run"
    assert "STOP at step 4, collapse: the score is " in watched.printed
    assert watched.printed.count("⚠️") == 3
    replayed = {verdict.kind: verdict.step for verdict in replay_ppo(watched.log, watched.settings)}
    assert replayed == kinds(watched)


def test_no_learning_rate(watch):
    watched = watch(learning_rate=0.0, iterations=4)
    assert kinds(watched) == {"KL flat zero": 3} and len(watched.log) == 4, "a warning ends nothing"
    assert watched.printed.count("⚠️") == 1, "it was seen twice, and is said once"


def test_one_answer_an_iteration(watch):
    watched = watch(prompts_per_iteration=1, group_size=1, mini_batch=1)
    assert kinds(watched) == {"fixed advantages": 1}
    assert "Set prompts_per_iteration and group_size in `settings`" in watched.printed


def test_whitening_one_answer_does_take_its_score_out():
    """What "fixed advantages" says: with values of 0, scores of 0.1 and 10 have one and the same advantages."""
    mask, values = torch.ones(1, 3), torch.zeros(1, 3)
    rewards = [losses.token_rewards(torch.tensor([score]), values, mask, 0.0) for score in (0.1, 10.0)]
    small, large = (losses.whiten(losses.gae(reward, values, mask, 1.0, 0.95)[0], mask) for reward in rewards)
    assert_close(small, large, rtol=1e-4, atol=1e-4)


def test_answers_that_are_cut_off(watch):
    watched = watch(max_new_tokens=5)
    assert kinds(watched) == {"answers do not end": 1, "advantages zero": 3}
    assert "1.000 [0.806, 1.000] (n = 16)" in watched.printed  # Wilson: 16 of 16


def test_a_reward_for_wrong_counts(watch):
    wrong = make_scorer("wrong", lambda *given: {"wrong": 1 - count_exact(*given).total})
    watched = watch(score=wrong, truth=count_exact, learning_rate=2e-4, kl_weight=0.0, anneal_lr=False, iterations=14)
    assert kinds(watched).keys() == {"reward hacking"}
    assert "reward hacking" not in {
        verdict.kind
        for verdict in diagnose_ppo(
            [row | {"objective/truth": row["objective/scores"]} for row in watched.log], watched.settings
        )
    }


def test_scores_in_another_order_than_their_answers(watch, monkeypatch):
    sample = ppo.roll_out

    def shuffled(*args, **kwargs):
        rollout = sample(*args, **kwargs)
        return dataclasses.replace(rollout, scores=1 - rollout.scores)

    monkeypatch.setattr(ppo, "roll_out", shuffled)
    watched = watch()
    assert kinds(watched) == {"scores misplaced": 1} and len(watched.log) == 1
    assert "the tokens of answer 1 say 'There are" in watched.printed and "(16 so)" in watched.printed


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
                trainer.trainable_parameters["adapter"][0].data[0, 0] = math.inf

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
    kept = {name: getattr(trainer, name) for name in ("last", "asked", "score")}
    yield trainer
    for name, value in kept.items():
        setattr(trainer, name, value)


def spoil(trainer, **changes):
    trainer.last = dataclasses.replace(trainer.last, **changes)
    return find_misplaced_rewards(trainer)


def test_samples_as_they_should_be(trainer):
    assert find_misplaced_rewards(trainer) == ""


def test_texts_of_other_tokens(trainer):
    rollout = trainer.last.rollout
    scores = rollout.scores.tolist()
    assert 0 in scores and 1 in scores
    assert "worth" in spoil(trainer, rollout=dataclasses.replace(rollout, ids=rollout.ids[4:] + rollout.ids[:4]))


def test_tasks_in_another_order(trainer):
    trainer.asked = trainer.asked[::-1]
    assert "worth" in find_misplaced_rewards(trainer)


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


def test_a_scorer_that_never_says_the_same_proves_nothing(trainer):
    numbers = iter(range(1000))
    trainer.score = make_scorer("counter", lambda *given: {"n": next(numbers)})
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
    assert said == "the rewards of answer 2 sum to 1.8 and should to 1.8, and the largest is at token 1 of 2 (1 so)."
    assert "(2 so)" in ppo_doctor._check_reward_places(scores, right + 0.002, penalty, lengths)
    assert ppo_doctor._check_reward_places(scores, right + 0.0009, penalty, lengths) == "", "as far as rounding goes"


# The rules, on logs made by hand

MADE = PPOSettings(iterations=40, prompts_per_iteration=8, group_size=4)  # 32 answers an iteration: start 1, recent 3, long looks of 10


def log(iterations, **values):
    """Rows of a healthy run; a value may be a function of the iteration, from 1."""
    usual = {
        "objective/scores": lambda n: min(0.5 + 0.05 * n, 0.9) + (0.01 if n % 2 else -0.01),
        "objective/kl": lambda n: 0.5 * (n > 1),
        "objective/entropy": 1.0,
        "ppo/loss/policy": -0.01,
        "ppo/loss/value": 0.1,
        "ppo/policy/approxkl": 1e-3,
        "ppo/explained_variance": 0.5,
        "ppo/advantages/size": 0.8,
        "answers/repeated": 0.05,
        "answers/distinct": 0.5,
        "answers/not_ended": 0.0,
        "answers/tokens": 20.0,
        "groups/zero_variance": 0.25,
        "grad_norm/adapter": 0.1,
        "grad_norm/critic": 0.1,
        "critic": 1.0,
    }
    short = {name.split("/")[-1]: name for name in [*usual, "objective/truth"]}
    made = usual | {short[name]: value for name, value in values.items()}
    made = {name: value if callable(value) else lambda _, v=value: v for name, value in made.items()}
    return [{name: f(n) for name, f in made.items()} | {"iteration": n} for n in range(1, iterations + 1)]


def found(rows, **changes):
    return {v.kind: v.measured for v in diagnose_ppo(rows, dataclasses.replace(MADE, **changes))}


def later(start, rest, last=0):
    """One value in the first iterations, another one in those after `last`."""
    return lambda n: start if n <= max(last, 1) else rest


def wave(height, around):
    """Mean `around`, with a standard deviation of `height` × √(n / (n − 1))."""
    return lambda n: around + (height if n % 2 else -height)


def test_a_log_without_a_fault_and_an_empty_one_have_no_finding():
    assert found(log(40)) == {} and found([]) == {} and replay_ppo([], MADE) == []
    assert replay_ppo(log(40), MADE) == []


@pytest.mark.parametrize("name", ["scores", "kl", "entropy", "policy", "value", "approxkl", "size", "truth"])
def test_numbers_that_are_not_finite(name):
    for wrong in (math.nan, math.inf, None):  # None: NaN in a JSON log
        rows = log(9, **({"truth": 0.5} | {name: later(0.5, wrong, last=8)}))
        assert found(rows).keys() == {"not finite"}, wrong
    assert f" is {wrong or 'nan'}" in found(rows)["not finite"]


def test_what_need_not_be_finite():
    assert found(log(15, explained_variance=math.nan)) == {}, "all returns are equal"
    assert found(log(15, explained_variance=None)) == {}
    assert found(log(9, adapter=later(0.1, math.inf, last=7))) == {}, "2 iterations: an fp16 scaler at work"
    assert "3 iterations on end" in found(log(9, adapter=later(0.1, math.inf, last=6)))["not finite"]


def test_the_score_falls():
    # 4 equal rows after the start: the median change is 0, so that half of the start is the limit
    assert "is 0.24, and was 0.5" in found(log(5, scores=later(0.5, 0.24)))["collapse"]
    assert found(log(5, scores=later(0.5, 0.26))) == {}
    assert "collapse" in found(log(5, scores=later(-1.0, -1.6))) and found(log(5, scores=later(-1.0, -1.4))) == {}
    # changes of 0.2: the limit is 4 · 0.2 = 0.8 under the start of 0.2; the last three are 0.1, −0.1 and 0.1 off
    assert "collapse" not in found(log(9, scores=lambda n: 0.2 if n == 1 else wave(0.1, -0.6)(n)))  # −0.567
    assert "collapse" in found(log(9, scores=lambda n: 0.2 if n == 1 else wave(0.1, -0.7)(n)))  # −0.667
    assert found(log(3, scores=later(0.5, -1.0))) == {}, "the first of three is the start itself"


def test_answers_that_repeat_themselves():
    assert (
        "31% of the answers' 3-grams are repeats, and 5% were" in found(log(5, repeated=later(0.05, 0.31)))["collapse"]
    )
    assert found(log(5, repeated=later(0.05, 0.29))) == {}
    assert found(log(9, repeated=lambda n: 0.9 if n == 5 else 0.05)) == {}, "a single peak, gone again"


def test_one_answer_to_all_prompts():
    # 32 answers: 1 / 32 is one of them, 2 / 32 two
    assert "all of 8 prompts, where 16 differed" in found(log(5, distinct=later(0.5, 1 / 32)))["collapse"]
    assert found(log(5, distinct=later(0.5, 2 / 32))) == {}
    assert found(log(5, distinct=later(3 / 32, 1 / 32))) == {}, "three answers to eight prompts at the start"
    assert found(log(5, distinct=later(0.5, 1 / 32)), prompts_per_iteration=1, group_size=32) == {}, "the right one to one prompt"


def test_the_entropy_is_gone():
    flat = {"scores": 0.5}
    assert "0.049 nats a token, and was 1" in found(log(5, entropy=later(1.0, 0.049), **flat))["collapse"]
    assert found(log(5, entropy=later(1.0, 0.051), **flat)) == {}
    assert found(log(5, entropy=later(1.0, 0.01), scores=later(0.5, 0.9))) == {}, "it knows the answers"


def test_answers_that_do_not_end():
    # 96 answers in 3 iterations. Wilson: 0 of 32 [0, .107]; 18.4 of 96 = .192 [.126, .282], 15 of 96 = .156 [.097, .242]
    assert "answers do not end" in found(log(5, not_ended=later(0.0, 0.192)))
    assert found(log(5, not_ended=later(0.0, 0.156))) == {}
    # 12 of 32 at the start [.229, .547]: limit 0.5; 61 of 96 = .635 [.536, .725], 55 of 96 = .573 [.473, .667]
    assert found(log(5, not_ended=0.375)) == {}
    assert "answers do not end" in found(log(5, not_ended=later(0.375, 0.635)))
    assert found(log(5, not_ended=later(0.375, 0.573))) == {}
    # 22 of 32 = .6875 at once [.514, .820], 21 of 32 = .656 [.483, .796]
    assert "at the start 69%" in found(log(1, not_ended=22 / 32))["answers do not end"]
    assert found(log(1, not_ended=21 / 32)) == {}


def test_kl_that_runs_away():
    assert "51 nats an answer, over 50, and was 0" in found(log(5, kl=later(0.0, 51.0)))["KL runaway"]
    assert found(log(5, kl=later(0.0, 49.0))) == {}
    assert found(log(9, kl=lambda n: 60.0 if n in (7, 9) else 1.0)) == {}, "two peaks"
    assert "over 18" in found(log(5, kl=later(0.0, 19.0)), kl_target=6.0)["KL runaway"]
    assert found(log(5, kl=later(0.0, 17.0)), kl_target=6.0) == {}
    # an adapter that goes on 20 nats from its base: 3 · 20
    assert "over 60" in found(log(5, kl=later(20.0, 61.0)))["KL runaway"] and found(log(5, kl=later(20.0, 59.0))) == {}


def test_a_policy_that_does_not_move():
    still = {"kl": 0.0, "approxkl": 0.0}
    assert found(log(3, **still)) == {"KL flat zero": "0 nats an answer; the gradient is 0.1."}
    assert found(log(2, **still)) == {}
    assert found(log(5, **still | {"kl": 0.011})) == {} and "KL flat zero" in found(log(5, **still | {"kl": -0.009}))
    assert found(log(5, **still | {"approxkl": 1.1e-6})) == {}
    assert "KL flat zero" in found(log(5, **still | {"approxkl": 0.9e-6}))


def test_advantages_of_zero():
    still = {"kl": 0.0, "approxkl": 0.0, "scores": 0.5}
    assert found(log(3, size=0.0, **still)).keys() == {"advantages zero"}, "which is why the policy does not move"
    assert found(log(3, size=2e-6, **still)).keys() == {"KL flat zero"}
    # 0.5, 1, 1: a rise of 0.33, t(2) 4.303 · s 0.289 / √3 = 0.717, which may be 0
    assert found(log(3, size=0.0, scores=later(0.5, 1.0))).keys() == {"advantages zero"}
    assert found(log(5, size=0.0, scores=later(0.5, 1.0))) == {}, "everything is right at the end of a good run"


def test_groups_whose_answers_all_score_the_same():
    for advantages in ("rloo", "grpo"):
        equal = found(log(5, zero_variance=0.96, scores=0.5), advantages=advantages)
        assert equal == {"advantages zero": "at 96% of the prompts all 4 answers score the same."}
        assert found(log(5, zero_variance=0.94, scores=0.5), advantages=advantages) == {}
    assert found(log(5, zero_variance=1.0, scores=0.5)) == {}, "a critic compares different prompts"
    assert found(log(5, zero_variance=1.0, scores=later(0.5, 1.0)), advantages="rloo") == {}


def test_one_answer_that_is_whitened():
    alone = {"prompts_per_iteration": 1, "group_size": 1}
    assert found(log(1), **alone).keys() == {"fixed advantages"}
    assert found(log(60, size=0.0, kl=0.0, approxkl=0.0), **alone).keys() == {"fixed advantages"}, (
        "the cause of the rest"
    )
    assert found(log(1), **alone, whiten=False) == {} == found(log(1), prompts_per_iteration=2, group_size=1)


def test_a_critic_that_explains_nothing():
    # 10 rows of ±0.1: s = 0.1054, t(9) = 2.262, half width 2.262 · 0.1054 / √10 = 0.0754; limit 0.05
    said = found(log(20, explained_variance=wave(0.1, -0.03)))["value head not learning"]
    assert said == "it explains -0.03 [-0.105, 0.0454] of the returns' variance; a constant explains 0."
    assert found(log(20, explained_variance=wave(0.1, -0.02))) == {}
    assert found(log(19, explained_variance=0.0)) == {}, "too early to tell"
    assert found(log(20, explained_variance=later(0.0, 0.3, last=9))) == {}
    for other in ({"critic": 0.0}, {"explained_variance": math.nan}):
        assert found(log(20, **({"explained_variance": 0.0} | other))) == {}
    assert found(log(20, explained_variance=0.0), advantages="rloo") == {}


def test_a_reward_that_rises_while_the_other_score_falls():
    # 10 rows are two looks of 5: [.5 …] to [.9 …]; ±0.05: s = 0.0548, t(4) = 2.776 → 0.068; both √2 · 0.068 = 0.096
    up = {"scores": lambda n: (0.5 if n <= 5 else 0.9) + wave(0.05, 0)(n)}
    down = found(log(10, **up, truth=lambda n: (0.5 if n <= 5 else 0.39) + wave(0.05, 0)(n)))
    assert down.keys() == {"reward hacking"} and "changed by -0.1" in down["reward hacking"]
    assert found(log(10, **up, truth=lambda n: (0.5 if n <= 5 else 0.43) + wave(0.05, 0)(n))) == {}
    assert found(log(9, **up, truth=lambda n: 0.5 if n <= 5 else 0.1)) == {}, "too early to tell"
    assert found(log(10, scores=wave(0.05, 0.6), truth=lambda n: 0.5 if n <= 5 else 0.3)) == {}, "the score stays"
    assert found(log(10, **up)) == {}


def test_a_score_that_does_not_rise():
    # ±0.1 around: half width of each look 0.0754, of their difference 0.107
    assert "it rose by 0 [-0.107, 0.107], which may be 0" in found(log(20, scores=wave(0.1, 0.5)))["nothing learnt"]
    rise = {
        size: log(20, scores=lambda n, size=size: wave(0.1, 0.5 + size * (n > 10))(n)) for size in (-0.1, 0.1, 0.12)
    }
    assert "nothing learnt" in found(rise[0.1]) and found(rise[0.12]) == {} and "nothing learnt" in found(rise[-0.1])
    assert found(log(19, scores=wave(0.1, 0.5))) == {}, "too early to tell"
    assert found(log(20, scores=wave(0.1, 0.5)), iterations=100) == {}, "not yet a quarter of the run"
    fast = log(20, scores=lambda n: (0.5, 0.7, 0.8)[n - 1] if n < 4 else wave(0.05, 0.9)(n))
    assert found(fast) == {}, "what it learnt, it learnt in three iterations"


def test_a_run_that_starts_near_the_top():
    # share of equal answers 0.53 of groups of 4: 0.53^(1/4) = 0.8532; 0.93 of the best row, 0.98 · 0.85 = 0.833
    assert found(log(20, scores=wave(0.05, 0.93), zero_variance=0.53)) == {}
    assert "nothing learnt" in found(log(20, scores=wave(0.05, 0.93), zero_variance=0.52))  # 0.8492
    # one answer a prompt says nothing of the kind: ±0.12 around 0.5 is 0.81 of the best row
    assert "nothing learnt" in found(log(20, scores=wave(0.12, 0.5), zero_variance=1.0), prompts_per_iteration=32, group_size=1)
    assert "nothing learnt" in found(log(20, scores=-1.0, zero_variance=0.9)), "no top is known below 0"


def test_looks_are_longer_where_iterations_are_small():
    """Four answers an iteration: 16 in the start are 4 iterations, 48 are 12, 160 are 40."""
    small = {"prompts_per_iteration": 2, "group_size": 2}
    seen = ppo_doctor._seen(log(80), dataclasses.replace(MADE, **small))
    assert [len(part) for part in (seen.start, seen.recent, seen.first, seen.last)] == [4, 12, 40, 40] and seen.whole
    falls = log(16, scores=later(0.5, 0.1, last=4), zero_variance=0.0)
    assert found(falls, **small).keys() == {"collapse"} and found(falls[:11], **small) == {}
    assert "nothing learnt" in found(log(80, scores=wave(0.1, 0.5)), **small)
    assert found(log(79, scores=wave(0.1, 0.5)), **small) == {}


def test_a_replay_tells_when_each_finding_would_have_come():
    """At the end the KL is small again, so that `diagnose_ppo` alone would not know."""
    rows = log(20, kl=lambda n: 70.0 if 5 <= n <= 9 else 0.5, repeated=later(0.05, 0.5, last=14))
    assert found(rows).keys() == {"collapse"}
    # of iterations 14 to 16 two repeat: (0.05 + 2 · 0.5) / 3 = 0.35, more than 0.05 + 0.25
    assert [(v.kind, v.step) for v in replay_ppo(rows, MADE)] == [("KL runaway", 7), ("collapse", 16)]


def test_every_kind_names_its_causes_and_a_place():
    for kind, (severity, causes, change) in PPO_KINDS.items():
        assert severity in ("stop", "warning") and causes and all(causes), kind
        assert any(place in change for place in ("`settings`", "`trainer.", "`score`")), kind
    assert set(ppo_doctor.CHAIN) <= PPO_KINDS.keys()


def test_the_panel_shows_state_and_findings():
    doctor = PPODoctor()
    rows = log(5, scores=later(0.5, -1.0))
    doctor.row, doctor.settings, doctor.verdicts = rows[-1], MADE, diagnose_ppo(rows, MADE)
    panel = doctor._repr_html_()
    assert "Iteration 5 of 40, collapse: score -1, KL 0.5 nats an answer." in panel
    assert "stop at step 5: collapse" in panel and "<li>the learning rate is too high</li>" in panel


def test_groups_that_are_all_right_at_last_are_no_fault():
    """RLOO on questions that are learnt: all answers to a prompt score the same, but did not at first."""
    rloo = {"advantages": "rloo", "prompts_per_iteration": 16, "group_size": 4}
    solved = log(30, scores=later(0.9, 1.0, last=5), zero_variance=later(0.5, 1.0, last=5))
    assert "advantages zero" not in found(solved, **rloo)
    assert "advantages zero" in found(log(30, scores=0.5, zero_variance=1.0), **rloo), "never told apart"
    worse = log(30, scores=later(0.9, 0.88, last=5), zero_variance=later(0.5, 1.0, last=5))
    assert "advantages zero" in found(worse, **rloo), "one answer for all, and no better"
