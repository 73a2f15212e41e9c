"""What one annotator still has to judge and in which order; what the votes of all of them say.

The records and the vote file (`helpers/data/vote_log.py`) are all the state there is.
`widgets.AnswerRanker` is the way to vote, `widgets.rank_in_text` the one without widgets.
"""

import contextlib
import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from pydantic import ValidationError

from helpers.files import UsageError
from helpers.statistics import Kappa, cohen_kappa

from .judgement import Judgement, VoteVerdict, consensus, explain_validation_error, tier_of_each
from .record import PreferenceRecord, record_key
from .vote_log import (
    VoteEvent,
    VoteReader,
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


# --- one annotator --------------------------------------------------------------------------------


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
        self,
        verdict: VoteVerdict,
        tiers: Tiers,
        criteria: Mapping[str, Sequence[int]],
    ) -> dict:
        """Turn what was said in the order of showing into fields of a Judgement, by place.

        Criteria without a 1 were not used and are left out. Raises UsageError for answers of one
        text with different ranks.
        """
        # One tier of all answers says that they are equal, whatever the words.
        if verdict == "ranked":
            self._check_equal_texts(tiers)
            if len(tiers) == 1:
                verdict = "tie"
        elif verdict == "skip":
            tiers = []
        else:
            tiers = [range(len(self.order))]
        # row[k] is of the answer shown k-th; a judgement has them by place.
        marks = {}
        for name, row in criteria.items():
            if any(row):
                marks[name] = [row[self.order.index(place)] for place in range(len(row))]
        ranking = []
        for tier in tiers:
            ranking.append(sorted(self.order[k] for k in tier))
        return {
            "verdict": verdict,
            "ranking": ranking or None,
            "order": self.order,
            "criteria": marks,
        }

    def _check_equal_texts(self, tiers: Tiers) -> None:
        texts = self.texts
        for one, other in itertools.combinations(tiers, 2):
            same = {texts[k] for k in one} & {texts[k] for k in other}
            if same:
                labels = [ANSWER_LABELS[k] for k, text in enumerate(texts) if text in same]
                raise UsageError(
                    f"answers {' and '.join(labels)} are the same: give them the same rank."
                )


