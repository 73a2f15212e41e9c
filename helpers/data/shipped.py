"""The tasks that come with the repository: a data folder, and a base that has something to learn.

Each is what one student project wanted, on drawn scenes, so that it runs offline in minutes. Their
data is made by `data/build_tasks.py` and opened like anybody's own. Taught in notebook 02.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from helpers.files import UsageError, did_you_mean

from .truth import TruthKind


@dataclass(frozen=True)
class ShippedTask:
    """What is trained on, from which base. `about` says it in one line."""

    about: str
    data: str  # folder in this repository, or, of own data, whatever was named
    model: str = "tiny-tasks"
    truth: TruthKind | None = None  # where the data does not say how answers are compared


SHIPPED_TASKS: Mapping[str, ShippedTask] = {
    "counting": ShippedTask(
        "How many vehicles of each kind? True counts against wrong ones.",
        "data/traffic",
        "tiny",
    ),
    "instructions": ShippedTask(
        "Requests that say how to answer; people's A/B preferences, one in ten the wrong way.",
        "data/tasks/instructions",
    ),
    "reasons": ShippedTask(
        "Why is the road busy? The model's answers, ranked by rules or by people.",
        "data/tasks/reasons",
    ),
    "questions": ShippedTask(
        "Questions with an answer of a few words.",
        "data/tasks/questions",
        "tiny",
    ),
    "reasoning": ShippedTask(
        "Calculate, then choose a letter; chosen and rejected answers.",
        "data/tasks/reasoning",
        truth="choice",
    ),
}


def choose_task(
    task: str,
    *,
    data: str | None = None,
    model: str | None = None,
    truth: TruthKind | None = None,
) -> ShippedTask:
    """The shipped task of that name; own data takes its place, and needs no name.

    Raises UsageError for a name that no task has.
    """
    if data is not None:
        return ShippedTask("own data", str(data), model or "tiny", truth)
    if task not in SHIPPED_TASKS:
        raise UsageError(
            f"unknown TASK {task!r}: choose {', '.join(SHIPPED_TASKS)}, or name DATA of your own."
            f"{did_you_mean(task, SHIPPED_TASKS)}"
        )
    shipped = SHIPPED_TASKS[task]
    return replace(shipped, model=model or shipped.model, truth=truth or shipped.truth)
