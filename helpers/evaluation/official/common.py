"""What the rules share: asking a model, files of answers and of a judge's reviews, tables of figures.

A file belongs to a list of questions: it must speak of each of them exactly once and of no other. Models are not known
here; `ask` is given a function. Reviews are replayed from files, no judge is called.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm.auto import tqdm

from helpers.data import DatasetRow, raw_rows
from helpers.files import UsageError, write_lines
from helpers.statistics import Proportion, proportion

from .questions import BenchmarkQuestion, questions_by_id

Generate = Callable[
    [list[Path | None], list[str]], list[str]
]  # images, prompts → answers, in their order
Rows = list[tuple[str, Proportion | float | None]]
Value = TypeVar("Value")


class GradeTable:
    """What a grade has in common: figures by name, and a table of them. Subclasses give `title` and `rows`."""

    title: str

    def rows(self) -> Rows:
        """(name, figure); None where the official rule divides by zero."""
        raise NotImplementedError

    def table(self, head: str) -> list[list[str]]:
        """Rows for `report.Section.table`; `head` stands over the names of the figures."""
        rows = [[name, format_figure(value)] for name, value in self.rows()]
        return [[head, "figure"], *rows]

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows())
        return "\n".join(
            [
                self.title,
                *(f"  {name:{width}}  {format_figure(value)}" for name, value in self.rows()),
            ]
        )


def format_figure(value: Proportion | float | None) -> str:
    return (
        "not defined"
        if value is None
        else f"{value:.6g}"
        if isinstance(value, float)
        else str(value)
    )


def share(hits: Iterable[bool]) -> Proportion | None:
    """Share of true values; None for an empty list."""
    values = list(hits)
    return proportion(sum(values), len(values)) if values else None


def ask_questions(
    questions: Sequence[BenchmarkQuestion], generate: Generate, batch: int = 16
) -> dict[str, str]:
    """The answers by the questions' ids. Raises UsageError if `generate` does not give one text a question."""
    questions_by_id(questions)
    if batch < 1:
        raise UsageError(f"batch = {batch}: ask at least one question at a time.")
    answers: dict[str, str] = {}
    for start in tqdm(range(0, len(questions), batch), desc="ask", unit="batch", leave=False):
        part = questions[start : start + batch]
        texts = generate(
            [question.image for question in part], [question.prompt for question in part]
        )
        if len(texts) != len(part) or not all(isinstance(text, str) for text in texts):
            raise UsageError(
                f"generate gave {len(texts)} answers to {len(part)} questions: one text each, in order."
            )
        answers |= {question.id: text for question, text in zip(part, texts, strict=True)}
    return answers


def check_each(
    values: Mapping[str, Any], questions: Sequence[BenchmarkQuestion], place: str | Path, what: str
) -> None:
    """Raises UsageError unless there is one value for each question and for nothing else."""
    known = questions_by_id(questions)
    if stranger := next((key for key in values if key not in known), None):
        raise UsageError(
            f"{place}: no question has the id {stranger!r}. Give the questions that were asked."
        )
    if missing := [key for key in known if key not in values]:
        raise UsageError(
            f"{place}: {len(missing)} of {len(known)} questions have no {what}, the first {missing[0]}."
        )


def read_each(
    paths: Sequence[Path],
    questions: Sequence[BenchmarkQuestion],
    what: str,
    read: Callable[[DatasetRow, int], tuple[str, Value]],
) -> dict[str, Value]:
    """Values from JSON or JSONL files; `read(row, place from 0)` gives a question's id and its value.

    Raises UsageError naming file and line (or item) of what is malformed, unknown or there twice.
    """
    known, values, place = questions_by_id(questions), {}, 0
    for path in paths:
        if not path.is_file():
            raise UsageError(f"{path}: no such file. Check the path.")
        for number, _, row, error in raw_rows(path):
            try:
                if error or not isinstance(row, dict):
                    raise UsageError(error or "a row is an object with named fields.")
                key, value = read(row, place)
                if key not in known:
                    raise UsageError(
                        f"no question has the id {key!r}. Give the questions that were asked."
                    )
                if key in values:
                    raise UsageError(f"a second {what} for the id {key}. Keep one.")
            except UsageError as problem:
                raise UsageError(f"{path}:{number}: {problem}") from None
            values[key] = value
            place += 1
    check_each(values, questions, ", ".join(map(str, paths)), what)
    return values


def write_answers(
    path: Path, questions: Sequence[BenchmarkQuestion], answers: Mapping[str, str]
) -> Path:
    """JSONL, `{"id": …, "answer": …}` a line in the order of the questions."""
    check_each(answers, questions, path, "answer")
    lines = ({"id": question.id, "answer": answers[question.id]} for question in questions)
    return write_lines(path, (json.dumps(line, ensure_ascii=False) for line in lines))


def read_answers(path: Path, questions: Sequence[BenchmarkQuestion]) -> dict[str, str]:
    """The answers to `questions`, to each exactly once. An empty answer is one. Raises UsageError naming file and line."""
    return read_each([path], questions, "answer", _answer)


def _answer(row: DatasetRow, place: int) -> tuple[str, str]:
    if row.keys() != {"id", "answer"} or not all(isinstance(value, str) for value in row.values()):
        raise UsageError(
            'a line must be {"id": "…", "answer": "…"} and nothing else. Write it with `write_answers`.'
        )
    return row["id"], row["answer"]
