"""Rules of published benchmarks on hand-made answers and reviews; what is expected is worked out from the rules."""

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from helpers.evaluation.official import (
    Question,
    grade_hallusion_bench,
    grade_llava_bench,
    grade_mme,
    grade_mmhal_bench,
    grade_pope,
    read_reviews,
    read_verdicts,
)
from helpers.evaluation.official.hallusion import parse_verdict_text
from helpers.evaluation.official.judged import parse_llava_scores, parse_mmhal_rating
from helpers.evaluation.official.questions import COGNITION, PERCEPTION
from helpers.evaluation.official.yes_no import parse_mme, parse_pope, plain_reading
from helpers.files import UsageError


def question(name, label, group, **about):
    return Question(id=name, prompt="?", image=None, label=label, group=group, about=about)


def values(grade):
    """Figures of a table as numbers, by name."""
    return {name: getattr(value, "value", value) for name, value in grade.rows()}


# --- POPE ---


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
    assert part.accuracy.value == part.unparsable.value == 1 and part.misread.value == part.yes_labels.value == 0
    assert part.precision is part.recall is part.f1 is None  # the official code divides by zero
    assert "random F1" in str(grade) and "popular precision   not defined" in str(grade)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["yes", "no"]), st.sampled_from(["Yes", "No.", "", "not", "nope"])), min_size=1)
)
def test_pope_equals_scikit_learn(items):
    questions = [question(str(i), label, "adversarial") for i, (label, _) in enumerate(items)]
    part = grade_pope(questions, {str(i): answer for i, (_, answer) in enumerate(items)}).splits["adversarial"]
    labels, said = [label for label, _ in items], [parse_pope(answer) for _, answer in items]
    assert part.accuracy.value == pytest.approx(accuracy_score(labels, said))
    known = {"pos_label": "yes", "zero_division": 0}
    assert (part.precision.value if part.precision else 0) == pytest.approx(precision_score(labels, said, **known))
    assert (part.recall.value if part.recall else 0) == pytest.approx(recall_score(labels, said, **known))
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


# --- MME ---


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


# --- HallusionBench ---

HALLUSION = {  # category, set, figure, question, visual_input: label, verdict
    ("VD", "0", "0", "0", "1"): ("yes", 1),  # right
    ("VD", "0", "0", "1", "1"): ("no", 0),  # wrong
    ("VD", "0", "1", "0", "2"): ("no", 1),  # right
    ("VD", "0", "1", "1", "2"): ("yes", 2),  # unclear: wrong
    ("VS", "0", "0", "0", "0"): ("yes", 2),  # unclear without its figure: right
    ("VS", "0", "1", "0", "1"): ("yes", 0),  # wrong
    ("VS", "0", "2", "0", "2"): ("no", 1),  # right
}


def hallusion():
    questions = []
    for (category, number, figure, place, visual), (label, _) in HALLUSION.items():
        about = {"subcategory": "map", "set_id": number, "figure_id": figure, "question_id": place}
        name = f"{category}_map_{number}_{figure}_{place}"
        questions.append(question(name, label, category, visual_input=visual, gt_answer_details="", **about))
    return questions, dict(zip([q.id for q in questions], [v for _, v in HALLUSION.values()], strict=True))


def test_hallusion_figures():
    questions, verdicts = hallusion()
    grade = grade_hallusion_bench(questions, verdicts=verdicts)
    assert (grade.question.value, grade.question.n) == (4 / 7, 7)
    assert (grade.pair.value, grade.pair.n) == (1 / 3, 3)  # VD question 0; VD 1 and VS 0 have a wrong one
    # figures VD 0 and VD 1 have one right of two, VS 1 none, VS 2 all; VS 0 is none
    assert (grade.figure.value, grade.figure.n) == (1 / 4, 4)
    assert (grade.figure_inconsistent.value, grade.figure_wrong.value) == (2 / 4, 1 / 4)
    # not edited: VD 0 right, VD 1 wrong, VS 0 wrong (right without its figure, wrong with it); by figure_id it were ⅔
    assert (grade.easy.value, grade.easy.n) == (1 / 3, 3)
    assert (grade.hard.value, grade.hard.n) == (2 / 3, 3)  # edited: VD 0 and VS 0; by figure_id it were ⅓
    # yes: labels 1, 4, 5, 6; said 1, 5 (right, label yes) and 2 (wrong, label no)
    assert grade.percent_difference == pytest.approx(3 / 7 - 4 / 7)
    assert (grade.false_positive_ratio.value, grade.false_positive_ratio.n) == (1 / 3, 3)
    assert grade.unclear.value == 2 / 7
    assert grade.percent_difference_clear == pytest.approx(0)  # of five: labels 1 and 6, said 1 and 2
    assert "judge, as official" in str(grade) and list(values(grade))[:3] == ["aAcc", "qAcc", "fAcc"]


def test_hallusion_without_a_judge():
    questions, _ = hallusion()
    said = ["Yes", "Yes, it is", "No.", "Maybe", "I cannot tell", "no", "Nope, no"]
    matched = grade_hallusion_bench(questions, answers=dict(zip([q.id for q in questions], said, strict=True)))
    _, verdicts = hallusion()
    judged = grade_hallusion_bench(questions, verdicts=verdicts)
    assert matched.rows() == judged.rows()  # the words say what the verdicts above say
    assert "word match, not official" in matched.title


