"""What columns mean follows from their titles; where the titles stand is found."""

import pytest

from helpers.data import find_header, match_columns
from helpers.data.tables import Sheet, TableRow


def roles(*titles):
    layout = match_columns(titles)
    places = {role: [c.place for c in columns] for role, columns in layout.columns.items()}
    return layout.shape, places, layout.unused


@pytest.mark.parametrize(
    "titles",
    [
        ("image", "prompt", "chosen", "rejected"),
        ("Image_Path", "Question ", "CHOSEN ANSWER", "rejected-answer"),
        ("Bild", "Frage", "besser", "schlechter"),
        ("file name", "instruction", "better", "worse"),
        ("ﬁle", "Instruction", "winner", "loser"),
    ],
)
def test_pairs_whatever_their_titles_are_called(titles):
    assert roles(*titles) == (
        "pairs",
        {"image": [0], "question": [1], "chosen": [2], "rejected": [3]},
        (),
    )


def test_shapes_of_tables():
    assert roles("image", "question") == ("questions", {"image": [0], "question": [1]}, ())
    shape, places, unused = roles("image", "q", "question", "Answer A", "Answer B", "Preference")
    assert (shape, places["answers"], places["vote"], unused) == ("votes", [3, 4], [5], ("q",))
    assert roles("image", "question", "A", "B", "winner")[0] == "votes"
    shape, places, _ = roles("image", "question", "answer1", "rank1", "answer2", "rank2")
    assert (shape, places["answers"], places["ranks"]) == ("rankings", [2, 4], [3, 5])
    assert roles("image", "question", "response 1", "response 2", "ranking")[0] == "rankings"
    shape, places, _ = roles("image", "question", "answer", "rank")
    assert (shape, places["response"], "answer" in places) == ("ranked rows", [2], False)
    assert roles("image", "question", "response_a", "response_b")[0] == "unjudged"
    # people's answers to one question, not answers to choose from
    shape, places, _ = roles("image", "question", "answer 1", "answer 2", "answer 3")
    assert (shape, places["references"]) == ("questions", [2, 3, 4])


def test_a_truth_beside_votes_is_kept():
    shape, places, _ = roles("image", "question", "answer a", "answer b", "vote", "truth")
    assert (shape, places["answer"]) == ("votes", [5])


def test_columns_of_one_title_are_several_answers_or_named_as_unused():
    assert roles("image", "question", "answer", "answer")[1]["answer"] == [2, 3]
    _, places, unused = roles("image", "question", "image", "note")
    assert (places["image"], unused) == ([0], ("image", "note"))


def test_what_is_no_table_of_questions_has_no_shape():
    assert match_columns(["name", "age"]) is None
    assert match_columns(["image", "width"]) is None


def sheet(*rows):
    return Sheet("t", [TableRow(n, list(row)) for n, row in enumerate(rows, start=3)])


def test_titles_stand_where_most_of_them_are_known_and_may_be_repeated():
    titles = ("image", "question", "answer", "")
    layout, rows, repeated = find_header(
        sheet(("Question?", "", "", ""), titles, ("a", "b", "c", ""), titles, ("d", "e", "f", "g"))
    )
    assert layout.shape == "questions" and repeated == 1
    assert [row.number for row in rows] == [5, 7]
    assert find_header(sheet(("x", "y"), ("1", "2"))) is None
