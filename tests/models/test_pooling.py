"""From the states of an answer's tokens to one: by hand, and which tokens count."""

import math
from typing import get_args

import pytest
import torch
from torch.testing import assert_close

from helpers.config import Pooling
from helpers.models.pooling import POOLINGS

# two answers, of 3 tokens and of 1; one layer, states of two numbers
STATES = torch.tensor([[[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]], [[5.0, 7.0], [9.0, 9.0], [9.0, 9.0]]])
MASK = torch.tensor([[True, True, True], [True, False, False]])


def pooled(name, states=STATES, mask=MASK, query=None):
    pooling = POOLINGS[name](1, 2)
    if query is not None:
        pooling.query.data = torch.tensor([query])
    return pooling(states[:, :, None], mask)[:, 0]


def test_settings_know_the_same_names():
    assert get_args(Pooling) == tuple(POOLINGS)


def test_last_and_mean_by_hand():
    assert pooled("last").tolist() == [[4.0, 4.0], [5.0, 7.0]]
    # (1 + 0 + 4) / 3, (0 + 2 + 4) / 3
    assert_close(pooled("mean"), torch.tensor([[5 / 3, 2.0], [5.0, 7.0]]))


def test_attention_by_hand():
    """Unit scale: a state over the root of its mean square; (1, 0) becomes (√2, 0)."""
    # q = (ln 9, 0): scores of (√2, 0), (0, √2) and (1, 1) are √2 ln 9 / √2 = ln 9, 0, ln 9 / √2
    weights = torch.tensor([9.0, 1.0, 9 ** (1 / math.sqrt(2))])
    expected = (weights / weights.sum()) @ STATES[0]
    found = pooled("attention", query=[math.log(9), 0.0])
    assert_close(found, torch.stack([expected, STATES[1, 0]]), rtol=1e-5, atol=1e-5)
    # and it begins as the mean
    assert_close(pooled("attention"), pooled("mean"))


def test_each_layer_has_a_query_of_its_own():
    pooling = POOLINGS["attention"](2, 2)
    # so large that a softmax takes one token alone: in layer 0 the second, in layer 1 the first
    pooling.query.data = torch.tensor([[-300.0, 300.0], [300.0, -300.0]])
    both = pooling(torch.stack([STATES, STATES], 2), MASK)
    assert_close(both[0], STATES[0, [1, 0]])


@pytest.mark.parametrize("name", POOLINGS)
def test_padding_never_counts(name):
    other = STATES.masked_fill(~MASK[..., None], -1e4)
    query = [0.5, -0.5] if name == "attention" else None
    assert torch.equal(pooled(name, other, query=query), pooled(name, query=query))
    # nor does it matter how much of it there is
    alone = pooled(name, STATES[1:, :1], MASK[1:, :1], query=query)
    assert_close(alone, pooled(name, query=query)[1:])


@pytest.mark.parametrize("name", POOLINGS)
def test_gradients_reach_the_tokens_that_count(name):
    states = STATES.clone().requires_grad_()
    query = [0.5, -0.5] if name == "attention" else None
    pooled(name, states, query=query).square().sum().backward()
    reached = (states.grad != 0).any(-1)
    ends = torch.tensor([[False, False, True], [True, False, False]])
    assert torch.equal(reached, ends if name == "last" else MASK)


def test_the_query_is_learnt_from_the_first_step_on():
    pooling = POOLINGS["attention"](1, 2)
    pooling(STATES[:, :, None], MASK).square().sum().backward()
    assert (pooling.query.grad != 0).all()


def test_attention_is_in_fp32_under_autocast():
    """Weights in bf16 would have three digits."""
    pooling = POOLINGS["attention"](1, 2)
    pooling.query.data = torch.tensor([[0.3, 0.1]])
    exact = pooling(STATES[:, :, None], MASK)
    with torch.autocast("cpu", torch.bfloat16):
        found = pooling(STATES[:, :, None], MASK)
    assert found.dtype == torch.float32
    assert_close(found, exact)
