"""Votes of people: a file of events that only grows, one JSON object a line, and what follows from it.

    {"record": "7", "content": "5f0c…", "judgement": {"kind": "human", "annotator": "ana", "verdict": "tie", …}}
    {"record": "7", "content": "5f0c…", "undo": "ana"}

A vote counts once its line is on the disk. Nothing is rewritten: taking a vote back is an event too,
and of several judgements of a record by one annotator the last one counts. What is done, what comes
next and in which order answers are shown follow from the records and this file alone, so a killed
kernel goes on where it was. `content` is a hash of what was shown: votes on answers that have changed
since are refused. `widgets.Ranking` is the way to vote, `rank_in_text` the one without widgets.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

import numpy as np
from IPython.display import display
from pydantic import ValidationError, model_validator

from helpers.preferences import Judgement, PreferenceRecord, Strict, consensus, explain, image_paths, record_key
from helpers.runtime import UsageError, open_image, parse_json
from helpers.statistics import Kappa, cohen_kappa

LABELS = "ABCDEF"  # the answers as they are shown; nobody ranks more than six at a time
CUT = b" <cut off>"  # closes a half line, so that the next event has a line of its own; no JSON ends so
Tiers = Sequence[Sequence[int]]  # best first, ties together, in the order of showing
Verdict = Literal["ranked", "tie", "all bad", "skip"]


class Event(Strict):
    """One line of a vote file: a judgement of a record, or the undo of an annotator's judgement."""

    record: str  # record_key of the record
    content: str  # content_of the record, as it was shown
    judgement: Judgement | None = None
    undo: str | None = None  # the annotator who takes the judgement back

    @model_validator(mode="after")
    def _is_one_of_two(self) -> "Event":
        if (self.judgement is None) == (self.undo is None):
            raise ValueError("an event has either a judgement or an undo")
        return self

    @property
    def annotator(self) -> str:
        return self.judgement.annotator if self.judgement else self.undo


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def content_of(record: PreferenceRecord) -> str:
    """Hash of what an annotator sees of a record: images, prompt, texts of the answers."""
    return _hash([record.images, [[m.role, m.content] for m in record.prompt], [a.text for a in record.answers]])[:16]


def keyed(records: Iterable[PreferenceRecord]) -> dict[str, PreferenceRecord]:
    """Records by key. Raises UsageError if two have the same, for a vote could mean either."""
    by_key: dict[str, PreferenceRecord] = {}
    for record in records:
        if by_key.setdefault(key := record_key(record), record) is not record:
            raise UsageError(f"two records are called {key!r}. Give each an id of its own, or remove one.")
    return by_key


def read_events(path: Path) -> tuple[list[Event], bytes]:
    """The events of a vote file, oldest first, and the half line at its end (b"" if there is none).

    A half line is what a kernel left that was killed in mid-write: nobody was told that it counts, so
    it does not. Raises UsageError naming file and line for a whole line that is not an event.
    """
    lines = path.read_bytes().split(b"\n") if path.exists() else [b""]
    tail = b"" if _is_whole(lines[-1]) else lines.pop()
    numbered = [(number, raw.strip()) for number, raw in enumerate(lines, start=1)]
    return [_parse_event(path, number, raw) for number, raw in numbered if raw and not raw.endswith(CUT)], tail


def _is_whole(line: bytes) -> bool:
    """True for a line that lacks only its newline: no beginning of a JSON object is itself one."""
    try:
        return isinstance(parse_json(line), dict)
    except UsageError:
        return False


