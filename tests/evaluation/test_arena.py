"""The blind arena: matches, what votes add up to, what the browser gets before Reveal, and a kill in between."""

import os
import random
import signal
from contextlib import suppress

import pytest
from PIL import Image

from helpers.data.preferences import Judgement, read_records
from helpers.data.vote_log import VoteEvent, append_event, content_hash, read_events
from helpers.data.votes import Votes
from helpers.evaluation import arena
from helpers.files import UsageError
from helpers.statistics import proportion
from helpers.widgets import Arena

NAMES = ("zeta-base", "alpha-policy")
SECRETS = [*NAMES, "match", "group 0"]


def make(folder, number=3, name="records.jsonl", texts=("old", "new")):
    """`number` records; the file is in a folder of its own, beside that of the picture."""
    (folder / "images").mkdir(exist_ok=True)
    Image.new("RGB", (64, 48), (90, 120, 90)).save(folder / "images" / "photo.png")
    answers = {who: [f"{text} answer to {i}" for i in range(number)] for who, text in zip(NAMES, texts, strict=True)}
    paths, prompts = [folder / "images" / "photo.png"] * number, [f"How many in {i}?" for i in range(number)]
    return arena.build_matches(
        paths, prompts, answers, NAMES, ["group 0"] * number, records_path=folder / "arena" / name
    )


def place(record, name):
    return next(i for i, answer in enumerate(record.answers) if answer.model == name)


def say(path, record, what, annotator="ana", first=0):
    """Put a vote into the file: what = a model's name, "tie", "all bad" or "skip"; `first`: place shown as A."""
    verdict, ranking = what, [[0, 1]]
    if what in NAMES:
        verdict, ranking = "ranked", [[place(record, what)], [1 - place(record, what)]]
    judgement = Judgement(
        kind="human", annotator=annotator, verdict=verdict, ranking=None if what == "skip" else ranking,
        order=[first, 1 - first],
    )  # fmt: skip
    append_event(path, VoteEvent(record=record.id, content=content_hash(record, path.parent), judgement=judgement))


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
    shown.choices[[shown.item.record.answers[i].model for i in shown.item.order].index(name)].click()


def states(box):
    yield from (part.get_state() for part in (box, box.layout))
    for child in getattr(box, "children", ()):
        yield from states(child)


# Matches


def test_equal_answers_are_left_out_and_counted(tmp_path, capsys):
    answers = {"m": ["one", "two ", "three"], "n": ["one", "two", "3"], "other": ["", "", ""]}
    target = tmp_path / "deep" / "records.jsonl"
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    (record,) = arena.build_matches(
        paths, ["a?", "b?", "c?"], answers, ("m", "n"), ["g", "g", "h"], records_path=target
    )
    assert "1 matches; 2 of 3 questions left out" in capsys.readouterr().out
    assert {answer.model: answer.text for answer in record.answers} == {"m": "three", "n": "3"}
    assert (record.id, record.prompt[0].content, record.group, record.ranking) == ("2", "c?", "h", None)
    assert read_records(target) == [record] and record.image_paths == [tmp_path / "2.png"]


