"""POPE's polling on one's own labelled images: is an object there, half yes, half no.

As in `main.py` and `utils.py` of github.com/AoiDragon/POPE (Li et al. 2023, arXiv 2305.10355):
images with too few objects are left out, objects are ranked by the images that hold them among
those kept, and every question about a present object is followed by one about an absent object: any
(random), the most frequent (popular), or the one that most often accompanies the present one
(adversarial); where that ranking is used up, any absent object.

What differs: present objects are drawn, not the first of the list, which here has the order of the
classes; images with too few absent objects are left out too, where the official code would not end;
and the article before a vowel is "an" and nothing else (the official code replaces every a of the
sentence, "in the imange").
"""

import random
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from helpers.data import SINGULAR, CountedImage
from helpers.files import UsageError

from .questions import POPE_SPLITS, BenchmarkQuestion


def pope_questions(
    items: Sequence[CountedImage],
    strategy: Literal["random", "popular", "adversarial"],
    per_image: int = 3,
    seed: int = 0,
) -> list[BenchmarkQuestion]:
    """2 · per_image questions about every image with as many objects present and as many absent.

    An object that occurs in no image is never asked about. A class without a singular is asked
    about by its name. Prints how many images are left out. Raises UsageError if all are.
    """
    if strategy not in POPE_SPLITS:
        raise UsageError(f"unknown strategy {strategy!r}: choose from {', '.join(POPE_SPLITS)}.")
    # in the order in which they are first seen
    objects = list(dict.fromkeys(name for item in items for name in _present_objects(item)))
    kept = _with_enough_objects(items, per_image, len(objects))
    rankings = _rankings(kept)
    rng = random.Random(seed)
    questions = []
    for item in kept:
        present = _present_objects(item)
        absent = [name for name in objects if name not in present]
        for positive in rng.sample(present, per_image):
            # absent objects that are asked about first
            if strategy == "random":
                ranking = []
            else:
                ranking = rankings[positive if strategy == "adversarial" else None]
            likely = [name for name in ranking if name in absent]
            negative = likely[0] if likely else rng.choice(absent)
            # no object is asked about twice
            absent.remove(negative)
            for name, label in ((positive, "yes"), (negative, "no")):
                questions.append(
                    BenchmarkQuestion(
                        id=f"{strategy}-{len(questions) + 1}",
                        prompt=pope_prompt(SINGULAR.get(name, name)),
                        image=item.path,
                        label=label,
                        group=strategy,
                    )
                )
    return questions


def _with_enough_objects(
    items: Sequence[CountedImage], per_image: int, objects: int
) -> list[CountedImage]:
    """The images with `per_image` objects present and as many absent, of `objects` that occur."""
    kept = [
        item for item in items if per_image <= len(_present_objects(item)) <= objects - per_image
    ]
    if not kept:
        raise UsageError(
            f"no image has {per_image} objects and lacks {per_image} others. "
            "Take a smaller per_image."
        )
    if len(kept) < len(items):
        print(
            f"{len(items) - len(kept)} of {len(items)} images left out: "
            f"fewer than {per_image} objects present, or absent."
        )
    return kept


def pope_prompt(word: str) -> str:
    """The sentence of POPE, and of the presence questions of the scenes.

    >>> pope_prompt("orange")
    'Is there an orange in the image?'
    """
    return f"Is there {'an' if word[0] in 'aeiou' else 'a'} {word} in the image?"


def _present_objects(item: CountedImage) -> list[str]:
    return [name for name, count in item.counts.items() if count]


def _rankings(items: Sequence[CountedImage]) -> dict[str | None, list[str]]:
    """For each object, its companions by the images that hold both; for None, all objects.

    The most frequent first; of equal ones, the one seen first.
    """
    # None: how many images hold each object
    counts = {None: Counter()}
    for item in items:
        present = _present_objects(item)
        counts[None].update(present)
        for name in present:
            others = [other for other in present if other != name]
            counts.setdefault(name, Counter()).update(others)
    return {key: sorted(counter, key=counter.get, reverse=True) for key, counter in counts.items()}
