"""Logs of SFT, DPO, reward-model and PPO runs as arrays, also while another process writes them.

What is read under a folder, and who writes it:

    log.json                           SFT and DPO: a list of TRL's rows, those of DPO with margins
                                       reward model: {"steps": […], "evaluations": […]}
    log.jsonl                          PPO, RLOO, GRPO: one row a line (`watch.JSONLog`)
    checkpoint-N/trainer_state.json    SFT or DPO under way, at its last checkpoint: TRL's rows in
                                       "log_history"

Python's own JSON reader is used on purpose, unlike for data: a log may say NaN, and that is what
one looks for. pandas is imported where it is used, since it takes a second.
Simplification: every call reads every file anew.
"""

import heapq
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from helpers.files import ROOT, UsageError, read_json
from helpers.machine import TRAINER_STATE

HELD_OUT_PREFIX = "held out/"  # before the names of figures of a reward model on held-out pairs
TOTALS = ("seconds", "samples", "num_tokens", "epoch")  # columns that can be the x axis
_Row = dict[str, Any]  # figures by name, and the step
LONGEST_SETTING = 40  # characters; what is longer is a text or a list, and no setting


@dataclass(frozen=True)
class LoggedStage:
    """A kind of run: its four most telling figures, and where `docs/metrics.md` defines them."""

    title: str
    main_figures: tuple[str, ...]
    section: str


LOGGED_STAGES = {
    "dpo": LoggedStage(
        "DPO",
        ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen"),
        "While DPO trains",
    ),
    "sft": LoggedStage(
        "SFT",
        ("loss", "mean_token_accuracy", "entropy", "grad_norm"),
        "While SFT trains",
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
    # (rows,): steps or iterations, never falling
    steps: np.ndarray = field(default_factory=lambda: np.zeros(0))
    # (rows,): NaN where nothing finite is logged
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)  # its about.json: base, seed, settings
    # (rows,) bool: logged, but NaN, infinite or null
    gaps: dict[str, np.ndarray] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what was left out, and why
    error: str | None = None


def find_runs(folder: Path) -> list[LoggedRun]:
    """Every run with a log under `folder`, by name; one that cannot be read has its `error`."""
    files = [*folder.rglob("log.json"), *folder.rglob("log.jsonl")]
    # of a run that has come to its end, `log.json` has all rows
    under_way = [
        path
        for path in folder.rglob(TRAINER_STATE)
        if not (path.parent.parent / "log.json").exists()
    ]
    files += _newest_states(under_way)
    names = Counter(path.parent for path in files)
    runs = []
    for path in sorted(files):
        name = path.parent.relative_to(folder).as_posix()
        if name == ".":
            name = folder.resolve().name
        # two logs in one folder
        if names[path.parent] > 1:
            name = f"{name}/{path.name}"
        runs.append(_read_run(path, name))
    return runs


def _newest_states(states: Iterable[Path]) -> Iterable[Path]:
    """Choose the newest checkpoint of each trainer: it holds the rows of all earlier ones."""
    ages = {}
    for path in states:
        number = re.findall(r"\d+$", path.parent.name) or [0]
        # TRL keeps few checkpoints, and may have removed this one just now
        with suppress(FileNotFoundError):
            ages[path] = (path.stat().st_mtime, int(number[0]), path)
    # of each trainer, the last of these stays
    newest = {path.parent.parent: path for path in sorted(ages, key=ages.get)}
    return newest.values()


def _read_run(path: Path, name: str) -> LoggedRun:
    notes = []
    try:
        stage, rows = _read_rows(path, notes)
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror}). Check it, then refresh."
        return LoggedRun(name, error=problem)
    except UsageError as problem:
        return LoggedRun(name, error=str(problem))
    steps = np.array([row.pop("step") for row in rows])
    if not rows:
        notes.append("no row has been logged yet")
    if (np.diff(steps) < 0).any():
        notes.append("the steps go back, as if two runs had one file; the rows are sorted by step")
    # stable: rows of one step stay as they were logged
    order = np.argsort(steps, kind="stable")
    columns, gaps = _columns([rows[i] for i in order], notes)
    about = _about(path.parent / "about.json", notes)
    return LoggedRun(name, stage, steps[order], columns, about, gaps, tuple(notes))