def test_hallusion_all_right_and_all_unclear():
    questions, _ = hallusion()
    best = grade_hallusion_bench(questions, verdicts={q.id: 1 for q in questions})
    assert best.question.value == best.pair.value == best.figure.value == best.easy.value == best.hard.value == 1
    assert best.percent_difference == 0 and best.false_positive_ratio is None
    unclear = grade_hallusion_bench(questions, verdicts={q.id: 2 for q in questions})
    assert unclear.question.value == 1 / 7 and unclear.percent_difference_clear is None


def test_hallusion_needs_one_source():
    questions, verdicts = hallusion()
    with pytest.raises(UsageError, match="either verdicts"):
        grade_hallusion_bench(questions)
    with pytest.raises(UsageError, match="not both"):
        grade_hallusion_bench(questions, verdicts=verdicts, answers={})
    with pytest.raises(UsageError, match="not of HallusionBench"):
        grade_hallusion_bench([question("1", "yes", "VD")], verdicts={"1": 1})


def test_verdicts_of_the_official_files(tmp_path):
    """The official code saves two JSON arrays of samples; other files may have ids, or the judge's words."""
    questions, verdicts = hallusion()
    parts = {"VD": [], "VS": []}
    for (category, number, figure, place, _), (_, verdict) in HALLUSION.items():
        row = {"category": category, "subcategory": "map", "set_id": number, "figure_id": figure, "question_id": place, "gpt4v_output_gpt_check": str(verdict), "model_prediction": "…"}  # fmt: skip
        parts[category].append(row)
    paths = [tmp_path / f"{name}.json" for name in parts]
    for path, rows in zip(paths, parts.values(), strict=True):
        path.write_text(json.dumps(rows))
    assert read_verdicts(paths, questions) == verdicts
    words = ["Incorrect.", "This is correct", "unclear"]
    lines = [{"id": key, "review": words[verdict]} for key, verdict in verdicts.items()]
    path = tmp_path / "words.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    assert read_verdicts(path, questions) == verdicts
    assert [parse_verdict_text(text) for text in words] == [0, 1, 2]
    lines[1] = {"id": lines[1]["id"], "verdict": 3}
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(UsageError, match=r"words.jsonl:2: verdict 3 must be 0"):
        read_verdicts(path, questions)
    with pytest.raises(UsageError, match="3 of 7 questions have no verdict"):
        read_verdicts(paths[0], questions)


# --- LLaVA-Bench ---


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
    assert grade.relative == {
        "all": 115.8,  # (6 + 7 − 1 + 10) / (8 + 7 − 1 + 5) = 22 / 19
        "conv": 86.7,  # 13 / 15
        "detail": 100.0,  # −1 / −1: nothing could be read
        "complex": 200.0,
    }
    assert grade.relative_parsed == {"all": 115.0, "conv": 86.7, "detail": None, "complex": 200.0}  # 23 / 20
    assert (grade.unparsable.value, grade.unparsable.n) == (1 / 4, 4)
    assert "detail without unparsable   not defined" in str(grade)


def test_llava_rounds_means_before_the_ratio():
    one = [question("1", "", "conv")]
    assert grade_llava_bench(one, {"1": "0.0016 0.001"}).relative["all"] == 50.0  # .001 / .002, not 62.5
    assert grade_llava_bench(one, {"1": "0 8"}).relative["all"] is None


def test_llava_review_files(tmp_path):
    questions, reviews = llava()
    lines = [
        {"id": i + 1, "question_id": i, "category": "llava_bench_conv", "content": reviews[str(i)], "tuple": tuple_}
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


# --- MMHal-Bench ---

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
    assert [parse_mmhal_rating(review) for _, review, _ in MMHAL] == [rating for *_, rating in MMHAL]
    assert parse_mmhal_rating("**Rating**: 5") is None and parse_mmhal_rating("Rating: 4.5") == 4
    grade = grade_mmhal_bench(*mmhal())
    assert grade.average == 2.0  # (6 + 3 + 2 + 1 + 0 + 0) / 6
    assert (grade.hallucination_rate.value, grade.hallucination_rate.n) == (4 / 6, 6)
    assert grade.types == pytest.approx({"attribute": 8 / 3, "counting": 4 / 3})
    assert (grade.unparsable.value, grade.average_parsed) == (2 / 6, 3.0)  # (6 + 3 + 2 + 1) / 4
    assert (grade.hallucination_rate_parsed.value, grade.hallucination_rate_parsed.n) == (2 / 4, 4)
    assert values(grade)["average score, counting"] == pytest.approx(4 / 3)


def test_mmhal_without_a_single_rating():
    questions, _ = mmhal()
    grade = grade_mmhal_bench(questions, {q.id: "…" for q in questions})
    assert grade.average == 0 and grade.hallucination_rate.value == 1
    assert grade.average_parsed is grade.hallucination_rate_parsed is None


def test_mmhal_responses_of_the_api_go_by_place(tmp_path):
    questions, reviews = mmhal()
    path = tmp_path / "evaluation.json"
    responses = [{"model": "m", "choices": [{"message": {"content": review}}]} for review in reviews.values()]
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
