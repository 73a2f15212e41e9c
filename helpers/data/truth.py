"""What is known to be true of a question: nothing, counts, or answers, and how answers are judged.

The kind of truth is a field of the record (`truth_kind`), set by the reader of the data or by
`--truth`. What each kind says of an answer is in `helpers/rewards/truths.py`.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import Discriminator, Field, Tag

from .counting import Counts, like_classes, unreadable_classes

TruthKind = Literal[
    "none",  # nobody has said what is right
    "counts",  # how many there are of each class
    "exact_match",  # a right answer, or several of which each is right
    "vqa_accuracy",  # the answers of several people, who may disagree
    "anls",  # a text that stands in the image; nearly right spelling counts
    "token_f1",  # a longer answer; the words that it shares count
    "cosine",  # a longer answer; how like it is, by its words
    "choice",  # the letter of one of the choices in the question
    "yes_no",  # yes or no
]
TRUTH_KINDS: tuple[str, ...] = get_args(TruthKind)

LEAST_PEOPLE = 4  # VQA accuracy leaves one out and asks for three of the others

# The truth itself, as scorers get it.
Facts = Counts | str | Sequence[str] | None


def _form_of(value: Any) -> str:
    return {dict: "counts", list: "answers"}.get(type(value), "answer")


# As a record holds it. Told apart by type, so that an error speaks of the one that was meant.
Truth = Annotated[
    Annotated[dict[str, Annotated[int, Field(ge=0)]], Tag("counts")]
    | Annotated[str, Tag("answer")]
    | Annotated[list[str], Tag("answers")],
    Discriminator(_form_of),
]


def plain_kind(facts: Facts) -> TruthKind:
    """The kind of a truth that nobody has named: counts of a table, equal text of a text."""
    if not facts:
        return "none"
    return "counts" if isinstance(facts, Mapping) else "exact_match"


def check_kind(kind: TruthKind | None, facts: Facts) -> None:
    """Raise ValueError if a truth cannot be of the kind that was named, or judged at all."""
    if isinstance(facts, Mapping):
        fault = _fault_of_classes(tuple(facts))
        if fault:
            raise ValueError(fault)
    if kind is None:
        return
    if kind == "none" and facts:
        raise ValueError(f"truth_kind 'none' does not go with the truth {facts!r}")
    if kind == "none" or not facts:
        return
    if (kind == "counts") != isinstance(facts, Mapping):
        needed = "a table of counts" if kind == "counts" else "an answer, or a list of them"
        raise ValueError(f"truth_kind {kind!r} needs {needed} as its truth, not {facts!r}")
    people = 1 if isinstance(facts, str) else len(facts)
    if kind == "vqa_accuracy" and people < LEAST_PEOPLE:
        raise ValueError(
            f"truth_kind 'vqa_accuracy' needs the answers of {LEAST_PEOPLE} people or more, not "
            f"{people}: with fewer no answer is wholly right. Take 'exact_match'."
        )


@functools.lru_cache(maxsize=256)  # all records of a data set count the same classes
def _fault_of_classes(classes: tuple[str, ...]) -> str:
    """Say why an answer cannot name these classes; "" if it can."""
    alike = like_classes(classes)
    if alike:
        return (
            f"the truth counts {' and '.join(map(repr, alike))}, which are one to an answer: case "
            "and a plural s do not count. Rename one, or add up their counts"
        )
    unreadable = unreadable_classes(classes)
    if unreadable:
        return (
            f"the truth counts {', '.join(map(repr, unreadable))}, which no answer could name so "
            "that it can be read. Give them names of letters"
        )
    return ""
