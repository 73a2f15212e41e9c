"""POPE and MME: yes/no answers, read and counted as the authors' code does, traps included.

* POPE (Li et al. 2023, arXiv 2305.10355): `evaluate.py` of github.com/AoiDragon/POPE. Up to the
  first full stop, without commas, split at blanks: one of the words No, no, not means no,
  everything else yes. So an empty answer, "NO", "No!" and "It isn't there" are yes.
* MME (Fu et al. 2023, arXiv 2306.13394): `eval_tool/calculation.py` of the authors' eval_tool.zip
  (read in the copy of github.com/zjunlp/Deco). In lower case, yes if it stands in the first four
  characters, else no if that does, else other, which is wrong. Blanks are not stripped; "none" is
  no, "eyes" is yes. lmms-eval strips, removes full stops and takes y and n.

Beside the official figures stand those of the plain reading, which says what the traps do: the
answer has exactly one of yes and no as a word.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from helpers.files import UsageError
from helpers.statistics import Proportion, share_of

from ..keyed import check_each
from .common import GradeTable, Rows
from .questions import COGNITION, PERCEPTION, POPE_SPLITS, BenchmarkQuestion


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
    for said in ("yes", "no"):
        if said in start:
            return said
    return "other"


def _questions_by_group(
    questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str], groups: Sequence[str]
) -> dict[str, list[BenchmarkQuestion]]:
    """The questions of each group that occurs, in the order of `groups`.

    Raises UsageError unless each question has one answer and is of this benchmark.
    """
    check_each(answers, questions, "answers", "answer")
    found: dict[str, list[BenchmarkQuestion]] = {group: [] for group in groups}
    for question in questions:
        if question.label not in ("yes", "no") or question.group not in groups:
            raise UsageError(
                f"question {question.id}: label {question.label!r} must be yes or no, and group "
                f"{question.group!r} one of {', '.join(groups)}. Give questions of this benchmark."
            )
        found[question.group].append(question)
    return {group: part for group, part in found.items() if part}


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
        rows = []
        for split, figures in self.splits.items():
            for field, value in vars(figures).items():
                name = field.replace("f1", "F1").replace("_", " ")
                rows.append((f"{split} {name}", value))
        return rows


def grade_pope(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> PopeGrade:
    """The figures of `evaluate.py` for every split.

    Raises UsageError unless each question has one answer.
    """
    groups = _questions_by_group(questions, answers, POPE_SPLITS)
    return PopeGrade({split: _pope_split(part, answers) for split, part in groups.items()})


def _pope_split(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> PopeSplit:
    rows = []  # (label, official reading of the answer, plain reading)
    for question in questions:
        answer = answers[question.id]
        rows.append((question.label, parse_pope(answer), plain_reading(answer)))
    precision = share_of(label == "yes" for label, said, _ in rows if said == "yes")
    recall = share_of(said == "yes" for label, said, _ in rows if label == "yes")
    f1 = None  # the official code divides by zero there
    if precision and recall and precision.value + recall.value:
        both = precision.value + recall.value
        f1 = 2 * precision.value * recall.value / both
    return PopeSplit(
        accuracy=share_of(said == label for label, said, _ in rows),
        precision=precision,
        recall=recall,
        f1=f1,
        yes_ratio=share_of(said == "yes" for _, said, _ in rows),
        yes_labels=share_of(label == "yes" for label, _, _ in rows),
        unparsable=share_of(plain is None for _, _, plain in rows),
        misread=share_of(plain not in (None, said) for _, said, plain in rows),
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
        if not set(names) <= self.tasks.keys():
            return None
        return sum(self.tasks[name].score for name in names)

    def rows(self) -> Rows:
        rows: Rows = [("perception", self.perception), ("cognition", self.cognition)]
        for name, task in self.tasks.items():
            rows += [
                (f"{name} score", task.score),
                (f"{name} acc", task.accuracy),
                (f"{name} acc+", task.accuracy_plus),
                (f"{name} yes ratio", task.yes_ratio),
                (f"{name} other", task.other),
                (f"{name} unparsable", task.unparsable),
            ]
        return rows


def grade_mme(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> MmeGrade:
    """The scores of `calculation.py`.

    Raises UsageError unless every image of a subtask has two questions, answered.
    """
    groups = _questions_by_group(questions, answers, PERCEPTION + COGNITION)
    return MmeGrade({task: _mme_task(part, answers) for task, part in groups.items()})


def _mme_task(questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]) -> MmeTask:
    texts = [answers[question.id] for question in questions]
    said = list(map(parse_mme, texts))
    images: dict[str, list[bool]] = {}  # which questions about each image are right
    for question, reading in zip(questions, said, strict=True):
        hits = images.setdefault(question.about.get("pair", ""), [])
        hits.append(reading == question.label)
    for name, hits in images.items():
        if len(hits) != 2:
            raise UsageError(
                f"{questions[0].group}: {len(hits)} questions about {name}, not 2. "
                "Give whole pairs."
            )
    return MmeTask(
        accuracy=share_of(hit for hits in images.values() for hit in hits),
        accuracy_plus=share_of(all(hits) for hits in images.values()),
        yes_ratio=share_of(reading == "yes" for reading in said),
        other=share_of(reading == "other" for reading in said),
        unparsable=share_of(plain_reading(text) is None for text in texts),
    )
