"""The ranking widget: what a click does, what the browser gets to see, and what survives a kill.

Clicks go through `.click()` in this process, through forked processes that are killed, and, as a
browser sends them, through a real kernel. `test_colab_widgets.py` runs all of it once more with the
ipywidgets of Google Colab.
"""

import io
import json
import os
import random
import signal
import subprocess
import time
import zlib
from contextlib import suppress

import pytest
from jupyter_client import KernelManager
from pictures import noise
from PIL import Image

from helpers.data.preferences import read_records, write_records
from helpers.data.record import PreferenceRecord, resolve_images
from helpers.data.vote_log import current_judgements, read_events
from helpers.data.votes import Votes, apply_votes
from helpers.files import ROOT, UsageError
from helpers.widgets import ranking as widgets
from helpers.widgets.common import jpeg_strip

SECRETS = ["secret model", "secret origin", "0.8137", "secret truth", "secret source", "secret id"]


def record(number, n=2, image="photo.png", text=""):
    answers = [
        {
            "text": f"answer {place} of {number} {text}",
            "model": "secret model",
            "origin": "secret origin",
            "score": 0.8137,
        }
        for place in range(n)
    ]
    fields = {"truth": "secret truth", "source": "secret source", "id": f"secret id {number}"}
    return PreferenceRecord(image=image, prompt="How many <b>cars</b>?", answers=answers, **fields)


def records(count, n=2):
    return [record(number, n) for number in range(count)]


@pytest.fixture
def folder(tmp_path):
    Image.new("RGB", (64, 48), (90, 120, 90)).save(tmp_path / "photo.png")
    return tmp_path


def in_folder(items, folder):
    """Records as they are once read from a file in `folder`."""
    return [
        resolve_images(item, folder / "records.jsonl", line)
        for line, item in enumerate(items, start=1)
    ]


@pytest.fixture
def rank(folder):
    """Make a widget on this test's vote file; `pause` off, since scripts do not double-click."""
    return lambda items, annotator="ana", **options: widgets.AnswerRanker(
        Votes(folder / "votes.jsonl", in_folder(items, folder), annotator),
        **({"pause": 0} | options),
    )


def judged(ranking):
    return list(
        Votes(
            ranking.votes.path, list(ranking.votes.records.values()), ranking.votes.annotator
        ).judged.items()
    )


def click(ranking, *keys):
    for key in keys:
        choices = dict(zip("abcdef", ranking.choices, strict=False))
        others = {"v": "save", "r": "over", "t": "tie", "x": "all bad", "s": "skip", "u": "undo"}
        if key == "=":
            ranking.joined.value = not ranking.joined.value
        else:
            (choices[key] if key in choices else ranking.buttons[others[key]]).click()


def all_widgets(widget):
    yield widget
    for child in getattr(widget, "children", ()):
        yield from all_widgets(child)


def buttons(ranking):
    return [*ranking.buttons.values(), *ranking.choices]


# What a click does


def test_one_click_is_one_vote(rank):
    ranking = rank(records(5))
    for key, verdict in (
        ("a", "ranked"),
        ("b", "ranked"),
        ("t", "tie"),
        ("x", "all bad"),
        ("s", "skip"),
    ):
        item = ranking.item
        click(ranking, key)
        name, vote = judged(ranking)[-1]
        assert (name, vote.verdict, vote.order) == (item.key, verdict, item.order)
        if verdict == "ranked":
            shown = "ab".index(key)
            assert vote.ranking == [[item.order[shown]], [item.order[1 - shown]]]
    assert (
        len(judged(ranking)) == 5
        and ranking.item is None
        and "All are judged" in ranking.prompt.value
    )
    assert [button for button in buttons(ranking) if not button.disabled] == [
        ranking.buttons["undo"]
    ]
    click(ranking, "a", "t", "v", "s")
    assert len(read_events(ranking.votes.path)[0]) == 5, "clicks that come late change nothing"


def test_the_vote_is_on_disk_before_the_next_item_is_drawn(rank):
    ranking = rank(records(3))
    drawn = []  # votes on the disk whenever another count of votes is shown
    ranking.progress.observe(
        lambda _: drawn.append(len(read_events(ranking.votes.path)[0])), "value"
    )
    click(ranking, "a", "t", "u")
    assert drawn == [1, 2, 3]


