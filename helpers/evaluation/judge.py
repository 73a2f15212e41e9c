"""A generative judge: a model says, several times, which of two answers in random order is better.

What it says is graded as the scores of a reward model are (`reward_benchmarks.grade`); what cannot
be read, and what has no majority, is an abstention, counted and shown.
"""

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from tqdm.auto import tqdm

from helpers.data import PreferenceRecord, record_key
from helpers.files import UsageError
from helpers.statistics import Proportion, share_of

from .reward_benchmarks import Benchmark, Grade, check_records, grade

JudgeChoice = Literal["first", "second"] | None
AskJudge = Callable[[PreferenceRecord, tuple[int, int]], JudgeChoice]


@dataclass(frozen=True)
class JudgeResult:
    """The result of a judge's votes; abstentions are ties in `grade`, which `scores` give again."""

    grade: Grade
    scores: dict[str, list[float]]  # 1 for the answer with the majority; two 0 for an abstention
    first: Proportion | None  # of the readable votes for the answer shown first; ½ without a bias
    unreadable: int
    votes: int

    def __str__(self) -> str:
        biased = self.first is not None and not self.first.low <= 0.5 <= self.first.high
        warning = ": POSITION BIAS" if biased else ""
        return (
            f"{self.grade}\n  {self.grade.ties} abstentions (a tie above); "
            f"{self.unreadable} of {self.votes} votes unreadable; "
            f"for the answer shown first {self.first or 'none'}{warning}"
        )


def judge_pairs(
    records: Sequence[PreferenceRecord],
    ask: AskJudge,
    benchmark: Benchmark,
    votes: int = 1,
    seed: int = 0,
) -> JudgeResult:
    """Ask `votes` times which of two answers is better, in an order drawn from seed, id and vote.

    `ask(record, order)` shows `record.answers[order[0]]` first and says "first", "second", or None
    where the reply is unclear (`parse_verdict` does). An answer wins with more than half of all
    votes, unreadable ones included (as in `cal.py`); otherwise the judge abstains. Without a bias
    every vote for a place is a fair coin, since the order is one; so the interval of `first` holds
    although a record's votes are alike.
    """
    if votes < 1:
        raise UsageError(f"votes = {votes}: ask at least once, best an odd number of times.")
    check_records(records, benchmark)
    scores = {}
    verdicts = []
    for record in tqdm(records, desc="judge", unit="record", leave=False):
        key = record_key(record)
        won = Counter()  # votes by the place of the answer in the record
        for vote in range(votes):
            # a coin of its own for every vote: no order of asking changes it
            order = (0, 1) if random.Random(f"{seed} {vote} {key}").random() < 0.5 else (1, 0)
            verdict = ask(record, order)
            if verdict not in ("first", "second", None):
                raise UsageError(
                    f"record {key}: ask gave {verdict!r}, which must be 'first', 'second' or None."
                )
            verdicts.append(verdict)
            if verdict is not None:
                won[order[verdict == "second"]] += 1
        scores[key] = [float(won[place] > votes / 2) for place in (0, 1)]
    return JudgeResult(
        grade(records, scores, benchmark),
        scores,
        share_of(verdict == "first" for verdict in verdicts if verdict),
        verdicts.count(None),
        len(verdicts),
    )


_NAME = r"(?:answer|response|assistant|option)"
_PLACES = dict.fromkeys(("1", "a", "first"), "first") | dict.fromkeys(
    ("2", "b", "second"), "second"
)
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


def parse_verdict(text: str) -> JudgeChoice:
    """The place that a judge's reply names as better; None where it is unclear, or names both.

    In this order: `[[A]]`/`[[B]]` (Multimodal RewardBench's format); a reply that is only a name
    ("B", "Answer 1"); "Answer 1 is better" (VL-RewardBench's). The last two are looked for behind
    the last "Overall judgment", verdict or the like, if there is one. Verdicts that contradict each
    other and sentences with an "if" count as unclear.
    """
    plain = text.replace("*", "").replace("’", "'")
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


def _one_place(names: Iterable[str]) -> JudgeChoice:
    places = {_PLACES.get(name.lower()) for name in names}
    return places.pop() if len(places) == 1 else None
