"""Counted images that do not exist, answers about them, and a record of three such answers."""

import numpy as np
from shipped import TRAFFIC

from helpers.data import CountedImage
from helpers.data.counting import count_answer
from helpers.data.record import PreferenceRecord

CLASSES = ["cars", "buses"]


def made_up_items(number=200, seed=0):
    rng = np.random.default_rng(seed)
    return [
        CountedImage(
            TRAFFIC / "train" / "images" / f"{i}.png",
            {c: int(rng.integers(4)) for c in CLASSES},
            str(i),
        )
        for i in range(number)
    ]


def wrong_downwards(items):
    """The answers of a model that always says one car less."""
    return [
        [count_answer({**item.counts, "cars": max(0, item.counts["cars"] - 1)})] for item in items
    ]


TRUTH = {"cars": 2, "buses": 0}
# count_graded: both right 1; one off by 1 and right (1/2 + 1)/2 = .75; off by 2 and by 1 (1/3 + 1/2)/2 = .4167
TEXTS = [
    "There are 4 cars, 1 buses in the image.",
    "There are 2 cars, 0 buses in the image.",
    "Cars. So 3 cars, 0 buses.",
]


def record(number=0, texts=TEXTS, truth=TRUTH, image="photo.png"):
    answers = [{"text": text} for text in texts]
    fields = {
        "images": [image],
        "prompt": f"How many cars? {number}",
        "answers": answers,
        "truth": truth,
    }
    return PreferenceRecord.model_validate(fields | {"id": f"id {number}"})