def test_more_answers_are_clicked_best_first_and_saved(rank):
    ranking = rank(records(4, n=4))
    order = ranking.item.order
    click(ranking, "c", "a", "a", "v")  # a again and too early a save do nothing
    assert [button.button_style for button in ranking.choices] == [
        "primary",
        "",
        "primary",
        "",
    ] and not judged(ranking)
    assert "A has rank 2" in ranking.choices[0].description and ranking.buttons["save"].disabled
    click(ranking, "d")
    assert "B has rank 4" in ranking.choices[1].description, "the last one places itself"
    click(ranking, "b", "v")
    assert judged(ranking)[-1][1].ranking == [[order[k]] for k in (2, 0, 3, 1)]


@pytest.mark.parametrize(
    ("keys", "tiers"),
    [
        ("ab=c", [[0], [1, 2], [3]]),
        ("abc=", [[0], [1], [2, 3]]),
        ("=ab=cd", [[0], [1, 2], [3]]),
        ("a=b=c=", [[0, 1, 2, 3]]),
        ("abrdc=a", [[3], [0, 2], [1]]),
        ("abc==", [[0], [1], [2], [3]]),
    ],
)
def test_ties_between_some(rank, keys, tiers):
    ranking = rank(records(1, n=4))
    order = ranking.item.order
    click(ranking, *keys, "v")
    vote = judged(ranking)[-1][1]
    assert vote.ranking == [sorted(order[k] for k in tier) for tier in tiers]
    assert vote.verdict == ("ranked" if len(tiers) > 1 else "tie")


def test_six_answers_and_two_in_one_file(rank):
    mixed = [record(0, 6), record(1, 2), record(2, 3)]
    ranking = rank(mixed)
    while ranking.item:
        n = len(ranking.item.order)
        assert len(ranking._shelf.children) == n
        assert ranking._many.layout.visibility == ("visible" if n > 2 else "hidden")
        click(ranking, *("fedcb" if n == 6 else "cb" if n == 3 else "b"), *("v" if n > 2 else ""))
    for _, vote in judged(ranking):
        assert vote.ranking == [[place] for place in reversed(vote.order)]


def test_criteria_are_stored_by_place_and_only_when_used(rank):
    ranking = rank(records(2))
    order = ranking.item.order
    ranking.marks[1][2].value = True  # "concise" of the answer shown as B
    click(ranking, "a")
    assert judged(ranking)[0][1].criteria == {
        "concise": [float(place == order[1]) for place in range(2)]
    }
    assert not any(mark.value for row in ranking.marks for mark in row), (
        "the next item starts afresh"
    )
    click(ranking, "a")
    assert judged(ranking)[1][1].criteria == {}
    assert rank(records(2), "ben", criteria=()).marks == [[], []]


def test_the_order_of_showing_is_the_one_recorded(rank):
    ranking = rank(records(12))
    orders = set()
    while ranking.item:
        orders.add(tuple(ranking.item.order))
        for place, text in zip(ranking.item.order, ranking.texts, strict=True):
            assert f"answer {place} of" in text.value
        order = ranking.item.order
        click(ranking, "t")
        assert judged(ranking)[-1][1].order == order
    assert orders == {(0, 1), (1, 0)}


def test_undo_over_a_restart_and_a_second_annotator(rank):
    ana = rank(records(3))
    first = ana.item.key
    click(ana, "a")
    ben = rank(records(3), "ben")
    click(ben, "t", "t")
    ana = rank(records(3))
    assert ana.votes.progress().startswith("1 of 3") and "1 of 3" in ana.progress.value
    click(ana, "u")
    assert (
        ana.item.key == first and ana.state["progress"] == "0 of 3" and "again" in ana.message.value
    )
    click(ana, "u", "b")
    assert len(judged(ana)) == 1 and len(judged(ben)) == 2


def test_seconds_are_those_since_the_item_appeared(rank):
    clock = iter(x / 4 for x in range(0, 400, 10))  # 2.5 s from one look at the clock to the next
    ranking = rank(records(2), clock=lambda: next(clock))
    click(ranking, "a", "a")
    assert [vote.seconds for _, vote in judged(ranking)] == [5, 5], (
        "shown, looked at once for the pause, voted"
    )


