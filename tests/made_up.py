"""Counted images that do not exist, and the answers of a model that is always wrong about them."""

import numpy as np
from shipped import TRAFFIC

from helpers.data.counting import count_answer
from helpers.data.labels import CountedImage

CLASSES = ["cars", "buses"]


def made_up_items(number=200, seed=0):
    rng = np.random.default_rng(seed)
    return [
        CountedImage(TRAFFIC / "train" / "images" / f"{i}.png", {c: int(rng.integers(4)) for c in CLASSES}, str(i))
        for i in range(number)
    ]


def wrong_downwards(items):
    """The answers of a model that always says one car less."""
    return [[count_answer({**item.counts, "cars": max(0, item.counts["cars"] - 1)})] for item in items]
