"""Logs of DPO, reward-model and PPO runs as arrays, also while another process writes them.

What is read under a folder, and who writes it:

    log.json                           DPO: a list of TRL's rows; reward model: {"steps": […], "evaluations": […]}
    log.jsonl                          PPO, RLOO, GRPO: one row a line (`watch.JSONLog`)
    checkpoint-N/trainer_state.json    DPO under way, at its last checkpoint: TRL's rows in "log_history"

Python's own JSON reader is used on purpose, unlike for data: a log may say NaN, and that is what one looks for.
Simplification: every call reads every file anew.
"""

import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from helpers.files import ROOT, UsageError, read_json
from helpers.machine import TRAINER_STATE

HELD_OUT_PREFIX = "held out/"  # before the names of figures of a reward model on held-out pairs


@dataclass(frozen=True)
class LoggedStage:
    """A kind of run: its four most telling figures, and where `docs/metrics.md` defines them."""

    title: str
    main_figures: tuple[str, ...]
    section: str


LOGGED_STAGES = {
    "dpo": LoggedStage(
        "DPO", ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen"), "While DPO trains"
    ),
    "reward": LoggedStage(
        "reward model",
        ("loss", "accuracy", f"{HELD_OUT_PREFIX}loss", f"{HELD_OUT_PREFIX}accuracy"),
        "Of reward models",
    ),
    "ppo": LoggedStage(
        "PPO, RLOO, GRPO",
        ("objective/scores", "objective/kl", "objective/entropy", "groups/zero_variance"),
        "Of PPO, RLOO and GRPO",
    ),
}


@dataclass(frozen=True)
class LoggedRun:
    """One run's log. With an `error` nothing of it could be read."""

    name: str  # its folder, relative to where runs were looked for
    stage: str = ""  # a key of LOGGED_STAGES
    steps: np.ndarray = field(
        default_factory=lambda: np.zeros(0)
    )  # (rows,): steps or iterations, never falling
    columns: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # (rows,): NaN where nothing finite is logged
    about: dict[str, Any] = field(default_factory=dict)  # its about.json: base, seed, settings
    gaps: dict[str, np.ndarray] = field(
        default_factory=dict
    )  # (rows,) bool: logged, but NaN, infinite or null
    notes: tuple[str, ...] = ()  # what was left out, and why
    error: str | None = None


def find_runs(folder: Path) -> list[LoggedRun]:
    """Every run with a log under `folder`, by name; one that cannot be read is there with its `error`."""
    found = [
        path
        for path in folder.rglob("*.json*")
        if path.name in ("log.json", "log.jsonl", TRAINER_STATE)
    ]
    states = [path for path in found if path.name == TRAINER_STATE]
    files = sorted([path for path in found if path.name != TRAINER_STATE] + _newest_states(states))
    names = Counter(path.parent for path in files)
    return [_read_run(path, _name(folder, path, names[path.parent] > 1)) for path in files]


def _newest_states(states: Iterable[Path]) -> list[Path]:
    """Choose the newest checkpoint of each trainer: it holds the rows of all earlier ones."""
    last: dict[Path, tuple[float, int, Path]] = {}
    for path in states:
        number = int((re.findall(r"\d+$", path.parent.name) or [0])[0])
        try:
            age = (path.stat().st_mtime, number, path)
        except FileNotFoundError:  # TRL keeps few checkpoints and has just removed this one
            continue
        trainer = path.parent.parent
        last[trainer] = max(last.get(trainer, age), age)
    return [path for _, _, path in last.values()]


def _name(folder: Path, path: Path, shared: bool) -> str:
    name = path.parent.relative_to(folder).as_posix()
    name = folder.resolve().name if name == "." else name
    return f"{name}/{path.name}" if shared else name


def _read_run(path: Path, name: str) -> LoggedRun:
    try:
        stage, rows, notes = _read_rows(path)
        steps, columns, gaps, more = _columns(rows)
    except OSError as error:
        return LoggedRun(
            name, error=f"{path}: cannot be read ({error.strerror}). Check it, then refresh."
        )
    except UsageError as error:
        return LoggedRun(name, error=str(error))
    about, fault = _about(path.parent / "about.json")
    return LoggedRun(name, stage, steps, columns, about, gaps, (*notes, *more, *fault))


