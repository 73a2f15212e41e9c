"""POPE's and MME's rules on hand-made answers; what is expected is worked out from the rules."""

import pytest
from hypothesis import given, settings, strategies as st
from made_up_questions import question, values
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from helpers.evaluation.official import grade_mme, grade_pope
from helpers.evaluation.official.questions import COGNITION, PERCEPTION
from helpers.evaluation.official.yes_no import parse_mme, parse_pope, plain_reading
from helpers.files import UsageError


@pytest.mark.parametrize(
    ("answer", "read", "plain"),
    [
        ("Yes", "yes", "yes"),
        ("No, there is none.", "no", "no"),  # the comma goes: No is a word
        ("There is not. Yes.", "no", "yes"),  # first sentence only
        ("A dog. No cat.", "yes", "no"),
        ("NO", "yes", "no"),  # only No and no
        ("No!", "yes", "no"),  # the mark stays on the word
        ("No\nmore", "yes", "no"),  # split at blanks, not at line ends
        ("no cat", "no", "no"),
        ("Nothing", "yes", None),
        ("", "yes", None),
        ("Yes and no", "no", None),
    ],
)
def test_pope_reads_as_the_official_code(answer, read, plain):
    assert parse_pope(answer) == read and plain_reading(answer) == plain


POPE = [
    ("yes", "random", "Yes."),  # true positive
    ("yes", "random", "No, there is none."),  # false negative
    ("no", "random", "no"),  # true negative
    ("no", "random", "NO"),  # read as yes: false positive, misread
    ("no", "random", ""),  # read as yes: false positive, unparsable
    ("yes", "random", "It isn't hidden, so yes"),  # true positive
    ("no", "popular", "Yes and no"),  # read as no: true negative, unparsable
]


def test_pope_figures():
    questions = [question(str(i), label, split) for i, (label, split, _) in enumerate(POPE)]
    grade = grade_pope(questions, {str(i): answer for i, (_, _, answer) in enumerate(POPE)})
    names = ["accuracy", "precision", "recall", "F1"]
    names += ["yes ratio", "yes labels", "unparsable", "misread"]
    found = values(grade)
    assert list(found) == [f"{split} {name}" for split in ("random", "popular") for name in names]
    assert {name: found[f"random {name}"] for name in names} == {
        "accuracy": 3 / 6,  # 2 + 1 of 6
        "precision": 2 / 4,
        "recall": 2 / 3,
        "F1": pytest.approx(4 / 7),  # 2 · ½ · ⅔ / (½ + ⅔) = ⅔ / (7/6)
        "yes ratio": 4 / 6,
        "yes labels": 3 / 6,
        "unparsable": 1 / 6,
        "misread": 1 / 6,
    }
    n = {name: grade.figures[f"random {name}"].n for name in ("accuracy", "precision", "recall")}
    assert n == {"accuracy": 6, "precision": 4, "recall": 3}
    assert found["popular accuracy"] == found["popular unparsable"] == 1
    assert found["popular misread"] == found["popular yes labels"] == 0
    # the official code divides by zero
    assert [found[f"popular {name}"] for name in ("precision", "recall", "F1")] == [None] * 3
    assert "random F1" in str(grade) and "popular precision   not defined" in str(grade)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["yes", "no"]), st.sampled_from(["Yes", "No.", "", "not", "nope"])
        ),
        min_size=1,
    )
)
def test_pope_equals_scikit_learn(items):
    questions = [question(str(i), label, "adversarial") for i, (label, _) in enumerate(items)]
    found = values(grade_pope(questions, {str(i): answer for i, (_, answer) in enumerate(items)}))
    labels, said = [label for label, _ in items], [parse_pope(answer) for _, answer in items]
    known = {"pos_label": "yes", "zero_division": 0}
    expected = {
        "accuracy": accuracy_score(labels, said),
        "precision": precision_score(labels, said, **known),
        "recall": recall_score(labels, said, **known),
        "F1": f1_score(labels, said, **known),
    }
    ours = {name: found[f"adversarial {name}"] or 0 for name in expected}
    assert ours == pytest.approx(expected)


@pytest.mark.parametrize(
    ("questions", "answers", "said"),
    [
        ([], {}, "there are no questions"),
        ([question("1", "yes", "random")], {}, "1 of 1 questions have no answer, the first 1"),
        ([question("1", "yes", "random")], {"1": "", "2": ""}, "no question has the id '2'"),
        ([question("1", "yes", "random")] * 2, {"1": ""}, "2 questions have the id 1"),
        ([question("1", "Yes", "random")], {"1": ""}, "label 'Yes' must be yes or no"),
        ([question("1", "yes", "existence")], {"1": ""}, "group 'existence'"),
    ],
)
def test_answers_that_do_not_fit(questions, answers, said):
    with pytest.raises(UsageError, match=said):
        grade_pope(questions, answers)


@pytest.mark.parametrize(
    ("answer", "read"),
    [("Yes", "yes"), ("YES, it is", "yes"), (" yes", "yes"), ("  yes", "other"), ("None", "no"), ("eyes", "yes"), ("The answer is no", "other"), ("I no", "no"), ("", "other")],
)  # fmt: skip
def test_mme_reads_four_characters(answer, read):
    assert parse_mme(answer) == read


def mme(tasks, per_task=2):
    return [
        question(f"{task}/{image}#{label}", label, task, pair=f"{task}/{image}")
        for task in tasks
        for image in range(per_task)
        for label in ("yes", "no")
    ]


def test_mme_figures():
    questions = mme(["count"])
    answers = dict(zip([q.id for q in questions], ["Yes", "No", "  yes", "None"], strict=True))
    grade = grade_mme(questions, answers)
    assert values(grade) == {
        "perception": None,
        "cognition": None,
        "count score": 125.0,  # 75 + 50
        "count acc": 3 / 4,  # "  yes" is other
        "count acc+": 1 / 2,
        "count yes ratio": 1 / 4,
        "count other": 1 / 4,
        "count unparsable": 1 / 4,  # None, which counts as no
    }
    accuracy = grade.figures["count acc"]
    assert (accuracy.n, grade.figures["count acc+"].n) == (4, 2)
    assert accuracy.low < 3 / 4 < accuracy.high


def test_mme_totals():
    questions = mme(PERCEPTION + COGNITION)

    def totals(grade):
        return grade.figures["perception"], grade.figures["cognition"]

    perfect = grade_mme(questions, {q.id: q.label for q in questions})
    assert totals(perfect) == (2000.0, 800.0)
    always = grade_mme(questions, {q.id: "Yes" for q in questions})
    assert totals(always) == (500.0, 200.0)  # every acc 50, every acc+ 0
    nothing = grade_mme(questions, {q.id: "" for q in questions})
    assert totals(nothing)[0] == 0 and nothing.figures["OCR other"].value == 1
    part = grade_mme(questions[:-4], {q.id: "Yes" for q in questions[:-4]})
    assert totals(part) == (500.0, None) and "cognition" in str(part)


def test_mme_needs_pairs():
    questions = mme(["OCR"])[:3]
    with pytest.raises(UsageError, match="OCR: 1 questions about OCR/1, not 2"):
        grade_mme(questions, {q.id: "Yes" for q in questions})
