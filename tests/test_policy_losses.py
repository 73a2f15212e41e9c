import math
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from trl import GRPOTrainer
from trl.trainer.utils import entropy_from_logits, nanstd

from helpers.losses import (
    AdaptiveKL,
    clipped_policy_loss,
    clipped_value_loss,
    entropy,
    explained_variance,
    gae,
    grpo_advantages,
    k1,
    k2,
    k3,
    masked_mean,
    masked_var,
    rloo_advantages,
    token_rewards,
    whiten,
)


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def ragged(seed, lengths, dtype=torch.float64):
    """Noise (answers, longest), also where the answers have ended, and the mask."""
    generator, longest = torch.Generator().manual_seed(seed), max(lengths)
    values = torch.randn(len(lengths), longest, generator=generator, dtype=dtype)
    return values, torch.stack([torch.arange(longest) < n for n in lengths]).to(dtype)


# --- means over tokens ---


def test_mean_and_variance_by_hand():
    values, mask = (
        torch.tensor([[1.0, 3.0, 99.0], [5.0, -99.0, 99.0]]),
        torch.tensor([[1, 1, 0], [1, 0, 0]]),
    )
    # of tokens, not of answers: (1 + 3 + 5) / 3, where answers would give (2 + 5) / 2 = 3.5
    assert_close(masked_mean(values, mask), torch.tensor(3.0))
    # (4 + 0 + 4) / 3, with n − 1 it would be 4
    assert_close(masked_var(values, mask), torch.tensor(8 / 3))
    # ±2 / √(8/3) = ±1.2247
    assert_close(whiten(values, mask), torch.tensor([[-1.2247449, 0, 0], [1.2247449, 0, 0]]))
    assert masked_mean(values, torch.zeros_like(mask)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_numpy_agrees_on_the_tokens_that_are_real(seed):
    values, mask = ragged(seed, (4, 1, 7, 2))
    real = values.numpy()[mask.numpy() == 1]
    assert_close(masked_mean(values, mask).item(), np.mean(real))
    assert_close(masked_var(values, mask).item(), np.var(real))
    white = whiten(values, mask)
    assert_close(
        white.numpy()[mask.numpy() == 1], (real - real.mean()) / real.std(), atol=1e-6, rtol=0
    )
    assert (white[mask == 0] == 0).all()
    assert_close(whiten(values, mask.bool()), white)


def test_whitening_forgets_shift_and_scale_but_not_sign():
    values, mask = ragged(0, (3, 5))
    for scale, shift in ((3, 7), (1e-3, 0), (1e3, -1e3)):
        assert_close(whiten(scale * values + shift, mask), whiten(values, mask), atol=1e-4, rtol=0)
    assert_close(whiten(-values, mask), -whiten(values, mask))


def test_equal_values_and_a_single_one_are_whitened_to_nothing():
    mask = torch.tensor([[1, 1], [1, 0]])
    for value in (0.0, 0.5, -2.0):
        assert (whiten(torch.full((2, 2), value), mask) == 0).all()
        assert (whiten(torch.tensor([[value, 8.0]]), torch.tensor([[1, 0]])) == 0).all()
    assert (whiten(torch.full((1, 7), 0.1), torch.ones(1, 7)) == 0).all(), (
        "their fp32 mean is 0.1 − 7e-9"
    )


def test_equal_values_are_whitened_to_nothing_whatever_their_mean_is_rounded_to():
    for n in range(1, 40):
        for value in (0.1, 0.2, 0.7, 1 / 3, -0.9, 100.3):
            values, mask = torch.full((1, n + 1), value), (torch.arange(n + 1) < n).float()[None]
            assert (whiten(values, mask) == 0).all(), (n, value)


def test_equal_scores_against_their_own_mean_are_whitened_to_nothing():
    """PPO without a critic measures against the mean score: its rounding, some 6e-8, must not become ±1."""
    for answers in range(2, 17):
        scores, mask = (
            torch.full((answers,), 0.7),
            ragged(0, range(1, answers + 1), torch.float32)[1],
        )
        rewards = token_rewards(scores, torch.zeros_like(mask), mask, 0.05)
        advantages, _ = gae(rewards, scores.mean() * mask, mask, 1.0, 0.95)
        assert (whiten(advantages, mask) == 0).all(), answers


def test_whitening_a_single_answer_loses_its_score():
    """A student project updated on one answer at a time and whitened its advantages.

    With values of 0 they are the score times 0.9405^(tokens to go): after whitening, a score of 0.2 moves
    the policy exactly as a score of 1.0 does. Nothing was learned, and no figure showed it.
    """
    mask = torch.ones(1, 4)
    advantages = {}
    for score in (0.2, 1.0):
        rewards = token_rewards(tensor(score), torch.zeros(1, 4), mask, 0.05)
        advantages[score], _ = gae(rewards, torch.zeros(1, 4), mask, 0.99, 0.95)
    assert_close(advantages[0.2] * 5, advantages[1.0])
    assert_close(whiten(advantages[0.2], mask), whiten(advantages[1.0], mask), atol=1e-5, rtol=0)
    # together in one batch, every token of the better answer is above every token of the worse one
    both = whiten(torch.cat([advantages[0.2], advantages[1.0]]), torch.ones(2, 4))
    assert both[1].min() > 0 > both[0].max()


# --- rewards and advantages ---


def test_token_rewards_are_this_picture():
    scores = tensor(1.0, -2.0, 3.0)
    kl = torch.tensor([[0.1, -0.2, 0.3], [0.4, 9.0, 9.0], [0.0, 0.2, 9.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0], [1, 1, 0]])
    # −½ KL at every token, and the score at the last: −0.15 + 1, −0.2 − 2, −0.1 + 3
    picture = torch.tensor([[-0.05, 0.1, 0.85], [-2.2, 0.0, 0.0], [0.0, 2.9, 0.0]])
    before = kl.clone()
    for kind in (torch.int, torch.bool, torch.float):
        assert_close(token_rewards(scores, kl, mask.to(kind), 0.5), picture)
    assert torch.equal(kl, before)
    assert_close(token_rewards(scores, kl, mask, 0.0).sum(1), scores)


def test_an_answer_without_tokens_has_no_place_for_its_score():
    with pytest.raises(ValueError, match="without a token"):
        token_rewards(tensor(1.0, 1.0), torch.zeros(2, 2), torch.tensor([[1, 1], [0, 0]]), 0.1)


REWARDS, VALUES = torch.tensor([[1.0, 0.0, 2.0]]), torch.tensor([[0.5, 1.0, 1.5]])


def test_gae_by_hand():
    # δ: 1 + 0.9 · 1 − 0.5 = 1.4; 0 + 0.9 · 1.5 − 1 = 0.35; 2 + 0 − 1.5 = 0.5
    # A, with γλ 0.45: 0.5; 0.35 + 0.45 · 0.5 = 0.575; 1.4 + 0.45 · 0.575 = 1.65875
    advantages, returns = gae(REWARDS, VALUES, torch.ones(1, 3), 0.9, 0.5)
    assert_close(advantages, torch.tensor([[1.65875, 0.575, 0.5]]))
    assert_close(returns, torch.tensor([[2.15875, 1.575, 2.0]]))


def test_limits_of_gae():
    mask = torch.ones(1, 3)
    # λ 0: δ
    assert_close(gae(REWARDS, VALUES, mask, 0.9, 0.0)[0], torch.tensor([[1.4, 0.35, 0.5]]))
    # λ 1: reward to go, 1 + 0.9 · 1.8 = 2.62, 0 + 0.9 · 2 = 1.8 and 2, minus V; returns are the reward to go
    advantages, returns = gae(REWARDS, VALUES, mask, 0.9, 1.0)
    assert_close(advantages, torch.tensor([[2.12, 0.8, 0.5]]))
    assert_close(returns, torch.tensor([[2.62, 1.8, 2.0]]))
    # γ 1 and λ 1: rewards are added as they are
    assert_close(gae(REWARDS, VALUES, mask, 1.0, 1.0)[1], torch.tensor([[3.0, 2.0, 2.0]]))
    # γ 0: the next reward only
    assert_close(gae(REWARDS, VALUES, mask, 0.0, 0.95)[0], REWARDS - VALUES)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=4),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 999),
)
def test_gae_is_the_double_sum(lengths, gamma, lam, seed):
    """A_t = Σ_l (γλ)^l δ_{t+l} (arXiv 1506.02438, equation 16), of each answer alone, whatever comes after its end."""
    rewards, mask = ragged(seed, lengths)
    values, _ = ragged(seed + 1000, lengths)
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    expected = torch.zeros_like(rewards)
    for row, length in enumerate(lengths):
        r, v = rewards[row].tolist(), [*values[row, :length].tolist(), 0.0]
        delta = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected[row, t] = sum(
                (gamma * lam) ** step * delta[t + step] for step in range(length - t)
            )
    assert_close(advantages, expected)
    assert_close(returns, (expected + values) * mask)


