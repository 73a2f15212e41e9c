"""Pure functions on tensors: the quantities that preference training is made of.

DPO: Rafailov et al. 2023, arXiv 2305.18290, equation 7. Taught in notebook 04.
"""

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def completion_logps(logits: Tensor, input_ids: Tensor, completion_mask: Tensor) -> Tensor:
    """Sum of the log-probabilities of the completion tokens of each sequence.

    logits: (batch, seq, vocab), input_ids and completion_mask: (batch, seq) → (batch,), in fp32.
    The logits at position t predict token t + 1; prompt and padding have mask 0.
    """
    logps = torch.log_softmax(logits[:, :-1].float(), dim=-1)
    token_logps = logps.gather(-1, input_ids[:, 1:, None]).squeeze(-1)  # (batch, seq - 1)
    return (token_logps * completion_mask[:, 1:]).sum(-1)


def dpo_loss(
    chosen_logps: Tensor,
    rejected_logps: Tensor,
    reference_chosen_logps: Tensor,
    reference_rejected_logps: Tensor,
    beta: float,
) -> tuple[Tensor, Tensor]:
    """−log σ(β · margin), and the margin: how much more than the reference the policy prefers `chosen`.

    All arguments are sums of log-probabilities (batch,); returns (loss (), margin (batch,)).
    With policy = reference the margin is 0 and the loss ln 2 = 0.6931.
    """
    margin = (chosen_logps - reference_chosen_logps) - (rejected_logps - reference_rejected_logps)
    return -logsigmoid(beta * margin).mean(), margin
