"""What a test costs beyond arithmetic: training, and other processes.

`make test-fast` leaves out tests marked `heavy` or `slow`. So that no heavy test stays unmarked,
every test without a mark is measured: seconds of the processor between its first and its last step
of an optimizer, and in processes that it started and waited for. What costs too much fails in
`make test-fast`, and is told at the end of other runs. Used by `conftest.py`.
"""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

REPORTED = 1.0  # seconds of training: from here on a test should be marked
REFUSED = 3.0  # and from here on it must be; machines differ by less than three
OTHER_PROCESSES = 5.0  # seconds: the start of one that imports torch and transformers takes more
MARKS = ("slow", "heavy")
WHAT_TO_DO = "Give it less to do, or mark it: @pytest.mark.heavy"


class CostWarning(Warning):
    """Not one of the kinds that pyproject.toml keeps silent, such as pytest's own."""


class OptimizerClock:
    """Seconds of the processor from the first step of any optimizer to the end of the last one."""

    first = last = None

    def before(self, *_) -> None:
        self.first = self.first or time.process_time()

    def after(self, *_) -> None:
        self.last = time.process_time()

    def seconds(self) -> float:
        return self.last - self.first if self.last else 0.0


@contextmanager
def count_training() -> Iterator[OptimizerClock]:
    """A clock that runs while this process trains; torch is not imported for it."""
    clock, hooks = OptimizerClock(), []
    if "torch" in sys.modules:
        from torch.optim import optimizer

        hooks.append(optimizer.register_optimizer_step_pre_hook(clock.before))
        hooks.append(optimizer.register_optimizer_step_post_hook(clock.after))
    try:
        yield clock
    finally:
        for hook in hooks:
            hook.remove()


def seconds_of_children() -> float:
    """Seconds of the processor that ended child processes have used so far."""
    times = os.times()
    return times.children_user + times.children_system


def check_costs(name: str, training: float, children: float, strict: bool) -> None:
    """Warn of a test without a mark that costs too much; if `strict`, fail where it is far more."""
    if training <= REPORTED and children <= OTHER_PROCESSES:
        return
    found = f"{training:.1f} s of training, {children:.1f} s in other processes"
    told = f"{name}: {found}. {WHAT_TO_DO}"
    if strict and (training > REFUSED or children > OTHER_PROCESSES):
        pytest.fail(told, pytrace=False)
    warnings.warn(CostWarning(told), stacklevel=1)


def measure(item: pytest.Item) -> Iterator[None]:
    """Run one phase of a test (as the middle of a hook) and check what it costs."""
    if any(item.get_closest_marker(mark) for mark in MARKS):
        return (yield)
    before = seconds_of_children()
    with count_training() as clock:
        result = yield
    strict = "not heavy" in item.config.getoption("markexpr")
    check_costs(item.nodeid, clock.seconds(), seconds_of_children() - before, strict)
    return result


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    return (yield from measure(item))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    return (yield from measure(item))
