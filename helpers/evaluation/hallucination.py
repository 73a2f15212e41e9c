"""CHAIR: objects that a caption mentions and the image does not have (Rohrbach et al. 2018, arXiv 1809.02156).

As `utils/chair.py` of the official code (LisaAnne/Hallucination) counts them: every mention, also of
one object again, and denied ones, too: "0 buses" and "no bus" are mentions of a bus, though
they say the truth. How many are denied stands beside. A caption that says nothing has CHAIR 0, so that
recall and the share of captions without any object belong to it.

Simplifications. Synonyms are the caller's; the official list for MSCOCO is not shipped, but
`read_synonyms` reads its file. True objects are what the caller gives; the official code adds those of
the reference captions (`object_mentions` finds them). Instead of NLTK's tokeniser and pattern's
singulars: runs of letters and digits, hyphens within a word, and a few English rules of plurals on the
last word of a name; "geese" and other irregular plurals must be listed. Every name of several words is
taken whole, the longest first, where the official code has a fixed list of those of two words ("stove
top oven" is one mention here, two there). Case is ignored also in the list ("iPhone" never matches there).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path

from helpers.files import UsageError
from helpers.rewards import NUMBER_WORDS
from helpers.statistics import Proportion, proportion

Phrase = tuple[str, ...]  # words in lower case
_WORD = re.compile(
    r"[^\W_]+n['’]t(?!\w)|[^\W_]+(?:-[^\W_]+)*|[^\w\s]"
)  # "isn't", "dog" of "dog's", "hot-dog", a mark

# Double words of the official code that stand for another one: a baby elephant is no person, a toilet seat no chair
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub"
DOUBLE_WORDS = {
    f"{age} {animal}": animal for age in ("baby", "adult") for animal in _ANIMALS.split()
}
DOUBLE_WORDS |= {
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
}
DOUBLE_WORDS |= {"home plate": "home plate"}

_NEGATIONS = {"0", "no", "not", "without", "neither", "nor", "never", "cannot"}


@dataclass(frozen=True)
class Mention:
    object: str  # its name in the synonyms
    words: str  # as the text has it
    negated: bool


def read_synonyms(path: Path) -> dict[str, list[str]]:
    """A file with one object a line, "name, synonym, synonym": its synonyms by name.

    Raises UsageError with the line for an empty line or synonym and a word of two objects.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").rstrip().split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path}: cannot be read as UTF-8 text ({error}). Check the path and the file."
        ) from None
    synonyms: dict[str, list[str]] = {}
    for number, line in enumerate(lines, start=1):
        name, *others = (word.strip() for word in line.split(","))
        if not all((name, *others)) or name in synonyms:
            raise UsageError(
                f"{path}:{number}: {line!r} must be a new object and its synonyms, 'bus, minibus'."
            )
        synonyms[name] = others
        try:
            _listed_phrases(synonyms)
        except UsageError as error:
            raise UsageError(f"{path}:{number}: {error}") from None
    return synonyms


def phrase_index(synonyms: Mapping[str, Sequence[str]]) -> dict[Phrase, str | None]:
    """The object that each phrase names, in singular and plural; None for a double word that names none.

    A word as it is listed goes before a plural or singular made from another. Raises UsageError if a
    name has no letter, or a word is listed for two objects.
    """
    index: dict[Phrase, str | None] = {**_listed_phrases(synonyms)}
    for phrase, name in list(index.items()):
        _add_forms(index, phrase, name)
    for double, meant in DOUBLE_WORDS.items():
        phrase = tuple(double.split())
        name = index.setdefault(phrase, index.get(tuple(meant.split())))
        _add_forms(index, phrase, name)
    return index


def _listed_phrases(synonyms: Mapping[str, Sequence[str]]) -> dict[Phrase, str]:
    listed: dict[Phrase, str] = {}
    for name, others in synonyms.items():
        if isinstance(others, str):
            raise UsageError(f"synonyms of {name!r} are the text {others!r}; give a list of words.")
        for text in (name, *others):
            phrase = tuple(_words(text))
            if not phrase:
                raise UsageError(f"{text!r} of {name!r} has no word; take it out.")
            if listed.setdefault(phrase, name) != name:
                raise UsageError(
                    f"{text!r} is listed for {listed[phrase]!r} and for {name!r}; leave it with one."
                )
    return listed


def _add_forms(index: dict[Phrase, str | None], phrase: Phrase, name: str | None) -> None:
    for last in _forms(phrase[-1]):
        index.setdefault((*phrase[:-1], last), name)


def _words(text: str) -> list[str]:
    return [match[0].lower() for match in _WORD.finditer(text)]


def _forms(word: str) -> set[str]:
    """Plurals of a singular and singulars of a plural, some of which are no words: "bus" → "buses", "buss"."""
    changes = (
        ("$", "s"), ("(?<=s|x|z|h|o)$", "es"), ("(?<=[^aeiou])y$", "ies"), ("fe?$", "ves"), ("man$", "men"),
        ("s$", ""), ("(?<=[sxzho])es$", ""), ("ies$", "y"), ("ves$", "f"), ("ves$", "fe"), ("men$", "man"),
    )  # fmt: skip
    return {form for old, new in changes if len(form := re.sub(old, new, word, count=1)) > 2}


