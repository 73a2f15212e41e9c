import math

import torch
from torch.testing import assert_close

from helpers.losses import (
    anchor_loss,
    bco_loss,
    bradley_terry_loss,
    completion_logps,
    dpo_loss,
    focal_bradley_terry_loss,
    listwise_loss,
    sft_loss,
    token_logps,
)


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


def test_wrong_labels_are_allowed_for():
    # margin 2, β ½: −log σ(1) = 0.31326, −log σ(−1) = 1.31326; (0.9 · 0.31326 − 0.1 · 1.31326) / 0.8 = 0.18826
    arguments = tensor(-10.0), tensor(-15.0), tensor(-11.0), tensor(-14.0), 0.5
    assert_close(dpo_loss(*arguments)[0], torch.tensor(0.31326), atol=1e-5, rtol=0)
    assert_close(
        dpo_loss(*arguments, label_smoothing=0.1)[0], torch.tensor(0.18826), atol=1e-5, rtol=0
    )
    # unbiased: what noisy labels give on average is the loss of the clean ones
    swapped = tensor(-15.0), tensor(-10.0), tensor(-14.0), tensor(-11.0), 0.5
    noisy = [dpo_loss(*pair, label_smoothing=0.1)[0] for pair in (arguments, swapped)]
    assert_close(0.9 * noisy[0] + 0.1 * noisy[1], dpo_loss(*arguments)[0])


def test_the_anchor_by_hand():
    # β · (−10 + 11) = 0.5: −log σ(0.5) = 0.47408; δ 0.2: −log σ(0.3) = 0.55436
    assert_close(
        anchor_loss(tensor(-10.0), tensor(-11.0), 0.5), torch.tensor(0.47408), atol=1e-5, rtol=0
    )
    assert_close(
        anchor_loss(tensor(-10.0), tensor(-11.0), 0.5, 0.2),
        torch.tensor(0.55436),
        atol=1e-5,
        rtol=0,
    )
    assert (
        anchor_loss(tensor(-12.0), tensor(-11.0), 0.5)
        > math.log(2)
        > anchor_loss(tensor(-10.0), tensor(-11.0), 0.5)
    )


def test_bco_by_hand():
    # rewards 0.5 and −0.5: twice 0.47408; δ 0.2: −log σ(0.3) − log σ(0.7) = 0.55436 + 0.40319
    arguments = tensor(-10.0), tensor(-15.0), tensor(-11.0), tensor(-14.0), 0.5
    assert_close(bco_loss(*arguments), torch.tensor(0.94815), atol=1e-5, rtol=0)
    assert_close(bco_loss(*arguments, delta=0.2), torch.tensor(0.95754), atol=1e-5, rtol=0)


def test_sft_is_the_mean_over_tokens_and_not_over_answers():
    logps, mask = (
        torch.tensor([[-1.0, -2.0, -3.0], [-6.0, 0.0, 0.0]]),
        torch.tensor([[1, 1, 1], [1, 0, 0]]),
    )
    assert_close(sft_loss(logps, mask), torch.tensor(3.0))


def test_completion_logps_by_hand():
    # two tokens; logits (0, ln 3) give probabilities 1/4 and 3/4 at every position
    logits = torch.tensor([0.0, math.log(3)]).expand(1, 4, 2)
    ids, mask = torch.tensor([[0, 1, 1, 0]]), torch.tensor([[0, 0, 1, 1]])
    assert_close(
        token_logps(logits, ids, mask), torch.tensor([[0.0, math.log(3 / 4), math.log(1 / 4)]])
    )
    assert token_logps(logits.half(), ids, mask).dtype == torch.float32
    # completion tokens 1 and 0: ln(3/4) + ln(1/4)
    assert_close(completion_logps(logits, ids, mask), tensor(math.log(3 / 16)))


