import math

import torch
from torch.testing import assert_close

from helpers.losses import completion_logps, dpo_loss


def tensor(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_dpo_by_hand():
    # margin (-10 + 11) − (-15 + 14) = 2, beta 0.1: −log σ(0.2) = log(1 + e^−0.2) = 0.5981
    loss, margin = dpo_loss(tensor(-10.0), tensor(-15.0), tensor(-11.0), tensor(-14.0), beta=0.1)
    assert_close(margin, tensor(2.0))
    assert_close(loss, torch.tensor(0.59814), atol=1e-5, rtol=0)


def test_equal_policies_give_ln_2_and_swapping_flips_the_margin():
    a, b = tensor(-3.0, -40.0), tensor(-5.0, -7.0)
    loss, margin = dpo_loss(a, b, a, b, beta=0.7)
    assert_close(loss, torch.tensor(math.log(2)))
    assert_close(margin, tensor(0.0, 0.0))
    _, forward = dpo_loss(a, b, b, b, beta=0.7)
    _, backward = dpo_loss(b, a, b, b, beta=0.7)
    assert_close(forward, -backward)


def test_the_loss_is_finite_where_log_of_sigmoid_underflows():
    loss, _ = dpo_loss(tensor(-2000.0), tensor(0.0), tensor(0.0), tensor(0.0), beta=1.0)
    assert_close(loss, torch.tensor(2000.0))


def test_completion_logps_by_hand():
    # two tokens; logits (0, ln 3) give probabilities 1/4 and 3/4 at every position
    logits = torch.tensor([0.0, math.log(3)]).expand(1, 4, 2)
    ids, mask = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 0, 1, 1]])
    # completion tokens 1 and 0: ln(3/4) + ln(1/4)
    assert_close(completion_logps(logits, ids, mask), tensor(math.log(3 / 16)))


def test_masked_tokens_have_no_gradient():
    logits = torch.randn(1, 5, 7, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 0, 0]])
    completion_logps(logits, torch.randint(7, (1, 5)), mask).sum().backward()
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [False, True, False, False, False]  # position 1 predicts token 2
