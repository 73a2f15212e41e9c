"""Replies of judges, graded as the authors of two benchmarks of reward models grade them.

* VL-RewardBench (Li et al. 2024, arXiv 2411.17451): `cal.py` of github.com/vl-rewardbench/
  VL_RewardBench. Only "Overall Judgment …" or "Therefore …" followed by "Answer N is better" (or
  "the better", "slightly better") is a verdict; "clearly better" is none. Of several the last
  counts. Line ends are taken out before, so that words may run together. Any N that is not the
  number of the worse answer counts as right, "Answer 3" too. A pair is right or wrong by the
  majority of all votes, unreadable ones included; without a majority it is left out. The code also
  makes a list without the pairs that have an unreadable vote, and does not use it.
* Multimodal RewardBench (Yasunaga et al. 2025, arXiv 2502.14191): `scripts/2_get_accuracy.py` of
  github.com/facebookresearch/multimodal_rewardbench. "[[A]]" anywhere counts before "[[B]]"
  anywhere; for a reply with neither a coin is tossed, the coins of Python's `random` from seed 123
  on, one after the other in the order of the file.
* Multimodal RewardBench 2 (Hu et al. 2025, arXiv 2512.16899): `compute_accuracy.py` of
  github.com/facebookresearch/MMRB2. A pair is asked once in either order, and each of the two
  counts for itself: right if `better_response` of the reply, which is JSON, is the letter of the
  better answer; "tie" and whatever else is wrong; without one the reply is left out.

`helpers/rewards/judge.py` reads replies and counts abstentions as this suite does; figures of
the papers are to be compared with those from here.
"""

import random
import re
from collections.abc import Mapping, Sequence

from helpers.data import PreferenceRecord, record_key
from helpers.files import UsageError
from helpers.rewards import PairJudge
from helpers.statistics import Proportion, share_of

from ..keyed import check_each
from ..reward_benchmark_files import BENCHMARKS
from ..reward_benchmarks import check_records, macro_mean
from .common import OfficialGrade

# id → (the order in which the answers were shown, the judge's reply) of each vote
JudgeReplies = Mapping[str, Sequence[tuple[tuple[int, int], str]]]
COIN_SEED = 123

_VERDICT = re.compile(
    r"(?:overall judgment|therefore).*answer\s*(\d+)\s*is\s*(?:the\s*)?(?:slightly\s*)?better",
    re.IGNORECASE,
)


def votes_of(judge: PairJudge) -> dict[str, list[tuple[tuple[int, int], str]]]:
    """What a judge has replied so far, by the records' ids."""
    votes: dict[str, list[tuple[tuple[int, int], str]]] = {}
    for reply in judge.replies:
        votes.setdefault(reply.task or "", []).append((reply.places, reply.text))
    return votes


def stated_answer(reply: str) -> int | None:
    """The number of the answer that VL-RewardBench's own code reads as the better one.

    >>> stated_answer("Overall Judgment: Answer 2 is slightly better.")
    2
    >>> stated_answer("Overall Judgment: Answer 2 is clearly better.") is None
    True
    """
    found = _VERDICT.search(reply.replace("\n", "").replace("*", ""))
    return int(found[1]) if found else None


def grade_vl_rewardbench(records: Sequence[PreferenceRecord], votes: JudgeReplies) -> OfficialGrade:
    """The figures of `cal.py`: a group's right pairs among those with a majority, their mean.

    Raises UsageError unless every record has votes.
    """
    benchmark = BENCHMARKS["vl_rewardbench"]
    groups = check_records(records, benchmark)
    check_each(votes, records, "votes", "votes", "record")
    decided: dict[str, list[bool]] = {name: [] for name in benchmark.groups}
    for record in records:
        key = record_key(record)
        verdict = _majority(record, votes[key])
        if verdict is not None:
            decided[groups[key]].append(verdict)
    everything = [verdict for verdicts in decided.values() for verdict in verdicts]
    shares = {name: share_of(verdicts) for name, verdicts in decided.items()}
    figures: dict[str, Proportion | float | None] = dict(shares)
    figures["overall"] = share_of(everything)
    whole = [share for share in shares.values() if share is not None]
    # The official code divides by zero for a group in which nothing was decided
    figures["macro"] = macro_mean(whole) if len(whole) == len(shares) else None
    figures["left out"] = share_of([False] * len(everything) + [True] * _missing(records, decided))
    return OfficialGrade("VL-RewardBench, as its cal.py", figures)


