"""The bound of the margin by hand on a linear policy, and its check on both sides of its limits.

What it says of the tiny model stands beside what that one does.
"""

import contextlib
import math
from types import SimpleNamespace

import pytest
import torch
from torch.nn.functional import logsigmoid

from helpers.config import DPOSettings
from helpers.doctor import reach as module
from helpers.doctor.dry_run import LOSS_SCALE, backward, collate, loss_of, preference_only
from helpers.doctor.reach import Reach, check_reach, margin_slope, step_rates
from helpers.runtime import TOLERANCES
from helpers.training import dpo

HEAVY = pytest.mark.heavy(reason="trains the tiny model")


class Linear(torch.nn.Module):
    """A policy whose margin is a weighted sum of a pair's features, and 0 at the start."""

    is_gradient_checkpointing = False

    def __init__(self, features=2):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(features))
        self.frozen = torch.nn.Parameter(torch.zeros(features))

    def forward(self, pairs):
        return pairs @ (self.weight + self.frozen)


def linear_trainer(beta=0.1, **settings):
    """As much of a trainer as a bound needs."""
    trainer = SimpleNamespace(
        model=Linear(),
        args=dpo.dpo_config(DPOSettings(gradient_checkpointing=False, **settings), seed=0),
        accelerator=SimpleNamespace(autocast=contextlib.nullcontext),
        loss_types=["hinge"],
        loss_weights=[7.0],
        beta=beta,
    )
    trainer.compute_loss = lambda model, batch: (
        -trainer.loss_weights[0] * logsigmoid(trainer.beta * model(batch["pairs"])).mean()
    )
    return trainer


def linear_batch(*pairs):
    # two rows a pair, as a collator makes them
    return {"pairs": torch.tensor(pairs), "completion_mask": torch.ones(2 * len(pairs), 1)}


BATCHES = [linear_batch([1.0, -2.0], [3.0, 4.0]), linear_batch([-1.0, 1.0])]


def test_the_rates_of_a_schedule_by_hand():
    settings = DPOSettings(learning_rate=8e-4, steps=4, warmup_share=0.25)
    # one step of warm-up begins at 0; then ½ (1 + cos π p) of the rate at p = 0, ⅓, ⅔: 1, ¾, ¼
    expected = [0.0, 8e-4, 6e-4, 2e-4]
    assert step_rates(dpo.dpo_config(settings, seed=0)) == pytest.approx(expected)


def test_the_slope_of_a_linear_policy_by_hand():
    """Its margin is w · x, whose mean has the gradient mean(x), whatever β and batches."""
    for beta in (0.1, 2.0):
        trainer = linear_trainer(beta)
        # mean of (1, −2), (3, 4) and (−1, 1): (1, 1)
        assert margin_slope(trainer, BATCHES, {"weight"}) == pytest.approx(2.0)
        assert margin_slope(trainer, BATCHES, {"weight", "frozen"}) == pytest.approx(4.0)
        assert margin_slope(trainer, BATCHES, set()) == 0.0
        # nothing is left behind
        assert (trainer.beta, trainer.loss_types, trainer.loss_weights) == (beta, ["hinge"], [7.0])
        assert trainer.model.weight.grad is None


def test_adam_reaches_the_bound_where_all_steps_agree_and_never_more():
    """Pairs with one gradient: Adam moves each weight by its rate at every step."""
    trainer = linear_trainer(learning_rate=1e-2, steps=8)
    batch = linear_batch([2.0, -1.0], [2.0, -1.0])
    rates = step_rates(trainer.args)
    bound = Reach(margin_slope(trainer, [batch], {"weight"}), rates, trainer.beta)
    adam = torch.optim.AdamW([trainer.model.weight], weight_decay=0.0)
    for rate in rates:
        adam.param_groups[0]["lr"] = rate
        adam.zero_grad()
        trainer.compute_loss(trainer.model, batch).backward()
        adam.step()
    margin = float(trainer.model(batch["pairs"]).mean().detach())
    assert bound.nats == pytest.approx(3 * sum(rates))
    # Adam's ε and a gradient that falls with the loss take a little
    assert 0.97 * bound.nats < margin <= bound.nats


def test_what_a_bound_says_by_hand():
    # 1000 nats a unit × 2e-3 = 2 nats, × β 0.1 = 0.2; ten times the rate for a margin of 2
    bound = Reach(1000.0, [0.0, 1e-3, 7e-4, 3e-4], 0.1)
    assert bound.nats == pytest.approx(2.0) and bound.margin == pytest.approx(0.2)
    assert bound.rate_for(2.0) == pytest.approx(1e-2)