def _parse_event(path: Path, number: int, raw: bytes) -> Event:
    try:
        return Event.model_validate(parse_json(raw))
    except (ValidationError, UsageError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise UsageError(f"{path}:{number}: {reason.rstrip('.')}. Correct the line, or restore the file.") from None


def append(path: Path, event: Event) -> None:
    """Add `event` to the file; when this returns, it is on the disk.

    Raises OSError if that failed (disk full, no permission). The event then does not count, unless
    only the confirmation failed; a later judgement of the record supersedes it either way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    tail = before.rpartition(b"\n")[2]
    start = b"" if not tail else b"\n" if _is_whole(tail) else CUT + b"\n"
    line = start + event.model_dump_json(exclude_defaults=True).encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o644)
    try:
        if os.write(descriptor, line) < len(line):  # one write: a kill leaves all of the line, or its beginning
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not before and sys.platform != "win32":  # a new file's name must be on the disk, too
        descriptor = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network drives cannot
            os.fsync(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keep other kernels on the same file out between looking and writing; a kill gives the lock up.

    Where there are no locks (Windows, some network drives) two clicks in the same millisecond may
    both be written; the last one counts, as always.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield


def standing(events: Iterable[Event]) -> dict[tuple[str, str], Judgement]:
    """(key of the record, annotator) → the judgement that counts, in the order of voting."""
    votes: dict[tuple[str, str], Judgement] = {}
    for event in events:
        votes.pop((event.record, event.annotator), None)
        if event.judgement is not None:
            votes[event.record, event.annotator] = event.judgement
    return votes


def _events_on(path: Path, contents: Mapping[str, str]) -> tuple[list[Event], str]:
    """The events on records whose contents (by key) are given, and a notice if the file ends in half a line."""
    events, tail = read_events(path)
    events = [event for event in events if event.record in contents]
    for event in events:
        if event.content != contents[event.record]:
            raise UsageError(
                f"{path}: record {event.record!r} has other images, prompt or answers than when it was judged. "
                "Give the records that were judged, or start a new vote file."
            )
    notice = f"{path} ended in half a line ({len(tail)} bytes, from a kill or a full disk); that vote does not count."
    return events, notice if tail else ""


@dataclass(frozen=True)
class Item:
    """A record as it is shown to one annotator."""

    key: str
    record: PreferenceRecord
    order: list[int]  # order[k]: place in `record.answers` of the answer shown k-th
    version: int  # how many events this annotator had on it when it was shown

    @property
    def texts(self) -> list[str]:
        """The answers as they are shown: "A", "B", …"""
        return [self.record.answers[place].text for place in self.order]

    def judge(self, verdict: Verdict, tiers: Tiers, criteria: Mapping[str, Sequence[int]]) -> dict[str, object]:
        """Fields of a Judgement, by place in `answers`, from what was said in the order of showing.

        Criteria without a 1 were not used and are left out. Raises UsageError for answers of one text
        with different ranks.
        """
        shown = {"ranked": tiers, "skip": []}.get(verdict, [range(len(self.order))])
        for one, other in itertools.combinations(shown, 2):
            if same := {self.texts[k] for k in one} & {self.texts[k] for k in other}:
                labels = [LABELS[k] for k, text in enumerate(self.texts) if text in same]
                raise UsageError(f"answers {' and '.join(labels)} are the same: give them the same rank.")
        marks = {name: [row[self.order.index(place)] for place in range(len(row))] for name, row in criteria.items()}
        return {
            "verdict": "tie" if verdict == "ranked" and len(shown) == 1 else verdict,
            "ranking": [sorted(self.order[k] for k in tier) for tier in shown] or None,
            "order": self.order,
            "criteria": {name: row for name, row in marks.items() if any(row)},
        }


class Votes:
    """The votes of one annotator in the file `path`, and what is left to judge of `records`.

    Records come in a random order, their answers too; both follow from `seed`, `annotator` and the
    record alone. Image paths are relative to `records_path` (default: to the vote file). Raises
    UsageError for records that cannot be told apart or have more answers than there are LABELS.
    """

    def __init__(
        self,
        path: Path,
        records: Sequence[PreferenceRecord],
        annotator: str,
        seed: int = 0,
        records_path: Path | None = None,
    ):
        self.path, self.annotator, self.seed, self.records_path = path, annotator, seed, records_path or path
        if not annotator.strip():
            raise UsageError("annotator is empty. Give your name, or any other word that stays the same.")
        self.records = keyed(records)
        for key, record in self.records.items():
            if len(record.answers) > len(LABELS):
                raise UsageError(f"record {key!r} has {len(record.answers)} answers. Keep at most {len(LABELS)}.")
        self._contents = {key: content_of(record) for key, record in self.records.items()}
        self.keys = sorted(self.records, key=self._draw)  # in the order of showing
        self.refresh()

    def _draw(self, *parts: object) -> str:
        return _hash([self.seed, self.annotator, *parts])

    def refresh(self) -> None:
        """Read the file again: another kernel may have voted."""
        events, self.notice = _events_on(self.path, self._contents)
        own = [event for event in events if event.annotator == self.annotator]
        self._versions = Counter(event.record for event in own)
        self.judged = {key: judgement for (key, _), judgement in standing(own).items()}  # in the order of voting

    @property
    def median_seconds(self) -> float | None:
        """Median seconds of the judgements that count; None before the first."""
        seconds = [judgement.seconds for judgement in self.judged.values() if judgement.seconds is not None]
        return float(np.median(seconds)) if seconds else None

    def progress(self) -> str:
        """One line: how many are done, how many of these were skipped, how long one takes."""
        skipped = sum(judgement.verdict == "skip" for judgement in self.judged.values())
        line = f"{len(self.judged)} of {len(self.keys)}" + (f" · {skipped} skipped" if skipped else "")
        return line + (f" · {self.median_seconds:.1f} s each" if self.median_seconds is not None else "")

    def next(self) -> Item | None:
        """The first record in the order of showing that this annotator has not judged; None at the end."""
        self.refresh()
        return next((self._item(key) for key in self.keys if key not in self.judged), None)

    def _item(self, key: str) -> Item:
        record = self.records[key]
        order = sorted(range(len(record.answers)), key=lambda place: self._draw(key, place))
        return Item(key, record, order, self._versions[key])

    def vote(
        self,
        item: Item,
        verdict: Verdict,
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
        return self._add(item, Event(record=item.key, content=self._contents[item.key], judgement=judgement))

    def undo(self) -> Item | None:
        """Take back the last judgement of this annotator and give its item again; None if there is none."""
        self.refresh()
        if not self.judged:
            return None
        item = self._item(next(reversed(self.judged)))
        self._add(item, Event(record=item.key, content=self._contents[item.key], undo=self.annotator))
        return self._item(item.key)

    def again(self, item: Item) -> Item:
        """The item after an error, to be judged afresh: what may have got into the file is superseded."""
        with contextlib.suppress(OSError, UsageError):  # the vote to come meets the same trouble and tells of it
            self.refresh()
        return self._item(item.key)

    def _add(self, item: Item, event: Event) -> bool:
        with _locked(self.path):
            self.refresh()
            fresh = self._versions[item.key] == item.version
            if fresh:
                append(self.path, event)
        self.refresh()
        return fresh


def apply(records: Sequence[PreferenceRecord], path: Path) -> list[PreferenceRecord]:
    """The records with the judgements of the vote file, ranked by the consensus of the annotators.

    Only the votes of this file make the ranking. Skips do not count; a record without a vote keeps the
    ranking it had. A ranking that the votes changed is kept in `extra["ranking_before"]`. Judgements
    that a record had before stay, except those of the same people. Raises UsageError for votes that do
    not belong to these records.
    """
    by_key = keyed(records)
    votes: dict[str, list[Judgement]] = {key: [] for key in by_key}
    for (key, _), judgement in _standing_on(by_key, path).items():
        votes[key].append(judgement)
    return [_judged(path, record, votes[key]) for key, record in by_key.items()]


def _standing_on(by_key: Mapping[str, PreferenceRecord], path: Path) -> dict[tuple[str, str], Judgement]:
    events, notice = _events_on(path, {key: content_of(record) for key, record in by_key.items()})
    if not events:
        raise UsageError(f"{path}: no vote on any of these {len(by_key)} records. Give the votes on these, or vote.")
    if notice:
        print(notice)
    return standing(events)


def _judged(path: Path, record: PreferenceRecord, votes: list[Judgement]) -> PreferenceRecord:
    names = {vote.annotator for vote in votes}
    kept = [old for old in record.judgements if old.kind != "human" or old.annotator not in names]
    try:
        judgements = {"judgements": [judgement.model_dump() for judgement in kept + votes]}
        judged = PreferenceRecord.model_validate(record.model_dump() | judgements)
    except ValidationError as error:
        raise UsageError(f"{path}: record {record_key(record)!r}: {explain(error)}. Correct its lines.") from None
    ranking = consensus(votes, len(record.answers))
    if ranking is not None and record.ranking not in (None, ranking):
        judged.extra.setdefault("ranking_before", record.ranking)
    judged.ranking = ranking or record.ranking
    return judged


def agreement(records: Sequence[PreferenceRecord], path: Path, annotators: Sequence[str] = ()) -> Kappa:
    """Cohen's kappa of two annotators over the records that both judged and neither skipped.

    Each pair of answers of a record has a label from each annotator: first better, second better, or
    tie ("all bad" is a tie). Which answer is called first means nothing, so each pair goes in both
    ways round; else kappa would depend on the order in which a file lists its answers (n counts it
    once). Pairs of one record are not independent, so the interval is a bootstrap over records.
    `annotators` may be left out if the file has just two. Raises UsageError if there are not two, or
    if they have no record in common.
    """
    by_key = keyed(records)
    votes = _standing_on(by_key, path)
    names = sorted({annotator for _, annotator in votes})
    pair = list(annotators) or names
    if len(set(pair)) != 2 or not set(pair) <= set(names):
        raise UsageError(f"{path}: agreement is between two annotators, and here are {names}. Name two of them.")
    labels: list[tuple[int, int, str]] = []
    for key in by_key:
        first, second = (getattr(votes.get((key, name)), "ranking", None) for name in pair)
        if first and second:
            labels += [(*both, key) for both in zip(_labels(first), _labels(second), strict=True)]
    if not labels:
        raise UsageError(f"{path}: {pair[0]} and {pair[1]} judged no record both. Let them rank the same ones.")
    kappa = cohen_kappa(*zip(*labels, strict=True))
    return replace(kappa, n=kappa.n // 2)


def _labels(ranking: Tiers) -> list[int]:
    """For every ordered pair of answers: 1 if the first is better, -1 if the second is, 0 for a tie."""
    rank = {place: tier for tier, places in enumerate(ranking) for place in places}
    return [int(np.sign(rank[second] - rank[first])) for first, second in itertools.permutations(sorted(rank), 2)]


def completed(tiers: Tiers, n: int, joined: bool = False) -> Tiers | None:
    """Tiers of `n` answers with the only one left put last (`joined`: level with the last); None while more are.

    completed([[1]], 2) → [[1], [0]];  completed([[1], [0]], 3, joined=True) → [[1], [0, 2]]
    """
    left = [k for k in range(n) if not any(k in tier for tier in tiers)]
    if len(left) > 1:
        return None
    if left and joined:
        return [*tiers[:-1], [*tiers[-1], *left]]
    return [*tiers, left] if left else tiers


def prompt_text(record: PreferenceRecord) -> str:
    """The only message, or a longer conversation with its roles."""
    if len(record.prompt) == 1:
        return record.prompt[0].content
    return "\n".join(f"{message.role}: {message.content}" for message in record.prompt)


def rank_in_text(votes: Votes, ask: Callable[[str], str] = input) -> None:
    """Rank by typing, where widgets do not appear: the same votes, in the same order, in the same file.

    `ask` gets the question and gives the reply. Stops at the end, and at "q".
    """
    item = votes.next()
    while item is not None:
        _print(item, votes)
        started = time.monotonic()
        reply = ask("Best first (b>a=c), t all equal, x all bad, s skip, u undo, q stop: ").strip().lower()
        if reply == "q":
            return
        try:
            if reply == "u":
                item = votes.undo() or item
                continue
            votes.vote(item, *parse_reply(reply, len(item.order)), seconds=round(time.monotonic() - started, 2))
            item = votes.next()
        except (UsageError, OSError) as error:
            print(f"Not counted: {error}")
            item = votes.again(item)
    print(f"{votes.progress()}: all are judged.")


def _print(item: Item, votes: Votes) -> None:
    print(f"\n{votes.progress()}\n{votes.notice}")
    for path in image_paths(votes.records_path, item.record):
        print(path)
        try:
            image = open_image(path)
            image.thumbnail((640, 480))
            display(image)
        except UsageError as error:
            print(f"{error} Skip it (s).")
    answers = [f"[{label}] {text}" for label, text in zip(LABELS, item.texts, strict=False)]
    print("\n\n".join([prompt_text(item.record), *answers]))


def parse_reply(reply: str, n: int) -> tuple[Verdict, Tiers]:
    """A typed vote on `n` answers: "b>a=c" → ("ranked", [[1], [0, 2]]); a single answer left out comes last.

    Raises UsageError for anything but letters in order of preference, t, x or s.
    """
    if reply in ("t", "x", "s"):
        return {"t": "tie", "x": "all bad", "s": "skip"}[reply], []
    clean = re.sub("[ >,]", "", reply)
    tiers = [
        [LABELS.lower().find(letter) for letter in re.sub("=", "", tier)] for tier in re.findall(".(?:=.)*", clean)
    ]
    ranking = completed(tiers, n)
    if not re.fullmatch("[a-f](=?[a-f])*", clean) or sorted(itertools.chain(*(ranking or []))) != list(range(n)):
        raise UsageError(f"{reply!r} is no vote. Type the letters, best first, = between equals: b>a=c.")
    return "ranked", ranking
