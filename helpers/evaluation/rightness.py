"""Is this answer right? Asked one by one, where somebody looks at answers.

What "right" means comes from the kind of truth that the tasks have (`helpers/rewards/truths.py`);
nothing here knows which kind that is. Whole sets of answers are judged by `judges`.
"""

from collections.abc import Sequence

from helpers.data import Task, kind_of
from helpers.rewards import TRUTHS, degree_of


class Rightness:
    """Judges single answers to `tasks`, all of one kind of truth; None where no truth is known.

    Raises UsageError for tasks of several kinds.
    """

    def __init__(self, tasks: Sequence[Task]):
        # no entry: nobody has said what is right
        self._judge = TRUTHS.get(kind_of(tasks))
        self._degree = degree_of(tasks)

    @property
    def is_known(self) -> bool:
        """Is there any truth to judge by?"""
        return self._judge is not None

    @property
    def heading(self) -> str:
        """What the share of right answers is called."""
        if self._judge is None:
            return ""
        return self._judge.heading

    def degree(self, task: Task, answer: str) -> float | None:
        """How far the answer is right, 0 … 1."""
        if self._judge is None or not task.facts:
            return None
        # no image: words are compared with words
        found = self._degree(
            None,
            task.question,
            answer,
            task.facts,
        )
        return found.total

    def is_right(self, task: Task, answer: str) -> bool | None:
        degree = self.degree(task, answer)
        if degree is None:
            return None
        return self._judge.accepts(degree)

    def is_right_elsewhere(
        self,
        task: Task,
        question: str,
        answer: str,
    ) -> bool | None:
        """The same of another question about the images of `task`, as far as it can be said."""
        if question == task.question:
            return self.is_right(task, answer)
        if self._judge is None or not task.facts:
            return None
        return self._judge.right_elsewhere(task.facts, question, answer)

    def is_about(self, task: Task, question: str) -> bool:
        """Is the truth of `task` a truth about this question, too?"""
        if self._judge is None or not task.facts:
            return False
        # counts stay true, whatever is asked about the image
        return self._judge.of_image or question == task.question

    def truth(self, task: Task) -> str | None:
        """A right answer in words."""
        if self._judge is None or not task.facts:
            return None
        return self._judge.answer(task.facts)

    def faults(self, task: Task, answer: str) -> frozenset[str]:
        """What is wrong with the answer, beyond that it is; empty if nothing more is known."""
        if self._judge is None or not task.facts:
            return frozenset()
        return self._judge.faults(task.facts, answer)
