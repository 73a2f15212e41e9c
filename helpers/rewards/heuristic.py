"""The heuristic of a student project: a table of small rules on whole words; none sees the image.

`scoring.heuristic` sums them. Simplification: stop words, markers and number words are English.
"""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from helpers.data import Counts, Facts, counting

_NAMES_OF_NUMBERS = "zero one two three four five six seven eight nine ten"
NUMBER_WORDS = {word: str(n) for n, word in enumerate(_NAMES_OF_NUMBERS.split())}
_STOP_WORDS = """a an the this that these those it its he his him she her they them their we us our
you your i me my is are was were be been am do does did has have had can could will would should may
might must there here and or not no if than then as at by for from in into of off on out over to up
with what which who whose when where why how many much any some all each please image picture photo
because therefore so but while"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_nfc = partial(unicodedata.normalize, "NFC")


def _words(pattern: str) -> re.Pattern:
    """`pattern` between word boundaries: "so" is not in "person"."""
    return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)


_NUMBER = _words("|".join(NUMBER_WORDS))
_MARKER = _words("because|therefore|so|but|while")
_VERB = "(?:is|are|was|were|has|have|can|do|does)"
# "no bus is red" does not state 0 buses
_NO_OBJECT = _words(rf"no(?!\s+(?:[\w-]+\s+){{1,3}}{_VERB}\b)")
# the "no" that answers, not that of "no bus"
_NO_REPLY = _words(
    r"no(?!\s+(?!(?:and|but|or|yes|no|there|it|they|he|she|we|this|that)\b)\w)",
)
# numbers that state no count: "at least 2", "2 or 3", "2-3"
_HEDGED = _words(
    r"(not|than|least|most|about|around|over|under|nearly|almost|to|or)\s+\d+"
    r"|\d+\s*[-–]\s*\d+",
)
# a sentence with one of these does not claim that something is there
_UNCLAIMED = _words(
    r"no|not|\w+n['’]t|cannot|never|without|neither|nor|none|hardly|lacks?|absent|missing|0"
    "|if|whether|may|might|maybe|perhaps|could|would",
)


def _name(name: str) -> str:
    """Pattern of `name` in singular and plural: "buses" → "bus|buse|buses|busess"."""
    *first, last = _nfc(name).split()
    changes = {
        "$": "s",
        "s$": "",
        "(?<=[sxzho])$": "es",
        "(?<=[sxzho])es$": "",
    }
    forms = {re.sub(old, new, last) for old, new in changes.items()}
    endings = sorted({form for form in forms if len(form) > 2} | {last})
    return r"\s+".join([*map(re.escape, first), f"(?:{'|'.join(map(re.escape, endings))})"])


def is_mentioned(text: str, name: str) -> bool:
    """True if `text` has `name` as whole words; case and a plural "s" or "es" do not matter."""
    return bool(_words(_name(name)).search(_nfc(text)))


def content_words(text: str) -> list[str]:
    """Distinct words of `text`, in lower case, without stop words; singular and plural are one."""
    text = re.sub(r"['’]s\b", "", _nfc(text).lower())
    distinct: list[str] = []
    for word in re.findall(r"(?<![\w'’])[^\W\d_][^\W_]*(?!['’]?\w)", text):
        is_known = any(is_mentioned(word, known) for known in distinct)
        if word not in STOP_WORDS and not is_known:
            distinct.append(word)
    return distinct


def _counts(facts: Facts) -> Counts:
    """The counts in `facts`; {} if it holds something else."""
    if not isinstance(facts, Mapping):
        return {}
    return {_nfc(name): n for name, n in facts.items() if name.strip()}


def _number_words_to_digits(text: str) -> str:
    """Write number words and "no" (buses) as digits, and leave out hedged numbers."""
    text = _NUMBER.sub(lambda match: NUMBER_WORDS.get(match[0].lower(), match[0]), _nfc(text))
    text = _NO_OBJECT.sub("0", text)
    return _HEDGED.sub(lambda match: match[1] or "", text)


def stated_counts(text: str, classes: Sequence[str]) -> dict[str, list[int]]:
    """Every number right before a class name: "3 cars, no bus" → {"cars": [3], "buses": [0]}.

    `counting.parse_counts` reads each piece of the text; unlike it, this accepts incomplete
    answers.
    """
    stated = {cls: [] for cls in classes}
    # each piece starts with a number
    for piece in re.split(r"(?<![\w.])(?=\d)", _number_words_to_digits(text)):
        for cls, numbers in stated.items():
            numbers += (counting.parse_counts(piece, [cls]) or {}).values()
    return stated


def grounding(question: str, answer: str, facts: Facts) -> float:
    """Number of distinct content words of the question, and of known class names, that the answer
    mentions.
    """
    words = content_words(" ".join([question, *_counts(facts)]))
    return sum(is_mentioned(answer, word) for word in words)


def reasoning(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer has because, therefore, so, but or while, whatever it is used for."""
    return float(bool(_MARKER.search(answer)))


