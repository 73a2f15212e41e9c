"""Ranking by typed replies, where no widgets can be shown."""

import pytest
from made_up_votes import records
from PIL import Image

from helpers.data.votes import Votes
from helpers.files import UsageError
from helpers.widgets.typed import complete_tiers, parse_reply, rank_in_text


def test_the_last_answer_places_itself():
    assert complete_tiers([], 2) is None and complete_tiers([[1]], 2) == [[1], [0]]
    assert complete_tiers([[1]], 3) is None and complete_tiers([[1], [0]], 3) == [[1], [0], [2]]
    assert complete_tiers([[1], [0]], 3, join_last=True) == [[1], [0, 2]] and complete_tiers(
        [[0, 1], [2]], 3
    ) == [
        [0, 1],
        [2],
    ]


@pytest.mark.parametrize(
    ("reply", "n", "vote"),
    [
        ("b", 2, ("ranked", [[1], [0]])),
        ("a>b", 2, ("ranked", [[0], [1]])),
        ("a = b", 2, ("ranked", [[0, 1]])),
        ("b>a=c", 3, ("ranked", [[1], [0, 2]])),
        ("c a", 3, ("ranked", [[2], [0], [1]])),
        ("c=a=b, d", 4, ("ranked", [[2, 0, 1], [3]])),
        ("t", 2, ("tie", [])),
        ("x", 3, ("all bad", [])),
        ("s", 2, ("skip", [])),
    ],
)
def test_replies(reply, n, vote):
    assert parse_reply(reply, n) == vote


@pytest.mark.parametrize(
    "reply", ["", "c", "aa", "a=", "=a", "a==b", "better", "ab=", "1", "ba?", "aba"]
)
def test_replies_that_are_no_vote(reply):
    with pytest.raises(UsageError, match="is no vote"):
        parse_reply(reply, 2)


def test_ranking_by_typing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)  # the records name photo.png
    path = tmp_path / "votes.jsonl"
    Image.new("RGB", (20, 10)).save(tmp_path / "photo.png")
    votes = Votes(path, records(4), "ana")
    replies = ["a", "u", "B", "nonsense", "t", "q"]
    rank_in_text(votes, lambda _: replies.pop(0))
    shown = capsys.readouterr().out
    assert [v.verdict for v in Votes(path, records(4), "ana").judged.values()] == [
        "ranked",
        "tie",
    ] and not replies
    item = votes._item(votes.keys[0])
    assert (
        votes.judged[item.key].ranking == [[item.order[1]], [item.order[0]]]
        and "'nonsense' is no vote" in shown
    )
    assert (
        f"[A] {item.texts[0]}" in shown
        and "How many?" in shown
        and "photo.png" in shown
        and "model" not in shown
    )
    (tmp_path / "photo.png").unlink()
    rank_in_text(votes, lambda _: "s")
    assert "Skip it" in (end := capsys.readouterr().out) and end.endswith("all are judged.\n")
    assert votes.progress().startswith("4 of 4 · 2 skipped")


def test_without_its_picture_an_item_can_only_be_skipped(tmp_path, monkeypatch, capsys):
    """A vote for a picture that nobody saw says nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photo.png").write_bytes(b"no picture")
    path = tmp_path / "votes.jsonl"
    replies = ["a", "t", "s", "q"]
    rank_in_text(Votes(path, records(2), "ana"), lambda _: replies.pop(0))
    verdicts = [v.verdict for v in Votes(path, records(2), "ana").judged.values()]
    assert verdicts == ["skip"] and not replies
    assert capsys.readouterr().out.count("can only be skipped (s)") == 2
