"""Fixtures of several files of this room."""

import dataclasses

import pytest

from helpers import models
from helpers.config import DPO_PRESETS
from helpers.training import dpo

SETTINGS = dataclasses.replace(DPO_PRESETS["tiny"], batch_size=4)


@pytest.fixture
def make(pairs_dataset):
    """Trainer of a fresh adapter (or of `model`) on eight pairs of different images, with changed
    settings.
    """

    def build(model=None, packed=True, data=None, **changes):
        base, processor = models.load_model("tiny")
        settings = dataclasses.replace(SETTINGS, **changes)
        data = data or pairs_dataset.select(range(0, 32, 4))
        return dpo.dpo_trainer(model or base, processor, data, settings, packs=packed)

    return build
