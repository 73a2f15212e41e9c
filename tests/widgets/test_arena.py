"""The blind arena's widget: what the browser gets before Reveal, and a kill in between."""

import os
import random
import signal
from contextlib import suppress

import pytest
from made_up_matches import NAMES, make

from helpers.data.preferences import read_records
from helpers.data.vote_log import read_events
from helpers.data.votes import Votes
from helpers.evaluation import arena
from helpers.files import UsageError
from helpers.statistics import proportion
from helpers.widgets import Arena

SECRETS = [*NAMES, "match", "group 0"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arena" / "votes.jsonl"


@pytest.fixture
def widget(tmp_path, path):
    """Make a widget; `pause` off, since scripts do not double-click."""
    return lambda records, annotator="ana", **options: Arena(
        Votes(path, records, annotator), **({"pause": 0} | options)
    )


def click(shown, *keys):
    for key in keys:
        names = {"t": "tie", "x": "all bad", "s": "skip", "u": "undo"}
        (shown.choices["ab".index(key)] if key in "ab" else shown.buttons[names[key]]).click()


def choose(shown, name):
    """Click the answer of this model, as somebody would who recognizes it."""
    shown.choices[
        [shown.item.record.answers[i].model for i in shown.item.order].index(name)
    ].click()


def states(box):
    yield from (part.get_state() for part in (box, box.layout))
    for child in getattr(box, "children", ()):
        yield from states(child)


def test_it_reads_like_an_arena_and_votes_like_a_ranking(tmp_path, path, widget):
    shown = widget(make(tmp_path, 5))
    assert [b.description for b in shown.choices] == ["A is better (a)", "B is better (b)"]
    assert [shown.buttons[name].description for name in ("tie", "all bad")] == [
        "Tie (t)",
        "Both bad (x)",
    ]
    first = shown.item
    click(shown, "b", "t", "x", "s", "u", "s")
    events = read_events(path)[0]
    assert [e.judgement.verdict if e.judgement else "undo" for e in events] == (
        ["ranked", "tie", "all bad", "skip", "undo", "skip"]
    )
    assert events[0].judgement.ranking == [[first.order[1]], [first.order[0]]]
    assert "4 of 5 · 1 skipped" in shown.progress.value


def test_a_double_click_counts_once(tmp_path, path, widget):
    seconds = [0.0]
    shown = widget(make(tmp_path), pause=60, clock=lambda: seconds[0])
    seconds[0] = 61.0
    click(shown, "a", "a")
    assert len(read_events(path)[0]) == 1 and "did not count" in shown.message.value


def test_nothing_tells_the_models_before_reveal(tmp_path, widget, capsys):
    shown = widget(make(tmp_path, 8))
    capsys.readouterr()
    shown.show()
    script = capsys.readouterr().out
    for key in "abtxsu":
        sent = f"{list(states(shown.box))}{script}{shown.state}"
        assert "old answer" in sent and not [secret for secret in SECRETS if secret in sent]
        assert "won" not in shown.table.value and shown.state["standings"] is None
        click(shown, key)
        shown.export_button.click()
    assert "4 judged records" in shown.exported.value and not [
        s for s in SECRETS if s in shown.exported.value
    ]
    shown.reveal_button.click()
    assert all(name in shown.table.value and name in shown.state["standings"] for name in NAMES)
    assert "won" in shown.table.value and shown.reveal_button.disabled


def test_votes_after_reveal_are_counted_as_not_blind_over_a_restart(tmp_path, path, widget):
    records = make(tmp_path, 6)
    ana = widget(records)
    choose(ana, NAMES[0])
    click(ana, "t")
    ana.reveal_button.click()
    assert ana.standings.not_blind == 0 and ana.state["revealed"]
    choose(ana, NAMES[0])
    assert (
        ana.standings.not_blind == 1
        and ana.standings.wins == (0, 2)
        and "so not blind: 1" in ana.table.value
    )
    again = widget(records)
    assert again.state["revealed"] and NAMES[0] in again.table.value, "nobody can unsee"
    click(again, "u", "u", "t")
    assert again.standings.not_blind == 1, "one judged anew, one taken back"
    arena.reveal(again.votes)
    assert arena.standings(records, path).not_blind == 1, "the first look counts"
    ben = widget(records, "ben")
    assert not ben.state["revealed"] and NAMES[0] not in f"{list(states(ben.box))}"
    click(ben, "t")
    assert arena.standings(records, path).not_blind == 1
    ben.reveal_button.click()
    click(ben, "t")
    assert arena.standings(records, path).not_blind == 2


def test_reveal_before_the_first_vote_and_export_without_one_say_so(tmp_path, widget):
    shown = widget(make(tmp_path))
    shown.export_button.click()
    assert "Error" in shown.exported.value and "no vote on any" in shown.exported.value
    shown.reveal_button.click()
    assert "no vote on any" in shown.table.value
    click(shown, "s")
    assert "no vote yet" in shown.table.value and "skipped 1" in shown.table.value
    shown.export_button.click()
    assert "nothing to export" in shown.exported.value


def test_the_export_is_the_data_of_a_next_round(tmp_path, path, widget):
    records = make(tmp_path, 5)
    target = tmp_path / "some" / "other" / "judged.jsonl"
    shown = widget(records)
    assert shown.export_path == path.with_suffix(".judged.jsonl")
    shown.export_path = target
    chosen = []
    for _ in range(2):
        chosen.append((shown.item.key, f"new answer to {shown.item.key}"))
        choose(shown, NAMES[1])
    click(shown, "t", "s")
    shown.export_button.click()
    assert (
        str(target) in shown.exported.value
        and "3 judged records, 2 with a better answer" in shown.exported.value
    )
    assert "2 left out" in shown.exported.value
    written = read_records(target)
    pairs = {record.id: [pair.chosen.text for pair in record.pairs()] for record in written}
    assert len(pairs) == 3 and all(pairs[key] == [text] for key, text in chosen)
    for record in written:
        assert len(record.judgements) == 1 and record.image_paths[0].exists()
    for source in (path, tmp_path / "arena" / "records.jsonl"):
        before = source.read_bytes()
        shown.export_path = source
        shown.export_button.click()
        assert "Export to another file" in shown.exported.value and source.read_bytes() == before


def test_other_records_and_changed_answers_are_refused(tmp_path, widget):
    shown = widget(make(tmp_path))
    click(shown, "a")
    with pytest.raises(UsageError, match="start a new vote file"):
        widget(make(tmp_path, texts=("old", "newer")))
    three = make(tmp_path)
    three[1].answers[0].model = "third"
    with pytest.raises(UsageError, match="the same two models"):
        widget(three)


def test_markup_in_names_is_shown_not_run(tmp_path, widget):
    records = make(tmp_path)
    for record in records:
        for answer in record.answers:
            answer.model = f"<img src=x>{answer.model}"
    shown = widget(records)
    click(shown, "a")
    shown.reveal_button.click()
    assert "<img" not in shown.table.value and "&lt;img src=x&gt;zeta-base" in shown.table.value


def test_damage_to_the_file_stays_in_the_widget_and_is_no_lost_vote(tmp_path, path, widget):
    shown = widget(make(tmp_path))
    click(shown, "a")
    shown.reveal_button.click()
    path.with_suffix(".revealed.json").write_text("{")
    click(shown, "a")
    assert (
        "votes.revealed.json: not JSON" in shown.table.value
        and "Not counted" not in shown.message.value
    )
    assert len(read_events(path)[0]) == 2


def vote_until_killed(folder, pipe):
    records = read_records(folder / "arena" / "records.jsonl")
    votes = Votes(folder / "arena" / "votes.jsonl", records, "ana")
    shown = Arena(votes, pause=0)
    while shown.item:
        key = shown.item.key
        click(shown, "abtxs"[int(key) % 5])
        os.write(pipe, f"{key}\n".encode())


def one_life(folder, votes):
    """Fork, kill once `votes` votes were told (None: never); the records whose votes were told."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)
        with suppress(BaseException):
            vote_until_killed(folder, writer)
        os._exit(0)
    os.close(writer)
    told = b""
    while (votes is None or told.count(b"\n") < votes) and (part := os.read(reader, 64)):
        told += part
    if votes is not None:
        os.kill(child, signal.SIGKILL)
    while part := os.read(reader, 1 << 16):
        told += part
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    return told.decode().split(), os.WIFSIGNALED(status)


@pytest.mark.heavy(reason="starts processes that are killed")
def test_60_votes_with_kills_between_lose_none(tmp_path, path):
    records = make(tmp_path, 60)
    draw = random.Random(0)
    lives = [one_life(tmp_path, draw.randrange(5, 15)) for _ in range(3)] + [
        one_life(tmp_path, None)
    ]
    assert [killed for _, killed in lives] == [True, True, True, False]
    told = [key for keys, _ in lives for key in keys]
    events, tail = read_events(path)
    assert (
        tail == b""
        and len(told) == len(set(told)) >= 57
        and set(told) <= {event.record for event in events}
    )
    assert sorted(event.record for event in events) == sorted(record.id for record in records)
    by_key = {event.record: event.judgement for event in events}
    verdicts = ["ranked", "ranked", "tie", "all bad", "skip"]
    assert all(by_key[key].verdict == verdicts[int(key) % 5] for key in by_key)
    found = arena.standings(records, path)
    assert (sum(found.wins), found.ties, found.both_bad, found.skipped, found.unjudged) == (
        24,
        12,
        12,
        12,
        0,
    )
    assert found.first_shown_share == proportion(12, 24), (
        "keys 0, 5, … chose A, keys 1, 6, … chose B"
    )
