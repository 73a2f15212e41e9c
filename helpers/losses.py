"""Pure functions on tensors: the quantities that preference training is made of.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7, taught in notebook 04. Losses of reward models
in notebook 03.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def token_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Log-probability of each completion token, in fp32, and 0 where there is none.

    logits: (batch, seq, vocab), input_ids and completion_mask: (batch, seq) → (batch, seq − 1): the logits
    at position t predict token t + 1. Prompt and padding have mask 0.
    """
    logps = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    return logps.gather(-1, input_ids[:, 1:, None]).squeeze(-1) * completion_mask[:, 1:]


def completion_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Sum of the log-probabilities of the completion tokens of each sequence, (batch,); see `token_logps`."""
    return token_logps(logits, input_ids, completion_mask).sum(-1)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """−log σ(β · margin), and the margin: how much more than the reference the policy prefers `chosen`.

    All arguments are sums of log-probabilities (batch,); returns (loss (), margin (batch,)).
    With policy = reference the margin is 0 and the loss ln 2 = 0.6931.

    With means over tokens instead of sums it is the length-normalised variant. With chosen = the answer to
    the right image and rejected = the same answer to a spoilt one it is mDPO's conditional preference
    (arXiv 2406.11839). `label_smoothing` ε < ½ gives the unbiased loss for labels of
    which a share ε is wrong (robust DPO, Chowdhury et al. 2024, arXiv 2403.00409).
    """
    margin = (chosen_logps - reference_chosen_logps) - (rejected_logps - reference_rejected_logps)
    right, wrong = -logsigmoid(beta * margin), -logsigmoid(-beta * margin)
    loss = ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)
    return loss.mean(), margin


def anchor_loss(chosen_logps: Tensor, reference_chosen_logps: Tensor, beta: float, delta: float = 0.0) -> Tensor:
    """−log σ(β · (log π − log π_ref) − δ) of the chosen answers, (): they must not become less likely.

    The third term of mDPO (arXiv 2406.11839); arguments (batch,).
    """
    return -logsigmoid(beta * (chosen_logps - reference_chosen_logps) - delta).mean()


def bco_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
    delta: float = 0.0,
) -> Tensor:
    """−log σ(r_chosen − δ) − log σ(−(r_rejected − δ)) with r = β · (log π − log π_ref): is each answer good by itself?

    Binary classifier optimisation (Jung et al. 2024, arXiv 2404.04656); MPO's term of quality
    (arXiv 2411.10442). δ shifts the rewards; TRL's `bco_pair` has δ = 0. Arguments (batch,), result ().
    """
    chosen = beta * (chosen_logps - reference_chosen_logps) - delta
    rejected = beta * (rejected_logps - reference_rejected_logps) - delta
    return (-logsigmoid(chosen) - logsigmoid(-rejected)).mean()


def sft_loss(logps: Tensor, completion_mask: Tensor) -> Tensor:
    """Mean negative log-likelihood of the tokens of the chosen answers, (): plain fine-tuning.

    logps: (batch, longest) as `token_logps` gives them; mask: the same shape.
    """
    return -(logps * completion_mask).sum() / completion_mask.sum()


def bradley_terry(
    better: Tensor,
    worse: Tensor,
    margin: Tensor | float = 0.0,
    label_smoothing: float = 0.0,
    centring: float = 0.0,
) -> Tensor:
    """−log σ(better − worse − margin) of every pair (Bradley & Terry 1952; margin: Llama 2, arXiv 2307.09288).

    better, worse: scores (pairs,) → loss (pairs,). `label_smoothing` ε is the share of pairs that are
    taken to be labelled the wrong way round: (1 − ε)·loss + ε·loss of the swapped pair. `centring` adds
    centring · (better + worse)², which keeps scores near 0 (Eisenstein et al. 2023, arXiv 2312.09244).
    """
    gap = better - worse - margin
    loss = -(1 - label_smoothing) * logsigmoid(gap) - label_smoothing * logsigmoid(-gap)
    return loss + centring * (better + worse) ** 2


def focal_bradley_terry(better: Tensor, worse: Tensor, gamma: float = 2.0) -> Tensor:
    """−(1 − p)^γ · log p with p = σ(better − worse): pairs that are already right count less.

    Scores (pairs,) → (pairs,). The focal loss of Lin et al. 2017 (arXiv 1708.02002); γ = 0 is `bradley_terry`.
    """
    gap = better - worse
    return -(torch.sigmoid(-gap) ** gamma) * logsigmoid(gap)


def listwise(scores: Tensor, tiers: Sequence[Sequence[int]]) -> Tensor:
    """−log softmax of each answer among itself and all that are ranked worse (Plackett 1975), ties apart.

    scores: of the answers to one prompt, (answers,); tiers: places in `scores`, best first, ties
    together. Returns one loss for every answer that has a worse one. With two answers it is `bradley_terry`.
    """
    losses, worse = [], torch.empty(0, dtype=torch.long, device=scores.device)
    for tier in reversed(tiers):
        places = torch.as_tensor(tier, device=scores.device)
        if len(worse):
            rivals = scores[worse].expand(len(places), -1)
            losses.append(torch.cat([scores[places, None], rivals], dim=1).logsumexp(1) - scores[places])
        worse = torch.cat([worse, places])
    return torch.cat(losses[::-1]) if losses else scores[:0]
