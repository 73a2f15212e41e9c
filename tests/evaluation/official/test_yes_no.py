"""POPE's and MME's rules on hand-made answers; what is expected is worked out from the rules."""

import pytest
from hypothesis import given, settings, strategies as st
from made_up_questions import question
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
    assert list(grade.splits) == ["random", "popular"]
    part = grade.splits["random"]
    assert (part.accuracy.value, part.accuracy.n) == (3 / 6, 6)  # 2 + 1 of 6
    assert (part.precision.value, part.precision.n) == (2 / 4, 4)
    assert (part.recall.value, part.recall.n) == (2 / 3, 3)
    assert part.f1 == pytest.approx(4 / 7)  # 2 · ½ · ⅔ / (½ + ⅔) = ⅔ / (7/6)
    assert part.yes_ratio.value == 4 / 6 and part.yes_labels.value == 3 / 6
    assert part.unparsable.value == 1 / 6 and part.misread.value == 1 / 6
    part = grade.splits["popular"]
    assert (
        part.accuracy.value == part.unparsable.value == 1
        and part.misread.value == part.yes_labels.value == 0
    )
    assert part.precision is part.recall is part.f1 is None  # the official code divides by zero
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
    part = grade_pope(questions, {str(i): answer for i, (_, answer) in enumerate(items)}).splits[
        "adversarial"
    ]
    labels, said = [label for label, _ in items], [parse_pope(answer) for _, answer in items]
    assert part.accuracy.value == pytest.approx(accuracy_score(labels, said))
    known = {"pos_label": "yes", "zero_division": 0}
    assert (part.precision.value if part.precision else 0) == pytest.approx(
        precision_score(labels, said, **known)
    )
    assert (part.recall.value if part.recall else 0) == pytest.approx(
        recall_score(labels, said, **known)
    )
    assert (part.f1 or 0) == pytest.approx(f1_score(labels, said, **known))


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
    task = grade_mme(questions, answers).tasks["count"]
    assert (task.accuracy.value, task.accuracy.n) == (3 / 4, 4)  # "  yes" is other
    assert (task.accuracy_plus.value, task.accuracy_plus.n) == (1 / 2, 2)
    assert task.score == 125.0  # 75 + 50
    assert task.yes_ratio.value == task.other.value == 1 / 4
    assert task.unparsable.value == 1 / 4  # None, which counts as no
    assert task.accuracy.low < 3 / 4 < task.accuracy.high


def test_mme_totals():
    questions = mme(PERCEPTION + COGNITION)
    perfect = grade_mme(questions, {q.id: q.label for q in questions})
    assert (perfect.perception, perfect.cognition) == (2000.0, 800.0)
    always = grade_mme(questions, {q.id: "Yes" for q in questions})
    assert (always.perception, always.cognition) == (500.0, 200.0)  # every acc 50, every acc+ 0
    nothing = grade_mme(questions, {q.id: "" for q in questions})
    assert nothing.perception == 0 and nothing.tasks["OCR"].other.value == 1
    part = grade_mme(questions[:-4], {q.id: "Yes" for q in questions[:-4]})
    assert part.perception == 500.0 and part.cognition is None and "cognition" in str(part)


def test_mme_needs_pairs():
    questions = mme(["OCR"])[:3]
    with pytest.raises(UsageError, match="OCR: 1 questions about OCR/1, not 2"):
        grade_mme(questions, {q.id: "Yes" for q in questions})
