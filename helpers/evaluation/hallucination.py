"""CHAIR: objects that a caption mentions and the image does not have (Rohrbach et al. 2018).

The paper is arXiv 1809.02156. As `utils/chair.py` of the official code (LisaAnne/Hallucination)
counts them: every mention, also of one object again, and denied ones, too: "0 buses" and "no bus"
are mentions of a bus, though they say the truth. How many are denied stands beside. A caption that
says nothing has CHAIR 0, so that recall and the share of captions without any object belong to it.

Simplifications. Synonyms are the caller's; the official list for MSCOCO is not shipped. True
objects are what the caller gives; the official code adds those of the reference captions
(`object_mentions` finds them). Instead of NLTK's tokeniser and pattern's
singulars: runs of letters and digits, hyphens within a word, and a few English rules of plurals on
the last word of a name; "geese" and other irregular plurals must be listed. Every name of several
words is taken whole, the longest first, where the official code has a fixed list of those of two
words ("stove top oven" is one mention here, two there). Case is ignored also in the list ("iPhone"
never matches there).
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral

from helpers.files import UsageError
from helpers.rewards import NUMBER_WORDS
from helpers.statistics import Proportion, TableRows, format_figure, share_of

Synonyms = Mapping[str, Sequence[str]]  # other words for each object
Phrase = tuple[str, ...]  # words in lower case
PhraseIndex = Mapping[Phrase, str | None]  # the object that each names, as `phrase_index` says
# "isn't", "dog" of "dog's", "hot-dog", a mark
_WORD = re.compile(r"[^\W_]+n['’]t(?!\w)|[^\W_]+(?:-[^\W_]+)*|[^\w\s]")

# Double words of the official code that stand for another one: a baby elephant is no person, a
# toilet seat no chair.
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub"
DOUBLE_WORDS = {
    **{f"{age} {name}": name for age in ("baby", "adult") for name in _ANIMALS.split()},
    "passenger jet": "jet",
    "passenger train": "train",
    "bow tie": "tie",
    "toilet seat": "toilet",
    "home plate": "home plate",
}

# words that deny what follows, in digits where they are numbers
_NEGATIONS = {"0", "no", "not", "without", "neither", "nor", "never", "cannot"}
_NEGATION_REACH = 3  # words before a mention among which a negation denies it
_NEGATION_ENDS = ("but", "only")

# (end of a word, what replaces it): plurals of singulars, then singulars of plurals
_FORMS = (
    ("$", "s"),
    ("(?<=s|x|z|h|o)$", "es"),
    ("(?<=[^aeiou])y$", "ies"),
    ("fe?$", "ves"),
    ("man$", "men"),
    ("s$", ""),
    ("(?<=[sxzho])es$", ""),
    ("ies$", "y"),
    ("ves$", "f"),
    ("ves$", "fe"),
    ("men$", "man"),
)


@dataclass(frozen=True)
class Mention:
    object: str  # its name in the synonyms
    negated: bool


def phrase_index(synonyms: Synonyms) -> PhraseIndex:
    """The object that each phrase names, in singular and plural.

    None for a double word that names none. A word as it is listed goes before a plural or singular
    made from another. Raises UsageError if a name has no letter, or a word is listed for two
    objects.
    """
    listed = _listed_phrases(synonyms)
    index: dict[Phrase, str | None] = dict(listed)
    for phrase, name in listed.items():
        _add_forms(index, phrase, name)
    for double, meant in DOUBLE_WORDS.items():
        phrase = tuple(double.split())
        name = index.setdefault(phrase, index.get(tuple(meant.split())))
        _add_forms(index, phrase, name)
    return index


def _listed_phrases(synonyms: Synonyms) -> dict[Phrase, str]:
    listed = {}
    for name, others in synonyms.items():
        if isinstance(others, str):
            raise UsageError(f"synonyms of {name!r} are the text {others!r}; give a list of words.")
        for text in (name, *others):
            phrase = tuple(_words(text))
            if not phrase:
                raise UsageError(f"{text!r} of {name!r} has no word; take it out.")
            first = listed.setdefault(phrase, name)
            if first != name:
                raise UsageError(
                    f"{text!r} is listed for {first!r} and for {name!r}; leave it with one."
                )
    return listed


def _add_forms(index: dict[Phrase, str | None], phrase: Phrase, name: str | None) -> None:
    """Add plurals and singulars, some of which are no words: "bus" → "buses", "buss"."""
    *first, last = phrase
    for end, replacement in _FORMS:
        form = re.sub(end, replacement, last, count=1)
        if len(form) > 2:
            index.setdefault((*first, form), name)


def _words(text: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(text)]


def object_mentions(text: str, index: PhraseIndex) -> list[Mention]:
    """Every mention of an object in `text`, in order; `index` is `phrase_index(synonyms)`.

    A mention is `negated` if "no", "0", "zero", "not", "isn't", "without", "never", … is among the
    three words before it, with no mark, "but", "only", or other number between. "Buses: 0" is not
    seen as one.
    """
    if not isinstance(text, str):
        raise UsageError(f"{text!r} is given as a caption; an empty one is ''.")
    words = _words(text)
    has_toilet = not {"toilet", "toilets"}.isdisjoint(words)
    longest = max(map(len, index))
    mentions = []
    place = 0
    while place < len(words):
        phrase = _longest_phrase(words[place : place + longest], index)
        name = index.get(phrase)
        # the official rule: where there is a toilet, a seat is no chair
        if name is not None and not (has_toilet and phrase in (("seat",), ("seats",))):
            before = words[max(0, place - _NEGATION_REACH) : place]
            mentions.append(Mention(name, _is_negated(before)))
        place += max(1, len(phrase))
    return mentions


def _longest_phrase(words: Sequence[str], index: PhraseIndex) -> Phrase:
    """The longest phrase of the index that `words` begin with; () if there is none."""
    for size in range(len(words), 0, -1):
        phrase = tuple(words[:size])
        if phrase in index:
            return phrase
    return ()


def _is_negated(before: Sequence[str]) -> bool:
    for word in reversed(before):
        digits = NUMBER_WORDS.get(word, word)
        if digits in _NEGATIONS or word.endswith(("n't", "n’t")):
            return True
        if not word[0].isalnum() or digits.isdigit() or word in _NEGATION_ENDS:
            return False
    return False


@dataclass(frozen=True)
class ChairMetrics:
    """Figures of captions.

    Shares of mentions take them as independent, those of one caption are not: their intervals are
    too narrow.
    """

    chair_i: Proportion | None  # mentions of what is not there ÷ mentions; None without a mention
    chair_s: Proportion  # captions with such a mention ÷ captions
    recall: Proportion | None  # true objects that their caption mentions ÷ true objects
    silent: Proportion  # captions that mention no object ÷ captions
    negated: Proportion | None  # denied mentions ÷ mentions
    false_negated: Proportion | None  # the same of what is not there: they say the truth

    def rows(self) -> TableRows:
        names = [
            "CHAIR_i",
            "CHAIR_s",
            "recall",
            "no object",
            "denied, of all mentions",
            "denied, of false mentions",
        ]
        texts = map(format_figure, vars(self).values())
        return [["figure", "value"], *map(list, zip(names, texts, strict=True))]


def chair_metrics(
    captions: Sequence[str],
    objects: Sequence[Iterable[str] | Mapping[str, int]],
    synonyms: Synonyms,
) -> ChairMetrics:
    """CHAIR_i, CHAIR_s and recall of captions.

    `objects[i]` are the names of what is in image i, or counts of it. Of counts, objects of which
    there are 0 are not there. Raises UsageError for lists of different lengths, no captions, and an
    object that the synonyms do not know.
    """
    if len(captions) != len(objects) or not captions:
        raise UsageError(
            f"{len(captions)} captions, objects of {len(objects)}: as many, and at least one."
        )
    index = phrase_index(synonyms)
    hits = {field.name: [] for field in fields(ChairMetrics)}
    for place, (caption, given) in enumerate(zip(captions, objects, strict=True)):
        there = _true_objects(given, index, place)
        mentions = object_mentions(caption, index)
        # denied mentions are counted apart, since the official metric takes them for mentions
        hits["negated"] += [mention.negated for mention in mentions]
        hits["false_negated"] += [m.negated for m in mentions if m.object not in there]
        # CHAIR: of the mentions, which are of things that are not there
        named = [mention.object for mention in mentions]
        false = [name not in there for name in named]
        hits["chair_i"] += false
        hits["chair_s"].append(any(false))
        hits["recall"] += [name in named for name in there]
        hits["silent"].append(not named)
    return ChairMetrics(**{name: share_of(values) for name, values in hits.items()})


def _true_objects(
    given: Iterable[str] | Mapping[str, int], index: PhraseIndex, place: int
) -> set[str]:
    where = f"objects[{place}]"
    # a list of names says that each is there
    counts = given if isinstance(given, Mapping) else {}
    if isinstance(given, str) or not all(isinstance(n, Integral) for n in counts.values()):
        raise UsageError(
            f"{where} is {given!r}; give a list of names, or counts such as {{'dog': 1}}."
        )
    names = {name: index.get(tuple(_words(name))) for name in given if counts.get(name, 1) > 0}
    unknown = [name for name, known in names.items() if known is None]
    if unknown:
        raise UsageError(f"{where}: {unknown} are not among the synonyms. Add a line for each.")
    return set(names.values())
