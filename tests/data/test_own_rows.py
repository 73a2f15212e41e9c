"""Rows of tables and question files become preferences and questions, as many as they were."""

import pytest
from own_files import draw_photos, numbered

from helpers.data import ImageFinder, Leftovers, match_columns, reference_texts
from helpers.data.own_rows import CellRow, RowReader


@pytest.fixture
def read(tmp_path):
    """Read rows of a table with these titles: records, tasks, leftovers."""
    draw_photos(tmp_path, numbered(5))

    def read_rows(titles, *rows, **about):
        left = Leftovers()
        reader = RowReader(match_columns(titles), ImageFinder([tmp_path]), left, **about)
        found = reader.read([CellRow(f"t.csv:{n}", row) for n, row in enumerate(rows, start=2)])
        return found.records[""], found.tasks[""], left

    return read_rows


def ranked(records):
    """Texts of each record, the best first, ties together."""
    return [[[r.answers[p].text for p in tier] for tier in r.ranking or []] for r in records]


IMAGE = ("photo0.png", "Which?")


@pytest.mark.parametrize(
    ("vote", "expected"),
    [
        ("A", [["x"], ["y"]]),
        ("b", [["y"], ["x"]]),
        ("2", [["y"], ["x"]]),
        ("Answer B", [["y"], ["x"]]),
        ("response_a", [["x"], ["y"]]),
        ("left", [["x"], ["y"]]),
        ("Rechts", [["y"], ["x"]]),
        ("y", [["y"], ["x"]]),
        ("tie", [["x", "y"]]),
        ("Both", [["x", "y"]]),
        ("gleich", [["x", "y"]]),
        ("", []),
        ("none", []),
    ],
)
def test_votes_in_words(read, vote, expected):
    titles = ("image", "question", "answer A", "answer B", "preference")
    records, _, left = read(titles, (*IMAGE, "x", "y", vote))
    assert ranked(records) == [expected] and not left
    assert [answer.text for answer in records[0].answers] == ["x", "y"]  # as they were shown


def test_a_vote_that_names_nothing_is_left_with_its_place(read):
    titles = ("image", "question", "answer A", "answer B", "preference")
    records, _, left = read(titles, (*IMAGE, "x", "y", "C"), (*IMAGE, "x", "y", "A"))
    assert len(records) == 1
    (line,) = left.lines()
    assert "t.csv:2" in line and "'C' names none of the answers (answer A, answer B)" in line


@pytest.mark.parametrize(
    ("stated", "expected"),
    [
        ("2 > 1 = 3", [["y"], ["x", "z"]]),
        ("2>1>3", [["y"], ["x"], ["z"]]),
        ("2, 1, 3", [["y"], ["x"], ["z"]]),
        ("213", [["y"], ["x"], ["z"]]),
        ("[2; 3; 1]", [["y"], ["z"], ["x"]]),
        ("B > A > C", [["y"], ["x"], ["z"]]),
        ("answer 3 > answer 1 > answer 2".replace("answer ", "answer"), [["z"], ["x"], ["y"]]),
    ],
)
def test_rankings_in_words(read, stated, expected):
    titles = ("image", "question", "answer1", "answer2", "answer3", "ranking")
    records, _, left = read(titles, (*IMAGE, "x", "y", "z", stated))
    assert ranked(records) == [expected], left.lines()


def test_rankings_by_ranks_and_scores(read):
    titles = ("image", "question", "answer 1", "answer 2", "rank 1", "rank 2")
    assert ranked(read(titles, (*IMAGE, "x", "y", "2", "1"))[0]) == [[["y"], ["x"]]]
    titles = ("image", "question", "answer 1", "score 1", "answer 2", "score 2")
    records, _, left = read(titles, (*IMAGE, "x", "4,5", "y", "3,5"), (*IMAGE, "x", "", "y", "1"))
    assert ranked(records) == [[["x"], ["y"]]]
    assert "'answer 1' has no score" in left.lines()[0]


def test_a_row_an_answer_is_joined_by_image_and_question(read):
    titles = ("image", "question", "answer", "rank")
    rows = [(*IMAGE, "x", "2"), ("photo1.png", "?", "alone", "1"), (*IMAGE, "y", "1")]
    records, _, left = read(titles, *rows)
    assert ranked(records) == [[["y"], ["x"]]] and records[0].truth is None
    assert "fewer than two ranked answers" in left.lines()[0] and "t.csv:3" in left.lines()[0]


def test_a_score_beside_single_answers_makes_no_ranking(read):
    titles = ("image", "question", "answer", "score")
    _, tasks, left = read(titles, (*IMAGE, "x", "2"), ("photo1.png", "?", "y", "1"))
    assert [task.facts for task in tasks] == ["x", "y"]
    assert "no rankings" in left.notes[0]


