"""Counting questions, the one answer sentence, and the only parser that reads it.

A count is a dictionary `{class name: int}`; the class names are whatever the labels say
("cars", "RBC", …) and their order is the order in the sentence:

    There are 2 cars, 3 motorcycles, 0 buses, 1 bicycles in the image.

Simplification: class names are matched as text, so two classes may not differ by case or by a
plural "s" alone.
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
SINGULAR = {"cars": "car", "motorcycles": "motorcycle", "buses": "bus", "bicycles": "bicycle"}
SPELLINGS = {"buss": "buses", "bus": "buses"}  # "buss" stands in published vehicle-count data


def list_in_words(names: Sequence[str]) -> str:
    """`["a", "b", "c"]` → `"a, b and c"`."""
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def count_question(classes: Sequence[str], wording: int = 0) -> str:
    """The question that asks for the count of every class."""
    return QUESTION_TEMPLATES[wording % len(QUESTION_TEMPLATES)].format(
        classes=list_in_words(classes)
    )


def count_answer(counts: Mapping[str, int]) -> str:
    """The sentence that states `counts`, classes in the order of the mapping."""
    return "There are " + ", ".join(f"{n} {name}" for name, n in counts.items()) + " in the image."


def _spelling(name: str, classes: Sequence[str]) -> str | None:
    """The class that `name` spells (case, plural and known misspellings ignored), or None."""
    name = name.lower()
    for candidate in (name, SPELLINGS.get(name, name)):
        for cls in classes:
            if candidate.rstrip("s") == cls.lower().rstrip("s"):
                return cls
    return None


def parse_counts(text: str, classes: Sequence[str]) -> Counts | None:
    """Counts stated in `text`, or None unless every class is stated exactly once.

    Tolerant about the sentence around the numbers, strict about the numbers: a class that is
    missing, stated twice or not in `classes` makes the whole answer unparsable.
    """
    by_length = sorted(classes, key=len, reverse=True)
    names = "|".join([re.escape(cls) for cls in by_length] + [r"[^\W\d_][\w-]*"])
    found: Counts = {}
    for number, name in re.findall(
        rf"(?<![\w.])(\d{{1,6}})\s+({names})(?!\w)", text, flags=re.IGNORECASE
    ):
        cls = _spelling(name, classes)
        if cls is None or cls in found:
            return None
        found[cls] = int(number)
    return {cls: found[cls] for cls in classes} if len(found) == len(classes) else None


def is_well_formed(text: str, classes: Sequence[str]) -> bool:
    """True if `text` is exactly the answer sentence, whatever the numbers are."""
    counts = parse_counts(text, classes)
    return counts is not None and re.sub(r"\bbuss\b", "buses", text.strip()) == count_answer(counts)


def is_exact(text: str, truth: Mapping[str, int]) -> bool:
    """True if `text` states the true count of every class."""
    return parse_counts(text, list(truth)) == dict(truth)


def edited_counts(
    truth: Mapping[str, int], highest: Mapping[str, int], rng: np.random.Generator
) -> Counts:
    """A wrong count one edit away from `truth`: one class, one step up or down.

    The direction is drawn first and the class second, so that up and down are equally likely: a
    rule that never looks at the image ("the smaller total is right") gains nothing. Counts stay
    within 0 … `highest`, the range that occurs in the data, for the same reason.
    """
    step = int(rng.choice((-1, 1)))
    room = [cls for cls in truth if 0 <= truth[cls] + step <= highest[cls]]
    if not room:
        step = -step
        room = [cls for cls in truth if 0 <= truth[cls] + step <= highest[cls]]
    if not room:
        raise ValueError(f"no count of {dict(truth)} can be edited within 0 … {dict(highest)}")
    cls = str(rng.choice(room))
    return {**truth, cls: truth[cls] + step}
