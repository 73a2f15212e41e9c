"""HallusionBench: accuracy of questions, of question pairs and of figures (Guan et al. 2024, arXiv 2310.14566).

As `utils.py` and `evaluation.py` of github.com/tianyi-lab/HallusionBench, the expanded version of November 2023 (easy,
hard and bias were read in the copy of github.com/pritamqu/HALVA; a version before went by `figure_id` for easy and hard).
A judge says of each answer whether it is incorrect (0), correct (1) or unclear (2); its verdicts are read from files.
Without a judge, `match_verdict` says whether the answer has the right one of yes and no as a word: not the official
way, and the grade says which was used.

Traps, kept: an unclear answer is right where a VS question is asked without its figure, and wrong elsewhere. "Accuracy
per easy question" is counted over pairs, all easy questions of which must be right. The yes/no bias takes a wrong
answer for the opposite one and a right one for the label, unclear answers too; beside it stands the bias without them.
lmms-eval grades the 951 questions with an image only, so its pairs miss the text-only question.

Left out: language hallucination, visual illusion and mixed, which need a second judge ("same" or "different").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from helpers.data import DatasetRow
from helpers.files import UsageError
from helpers.statistics import Proportion

from .common import GradeTable, Rows, check_each, read_each, share
from .questions import BenchmarkQuestion, hallusion_id
from .yes_no import plain_reading

INCORRECT, CORRECT, UNCLEAR = 0, 1, 2


def parse_verdict_text(text: str) -> int:
    """As `evaluate_by_chatgpt`: "incorrect" is looked for before "correct", which is part of it."""
    text = text.lower()
    return INCORRECT if "incorrect" in text else CORRECT if "correct" in text else UNCLEAR


def match_verdict(question: BenchmarkQuestion, answer: str) -> int:
    """Judge without a model: is the right one of yes and no a word of the answer? Neither or both is unclear."""
    said = plain_reading(answer)
    return UNCLEAR if said is None else CORRECT if said == question.label else INCORRECT


def read_verdicts(
    paths: Path | Sequence[Path], questions: Sequence[BenchmarkQuestion]
) -> dict[str, int]:
    """A judge's verdicts on the answers to `questions`, each exactly once, from one or more JSON or JSONL files.

    A row names its question with `id`, or with the official columns (category, subcategory, set_id, figure_id,
    question_id); its verdict is `gpt4v_output_gpt_check` (as the official code saves it) or `verdict`, 0, 1 or 2, or
    the judge's words in `review`. Raises UsageError naming file and line.
    """
    return read_each([paths] if isinstance(paths, Path) else paths, questions, "verdict", _verdict)


def _verdict(row: DatasetRow, place: int) -> tuple[str, int]:
    key = row["id"] if isinstance(row.get("id"), str) else hallusion_id(row)
    if isinstance(review := row.get("review"), str):
        return key, parse_verdict_text(review)
    value = row.get("verdict", row.get("gpt4v_output_gpt_check"))
    if type(value) not in (int, str) or str(value) not in ("0", "1", "2"):
        raise UsageError(f"verdict {value!r} must be 0 (incorrect), 1 (correct) or 2 (unclear).")
    return key, int(value)


@dataclass(frozen=True)
class HallusionGrade(GradeTable):
    """`rows` has the names of the official tables."""

    route: str  # where the verdicts are from
    question: Proportion  # aAcc
    pair: Proportion  # qAcc: a question on all its figures, with and without
    figure: (
        Proportion | None
    )  # fAcc: all questions about a figure, also "consistency test (correct)"
    figure_inconsistent: Proportion | None  # some right
    figure_wrong: Proportion | None  # none right
    easy: Proportion | None
    hard: Proportion | None
    percent_difference: float  # share of yes among answers − among labels, in −1 … 1
    false_positive_ratio: Proportion | None  # of the wrong answers, those whose label is no
    unclear: Proportion  # verdict 2
    percent_difference_clear: float | None  # without unclear answers

    @property
    def title(self) -> str:
        return f"HallusionBench (verdicts: {self.route})"

    def rows(self) -> Rows:
        return [
            ("aAcc", self.question),
            ("qAcc", self.pair),
            ("fAcc", self.figure),
            ("easy aAcc (pairs)", self.easy),
            ("hard aAcc (pairs)", self.hard),
            ("consistency: inconsistent", self.figure_inconsistent),
            ("consistency: wrong", self.figure_wrong),
            ("yes/no bias: pct diff", self.percent_difference),
            ("yes/no bias: FP ratio", self.false_positive_ratio),
            ("unclear", self.unclear),
            ("pct diff without unclear", self.percent_difference_clear),
        ]


def grade_hallusion_bench(
    questions: Sequence[BenchmarkQuestion],
    *,
    answers: Mapping[str, str] | None = None,
    verdicts: Mapping[str, int] | None = None,
) -> HallusionGrade:
    """The official figures from a judge's verdicts, or from the answers by word match. Raises UsageError."""
    if (answers is None) == (verdicts is None):
        raise UsageError(
            "give either verdicts of a judge or answers to be matched, not both or none."
        )
    if stranger := next(
        (question.id for question in questions if "visual_input" not in question.about), None
    ):
        raise UsageError(
            f"question {stranger} is not of HallusionBench. Load them with load('hallusion_bench', …)."
        )
    route = "word match, not official" if verdicts is None else "judge, as official"
    if verdicts is None:
        check_each(answers, questions, "answers", "answer")
        verdicts = {
            question.id: match_verdict(question, answers[question.id]) for question in questions
        }
    check_each(verdicts, questions, "verdicts", "verdict")
    right = {question.id: _is_right(question, verdicts[question.id]) for question in questions}
    figures = _group_hits([q for q in questions if not _is_without_figure(q)], right, "figure_id")
    wrong = [question.label == "no" for question in questions if not right[question.id]]
    clear = [question for question in questions if verdicts[question.id] != UNCLEAR]
    return HallusionGrade(
        route,
        question=share(right.values()),
        pair=_all_right_share(questions, right),
        figure=share(all(hits) for hits in figures),
        figure_inconsistent=share(any(hits) and not all(hits) for hits in figures),
        figure_wrong=share(not any(hits) for hits in figures),
        easy=_all_right_share([q for q in questions if q.about["visual_input"] != "2"], right),
        hard=_all_right_share([q for q in questions if q.about["visual_input"] == "2"], right),
        percent_difference=_difference(questions, right),
        false_positive_ratio=share(wrong),
        unclear=share(verdict == UNCLEAR for verdict in verdicts.values()),
        percent_difference_clear=_difference(clear, right) if clear else None,
    )


