"""HallusionBench's rules on answers and verdicts made by hand; figures follow from the rules."""

import json

import pytest
from made_up_questions import question, values

from helpers.evaluation.official import (
    grade_hallusion_bench,
    grade_hallusion_verdicts,
    read_verdicts,
)
from helpers.evaluation.official.hallusion import parse_verdict_text
from helpers.files import UsageError
from helpers.statistics import Proportion

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
        questions.append(
            question(name, label, category, visual_input=visual, gt_answer_details="", **about)
        )
    return questions, dict(
        zip([q.id for q in questions], [v for _, v in HALLUSION.values()], strict=True)
    )


def test_hallusion_figures():
    questions, verdicts = hallusion()
    grade = grade_hallusion_verdicts(questions, verdicts)
    assert values(grade) == pytest.approx(
        {
            "aAcc": 4 / 7,
            "qAcc": 1 / 3,  # VD question 0; VD 1 and VS 0 have a wrong one
            # figures VD 0 and VD 1 have one right of two, VS 1 none, VS 2 all; VS 0 is none
            "fAcc": 1 / 4,
            # not edited: VD 0 right, VD 1 wrong, VS 0 wrong (right without its figure, wrong with
            # it); by figure_id it were ⅔
            "easy aAcc (pairs)": 1 / 3,
            "hard aAcc (pairs)": 2 / 3,  # edited: VD 0 and VS 0; by figure_id it were ⅓
            "consistency: inconsistent": 2 / 4,
            "consistency: wrong": 1 / 4,
            # yes: labels 1, 4, 5, 6; said 1, 5 (right, label yes) and 2 (wrong, label no)
            "yes/no bias: pct diff": 3 / 7 - 4 / 7,
            "yes/no bias: FP ratio": 1 / 3,
            "unclear": 2 / 7,
            "pct diff without unclear": 0,  # of five: labels 1 and 6, said 1 and 2
        },
        abs=1e-12,
    )
    n = {name: figure.n for name, figure in grade.figures.items() if isinstance(figure, Proportion)}
    assert n == {
        "aAcc": 7,
        "qAcc": 3,
        "fAcc": 4,
        "easy aAcc (pairs)": 3,
        "hard aAcc (pairs)": 3,
        "consistency: inconsistent": 4,
        "consistency: wrong": 4,
        "yes/no bias: FP ratio": 3,
        "unclear": 7,
    }
    assert "judge, as official" in str(grade) and list(n)[:3] == ["aAcc", "qAcc", "fAcc"]


def test_hallusion_without_a_judge():
    questions, _ = hallusion()
    said = ["Yes", "Yes, it is", "No.", "Maybe", "I cannot tell", "no", "Nope, no"]
    matched = grade_hallusion_bench(
        questions, dict(zip([q.id for q in questions], said, strict=True))
    )
    _, verdicts = hallusion()
    judged = grade_hallusion_verdicts(questions, verdicts)
    assert matched.figures == judged.figures  # the words say what the verdicts above say
    assert "word match, not official" in matched.title


def test_hallusion_all_right_and_all_unclear():
    questions, _ = hallusion()
    best = values(grade_hallusion_verdicts(questions, {q.id: 1 for q in questions}))
    shares = ["aAcc", "qAcc", "fAcc", "easy aAcc (pairs)", "hard aAcc (pairs)"]
    assert [best[name] for name in shares] == [1] * 5
    assert best["yes/no bias: pct diff"] == 0 and best["yes/no bias: FP ratio"] is None
    unclear = values(grade_hallusion_verdicts(questions, {q.id: 2 for q in questions}))
    assert unclear["aAcc"] == 1 / 7 and unclear["pct diff without unclear"] is None


def test_questions_of_another_benchmark_are_refused():
    with pytest.raises(UsageError, match="not of HallusionBench"):
        grade_hallusion_verdicts([question("1", "yes", "VD")], {"1": 1})


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