def _about(path: Path, notes: list[str]) -> dict[str, Any]:
    try:
        about = read_json(path) if path.exists() else {}
    except (UsageError, OSError) as error:
        notes.append(str(error))
        return {}
    if not isinstance(about, dict):
        notes.append(f"{path}: holds no object with settings")
        return {}
    return about


def _read_rows(path: Path, notes: list[str]) -> tuple[str, list[_Row]]:
    """Stage and rows of one file. Raises UsageError naming it."""
    raw = path.read_bytes()
    if path.suffix == ".jsonl":
        return "ppo", _lines(path, raw, notes)
    content = _parse(raw, str(path))
    if isinstance(content, list):
        content = {"log_history": content}
    elif not isinstance(content, dict):
        content = {}
    history = content.get("log_history")
    if isinstance(history, list):
        rows = _rows(history, path)
        logged = set().union(*rows)
        # both log the accuracy of tokens; SFT has nothing to compare
        compares = "rewards/margins" in logged or "mean_token_accuracy" not in logged
        return "dpo" if compares else "sft", rows
    steps = content.get("steps")
    asked = content.get("evaluations")
    if isinstance(steps, list) and isinstance(asked, list):
        trained = _rows(steps, path, " of steps")
        held_out = _rows(asked, path, " of evaluations", HELD_OUT_PREFIX)
        return "reward", list(heapq.merge(trained, held_out, key=lambda row: row["step"]))
    raise UsageError(
        f"{path}: neither a list of rows nor steps and evaluations. "
        "Run the notebook that makes it again."
    )


def _lines(path: Path, raw: bytes, notes: list[str]) -> list[_Row]:
    """Rows of JSON lines; half a line at the end is that of a process that is writing."""
    rows = []
    lines = raw.split(b"\n")  # the last is what follows the last line break: mostly nothing
    for number, line in enumerate(lines, start=1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            value = _object(_parse(line, where), where)
        except UsageError:
            if number < len(lines):
                raise
            notes.append(
                f"{where}: half a line ({len(line)} bytes) is left out, as of a run that is writing"
            )
        else:
            rows.append(_row(value, where))
    return rows


def _rows(values: Sequence[Any], path: Path, part: str = "", prefix: str = "") -> list[_Row]:
    """The rows of a list; `prefix` goes before the names of their figures."""
    rows = enumerate(values, start=1)
    return [_row(value, f"{path}, row {number}{part}", prefix) for number, value in rows]


def _object(value: Any, where: str) -> _Row:
    if not isinstance(value, dict):
        raise UsageError(f"{where}: is no object of figures. Remove it, or run the notebook again.")
    return value


def _row(value: Any, where: str, prefix: str = "") -> _Row:
    """The figures of a row and its step. Raises UsageError if it is none."""
    value = _object(value, where)
    step = value.get("step", value.get("iteration"))
    if not isinstance(step, float) or not np.isfinite(step):
        raise UsageError(
            f"{where}: has no step or iteration. Remove the row, or run the notebook again."
        )
    names = [name for name in value if name not in ("step", "iteration")]
    return {prefix + name: value[name] for name in names} | {"step": step}


def _parse(raw: bytes, where: str) -> Any:
    """JSON with NaN and Infinity; whole numbers beyond a float are infinite, too."""
    try:
        return json.loads(raw, parse_int=float)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{where}: not JSON ({reason}). Remove it, or run the notebook again."
        ) from None