def test_an_answer_has_the_same_advantages_alone_and_in_a_batch():
    rewards, mask = ragged(0, (5, 2, 3, 1))
    values, _ = ragged(1, (5, 2, 3, 1))
    together = gae(rewards, values, mask.bool(), 0.97, 0.9)
    for row, length in enumerate((5, 2, 3, 1)):
        cut = slice(row, row + 1), slice(0, length)
        for batch, alone in zip(
            together, gae(rewards[cut], values[cut], mask[cut], 0.97, 0.9), strict=True
        ):
            assert torch.equal(batch[cut], alone)
            assert (batch[row, length:] == 0).all()
    values[mask == 0], rewards[mask == 0] = 1e6, -1e6
    for before, after in zip(together, gae(rewards, values, mask, 0.97, 0.9), strict=True):
        assert torch.equal(before, after)


def test_rloo_by_hand():
    # (1, 2, 6): the others' means are 4, 3.5, 1.5; (0, 0, 3): 1.5, 1.5, 0
    advantages = rloo_advantages(tensor(1, 2, 6, 0, 0, 3), 3)
    assert_close(advantages, tensor(-3, -1.5, 4.5, -1.5, -1.5, 3))


def test_grpo_by_hand():
    # (1, 2, 6): mean 3, variance (4 + 1 + 9) / 2 = 7, √7 = 2.64575; (0, 0, 3): mean 1, variance 6 / 2 = 3
    scores = tensor(1, 2, 6, 0, 0, 3)
    assert_close(grpo_advantages(scores, 3, scale=False), tensor(-2, -1, 3, -1, -1, 2))
    by_deviation = tensor(-0.75593, -0.37796, 1.13389, -0.57735, -0.57735, 1.15470)
    assert_close(grpo_advantages(scores, 3), by_deviation, atol=1e-4, rtol=0)
    # what is added to the deviation is 1e-4: scores ±1e-4 have deviation 1.41421e-4, 1 / 2.41421 = 0.41421
    assert_close(
        grpo_advantages(tensor(-1e-4, 1e-4), 2), tensor(-0.41421, 0.41421), atol=1e-5, rtol=0
    )


