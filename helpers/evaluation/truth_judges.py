"""What is measured of answers, by the kind of truth that their questions have.

`judges(tasks)` is the one place of the evaluation that asks for the kind; all others take what the
judge gives: measures, tables of details, further questions, the chance of being right by accident.
Where nothing is known, a judge has no measure, and the held-out pairs have to speak. Taught in
notebook 07.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from helpers.data import (
    CountedImage,
    Task,
    is_well_formed,
    kind_of,
    one_class_answers,
    parse_counts,
    presence_question,
    tasks_asking,
)
from helpers.files import UsageError
from helpers.rewards import TRUTHS, are_right, degrees
from helpers.statistics import Proportion, TableRows, sample_mean

from .counting_metrics import count_metrics
from .hallucination import chair_metrics
from .official.polling import pope_questions
from .official.questions import BenchmarkQuestion
from .official.vqa import official_vqa_accuracies
from .text_metrics import reference_metrics

AnswerTexts = Sequence[str]
# share of unreadable answers from which a base is said to be unable to read
UNREADABLE = 0.9
Details = list[tuple[str, TableRows]]  # (title, table), the first row heads of columns


@dataclass(frozen=True)
class AnswerMeasure:
    """One figure of every answer to the questions of a judge."""

    name: str  # in tables: "all counts right"
    short: str  # in charts and lists: "exact"
    values: Callable[[AnswerTexts], np.ndarray]  # answers → (tasks,), bool for right or wrong
    rewards: tuple[str, ...] = ()  # scorers that give it: a policy trained on one is circular
    truth: bool = True  # does it compare answers with what is true?


class Judge:
    """What can be said of answers to `tasks`, of whose truth nothing is known."""

    def __init__(self, tasks: Sequence[Task]):
        self.tasks = list(tasks)

    @property
    def measures(self) -> tuple[AnswerMeasure, ...]:
        """The first one says whether an answer is right; empty where no truth is known."""
        return ()

    @property
    def expected(self) -> list[str]:
        """Right answers in words, (tasks,): how long an answer has to be. Empty if not known."""
        return []

    @property
    def chance(self) -> float | None:
        """Probability that the right answer to another question is right for this one.

        None where that is not what a model without eyes would say: the questions differ.
        """
        return None

    @property
    def others(self) -> list[Task]:
        """Further questions about the same images, which nobody has trained on."""
        return []

    other_name = ""  # of `others`, in tables

    @property
    def short(self) -> list[Task]:
        """Questions about the same images whose answer is a word or two."""
        return []

    def details(self, answers: AnswerTexts, other_answers: AnswerTexts = ()) -> Details:
        """Tables of what a share alone does not say, of answers to `tasks` and to `others`."""
        return []

    def unreadable(self, answers: AnswerTexts) -> Proportion | None:
        """Share of answers from which nothing can be read; None where any text is an answer."""
        return None

    def failures(self, answers: AnswerTexts) -> list[str]:
        """Sentences on answers that cannot be judged."""
        return []

    def errors(self, answers: AnswerTexts) -> dict[str, np.ndarray]:
        """Stated minus true number of each thing that is counted, (tasks,); NaN: not stated."""
        return {}

    def polls(self, strategy: str, most: int) -> list[BenchmarkQuestion]:
        """POPE's questions about the first `most` images; empty where no objects are known."""
        return []


class TruthfulJudge(Judge):
    """Answers to `tasks` beside their known truth."""

    def __init__(self, tasks: Sequence[Task]):
        super().__init__([task for task in tasks if task.is_known])
        self.row = TRUTHS[kind_of(self.tasks)]

    def _degrees(self, answers: AnswerTexts) -> np.ndarray:
        return degrees(self.tasks, answers)

    def _are_right(self, answers: AnswerTexts) -> np.ndarray:
        return are_right(self.tasks, answers)

    @property
    def measures(self) -> tuple[AnswerMeasure, ...]:
        truths = [task.facts for task in self.tasks]
        reward = self.row.reward(truths).__name__
        right = AnswerMeasure(
            self.row.heading,
            "right",
            self._are_right,
            (reward,),
        )
        # where right is all or nothing, the degree says the same again
        if self.row.right_from == 1:
            return (right,)
        name = self.row.degree(truths).__name__
        degree = AnswerMeasure(name, name, self._degrees, (name,))
        return right, degree

    @cached_property
    def expected(self) -> list[str]:
        return [self.row.answer(task.facts) for task in self.tasks]

    @property
    def short(self) -> list[Task]:
        longest = max(len(text.split()) for text in self.expected)
        return self.tasks if longest <= 3 else []

    def details(self, answers: AnswerTexts, other_answers: AnswerTexts = ()) -> Details:
        references = [_listed(task) for task in self.tasks]
        tables = [("texts", reference_metrics(answers, references).rows())]
        if kind_of(self.tasks) == "vqa_accuracy":
            # A published figure is one of the official code's
            official = sample_mean(official_vqa_accuracies(answers, references))
            rows = [["measure", "value"], ["VQA accuracy", official.short_text()]]
            tables.append(("as VQA v2's own code counts", rows))
        return tables


