"""Pure functions on tensors: the quantities that preference training is made of.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7, taught in notebook 04. Losses of reward
models in notebook 03. From `masked_mean` on, of policy gradients, in notebook 05: tensors
(answers, longest) of the answers' tokens, with a mask that is 1 on real tokens and 0 after them.
PPO: Schulman et al. 2017, arXiv 1707.06347; GAE: Schulman et al. 2016, arXiv 1506.02438; a reward
per token: Ziegler et al. 2019, arXiv 1909.08593.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

TokenMean = Callable[[Tensor, Tensor], Tensor]  # of values and their mask

EPSILON = 1e-8  # added to a standard deviation that is divided by
GRPO_EPSILON = 1e-4  # the same in GRPO, as in TRL
ROUNDING = 1e-6  # a deviation this small beside the values is rounding in fp32, with steps of 1e-7


# Log-probabilities


def token_logps(
    logits: Tensor,  # (batch, seq, vocab)
    input_ids: Tensor,  # (batch, seq)
    completion_mask: Tensor,  # (batch, seq), 0 on prompt and padding
) -> Tensor:
    """Log-probability in fp32 of each completion token, (batch, seq − 1); 0 where there is none."""
    # the logits at position t predict token t + 1
    all_logps = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    logps = all_logps.gather(-1, input_ids[:, 1:, None]).squeeze(-1)
    return logps * completion_mask[:, 1:]


def completion_logps(
    logits: Tensor,
    input_ids: Tensor,
    completion_mask: Tensor,
) -> Tensor:
    """Sum of the log-probabilities of the completion tokens, (batch,); see `token_logps`."""
    return token_logps(logits, input_ids, completion_mask).sum(-1)


# Losses of pairs of answers


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """−log σ(β · margin), and the margin: how much more `chosen` is preferred than by the
    reference.

    All arguments are sums of log-probabilities (batch,); returns (loss (), margin (batch,)).
    With policy = reference the margin is 0 and the loss ln 2 = 0.6931.

    With means over tokens instead of sums it is the length-normalised variant. With chosen = the
    answer to the right image and rejected = the same answer to a spoilt one it is mDPO's
    conditional preference (arXiv 2406.11839). `label_smoothing` ε < ½ gives the unbiased loss for
    labels of which a share ε is wrong (robust DPO, Chowdhury et al. 2024, arXiv 2403.00409).
    """
    chosen = chosen_logps - reference_chosen_logps
    rejected = rejected_logps - reference_rejected_logps
    margin = chosen - rejected
    right = -logsigmoid(beta * margin)
    wrong = -logsigmoid(-beta * margin)
    # what the wrong labels add on average is taken off again
    loss = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return loss.mean(), margin


def anchor_loss(
    chosen_logps: Tensor,
    reference_chosen_logps: Tensor,
    beta: float,
    delta: float = 0.0,
) -> Tensor:
    """−log σ(β · (log π − log π_ref) − δ) of the chosen answers, ().

    They must not become less likely: the third term of mDPO (arXiv 2406.11839). Arguments (batch,).
    """
    reward = beta * (chosen_logps - reference_chosen_logps)
    return -logsigmoid(reward - delta).mean()


def bco_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    delta: float = 0.0,
) -> Tensor:
    """−log σ(r_chosen − δ) − log σ(−(r_rejected − δ)) with r = β · (log π − log π_ref), ().

    Is each answer good by itself? Binary classifier optimisation (Jung et al. 2024, arXiv
    2404.04656); MPO's term of quality (arXiv 2411.10442). δ shifts the rewards; TRL's `bco_pair`
    has δ = 0. Arguments (batch,).
    """
    chosen = beta * (chosen_logps - reference_chosen_logps) - delta
    rejected = beta * (rejected_logps - reference_rejected_logps) - delta
    loss = -logsigmoid(chosen) - logsigmoid(-rejected)
    return loss.mean()


def sft_loss(logps: Tensor, completion_mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the tokens of the chosen answers, (): plain fine-tuning.

    logps: (batch, longest) as `token_logps` gives them; mask: the same shape.
    """
    total = (logps * completion_mask).sum()
    return -total / completion_mask.sum()


# Losses of reward models


def bradley_terry_loss(
    better: Tensor,
    worse: Tensor,
    margin: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centring_weight: float = 0.0,
) -> Tensor:
    """−log σ(better − worse − margin) of every pair.

    Bradley & Terry 1952; the margin: arXiv 2307.09288. better, worse: scores (pairs,) → loss
    (pairs,). `label_smoothing` ε is the share of pairs that are taken to be labelled the wrong way
    round: (1 − ε)·loss + ε·loss of the swapped pair. `centring_weight` adds centring_weight ·
    (better + worse)², which keeps scores near 0 (Eisenstein et al. 2023, arXiv 2312.09244).
    """
    gap = better - worse - margin
    # as labelled, and the wrong way round
    loss = -(1 - label_smoothing) * logsigmoid(gap) - label_smoothing * logsigmoid(-gap)
    return loss + centring_weight * (better + worse) ** 2


