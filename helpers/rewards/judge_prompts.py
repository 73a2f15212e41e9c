"""What a judge is asked, and how its replies are read: in one place, for all judges.

The marks [[A]] and [[B]] are those of MT-Bench (Zheng et al. 2023, arXiv 2306.05685), which
Multimodal RewardBench has, too.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

JudgeVerdict = Literal["first", "second"] | None

_PAIR = """Here is a question about the image and two answers to it.

Question: {question}

[Answer FIRST]
{first}

[Answer SECOND]
{second}

Which answer is better? Look at the image first: an answer that says what is not there is worse,
however well it is written. Neither the order nor the length of the answers matters.
"""
_LETTERS = _PAIR.replace("FIRST", "A").replace("SECOND", "B")
_NUMBERS = _PAIR.replace("FIRST", "1").replace("SECOND", "2")


@dataclass(frozen=True)
class PairPrompt:
    """A question which of two answers is better, and what a judge is to reply."""

    text: str  # with {question}, {first} and {second}
    if_first: str  # the reply where the answer shown first is better
    if_second: str

    def ask(self, question: str, first: str, second: str) -> str:
        """Return the question about two answers, in this order."""
        return self.text.format(question=question, first=first, second=second)

    def read(self, reply: str) -> JudgeVerdict:
        """Return the verdict: what was to be replied, or whatever `parse_verdict` reads."""
        said = _plain(reply)
        if said == _plain(self.if_first):
            return "first"
        if said == _plain(self.if_second):
            return "second"
        return parse_verdict(reply)


def _plain(reply: str) -> str:
    return reply.strip().rstrip(".").casefold()


PAIR_PROMPT = PairPrompt(
    f"{_LETTERS}Reply with [[A]] or [[B]] and nothing else; with [[C]] if they are equally good.",
    "[[A]]",
    "[[B]]",
)
# In the form that the code of VL-RewardBench reads
NUMBERED_PAIR_PROMPT = PairPrompt(
    f"{_NUMBERS}Reply with one line: Overall Judgment: Answer 1 is better. Or: "
    "Overall Judgment: Answer 2 is better.",
    "Overall Judgment: Answer 1 is better.",
    "Overall Judgment: Answer 2 is better.",
)
# In that of Multimodal RewardBench 2; doubled braces are single ones in what is asked
JSON_PAIR_PROMPT = PairPrompt(
    _LETTERS + 'Reply with JSON and nothing else: {{"better_response": "A"}} or '
    '{{"better_response": "B"}}.',
    '{"better_response": "A"}',
    '{"better_response": "B"}',
)
# What a verifier is asked behind each answer, as the next turn, and its two replies
VERIFY_PROMPT = "Is this right?"
VERIFY_REPLIES = ("Yes.", "No.")

CRITERIA = ("accuracy", "completeness", "clarity")
BEST_RATING = 10
CRITERIA_PROMPT = """Here is a question about the image and an answer to it.

Question: {question}

Answer: {answer}

Rate the answer from 1 (very bad) to 10 (perfect) by each criterion. Look at the image first: an
answer that says what is not there is not accurate.
Reply with one line for each criterion and nothing else:
{lines}"""


def criteria_prompt(question: str, answer: str, criteria: Sequence[str] = CRITERIA) -> str:
    """Return the question how good an answer is by each criterion."""
    lines = "\n".join(f"{name}: a number" for name in criteria)
    return CRITERIA_PROMPT.format(question=question, answer=answer, lines=lines)


# --- which of two ---

_NAME = r"(?:answer|response|assistant|option)"
_PLACES = dict.fromkeys(("1", "a", "first"), "first") | dict.fromkeys(
    ("2", "b", "second"), "second"
)
_JSON = re.compile(r'"better_response"\s*:\s*"([^"]*)"')
_MARK = re.compile(r"\[\[\s*([^\[\]]*?)\s*\]\]")
_CONCLUSION = re.compile(r"overall judge?ment|verdict|therefore|</think>|<answer>", re.IGNORECASE)
_BARE = re.compile(
    rf"(?:the )?(?:{_NAME}[\s:]*)?(1|2|a|b|first|second)(?: {_NAME})?", re.IGNORECASE
)
# A and B as capitals only, and not as articles
_BETTER = re.compile(
    # "Answer 1 is clearly better", "Assistant B's response is the best"
    rf"(?i:{_NAME})\s*([12AB])(?:'s (?i:{_NAME}))?\s+(?i:is\s+(?:"
    r"(?:the\s+)?(?:slightly\s+|clearly\s+|much\s+|significantly\s+)?(?:better|superior)"
    r"|the\s+best))\b"
    # "the better answer is B"
    rf"|(?i:\b(?:better|best)\s+{_NAME}\s*(?:is|:)\s*(?:{_NAME}\s*)?)([12AB])(?![ \w])"
)
_HEDGE = re.compile(
    r"\b(?:if|whether|unless|neither|cannot|can't|not (?:say|clear|sure|think|believe))\b",
    re.IGNORECASE,
)


def parse_verdict(text: str) -> JudgeVerdict:
    """The place that a judge's reply names as better; None where it is unclear, or names both.

    In this order: `"better_response": "A"` (the JSON of Multimodal RewardBench 2); `[[A]]`/`[[B]]`
    (Multimodal RewardBench's format); a reply that is only a name
    ("B", "Answer 1"); "Answer 1 is better" (VL-RewardBench's). The last two are looked for behind
    the last "Overall judgment", verdict or the like, if there is one. Verdicts that contradict each
    other and sentences with an "if" count as unclear.
    """
    plain = text.replace("*", "").replace("’", "'")
    if stated := _JSON.findall(plain):
        return _one_place(stated)
    if marks := _MARK.findall(plain):
        return _one_place(marks)
    # what was weighed before the conclusion is no verdict
    rest = _CONCLUSION.split(plain)[-1]
    if bare := _BARE.fullmatch(rest.split("</answer>")[0].strip(" \n\t.:()[]\"'")):
        return _one_place([bare[1]])
    names = []
    for sentence in re.split(r"[.!?\n](?=\s|$)", rest):
        found = [match[1] or match[2] for match in _BETTER.finditer(sentence)]
        if found and _HEDGE.search(sentence):
            return None
        names += found
    return _one_place(names)


def _one_place(names: Iterable[str]) -> JudgeVerdict:
    places = {_PLACES.get(name.lower()) for name in names}
    return places.pop() if len(places) == 1 else None


# --- ratings ---


def parse_ratings(text: str, criteria: Sequence[str] = CRITERIA) -> Mapping[str, float] | None:
    """The rating of each criterion, 1 … 10; None unless each is there, once, and in its range.

    >>> parse_ratings("accuracy: 8\\nCompleteness: 7/10\\n- **clarity**: 9")
    {'accuracy': 8.0, 'completeness': 7.0, 'clarity': 9.0}
    >>> parse_ratings("accuracy: 8") is None
    True
    """
    plain = text.replace("*", "")
    found = {}
    for name in criteria:
        rating = (
            rf"(?im)^[\s\-•]*{re.escape(name)}\s*[:=]\s*(\d+(?:\.\d+)?)(?:\s*/\s*10)?\s*\.?\s*$"
        )
        values = re.findall(rating, plain)
        if len(values) != 1 or not 1 <= float(values[0]) <= BEST_RATING:
            return None
        found[name] = float(values[0])
    return found