def _columns(
    rows: Sequence[_Row], notes: list[str]
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Columns and gaps of rows; what is left out goes to `notes`."""
    import pandas as pd

    # as objects, since a column of numbers would not tell null from NaN from not logged
    table = pd.DataFrame(rows, dtype=object)
    logged = pd.DataFrame([dict.fromkeys(row, True) for row in rows]).notna()
    columns, gaps = {}, {}
    for name, values in table.items():
        if not all(value is None or isinstance(value, int | float) for value in values):
            notes.append(f"{name!r} is left out: it holds something else than numbers")
            continue
        numbers = values.astype(float)
        finite = np.isfinite(numbers)
        columns[name] = numbers.where(finite).to_numpy()
        gap = logged[name] & ~finite
        if gap.any():
            gaps[name] = gap.to_numpy()
    return columns, gaps


# --- What is shown of them ---


def axes(runs: Iterable[LoggedRun]) -> list[str]:
    """Choices for the x axis of `runs`: the step, and running totals that all of them log."""
    common = set(TOTALS)
    for run in runs:
        common &= {name for name, values in run.columns.items() if np.isfinite(values).any()}
    return ["step", *(name for name in TOTALS if name in common)]


def points(run: LoggedRun, metric: str, axis: str = "step") -> tuple[np.ndarray, np.ndarray]:
    """Where `metric` was logged and what it was, both (points,); NaN is a gap.

    Empty if the run has no such figure. A row that does not say where it is on `axis` is put
    between its neighbours by its step.
    """
    if metric not in run.columns:
        return np.zeros(0), np.zeros(0)
    values = run.columns[metric]
    x = run.steps
    if axis != "step":
        known = np.isfinite(run.columns[axis])
        # a row that lacks the axis stands between its neighbours
        x = np.interp(run.steps, run.steps[known], run.columns[axis][known])
    logged = np.isfinite(values) | run.gaps.get(metric, False)
    return x[logged], values[logged]


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of each value and the `width` − 1 before it, as far as they are known; gaps stay gaps.

    (n,) → (n,)

    >>> running_mean(np.array([1, 3, np.nan, 5]), 2)
    array([ 1.,  2., nan,  5.])
    """
    import pandas as pd

    series = pd.Series(values)
    means = series.rolling(width, min_periods=1).mean()
    return means.where(series.notna()).to_numpy()


def last_value(run: LoggedRun, metric: str) -> float | None:
    """The last finite one, None if there is none."""
    _, values = points(run, metric)
    known = values[np.isfinite(values)]
    return float(known[-1]) if len(known) else None


def differences(runs: Sequence[LoggedRun]) -> list[str]:
    """What each run's about.json says that some other's does not: "seed 1, learning_rate 0.001"."""
    import pandas as pd

    told = pd.DataFrame([_flatten_settings(run.about) for run in runs])
    # what all runs share tells them apart no more than what is not said
    differing = told.loc[:, told.nunique(dropna=False) > 1].fillna("not given")
    texts = []
    for settings in differing.to_dict("records"):
        texts.append(", ".join(f"{name} {value}" for name, value in settings.items()))
    return texts


def _flatten_settings(about: Mapping[str, Any]) -> dict[str, str]:
    """Settings by their own names, `lora` and the like opened; long ones are left out."""
    flat = {}
    for name, value in about.items():
        if isinstance(value, Mapping):
            flat |= _flatten_settings(value)
            continue
        text = value if isinstance(value, str) else json.dumps(value)
        if len(text) <= LONGEST_SETTING:
            flat[name] = text
    return flat


@cache
def definitions(path: Path = ROOT / "docs" / "metrics.md") -> dict[str, dict[str, str]]:
    """{stage: {figure: its definition}} from the tables of a page; {} if it cannot be read.

    | `a`, `b` | what it is |    under a paragraph that begins as `LoggedStage.section` says
    → {"a": what it is, "b": what it is}
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return {}
    found = {stage: {} for stage in LOGGED_STAGES}
    section = ""
    for block in text.split("\n\n"):
        if not block.startswith("|"):
            section = block
        for line in block.splitlines():
            cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
            if not line.startswith("|") or len(cells) != 2:
                continue
            for name, stage in LOGGED_STAGES.items():
                if section.startswith(stage.section):
                    found[name] |= dict.fromkeys(re.findall(r"`([^`]+)`", cells[0]), cells[1])
    return found


def definition(stage: str, metric: str) -> str | None:
    """One sentence of `docs/metrics.md`; that of "reward/…" is used for every name so begun."""
    known = definitions().get(stage, {})
    if metric in known:
        return known[metric]
    for name, text in known.items():
        if name.endswith("…") and metric.startswith(name[:-1]):
            return text
    return None