def test_the_second_half_of_a_double_click_does_not_count(rank):
    ranking = rank(records(5), pause=0.3)
    time.sleep(0.31)
    click(ranking, "a", "a", "u")
    assert len(judged(ranking)) == 1 and "did not count" in ranking.message.value
    time.sleep(0.31)
    click(ranking, "a")
    assert len(judged(ranking)) == 2


def test_two_widgets_on_one_file(rank):
    here, there = rank(records(3)), rank(records(3))
    first = here.item.key
    click(here, "t")
    click(there, "x")
    assert [(key, vote.verdict) for key, vote in judged(here)] == [(first, "tie")]
    assert "elsewhere" in there.message.value and there.item.key == here.item.key


# Errors stay in the widget


def test_a_missing_picture_can_be_skipped(rank, folder):
    (folder / "photo.png").unlink()
    ranking = rank(records(2))
    assert "photo.png does not exist" in ranking.message.value and ranking.picture.value == b""
    assert [b.description for b in buttons(ranking) if not b.disabled] == ["Skip (s)"]
    assert not any(secret in ranking.message.value for secret in SECRETS)
    Image.new("RGB", (64, 48)).save(folder / "photo.png")
    click(ranking, "s")
    assert (
        ranking.picture.value
        and not ranking.choices[0].disabled
        and judged(ranking)[0][1].verdict == "skip"
    )