def _is_without_figure(question: BenchmarkQuestion) -> bool:
    return question.group == "VS" and question.about["figure_id"] == "0"


def _is_right(question: BenchmarkQuestion, verdict: int) -> bool:
    return verdict == CORRECT or (verdict == UNCLEAR and _is_without_figure(question))


def _group_hits(
    questions: Sequence[BenchmarkQuestion], right: Mapping[str, bool], key: str
) -> list[list[bool]]:
    """Hits of the questions that share category, subcategory, set and `key`."""
    groups: dict[tuple[str, ...], list[bool]] = {}
    for question in questions:
        name = (
            question.group,
            *(question.about[field] for field in ("subcategory", "set_id", key)),
        )
        groups.setdefault(name, []).append(right[question.id])
    return list(groups.values())


def _all_right_share(
    questions: Sequence[BenchmarkQuestion], right: Mapping[str, bool]
) -> Proportion | None:
    return share(all(hits) for hits in _group_hits(questions, right, "question_id"))


def _difference(questions: Sequence[BenchmarkQuestion], right: Mapping[str, bool]) -> float:
    labels = [question.label == "yes" for question in questions]
    said = [right[question.id] == label for question, label in zip(questions, labels, strict=True)]
    return sum(said) / len(said) - sum(labels) / len(labels)