def wrong_count(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer states a count that is not the known one.

    Numbers of one class may add up to it: "2 cars on the left, 3 cars on the right" is true of 5.
    """
    truth = _counts(facts)
    for cls, numbers in stated_counts(answer, list(truth)).items():
        if numbers and truth[cls] not in (sum(numbers), *numbers):
            return 1.0
    return 0.0


def absent_object(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer claims, without a number, that an object of known count 0 is there.

    "A bus" and "the bus is red" claim it; sentences that ask, deny or suppose do not.
    "A bus stop" does.
    """
    some = (
        r"(?:an?|some|several|both|(?<!how )many"
        r"|there\s+(?:is|are|was|were)|sees?|shows?|contains?)"
    )
    adjective = r"\s+(?:[^\W\d][\w-]*\s+)?"
    absent = [_name(name) for name, n in _counts(facts).items() if n == 0]
    text = _number_words_to_digits(_words("but").sub(";", answer))
    for sentence in re.findall(r"[^.!?;\n]+[.!?;]*", text):
        if "?" in sentence or _UNCLAIMED.search(sentence):
            continue
        for name in absent:
            claim = rf"{some}{adjective}(?:{name})|the{adjective}(?:{name})\s+{_VERB}"
            if _words(claim).search(sentence):
                return 1.0
    return 0.0


def yes_and_no(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer says both yes and no; "yes, there are no buses" does not."""
    return float(bool(_words("yes").search(answer) and _NO_REPLY.search(answer)))


def two_counts(question: str, answer: str, facts: Facts) -> float:
    """1 if the answer states different counts of one class (if no counts are known: of a word of
    the question).

    As in `wrong_count`, numbers that add up to the known count are no contradiction. A true
    "2 cars. 1 car is red." is taken for one.
    """
    truth = _counts(facts)
    stated = stated_counts(answer, list(truth) or content_words(question))
    return float(any(len(set(n)) > 1 and sum(n) != truth.get(cls) for cls, n in stated.items()))


@dataclass(frozen=True)
class HeuristicRule:
    """One criterion: `weight` × `value(question, answer, facts)` is its part of the score.

    One of your own goes into `heuristic_scorer(rules=[…])`.
    """

    name: str
    weight: float
    value: Callable[[str, str, Facts], float]
    description: str = ""


HEURISTIC_RULES = tuple(
    # described by the first paragraph of its docstring
    HeuristicRule(
        value.__name__,
        weight,
        value,
        " ".join(value.__doc__.split("\n\n")[0].split()),
    )
    for value, weight in {
        grounding: 0.1,
        reasoning: 0.5,
        wrong_count: -1.0,
        absent_object: -1.0,
        yes_and_no: -1.0,
        two_counts: -1.0,
    }.items()
)


# --- are the answers English at all? ---

# Words of an answer from which its language can be told.
LEAST_WORDS = 4
# Of the words of an answer. In the sentences of tests/rewards/test_heuristic.py .31 of the English
# words are stop words that other languages do not have, and none of the others.
LEAST_STOP_WORDS = 0.1
_IN_OTHER_LANGUAGES = "a in is was of we had me do so no an am will all as on i my"
_ENGLISH_WORDS = STOP_WORDS - set(_IN_OTHER_LANGUAGES.split())
_told: set[str] = set()  # what has been said once


def is_english(text: str) -> bool | None:
    """Whether a text seems to be English, by its letters and small words; None: too short to tell.

    Names and numbers have no language, so a short answer counts as neither.
    """
    letters = [letter for letter in _nfc(text) if letter.isalpha()]
    foreign = sum(not letter.isascii() for letter in letters)
    if foreign > len(letters) / 3:
        return False
    words = re.findall(r"[^\W\d_]+", _nfc(text).lower())
    if len(words) < LEAST_WORDS:
        return None
    return sum(word in _ENGLISH_WORDS for word in words) >= LEAST_STOP_WORDS * len(words)


def warn_if_not_english(answers: Sequence[str]) -> None:
    """Print, once, that the rules are English if most of the answers are not."""
    found = [is_english(text) for text in answers]
    told = [english for english in found if english is not None]
    if sum(told) * 2 >= len(told):
        return
    line = (
        "⚠️  The rules of the heuristic know English words only, and most of these answers do not "
        "seem to be English: rules of your own are heuristic_scorer(rules=[…])."
    )
    if line not in _told:
        _told.add(line)
        print(line)
