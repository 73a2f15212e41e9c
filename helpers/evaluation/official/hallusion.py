"""HallusionBench: accuracy of questions, of question pairs and of figures (Guan et al. 2024).

As `utils.py` and `evaluation.py` of github.com/tianyi-lab/HallusionBench (arXiv 2310.14566), the
expanded version of November 2023 (easy, hard and bias were read in the copy of
github.com/pritamqu/HALVA; a version before went by `figure_id` for easy and hard). A judge says of
each answer whether it is incorrect (0), correct (1) or unclear (2); its verdicts are read from
files. Without a judge, `match_verdict` says whether the answer has the right one of yes and no as a
word: not the official way, and the grade says which was used.

Traps, kept: an unclear answer is right where a VS question is asked without its figure, and wrong
elsewhere. "Accuracy per easy question" is counted over pairs, all easy questions of which must be
right. The yes/no bias takes a wrong answer for the opposite one and a right one for the label,
unclear answers too; beside it stands the bias without them. lmms-eval grades the 951 questions with
an image only, so its pairs miss the text-only question.

Left out: language hallucination, visual illusion and mixed, which need a second judge ("same" or
"different").
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from helpers.data import DatasetRow
from helpers.files import UsageError
from helpers.rewards import plain_reading
from helpers.statistics import Proportion, share_of

from ..keyed import check_each, read_each
from .common import OfficialGrade, Questions, Texts
from .questions import BenchmarkQuestion, hallusion_id

INCORRECT = 0
CORRECT = 1
UNCLEAR = 2
SET = ["category", "subcategory", "set_id"]  # columns that figures and questions are numbered in


def parse_verdict_text(text: str) -> int:
    """As `evaluate_by_chatgpt`: "incorrect" is looked for before "correct", a part of it."""
    text = text.lower()
    if "incorrect" in text:
        return INCORRECT
    return CORRECT if "correct" in text else UNCLEAR


def match_verdict(question: BenchmarkQuestion, answer: str) -> int:
    """Judge without a model: is the right one of yes and no a word of the answer?

    Neither or both is unclear.
    """
    said = plain_reading(answer)
    if said is None:
        return UNCLEAR
    return CORRECT if said == question.label else INCORRECT


def read_verdicts(paths: Path | Sequence[Path], questions: Questions) -> dict[str, int]:
    """A judge's verdicts on the answers to `questions`, each once, from JSON or JSONL files.

    A row names its question with `id`, or with the official columns (category, subcategory, set_id,
    figure_id, question_id); its verdict is `gpt4v_output_gpt_check` (as the official code saves it)
    or `verdict`, 0, 1 or 2, or the judge's words in `review`. Raises UsageError naming file and
    line.
    """
    return read_each([paths] if isinstance(paths, Path) else paths, questions, "verdict", _verdict)


def _verdict(row: DatasetRow, place: int) -> tuple[str, int]:
    key = row["id"] if isinstance(row.get("id"), str) else hallusion_id(row)
    # the judge's words go before a number
    review = row.get("review")
    if isinstance(review, str):
        return key, parse_verdict_text(review)
    value = row.get("verdict", row.get("gpt4v_output_gpt_check"))
    if type(value) not in (int, str) or str(value) not in ("0", "1", "2"):
        raise UsageError(f"verdict {value!r} must be 0 (incorrect), 1 (correct) or 2 (unclear).")
    return key, int(value)


def grade_hallusion_bench(questions: Questions, answers: Texts) -> OfficialGrade:
    """The official figures by word match, which is not the official judge. Raises UsageError."""
    check_each(answers, questions, "answers", "answer")
    verdicts = {
        question.id: match_verdict(question, answers[question.id]) for question in questions
    }
    return grade_hallusion_verdicts(questions, verdicts, "word match, not official")


def grade_hallusion_verdicts(
    questions: Questions, verdicts: Mapping[str, int], route: str = "judge, as official"
) -> OfficialGrade:
    """The official figures from verdicts; `route` says where they are from. Raises UsageError."""
    check_each(verdicts, questions, "verdicts", "verdict")
    table = _table(questions, verdicts)
    shown = table[~table["no_figure"]].groupby([*SET, "figure_id"])["right"]
    # visual_input: 0 no image, 1 the original one, 2 an edited one
    edited = table["visual_input"] == "2"
    clear = table[table["verdict"] != UNCLEAR]
    figures = {
        "aAcc": share_of(table["right"]),
        "qAcc": _pair_share(table),  # of questions on all their figures, with and without
        "fAcc": share_of(shown.all()),  # of figures, all questions right
        "easy aAcc (pairs)": _pair_share(table[~edited]),
        "hard aAcc (pairs)": _pair_share(table[edited]),
        "consistency: inconsistent": share_of(shown.any() & ~shown.all()),
        "consistency: wrong": share_of(~shown.any()),
        # share of yes among answers − among labels, in −1 … 1
        "yes/no bias: pct diff": _difference(table),
        # of the wrong answers, those whose label is no
        "yes/no bias: FP ratio": share_of(~table["label"][~table["right"]]),
        "unclear": share_of(table["verdict"] == UNCLEAR),
        "pct diff without unclear": _difference(clear) if len(clear) else None,
    }
    return OfficialGrade(f"HallusionBench (verdicts: {route})", figures)


def _table(questions: Questions, verdicts: Mapping[str, int]) -> pd.DataFrame:
    """A row a question: its columns, is its label yes, the verdict on its answer, is that right."""
    rows = []
    for question in questions:
        if "visual_input" not in question.about:
            raise UsageError(
                f"question {question.id} is not of HallusionBench. "
                "Load them with load_questions('hallusion_bench', …)."
            )
        verdict = verdicts[question.id]
        no_figure = question.group == "VS" and question.about["figure_id"] == "0"
        found = {
            "category": question.group,
            "label": question.label == "yes",
            "no_figure": no_figure,
            "verdict": verdict,
            "right": verdict == CORRECT or (verdict == UNCLEAR and no_figure),
        }
        rows.append(question.about | found)
    return pd.DataFrame(rows)


def _pair_share(table: pd.DataFrame) -> Proportion | None:
    return share_of(table.groupby([*SET, "question_id"])["right"].all())


def _difference(table: pd.DataFrame) -> float:
    # a right answer says yes where the label is yes, a wrong one where it is no
    said = table["right"] == table["label"]
    return float(said.mean() - table["label"].mean())
