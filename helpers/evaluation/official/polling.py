"""POPE's polling on one's own labelled images: is an object there, half yes, half no (Li et al. 2023, arXiv 2305.10355).

As in `main.py` and `utils.py` of github.com/AoiDragon/POPE: images with too few objects are left out, objects are
ranked by the images that hold them among those kept, and every question about a present object is followed by one about
an absent object: any (random), the most frequent (popular), or the one that most often accompanies the present one
(adversarial); where that ranking is used up, any absent object.

What differs: present objects are drawn, not the first of the list, which here has the order of the classes; images with
too few absent objects are left out too, where the official code would not end; and the article before a vowel is
"an" and nothing else (the official code replaces every a of the sentence, "in the imange").
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

from helpers.data import SINGULAR, CountedImage
from helpers.files import UsageError

from .questions import BenchmarkQuestion
from .yes_no import POPE_SPLITS

Strategy = Literal["random", "popular", "adversarial"]


def pope_questions(
    items: Sequence[CountedImage],
    strategy: Strategy,
    per_image: int = 3,
    seed: int = 0,
    singular: Mapping[str, str] = SINGULAR,
) -> list[BenchmarkQuestion]:
    """2 · per_image questions about every image that has as many objects present and as many absent.

    An object that occurs in no image is never asked about. singular: the word for one of a class; a class that is not
    in it is asked about by its name. Prints how many images are left out. Raises UsageError if all are.
    """
    if strategy not in POPE_SPLITS:
        raise UsageError(f"unknown strategy {strategy!r}: choose from {', '.join(POPE_SPLITS)}.")
    if per_image < 1:
        raise UsageError(f"per_image = {per_image}: ask at least about one object that is there.")
    objects = list(dict.fromkeys(name for item in items for name in _present_objects(item)))
    kept = [
        item
        for item in items
        if per_image <= len(_present_objects(item)) <= len(objects) - per_image
    ]
    if not kept:
        raise UsageError(
            f"no image has {per_image} objects and lacks {per_image} others. Take a smaller per_image."
        )
    if left := len(items) - len(kept):
        print(
            f"{left} of {len(items)} images left out: fewer than {per_image} objects present, or absent."
        )
    frequent, together = _rankings(kept)
    rng, asked = random.Random(seed), []
    for item in kept:
        absent = [name for name in objects if name not in _present_objects(item)]
        for positive in rng.sample(_present_objects(item), per_image):
            ranking = {"random": [], "popular": frequent, "adversarial": together[positive]}[
                strategy
            ]
            negative = next((name for name in ranking if name in absent), None) or rng.choice(
                absent
            )
            absent.remove(negative)
            asked += [
                (item, singular.get(positive, positive), "yes"),
                (item, singular.get(negative, negative), "no"),
            ]
    return [
        BenchmarkQuestion(
            id=f"{strategy}-{number}",
            prompt=pope_prompt(word),
            image=item.path,
            label=label,
            group=strategy,
        )
        for number, (item, word, label) in enumerate(asked, start=1)
    ]


def pope_prompt(word: str) -> str:
    """The sentence of POPE, and of the presence questions of the scenes.

    >>> pope_prompt("orange")
    'Is there an orange in the image?'
    """
    return f"Is there {'an' if word[0] in 'aeiou' else 'a'} {word} in the image?"


def _present_objects(item: CountedImage) -> list[str]:
    return [name for name, count in item.counts.items() if count]


def _rankings(items: Sequence[CountedImage]) -> tuple[list[str], dict[str, list[str]]]:
    """Objects by the images that hold them; for each, its companions by the images that hold both. Ties: first seen."""
    frequency: Counter[str] = Counter()
    companions: dict[str, Counter[str]] = {}
    for item in items:
        present = _present_objects(item)
        frequency.update(present)
        for name in present:
            companions.setdefault(name, Counter()).update(
                other for other in present if other != name
            )
    ranked = {
        name: [other for other, _ in counter.most_common()] for name, counter in companions.items()
    }
    return [name for name, _ in frequency.most_common()], ranked