def _missing(records: Sequence[PreferenceRecord], decided: Mapping[str, Sequence[bool]]) -> int:
    return len(records) - sum(map(len, decided.values()))


def _majority(
    record: PreferenceRecord,
    votes: Sequence[tuple[tuple[int, int], str]],
) -> bool | None:
    """Was the better answer chosen by more than half of all votes, or the worse one? Else None."""
    worse = record.ranking[1][0]
    agree = reject = 0
    for order, reply in votes:
        stated = stated_answer(reply)
        if stated is None:
            continue
        # Whatever does not name the worse one agrees
        if stated == order.index(worse) + 1:
            reject += 1
        else:
            agree += 1
    if agree > len(votes) / 2:
        return True
    return False if reject > len(votes) / 2 else None


def grade_multimodal_rewardbench(
    records: Sequence[PreferenceRecord],
    votes: JudgeReplies,
) -> OfficialGrade:
    """The figures of `2_get_accuracy.py`: right replies of each group and of all, coins included.

    The records stand in the order of the file that the judge's replies were in. Raises UsageError
    unless every record has one vote.
    """
    benchmark = BENCHMARKS["multimodal_rewardbench"]
    groups = check_records(records, benchmark)
    check_each(votes, records, "votes", "votes", "record")
    coin = random.Random(COIN_SEED)
    right: dict[str, list[bool]] = {"all": []}
    tossed = 0
    for record in records:
        key = record_key(record)
        if len(votes[key]) != 1:
            raise UsageError(f"record {key}: {len(votes[key])} votes, where the code takes one.")
        ((order, reply),) = votes[key]
        place = 0 if "[[A]]" in reply else 1 if "[[B]]" in reply else None
        if place is None:
            place = 0 if coin.random() < 0.5 else 1
            tossed += 1
        hit = order[place] == record.ranking[0][0]
        right["all"].append(hit)
        right.setdefault(groups[key], []).append(hit)
    figures: dict[str, Proportion | float | None] = {
        name: share_of(hits) for name, hits in right.items()
    }
    figures["tossed"] = share_of([True] * tossed + [False] * (len(records) - tossed))
    return OfficialGrade("Multimodal RewardBench, as its 2_get_accuracy.py", figures)


_BETTER_RESPONSE = re.compile(r'"better_response"\s*:\s*"([^"]*)"')


def grade_multimodal_rewardbench_2(
    records: Sequence[PreferenceRecord],
    votes: JudgeReplies,
) -> OfficialGrade:
    """The figures of `compute_accuracy.py`: right replies of each task and of all, by order.

    Raises UsageError unless every record has a vote in either order.
    """
    benchmark = BENCHMARKS["multimodal_rewardbench_2"]
    groups = check_records(records, benchmark)
    check_each(votes, records, "votes", "votes", "record")
    right: dict[str, list[bool]] = {"all": []}
    silent = 0
    for record in records:
        key = record_key(record)
        if sorted(order for order, _ in votes[key]) != [(0, 1), (1, 0)]:
            raise UsageError(f"record {key}: the code takes one vote in either order.")
        for order, reply in votes[key]:
            stated = _BETTER_RESPONSE.search(reply)
            if stated is None:
                silent += 1
                continue
            letter = "AB"[order.index(record.ranking[0][0])]
            right["all"].append(stated[1] == letter)
            right.setdefault(groups[key], []).append(stated[1] == letter)
    figures: dict[str, Proportion | float | None] = {
        name: share_of(hits) for name, hits in right.items()
    }
    figures["left out"] = share_of([True] * silent + [False] * (2 * len(records) - silent))
    return OfficialGrade("Multimodal RewardBench 2, as its compute_accuracy.py", figures)