def scores_of_others(scores, i, group):
    start = i // group * group
    return torch.stack([scores[k] for k in range(start, start + group) if k != i])


@pytest.mark.parametrize("group", [2, 3, 8])
def test_advantages_in_a_group_agree_with_other_ways_of_writing_them(group):
    scores = torch.randn(
        5 * group, generator=torch.Generator().manual_seed(group), dtype=torch.float64
    )
    mean = scores.view(-1, group).mean(1).repeat_interleave(group)
    rloo, centred = rloo_advantages(scores, group), grpo_advantages(scores, group, scale=False)
    assert_close(rloo, group / (group - 1) * (scores - mean))
    assert_close(
        rloo,
        torch.stack(
            [scores[i] - scores_of_others(scores, i, group).mean() for i in range(len(scores))]
        ),
    )
    assert_close(rloo * (group - 1) / group, centred)  # the same up to the learning rate
    # TRL 1.14's GRPOTrainer with scale_rewards="group"
    deviation = nanstd(scores.view(-1, group), dim=1).repeat_interleave(group)
    assert_close(grpo_advantages(scores, group), (scores - mean) / (deviation + 1e-4))
    for advantages in (rloo, centred, grpo_advantages(scores, group)):
        assert_close(advantages.view(-1, group).sum(1), torch.zeros(5, dtype=torch.float64))