def focal_bradley_terry_loss(better: Tensor, worse: Tensor, gamma: float = 2.0) -> Tensor:
    """−(1 − p)^γ · log p with p = σ(better − worse): pairs that are already right count less.

    Scores (pairs,) → (pairs,). The focal loss of Lin et al. 2017 (arXiv 1708.02002); γ = 0 is
    `bradley_terry_loss`.
    """
    gap = better - worse
    weight = torch.sigmoid(-gap) ** gamma
    return -weight * logsigmoid(gap)


def listwise_loss(scores: Tensor, tiers: Sequence[Sequence[int]]) -> Tensor:
    """−log softmax of each answer among itself and all that are ranked worse (Plackett 1975).

    scores: of the answers to one prompt, (answers,); tiers: places in `scores`, best first, ties
    together. Returns one loss for every answer that has a worse one. With two answers it is
    `bradley_terry_loss`.
    """
    losses: list[Tensor] = []
    worse = torch.empty(0, dtype=torch.long, device=scores.device)
    # from the worst tier up, so that all worse answers are known
    for tier in reversed(tiers):
        places = torch.as_tensor(tier, device=scores.device)
        if len(worse):
            # each answer of the tier beside all worse ones: (tier, 1 + worse); ties do not compete
            rivals = scores[worse].expand(len(places), -1)
            group = torch.cat([scores[places, None], rivals], dim=1)
            losses.append(group.logsumexp(1) - scores[places])
        worse = torch.cat([worse, places])
    return torch.cat(losses[::-1]) if losses else scores[:0]


# Figures of tokens


def masked_mean(
    values: Tensor,
    mask: Tensor,
    count: Tensor | None = None,
) -> Tensor:
    """Mean over the tokens of the whole batch, (); 0 if there is none.

    count: what is divided by instead of the number of tokens.
    """
    if count is None:
        count = mask.sum().clamp(min=1)
    return (values * mask).sum() / count


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Variance (with n, not n − 1) over the tokens of the whole batch, ()."""
    gaps = values - masked_mean(values, mask)
    return masked_mean(gaps**2, mask)


def _standard_deviation(
    values: Tensor,
    mask: Tensor,
    mean: TokenMean = masked_mean,
) -> Tensor:
    """Standard deviation, (), and exactly 0 where it is only rounding.

    The fp32 mean of 7 × 0.2 is not quite 0.2.
    """
    gaps = values - mean(values, mask)
    spread = mean(gaps**2, mask).sqrt()
    largest = (values * mask).abs().max().clamp(min=1)
    return spread * (spread > ROUNDING * largest)


def whiten(
    values: Tensor,
    mask: Tensor,
    mean: TokenMean = masked_mean,
) -> Tensor:
    """Mean 0 and standard deviation 1 over the tokens of the batch.

    mean: of values and their mask; it may be over more tokens than those of this process. Values
    that are all equal become 0: they say nothing about which answer was better.
    """
    spread = _standard_deviation(values, mask, mean)
    centred = values - mean(values, mask)
    white = centred / (spread + EPSILON)
    return white * mask * (spread > 0)


# Rewards and advantages


def token_rewards(
    scores: Tensor,  # (answers,)
    kl: Tensor,  # (answers, longest)
    mask: Tensor,  # (answers, longest), from the left without holes
    kl_weight: float,
) -> Tensor:
    """−kl_weight · KL at every token, and the score at an answer's last one, (answers, longest).

    Raises ValueError if an answer has no token, since its score would be lost.
    """
    lengths = mask.sum(1).long()
    if (lengths == 0).any():
        raise ValueError("an answer without a token has no place for its score")
    rewards = -kl_weight * kl * mask
    # the last real token of each answer
    rewards[torch.arange(len(scores)), lengths - 1] += scores
    return rewards


def gae(
    rewards: Tensor,  # (answers, longest)
    values: Tensor,  # (answers, longest), V of the state before each token
    mask: Tensor,  # (answers, longest)
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates A and returns A + V, (answers, longest) each.

    δ_t = r_t + γ V_{t+1} − V_t with V = 0 after the last token, A_t = δ_t + γ λ A_{t+1}. λ = 1:
    reward to go minus V; λ = 0: δ.
    """
    advantages = torch.zeros_like(rewards)
    advantage = torch.zeros_like(rewards[:, 0])
    next_value = torch.zeros_like(values[:, 0])
    # from the last token to the first, all answers at once; after an answer's end all stays 0
    for t in reversed(range(rewards.shape[1])):
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = (delta + gamma * lam * advantage) * mask[:, t]
        advantages[:, t] = advantage
        next_value = values[:, t] * mask[:, t]
    return advantages, (advantages + values) * mask


def rloo_advantages(scores: Tensor, group_size: int) -> Tensor:
    """Score minus the mean score of the other answers to the same prompt.

    RLOO (Ahmadian et al. 2024, arXiv 2402.14740). scores: (prompts · group_size,), the answers to a
    prompt together → the same shape. A group of one has no others: ValueError.
    """
    grouped = _score_gaps(scores, group_size)
    of_others = grouped.sum(1, keepdim=True) - grouped
    advantages = grouped - of_others / (group_size - 1)
    return advantages.flatten()