def test_masked_tokens_have_no_gradient():
    logits = torch.randn(1, 5, 7, requires_grad=True)
    mask = torch.tensor([[0, 0, 1, 0, 0]])
    completion_logps(logits, torch.randint(7, (1, 5)), mask).sum().backward()
    touched = logits.grad.abs().sum(-1)[0] > 0
    assert touched.tolist() == [False, True, False, False, False]  # position 1 predicts token 2


def test_bradley_terry_by_hand():
    better, worse = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 0.0])
    # −log σ(2) = 0.1269, −log σ(0) = ln 2
    assert_close(bradley_terry_loss(better, worse), torch.tensor([0.1269280, 0.6931472]))
    # a margin of 2 leaves a gap of 0
    assert_close(
        bradley_terry_loss(better, worse, margin=torch.tensor([2.0, 0.0])),
        torch.full((2,), 0.6931472),
    )
    # ε = 0.1: 0.9 · 0.1269 + 0.1 · −log σ(−2) = 0.9 · 0.1269 + 0.1 · 2.1269 = 0.3269
    assert_close(bradley_terry_loss(better, worse, label_smoothing=0.1)[0], torch.tensor(0.3269280))
    # centring_weight 0.01 · (2 + 0)² = 0.04
    assert_close(
        bradley_terry_loss(better, worse, centring_weight=0.01)[0], torch.tensor(0.1669280)
    )
    assert bradley_terry_loss(torch.tensor([-500.0]), torch.tensor([500.0])).item() == 1000, (
        "log(sigmoid(x)) would be −inf"
    )


def test_focal_by_hand():
    better, worse = torch.tensor([2.0, -1.0]), torch.tensor([0.0, 1.0])
    assert_close(focal_bradley_terry_loss(better, worse, 0.0), bradley_terry_loss(better, worse))
    # σ(2) = 0.8808: (0.1192)² · 0.1269 = 0.001804; σ(−2) = 0.1192: 0.8808² · 2.1269 = 1.6500
    assert_close(
        focal_bradley_terry_loss(better, worse),
        torch.tensor([0.0018038, 1.6500466]),
        rtol=1e-4,
        atol=1e-6,
    )


def test_listwise_by_hand():
    scores = torch.tensor([1.0, 3.0, 0.0])
    # best answer 1: log(e³ + e¹ + e⁰) − 3 = 0.1698; then 0 against 2: log(e¹ + e⁰) − 1 = 0.3133
    assert_close(listwise_loss(scores, [[1], [0], [2]]), torch.tensor([0.1698460, 0.3132617]))
    # two answers tied at the top, each against the third only: log(1 + e^−1), log(1 + e^−3)
    assert_close(listwise_loss(scores, [[0, 1], [2]]), torch.tensor([0.3132617, 0.0485874]))
    assert listwise_loss(scores, [[0, 1, 2]]).shape == (0,)
    two = torch.tensor([0.3, -0.9])
    assert_close(listwise_loss(two, [[0], [1]]), bradley_terry_loss(two[:1], two[1:]))


def source_contrastive(better, worse, temperature=0.5):
    """The contrastive loss of a source project, which treats "both chosen" and "both rejected" alike."""
    scores = torch.cat([better, worse]) / temperature
    likeness = torch.exp(scores[None] - scores[:, None])
    label = torch.tensor([1.0] * len(better) + [0.0] * len(worse))
    same = (label[None] == label[:, None]).float().fill_diagonal_(0)
    positive, negative = (likeness * same).sum(1), (likeness * (1 - same)).sum(1) + 1e-8
    return -torch.log(positive / (positive + negative)).mean()


def test_the_direction_matters():
    """A source project's contrastive loss is the same with chosen and rejected exchanged; ours are not."""
    better, worse = torch.tensor([2.0, 1.0]), torch.tensor([0.5, -1.0])
    assert_close(source_contrastive(better, worse), source_contrastive(worse, better))
    for loss in (bradley_terry_loss, focal_bradley_terry_loss):
        assert (loss(better, worse) < loss(worse, better)).all()
    scores = torch.stack([better[0], worse[0]])
    assert listwise_loss(scores, [[0], [1]]) < listwise_loss(scores, [[1], [0]])