ADVANTAGES = {
    "rloo": rloo_advantages,
    "grpo": grpo_advantages,
    "centred": lambda scores, group: grpo_advantages(scores, group, scale=False),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_a_group_compares_its_own_answers_only(name):
    one, two = tensor(0.0, 1.0, 0.25, 0.5), tensor(7.0, -3.0, 9.0, 0.0)
    together = ADVANTAGES[name](torch.cat([one, two]), 4)
    assert_close(together, torch.cat([ADVANTAGES[name](one, 4), ADVANTAGES[name](two, 4)]))
    # what all answers to a prompt get is no merit of any of them
    assert_close(ADVANTAGES[name](one + 5, 4), ADVANTAGES[name](one, 4))
    assert (ADVANTAGES[name](tensor(0.5, 0.5, 0.5, 0.5), 4) == 0).all()
    for group in (0, 1):
        with pytest.raises(ValueError, match="no other answers"):
            ADVANTAGES[name](one, group)


def test_equal_scores_give_exactly_no_advantage():
    """Adam divides by the size of the gradient: 6e-8 of advantage can move weights as far as 1 does."""
    for group in range(2, 17):
        for score in (0.1, 0.2, 0.7, 1 / 3, 2.3, -0.9):
            for name, advantages in ADVANTAGES.items():
                assert (advantages(torch.full((2 * group,), score), group) == 0).all(), (
                    name,
                    group,
                    score,
                )


# --- the clipped loss ---


def test_at_the_old_policy_the_ratio_is_one_and_the_gradient_is_that_of_the_policy():
    advantages, mask = ragged(0, (4, 2, 3), torch.float32)
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(1), requires_grad=True)
    actions = torch.randint(5, (3, 4), generator=torch.Generator().manual_seed(2))

    def logps():
        return torch.log_softmax(logits, -1).gather(-1, actions[..., None]).squeeze(-1)

    got = clipped_policy_loss(logps(), logps().detach(), advantages, mask, 0.2)
    assert (got.ratio, got.clip_share, got.approx_kl) == (1.0, 0.0, 0.0)
    assert_close(got.loss, -masked_mean(advantages, mask))
    (gradient,) = torch.autograd.grad(got.loss, logits)
    # −A ∇ log π of the tokens, over their number 4 + 2 + 3
    (expected,) = torch.autograd.grad(-(advantages * mask * logps()).sum() / 9, logits)
    assert_close(gradient, expected)
    # and ∇ log π by hand: one-hot minus softmax
    by_hand = torch.nn.functional.one_hot(actions, 5) - logits.detach().softmax(-1)
    assert_close(gradient, -(advantages * mask)[..., None] * by_hand / 9)


def step(ratio, advantage, clip=0.2):
    """(loss, gradient with respect to log π, share of clipped tokens) of one token."""
    logps = torch.tensor([[math.log(ratio)]], requires_grad=True)
    got = clipped_policy_loss(
        logps, torch.zeros(1, 1), torch.tensor([[advantage]]), torch.ones(1, 1), clip
    )
    got.loss.backward()
    return got.loss.item(), logps.grad.item(), got.clip_share


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [
        (1.5, 2.0, (-2.4, 0.0, 1.0)),  # good and already likelier: min(3, 1.2 · 2), no more to gain
        (1.5, -2.0, (3.0, 3.0, 0.0)),  # bad and likelier: min(−3, −2.4), all of ρ A
        (0.5, 2.0, (-1.0, -1.0, 0.0)),  # good and less likely: min(1, 1.6)
        (0.5, -2.0, (1.6, 0.0, 1.0)),  # bad and already less likely: min(−1, 0.8 · −2)
        (1.1, 2.0, (-2.2, -2.2, 0.0)),  # within the clip: ρ A, as a whole
        (0.9, -2.0, (1.8, 1.8, 0.0)),
        (1.5, 0.0, (0.0, 0.0, 0.0)),
        (0.5, 0.0, (0.0, 0.0, 0.0)),
    ],
)
def test_clipping_by_hand(ratio, advantage, expected):
    assert_close(step(ratio, advantage), expected, atol=1e-6, rtol=1e-6)
    if expected[1] == 0:
        assert step(ratio, advantage)[1] == 0


