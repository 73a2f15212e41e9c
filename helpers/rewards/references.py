"""Rewards that compare an answer with reference answers: equal, agreed upon, nearly equal, chosen.

Same signature as in `helpers/rewards/scoring.py`; the facts are an answer or a list of answers.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from nltk.metrics.distance import edit_distance

from helpers.data import Facts

from .heuristic import NUMBER_WORDS
from .scoring import Scorer, make_scorer, refuse_facts


def require_references(facts: Facts, who: str) -> list[str]:
    """Return `facts` as a list of reference answers. Raises UsageError for facts of other kinds."""
    references = [facts] if isinstance(facts, str) else facts
    is_list = isinstance(references, list | tuple)
    if is_list and references and all(isinstance(text, str) for text in references):
        return list(references)
    raise refuse_facts(
        who,
        "a reference answer or a list of them",
        facts,
        "count_exact, count_per_class, count_graded",
    )


# The official list: no apostrophe, colon or full stop
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_CONTRACTED = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't
he'd he's how'd how'll how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't
not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd someone'll
someone's something'd something'll that's there'd there're there's they'd they'll they're they've
'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}
_DIGITS = {"none": "0", **NUMBER_WORDS}


def normalise(text: str) -> str:
    """The answer as VQA compares it: "There are two, I guess!" → "there are 2 i guess".

    As in the official code: a punctuation mark disappears if it stands beside a space anywhere in
    the text, or if the text has a number like 1,000; else it becomes a space. A full stop stays
    before a digit only. Then lower case, "none" to "ten" as digits, no articles, missing
    apostrophes put back. Simplified: double contractions ("couldnt've") are left as they are.
    Nothing but articles and marks is kept ("A" is an answer, too), where the official code would
    have every such text equal.
    """
    text = " ".join(text.split())
    has_thousands = re.search(r"\d,\d", text)
    bare = text
    for mark in PUNCTUATION:
        disappears = has_thousands or f"{mark} " in text or f" {mark}" in text
        bare = bare.replace(mark, "" if disappears else " ")
    # full stops but for decimal points
    bare = re.sub(r"\.(?!\d)", "", bare)
    words = [_DIGITS.get(word, word) for word in bare.lower().split()]
    kept = []
    for word in words:
        if word not in ("a", "an", "the"):
            kept.append(CONTRACTIONS.get(word, word))
    return " ".join(kept) or text.lower()


def _make_reference_scorer(name: str, combine: Callable[[list[bool]], float]) -> Scorer:
    """Make the scorer that gives `combine` of which references equal the answer, all normalised.

    An empty answer equals none.
    """

    def parts(image, question, answer, facts):
        given = normalise(answer)
        matches = []
        for text in require_references(facts, name):
            matches.append(given != "" and normalise(text) == given)
        return {name: combine(matches)}

    return make_scorer(name, parts)


def vote_share(matches: list[bool]) -> float:
    """VQA accuracy (Antol et al. 2015, arXiv 1505.00468), as it is evaluated for VQA v2.

    Each annotator is left out in turn; min(matches among the others / 3, 1), averaged. With n < 10
    annotators the same, so that n < 4 give (n − 1)/3 at best; one reference cannot be left out and
    gives 1/3 (exact_match gives 1). The official code compares raw texts where all annotators
    agree; here they are always normalised (as it has it: `evaluation/official/vqa.py`).
    """
    others = matches
    if len(matches) > 1:
        others = [sum(matches) - match for match in matches]
    return np.mean([min(n / 3, 1) for n in others])


# 1 if the answer is the reference, or one of them, else 0
exact_match = _make_reference_scorer("exact_match", any)
vqa_accuracy = _make_reference_scorer("vqa_accuracy", vote_share)


def _anls(given: str, references: Sequence[str]) -> float:
    given = " ".join(given.lower().split())
    best = 0.0
    for reference in references:
        known = " ".join(reference.lower().split())
        # two empty texts have the length 0
        longest = max(len(given), len(known), 1)
        distance = edit_distance(given, known) / longest
        # texts that are further apart are other answers, not misspelt ones
        if distance < 0.5:
            best = max(best, 1 - distance)
    return best


def _token_f1(given: str, references: Sequence[str]) -> float:
    words = Counter(normalise(given).split())
    best = 0.0
    for reference in references:
        known = Counter(normalise(reference).split())
        # a word that one of them repeats is shared as often as both have it
        shared = (words & known).total()
        both = words.total() + known.total()
        best = max(best, 2 * shared / both if both else 0.0)
    return best


def plain_reading(answer: str) -> Literal["yes", "no"] | None:
    """The one of yes and no that is a word of the answer; None for neither or both."""
    words = set(re.findall(r"\b(yes|no)\b", answer.lower()))
    return words.pop() if len(words) == 1 else None


def _yes_no(given: str, references: Sequence[str]) -> float:
    said = plain_reading(given)
    return float(said is not None and said in map(plain_reading, references))


def chosen_letter(answer: str) -> str | None:
    """The letter of the choice that an answer names: "B", "(b)", "B. a dog", "Answer: B".

    One letter that stands alone at the start or the end, or behind "answer" or "option"; None if
    there is none, or if several are named. "A dog" names none: that A is a word.
    """
    text = answer.strip()
    named = r"\b(?:answer|option|choice)\b\W*(?:is\W*)?\(?([A-Za-z])\b(?!\s+[a-z])"
    patterns = (
        r"^\(?([A-Za-z])\)?[.:)]?$",
        r"^\(?([A-Z])[.:)](?:\s|$)",
        named,
    )
    for pattern in patterns:
        letters = re.findall(pattern, text, re.IGNORECASE)
        found = {letter.upper() for letter in letters}
        # the first pattern that fits decides, even if it names several
        if found:
            return found.pop() if len(found) == 1 else None
    return None


def _choice(given: str, references: Sequence[str]) -> float:
    """By the letter where both have one, else by equal text."""
    said = chosen_letter(given)
    for reference in references:
        letter = chosen_letter(reference)
        if letter is not None and letter == said:
            return 1.0
        # the text of a choice in place of its letter
        text = reference if letter is None else re.sub(r"^\W*\w\W+", "", reference)
        if text and normalise(text) == normalise(given):
            return 1.0
    return 0.0


def _make_text_scorer(name: str, compare: Callable[[str, Sequence[str]], float]) -> Scorer:
    """Make the scorer that gives `compare(answer, references)`."""

    def parts(image, question, answer, facts):
        return {name: compare(answer, require_references(facts, name))}

    return make_scorer(name, parts)


# 1 − edit distance / length of the longer text where that distance is under ½, else 0; the best of
# the references (Biten et al. 2019, arXiv 1905.13648), in lower case and without spare blanks. At a
# distance of exactly ½ the paper gives 0, as here, and the official evaluation of the RRC ½.
anls = _make_text_scorer("anls", _anls)
# F1 of the words that answer and reference share, both normalised, the best of the references
# (Rajpurkar et al. 2016, arXiv 1606.05250)
token_f1 = _make_text_scorer("token_f1", _token_f1)
# 1 if the answer says yes where the reference does, or no where it does, else 0
yes_no = _make_text_scorer("yes_no", _yes_no)
# 1 if the answer names the letter of the right choice, or is its text, else 0
choice = _make_text_scorer("choice", _choice)
