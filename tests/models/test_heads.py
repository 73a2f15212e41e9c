"""Heads on a language model: a score of an answer, a value of each token."""

import pytest
import torch
from torch.testing import assert_close

from helpers.models.heads import HEADS, ValueHead, fused_layers


@pytest.mark.parametrize("head", HEADS)
def test_heads_start_small_and_are_trained(head):
    torch.manual_seed(0)
    module = HEADS[head](64)
    matrices = [
        value
        for name, value in module.named_parameters()
        if name.endswith("weight") and value.ndim == 2
    ]
    assert 0.015 < torch.cat([m.flatten() for m in matrices]).std() < 0.025
    scores = module(torch.randn(5, module.layers, 64))
    assert scores.shape == (5,)
    scores.sum().backward()
    assert all(
        value.grad is not None and value.grad.abs().sum() > 0 for value in module.parameters()
    )


def test_layers_to_fuse():
    assert (
        fused_layers(28, 4) == (7, 14, 21, 28)
        and fused_layers(3, 4) == (1, 2, 3)
        and fused_layers(28, 1) == ()
    )


@pytest.mark.parametrize("sees_image", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_values_start_at_zero_and_learn(layers, sees_image):
    torch.manual_seed(0)
    head, states, pooled = ValueHead(8, layers, sees_image), torch.randn(2, 5, 8), torch.randn(2, 8)
    for scale in (1, 100):
        assert torch.equal(head(scale * states, pooled), torch.zeros(2, 5))
    linear = [
        (m.in_features, m.out_features) for m in head.modules() if isinstance(m, torch.nn.Linear)
    ]
    width = 16 if sees_image else 8
    assert linear == ([(width, 1)] if layers == 1 else [(width, 8), (8, 4), (4, 1)])
    target, optimizer = torch.randn(2, 5), torch.optim.Adam(head.parameters(), 1e-2)
    for _ in range(2):  # while the last layer is 0, those below it have no gradient
        optimizer.zero_grad()
        loss = ((head(states, pooled) - target) ** 2).mean()
        loss.backward()
        optimizer.step()
    assert all((parameter.grad != 0).any() for parameter in head.parameters())
    assert ((head(states, pooled) - target) ** 2).mean() < (target**2).mean()


def test_each_value_is_of_its_own_state():
    torch.manual_seed(0)
    head, states = ValueHead(8), torch.randn(2, 5, 8)
    torch.nn.init.normal_(head.value[-1].weight)
    before = head(states)
    states[1, 3] += 1
    assert (head(states) != before).nonzero().tolist() == [[1, 3]]


def test_one_layer_is_linear_and_three_are_not():
    torch.manual_seed(0)
    a, b = torch.randn(2, 1, 1, 8)
    for layers in (1, 3):
        head = ValueHead(8, layers)
        torch.nn.init.normal_(head.value[-1].weight)
        bend = head(a + b) + head(0 * a) - head(a) - head(b)
        assert (bend.abs() < 1e-5).all() == (layers == 1)
        assert sum(isinstance(m, torch.nn.GELU) for m in head.modules()) == layers - 1


@pytest.mark.parametrize("layers", [1, 3])
def test_a_head_that_sees_the_image_needs_and_uses_it(layers):
    torch.manual_seed(0)
    states, pooled = torch.randn(2, 5, 8), torch.randn(2, 8)
    head, blind = ValueHead(8, layers, sees_image=True), ValueHead(8, layers)
    with pytest.raises(ValueError, match="no kept image features"):
        head(states)
    for each in (head, blind):
        torch.nn.init.normal_(each.value[-1].weight)
    assert torch.equal(blind(states, pooled), blind(states))
    other = torch.cat([pooled[:1], torch.randn(1, 8)])
    changed = (head(states, other) - head(states, pooled)).abs() > 1e-6
    assert changed.tolist() == [[False] * 5, [True] * 5], (
        "each answer has its own image, for all of its tokens"
    )
    # features come at any scale and in 16 bits
    assert_close(head(states, 1000 * pooled), head(states, pooled))
    assert torch.equal(head(states, pooled.bfloat16()), head(states, pooled.bfloat16().float()))
    assert head(states, pooled.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize("layers", [0, 2, 4])
def test_a_value_head_has_one_layer_or_three(layers):
    with pytest.raises(ValueError, match=f"1 or 3 layers, not {layers}"):
        ValueHead(8, layers)
