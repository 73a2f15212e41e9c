"""Questions about images, with or without a known truth: what models are asked.

A record holds a question, too, with answers to it. What is asked without answers, by PPO, by an
evaluation or where answers are still to be sampled, is a `Task`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from helpers.files import UsageError, open_image

from .counting import Counts
from .record import Message, PreferenceRecord
from .truth import Facts, TruthKind


class Question(str):
    """A question as scorers get it: its text, which remembers the turns that it is the last of."""

    turns: tuple[Message, ...]

    @classmethod
    def of(cls, turns: Sequence[Message]) -> "Question":
        """The last of `turns`."""
        question = cls(turns[-1].content)
        question.turns = tuple(turns)
        return question


@dataclass(frozen=True)
class Task:
    """A question that is answered again and again; images are opened when they are needed."""

    images: tuple[Path, ...]
    turns: tuple[Message, ...]  # the last one is the question
    facts: Facts = None  # what is true, for scorers and judges
    kind: TruthKind = "none"  # of `facts`
    group: str = ""  # equal for all questions about one photo; "" if that is not known
    id: str | None = None  # of the record that it comes from, or is to become

    @property
    def question(self) -> str:
        return self.turns[-1].content

    def open_images(self) -> list[Image.Image]:
        """The images, decoded. Raises UsageError naming one that cannot be read."""
        return [open_image(image) for image in self.images]

    def scorer_inputs(
        self, images: Sequence[Image.Image], answer: str
    ) -> tuple[Image.Image | list[Image.Image] | None, str, str, Facts]:
        """Arguments for a scorer: the image (of several, a list), question, answer and truth."""
        shown = list(images) if len(images) > 1 else None
        if len(images) == 1:
            shown = images[0]
        return shown, Question.of(self.turns), answer, self.facts

    @property
    def is_known(self) -> bool:
        """Has somebody said what is true?"""
        return self.kind != "none"

    @property
    def photo(self) -> str:
        """What this task shares with others about the same photo: the clusters of a test."""
        return self.group or "|".join(map(str, self.images))


def ask(
    question: str,
    images: Sequence[Path],
    facts: Facts = None,
    kind: TruthKind = "none",
    group: str = "",
) -> Task:
    """A task of one turn."""
    turn = Message(role="user", content=question)
    return Task(tuple(images), (turn,), facts, kind, group)


def tasks_of(records: Sequence[PreferenceRecord]) -> list[Task]:
    """The questions of records; their answers are not used, their truth is."""
    tasks = []
    for record in records:
        images, turns = tuple(record.image_paths), tuple(record.prompt)
        group = record.group or ""
        tasks.append(Task(images, turns, record.truth, record.kind, group, record.id))
    return tasks


def tasks_asking(
    tasks: Sequence[Task],
    ask_about: Callable[[Counts, int], tuple[str, str | list[str]]],
) -> list[Task]:
    """Other questions about the images of counted tasks, with their true answers.

    ask_about: the true counts and the number of a task → question and right answers, such as
    `data.presence_question`.
    """
    others = []
    for number, task in enumerate(tasks):
        question, answer = ask_about(task.facts, number)
        # the group stays: these questions are about the same photo
        others.append(ask(question, task.images, answer, "exact_match", task.group))
    return others


def distinct_tasks(tasks: Sequence[Task]) -> list[Task]:
    """Each question about the same images once: the first of equal ones that knows the truth."""
    found: dict[tuple, Task] = {}
    for task in tasks:
        key = (task.images, tuple(turn.content for turn in task.turns))
        if key not in found or (task.facts and not found[key].facts):
            found[key] = task
    return list(found.values())


def kind_of(tasks: Sequence[Task]) -> TruthKind:
    """The kind of truth that tasks have, "none" if none has one.

    Raises UsageError for tasks of several kinds, which one table cannot judge.
    """
    kinds: dict[TruthKind, str] = {}
    for task in tasks:
        if task.facts:
            kinds.setdefault(task.kind, task.question)
    if len(kinds) > 1:
        found = "; ".join(f"{kind}: {question!r}" for kind, question in kinds.items())
        raise UsageError(
            f"the questions have truths of several kinds ({found}). Split the file, or name one "
            "kind for all with --truth."
        )
    return next(iter(kinds), "none")
