"""The file of votes: one event a line, written and synced before it counts."""

import json
import os

import pytest
from hypothesis import given, settings, strategies as st
from made_up_votes import event, records

from helpers.data import vote_log as module
from helpers.data.vote_log import (
    VoteEvent,
    append_event,
    current_judgements,
    is_vote_file,
    merge_votes,
    read_events,
)
from helpers.data.votes import Votes
from helpers.files import UsageError


def test_a_line_is_an_event_and_reads_back(path):
    first, second = event("r0", seconds=1.5, order=[1, 0]), event("r1", "ben", "ranked", [[1], [0]])
    append_event(path, first)
    append_event(path, second)
    assert read_events(path) == ([first, second], b"")
    line = json.loads(path.read_text().splitlines()[0])
    assert (
        line["record"] == "r0"
        and line["judgement"]["verdict"] == "tie"
        and line["judgement"]["order"] == [1, 0]
    )


def test_every_half_line_is_ignored_and_damages_no_later_vote(path):
    first, second, third = event("r0"), event("r1", annotator="zoë"), event("r2")
    append_event(path, first)
    start = path.stat().st_size
    append_event(path, second)
    whole = path.read_bytes()
    for end in range(start, len(whole)):
        path.write_bytes(whole[:end])
        complete = end == len(whole) - 1  # only the newline is missing: nothing of the vote is lost
        kept = [first, second] if complete else [first]
        assert read_events(path) == (kept, b"" if complete else whole[start:end])
        append_event(path, third)
        assert read_events(path) == ([*kept, third], b""), f"cut after {end - start} bytes"
        assert path.read_bytes().startswith(whole[:end]), "what was there stays"


@given(
    cuts=st.lists(st.integers(1, 400), min_size=1, max_size=5), name=st.text(min_size=1, max_size=5)
)
@settings(max_examples=40, deadline=None)
def test_half_lines_one_after_the_other(tmp_path_factory, cuts, name):
    """Killed in the line that closes a half line, and again."""
    path = tmp_path_factory.mktemp("cuts") / "votes.jsonl"
    last = VoteEvent(record=name, content="0", undo="ana")
    append_event(path, last)
    for cut in cuts:
        before = path.read_bytes()
        append_event(path, last)
        path.write_bytes(path.read_bytes()[: len(before) + cut])
    append_event(path, last)
    events, tail = read_events(path)
    assert (
        tail == b"" and set(map(str, events)) == {str(last)} and 2 <= len(events) <= len(cuts) + 2
    )


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"record": "r0", "content": "0"}', "an event has either a judgement or an undo"),
        ('{"record": "r0", "content": "0", "undo": 5}', "undo: Input should be a valid string"),
        ('{"record": "r0", ', "not JSON"),
        ("[1]", "valid dictionary"),
        ('{"record": "r0", "content": "0", "undo": "a", "undo": "b"}', "stands twice"),
    ],
)
def test_a_whole_line_that_is_no_event_is_an_error_with_its_place(path, line, reason):
    append_event(path, event())
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(UsageError, match=rf"votes\.jsonl:2: .*{reason}.*Correct the line"):
        read_events(path)


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_reader_that_knows_the_beginning_reads_as_one_that_knows_nothing(tmp_path_factory, data):
    """Whatever happens to the file between: lines added, cut short, or all of them replaced."""
    path = tmp_path_factory.mktemp("again") / "votes.jsonl"
    reader = module.VoteReader(path)
    lines = [event(f"r{number}").model_dump_json().encode() + b"\n" for number in range(4)]
    raw = before = b""
    for _ in range(6):
        match data.draw(st.sampled_from(["add", "cut", "replace"])):
            case "add":
                raw += b"".join(data.draw(st.lists(st.sampled_from(lines), max_size=3)))
            case "cut":
                raw = raw[: data.draw(st.integers(0, len(raw)))]
            case "replace":
                raw = data.draw(st.sampled_from(lines)) + raw[len(lines[0]) :]
        path.write_bytes(raw)
        try:
            assert reader.has_new() == (raw != before)
            expected, before = read_events(path), raw
        except UsageError as error:
            with pytest.raises(UsageError) as raised:
                reader.read()
            assert str(raised.value) == str(error)
        else:
            assert reader.read() == expected
            assert not reader.has_new() and reader.read() == expected


def test_a_click_parses_only_what_is_new(path, monkeypatch):
    """A file of thousands of votes is read several times a click."""
    votes = Votes(path, records(30), "ana")
    for _ in range(20):
        votes.vote(votes.next(), "tie")
    again = Votes(path, records(30), "ana")
    parsed, parse = [], module._parse_event
    monkeypatch.setattr(
        module, "_parse_event", lambda *given: parsed.append(given[1]) or parse(*given)
    )
    again.vote(again.next(), "tie")
    assert again.next() and parsed == [21]