def test_a_full_disk_leaves_the_item_and_the_next_click_counts(rank, monkeypatch):
    ranking = rank(records(2))
    item = ranking.item

    def full(descriptor, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("helpers.data.vote_log.os.write", full)
        click(ranking, "a")
    assert ranking.item.key == item.key and not judged(ranking)
    assert "Not counted" in ranking.message.value and "No space left" in ranking.state["message"]
    click(ranking, "b")
    assert (
        judged(ranking)[0][1].ranking[0] == [item.order[1]]
        and len(read_events(ranking.votes.path)[0]) == 1
    )


def test_a_damaged_file_is_an_error_with_its_line(rank):
    ranking = rank(records(3))
    click(ranking, "a")
    ranking.votes.path.write_text(ranking.votes.path.read_text() + "half a thought\n")
    click(ranking, "a")
    assert "votes.jsonl:2: not JSON" in ranking.message.value
    click(ranking, "u")
    assert "Not undone" in ranking.message.value
    with pytest.raises(UsageError, match=r"votes.jsonl:2"):
        rank(records(3))


def test_a_half_line_is_told(rank):
    ranking = rank(records(2))
    click(ranking, "a")
    with ranking.votes.path.open("ab") as file:
        file.write(b'{"record"')
    assert "half a line (9 bytes" in rank(records(2)).message.value


# What the browser gets


def test_nothing_tells_whose_an_answer_is(rank, capsys):
    ranking = rank([record(number, 3) for number in range(3)])
    ranking.show()
    box = ranking.box
    script = capsys.readouterr().out
    for key in ("b", "a", "v", "x"):
        states = [
            part.get_state() for widget in all_widgets(box) for part in (widget, widget.layout)
        ]
        assert len(states) > 40
        sent = f"{states}{script}"
        assert "answer 2 of" in sent and not [secret for secret in SECRETS if secret in sent]
        click(ranking, key)


def test_markup_is_shown_not_run(rank):
    ranking = rank([record(0, text="<script>alert(1)</script><img src=x>")])
    for value in (*(text.value for text in ranking.texts), ranking.prompt.value):
        assert "<script" not in value and "<img" not in value and "<b>cars" not in value
    assert "&lt;script&gt;" in ranking.texts[0].value and "&lt;b&gt;cars" in ranking.prompt.value
    annotator = rank(records(1), "<i>ana</i>")
    assert "&lt;i&gt;ana" in annotator.progress.value


def test_heights_do_not_change_from_item_to_item(rank):
    items = [record(number, text="many words " * (30 * number)) for number in range(4)]
    ranking = rank(items)
    heights = set()
    while ranking.item:
        heights.add(
            (
                ranking.texts[0].layout.height,
                ranking.prompt.layout.height,
                ranking.message.layout.min_height,
            )
        )
        click(ranking, "t")
    assert len(heights) == 1


def test_photos_are_reduced_and_small_pictures_enlarged():
    photo, small = noise(4000, 3000, 60), Image.new("RGB", (64, 48))
    content = jpeg_strip([photo])
    assert len(content) < 600_000
    path_sizes = [
        Image.open(io.BytesIO(jpeg_strip(images))).size
        for images in ([photo], [small], [photo, small])
    ]
    assert path_sizes == [(800, 600), (800, 600), (1600, 600)]


def test_the_note_and_the_keys(rank, capsys):
    ranking = rank(records(1, n=3))
    ranking.show()
    box = ranking.box
    shown = capsys.readouterr().out
    name = next(name for name in box._dom_classes if name.startswith("keys-"))
    assert "rank_in_text(votes)" in shown and f'closest(".{name}")' in shown and "NAME" not in shown
    keys = [
        name
        for widget in all_widgets(box)
        for name in widget._dom_classes
        if name.startswith("key-")
    ]
    assert sorted(keys) == sorted(
        f"key-{key}" for key in ("a", "b", "c", "t", "x", "s", "u", "v", "r", "equal")
    )
    assert all(
        f"({name[-1]})" in widget.description
        for widget in buttons(ranking)
        for name in widget._dom_classes
    )


# Kills


def choice_for(key):
    """What the script thinks of a record: the place of the better answer, or a verdict."""
    return [0, 1, 0, 1, "tie", "all bad", "skip"][zlib.crc32(key.encode()) % 7]


def opinion(vote):
    return vote.ranking[0][0] if vote.verdict == "ranked" else vote.verdict


def vote_until_killed(folder, pipe):
    """One life: click what the script thinks of each item shown; tell each vote once the click has
    returned.
    """
    ranking = widgets.AnswerRanker(
        Votes(folder / "votes.jsonl", read_records(folder / "records.jsonl"), "ana"), pause=0
    )
    while ranking.item:
        key = ranking.item.key
        choice = choice_for(key)
        shown = [f"answer {choice} of" in text.value for text in ranking.texts]
        (
            ranking.buttons[choice]
            if isinstance(choice, str)
            else ranking.choices[shown.index(True)]
        ).click()
        if ranking.item is None or ranking.item.key != key:
            os.write(pipe, json.dumps([key, choice]).encode() + b"\n")


def one_life(folder, votes, delay):
    """Fork, kill `delay` seconds after `votes` votes were told (None: never); all that were told,
    was it killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(120)  # a life that hangs fails the test instead of stopping it
        with suppress(BaseException):
            vote_until_killed(folder, writer)
        os._exit(0)
    os.close(writer)
    told = b""
    while votes is None or told.count(b"\n") < votes:
        if not (part := os.read(reader, 1 << 16)):
            break
        told += part
    if votes is not None:
        time.sleep(delay)
        os.kill(child, signal.SIGKILL)
    while part := os.read(reader, 1 << 16):
        told += part
    os.close(reader)
    status = os.waitpid(child, 0)[1]
    return [json.loads(line) for line in told.splitlines()], os.WIFSIGNALED(status) and os.WTERMSIG(
        status
    )


def check_nothing_lost(folder, told, kills):
    """Every record has one vote, every vote that was told is there as it was, and once."""
    items, (events, tail) = (
        read_records(folder / "records.jsonl"),
        read_events(folder / "votes.jsonl"),
    )
    assert tail == b"" and len(events) == len(items) == len({event.record for event in events})
    assert {key: opinion(vote) for (key, _), vote in current_judgements(events).items()} == {
        r.id: choice_for(r.id) for r in items
    }
    told = [(key, choice) for votes in told for key, choice in votes]
    assert len(told) == len(set(told)) and len(items) - kills <= len(told) <= len(items)
    assert all(choice_for(key) == choice for key, choice in told)
    assert all(len(r.judgements) == 1 for r in apply_votes(items, folder / "votes.jsonl"))


@pytest.mark.heavy(reason="starts processes that are killed")
def test_25_kills_in_150_pairs_lose_no_vote_and_double_none(folder):
    write_records(folder / "records.jsonl", records(150))
    draw = random.Random(0)
    lives = [one_life(folder, draw.randrange(6), draw.uniform(0, 0.03)) for _ in range(25)]
    assert [ended for _, ended in lives] == [signal.SIGKILL] * 25
    lives.append(one_life(folder, None, 0))
    check_nothing_lost(folder, [votes for votes, _ in lives], 25)


class Browser:
    """A kernel, and what a browser knows of its widgets: the states that came over the wire."""

    SETUP = """
import json, sys
sys.path.insert(0, {root!r})
from pathlib import Path
from helpers.data.preferences import read_records
from helpers.data.votes import Votes
from helpers.widgets import AnswerRanker
"""
    SHOW = """
folder = Path({folder!r})
votes = Votes(folder / "votes.jsonl", read_records(folder / "records.jsonl"), "ana")
ranking = AnswerRanker(votes, pause=0)
ids = {{name: button.model_id for name, button in ranking.buttons.items()}}
ids |= {{str(k): button.model_id for k, button in enumerate(ranking.choices)}}
ids |= {{f"text {{k}}": text.model_id for k, text in enumerate(ranking.texts)}}
ids |= {{"progress": ranking.progress.model_id}}
print("ids", json.dumps(ids))
"""

    def __init__(self):
        self.manager = KernelManager()
        self.manager.start_kernel(cwd=str(ROOT), stderr=subprocess.DEVNULL)
        self.client = self.manager.client()
        self.client.start_channels()
        self.client.wait_for_ready(timeout=120)
        self.states, self.printed = {}, {}
        self.client.execute(
            self.SETUP.format(root=str(ROOT))
        )  # both kernels import at the same time

    def wait(self, message_id):
        """Take in what the kernel sends until it is done with `message_id`."""
        while True:
            message = self.client.get_iopub_msg(timeout=120)
            content = message["content"]
            assert message["msg_type"] != "error", content
            if message["msg_type"] == "stream":
                self.printed |= dict(
                    line.split(" ", 1) for line in content["text"].splitlines() if " " in line
                )
            if message["msg_type"].startswith("comm_"):
                self.states.setdefault(content["comm_id"], {}).update(
                    content["data"].get("state", {})
                )
            done = message["msg_type"] == "status" and content["execution_state"] == "idle"
            if done and message["parent_header"].get("msg_id") == message_id:
                return

    def show(self, folder):
        self.wait(self.client.execute(self.SHOW.format(folder=str(folder))))
        self.ids = json.loads(self.printed["ids"])

    def seen(self, name):
        return self.states[self.ids[name]]["value"]

    def click(self, name):
        content = {
            "comm_id": self.ids[name],
            "data": {"method": "custom", "content": {"event": "click"}},
        }
        message = self.client.session.msg("comm_msg", content)
        self.client.shell_channel.send(message)
        return message["header"]["msg_id"]

    def vote(self):
        """Click the script's choice for what is shown; the message and what is told if it comes
        through.
        """
        key = "secret id " + self.seen("text 0").split(" of ")[1].split()[0]
        choice = choice_for(key)
        place = next((k for k in "01" if f"answer {choice} of" in self.seen(f"text {k}")), None)
        return self.click(place or choice), (key, choice)

    def kill(self):
        self.client.stop_channels()
        self.manager.signal_kernel(signal.SIGKILL)
        self.manager.shutdown_kernel(now=True)


@pytest.mark.heavy(reason="a kernel of its own")
def test_a_killed_kernel_goes_on_where_it_was(folder):
    write_records(folder / "records.jsonl", records(40))
    first, second = Browser(), Browser()
    told = []
    try:
        first.show(folder)
        for _ in range(20):
            message, vote = first.vote()
            first.wait(message)
            told.append(vote)
        first.vote()
        time.sleep(random.Random(0).uniform(0, 0.03))
        first.kill()
        second.show(folder)
        done = int(second.seen("progress").removeprefix("<b>").split(" of 40")[0])
        assert done in (20, 21), "the vote that was under way is there or not"
        while "40 of 40" not in second.seen("progress"):
            message, vote = second.vote()
            second.wait(message)
            told.append(vote)
        sent = f"{first.states}{second.states}"
        assert "answer 1 of" in sent and not [secret for secret in SECRETS if secret in sent]
    finally:
        for browser in (first, second):
            if browser.manager.has_kernel:
                browser.kill()
    check_nothing_lost(folder, [told], kills=1)