def test_the_loss_of_a_batch_is_the_mean_over_its_real_tokens():
    ratio = torch.tensor([[1.5, 1.5, 0.5], [0.5, 9.0, 9.0]])
    advantages = torch.tensor([[2.0, -2.0, 2.0], [-2.0, 2.0, 2.0]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    logps = ratio.log().requires_grad_()
    got = clipped_policy_loss(logps, torch.zeros(2, 3), advantages, mask, 0.2)
    # the four cases above: (−2.4 + 3 − 1 + 1.6) / 4 = 0.3; 2 of 4 clipped; ρ (1.5 + 1.5 + 0.5 + 0.5) / 4
    assert_close(got.loss, torch.tensor(0.3))
    assert (got.clip_share, got.ratio) == (0.5, pytest.approx(1.0))
    got.loss.backward()
    assert_close(logps.grad, torch.tensor([[0.0, 0.75, -0.25], [0.0, 0.0, 0.0]]))
    # ρ − 1 − ln ρ: 0.094535 for 1.5 and 0.193147 for 0.5
    assert got.approx_kl == pytest.approx((0.094535 + 0.193147) / 2, abs=1e-6)


def test_masked_tokens_have_exactly_no_gradient_and_no_influence():
    advantages, mask = ragged(0, (4, 2, 3), torch.float32)
    logps, old = (ragged(seed, (4, 2, 3), torch.float32)[0].requires_grad_() for seed in (1, 2))
    first = clipped_policy_loss(logps, old.detach(), advantages, mask, 0.2)
    first.loss.backward()
    assert (logps.grad[mask == 0] == 0).all() and logps.grad.abs().sum() > 0
    wild = (
        torch.where(mask == 1, x.detach(), fill)
        for x, fill in ((logps, 80.0), (old, -80.0), (advantages, 50.0))
    )
    assert clipped_policy_loss(*wild, mask.bool(), 0.2) == first


def test_without_advantages_there_is_no_loss_and_no_gradient():
    logps, mask = ragged(0, (4, 2, 3), torch.float32)
    old, _ = ragged(1, (4, 2, 3), torch.float32)
    got = clipped_policy_loss(logps.requires_grad_(), old, torch.zeros(3, 4), mask, 0.2)
    got.loss.backward()
    assert got.loss == 0 and (logps.grad == 0).all() and got.clip_share == 0
    assert got.approx_kl > 0  # but the policy has moved


def test_approx_kl_is_from_the_old_policy_to_the_new():
    # tokens as often as the old policy (1/2, 1/4, 1/4) says; new (1/4, 1/4, 1/2):
    # KL(old ‖ new) = ½ ln 2 + 0 + ¼ ln ½ = ¼ ln 2
    old, new = tensor(0.5, 0.25, 0.25).log(), tensor(0.25, 0.25, 0.5).log()
    tokens = torch.tensor([[0, 0, 1, 2]])
    got = clipped_policy_loss(new[tokens], old[tokens], torch.ones(1, 4), torch.ones(1, 4), 0.2)
    assert got.approx_kl == pytest.approx(math.log(2) / 4, abs=1e-6)
    assert got.ratio == pytest.approx(1.0)  # as it is on average under the old policy
    # one token, twice as likely: 2 − 1 − ln 2 = 0.3069; the other way round it would be ½ − 1 + ln 2 = 0.1931
    logps, mask = tensor(math.log(2), 5.0)[None], torch.tensor([[1, 0]])
    one = clipped_policy_loss(logps, torch.zeros(1, 2), torch.ones(1, 2), mask, 0.2)
    assert one.ratio == pytest.approx(2.0)
    assert one.approx_kl == pytest.approx(0.3068528, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_trl_computes_the_same_loss(seed):
    """GRPOTrainer._compute_loss (TRL 1.14, loss_type "bnpo": mean over the tokens of the batch), without its model."""
    lengths = (6, 3, 1, 4)
    (advantages, mask), beta = ragged(seed, lengths, torch.float32), 0.3
    logps, old, reference = (
        0.4 * ragged(10 * seed + n, lengths, torch.float32)[0] for n in (1, 2, 3)
    )  # ratios from about 0.3 to 3
    logps.requires_grad_()
    plain = dict.fromkeys(
        ("aux_loss_enabled", "use_vllm", "_entropy_bonus_enabled", "use_adaptive_entropy"), False
    )
    trainer = SimpleNamespace(
        **plain,
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            logps,
            torch.zeros_like(old),
            None,
        ),
        _metrics={"eval": defaultdict(list)},
        accelerator=SimpleNamespace(reduce=lambda x, reduction: x, gather=lambda x: x),
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        beta=beta,
        epsilon_high=0.2,
        epsilon_low=0.2,
        importance_sampling_level="token",
        loss_type="bnpo",
        model=SimpleNamespace(training=False),
        off_policy_mask_threshold=None,
        top_entropy_quantile=1.0,
    )
    ids = torch.zeros(4, 6, dtype=torch.long)
    inputs = dict(
        prompt_ids=ids,
        prompt_mask=ids,
        completion_ids=ids,
        completion_mask=mask,
        advantages=advantages,
    )
    inputs |= {"old_per_token_logps": old, "ref_per_token_logps": reference}
    expected = GRPOTrainer._compute_loss(trainer, None, inputs)

    got = clipped_policy_loss(logps, old, advantages, mask, 0.2)
    kl = masked_mean(k3(logps - reference), mask)
    loss = got.loss + beta * kl
    assert_close(loss, expected)
    assert_close(*(torch.autograd.grad(x, logps)[0] for x in (loss, expected)))
    (clipped,), (trl_kl,) = (
        trainer._metrics["eval"][key] for key in ("clip_ratio/region_mean", "kl")
    )
    assert got.clip_share == pytest.approx(clipped) and 0 < got.clip_share < 1
    assert kl.item() == pytest.approx(trl_kl)


# --- the critic ---


@pytest.mark.parametrize(
    ("value", "target", "loss", "gradient"),
    [
        (1.1, 2.0, 0.405, -0.9),  # old value 1, clip 0.2; within it: ½ · 0.9²
        (1.5, 2.0, 0.32, 0.0),  # the held 1.2 is further away: ½ · 0.8²
        (1.5, 0.0, 1.125, 1.5),  # itself is further away: ½ · 1.5²
        (0.5, 0.0, 0.32, 0.0),  # held at 0.8: ½ · 0.8²
        (0.5, 2.0, 1.125, -1.5),  # ½ · 1.5²
    ],
)
def test_value_loss_by_hand(value, target, loss, gradient):
    values = torch.tensor([[value, 50.0]], requires_grad=True)
    old, returns, mask = (
        torch.tensor([[1.0, -50.0]]),
        torch.tensor([[target, 0.0]]),
        torch.tensor([[1, 0]]),
    )
    got = clipped_value_loss(values, old, returns, mask, 0.2)
    got.backward()
    assert_close(got, torch.tensor(loss))
    assert_close(values.grad, torch.tensor([[gradient, 0.0]]))
    assert_close(clipped_value_loss(values, old, returns, mask.bool(), 0.2), got)


def test_value_loss_is_the_mean_over_tokens():
    values, old = torch.tensor([[1.1, 1.5, 1.5], [0.5, 7.0, 7.0]]), torch.ones(2, 3)
    returns, mask = (
        torch.tensor([[2.0, 2.0, 0.0], [0.0, 0.0, 0.0]]),
        torch.tensor([[1, 1, 1], [1, 0, 0]]),
    )
    # (0.405 + 0.32 + 1.125 + 0.32) / 4
    assert_close(clipped_value_loss(values, old, returns, mask, 0.2), torch.tensor(0.5425))
    # a wide clip leaves half the mean squared error: (0.81 + 0.25 + 2.25 + 0.25) / 8
    assert_close(clipped_value_loss(values, old, returns, mask, 1e6), torch.tensor(0.445))


def test_explained_variance_by_hand():
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 40.0]]), torch.tensor([[1, 1, 1, 0]])
    for values, expected in [
        (returns, 1.0),
        (returns + 5, 1.0),  # it is of variances: being off by a constant does not show
        (returns / 2, 0.75),  # ½² of the variance is left
        (torch.full((1, 4), 1.5), 0.0),
        (-returns, -3.0),  # 2² of it is left: worse than a constant
        (3 * returns, -3.0),  # what is left is measured against the returns, not against the values
    ]:
        assert explained_variance(values, returns, mask) == pytest.approx(expected, abs=1e-6)
    assert math.isnan(explained_variance(returns, torch.tensor([[2.0, 2.0, 2.0, 9.0]]), mask))