def test_pairs_and_an_empty_side(read):
    titles = ("image", "question", "chosen", "rejected", "truth")
    records, _, left = read(
        titles, (*IMAGE, "x", "y", "z"), (*IMAGE, "x", "", ""), (*IMAGE, "x", "x")
    )
    assert ranked(records) == [[["x"], ["y"]]] and records[0].truth == "z"
    assert len(left) == 2 and "the rejected answer is empty" in left.lines()[0]


# --- truth ---


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("a", ["a"]),
        (3, ["3"]),
        (2.50, ["2.5"]),
        (True, ["true"]),
        (None, []),
        ([10, 20], ["[10, 20]"]),
        (["a", "b"], ["a", "b"]),
        (["a", 3], ["a", "3"]),
        ([{"answer": "yes"}, {"answer": "no"}], ["yes", "no"]),
        ({"text": "a"}, ["a"]),
    ],
)
def test_answers_are_kept_as_texts(value, texts):
    assert reference_texts(value) == texts


def test_several_reference_answers_stay_as_many_as_they_were(read):
    _, tasks, _ = read(("image", "question", "answers"), (*IMAGE, ["a", "b", "a"]))
    assert tasks[0].facts == ["a", "b", "a"] and tasks[0].kind == "exact_match"
    titles = ("image", "question", "answer 1", "answer 2", "answer 3")
    _, tasks, _ = read(titles, (*IMAGE, "a", "", "b"))
    assert tasks[0].facts == ["a", "b"]


def test_answers_of_several_people_are_known_from_the_whole_file(read):
    titles = ("image", "question", "answers")
    vqa = [{"answer": word} for word in ("red", "blue", "green", "pink")]
    assert read(titles, (*IMAGE, vqa))[1][0].kind == "vqa_accuracy"
    people = ["red", "red", "red", "pink"]
    _, tasks, _ = read(titles, (*IMAGE, people), (*IMAGE, ["a", "b", "c", "d"]))
    assert [task.kind for task in tasks] == ["vqa_accuracy"] * 2
    # other spellings of one answer: nobody lists one twice
    assert read(titles, (*IMAGE, ["a", "b", "c", "d"]))[1][0].kind == "exact_match"
    # fewer than four somewhere
    assert read(titles, (*IMAGE, people), (*IMAGE, ["a", "a"]))[1][0].kind == "exact_match"


def test_the_kind_that_was_named_counts_and_must_fit(read):
    titles = ("image", "question", "answer")
    _, tasks, _ = read(titles, (*IMAGE, "yes"), truth="yes_no")
    assert tasks[0].kind == "yes_no"
    _, tasks, left = read(titles, (*IMAGE, "yes"), truth="vqa_accuracy")
    assert not tasks and "of 4 people or more, not 1" in left.lines()[0]
    _, tasks, _ = read(titles, (*IMAGE, "yes"), truth="none")
    assert tasks[0].facts is None and tasks[0].kind == "none"
    _, tasks, _ = read(titles, (*IMAGE, {"cars": 2, "buses": 0}))
    assert tasks[0].kind == "counts" and tasks[0].facts == {"cars": 2, "buses": 0}


# --- images and questions ---


def test_several_images_and_several_turns(read):
    titles = ("images", "prompt")
    turns = [
        {"role": "user", "content": "What is this?"},
        {"role": "assistant", "content": "A boat."},
        {"role": "user", "content": "Its colour?"},
    ]
    _, tasks, _ = read(titles, (["photo0.png", "photo1.png"], turns))
    assert len(tasks[0].images) == 2 and [t.role for t in tasks[0].turns] == [
        "user",
        "assistant",
        "user",
    ]
    _, tasks, _ = read(("image 1", "image 2", "question"), ("photo0.png", "photo2.png", "Same?"))
    assert [image.name for image in tasks[0].images] == ["photo0.png", "photo2.png"]
    _, tasks, _ = read(titles, ("photo0.png; photo1.png", "Same?"))
    assert len(tasks[0].images) == 2


def test_without_a_column_of_questions_those_that_are_given_are_asked(read):
    titles = ("image", "chosen", "rejected")
    records, _, left = read(titles, ("photo0.png", "x", "y"))
    assert records[0].prompt[0].content == "Describe the image." and "is asked" in left.notes[0]
    records, _, _ = read(titles, ("photo0.png", "x", "y"), questions=["What?"])
    assert records[0].prompt[0].content == "What?"


def test_rows_name_their_split_and_missing_images_are_counted(read):
    titles = ("image", "question", "split")
    _, tasks, left = read(
        titles, ("photo0.png", "?", ""), *[("gone.png", "?", "")] * 5, (*IMAGE, "Val")
    )
    assert len(tasks) == 1 and len(left) == 5
    (line,) = left.lines()
    assert line.startswith("not used, the image cannot be found (5): t.csv:3 image gone.png")
    assert line.endswith("… and 2 more")