def checked(monkeypatch, slope, beta=0.1, dtype=torch.float32, **settings):
    """The check of a run with this slope. Without a warm-up two steps have 1 and ½ of the rate."""
    monkeypatch.setattr(module, "margin_slope", lambda *_: slope)
    monkeypatch.setattr(module, "tolerances_of", lambda model: TOLERANCES[dtype])
    settings = {"learning_rate": 1e-4, "steps": 2, "warmup_share": 0.0} | settings
    return check_reach(linear_trainer(beta, **settings), [], set())


def test_a_run_that_can_learn_passes_and_one_that_can_learn_little_is_warned_of(monkeypatch):
    # rates 1e-4 + 5e-5; 1.5e-4 × 66,800 × 0.1 = 1.002, × 66,400 = 0.996
    enough, little = (checked(monkeypatch, slope) for slope in (66_800.0, 66_400.0))
    assert enough.passed and not little.passed and little.warns
    assert enough.measured == (
        "2 steps move the margin by at most 1 (10 nats; rounding 0.001); "
        "a rate of 2.0e-04 could reach 2"
    )
    assert "to 2.0e-04 or more" in little.remedy


def test_a_run_within_rounding_is_stopped(monkeypatch):
    # 1.5e-4 × 6.6 = 0.00099 nats < 0.001, × 6.7 = 0.001005
    assert not checked(monkeypatch, 6.6).warns and checked(monkeypatch, 6.7).warns
    # in bf16 log-probabilities are exact to 0.8 nats: 1.5e-4 × 5000 = 0.75, × 5400 = 0.81
    coarse = {"dtype": torch.bfloat16}
    assert not checked(monkeypatch, 5000.0, **coarse).warns
    assert checked(monkeypatch, 5400.0, **coarse).warns
    # β has no part in it, since rounding has none
    assert checked(monkeypatch, 5400.0, beta=1e-6, **coarse).warns


@pytest.mark.parametrize("slope, settings", [
    (1000.0, {"steps": 1, "warmup_share": 1.0}),  # a warm-up alone: its one rate is 0
    (0.0, {}),
    (math.nan, {}),
])  # fmt: skip
def test_a_run_that_cannot_move_is_stopped(monkeypatch, slope, settings):
    check = checked(monkeypatch, slope, **settings)
    assert not check.passed and not check.warns and "could reach" not in check.measured


@HEAVY
def test_the_slope_of_the_tiny_model_is_what_a_step_along_it_gives(make):
    """An independent way: move each weight a little against its gradient, and look again."""
    trainer = make(beta=0.5, sft_weight=2.0)
    batch = collate(trainer, [trainer.train_dataset[row] for row in range(8)])
    weights = {n: p for n, p in trainer.model.named_parameters() if p.requires_grad}
    slope = margin_slope(trainer, [batch], set(weights))
    with preference_only(trainer):
        backward(loss_of(trainer, batch))
        rate = 1e-5
        with torch.no_grad():
            for weight in weights.values():
                weight -= rate * weight.grad.sign()
            # −log σ(0.5 m) = ln 2 − m / 4
            margin = 4 * (math.log(2) - float(loss_of(trainer, batch).double()))
    assert margin / rate == pytest.approx(slope, rel=0.03)
    gradients = [p.grad for n, p in weights.items() if "lora_A" in n]
    assert LOSS_SCALE > 1 and not any(gradient.any() for gradient in gradients), "A's while B = 0"


@HEAVY
def test_a_run_trains_at_these_rates_moves_from_the_first_and_stays_under_the_bound(make):
    """A trainer that trains twice makes a second schedule for its optimizer, which begins anew."""
    trainer = make(steps=6, warmup_share=0.2, beta=1.0, sft_weight=0.0)
    rates = step_rates(trainer.args)
    assert rates[0] == 0.0 < rates[1]
    batch = collate(trainer, [trainer.train_dataset[row] for row in range(8)])
    trained = {n for n, p in trainer.model.named_parameters() if p.requires_grad}
    bound = Reach(margin_slope(trainer, [batch], trained), rates, trainer.beta)
    log = dpo.train_dpo(trainer).log
    assert [row["learning_rate"] for row in log] == pytest.approx(rates)
    margins = [row["rewards/margins"] for row in log]
    assert margins[0] == pytest.approx(0, abs=1e-5) and abs(margins[2]) > 1e-3
    # the last two batches are all eight pairs
    assert 0.2 * bound.margin < sum(margins[-2:]) / 2 < bound.margin
    for name, weight in trainer.model.named_parameters():
        if "lora_B" in name:
            assert weight.any(), name
    trainer.train()
    again = [row["learning_rate"] for row in trainer.state.log_history if "loss" in row]
    assert again == pytest.approx(rates)
