"""The heuristic of a student project as a table of small rules on whole words; no rule sees the image.

`scoring.heuristic` sums them. Simplification: stop words, markers and number words are English.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from helpers.data import Counts, counting

Facts = Counts | str | Sequence[str] | None  # the truth of a record, as far as it is known

NUMBER_WORDS = {
    w: str(n)
    for n, w in enumerate(
        re.findall(r"\w+", "zero one two three four five six seven eight nine ten")
    )
}
_STOP_WORDS = """a an the this that these those it its he his him she her they them their we us our you your i me my is
are was were be been am do does did has have had can could will would should may might must there here and or not no if
than then as at by for from in into of off on out over to up with what which who whose when where why how many much any
some all each please image picture photo because therefore so but while"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_nfc = partial(unicodedata.normalize, "NFC")


def _words(pattern: str) -> re.Pattern:
    """`pattern` between word boundaries: "so" is not in "person"."""
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


_NUMBER, _MARKER = _words("|".join(NUMBER_WORDS)), _words("because|therefore|so|but|while")
_VERB = "(?:is|are|was|were|has|have|can|do|does)"
_NO_OBJECT = _words(
    rf"no(?!\s+(?:[\w-]+\s+){{1,3}}{_VERB}\b)"
)  # "no bus is red" does not state 0 buses
_NO_REPLY = _words(
    r"no(?!\s+(?!(?:and|but|or|yes|no|there|it|they|he|she|we|this|that)\b)\w)"
)  # not that of "no bus"
_HEDGED = _words(
    r"(not|than|least|most|about|around|over|under|nearly|almost|to|or)\s+\d+|\d+\s*[-–]\s*\d+"
)
_UNCLAIMED = _words(  # a sentence with one of these does not claim that something is there
    r"no|not|\w+n['’]t|cannot|never|without|neither|nor|none|hardly|lacks?|absent|missing|0|if|whether|may|might|maybe"
    "|perhaps|could|would"
)


def _name(name: str) -> str:
    """Pattern of `name` in singular and plural: "buses" → "bus|buse|buses|busess"."""
    *first, last = _nfc(name).split()
    changes = (("$", "s"), ("s$", ""), ("(?<=[sxzho])$", "es"), ("(?<=[sxzho])es$", ""))
    forms = {re.sub(old, new, last) for old, new in changes}
    endings = sorted({form for form in forms if len(form) > 2} | {last})
    return r"\s+".join([*map(re.escape, first), f"(?:{'|'.join(map(re.escape, endings))})"])


def is_mentioned(text: str, name: str) -> bool:
    """True if `text` has `name` as whole words; case and a plural "s" or "es" do not matter."""
    return bool(_words(_name(name)).search(_nfc(text)))


def content_words(text: str) -> list[str]:
    """Distinct words of `text` without stop words, in lower case; singular and plural are one word."""
    distinct: list[str] = []
    for word in re.findall(
        r"(?<![\w'’])[^\W\d_][^\W_]*(?!['’]?\w)", re.sub(r"['’]s\b", "", _nfc(text).lower())
    ):
        if word not in STOP_WORDS and not any(is_mentioned(word, known) for known in distinct):
            distinct.append(word)
    return distinct


def _counts(facts: Facts) -> Counts:
    """The counts in `facts`; {} if it holds something else."""
    return (
        {_nfc(name): n for name, n in facts.items() if name.strip()}
        if isinstance(facts, Mapping)
        else {}
    )


def _number_words_to_digits(text: str) -> str:
    """Number words and "no" (buses) as digits; without hedged numbers ("at least 2", "2 or 3"), which state none."""
    text = _NUMBER.sub(lambda match: NUMBER_WORDS.get(match[0].lower(), match[0]), _nfc(text))
    return _HEDGED.sub(lambda match: match[1] or "", _NO_OBJECT.sub("0", text))


def stated_counts(text: str, classes: Sequence[str]) -> dict[str, list[int]]:
    """Every number right before a class name: "3 cars and no bus" → {"cars": [3], "buses": [0]}.

    `counting.parse_counts` reads each piece of the text; unlike it, this accepts incomplete answers.
    """
    pieces = re.split(r"(?<![\w.])(?=\d)", _number_words_to_digits(text))
    read = [(cls, counting.parse_counts(piece, [cls])) for cls in classes for piece in pieces]
    return {
        cls: [counts[cls] for name, counts in read if counts and name == cls] for cls in classes
    }


def grounding(question: str, answer: str, facts: Facts) -> float:
    """Number of distinct content words of the question, and of known class names, that the answer mentions."""
    return sum(
        is_mentioned(answer, word) for word in content_words(" ".join([question, *_counts(facts)]))
    )


def reasoning(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer has because, therefore, so, but or while, whatever it is used for."""
    return float(bool(_MARKER.search(answer)))


def wrong_count(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer states a count that is not the known one.

    Numbers of one class may add up to it: "2 cars on the left, 3 cars on the right" is true of 5 cars.
    """
    truth = _counts(facts)
    stated = stated_counts(answer, list(truth))
    return float(
        any(n and truth[cls] not in n and truth[cls] != sum(n) for cls, n in stated.items())
    )


def absent_object(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer claims, without a number, that an object of known count 0 is there.

    "A bus" and "the bus is red" claim it; sentences that ask, deny or suppose do not. "A bus stop" does.
    """
    text = _number_words_to_digits(_words("but").sub(";", answer))
    sentences = [
        s
        for s in re.findall(r"[^.!?;\n]+[.!?;]*", text)
        if "?" not in s and not _UNCLAIMED.search(s)
    ]
    some = r"(?:an?|some|several|both|(?<!how )many|there\s+(?:is|are|was|were)|sees?|shows?|contains?)"
    adjective = r"\s+(?:[^\W\d][\w-]*\s+)?"
    absent = [_name(name) for name, n in _counts(facts).items() if n == 0]
    claims = [
        _words(rf"{some}{adjective}(?:{name})|the{adjective}(?:{name})\s+{_VERB}")
        for name in absent
    ]
    return float(any(claim.search(sentence) for claim in claims for sentence in sentences))


def yes_and_no(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer says both yes and no; "yes, there are no buses" does not."""
    return float(bool(_words("yes").search(answer) and _NO_REPLY.search(answer)))


def two_counts(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer states different counts of one class (if no counts are known: of a word of the question).

    As in `wrong_count`, numbers that add up to the known count are no contradiction. A true "2 cars. 1 car is
    red." is taken for one.
    """
    truth = _counts(facts)
    stated = stated_counts(answer, list(truth) or content_words(question))
    return float(any(len(set(n)) > 1 and sum(n) != truth.get(cls) for cls, n in stated.items()))


@dataclass(frozen=True)
class HeuristicRule:
    """One criterion: `weight` × `value(question, answer, facts)` is its part of the score."""

    name: str
    weight: float
    value: Callable[[str, str, Facts], float]
    description: str


HEURISTIC_RULES = tuple(
    HeuristicRule(value.__name__, weight, value, value.__doc__.splitlines()[0])
    for value, weight in (
        (grounding, 0.1), (reasoning, 0.5),
        (wrong_count, -1.0), (absent_object, -1.0), (yes_and_no, -1.0), (two_counts, -1.0),
    )
)  # fmt: skip
