"""Votes of people: a file of events that only grows, one JSON object a line, and what follows.

    {"record": "7", "content": "5f0c…", "judgement": {"annotator": "ana", "verdict": "tie", …}}
    {"record": "7", "content": "5f0c…", "undo": "ana"}

A vote counts once its line is on the disk. Nothing is rewritten: taking a vote back is an event
too, and of several judgements of a record by one annotator the last one counts. What is done, what
comes next and in which order answers are shown follow from the records and this file alone, so a
killed kernel goes on where it was. `content` is a hash of what was shown: votes on answers that
have changed since are refused. `widgets.AnswerRanker` is the way to vote, `rank_in_text` the one
without widgets.
"""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError, model_validator

from helpers.files import UsageError, parse_json

from .judgement import Judgement, StrictModel, explain_validation_error
from .record import PreferenceRecord, record_key

# Closes a half line, so that the next event has a line of its own; no JSON ends so.
CUT_MARK = b" <cut off>"
# As notebooks 02 and 06 call files of votes
VOTE_FILE = re.compile(r"(votes-.*|.*\.votes)\.jsonl")


class VoteEvent(StrictModel):
    """One line of a vote file: a judgement of a record, or the undo of an annotator's judgement."""

    record: str  # record_key of the record
    content: str  # content_hash of the record, as it was shown
    judgement: Judgement | None = None
    undo: str | None = None  # the annotator who takes the judgement back

    @model_validator(mode="after")
    def _check_one_of_two(self) -> "VoteEvent":
        if (self.judgement is None) == (self.undo is None):
            raise ValueError("an event has either a judgement or an undo")
        return self

    @property
    def annotator(self) -> str:
        return self.judgement.annotator if self.judgement else self.undo


# --- which record a vote is about -----------------------------------------------------------------


def stable_hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def content_hash(record: PreferenceRecord, folder: Path) -> str:
    """Hash what an annotator sees of a record: images, prompt, texts of the answers.

    Images count by their names, relative to the vote file's `folder` where the record was not read
    from a file, so that votes hold on another machine, too.
    """
    prompt = [[message.role, message.content] for message in record.prompt]
    answers = [answer.text for answer in record.answers]
    return stable_hash([record.image_names(folder), prompt, answers])[:16]


def content_hashes(records: Mapping[str, PreferenceRecord], vote_path: Path) -> dict[str, str]:
    """`content_hash` of the records by their keys, for the votes in `vote_path`."""
    return {key: content_hash(record, vote_path.parent) for key, record in records.items()}


def records_by_key(records: Iterable[PreferenceRecord]) -> dict[str, PreferenceRecord]:
    """Index records by key. Raises UsageError if two have the same: a vote could mean either."""
    by_key = {}
    for record in records:
        key = record_key(record)
        if by_key.setdefault(key, record) is not record:
            raise UsageError(
                f"two records are called {key!r}. Give each an id of its own, or remove one."
            )
    return by_key


# --- reading --------------------------------------------------------------------------------------


class VoteReader:
    """Reads a vote file again and again: only what was added since the last time is parsed.

    A click reads the file several times, and it may have thousands of votes. If its beginning is
    another one than it was, all of it is parsed anew.
    """

    def __init__(self, path: Path):
        self.path = path
        self._forget()

    def has_new(self) -> bool:
        """Has the file changed since it was read?"""
        return self._raw() != self._known + self._tail

    def _forget(self) -> None:
        self._known = b""  # whole lines that were parsed
        self._tail = b""  # what is behind them
        self._lines = 0  # in them
        self._events: list[VoteEvent] = []

    def read(self) -> tuple[list[VoteEvent], bytes]:
        """Return the events, oldest first, and the half line at the end (b"" if there is none).

        A half line is what a kernel left that was killed in mid-write: nobody was told that it
        counts, so it does not. Raises UsageError naming file and line for a whole line that is not
        an event.
        """
        raw = self._raw()
        if not raw.startswith(self._known):
            self._forget()
        end = raw.rfind(b"\n") + 1
        new = raw[len(self._known) : end].split(b"\n")[:-1]
        events = _parse_lines(self.path, new, self._lines)
        # nothing of it is kept if a line is not an event
        self._events += events
        self._lines += len(new)
        self._known = raw[:end]
        self._tail = raw[end:]
        if not _is_whole(self._tail):
            return list(self._events), self._tail
        return self._events + _parse_lines(self.path, [self._tail], self._lines), b""

    def _raw(self) -> bytes:
        return self.path.read_bytes() if self.path.exists() else b""


def read_events(path: Path) -> tuple[list[VoteEvent], bytes]:
    """Read the events of a file once, as `VoteReader.read` does."""
    return VoteReader(path).read()


def _parse_lines(path: Path, lines: Iterable[bytes], before: int) -> list[VoteEvent]:
    """Parse lines, of which so many were `before` in the file; empty and closed ones hold none."""
    events = []
    for number, line in enumerate(lines, start=before + 1):
        raw = line.strip()
        if raw and not raw.endswith(CUT_MARK):
            events.append(_parse_event(path, number, raw))
    return events