class Votes:
    """The votes of one annotator in the file `path`, and what is left to judge of `records`.

    Records come in a random order, their answers too; both follow from `seed`, `annotator` and the
    record alone. Raises UsageError for records that cannot be told apart or have more answers than
    there are `ANSWER_LABELS`.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[PreferenceRecord],
        annotator: str,
        seed: int = 0,
    ) -> None:
        if not annotator.strip():
            raise UsageError(
                "annotator is empty. Give your name, or any other word that stays the same."
            )
        self.path = path
        self.annotator = annotator
        self.seed = seed
        self.records = records_by_key(records)
        # There is one letter for each answer on the screen.
        for key, record in self.records.items():
            n = len(record.answers)
            if n > len(ANSWER_LABELS):
                raise UsageError(
                    f"record {key!r} has {n} answers. Keep at most {len(ANSWER_LABELS)}."
                )
        self._contents = content_hashes(self.records, path)
        self._reader = VoteReader(path)
        self._is_counted = False  # all that the reader has read
        self.keys = sorted(self.records, key=self._draw)  # in the order of showing
        self.refresh()

    def _draw(self, *parts: object) -> str:
        return stable_hash([self.seed, self.annotator, *parts])

    def refresh(self) -> None:
        """Read the file again: another kernel may have voted."""
        if self._is_counted and not self._reader.has_new():
            return
        self._is_counted = False
        events, self.notice = events_on(self.path, self._contents, self._reader)
        # An undo is an event too: it raises the version of the item.
        own = [event for event in events if event.annotator == self.annotator]
        self._versions = Counter(event.record for event in own)
        # In the order of voting, so that undo finds the last one.
        self.judged = {key: judgement for (key, _), judgement in current_judgements(own).items()}
        self._is_counted = True

    @property
    def median_seconds(self) -> float | None:
        """Median seconds of the judgements that count; None before the first."""
        seconds = [vote.seconds for vote in self.judged.values() if vote.seconds is not None]
        return statistics.median(seconds) if seconds else None

    def progress(self) -> str:
        """One line: how many are done, how many of these were skipped, how long one takes."""
        parts = [f"{len(self.judged)} of {len(self.keys)}"]
        skipped = sum(judgement.verdict == "skip" for judgement in self.judged.values())
        if skipped:
            parts.append(f"{skipped} skipped")
        if self.median_seconds is not None:
            parts.append(f"{self.median_seconds:.1f} s each")
        return " · ".join(parts)

    def next(self) -> VotingItem | None:
        """Return the first record, in the order of showing, that is not judged; None at the end."""
        self.refresh()
        for key in self.keys:
            if key not in self.judged:
                return self._item(key)
        return None

    def _item(self, key: str) -> VotingItem:
        record = self.records[key]
        # A hash for each place: the order is random, and the same after a restart.
        order = sorted(range(len(record.answers)), key=lambda place: self._draw(key, place))
        return VotingItem(key, record, order, self._versions[key])

    def vote(
        self,
        item: VotingItem,
        verdict: VoteVerdict,
        tiers: Tiers = (),
        criteria: Mapping[str, Sequence[int]] = {},
        seconds: float | None = None,
    ) -> bool:
        """Put a judgement of `item` on the disk; if it was judged since it was shown, return False.

        Then nothing is written. `tiers` (for "ranked") and `criteria` (name → a 0 or 1 for each
        answer) are in the order of showing. Raises UsageError for answers of one text with
        different ranks, OSError as `append_event`.
        """
        judgement = Judgement(
            kind="human",
            annotator=self.annotator,
            **item.judge(verdict, tiers, criteria),
            seconds=seconds,
            time=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return self._add(item, judgement=judgement)

    def undo(self) -> VotingItem | None:
        """Take back the last judgement of this annotator and give its item again, or None."""
        self.refresh()
        if not self.judged:
            return None
        item = self._item(next(reversed(self.judged)))
        self._add(item, undo=self.annotator)
        return self._item(item.key)

    def renew(self, item: VotingItem) -> VotingItem:
        """Give the item again after an error: what may have got into the file is superseded."""
        # The vote to come meets the same trouble and tells of it.
        with contextlib.suppress(OSError, UsageError):
            self.refresh()
        return self._item(item.key)

    def _add(self, item: VotingItem, **said: object) -> bool:
        event = VoteEvent(record=item.key, content=self._contents[item.key], **said)
        with lock_file(self.path):
            self.refresh()
            # A second click, or another kernel, finds a higher version.
            fresh = self._versions[item.key] == item.version
            if fresh:
                append_event(self.path, event)
        self.refresh()
        return fresh


# --- all annotators -------------------------------------------------------------------------------


def apply_votes(records: Sequence[PreferenceRecord], path: Path) -> list[PreferenceRecord]:
    """Attach the judgements of the vote file, and rank by the consensus of the annotators.

    Only the votes of this file make the ranking. Skips do not count; a record without a vote keeps
    the ranking it had. A ranking that the votes changed is kept in `extra["ranking_before"]`.
    Judgements that a record had before stay, except those of the same people. Raises UsageError for
    votes that do not belong to these records.
    """
    by_key = records_by_key(records)
    votes = {key: [] for key in by_key}
    for (key, _), judgement in _current_judgements_of(by_key, path).items():
        votes[key].append(judgement)
    return [_add_judgements(path, record, votes[key]) for key, record in by_key.items()]


def _current_judgements_of(
    by_key: Mapping[str, PreferenceRecord],
    path: Path,
) -> dict[tuple[str, str], Judgement]:
    events, notice = events_on(path, content_hashes(by_key, path))
    if not events:
        raise UsageError(
            f"{path}: no vote on any of these {len(by_key)} records. "
            "Give the votes on these, or vote."
        )
    if notice:
        print(notice)
    return current_judgements(events)


def _add_judgements(
    path: Path,
    record: PreferenceRecord,
    votes: list[Judgement],
) -> PreferenceRecord:
    # The votes of this file replace earlier ones of the same people.
    names = {vote.annotator for vote in votes}
    kept = [old for old in record.judgements if old.kind != "human" or old.annotator not in names]
    judgements = [judgement.model_dump() for judgement in kept + votes]
    try:
        checked = PreferenceRecord.model_validate(record.model_dump() | {"judgements": judgements})
    except ValidationError as error:
        raise UsageError(
            f"{path}: record {record_key(record)!r}: {explain_validation_error(error)}. "
            "Correct its lines."
        ) from None
    update = {"judgements": checked.judgements}
    ranking = consensus(votes, len(record.answers))
    if ranking is not None:
        update["ranking"] = ranking
        if record.ranking not in (None, ranking):
            extra = dict(record.extra)
            extra.setdefault("ranking_before", record.ranking)
            update["extra"] = extra
    return record.model_copy(update=update)


def annotator_agreement(
    records: Sequence[PreferenceRecord],
    path: Path,
    annotators: Sequence[str] = (),
) -> Kappa:
    """Cohen's kappa of two annotators over the records that both judged and neither skipped.

    Each pair of answers of a record has a label from each annotator: first better, second better,
    or tie ("all bad" is a tie). Which answer is called first means nothing, so each pair goes in
    both ways round; else kappa would depend on the order in which a file lists its answers (n
    counts it once). Pairs of one record are not independent, so the interval is a bootstrap over
    records. `annotators` may be left out if the file has just two. Raises UsageError if there are
    not two, or if they have no record in common.
    """
    by_key = records_by_key(records)
    votes = _current_judgements_of(by_key, path)
    names = sorted({annotator for _, annotator in votes})
    pair = list(annotators) or names
    if len(set(pair)) != 2 or not set(pair) <= set(names):
        raise UsageError(
            f"{path}: agreement is between two annotators, and here are {names}. Name two of them."
        )
    labels = []
    for key in by_key:
        rankings = [votes[key, name].ranking for name in pair if (key, name) in votes]
        if len(rankings) == 2 and all(rankings):
            first, second = map(_pair_labels, rankings)
            labels += [(*both, key) for both in zip(first, second, strict=True)]
    if not labels:
        raise UsageError(
            f"{path}: {pair[0]} and {pair[1]} judged no record both. Let them rank the same ones."
        )
    # Both ways round, each pair is counted twice.
    kappa = cohen_kappa(*zip(*labels, strict=True))
    return replace(kappa, n=kappa.n // 2)


def _pair_labels(ranking: Tiers) -> list[int]:
    """Label every ordered pair of answers: 1 if the first is better, -1 if the second, 0: a tie."""
    tiers = tier_of_each(ranking)
    return [
        int(np.sign(tiers[second] - tiers[first]))
        for first, second in itertools.permutations(sorted(tiers), 2)
    ]
