"""What one annotator still has to judge and in which order; what the votes of all of them say.

The records and the vote file (`helpers/data/vote_log.py`) are all the state there is. `widgets.AnswerRanker` is
the way to vote, `widgets.rank_in_text` the one without widgets.
"""

import contextlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import ValidationError

from helpers.files import UsageError
from helpers.statistics import Kappa, cohen_kappa

from .preferences import (
    Judgement,
    PreferenceRecord,
    consensus,
    explain_validation_error,
    record_key,
)
from .vote_log import (
    VoteEvent,
    append_event,
    content_hashes,
    current_judgements,
    events_on,
    lock_file,
    records_by_key,
    stable_hash,
)

ANSWER_LABELS = "ABCDEF"  # the answers as they are shown; nobody ranks more than six at a time
Tiers = Sequence[Sequence[int]]  # best first, ties together, in the order of showing
VoteVerdict = Literal["ranked", "tie", "all bad", "skip"]


@dataclass(frozen=True)
class VotingItem:
    """A record as it is shown to one annotator."""

    key: str
    record: PreferenceRecord
    order: list[int]  # order[k]: place in `record.answers` of the answer shown k-th
    version: int  # how many events this annotator had on it when it was shown

    @property
    def texts(self) -> list[str]:
        """The answers as they are shown: "A", "B", …"""
        return [self.record.answers[place].text for place in self.order]

    def judge(
        self, verdict: VoteVerdict, tiers: Tiers, criteria: Mapping[str, Sequence[int]]
    ) -> dict[str, object]:
        """Fields of a Judgement, by place in `answers`, from what was said in the order of showing.

        Criteria without a 1 were not used and are left out. Raises UsageError for answers of one text
        with different ranks.
        """
        shown = {"ranked": tiers, "skip": []}.get(verdict, [range(len(self.order))])
        for one, other in itertools.combinations(shown, 2):
            if same := {self.texts[k] for k in one} & {self.texts[k] for k in other}:
                labels = [ANSWER_LABELS[k] for k, text in enumerate(self.texts) if text in same]
                raise UsageError(
                    f"answers {' and '.join(labels)} are the same: give them the same rank."
                )
        marks = {
            name: [row[self.order.index(place)] for place in range(len(row))]
            for name, row in criteria.items()
        }
        return {
            "verdict": "tie" if verdict == "ranked" and len(shown) == 1 else verdict,
            "ranking": [sorted(self.order[k] for k in tier) for tier in shown] or None,
            "order": self.order,
            "criteria": {name: row for name, row in marks.items() if any(row)},
        }


