"""Counting questions, the one answer sentence, and the only parser that reads it.

A count is a dictionary `{class name: int}`; the class names are whatever the labels say
("cars", "RBC", …) and their order is the order in the sentence:

    There are 2 cars, 3 motorcycles, 0 buses, 1 bicycles in the image.

Simplification: class names are matched as text, so two classes may not differ by case or by a
plural "s" alone (`like_classes`); labels and records with such names are refused.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

Counts = dict[str, int]

# Two wordings of one task. Training and test use both, so that neither is "new" by accident.
QUESTION_TEMPLATES = (
    "How many {classes} are in the image?",
    "Please count the {classes} you see.",
)
# The classes of the shipped scenes; of others the plural is taken as it is.
SINGULAR = {
    "cars": "car",
    "motorcycles": "motorcycle",
    "buses": "bus",
    "bicycles": "bicycle",
}
# "buss" stands in published vehicle-count data.
SPELLINGS = {"buss": "buses", "bus": "buses"}


def count_question(classes: Sequence[str], wording: int = 0) -> str:
    """Ask for the count of every class: "How many a, b and c are in the image?"."""
    *first, last = classes
    listed = f"{', '.join(first)} and {last}" if first else last
    template = QUESTION_TEMPLATES[wording % len(QUESTION_TEMPLATES)]
    return template.format(classes=listed)


def count_answer(counts: Mapping[str, int]) -> str:
    """State `counts` in the one sentence, classes in the order of the mapping."""
    stated = ", ".join(f"{n} {name}" for name, n in counts.items())
    return f"There are {stated} in the image."


def classes_of(truth: object) -> list[str]:
    """The classes that a truth counts; none if it is of another kind, or not known."""
    return list(truth) if isinstance(truth, Mapping) else []


def spelled_class(name: str, classes: Sequence[str]) -> str | None:
    """Find the class that `name` spells, whatever its case and plural; None if there is none."""
    name = name.lower()
    for candidate in (name, SPELLINGS.get(name, name)):
        stem = candidate.rstrip("s")
        for cls in classes:
            if stem == cls.lower().rstrip("s"):
                return cls
    return None


def like_classes(classes: Sequence[str]) -> list[str]:
    """The first classes that are one to an answer, since they spell each other; else none."""
    for place, name in enumerate(classes):
        # "bus" spells "buses", and not the other way round
        others = []
        for other in classes[place + 1 :]:
            if spelled_class(other, [name]) or spelled_class(name, [other]):
                others.append(other)
        if others:
            return [name, *others]
    return []


def unreadable_classes(classes: Sequence[str]) -> list[str]:
    """The classes whose counts cannot be read again from the answer that states them."""
    counts = {cls: number for number, cls in enumerate(classes, start=1)}
    if parse_counts(count_answer(counts), classes) == counts:
        return []
    alone = [cls for cls in classes if parse_counts(count_answer({cls: 1}), [cls]) is None]
    return alone or list(classes)


def parse_counts(text: str, classes: Sequence[str]) -> Counts | None:
    """Read the counts stated in `text`; None unless every class is stated exactly once.

    Tolerant about the sentence around the numbers, strict about the numbers: a class that is
    missing, stated twice or not in `classes` makes the whole answer unparsable.
    """
    # Longer names first, else "blood cells" would take "white blood cells" apart.
    by_length = sorted(classes, key=len, reverse=True)
    # Any other word after a number is a name too: of no class, so that the answer is unparsable.
    names = "|".join([*map(re.escape, by_length), r"[^\W\d_][\w-]*"])
    stated = re.findall(rf"(?<![\w.])(\d{{1,6}})\s+({names})(?!\w)", text, re.IGNORECASE)
    found = {}
    for number, name in stated:
        cls = spelled_class(name, classes)
        if cls is None or cls in found:
            return None
        found[cls] = int(number)
    if len(found) < len(classes):
        return None
    return {cls: found[cls] for cls in classes}


def is_well_formed(text: str, classes: Sequence[str]) -> bool:
    """True if `text` is exactly the answer sentence, whatever the numbers are."""
    counts = parse_counts(text, classes)
    if counts is None:
        return False
    spelled = re.sub(r"\bbuss\b", "buses", text.strip())
    return spelled == count_answer(counts)


def is_exact(text: str, truth: Mapping[str, int]) -> bool:
    """True if `text` states the true count of every class."""
    return parse_counts(text, list(truth)) == dict(truth)


def edited_counts(
    truth: Mapping[str, int],
    highest: Mapping[str, int],
    rng: np.random.Generator,
) -> Counts:
    """Return a wrong count one edit away from `truth`: one class, one step up or down.

    The direction is drawn first and the class second, so that up and down are equally likely: a
    rule that never looks at the image ("the smaller total is right") gains nothing. Counts stay
    within 0 … `highest`, the range that occurs in the data, for the same reason.
    """
    drawn = int(rng.choice((-1, 1)))
    for step in (drawn, -drawn):
        room = [cls for cls in truth if 0 <= truth[cls] + step <= highest[cls]]
        if room:
            cls = str(rng.choice(room))
            return {**truth, cls: truth[cls] + step}
    raise ValueError(f"no count of {dict(truth)} can be edited within 0 … {dict(highest)}")