def test_explained_variance_of_equal_returns_is_nan_whatever_their_mean_is_rounded_to():
    for n in range(1, 40):
        for value in (0.1, 0.7, -0.9, 100.3):
            returns, mask = torch.full((1, n + 1), value), (torch.arange(n + 1) < n).float()[None]
            values, _ = ragged(n, (n + 1,), torch.float32)
            assert math.isnan(explained_variance(values, returns, mask)), (n, value)


# --- entropy and KL ---


def test_entropy_by_hand():
    assert_close(entropy(torch.zeros(2, 3, 7)), torch.full((2, 3), math.log(7)))
    # tokens that cannot be sampled do not count
    banned = torch.tensor([0.0, -torch.inf, 0.0, 0.0, -torch.inf]).requires_grad_()
    assert_close(entropy(banned), torch.tensor(math.log(3)))
    entropy(banned).backward()
    assert torch.isfinite(banned.grad).all()
    assert entropy(torch.tensor([-torch.inf, 4.0])) == 0
    # (¼, ¾): ¼ ln 4 + ¾ ln 4/3 = 0.34657 + 0.21576
    assert_close(entropy(tensor(0.0, math.log(3))), torch.tensor(0.5623351))
    assert entropy(tensor(0.0, 1.0).bfloat16()).dtype == torch.float32


