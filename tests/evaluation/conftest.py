"""Fixtures of several files of this room."""

import pytest
from shipped import TRAFFIC


@pytest.fixture(scope="module")
def policies():
    """The embedded base and the shipped adapter."""
    from helpers import models

    return models.Policies(*models.load_model("tiny"), models.find_policies("tiny", TRAFFIC))
