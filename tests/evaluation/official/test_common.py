"""Asking in batches, and files that belong to questions."""

import json

import pytest

from helpers.evaluation.official import (
    BenchmarkQuestion,
    ask_questions,
    read_verdicts,
    write_answers,
)
from helpers.files import UsageError


def asked(number):
    return [
        BenchmarkQuestion(id=str(i), prompt=f"{i}?", image=None, label="yes", group="random")
        for i in range(number)
    ]


def test_ask_in_batches_and_in_order():
    seen = []

    def generate(images, prompts):
        seen.append(len(prompts))
        return [f"{image} {prompt}" for image, prompt in zip(images, prompts, strict=True)]

    assert ask_questions(asked(5), generate, batch=2) == {
        str(i): f"None {i}?" for i in range(5)
    } and seen == [2, 2, 1]
    with pytest.raises(UsageError, match="gave 1 answers to 2 questions"):
        ask_questions(asked(2), lambda images, prompts: ["Yes"])


def test_answers_are_written_in_the_order_of_the_questions(tmp_path):
    questions, answers = asked(3), {"2": "", "0": "Ja „so“\n", "1": "No"}
    path = write_answers(tmp_path / "answers.jsonl", questions, answers)
    assert path.read_text().splitlines()[0] == '{"id": "0", "answer": "Ja „so“\\n"}'
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert {row["id"]: row["answer"] for row in rows} == answers
    with pytest.raises(UsageError, match="1 of 3 questions have no answer"):
        write_answers(path, questions, {"0": "", "1": ""})


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"id": "9", "verdict": 0}', r"a.jsonl:2: no question has the id '9'"),
        ('{"id": "0", "verdict": 0}', r"a.jsonl:2: a second verdict for the id 0"),
        ('["1", 0]', r"a.jsonl:2: a row is an object"),
        ("", r"1 of 2 questions have no verdict, the first 1"),
    ],
)
def test_bad_files_are_named_with_the_line(line, said, tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"id": "0", "verdict": 1}\n' + line)
    with pytest.raises(UsageError, match=said):
        read_verdicts(path, asked(2))