def test_entropy_as_others_compute_it():
    logits = 3 * torch.randn(4, 6, 50, generator=torch.Generator().manual_seed(0))
    assert_close(entropy(logits), torch.distributions.Categorical(logits=logits).entropy())
    assert_close(entropy(logits), entropy_from_logits(logits))


def test_kl_estimators_by_hand():
    # x = ln 2: ln 2, ½ (ln 2)² = 0.2402, ½ − 1 + ln 2 = 0.1931; x = −ln 2: −ln 2, 0.2402, 2 − 1 − ln 2 = 0.3069
    x = tensor(math.log(2), -math.log(2), 0.0)
    assert_close(k1(x), tensor(0.6931472, -0.6931472, 0.0))
    assert_close(k2(x), tensor(0.2402265, 0.2402265, 0.0))
    assert_close(k3(x), tensor(0.1931472, 0.3068528, 0.0))


def test_what_the_estimators_are_on_average():
    """Exactly: summed over the vocabulary with the probabilities of the policy, not sampled."""
    generator = torch.Generator().manual_seed(0)
    gaps = {"k2": 0.0, "swapped": 0.0}
    for _ in range(20):
        policy, reference = torch.randn(2, 9, generator=generator, dtype=torch.float64).log_softmax(
            -1
        )
        exact = torch.nn.functional.kl_div(
            reference, policy, log_target=True, reduction="sum"
        )  # KL(policy ‖ reference)
        x, p = policy - reference, policy.exp()
        assert_close((p * k1(x)).sum(), exact)
        assert_close((p * k3(x)).sum(), exact)
        gaps["k2"] = max(gaps["k2"], ((p * k2(x)).sum() - exact).abs().item())
        gaps["swapped"] = max(gaps["swapped"], ((p * k3(-x)).sum() - exact).abs().item())
        assert (k2(x) > 0).all() and (k3(x) > 0).all(), "of each token"
        assert k1(x).min() < 0 < k1(x).max()
    assert min(gaps.values()) > 0.1, "k2 is biased, and k3 of the wrong sign is another quantity"