def grpo_advantages(
    scores: Tensor,
    group_size: int,
    scale: bool = True,
) -> Tensor:
    """Score minus the mean of its group, over the group's standard deviation.

    GRPO (Shao et al. 2024, arXiv 2402.03300). The deviation is with n − 1; a group of equal scores
    gets 0. scale=False leaves the deviation out (Dr. GRPO, Liu et al. 2025, arXiv 2503.20783).
    Shapes as in `rloo_advantages`.
    """
    grouped = _score_gaps(scores, group_size)
    centred = grouped - grouped.mean(1, keepdim=True)
    if scale:
        deviation = grouped.std(1, keepdim=True)
        centred = centred / (deviation + GRPO_EPSILON)
    return centred.flatten()


def _score_gaps(scores: Tensor, group_size: int) -> Tensor:
    """Scores less that of the first answer of their group, (prompts, group_size).

    No difference within a group changes, and equal scores become exactly 0.
    """
    if group_size < 2:
        raise ValueError(
            f"a group of {group_size} has no other answers to compare with: sample at least 2"
        )
    grouped = scores.view(-1, group_size)
    return grouped - grouped[:, :1]


# Losses of policy and critic


@dataclass(frozen=True)
class PolicyLoss:
    loss: Tensor  # (), to be minimised
    clip_share: float  # of tokens whose ratio the clipping held back
    approx_kl: float  # mean k3 estimate of KL(old ‖ new) per token
    ratio: float  # mean π / π_old; 1.000 at the first mini-batch


def clipped_policy_loss(
    logps: Tensor,
    old_logps: Tensor,
    advantages: Tensor,
    mask: Tensor,
    clip: float,
    count: Tensor | None = None,
) -> PolicyLoss:
    """−mean of min(ρ A, clamp(ρ, 1 − ε, 1 + ε) A) over tokens, ρ = π / π_old.

    Equation 7 of arXiv 1707.06347. Tensors are (answers, longest); count as in `masked_mean`.
    """
    # ρ, and the loss with ρ as it is and held within the clip: the larger one counts
    log_ratio = (logps - old_logps) * mask
    ratio = log_ratio.exp()
    free = -advantages * ratio
    held = -advantages * ratio.clamp(1 - clip, 1 + clip)
    loss = masked_mean(torch.maximum(free, held), mask, count)
    with torch.no_grad():
        clip_share = masked_mean((held > free).float(), mask)
        approx_kl = masked_mean(k3(-log_ratio), mask)
        mean_ratio = masked_mean(ratio, mask)
    return PolicyLoss(loss, float(clip_share), float(approx_kl), float(mean_ratio))


# name → a function with the arguments and the result of `clipped_policy_loss`
POLICY_LOSSES = {"clip": clipped_policy_loss}


def clipped_value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    clip: float,
    count: Tensor | None = None,
) -> Tensor:
    """½ · mean of the larger squared error: of V, and of V held within ± clip of its old value."""
    held = old_values + (values - old_values).clamp(-clip, clip)
    error = (values - returns) ** 2
    held_error = (held - returns) ** 2
    larger = torch.maximum(error, held_error)
    return 0.5 * masked_mean(larger, mask, count)


def explained_variance(
    values: Tensor,
    returns: Tensor,
    mask: Tensor,
) -> float:
    """1 − Var(returns − V) / Var(returns) over tokens: 1 perfect, 0 no better than a constant.

    NaN if all returns are equal.
    """
    total = _standard_deviation(returns, mask) ** 2
    if total == 0:
        return math.nan
    left = masked_var(returns - values, mask)
    return float(1 - left / total)


# Entropy, and estimates of KL


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the next token in nats: (…, vocab) → (…)."""
    logps = torch.log_softmax(logits.float(), dim=-1)
    # a token that cannot be sampled adds 0 · −∞, which is to be 0
    finite = logps.masked_fill(logps == -torch.inf, 0)
    return -(logps.exp() * finite).sum(-1)


def k1(log_ratio: Tensor) -> Tensor:
    """log π − log π_ref of tokens sampled from π: unbiased for KL(π ‖ π_ref), of either sign.

    The three estimators are those of Schulman 2020.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """½ (log π − log π_ref)²: never negative, a little biased."""
    return log_ratio**2 / 2


def k3(log_ratio: Tensor) -> Tensor:
    """e^−x − 1 + x with x = log π − log π_ref: never negative and unbiased."""
    return torch.expm1(-log_ratio) + log_ratio


KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}


@dataclass
class AdaptiveKL:
    """Weight of the KL penalty that follows the measured KL to a target.

    weight ← weight · (1 + clamp(KL / target − 1, −0.2, 0.2) · n / horizon) after n answers (arXiv
    1909.08593, section 2.2).
    """

    weight: float
    target: float | None = None  # nats an answer; None: the weight is fixed
    horizon: int = 1000

    def update(self, kl: float, answers: int) -> None:
        if self.target is not None:
            error = min(max(kl / self.target - 1, -0.2), 0.2)
            self.weight *= 1 + error * answers / self.horizon
