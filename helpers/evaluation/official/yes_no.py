"""POPE and MME: yes/no answers, read and counted as the authors' code does, traps included, and what the traps do.

* POPE (Li et al. 2023, arXiv 2305.10355): `evaluate.py` of github.com/AoiDragon/POPE. Up to the first full stop, without
  commas, split at blanks: one of the words No, no, not means no, everything else yes. So an empty answer, "NO", "No!"
  and "It isn't there" are yes.
* MME (Fu et al. 2023, arXiv 2306.13394): `eval_tool/calculation.py` of the authors' eval_tool.zip (read in the copy of
  github.com/zjunlp/Deco). In lower case, yes if it stands in the first four characters, else no if that does, else
  other, which is wrong. Blanks are not stripped; "none" is no, "eyes" is yes. lmms-eval strips, removes full stops and
  takes y and n.

Beside the official figures stand those of the plain reading: the answer has exactly one of yes and no as a word.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from helpers.files import UsageError
from helpers.statistics import Proportion

from .common import GradeTable, Rows, check_each, share
from .questions import COGNITION, PERCEPTION, BenchmarkQuestion


def plain_reading(answer: str) -> Literal["yes", "no"] | None:
    """The one of yes and no that is a word of the answer; None for neither or both."""
    words = set(re.findall(r"\b(yes|no)\b", answer.lower()))
    return words.pop() if len(words) == 1 else None


def parse_pope(answer: str) -> Literal["yes", "no"]:
    """Read yes or no from an answer as POPE's `evaluate.py` does.

    >>> parse_pope("There is no dog. Yes."), parse_pope("No!"), parse_pope("")
    ('no', 'yes', 'yes')
    """
    words = answer.split(".")[0].replace(",", "").split(" ")
    return "no" if {"No", "no", "not"} & set(words) else "yes"


def parse_mme(answer: str) -> Literal["yes", "no", "other"]:
    """Read the answer in lower case as MME's `parse_pred_ans` does.

    >>> parse_mme("Yes, it is"), parse_mme("None"), parse_mme("  yes")
    ('yes', 'no', 'other')
    """
    start = answer.lower()[:4]
    return "yes" if "yes" in start else "no" if "no" in start else "other"


def _check_answers(
    questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str], groups: Sequence[str]
) -> None:
    check_each(answers, questions, "answers", "answer")
    for question in questions:
        if question.label not in ("yes", "no") or question.group not in groups:
            raise UsageError(
                f"question {question.id}: label {question.label!r} must be yes or no, and group {question.group!r} one "
                f"of {', '.join(groups)}. Give questions of this benchmark."
            )


# --- POPE -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PopeSplit:
    """Figures of one file of questions."""

    accuracy: Proportion
    precision: Proportion | None  # of the answers read as yes
    recall: Proportion | None  # of the objects that are there
    f1: float | None
    yes_ratio: Proportion  # of the answers
    yes_labels: Proportion  # lmms-eval prints this as its yes ratio
    unparsable: Proportion  # neither or both of yes and no as a word
    misread: Proportion  # the plain reading says the opposite of the official one


@dataclass(frozen=True)
class PopeGrade(GradeTable):
    splits: dict[str, PopeSplit]  # those that occur, random first
    title = "POPE"

    def rows(self) -> Rows:
        names = {"f1": "F1", "yes_ratio": "yes ratio", "yes_labels": "yes labels"}
        return [
            (f"{split} {names.get(field, field)}", value)
            for split, figures in self.splits.items()
            for field, value in vars(figures).items()
        ]


POPE_SPLITS = ("random", "popular", "adversarial")


def grade_pope(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> PopeGrade:
    """The figures of `evaluate.py` for every split. Raises UsageError unless each question has one answer."""
    _check_answers(questions, answers, POPE_SPLITS)
    groups = {
        split: [question for question in questions if question.group == split]
        for split in POPE_SPLITS
    }
    return PopeGrade(
        {split: _pope_split(group, answers) for split, group in groups.items() if group}
    )


def _pope_split(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> PopeSplit:
    said = {question.id: parse_pope(answers[question.id]) for question in questions}
    plain = {question.id: plain_reading(answers[question.id]) for question in questions}
    precision = share(
        question.label == "yes" for question in questions if said[question.id] == "yes"
    )
    recall = share(said[question.id] == "yes" for question in questions if question.label == "yes")
    both = precision.value + recall.value if precision and recall else 0
    return PopeSplit(
        accuracy=share(said[question.id] == question.label for question in questions),
        precision=precision,
        recall=recall,
        f1=2 * precision.value * recall.value / both if both else None,
        yes_ratio=share(answer == "yes" for answer in said.values()),
        yes_labels=share(question.label == "yes" for question in questions),
        unparsable=share(answer is None for answer in plain.values()),
        misread=share(
            plain[key] is not None and plain[key] != answer for key, answer in said.items()
        ),
    )


# --- MME ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MmeTask:
    """Figures of one of the 14 subtasks."""

    accuracy: Proportion  # of questions
    accuracy_plus: Proportion  # of images, both questions right
    yes_ratio: Proportion  # of the answers; half of the labels are yes
    other: Proportion  # answers that are neither, and count as wrong
    unparsable: Proportion  # neither or both of yes and no as a word

    @property
    def score(self) -> float:
        """acc + acc+ in percent; at most 200."""
        return 100 * (self.accuracy.value + self.accuracy_plus.value)


@dataclass(frozen=True)
class MmeGrade(GradeTable):
    tasks: dict[str, MmeTask]  # those that occur, in the official order
    title = "MME"

    @property
    def perception(self) -> float | None:
        """Sum of ten scores, at most 2000; None if a subtask is missing."""
        return self._total(PERCEPTION)

    @property
    def cognition(self) -> float | None:
        """Sum of four scores, at most 800; None if a subtask is missing."""
        return self._total(COGNITION)

    def _total(self, names: Sequence[str]) -> float | None:
        return (
            sum(self.tasks[name].score for name in names)
            if set(names) <= self.tasks.keys()
            else None
        )

    def rows(self) -> Rows:
        rows: Rows = [("perception", self.perception), ("cognition", self.cognition)]
        for name, task in self.tasks.items():
            rows += [
                (f"{name} score", task.score),
                (f"{name} acc", task.accuracy),
                (f"{name} acc+", task.accuracy_plus),
            ]
            rows += [(f"{name} yes ratio", task.yes_ratio), (f"{name} other", task.other)]
            rows += [(f"{name} unparsable", task.unparsable)]
        return rows


def grade_mme(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> MmeGrade:
    """The scores of `calculation.py`. Raises UsageError unless every image of a subtask has two questions, answered."""
    _check_answers(questions, answers, PERCEPTION + COGNITION)
    groups = {
        task: [question for question in questions if question.group == task]
        for task in PERCEPTION + COGNITION
    }
    return MmeGrade({task: _mme_task(group, answers) for task, group in groups.items() if group})


def _mme_task(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> MmeTask:
    said = {question.id: parse_mme(answers[question.id]) for question in questions}
    pairs: dict[str, list[bool]] = {}
    for question in questions:
        pairs.setdefault(question.about.get("pair", ""), []).append(
            said[question.id] == question.label
        )
    if lone := next((name for name, pair in pairs.items() if len(pair) != 2), None):
        raise UsageError(
            f"{questions[0].group}: {len(pairs[lone])} questions about {lone}, not 2. Give whole pairs."
        )
    return MmeTask(
        accuracy=share(hit for pair in pairs.values() for hit in pair),
        accuracy_plus=share(all(pair) for pair in pairs.values()),
        yes_ratio=share(answer == "yes" for answer in said.values()),
        other=share(answer == "other" for answer in said.values()),
        unparsable=share(plain_reading(answers[question.id]) is None for question in questions),
    )