def test_k2_is_nearly_unbiased_between_policies_that_are_close():
    base, other = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    policy, reference = base.log_softmax(-1), (base + 0.01 * other).log_softmax(-1)
    exact = (policy.exp() * (policy - reference)).sum()
    assert_close((policy.exp() * k2(policy - reference)).sum(), exact, rtol=0.02, atol=0)


def test_k3_of_almost_equal_policies_does_not_drown_in_rounding():
    # x²/2 = 5e-9, while e^−x in fp32 has steps of 6e-8; k3 = x²/2 − x³/6
    assert_close(k3(tensor(1e-4)), tensor(5e-9), rtol=0.01, atol=0)


def test_adaptive_kl_by_hand():
    def after(kl, answers=100, **changes):
        controller = AdaptiveKL(**{"weight": 0.1, "target": 2.0, "horizon": 1000} | changes)
        controller.update(kl, answers)
        return controller.weight

    assert after(2.2) == pytest.approx(0.101)  # 0.1 · (1 + 0.1 · 100 / 1000)
    assert after(1.8) == pytest.approx(0.099)
    assert after(2.0) == 0.1
    for far in (2.4, 6.0, 1e9):
        assert after(far) == pytest.approx(0.102)  # 3 − 1 is held at 0.2
    for near in (1.6, 0.0, -5.0):
        assert after(near) == pytest.approx(0.098)
    assert after(6.0, answers=500, horizon=500) == pytest.approx(0.12)
    for kl in (0.0, 100.0):
        assert after(kl, target=None) == 0.1
    twice = AdaptiveKL(0.1, 2.0)
    twice.update(6.0, 100), twice.update(6.0, 100)
    assert twice.weight == pytest.approx(0.1 * 1.02**2)


# --- all together ---


def whitened(scores, group):
    """What PPO does without a critic: one-token answers, values of 0."""
    mask = torch.ones(len(scores), 1)
    rewards = token_rewards(scores, torch.zeros_like(mask), mask, 0.1)
    advantages, _ = gae(rewards, torch.zeros_like(mask), mask, 0.99, 0.95)
    return whiten(advantages, mask)[:, 0]


@pytest.mark.parametrize("rewarded", [0, 1])
@pytest.mark.parametrize("advantages_of", [rloo_advantages, grpo_advantages, whitened])
def test_a_bandit_with_two_arms_learns_the_better_one(advantages_of, rewarded):
    """Both are rewarded, one with 1.0 and the other with 0.2: only the comparison tells them apart."""
    logits, generator = torch.zeros(2, requires_grad=True), torch.Generator().manual_seed(0)
    optimizer, mask = torch.optim.Adam([logits], 0.05), torch.ones(16, 1)
    for _ in range(60):
        old = torch.log_softmax(logits.detach(), -1)
        actions = torch.multinomial(old.exp(), 16, replacement=True, generator=generator)
        advantages = advantages_of(torch.where(actions == rewarded, 1.0, 0.2), 4)[:, None]
        for _ in range(2):
            logps = torch.log_softmax(logits, -1)[actions, None]
            optimizer.zero_grad()
            clipped_policy_loss(logps, old[actions, None], advantages, mask, 0.2).loss.backward()
            optimizer.step()
    assert logits.softmax(-1)[rewarded] > 0.95
