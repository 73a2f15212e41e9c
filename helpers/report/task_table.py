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
# A task that was also run in its project's own way → what that is
PROJECT_WAYS = {"reasons_hacked": "reasons, RL on the project's rules"}
TASK_COLUMNS = (
    "task",
    "the project got",
    "base",
    "SFT",
    "DPO",
    "RL",
    "sampled: base, SFT, DPO, RL",
    "p against SFT: DPO, RL",
    "better than SFT",
    "held-out pairs: SFT, DPO, RL",
    "wins by a reward model: SFT, DPO, RL",
    "it agrees with the truth",
)
POLICIES = ("sft", "dpo", "rl")
NAMES = {"dpo": "DPO", "rl": "RL"}
LEVEL = 0.05  # of p, under which a difference is called one
TaskFigures = Mapping[str, Mapping[str, Any]]


def task_rows(figures: TaskFigures) -> TableRows:
    """The table, a row for each task that was measured; what was not measured is a dash.

    A share of greedy answers is that of the first seed with its 95 % interval, and the range of all
    seeds; sampled at temperature 1, it is that of the first seed. Better than SFT is what has a
    higher share of greedy answers and p < 0.05 in every seed; what is worse in any is named.
    """
    rows = [list(TASK_COLUMNS)]
    for task, got in PROJECTS.items():
        if f"{task}_base" not in figures:
            continue
        base = _share(figures, f"{task}_base")
        rows.append([task, got, base, *_cells(figures, task)])
        for way, title in PROJECT_WAYS.items():
            if way.startswith(task) and f"{way}_rl" in figures:
                rows.append([title, "", base, *_cells(figures, way)])
    return rows


def _cells(figures: TaskFigures, run: str) -> list[str]:
    """The cells of a row from SFT on."""
    cells = [_share(figures, f"{run}_{policy}") for policy in POLICIES]
    cells.append(_several(figures, run, "sampled", ("base", *POLICIES)))
    cells.append(_several(figures, run, "p", ("dpo", "rl")))
    cells.append(_better_than_sft(figures, run))
    for kind in ("pairs", "wins", "agreement"):
        cells.append(_several(figures, run, kind, POLICIES))
    return cells


def _better_than_sft(figures: TaskFigures, run: str) -> str:
    known = _of_seeds(figures, f"{run}_sft")
    if not known:
        return "–"
    better = []
    worse = []
    for policy, name in NAMES.items():
        ps = _of_seeds(figures, f"{run}_{policy}_p")
        if not ps:
            continue
        wins = 0  # seeds with a higher share
        losses = 0
        shares = _of_seeds(figures, f"{run}_{policy}")
        for share, sft, p in zip(shares, known, ps, strict=True):
            wins += p < LEVEL and share > sft
            losses += p < LEVEL and share < sft
        if wins == len(ps):
            better.append(name)
        if losses:
            worse.append(f"{name} is worse in {losses} of {len(ps)} seeds")
    return "; ".join([", ".join(better) or "nothing", *worse])


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


def _several(figures: TaskFigures, run: str, kind: str, policies: tuple[str, ...]) -> str:
    """The same figure of several policies; of p, the largest of all seeds."""
    cells = []
    for policy in policies:
        values = _of_seeds(figures, f"{run}_{policy}_{kind}")
        if not values:
            cells.append("–")
        elif kind == "p":
            cells.append(f"{max(values):.2g}")
        else:
            cells.append(f"{values[0]:.2f}")
    return ", ".join(cells)
