"""Preferences of any data: its own, built from counts, or the model's answers in their order."""

import pytest
from own_files import draw_photos, four_fields, numbered, write_lines

from helpers.data import ask, open_data, prepare_data
from helpers.files import UsageError
from helpers.models import SampledAnswer
from helpers.rewards import (
    add_true_answers,
    compare_heuristic,
    default_scorer,
    describe_samples,
    make_preferences,
    mark_answers,
)


def prepared(tmp_path, rows, **about):
    draw_photos(tmp_path, numbered(10))
    return prepare_data(
        open_data(write_lines(tmp_path / "a.jsonl", rows), **about), tmp_path / "out"
    )


def questions(answer=None):
    return [{"image": f"photo{n}.png", "question": "?", "answer": answer} for n in range(10)]


def sample(*texts):
    """Every task gets these answers, all of them whole."""
    return lambda tasks: [[SampledAnswer(text, True) for text in texts] for _ in tasks]


def refuse(tasks):
    raise AssertionError("nothing is to be sampled")


def test_the_datas_own_preferences_stay_and_nothing_is_sampled(tmp_path):
    data = prepared(tmp_path, four_fields(10))
    records = make_preferences(data, "train", refuse)
    assert records == data.records("train")
    ranked = make_preferences(data, "train", sample("yes", "no"), "ranked", score=None)
    assert ranked[0].ranking is None and [a.origin for a in ranked[0].answers] == ["own", "own"]


def test_counts_are_built_with_the_names_and_questions_that_they_had(tmp_path):
    rows = [row | {"answer": {"cars": n, "buses": 1}} for n, row in enumerate(questions())]
    data = prepared(tmp_path, [row | {"id": f"r{n}"} for n, row in enumerate(rows)])
    answer = "There are 99 cars, 1 buses in the image."
    records = make_preferences(data, "train", sample(answer), negatives=("own",))
    assert [r.id for r in records] == [t.id for t in data.tasks("train")]
    assert {r.prompt[-1].content for r in records} == {"?"}
    best = records[0].pairs()[0]
    assert (best.chosen.origin, best.rejected.text) == ("truth", answer)


def test_other_questions_get_the_models_answers_by_what_is_true(tmp_path):
    data = prepared(tmp_path, questions("boat"))
    score = default_scorer(data.tasks("train"))
    records = make_preferences(data, "train", sample("a house", "Boat."), score=score)
    assert records[0].pairs()[0].chosen.text == "Boat."


def test_without_anything_to_prefer_it_says_what_to_do(tmp_path):
    data = prepared(tmp_path, questions())
    with pytest.raises(UsageError, match="no question got two different answers"):
        make_preferences(data, "train", sample("same", "same"), score=None)
    assert make_preferences(data, "valid", sample("same", "same"), score=None) == []
    with pytest.raises(UsageError, match="PAIRS = 'given': choose from built, ranked"):
        make_preferences(data, "train", refuse, "given")


def test_samples_in_words_with_a_truth_and_without(capsys):
    right, cut = SampledAnswer("a boat", True), SampledAnswer("a house by", False)
    known, unknown = ask("?", [], "a boat", "exact_match"), ask("?", [])
    assert mark_answers(known, [right, cut]) == ["  ✓ a boat", "  ✗ a house by …"]
    assert mark_answers(unknown, [right]) == ["  · a boat"]
    lines = describe_samples([known, known], [[right, cut], [cut, cut]])
    assert lines[0].startswith("sampled answers that are right:  0.250")  # 1 of 4
    assert lines[-1] == "questions with at least one right answer: 1 of 2"
    assert describe_samples([unknown], [[right, cut]])[-1].endswith("nobody has said what is")
    assert "cannot be compared" in compare_heuristic([unknown], [[right]])[0]
    default_scorer([unknown])
    assert "no truth is known" in capsys.readouterr().out


def test_a_model_that_is_always_wrong_is_shown_the_true_answer():
    tasks = [ask(f"{n}?", [], text, "exact_match") for n, text in enumerate(("red", "blue"))]
    tasks.append(ask("Why?", []))
    wrong = [[SampledAnswer("green", True)]] * 3
    whole = add_true_answers(tasks, wrong, seed=0)
    texts = [sorted(answer.text for answer in several) for several in whole]
    # its own, the true one, and the one that is true of the other question
    assert texts == [["blue", "green", "red"], ["blue", "green", "red"], ["green"]]
    assert add_true_answers(tasks, wrong, seed=0) == whole
    places = set()
    for seed in range(20):
        several = add_true_answers(tasks, wrong, seed)[0]
        places.add([answer.text for answer in several].index("red"))
    assert places == {0, 1, 2}
