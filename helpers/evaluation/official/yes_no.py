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

from collections.abc import Sequence
from statistics import harmonic_mean
from typing import Literal

from helpers.files import UsageError
from helpers.rewards import plain_reading
from helpers.statistics import Proportion, share_of

from ..keyed import check_each
from .common import OfficialGrade, Questions, Texts
from .questions import COGNITION, PERCEPTION, POPE_SPLITS, BenchmarkQuestion

Figures = dict[str, Proportion | float | None]


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


def _prefix(start: str, figures: Figures) -> Figures:
    return {f"{start} {name}": value for name, value in figures.items()}


def _questions_by_group(
    questions: Questions, answers: Texts, groups: Sequence[str]
) -> dict[str, list[BenchmarkQuestion]]:
    """The questions of each group that occurs, in the order of `groups`.

    Raises UsageError unless each question has one answer and is of this benchmark.
    """
    check_each(answers, questions, "answers", "answer")
    found = {group: [] for group in groups}
    for question in questions:
        if question.label not in ("yes", "no") or question.group not in groups:
            raise UsageError(
                f"question {question.id}: label {question.label!r} must be yes or no, and group "
                f"{question.group!r} one of {', '.join(groups)}. Give questions of this benchmark."
            )
        found[question.group].append(question)
    return {group: part for group, part in found.items() if part}


# --- POPE -----------------------------------------------------------------------------------------


def grade_pope(questions: Questions, answers: Texts) -> OfficialGrade:
    """The figures of `evaluate.py` for every split that occurs, random first.

    Raises UsageError unless each question has one answer.
    """
    figures = {}
    for split, part in _questions_by_group(questions, answers, POPE_SPLITS).items():
        figures |= _prefix(split, _pope_figures(part, answers))
    return OfficialGrade("POPE", figures)


def _pope_figures(questions: Questions, answers: Texts) -> Figures:
    rows = []  # (label, official reading of the answer, plain reading)
    for question in questions:
        answer = answers[question.id]
        rows.append((question.label, parse_pope(answer), plain_reading(answer)))
    precision = share_of(label == "yes" for label, said, _ in rows if said == "yes")
    recall = share_of(said == "yes" for label, said, _ in rows if label == "yes")
    f1 = None
    if precision and recall and precision.value:
        f1 = harmonic_mean([precision.value, recall.value])
    return {
        "accuracy": share_of(said == label for label, said, _ in rows),
        "precision": precision,  # of the answers read as yes
        "recall": recall,  # of the objects that are there
        "F1": f1,
        "yes ratio": share_of(said == "yes" for _, said, _ in rows),
        # lmms-eval prints this as its yes ratio
        "yes labels": share_of(label == "yes" for label, _, _ in rows),
        "unparsable": share_of(plain is None for _, _, plain in rows),
        # the plain reading says the opposite of the official one
        "misread": share_of(plain not in (None, said) for _, said, plain in rows),
    }


# --- MME ------------------------------------------------------------------------------------------


def grade_mme(questions: Questions, answers: Texts) -> OfficialGrade:
    """The scores of `calculation.py` for every subtask that occurs, in the official order.

    Perception is the sum of ten scores, at most 2000, and cognition of four, at most 800; None if a
    subtask is missing. Raises UsageError unless every image of a subtask has two questions,
    answered.
    """
    figures = {}
    scores = {}
    for task, part in _questions_by_group(questions, answers, PERCEPTION + COGNITION).items():
        found = _mme_figures(part, answers)
        scores[task] = found["score"]
        figures |= _prefix(task, found)
    # a sum over fewer subtasks would not be the official figure
    totals = {}
    for name, tasks in {"perception": PERCEPTION, "cognition": COGNITION}.items():
        complete = set(tasks) <= scores.keys()
        totals[name] = sum(scores[task] for task in tasks) if complete else None
    return OfficialGrade("MME", totals | figures)


def _mme_figures(questions: Questions, answers: Texts) -> Figures:
    texts = [answers[question.id] for question in questions]
    said = list(map(parse_mme, texts))
    images = {}  # which questions about each image are right
    for question, reading in zip(questions, said, strict=True):
        hits = images.setdefault(question.about.get("pair", ""), [])
        hits.append(reading == question.label)
    for name, hits in images.items():
        if len(hits) != 2:
            raise UsageError(
                f"{questions[0].group}: {len(hits)} questions about {name}, not 2. "
                "Give whole pairs."
            )
    accuracy = share_of(hit for hits in images.values() for hit in hits)
    plus = share_of(all(hits) for hits in images.values())
    return {
        "score": 100 * (accuracy.value + plus.value),  # at most 200
        "acc": accuracy,  # of questions
        "acc+": plus,  # of images, both questions right
        "yes ratio": share_of(reading == "yes" for reading in said),  # half of the labels are yes
        "other": share_of(reading == "other" for reading in said),  # neither: counts as wrong
        "unparsable": share_of(plain_reading(text) is None for text in texts),
    }