def _about(path: Path) -> tuple[dict[str, Any], list[str]]:
    try:
        about = read_json(path) if path.exists() else {}
    except (UsageError, OSError) as error:
        return {}, [str(error)]
    return (
        (about, []) if isinstance(about, dict) else ({}, [f"{path}: holds no object with settings"])
    )


_PlacedRow = tuple[str, dict[str, Any]]  # where it stands, what it says


def _read_rows(path: Path) -> tuple[str, list[_PlacedRow], list[str]]:
    """Stage, rows and notes of one file. Raises UsageError naming it."""
    raw = path.read_bytes()
    if path.suffix == ".jsonl":
        return "ppo", *_lines(path, raw)
    content = _parse(raw, str(path))
    if isinstance(content, dict) and "log_history" in content:
        content = content["log_history"]
    if isinstance(content, list):
        return (
            "dpo",
            [_row(row, f"{path}, row {number}") for number, row in enumerate(content, start=1)],
            [],
        )
    if isinstance(content, dict) and all(
        isinstance(content.get(part), list) for part in ("steps", "evaluations")
    ):
        trained = [
            _row(row, f"{path}, row {number} of steps")
            for number, row in enumerate(content["steps"], start=1)
        ]
        asked = [
            _held_out_row(row, f"{path}, row {n} of evaluations")
            for n, row in enumerate(content["evaluations"], start=1)
        ]
        return "reward", list(heapq.merge(trained, asked, key=lambda row: _step(*row))), []
    raise UsageError(
        f"{path}: neither a list of rows nor steps and evaluations. Run the notebook that makes it again."
    )


def _lines(path: Path, raw: bytes) -> tuple[list[_PlacedRow], list[str]]:
    """Rows of JSON lines; half a line at the end is that of a process that is writing."""
    rows, notes, lines = (
        [],
        [],
        raw.split(b"\n"),
    )  # the last one is what follows the last line break: mostly nothing
    for number, line in enumerate(lines, start=1):
        try:
            if line.strip():
                rows.append(_row(_parse(line, f"{path}:{number}"), f"{path}:{number}"))
        except UsageError:
            if number < len(lines):
                raise
            notes.append(
                f"{path}:{number}: half a line ({len(line)} bytes) is left out, as of a run that is writing"
            )
    return rows, notes


def _parse(raw: bytes, where: str) -> Any:
    """JSON with NaN and Infinity; whole numbers beyond a float are infinite, too."""
    try:
        return json.loads(raw, parse_int=float)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{where}: not JSON ({reason}). Remove it, or run the notebook again."
        ) from None


def _row(value: Any, where: str) -> _PlacedRow:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is no object of figures. Remove it, or run the notebook again.")
    return where, value


def _held_out_row(value: Any, where: str) -> _PlacedRow:
    return where, {
        name if name == "step" else HELD_OUT_PREFIX + name: v
        for name, v in _row(value, where)[1].items()
    }


