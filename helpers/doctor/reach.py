"""How far a run can move the margin: a bound from its learning rates and one backward pass.

Adam moves a weight by about the learning rate a step at most, whatever the size of the gradient. So
the mean margin, in nats without β, moves by at most the L1 norm of its gradient × the sum of the
learning rates (Hölder's inequality, to first order). β decides only how far the loss falls with it.
Used by `helpers/doctor/checks.py`, taught in notebook 04.

Simplifications: the gradient is that of the start. There LoRA's B is zero, so that A gets none and
only B counts; once B has moved, A adds to the margin, at first with the square of the way. Nor does
the bound know how well the steps agree, or which way the margin goes, up by its chosen answers or
down by the rejected ones. Measured runs came to a seventh of it up to nearly all. There is no upper
limit: a run with 66 nats was broken without an SFT term and sound with one, one with 44 was sound,
and on the tiny base one with 24 was broken. The doctor has to see that while the run goes on.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch
from transformers import TrainingArguments, get_scheduler
from trl import DPOTrainer

from helpers.runtime import tolerances_of

from .dry_run import LOSS_SCALE, backward, loss_of, preference_only, training_mode
from .input_checks import Batches, Check

# What to aim at: a margin of 2 is a loss of 0.127, and of the bound a fraction is reached.
AIM_MARGIN = 2.0
# A run that cannot come further than this ends with a loss over 0.313. With a bound of 0.88 one of
# 16 steps on a base of 164 M weights came to 0.53, and answered as before.
LEAST_MARGIN = 1.0


@dataclass(frozen=True)
class Reach:
    """What a run can make of the mean margin of its pairs, at most."""

    slope: float  # L1 norm of the gradient of the margin, nats for each unit of learning rate
    rates: Sequence[float]  # the learning rate of each step
    beta: float

    @property
    def nats(self) -> float:
        """The largest margin that the steps can make, in nats, without β."""
        return self.slope * sum(self.rates)

    @property
    def margin(self) -> float:
        """The same with β, as it stands in the log."""
        return self.beta * self.nats

    def rate_for(self, margin: float) -> float:
        """The learning rate, at its peak, that could reach this margin in as many steps."""
        return max(self.rates) * margin / self.margin


def step_rates(args: TrainingArguments) -> list[float]:
    """The learning rate of each step, warm-up and decay included.

    The schedule is that of the trainer, made for an optimizer of its own: making one sets the
    optimizer to the rate of the first step, which is 0 under a warm-up.
    """
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=args.learning_rate)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        args.get_warmup_steps(args.max_steps),
        args.max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    rates = []
    for _ in range(args.max_steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates


def margin_slope(trainer: DPOTrainer, batches: Batches, trainable: Set[str]) -> float:
    """L1 norm of the gradient of the mean margin of some pairs, nats for a unit of learning rate.

    It is twice that of the preference loss at β = 1: where policy and reference are equal,
    −log σ(margin) falls by ½ a nat. `first-step loss` has checked that they are. trainable: names
    of the weights that are trained.
    """
    model = trainer.model
    pairs = sum(len(batch["completion_mask"]) for batch in batches) / 2
    model.zero_grad()
    with preference_only(trainer), training_mode(trainer):
        trainer.beta = 1.0
        for batch in batches:
            # a batch has two rows a pair and counts by its size
            share = len(batch["completion_mask"]) / 2 / pairs
            backward(loss_of(trainer, batch) * share)
    total = 0.0
    for name, weight in model.named_parameters():
        if name in trainable and weight.grad is not None:
            total += float(weight.grad.double().abs().sum())
    model.zero_grad()
    return 2 * total / LOSS_SCALE


def check_reach(trainer: DPOTrainer, batches: Batches, trainable: Set[str]) -> Check:
    """Is the learning rate, over so many steps, enough for a margin that can be told from noise?

    It stops a run whose largest margin is within the rounding of log-probabilities, and warns of
    one that cannot learn enough.
    """
    slope = margin_slope(trainer, batches, trainable)
    reach = Reach(slope, step_rates(trainer.args), trainer.beta)
    rounding = tolerances_of(trainer.model).nats
    measured = (
        f"{len(reach.rates)} steps move the margin by at most {reach.margin:.2g} "
        f"({reach.nats:.2g} nats; rounding {rounding:g})"
    )
    remedy = "Raise learning_rate or steps of `settings` in the Parameters cell of notebook 04."
    if reach.margin > 0:
        rate = f"{reach.rate_for(AIM_MARGIN):.1e}"
        measured += f"; a rate of {rate} could reach {AIM_MARGIN:g}"
        remedy = (
            f"Raise learning_rate of `settings` in the Parameters cell of notebook 04 to {rate} "
            "or more, or take more steps: their rates add up. A run may reach a seventh of this."
        )
    enough = reach.nats > rounding and reach.margin >= LEAST_MARGIN
    return Check("learning rate", enough, measured, remedy, warns=reach.nats > rounding)
