"""Tests that train or start large processes are found, marked or not."""

import re

import pytest
import torch
from costs import MARKS, OTHER_PROCESSES, REFUSED, REPORTED, check_costs, count_training


def train(steps: int) -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for _ in range(steps):
        (weight**2).sum().backward()
        optimizer.step()


def test_the_clock_runs_from_the_first_step_to_the_last():
    with count_training() as clock:
        sum(range(10**6))  # before the first step: no training
        train(2)
        between = clock.seconds()
        sum(range(10**6))  # between two steps: training
        train(1)
    assert 0 < between < clock.seconds()
    with count_training() as none:
        sum(range(10**6))
    assert none.seconds() == 0
    train(1)
    assert none.seconds() == 0  # it has been taken off


def test_what_costs_too_much_is_refused_and_what_soon_may_is_said(recwarn):
    check_costs("a", REPORTED, OTHER_PROCESSES, strict=True)
    assert not recwarn
    check_costs("a", REPORTED + 0.1, 0.0, strict=True)
    said = "a: 1.1 s of training, 0.0 s in other processes. Give it less to do, or mark it"
    assert said in str(recwarn.pop().message)
    with pytest.raises(pytest.fail.Exception, match=r"b: 3\.1 s of training"):
        check_costs("b", REFUSED + 0.1, 0.0, strict=True)
    with pytest.raises(pytest.fail.Exception, match=r"5\.1 s in other processes"):
        check_costs("c", 0.0, OTHER_PROCESSES + 0.1, strict=True)
    check_costs("d", 60.0, 60.0, strict=False)
    assert "d: 60.0 s of training" in str(recwarn.pop().message)


def test_the_marks_are_those_of_pyproject(pytestconfig):
    """`slow` says why; conftest.py stops where it does not."""
    assert set(MARKS) <= {re.split(r"\W", line)[0] for line in pytestconfig.getini("markers")}