class Votes:
    """The votes of one annotator in the file `path`, and what is left to judge of `records`.

    Records come in a random order, their answers too; both follow from `seed`, `annotator` and the
    record alone. Raises UsageError for records that cannot be told apart or have more answers than there are
    `ANSWER_LABELS`.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[PreferenceRecord],
        annotator: str,
        seed: int = 0,
    ):
        self.path, self.annotator, self.seed = path, annotator, seed
        if not annotator.strip():
            raise UsageError(
                "annotator is empty. Give your name, or any other word that stays the same."
            )
        self.records = records_by_key(records)
        for key, record in self.records.items():
            if len(record.answers) > len(ANSWER_LABELS):
                raise UsageError(
                    f"record {key!r} has {len(record.answers)} answers. Keep at most {len(ANSWER_LABELS)}."
                )
        self._contents = content_hashes(self.records, path)
        self.keys = sorted(self.records, key=self._draw)  # in the order of showing
        self.refresh()

    def _draw(self, *parts: object) -> str:
        return stable_hash([self.seed, self.annotator, *parts])

    def refresh(self) -> None:
        """Read the file again: another kernel may have voted."""
        events, self.notice = events_on(self.path, self._contents)
        own = [event for event in events if event.annotator == self.annotator]
        self._versions = Counter(event.record for event in own)
        self.judged = {
            key: judgement for (key, _), judgement in current_judgements(own).items()
        }  # in the order of voting

    @property
    def median_seconds(self) -> float | None:
        """Median seconds of the judgements that count; None before the first."""
        seconds = [
            judgement.seconds for judgement in self.judged.values() if judgement.seconds is not None
        ]
        return float(np.median(seconds)) if seconds else None

    def progress(self) -> str:
        """One line: how many are done, how many of these were skipped, how long one takes."""
        skipped = sum(judgement.verdict == "skip" for judgement in self.judged.values())
        line = f"{len(self.judged)} of {len(self.keys)}" + (
            f" · {skipped} skipped" if skipped else ""
        )
        return line + (
            f" · {self.median_seconds:.1f} s each" if self.median_seconds is not None else ""
        )

    def next(self) -> VotingItem | None:
        """The first record in the order of showing that this annotator has not judged; None at the end."""
        self.refresh()
        return next((self._item(key) for key in self.keys if key not in self.judged), None)

    def _item(self, key: str) -> VotingItem:
        record = self.records[key]
        order = sorted(range(len(record.answers)), key=lambda place: self._draw(key, place))
        return VotingItem(key, record, order, self._versions[key])

    def vote(
        self,
        item: VotingItem,
        verdict: VoteVerdict,
        tiers: Tiers = (),
        criteria: Mapping[str, Sequence[int]] | None = None,
        seconds: float | None = None,
    ) -> bool:
        """Put a judgement of `item` on the disk; False, and nothing written, if it was judged since it was shown.

        `tiers` (for "ranked") and `criteria` (name → a 0 or 1 for each answer) are in the order of
        showing. Raises UsageError for answers of one text with different ranks, OSError as `append`.
        """
        judgement = Judgement(
            kind="human", annotator=self.annotator, **item.judge(verdict, tiers, criteria or {}),
            seconds=seconds, time=datetime.now(UTC).isoformat(timespec="seconds"),
        )  # fmt: skip
        return self._add(
            item, VoteEvent(record=item.key, content=self._contents[item.key], judgement=judgement)
        )

    def undo(self) -> VotingItem | None:
        """Take back the last judgement of this annotator and give its item again; None if there is none."""
        self.refresh()
        if not self.judged:
            return None
        item = self._item(next(reversed(self.judged)))
        self._add(
            item, VoteEvent(record=item.key, content=self._contents[item.key], undo=self.annotator)
        )
        return self._item(item.key)

    def renew(self, item: VotingItem) -> VotingItem:
        """The item after an error, to be judged afresh: what may have got into the file is superseded."""
        with contextlib.suppress(
            OSError, UsageError
        ):  # the vote to come meets the same trouble and tells of it
            self.refresh()
        return self._item(item.key)

    def _add(self, item: VotingItem, event: VoteEvent) -> bool:
        with lock_file(self.path):
            self.refresh()
            fresh = self._versions[item.key] == item.version
            if fresh:
                append_event(self.path, event)
        self.refresh()
        return fresh


def apply_votes(records: Sequence[PreferenceRecord], path: Path) -> list[PreferenceRecord]:
    """The records with the judgements of the vote file, ranked by the consensus of the annotators.

    Only the votes of this file make the ranking. Skips do not count; a record without a vote keeps the
    ranking it had. A ranking that the votes changed is kept in `extra["ranking_before"]`. Judgements
    that a record had before stay, except those of the same people. Raises UsageError for votes that do
    not belong to these records.
    """
    by_key = records_by_key(records)
    votes: dict[str, list[Judgement]] = {key: [] for key in by_key}
    for (key, _), judgement in _current_judgements_of(by_key, path).items():
        votes[key].append(judgement)
    return [_add_judgements(path, record, votes[key]) for key, record in by_key.items()]


def _current_judgements_of(
    by_key: Mapping[str, PreferenceRecord], path: Path
) -> dict[tuple[str, str], Judgement]:
    events, notice = events_on(path, content_hashes(by_key, path))
    if not events:
        raise UsageError(
            f"{path}: no vote on any of these {len(by_key)} records. Give the votes on these, or vote."
        )
    if notice:
        print(notice)
    return current_judgements(events)


def _add_judgements(
    path: Path, record: PreferenceRecord, votes: list[Judgement]
) -> PreferenceRecord:
    names = {vote.annotator for vote in votes}
    kept = [old for old in record.judgements if old.kind != "human" or old.annotator not in names]
    try:
        judgements = {"judgements": [judgement.model_dump() for judgement in kept + votes]}
        checked = PreferenceRecord.model_validate(record.model_dump() | judgements)
    except ValidationError as error:
        raise UsageError(
            f"{path}: record {record_key(record)!r}: {explain_validation_error(error)}. Correct its lines."
        ) from None
    judged = record.model_copy(
        update={"judgements": checked.judgements, "extra": dict(record.extra)}
    )
    ranking = consensus(votes, len(record.answers))
    if ranking is not None and record.ranking not in (None, ranking):
        judged.extra.setdefault("ranking_before", record.ranking)
    judged.ranking = ranking or record.ranking
    return judged


def annotator_agreement(
    records: Sequence[PreferenceRecord], path: Path, annotators: Sequence[str] = ()
) -> Kappa:
    """Cohen's kappa of two annotators over the records that both judged and neither skipped.

    Each pair of answers of a record has a label from each annotator: first better, second better, or
    tie ("all bad" is a tie). Which answer is called first means nothing, so each pair goes in both
    ways round; else kappa would depend on the order in which a file lists its answers (n counts it
    once). Pairs of one record are not independent, so the interval is a bootstrap over records.
    `annotators` may be left out if the file has just two. Raises UsageError if there are not two, or
    if they have no record in common.
    """
    by_key = records_by_key(records)
    votes = _current_judgements_of(by_key, path)
    names = sorted({annotator for _, annotator in votes})
    pair = list(annotators) or names
    if len(set(pair)) != 2 or not set(pair) <= set(names):
        raise UsageError(
            f"{path}: agreement is between two annotators, and here are {names}. Name two of them."
        )
    labels: list[tuple[int, int, str]] = []
    for key in by_key:
        first, second = (getattr(votes.get((key, name)), "ranking", None) for name in pair)
        if first and second:
            labels += [(*both, key) for both in zip(_labels(first), _labels(second), strict=True)]
    if not labels:
        raise UsageError(
            f"{path}: {pair[0]} and {pair[1]} judged no record both. Let them rank the same ones."
        )
    kappa = cohen_kappa(*zip(*labels, strict=True))
    return replace(kappa, n=kappa.n // 2)


def _labels(ranking: Tiers) -> list[int]:
    """For every ordered pair of answers: 1 if the first is better, -1 if the second is, 0 for a tie."""
    rank = {place: tier for tier, places in enumerate(ranking) for place in places}
    return [
        int(np.sign(rank[second] - rank[first]))
        for first, second in itertools.permutations(sorted(rank), 2)
    ]