def _columns(
    rows: Sequence[_PlacedRow],
) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Steps, columns, gaps and notes, sorted by step. Raises UsageError for a row without a step."""
    steps, notes = (
        np.array([_step(*row) for row in rows]),
        [] if rows else ["no row has been logged yet"],
    )
    if (np.diff(steps) < 0).any():
        notes.append("the steps go back, as if two runs had one file; the rows are sorted by step")
    columns, gaps = {}, {}
    order = np.argsort(steps, kind="stable")
    for name in dict.fromkeys(
        name for _, row in rows for name in row if name not in ("step", "iteration")
    ):
        values = [rows[i][1].get(name, ...) for i in order]  # ...: not logged
        if not all(
            value is ... or value is None or isinstance(value, int | float) for value in values
        ):
            notes.append(f"{name!r} is left out: it holds something else than numbers")
            continue
        numbers = np.array([np.nan if value in (..., None) else float(value) for value in values])
        columns[name] = np.where(np.isfinite(numbers), numbers, np.nan)
        gap = np.array([value is not ... for value in values]) & ~np.isfinite(numbers)
        gaps |= {name: gap} if gap.any() else {}
    return steps[order], columns, gaps, notes


def _step(where: str, row: Mapping[str, Any]) -> float:
    step = row.get("step", row.get("iteration"))
    if not isinstance(step, float) or not np.isfinite(step):
        raise UsageError(
            f"{where}: has no step or iteration. Remove the row, or run the notebook again."
        )
    return step


# --- What is shown of them ---


def axes(runs: Iterable[LoggedRun]) -> list[str]:
    """Choices for the x axis of `runs`: the step, and running totals that all of them log."""
    totals = ("seconds", "samples", "num_tokens", "epoch")
    return [
        "step",
        *(
            name
            for name in totals
            if all(np.isfinite(run.columns.get(name, [])).any() for run in runs)
        ),
    ]


def points(run: LoggedRun, metric: str, axis: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Where `metric` was logged and what it was, both (points,); NaN is a gap. Empty if the run has no such figure.

    A row that does not say where it is on `axis` is put between its neighbours by its step.
    """
    if metric not in run.columns:
        return np.zeros(0), np.zeros(0)
    values, x = run.columns[metric], run.steps
    if axis != "step":
        known = np.isfinite(run.columns[axis])
        x = np.interp(run.steps, run.steps[known], run.columns[axis][known])
    logged = np.isfinite(values) | run.gaps.get(metric, False)
    return x[logged], values[logged]


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value and the `width` − 1 before it, as far as they are known; (n,) → (n,), gaps stay gaps.

    >>> running_mean(np.array([1, 3, np.nan, 5]), 2)
    array([ 1.,  2., nan,  5.])
    """
    padded = np.concatenate([np.full(width, np.nan), values])
    windows = np.lib.stride_tricks.sliding_window_view(padded, width)[1:]
    known = np.isfinite(windows)
    means = np.where(known, windows, 0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return np.where(np.isfinite(values), means, np.nan)


def last_value(run: LoggedRun, metric: str) -> float | None:
    """The last finite one, None if there is none."""
    values = run.columns.get(metric, np.zeros(0))
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def differences(runs: Sequence[LoggedRun]) -> list[str]:
    """What each run's about.json says that some other's does not: "seed 1, learning_rate 0.001"."""
    told = [_flatten_settings(run.about) for run in runs]
    names = dict.fromkeys(name for about in told for name in about)
    differing = [name for name in names if len({about.get(name) for about in told}) > 1]
    return [
        ", ".join(f"{name} {about.get(name, 'not given')}" for name in differing) for about in told
    ]


def _flatten_settings(about: Mapping[str, Any]) -> dict[str, str]:
    """Settings by their own names, `lora` and the like opened; what is longer than 40 characters is no setting."""
    flat: dict[str, str] = {}
    for name, value in about.items():
        flat |= (
            _flatten_settings(value)
            if isinstance(value, Mapping)
            else {name: value if isinstance(value, str) else json.dumps(value)}
        )
    return {name: text for name, text in flat.items() if len(text) <= 40}


@cache
def definitions(path: Path = ROOT / "docs" / "metrics.md") -> dict[str, dict[str, str]]:
    """{stage: {figure: its definition}} from the tables of `docs/metrics.md`; {} if it cannot be read.

    | `a`, `b` | what it is |    under a paragraph that begins as `LoggedStage.section` says → {"a": what it is, "b": …}
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return {}
    found: dict[str, dict[str, str]] = {stage: {} for stage in LOGGED_STAGES}
    section, before = "", ""
    for line in lines:
        if line and not line.startswith("|") and not before:  # the first line of a paragraph
            section = line
        cells = (
            [cell.strip() for cell in line.strip("| ").split(" | ")] if line.startswith("|") else []
        )
        for stage in LOGGED_STAGES if len(cells) == 2 else ():
            if section.startswith(LOGGED_STAGES[stage].section):
                found[stage] |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1])
        before = line
    return found


def definition(stage: str, metric: str) -> str | None:
    """One sentence of `docs/metrics.md`; the one of "reward/…" is used for every name that starts so."""
    known = definitions().get(stage, {})
    return known.get(metric) or next(
        (known[n] for n in known if n.endswith("…") and metric.startswith(n[:-1])), None
    )