def test_a_vote_counts_only_after_write_and_sync(path, monkeypatch):
    calls = []
    write, sync = os.write, os.fsync
    monkeypatch.setattr(
        module.os, "write", lambda fd, data: calls.append(("write", data)) or write(fd, data)
    )
    monkeypatch.setattr(
        module.os, "fsync", lambda fd: calls.append(("sync", os.fstat(fd).st_ino)) or sync(fd)
    )
    append_event(path, event())
    file, folder = path.stat().st_ino, path.parent.stat().st_ino
    assert calls == [("write", path.read_bytes()), ("sync", file), ("sync", folder)], (
        "one write, then both syncs"
    )
    calls.clear()
    append_event(path, event("r1"))
    assert [call[0] for call in calls] == ["write", "sync"], "the folder only when the file is new"


def test_a_disk_that_fills_up_in_mid_line(path, monkeypatch):
    votes = Votes(path, records(3), "ana")
    item = votes.next()
    write = os.write
    monkeypatch.setattr(module.os, "write", lambda fd, data: write(fd, data[:40]))
    with pytest.raises(OSError, match="No space left"):
        votes.vote(item, "tie")
    monkeypatch.undo()
    assert (
        not Votes(path, records(3), "ana").judged
        and "half a line (40 bytes" in Votes(path, records(3), "ana").notice
    )
    assert votes.vote(votes.renew(item), "skip")
    assert {key: vote.verdict for key, vote in votes.judged.items()} == {
        item.key: "skip"
    } and not votes.notice


def test_after_a_failed_sync_the_next_click_supersedes(path, monkeypatch):
    """The line may be in the file all the same; the annotator was told that it does not count."""
    votes = Votes(path, records(3), "ana")
    item = votes.next()

    def fail(_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(module.os, "fsync", fail)
    with pytest.raises(OSError, match="Input/output"):
        votes.vote(item, "tie")
    monkeypatch.undo()
    assert votes.vote(votes.renew(item), "ranked", [[1], [0]])
    assert votes.judged[item.key].verdict == "ranked" and len(votes.judged) == 1


# --- two copies of a file: whatever the order of copying, each annotator's votes all count ---


def line(record, annotator, undo):
    event = {"record": str(record), "content": "c"}
    if undo:
        event["undo"] = annotator
    else:
        event["judgement"] = {"kind": "human", "annotator": annotator, "verdict": "skip"}
    return json.dumps(event).encode() + b"\n"


def counted(raw, tmp_path_factory):
    path = tmp_path_factory.mktemp("votes") / "votes-x.jsonl"
    path.write_bytes(raw)
    return set(current_judgements(read_events(path)[0]))


VOTES = st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=8)


@given(ana=VOTES, ben=VOTES, cuts=st.lists(st.integers(0, 8), max_size=4))
def test_a_drive_has_what_each_has_on_their_own_machine(tmp_path_factory, ana, ben, cuts):
    """Copies are made at any moment, also when one has voted on since."""
    files = {}
    for name, votes in (("ana", ana), ("ben", ben)):
        files[name] = [line(record, name, undo) for record, undo in votes]
    drive = b""
    for cut in cuts:
        for name in ("ana", "ben"):
            drive = merge_votes(drive, b"".join(files[name][:cut]))
    for name in ("ben", "ana"):
        drive = merge_votes(drive, b"".join(files[name]))
    alone = [counted(b"".join(lines), tmp_path_factory) for lines in files.values()]
    assert counted(drive, tmp_path_factory) == alone[0] | alone[1]
    # once more changes nothing
    for lines in files.values():
        assert merge_votes(drive, b"".join(lines)) == drive


def test_one_person_on_two_machines_has_both_lists_once():
    both = [line(n, "ana", False) for n in range(2)]
    first, second = [*both, line(2, "ana", False)], [*both, line(3, "ana", False)]
    drive = merge_votes(b"".join(first), b"".join(second))
    assert drive == b"".join([*first, second[-1]])
    assert merge_votes(drive, b"".join(second)) == drive
    more = [*second, line(4, "ana", False)]
    assert merge_votes(drive, b"".join(more)) == drive + more[-1]


def test_half_a_line_is_left_where_it_is():
    ours = line(1, "ana", False) + b'{"record": "2'
    theirs = line(1, "ben", False) + b'{"record": "3'
    assert merge_votes(ours, theirs) == ours + b"\n" + line(1, "ben", False)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("votes-tiny-0.jsonl", True),
        ("dpo-seed-0-1a.votes.jsonl", True),
        ("train.jsonl", False),
        ("dpo-seed-0-1a.jsonl", False),
    ],
)
def test_files_of_votes_are_known_by_their_names(tmp_path, name, expected):
    assert is_vote_file(tmp_path / name) == expected
