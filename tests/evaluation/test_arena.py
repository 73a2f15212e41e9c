"""The blind arena: matches, and what votes add up to."""

import pytest
from made_up_matches import NAMES, make

from helpers.data import Message, Task, ask
from helpers.data.judgement import Judgement
from helpers.data.preferences import read_records
from helpers.data.vote_log import VoteEvent, append_event, content_hash
from helpers.evaluation import arena
from helpers.files import UsageError
from helpers.statistics import proportion


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
    append_event(
        path,
        VoteEvent(record=record.id, content=content_hash(record, path.parent), judgement=judgement),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arena" / "votes.jsonl"


# Matches


def test_equal_answers_are_left_out_and_counted(tmp_path, capsys):
    answers = {"m": ["one", "two ", "three"], "n": ["one", "two", "3"], "other": ["", "", ""]}
    target = tmp_path / "deep" / "records.jsonl"
    tasks = [ask(f"{i}?", [tmp_path / f"{i}.png"], group="gh"[i // 2]) for i in range(3)]
    (record,) = arena.build_matches(tasks, answers, ("m", "n"), records_path=target)
    assert "1 matches; 2 of 3 questions left out" in capsys.readouterr().out
    assert {answer.model: answer.text for answer in record.answers} == {"m": "three", "n": "3"}
    assert (record.id, record.prompt[0].content, record.group, record.ranking) == (
        "2",
        "2?",
        "h",
        None,
    )
    assert read_records(target) == [record] and record.image_paths == [tmp_path / "2.png"]


def test_a_match_has_all_images_turns_and_the_truth(tmp_path):
    turns = (
        Message(role="user", content="Is there a bus?"),
        Message(role="assistant", content="Yes."),
        Message(role="user", content="Which?"),
    )
    images = (tmp_path / "0.png", tmp_path / "1.png")
    task = Task(images, turns, ["a red one", "red"], "token_f1", "g")
    unknown = ask("What else?", [tmp_path / "1.png"])
    answers = {"m": ["red", "a"], "n": ["blue", "b"]}
    first, second = arena.build_matches(
        [task, unknown], answers, ("m", "n"), records_path=tmp_path / "r.jsonl"
    )
    assert tuple(first.image_paths) == images and tuple(first.prompt) == turns
    assert (first.truth, first.kind, first.group) == (["a red one", "red"], "token_f1", "g")
    assert (second.truth, second.kind, second.group) == (None, "none", None)


def test_an_empty_answer_is_no_match_and_is_counted(tmp_path, capsys):
    tasks = [ask("a?", [tmp_path / "0.png"]), ask("b?", [tmp_path / "1.png"])]
    answers = {"m": ["x", " "], "n": ["y", "z"]}
    (record,) = arena.build_matches(tasks, answers, ("m", "n"), records_path=tmp_path / "r.jsonl")
    assert record.id == "0" and "1 more: one answer is empty" in capsys.readouterr().out


def test_the_place_of_an_answer_does_not_tell_the_model(tmp_path):
    records = make(tmp_path, 40)
    first = sum(record.answers[0].model == NAMES[0] for record in records)
    assert 10 < first < 30  # a fair coin leaves this range once in 700 times; the texts are fixed


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"names": ("m", "m")}, "name two of the models"),
        ({"names": ("m", "x")}, "which are m, n"),
        ({"answers": {"m": ["x"], "n": ["y", "z"]}}, "1 answers of m for 2 tasks"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, change, told):
    given = {"answers": {"m": ["x", "y"], "n": ["x", "z"]}, "names": ("m", "n")} | change
    tasks = [ask("a?", [tmp_path / "0.png"]), ask("b?", [tmp_path / "1.png"])]
    with pytest.raises(UsageError, match=told):
        arena.build_matches(tasks, **given, records_path=tmp_path / "r.jsonl")
    assert not (tmp_path / "r.jsonl").exists()


def test_nothing_to_compare_is_said_and_written_nowhere(tmp_path, capsys):
    tasks = [ask("a?", [tmp_path / "0.png"]), ask("b?", [tmp_path / "1.png"])]
    answers = {"m": ["x", ""], "n": ["x", "y"]}
    assert not arena.build_matches(tasks, answers, ("m", "n"), records_path=tmp_path / "r.jsonl")
    assert "0 matches; 1 of 2 questions left out" in (said := capsys.readouterr().out)
    assert "Nothing to compare" in said and not (tmp_path / "r.jsonl").exists()


# Standings


def test_standings_by_hand(tmp_path, path):
    """12 questions: 6 won by alpha, 1 by zeta, 2 ties, 1 both bad, 1 skipped, 1 not judged."""
    records = make(tmp_path, 12)
    votes = [NAMES[1]] * 6 + [NAMES[0]] + ["tie"] * 2 + ["all bad", "skip"]
    for number, (record, what) in enumerate(zip(records, votes, strict=False)):
        winner = place(record, what) if what in NAMES else 0
        say(
            path, record, what, first=winner if number < 5 else 1 - winner
        )  # 5 of the 7 winners were shown as A
    found = arena.standings(records, path)
    assert (found.names, found.wins) == (NAMES[::-1], (6, 1))
    assert (found.ties, found.both_bad) == (2, 1)
    assert (found.skipped, found.unjudged, found.not_blind) == (1, 1, 0)
    # 6 + 3/2 and 1 + 3/2 of 10
    assert found.win_rates == (proportion(7.5, 10), proportion(2.5, 10))
    assert found.p == pytest.approx(0.125)  # 2 · (1 + 7) / 2⁷
    assert found.first_shown_share == proportion(5, 7)
    assert found.sentence() == (
        "No difference can be claimed: alpha-policy won 6 and zeta-base won 1 of 7 questions with a winner "
        "(exact sign test, p = 0.12)."
    )
    assert "Ties 2, both bad 1, skipped 1, not judged yet 1" in str(
        found
    ) and "no sign of a position" in str(found)


def test_a_difference_is_claimed_below_5_percent_only(tmp_path, path):
    records = make(tmp_path, 6)
    for record in records[:5]:
        say(path, record, NAMES[0])
    assert arena.standings(records, path).p == 0.0625  # 2 / 2⁵
    assert "No difference can be claimed" in str(arena.standings(records, path))
    say(path, records[5], NAMES[0])
    found = arena.standings(records, path)
    assert found.p == 0.03125 and found.sentence().startswith(
        "zeta-base is better: it won 6 of 6 questions"
    )
    assert "settled before looking" in str(found)
    assert found.names == ("alpha-policy", "zeta-base") and found.wins == (0, 6)


def test_a_clear_position_bias_is_told(tmp_path, path):
    records = make(tmp_path, 12)
    for record in records:
        say(path, record, NAMES[0], first=1 - place(record, NAMES[0]))
    found = arena.standings(records, path)
    assert (
        found.first_shown_share.value == 0
        and found.first_shown_share.high < 0.5
        and "position mattered" in str(found)
    )


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
    found = arena.standings(records, path)
    assert found.wins == (0, 1) and found.unjudged == 1
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
    assert (
        found.still_needed == 199 - 12
        and "About 187 more questions with a winner to tell 60% from 50%" in str(found)
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
