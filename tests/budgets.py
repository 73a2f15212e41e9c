"""How many cases a test of random ones gets: a few in `make test`, all in `make test-slow`."""

import pytest


def cases(few: int, many: int) -> pytest.MarkDecorator:
    """Give a test the argument `number`: `few`, and in `make test-slow` also `many`."""
    slow = pytest.mark.slow(reason=f"{many:,} cases in place of {few:,}")
    return pytest.mark.parametrize("number", [few, pytest.param(many, marks=slow)])
