"""What the rules share: asking a model, a file of its answers, tables of figures.

Models are not known here; `ask_questions` is given a function.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from helpers.files import UsageError, write_lines
from helpers.statistics import Proportion, TableRows, format_figure

from ..keyed import by_id, check_each
from .questions import BenchmarkQuestion

# images, prompts → answers, in their order
Generate = Callable[[list[Path | None], list[str]], list[str]]
Questions = Sequence[BenchmarkQuestion]
Texts = Mapping[str, str]  # answers or reviews by the ids of their questions


@dataclass(frozen=True)
class OfficialGrade:
    """The figures of a benchmark by their official names."""

    title: str
    figures: dict[str, Proportion | float | None]  # None where the official rule divides by zero

    def table(self, head: str) -> TableRows:
        """Rows for `report.Section.table`; `head` stands over the names of the figures."""
        rows = [[name, format_figure(value, ".6g")] for name, value in self.figures.items()]
        return [[head, "figure"], *rows]

    def __str__(self) -> str:
        width = max(map(len, self.figures))
        _, *rows = self.table("")
        lines = [f"  {name:{width}}  {text}" for name, text in rows]
        return "\n".join([self.title, *lines])


def ask_questions(questions: Questions, generate: Generate, batch: int = 16) -> dict[str, str]:
    """The answers by the questions' ids.

    Raises UsageError if `generate` does not give one text a question.
    """
    # two questions of one id would share an answer
    by_id(questions)
    answers = {}
    for start in tqdm(range(0, len(questions), batch), desc="ask", unit="batch", leave=False):
        part = questions[start : start + batch]
        images = [question.image for question in part]
        texts = generate(images, [question.prompt for question in part])
        if len(texts) != len(part) or not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"generate gave {len(texts)} answers to {len(part)} questions: "
                "one text each, in order."
            )
        answers |= {question.id: text for question, text in zip(part, texts, strict=True)}
    return answers


def write_answers(path: Path, questions: Questions, answers: Texts) -> Path:
    """JSONL, `{"id": …, "answer": …}` a line in the order of the questions."""
    check_each(answers, questions, path, "answer")
    lines = ({"id": question.id, "answer": answers[question.id]} for question in questions)
    return write_lines(path, (json.dumps(line, ensure_ascii=False) for line in lines))
