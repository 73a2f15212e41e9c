"""The five student projects in one table: what each got, and what comes out here.

The figures are measured by `benchmarks/tasks.py`, which writes `benchmarks/tasks.json`; notebook
07 and docs/results.md show them in this form.
"""

from collections.abc import Mapping
from typing import Any

from helpers.files import ROOT
from helpers.statistics import TableRows

TASK_FIGURES = ROOT / "benchmarks" / "tasks.json"

# Task → what its project got; the numbers are the projects' own, or counted in their files
PROJECTS = {
    "counting": "loss .70–.72 over 420 steps, which is ln 2: nothing was learnt",
    "instructions": "collapsed into repetition in a few steps",
    "reasons": "judged by the rules that trained it",
    "questions": "reward fell from .41 to .38",
    "reasoning": ".536 and .558: two random heads that saw no image",
}
TASK_COLUMNS = (
    "task",
    "the project got",
    "base",
    "SFT",
    "DPO",
    "RL",
    "p against SFT: DPO, RL",
    "held-out pairs: SFT, DPO, RL",
    "wins by a reward model: SFT, DPO, RL",
    "it agrees with the truth",
)
POLICIES = ("sft", "dpo", "rl")
TaskFigures = Mapping[str, Mapping[str, Any]]


def task_rows(figures: TaskFigures) -> TableRows:
    """The table, a row for each task that was measured; what was not measured is a dash.

    A share is that of the first seed with its 95 % interval, and the range of all seeds.
    """
    rows = [list(TASK_COLUMNS)]
    for task, got in PROJECTS.items():
        if f"{task}_base" not in figures:
            continue
        shares = [_share(figures, f"{task}_{policy}") for policy in ("base", *POLICIES)]
        row = [task, got, *shares]
        row.append(_several(figures, task, "p", ("dpo", "rl")))
        for kind in ("pairs", "wins", "agreement"):
            row.append(_several(figures, task, kind, POLICIES))
        rows.append(row)
    return rows


def _of_seeds(figures: TaskFigures, name: str) -> list[float]:
    """The value of every seed, the first one's first."""
    values = []
    for key, figure in figures.items():
        if key == name or key.startswith(f"{name}_seed_"):
            values.append(figure["value"])
    return values


def _share(figures: TaskFigures, name: str) -> str:
    if name not in figures:
        return "–"
    first = figures[name]
    text = f"{first['value']:.3f} [{first['low']:.3f}, {first['high']:.3f}]"
    values = _of_seeds(figures, name)
    # a base has no seed: it is the same each time
    if max(values) > min(values):
        text += f"; {len(values)} seeds {min(values):.3f} – {max(values):.3f}"
    return text


def _several(figures: TaskFigures, task: str, kind: str, policies: tuple[str, ...]) -> str:
    """The same figure of several policies; of p, the largest of all seeds."""
    cells = []
    for policy in policies:
        values = _of_seeds(figures, f"{task}_{policy}_{kind}")
        if not values:
            cells.append("–")
        elif kind == "p":
            cells.append(f"{max(values):.2g}")
        else:
            cells.append(f"{values[0]:.2f}")
    return ", ".join(cells)
