"""LLaVA-Bench's and MMHal-Bench's rules on reviews made by hand; figures follow from the rules."""

import json
import random

import pytest
from made_up_questions import question, values

from helpers.evaluation.official import grade_llava_bench, grade_mmhal_bench, read_reviews
from helpers.evaluation.official.judged import parse_llava_scores, parse_mmhal_rating
from helpers.files import UsageError


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 7", (8, 7)),
        ("8,7\nBoth …", (8, 7)),
        ("8.5 7.25\n", (8.5, 7.25)),
        ("8, 7", (-1, -1)),  # comma and blank make three fields
        ("8 7 ", (-1, -1)),
        ("8/10 7/10", (-1, -1)),
        ("Scores:\n8 7", (-1, -1)),
        ("", (-1, -1)),
    ],
)
def test_llava_scores_of_the_first_line(review, scores):
    assert parse_llava_scores(review) == scores


def llava():
    rows = [("conv", "8 6\n…"), ("conv", "7,7"), ("detail", "9, 8"), ("complex", "5 10")]
    questions = [question(str(i), "reference", group) for i, (group, _) in enumerate(rows)]
    return questions, {str(i): review for i, (_, review) in enumerate(rows)}


def test_llava_figures():
    grade = grade_llava_bench(*llava())
    assert values(grade) == {
        "all": 115.8,  # (6 + 7 − 1 + 10) / (8 + 7 − 1 + 5) = 22 / 19
        "conv": 86.7,  # 13 / 15
        "detail": 100.0,  # −1 / −1: nothing could be read
        "complex": 200.0,
        # of the reference and of the model, −1 where nothing could be read, × 10
        "all: reference": 47.5,
        "all: model": 55.0,
        "conv: reference": 75.0,
        "conv: model": 65.0,
        "detail: reference": -10.0,
        "detail: model": -10.0,
        "complex: reference": 50.0,
        "complex: model": 100.0,
        "unparsable": 1 / 4,
        "all without unparsable": 115.0,  # 23 / 20
        "conv without unparsable": 86.7,
        "detail without unparsable": None,
        "complex without unparsable": 200.0,
    }
    assert grade.figures["unparsable"].n == 4
    assert "detail without unparsable   not defined" in str(grade)


def test_llava_rounds_means_before_the_ratio():
    one = [question("1", "", "conv")]
    grade = grade_llava_bench(one, {"1": "0.0016 0.001"})
    assert grade.figures["all"] == 50.0  # .001 / .002, not 62.5
    assert grade_llava_bench(one, {"1": "0 8"}).figures["all"] is None


def test_llava_review_files(tmp_path):
    questions, reviews = llava()
    lines = [
        {
            "id": i + 1,
            "question_id": i,
            "category": "llava_bench_conv",
            "content": reviews[str(i)],
            "tuple": tuple_,
        }
        for i, tuple_ in enumerate([[8.0, 6.0], [7.0, 7.0], [-1, -1], [5.0, 10.0]])
    ]
    path = tmp_path / "reviews.jsonl"

    def write():
        path.write_text("\n".join(map(json.dumps, lines)) + "\n")
        return path

    assert read_reviews(write(), questions) == reviews
    lines[3] = {
        "question_id": "3",
        "content": "[Context] …",
        "review": reviews["3"],
    }  # lmms-eval: content is the prompt
    assert read_reviews(write(), questions) == reviews
    lines[2]["tuple"] = [9.0, 8.0]
    with pytest.raises(UsageError, match=r"reviews.jsonl:3: tuple \[9.0, 8.0\] is not what"):
        read_reviews(write(), questions)
    lines[2] = dict(lines[1])
    with pytest.raises(UsageError, match=r"reviews.jsonl:3: a second review for the id 1"):
        read_reviews(write(), questions)
    lines[2] = {"question_id": 2}
    with pytest.raises(UsageError, match=r"reviews.jsonl:3: a row needs question_id or id"):
        read_reviews(write(), questions)
    lines.pop(2)
    with pytest.raises(UsageError, match="1 of 4 questions have no review, the first 2"):
        read_reviews(write(), questions)


MMHAL = [
    ("attribute", "Fine.\n- Rating: 6, very informative", 6),
    ("counting", "rating: 3. Again: Rating: 3", 3),
    ("attribute", "Rating: 2", 2),
    ("counting", "Rating: 10", 1),  # "rating: 1" stands in it
    ("attribute", "I would say 5", None),
    ("counting", "Rating: 1 or rating: 5", None),
]


def mmhal():
    questions = [question(str(i + 1), "…", group) for i, (group, _, _) in enumerate(MMHAL)]
    return questions, {str(i + 1): review for i, (_, review, _) in enumerate(MMHAL)}


def test_mmhal_figures():
    assert [parse_mmhal_rating(review) for _, review, _ in MMHAL] == [
        rating for *_, rating in MMHAL
    ]
    assert parse_mmhal_rating("**Rating**: 5") is None and parse_mmhal_rating("Rating: 4.5") == 4
    grade = grade_mmhal_bench(*mmhal())
    assert values(grade) == pytest.approx(
        {
            "average score": 2.0,  # (6 + 3 + 2 + 1 + 0 + 0) / 6
            "hallucination rate": 4 / 6,
            "average score, attribute": 8 / 3,
            "average score, counting": 4 / 3,
            "unparsable": 2 / 6,
            "average score without unparsable": 3.0,  # (6 + 3 + 2 + 1) / 4
            "hallucination rate without unparsable": 2 / 4,
        }
    )
    assert grade.figures["hallucination rate"].n == 6
    assert grade.figures["hallucination rate without unparsable"].n == 4


def test_mmhal_without_a_single_rating():
    questions, _ = mmhal()
    found = values(grade_mmhal_bench(questions, {q.id: "…" for q in questions}))
    assert found["average score"] == 0 and found["hallucination rate"] == 1
    assert found["average score without unparsable"] is None
    assert found["hallucination rate without unparsable"] is None


def test_mmhal_responses_of_the_api_go_by_place(tmp_path):
    questions, reviews = mmhal()
    path = tmp_path / "evaluation.json"
    responses = [
        {"model": "m", "choices": [{"message": {"content": review}}]} for review in reviews.values()
    ]
    path.write_text(json.dumps(responses, indent=2))
    assert read_reviews(path, questions) == reviews
    lines = [json.dumps({"id": key, "review": review}) for key, review in reviews.items()]
    random.Random(0).shuffle(lines)
    (tmp_path / "ids.jsonl").write_text("\n\n".join(lines))  # a blank line is no row
    assert read_reviews(tmp_path / "ids.jsonl", questions) == reviews
    path.write_text(json.dumps(responses + responses[:1]))
    with pytest.raises(UsageError, match=r"evaluation.json:7: more than 6 responses"):
        read_reviews(path, questions)
    path.write_text(json.dumps([{"choices": []}]))
    with pytest.raises(UsageError, match=r"evaluation.json:1: a response needs choices"):
        read_reviews(path, questions)
    path.write_text('{"id": "1", "review": "Rating: 3"')
    with pytest.raises(UsageError, match=r"evaluation.json:1: not JSON"):
        read_reviews(path, questions)
    with pytest.raises(UsageError, match="no such file"):
        read_reviews(tmp_path / "none.json", questions)