def object_mentions(text: str, index: Mapping[Phrase, str | None]) -> list[Mention]:
    """Every mention of an object in `text`, in order; `index` is `phrase_index(synonyms)`.

    A mention is `negated` if "no", "0", "zero", "not", "isn't", "without", "never", … is among the three words before
    it, with no mark, "but", "only", or other number between. "Buses: 0" is not seen as one.
    """
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is given as a caption; an empty one is ''.")
    words, longest = _words(text), max(map(len, index))
    found: list[tuple[int, Phrase]] = []
    place = 0
    while place < len(words):
        pieces = (
            tuple(words[place : place + size])
            for size in range(min(longest, len(words) - place), 0, -1)
        )
        phrase = next((piece for piece in pieces if piece in index), None)
        found += [(place, phrase)] if phrase else []
        place += len(phrase) if phrase else 1
    if {"toilet", "toilets"} & set(words):  # the official rule: then a seat is no chair
        found = [
            (place, phrase) for place, phrase in found if phrase not in (("seat",), ("seats",))
        ]
    return [
        Mention(index[phrase], " ".join(phrase), _is_negated(words[max(0, place - 3) : place]))
        for place, phrase in found
        if index[phrase] is not None
    ]


def _is_negated(before: Sequence[str]) -> bool:
    for word in reversed(before):
        digits = NUMBER_WORDS.get(word, word)
        if digits in _NEGATIONS or word.endswith(("n't", "n’t")):
            return True
        if not word[0].isalnum() or digits.isdigit() or word in ("but", "only"):
            return False
    return False


@dataclass(frozen=True)
class ChairMetrics:
    """Shares of mentions take them as independent, those of one caption are not: their intervals are too narrow."""

    chair_i: (
        Proportion | None
    )  # mentions of an object that is not there ÷ mentions; None without a mention
    chair_s: Proportion  # captions with such a mention ÷ captions
    recall: (
        Proportion | None
    )  # true objects that their caption mentions ÷ true objects; None without a true object
    silent: Proportion  # captions that mention no object ÷ captions
    negated: Proportion | None  # denied mentions ÷ mentions
    false_negated: (
        Proportion | None
    )  # denied mentions ÷ mentions of what is not there: they say the truth

    def rows(self) -> list[list[str]]:
        names = {
            "CHAIR_i": self.chair_i,
            "CHAIR_s": self.chair_s,
            "recall": self.recall,
            "no object": self.silent,
        }
        names |= {
            "denied, of all mentions": self.negated,
            "denied, of false mentions": self.false_negated,
        }
        return [
            ["figure", "value"],
            *([name, str(value or "not defined")] for name, value in names.items()),
        ]


def chair_metrics(
    captions: Sequence[str],
    objects: Sequence[Iterable[str] | Mapping[str, int]],
    synonyms: Mapping[str, Sequence[str]],
    count_negated: bool = True,
) -> ChairMetrics:
    """CHAIR_i, CHAIR_s and recall of captions; `objects[i]` are the names of what is in image i, or counts of it.

    Of counts, objects of which there are 0 are not there. `count_negated=False` leaves denied mentions
    out of all figures but the last two, which is not the official metric. Raises UsageError for lists of
    different lengths, no captions, and an object that the synonyms do not know.
    """
    if len(captions) != len(objects) or not captions:
        raise UsageError(
            f"{len(captions)} captions, objects of {len(objects)}: as many, and at least one."
        )
    index = phrase_index(synonyms)
    true = [_true_objects(given, index, place) for place, given in enumerate(objects)]
    judged = [  # of each caption, each mention and whether it is false
        [(mention, mention.object not in there) for mention in object_mentions(caption, index)]
        for caption, there in zip(captions, true, strict=True)
    ]
    counted = [[pair for pair in row if count_negated or not pair[0].negated] for row in judged]
    return ChairMetrics(
        chair_i=_share([false for row in counted for _, false in row]),
        chair_s=proportion(sum(any(false for _, false in row) for row in counted), len(captions)),
        recall=_share(
            [
                name in _names(row)
                for row, there in zip(counted, true, strict=True)
                for name in there
            ]
        ),
        silent=proportion(sum(not row for row in counted), len(captions)),
        negated=_share([mention.negated for row in judged for mention, _ in row]),
        false_negated=_share(
            [mention.negated for row in judged for mention, false in row if false]
        ),
    )


def _names(row: Sequence[tuple[Mention, bool]]) -> set[str]:
    return {mention.object for mention, _ in row}


def _share(hits: Sequence[bool]) -> Proportion | None:
    return proportion(sum(hits), len(hits)) if hits else None


def _true_objects(
    given: Iterable[str] | Mapping[str, int], index: Mapping[Phrase, str | None], place: int
) -> set[str]:
    counts = isinstance(given, Mapping)
    if isinstance(given, str) or (
        counts and not all(isinstance(n, Integral) for n in given.values())
    ):
        raise UsageError(
            f"objects[{place}] is {given!r}; give a list of names, or counts such as {{'dog': 1}}."
        )
    names = [name for name in given if not counts or given[name] > 0]
    unknown = [name for name in names if index.get(tuple(_words(name))) is None]
    if unknown:
        raise UsageError(
            f"objects[{place}]: {unknown} are not among the synonyms. Add a line for each."
        )
    return {index[tuple(_words(name))] for name in names}
