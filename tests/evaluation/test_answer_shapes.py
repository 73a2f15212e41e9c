"""Length, repetition, variety and distance of answers, by hand."""

import warnings

import pytest
from made_up_tasks import tasks_about

from helpers.evaluation import AnswerShapes, answer_shape
from helpers.evaluation.side_by_side import PolicyAnswer


def spoken(text, ids=(1, 2, 3, 4), kl=(0.0,), ended=True, policy="dpo"):
    ids = list(ids)
    return PolicyAnswer(policy, text, ids, [""] * len(ids), [], [], list(kl), ended)


def test_figures_by_hand():
    answers = [
        spoken("A bus and a bus", ids=[1, 2, 3, 1, 2, 3, 1], kl=[0.5, 1.0]),
        spoken(" ", ids=[9], kl=[0.5], ended=False),
    ]
    shape = answer_shape(answers)
    assert (shape.words.value, shape.tokens.value) == (2.5, 4.0)
    # 123 231 312 123 231: two of five were there; none in the other
    assert shape.repeated.value == pytest.approx(0.2)
    assert shape.distinct == 3 / 5  # a bus and a bus
    assert (shape.empty.value, shape.cut.value) == (0.5, 0.5)
    assert shape.kl.value == pytest.approx((1.5 + 0.5) / 2)


def test_longer_answers_and_loops_are_said(tmp_path):
    tasks = tasks_about(tmp_path, [str(i) for i in range(8)])
    base = [spoken(f"one {i}", policy="base") for i in range(8)]
    long = [spoken("and " * (6 + i % 2), ids=[1] * 9, ended=False) for i in range(8)]
    shapes = AnswerShapes(tasks, {"base": base, "dpo": long})
    said = " ".join(shapes.sentences())
    assert "dpo: 6.5 words an answer, the base 2.0" in said and "are longer" in said
    assert "came to no end: 1.000" in said and "86% of the 3-grams" in said  # 6 of 7
    same = AnswerShapes(tasks, {"base": base, "dpo": base}).sentences()
    assert same == ["dpo: 2.0 words an answer, the base 2.0; difference 0 [no interval]: "
                    "no other length can be claimed."]  # fmt: skip
    head, first, second = shapes.rows()
    assert len(head) == len(first) == len(second) and first[-1] == "", (
        "the base is no distance away"
    )


@pytest.mark.parametrize("number", [0, 1, 2])
def test_few_answers_are_no_crash(tmp_path, number):
    tasks = tasks_about(tmp_path, [str(i) for i in range(number)])
    answers = {"base": [spoken("a")] * number, "dpo": [spoken("a b")] * number}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        shapes = AnswerShapes(tasks, answers)
        text = str(shapes.rows()) + " ".join(shapes.sentences())
    assert "nan" not in text and "are longer" not in text