def test_the_place_of_an_answer_does_not_tell_the_model(tmp_path):
    records = make(tmp_path, 40)
    first = sum(record.answers[0].model == NAMES[0] for record in records)
    assert 10 < first < 30  # a fair coin leaves this range once in 700 times; the texts are fixed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"names": ("m", "m")}, "name two of the models"),
        ({"names": ("m", "x")}, "which are m, n"),
        ({"prompts": ["a?"]}, "1 prompts for 2 images"),
        ({"groups": ["g"]}, "1 groups for 2 images"),
        ({"answers": {"m": ["x"], "n": ["y", "z"]}}, "1 answers of m for 2 images"),
        ({"answers": {"m": ["x", "y"], "n": ["x", "y"]}}, "all 2 questions alike"),
        ({"answers": {"m": ["x", " "], "n": ["x", "y"]}}, r"question 1 \(.*1.png\): text: the answer is empty"),
        ({"prompts": ["a?", ""]}, r"question 1 \(.*1.png\)"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, change, told):
    given = {"prompts": ["a?", "b?"], "answers": {"m": ["x", "y"], "n": ["x", "z"]}, "names": ("m", "n")} | change
    with pytest.raises(UsageError, match=told):
        arena.build_matches([tmp_path / "0.png", tmp_path / "1.png"], **given, records_path=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


# Standings


def test_standings_by_hand(tmp_path, path):
    """12 questions: 6 won by alpha, 1 by zeta, 2 ties, 1 both bad, 1 skipped, 1 not judged."""
    records = make(tmp_path, 12)
    votes = [NAMES[1]] * 6 + [NAMES[0]] + ["tie"] * 2 + ["all bad", "skip"]
    for number, (record, what) in enumerate(zip(records, votes, strict=False)):
        winner = place(record, what) if what in NAMES else 0
        say(path, record, what, first=winner if number < 5 else 1 - winner)  # 5 of the 7 winners were shown as A
    found = arena.standings(records, path, NAMES)
    assert (found.names, found.wins, found.ties, found.both_bad) == (NAMES, (1, 6), 2, 1)
    assert (found.skipped, found.unjudged, found.not_blind) == (1, 1, 0)
    assert found.win_rates == (proportion(2.5, 10), proportion(7.5, 10))  # 1 + 3/2 and 6 + 3/2 of 10
    assert found.p == pytest.approx(0.125)  # 2 · (1 + 7) / 2⁷
    assert found.first_shown_share == proportion(5, 7)
    assert found.sentence() == (
        "No difference can be claimed: zeta-base won 1 and alpha-policy won 6 of 7 questions with a winner "
        "(exact sign test, p = 0.12)."
    )
    assert "Ties 2, both bad 1, skipped 1, not judged yet 1" in str(found) and "no sign of a position" in str(found)
    assert arena.standings(records, path).names == NAMES[::-1]
    assert arena.standings(records, path).wins == (6, 1)


def test_a_difference_is_claimed_below_5_percent_only(tmp_path, path):
    records = make(tmp_path, 6)
    for record in records[:5]:
        say(path, record, NAMES[0])
    assert arena.standings(records, path).p == 0.0625  # 2 / 2⁵
    assert "No difference can be claimed" in str(arena.standings(records, path))
    say(path, records[5], NAMES[0])
    found = arena.standings(records, path)
    assert found.p == 0.03125 and found.sentence().startswith("zeta-base is better: it won 6 of 6 questions")
    assert "settled before looking" in str(found)
    assert found.names == ("alpha-policy", "zeta-base") and found.wins == (0, 6)


def test_a_clear_position_bias_is_told(tmp_path, path):
    records = make(tmp_path, 12)
    for record in records:
        say(path, record, NAMES[0], first=1 - place(record, NAMES[0]))
    found = arena.standings(records, path)
    assert found.first_shown_share.value == 0 and found.first_shown_share.high < 0.5 and "position mattered" in str(found)


def judgement(verdict, *tiers):
    return Judgement(kind="human", annotator="x", verdict=verdict, ranking=list(tiers) or None)


FIRST, SECOND = judgement("ranked", [0], [1]), judgement("ranked", [1], [0])
TIE, BAD, SKIP = judgement("tie", [0, 1]), judgement("all bad", [0, 1]), judgement("skip")


@pytest.mark.parametrize(
    ("votes", "expected"),
    [
        ([], "unjudged"),
        ([SKIP, SKIP], "skipped"),
        ([SECOND, SKIP], 1),
        ([FIRST, SECOND, FIRST], 0),
        ([FIRST, TIE, BAD], 0),
        ([FIRST, SECOND], "tie"),
        ([FIRST, SECOND, BAD], "tie"),
        ([TIE, BAD], "tie"),
        ([BAD, BAD, TIE], "both bad"),
        ([BAD, SKIP, SKIP], "both bad"),
    ],
)
def test_several_annotators_count_as_one_question(votes, expected):
    assert arena.match_outcome(votes) == expected


def test_a_question_judged_by_three_counts_once(tmp_path, path):
    records = make(tmp_path, 2)
    for annotator, what in (("ana", NAMES[0]), ("ben", NAMES[0]), ("cem", NAMES[1])):
        say(path, records[0], what, annotator, first=place(records[0], NAMES[0]))
    found = arena.standings(records, path, NAMES)
    assert found.wins == (1, 0) and found.unjudged == 1
    assert found.first_shown_share == proportion(2, 3), "single votes"


def test_votes_still_needed(tmp_path, path):
    records = make(tmp_path, 30)
    say(path, records[0], "tie")
    assert (
        arena.standings(records, path).still_needed == 199
    )  # a tie is none of them; ((0.98 + 0.8416 · √0.24) / 0.1)² = 194
    for record in records[1:13]:
        say(path, record, NAMES[0])
    found = arena.standings(records, path)
    assert found.still_needed == 199 - 12 and "About 187 more questions with a winner to tell 60% from 50%" in str(
        found
    )
    easy = arena.standings(records, path, difference=0.4)  # takes 12
    assert easy.still_needed == 0 and "more questions" not in str(easy)


def test_wrong_files_are_told(tmp_path, path):
    records = make(tmp_path)
    with pytest.raises(UsageError, match=r"votes.jsonl: no vote on any of these 3"):
        arena.standings(records, path)
    say(path, records[0], "tie")
    with pytest.raises(UsageError, match="other images, prompt or answers"):
        arena.standings(make(tmp_path, texts=("old", "newer")), path)
    with pytest.raises(UsageError, match="the records have answers of alpha-policy and zeta-base"):
        arena.standings(records, path, ("a", "b"))
    records[1].answers[0].model = None
    with pytest.raises(UsageError, match="record '1' has answers of"):
        arena.standings(records[1:], path)
    records[1].answers[0].model = records[1].answers[1].model
    with pytest.raises(UsageError, match="record '1' has answers of"):
        arena.standings(records[1:], path)
    records = make(tmp_path)
    path.with_suffix(".revealed.json").write_text('["ana"]')
    with pytest.raises(UsageError, match=r"votes.revealed.json: must map"):
        arena.standings(records, path)


# The widget


def test_it_reads_like_an_arena_and_votes_like_a_ranking(tmp_path, path, widget):
    shown = widget(make(tmp_path, 5))
    assert [b.description for b in shown.choices] == ["A is better (a)", "B is better (b)"]
    assert [shown.buttons[name].description for name in ("tie", "all bad")] == ["Tie (t)", "Both bad (x)"]
    first = shown.item
    click(shown, "b", "t", "x", "s", "u", "s")
    events = read_events(path)[0]
    assert [e.judgement.verdict if e.judgement else "undo" for e in events] == (
        ["ranked", "tie", "all bad", "skip", "undo", "skip"]
    )
    assert events[0].judgement.ranking == [[first.order[1]], [first.order[0]]]
    assert "4 of 5 · 1 skipped" in shown.progress.value


def test_a_double_click_counts_once(tmp_path, path, widget):
    shown = widget(make(tmp_path), pause=60)
    shown._shown -= 61
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
    assert "4 judged records" in shown.exported.value and not [s for s in SECRETS if s in shown.exported.value]
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
    assert ana.standings.not_blind == 1 and ana.standings.wins == (0, 2) and "so not blind: 1" in ana.table.value
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
    shown = widget(records, export_path=target)
    chosen = []
    for _ in range(2):
        chosen.append((shown.item.key, f"new answer to {shown.item.key}"))
        choose(shown, NAMES[1])
    click(shown, "t", "s")
    shown.export_button.click()
    assert str(target) in shown.exported.value and "3 judged records, 2 with a better answer" in shown.exported.value
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
    assert "votes.revealed.json: not JSON" in shown.table.value and "Not counted" not in shown.message.value
    assert len(read_events(path)[0]) == 2


# A kill


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


def test_60_votes_with_kills_between_lose_none(tmp_path, path):
    records = make(tmp_path, 60)
    draw = random.Random(0)
    lives = [one_life(tmp_path, draw.randrange(5, 15)) for _ in range(3)] + [one_life(tmp_path, None)]
    assert [killed for _, killed in lives] == [True, True, True, False]
    told = [key for keys, _ in lives for key in keys]
    events, tail = read_events(path)
    assert tail == b"" and len(told) == len(set(told)) >= 57 and set(told) <= {event.record for event in events}
    assert sorted(event.record for event in events) == sorted(record.id for record in records)
    by_key = {event.record: event.judgement for event in events}
    verdicts = ["ranked", "ranked", "tie", "all bad", "skip"]
    assert all(by_key[key].verdict == verdicts[int(key) % 5] for key in by_key)
    found = arena.standings(records, path)
    assert (sum(found.wins), found.ties, found.both_bad, found.skipped, found.unjudged) == (24, 12, 12, 12, 0)
    assert found.first_shown_share == proportion(12, 24), "keys 0, 5, … chose A, keys 1, 6, … chose B"
