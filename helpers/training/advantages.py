"""How much better than expected was each token? What PPO, RLOO and GRPO say, in one table.

A way gets the rewards of an iteration's tokens and the values that were expected before them. It
gives advantages, which the policy learns from, and returns, which the critic learns from. The
formulas are in `helpers/losses.py`. Taught in notebook 05.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from helpers import losses
from helpers.config import PPOSettings
from helpers.losses import TokenMean


@dataclass(frozen=True)
class AdvantageWay:
    """An entry of `ADVANTAGES`: the estimate, and what the rest of the loop must know of it."""

    # (rewards, values, mask, settings, mean) → (advantages, returns); tensors (answers, longest);
    # `mean` is over the tokens of all processes
    estimate: Callable[[Tensor, Tensor, Tensor, PPOSettings, TokenMean], tuple[Tensor, Tensor]]
    learns_values: bool = False  # with a critic; without one, the mean return is what was expected
    compares_answers: bool = False  # of one prompt, so that it needs two or more
    kl_in_loss: bool = False  # the price of KL is a term of the loss, not of the rewards


def _estimate_by_critic(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    settings: PPOSettings,
    mean: TokenMean,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates, whitened over the batch."""
    advantages, returns = losses.gae(rewards, values, mask, settings.gamma, settings.lam)
    if settings.whiten:
        advantages = losses.whiten(advantages, mask, mean)
    return advantages, returns


def _estimate_by_others(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    settings: PPOSettings,
    mean: TokenMean,
) -> tuple[Tensor, Tensor]:
    """RLOO: an answer against the mean of the others to its prompt, the same at each token."""
    _, returns = losses.gae(rewards, values, mask, settings.gamma, settings.lam)
    totals = rewards.sum(1)
    advantages = losses.rloo_advantages(totals, settings.group_size)
    return advantages[:, None] * mask, returns


def _estimate_by_group(
    rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    settings: PPOSettings,
    mean: TokenMean,
) -> tuple[Tensor, Tensor]:
    """GRPO: an answer against its group's mean, in standard deviations, the same at each token."""
    _, returns = losses.gae(rewards, values, mask, settings.gamma, settings.lam)
    totals = rewards.sum(1)
    advantages = losses.grpo_advantages(totals, settings.group_size, settings.whiten)
    return advantages[:, None] * mask, returns


# name → the way that `advantages` of the settings asks for
ADVANTAGES = {
    "gae": AdvantageWay(_estimate_by_critic, learns_values=True),
    "rloo": AdvantageWay(_estimate_by_others, compares_answers=True),
    "grpo": AdvantageWay(_estimate_by_group, compares_answers=True, kl_in_loss=True),
}
