"""Fixtures of several files of this room."""

import pytest
from preference_files import draw


@pytest.fixture
def path(tmp_path):
    """Where a file of votes is to be."""
    return tmp_path / "votes.jsonl"


@pytest.fixture
def folder(tmp_path):
    """24 images, so that a file of one record an image has enough pairs to be judged by the blind rules."""
    for i in range(24):
        draw(tmp_path / "images" / f"{i}.png", i)
    return tmp_path