def _listed(task: Task) -> list[str]:
    return [task.facts] if isinstance(task.facts, str) else list(task.facts)


class CountJudge(TruthfulJudge):
    """Answers that state how many there are of each class."""

    other_name = "one class"

    @property
    def measures(self) -> tuple[AnswerMeasure, ...]:
        rewards = ("count_exact", "count_per_class", "count_graded")
        return (
            AnswerMeasure(
                self.row.heading,
                "exact",
                self._are_right,
                rewards,
            ),
            # a sentence of the right form may state wrong numbers
            AnswerMeasure(
                "well formed",
                "well formed",
                self._are_well_formed,
                truth=False,
            ),
        )

    def _are_well_formed(self, answers: AnswerTexts) -> np.ndarray:
        """Which answers are exactly the sentence, whatever the numbers are, (tasks,)."""
        rows = zip(self.tasks, answers, strict=True)
        return np.array([is_well_formed(text, list(task.facts)) for task, text in rows])

    @property
    def chance(self) -> float:
        """All ask for the same, so that a model without eyes says what is right somewhere."""
        n = len(self.tasks)
        same = Counter(tuple(task.facts.values()) for task in self.tasks)
        # ordered pairs of images with the same counts, of all pairs
        return sum(k * (k - 1) for k in same.values()) / max(1, n * (n - 1))

    @cached_property
    def others(self) -> list[Task]:
        return tasks_asking(self.tasks, one_class_answers)

    @property
    def short(self) -> list[Task]:
        return tasks_asking(self.tasks, presence_question)

    def details(self, answers: AnswerTexts, other_answers: AnswerTexts = ()) -> Details:
        truths = [task.facts for task in self.tasks]
        tables = [("class by class", count_metrics(answers, truths).rows())]
        if other_answers:
            known = [task.facts for task in self.others]
            tables.append(("one class: texts", reference_metrics(other_answers, known).rows()))
            # CHAIR knows classes by their synonyms; here each has its own name only
            names = {name: [name] for truth in truths for name in truth}
            chair = chair_metrics(other_answers, truths, names)
            tables.append(("one class: hallucination (CHAIR)", chair.rows()))
        return tables

    def failures(self, answers: AnswerTexts) -> list[str]:
        unparsed = self.unreadable(answers)
        return [f"Answers without readable counts: {unparsed}."] if unparsed.value else []

    def unreadable(self, answers: AnswerTexts) -> Proportion:
        return count_metrics(answers, [task.facts for task in self.tasks]).unparsed

    def errors(self, answers: AnswerTexts) -> dict[str, np.ndarray]:
        errors = {name: [] for name in self.tasks[0].facts}
        for task, text in zip(self.tasks, answers, strict=True):
            stated = parse_counts(text, list(task.facts)) or {}
            for name, column in errors.items():
                # an answer without counts is off by nobody knows how much
                column.append(stated.get(name, np.nan) - task.facts.get(name, np.nan))
        return {name: np.array(column) for name, column in errors.items()}

    def polls(self, strategy: str, most: int) -> list[BenchmarkQuestion]:
        items = []
        for task in self.tasks[:most]:
            items.append(CountedImage(task.images[0], task.facts, task.group))
        try:
            return pope_questions(items, strategy, per_image=1)
        except UsageError:
            print("POPE is left out: no image shows something that others show, and lacks another.")
            return []


def judges(tasks: Sequence[Task]) -> Judge:
    """The judge of answers to `tasks`; those whose truth is not known are not asked.

    Raises UsageError for truths of several kinds.
    """
    kind = kind_of(tasks)
    if kind == "none":
        return Judge(tasks)
    judge = CountJudge(tasks) if kind == "counts" else TruthfulJudge(tasks)
    # nothing is left out in silence
    left_out = len(tasks) - len(judge.tasks)
    if left_out:
        print(f"{left_out} of {len(tasks)} questions have no known answer and are left out here.")
    return judge


def describe_unreadable(tasks: Sequence[Task], answers: AnswerTexts, base: str) -> list[str]:
    """One sentence if next to none of a base's answers can be read, and what to take; else none."""
    share = judges(tasks).unreadable(answers)
    if share is None or share.value < UNREADABLE:
        return []
    return [
        f"The base {base!r} cannot read these images: {share} of its answers state nothing that "
        "can be compared with the truth, so that no training of it can be seen to help. Set MODEL "
        "in notebook 02 to one that was trained on photos: 'smolvlm-256m' runs without a GPU, "
        "'qwen2-vl-2b' needs one."
    ]
