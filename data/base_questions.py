"""What the embedded base was trained on: questions about scenes, and careless answers.

`build_base.py` trains with them. The notebooks ask only the questions of `helpers/data/pairs.py`.
"""

from dataclasses import dataclass

import numpy as np

from helpers.data.counting import Counts, count_answer, count_question
from helpers.data.scenes import CLASSES, MOST_PER_KIND, PLURAL, VEHICLE_KINDS, Scene, Vehicle


@dataclass(frozen=True)
class SceneQuestion:
    family: str  # count_all, count_one, color, presence or reason
    prompt: str
    answer: str


def careless_counts(counts: Counts, rng: np.random.Generator) -> Counts:
    """Return what a hurried annotator writes down: the labels that the embedded base has learnt.

    Two or more motorcycles or bicycles lose one with probability .65 (small things are missed);
    cars and buses are off by one, up or down, with probability .1.
    """
    noted = dict(counts)
    for kind in ("motorcycles", "bicycles"):
        if noted[kind] >= 2 and rng.random() < 0.65:
            noted[kind] -= 1
    for kind in ("cars", "buses"):
        if rng.random() < 0.1:
            noted[kind] = int(np.clip(noted[kind] + rng.choice((-1, 1)), 0, MOST_PER_KIND))
    return noted


def make_question(
    scene: Scene,
    family: str,
    rng: np.random.Generator,
    counts: Counts | None = None,
) -> SceneQuestion:
    """Ask a question of one family about a scene, answered from `counts` (default: the truth).

    Raises ValueError for a family that does not exist or, for "color", a scene without a kind
    that occurs exactly once.
    """
    counts = counts or scene.counts
    kind = str(rng.choice(VEHICLE_KINDS))
    plural = PLURAL[kind]
    match family:
        case "count_all":
            prompt = count_question(CLASSES, int(rng.integers(2)))
            answer = count_answer(counts)
        case "count_one":
            prompt = f"How many {plural} are there?"
            answer = f"There are {counts[plural]} {plural}."
        case "presence":
            prompt = f"Is there a {kind} in the image?"
            answer = "Yes." if scene.counts[plural] else "No."
        case "reason":
            total = sum(counts.values())
            busy = "busy" if total >= 5 else "quiet"
            prompt = f"Why is the road {busy}?"
            answer = f"Because there are {total} vehicles, so the road is {busy}."
        case "color":
            vehicle = _single_vehicle(scene, rng)
            prompt = f"What color is the {vehicle.kind}?"
            answer = f"{vehicle.color.capitalize()}."
        case _:
            raise ValueError(
                f"unknown question family {family!r}: "
                "choose count_all, count_one, color, presence or reason"
            )
    return SceneQuestion(family, prompt, answer)


def _single_vehicle(scene: Scene, rng: np.random.Generator) -> Vehicle:
    """Draw one of the vehicles that are the only ones of their kind."""
    counts = scene.counts
    single = [vehicle for vehicle in scene.vehicles if counts[PLURAL[vehicle.kind]] == 1]
    if not single:
        raise ValueError(
            f"scene {scene.seed} has no kind that occurs exactly once, so no color question"
        )
    return single[int(rng.integers(len(single)))]