def _is_whole(line: bytes) -> bool:
    """True for a line that lacks only its newline: no beginning of a JSON object is itself one."""
    try:
        return isinstance(parse_json(line), dict)
    except UsageError:
        return False


def _parse_event(path: Path, number: int, raw: bytes) -> VoteEvent:
    try:
        return VoteEvent.model_validate(parse_json(raw))
    except ValidationError as error:
        reason = explain_validation_error(error)
    except UsageError as error:
        reason = str(error)
    raise UsageError(
        f"{path}:{number}: {reason.rstrip('.')}. Correct the line, or restore the file."
    )


def events_on(
    path: Path, contents: Mapping[str, str], reader: VoteReader | None = None
) -> tuple[list[VoteEvent], str]:
    """Read the events on records whose contents (by key) are given.

    reader: of the file, where it is read again and again. Also returns a notice if the file ends in
    half a line, else "".
    """
    events, tail = (reader or VoteReader(path)).read()
    events = [event for event in events if event.record in contents]
    for event in events:
        if event.content != contents[event.record]:
            raise UsageError(
                f"{path}: record {event.record!r} has other images, prompt or answers than when it "
                "was judged. Give the records that were judged, or start a new vote file."
            )
    if not tail:
        return events, ""
    return events, (
        f"{path} ended in half a line ({len(tail)} bytes, from a kill or a full disk); "
        "that vote does not count."
    )


def current_judgements(events: Iterable[VoteEvent]) -> dict[tuple[str, str], Judgement]:
    """(key of the record, annotator) → the judgement that counts, in the order of voting."""
    votes = {}
    for event in events:
        votes.pop((event.record, event.annotator), None)
        if event.judgement is not None:
            votes[event.record, event.annotator] = event.judgement
    return votes


# --- two copies of a file ---


def is_vote_file(path: Path) -> bool:
    """Is it a file of votes, by its name?"""
    return VOTE_FILE.fullmatch(path.name) is not None


def merge_votes(ours: bytes, theirs: bytes) -> bytes:
    """Return a file of votes with the lines that only `theirs` has behind all of `ours`.

    Each annotator votes in one place at a time, so that of an annotator's lines one file mostly has
    the beginning of the other's. Where both have gone on from the same beginning, ours come first,
    and what `theirs` says last counts. Between annotators the order makes no difference.
    """
    known, new = _lines_by_annotator(ours), _lines_by_annotator(theirs)
    missing = []
    for annotator, lines in new.items():
        missing += _missing_lines(known.get(annotator, []), lines)
    if not missing:
        return ours
    start = ours if not ours or ours.endswith(b"\n") else ours + b"\n"
    return start + b"".join(line + b"\n" for line in missing)


def _lines_by_annotator(raw: bytes) -> dict[str, list[bytes]]:
    """Return the whole lines of each annotator, in their order; "": of lines that name nobody."""
    found: dict[str, list[bytes]] = {}
    for line in raw.split(b"\n"):
        try:
            event = parse_json(line)
        except UsageError:
            # an empty line, or one that a kill cut short, which does not count
            continue
        parts = event if isinstance(event, dict) else {}
        judgement = parts.get("judgement")
        voted = judgement.get("annotator") if isinstance(judgement, dict) else None
        found.setdefault(str(parts.get("undo") or voted or ""), []).append(line)
    return found


def _missing_lines(ours: list[bytes], theirs: list[bytes]) -> list[bytes]:
    """Return the end of one annotator's lines that ours do not have."""
    pairs = zip(ours, theirs, strict=False)
    common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
    rest, own = theirs[common:], ours[common:]
    # of an earlier merge the beginning of it, or all, may stand at our end or inside
    for start in range(len(own)):
        overlap = own[start:]
        if overlap[: len(rest)] == rest:
            return []
        if rest[: len(overlap)] == overlap:
            return rest[len(overlap) :]
    return rest


# --- writing --------------------------------------------------------------------------------------


def append_event(path: Path, event: VoteEvent) -> None:
    """Add `event` to the file; when this returns, it is on the disk.

    Raises OSError if that failed (disk full, no permission). The event then does not count, unless
    only the confirmation failed; a later judgement of the record supersedes it either way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    before = path.read_bytes() if path.exists() else b""
    tail = before.rpartition(b"\n")[2]
    line = event.model_dump_json(exclude_defaults=True).encode() + b"\n"
    if tail:
        line = (b"\n" if _is_whole(tail) else CUT_MARK + b"\n") + line
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        # One write: a kill leaves all of the line, or its beginning.
        if os.write(descriptor, line) < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if not before and sys.platform != "win32":
        # A new file's name must be on the disk, too.
        descriptor = os.open(path.parent, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network drives cannot
            os.fsync(descriptor)
        os.close(descriptor)


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[None]:
    """Keep other kernels on the same file out between looking and writing.

    A kill gives the lock up. Where there are no locks (Windows, some network drives) two clicks in
    the same millisecond may both be written; the last one counts, as always.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        if sys.platform != "win32":
            import fcntl

            with contextlib.suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
        yield
