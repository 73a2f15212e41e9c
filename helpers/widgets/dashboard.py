"""Curves of several runs over each other, read from their logs, also while they are training."""

import base64
import html
import io
import itertools
import time
from collections.abc import Sequence
from pathlib import Path

import ipywidgets as w
from matplotlib.figure import Figure

from helpers.report import (
    HELD_OUT_PREFIX,
    LOGGED_STAGES,
    LoggedRun,
    axes,
    definition,
    differences,
    find_runs,
    last_value,
    plots,
    points,
    running_mean,
)

from .common import (
    Panel,
    button,
    html_place,
    in_column,
    in_row,
    labelled,
    note,
    padded_table,
    picture_place,
    show,
    show_errors,
    show_picture,
    slider,
)

SHOWN_RUNS = 6  # runs that are chosen to begin with: more are hard to tell apart


class Dashboard(Panel):
    """Choose runs, figures and smoothing; see curves, last values and definitions.

    `show()` gives the widget. folder: where logs are looked for, with all folders below it.
    "Refresh" reads all of them again. What is wrong with a log is said by its name, and the others
    are shown. Smoothing is a running mean of so many rows; held-out figures are few, and are left
    as they are.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        self.state = {}
        self.runs = []
        # what is chosen
        self.stage = labelled(w.Dropdown, "stage")
        self.chosen = labelled(w.SelectMultiple, "runs", rows=6)
        self.axis = labelled(w.Dropdown, "against")
        self.smoothing = slider(w.IntSlider, "smoothing", 5, 1, 50)
        self.refresh = button("Refresh", self._read)
        self.metrics: dict[tuple[str, str], w.Checkbox] = {}  # by stage and figure
        # what is shown of it
        self.message = html_place("68px")
        self.picture = picture_place("png")
        self.table = html_place("190px")
        self.meanings = html_place("130px")
        self.box = self._lay_out()
        self.box.add_class("dashboard")
        self.on_change(self._fill, self.stage)
        self.on_change(self._draw, self.chosen, self.axis, self.smoothing)
        self._read()

    def show(self) -> None:
        """Display the widget; where no widgets run, figure and table as they are now."""
        static = self.table.value
        if self.picture.value:
            source = f"data:image/png;base64,{base64.b64encode(self.picture.value).decode()}"
            style = "max-width:100%"
            static = f"<img alt='training curves' style='{style}' src='{source}'>{static}"
        show(self.box, static)

    def _lay_out(self) -> w.Widget:
        controls = [self.stage, self.chosen, self.axis, self.smoothing, self.refresh]
        left = w.VBox(controls, layout=w.Layout(flex="1 1 300px"))
        self._ticks = in_row()
        self._ticks.layout.flex = "1 1 420px"
        self._ticks.layout.height = "176px"
        self._ticks.layout.overflow = "auto"
        frame = w.VBox([self.picture], layout=w.Layout(height="600px", overflow="auto"))
        self._results = w.VBox([frame, self.table, self.meanings])
        return in_column(in_row(left, self._ticks), self.message, self._results)

    # --- what can be chosen ---

    def _read(self) -> None:
        """Read all logs anew; what was chosen stays chosen where it is still there."""
        before = {run.name for run in self.runs}
        with show_errors(self._fail):
            self.runs = find_runs(self.folder)
            # no blank page before the first run
            self._results.layout.display = "flex" if self.runs else "none"
            self._told = f"{len(self.runs)} logs, read at {time.strftime('%H:%M:%S')}"
            new = {run.name for run in self.runs if not run.error} - before
            if before and new:
                self._told += f"; new: {', '.join(sorted(new))}"
            stages = [stage for stage in LOGGED_STAGES if self._runs_of_stage(stage)]
            options = [(LOGGED_STAGES[stage].title, stage) for stage in stages]
            self._set(self.stage, options, self._kept(self.stage, stages))
            self._fill()

    def _runs_of_stage(self, stage: str | None) -> list[LoggedRun]:
        return [run for run in self.runs if run.stage == stage and not run.error]

    def _fill(self) -> None:
        """Runs, axes and figures of the stage."""
        runs = self._runs_of_stage(self.stage.value)
        # runs that were chosen before, else the first few
        names = [run.name for run in runs]
        kept = [name for name in self.chosen.value if name in names] or names[:SHOWN_RUNS]
        self._set(self.chosen, [(name, name) for name in names], tuple(kept))
        # the figures that matter most come first, and are ticked
        main = LOGGED_STAGES[self.stage.value].main_figures if runs else ()
        others = {name for run in runs for name in run.columns}.difference(main)
        self._ticks.children = [self._tick(name, name in main) for name in (*main, *sorted(others))]
        self._draw()

    def _kept(self, control: w.Dropdown, values: Sequence[str]) -> str | None:
        """The value of a control if it can stay, else the first of those that are there now."""
        return control.value if control.value in values else next(iter(values), None)

    def _set(
        self,
        control: w.Widget,
        options: list[tuple[str, str]],
        value: str | tuple[str, ...] | None,
    ) -> None:
        """New options without a redraw for each of the steps in between."""
        with self.silence():
            if list(control.options) != options:
                control.options = options
            control.value = value

    def _tick(self, name: str, ticked: bool) -> w.Checkbox:
        """The box of a figure, kept as it is once it was made."""
        key = (self.stage.value, name)
        if key not in self.metrics:
            box = w.Checkbox(
                ticked,
                # ipywidgets 7 would take `<` for markup
                description=name.replace("<", "‹").replace(">", "›"),
                indent=False,
                layout=w.Layout(width="220px"),
            )
            self.on_change(self._draw, box)
            self.metrics[key] = box
        return self.metrics[key]

    # --- what is shown of it ---

    def _draw(self) -> None:
        with show_errors(self._fail):
            self._show_all(self.stage.value)

    def _show_all(self, stage: str | None) -> None:
        runs = [run for run in self._runs_of_stage(stage) if run.name in self.chosen.value]
        # axes that all of these runs have
        possible = axes(runs)
        self._set(self.axis, possible, self._kept(self.axis, possible))
        # figures that are ticked, of this stage and on the screen
        metrics = []
        for (of, name), box in self.metrics.items():
            if of == stage and box in self._ticks.children and box.value:
                metrics.append(name)
        self._show_curves(runs, metrics)
        self.table.value = last_values(runs, metrics)
        meanings = ""
        for name in metrics:
            if text := definition(stage, name):
                line = f"<b>{html.escape(name)}</b>: {html.escape(text)}"
                meanings += f"<div style='line-height:20px'>{line}</div>"
        self.meanings.value = meanings
        self._tell(runs, metrics)

    def _show_curves(self, runs: Sequence[LoggedRun], metrics: Sequence[str]) -> None:
        panels: dict[str, dict[str, tuple]] = {}
        for metric, run in itertools.product(metrics, runs):
            x, values = points(run, metric, self.axis.value)
            # held-out figures are few, and a mean of several would hide what they say
            is_held_out = metric.startswith((HELD_OUT_PREFIX, "eval_"))
            smooth = running_mean(values, 1 if is_held_out else self.smoothing.value)
            if len(x):
                panels.setdefault(metric, {})[run.name] = (x, values, smooth)
        content = b""
        if panels:
            content = figure_png(plots.run_curves(panels, self.axis.value))
        show_picture(self.picture, content)

    def _tell(self, runs: Sequence[LoggedRun], metrics: Sequence[str]) -> None:
        """Say errors first, then what was left out, then gaps, then how many logs were read."""
        errors = [f"{run.name}: {run.error}" for run in self.runs if run.error]
        lines = [f"{run.name}: {text}" for run in runs for text in run.notes]
        # of each run and figure: rows that hold no number, and the last one that does
        gaps = {}
        last = {}
        for run in runs:
            gaps[run.name] = {m: int(run.gaps[m].sum()) for m in metrics if m in run.gaps}
            last[run.name] = {m: last_value(run, m) for m in metrics}
            for metric, n in gaps[run.name].items():
                are = "is" if n == 1 else "are"
                lines.append(
                    f"{run.name}: {n} of {metric} {are} NaN, infinite or null, shown as gaps"
                )
        # why the picture is empty, if it is
        if not self.runs:
            lines.append(
                f"No logs under {self.folder}. Run notebook 03, 04 or 05, then press Refresh."
            )
        elif not (runs and metrics):
            lines.append("Choose at least one run and one figure.")
        self.state = {
            "stage": self.stage.value,
            "runs": [run.name for run in runs],
            "metrics": list(metrics),
            "axis": self.axis.value,
            "smoothing": self.smoothing.value,
            "gaps": gaps,
            "errors": errors,
            "notes": lines,
            "last": last,
        }
        said = [note(text, error=True) for text in errors]
        said += map(note, [*lines, self._told])
        self.message.value = "".join(said)

    def _fail(self, text: str) -> None:
        self.state |= {"errors": [text]}
        self.message.value = note(text, error=True)


def last_values(runs: Sequence[LoggedRun], metrics: Sequence[str]) -> str:
    """HTML table: of each run its last step, the last finite value of each metric, its settings.

    Of the settings only those in which the runs differ.
    """
    if not runs:
        return ""
    rows = [["run", "last step", *metrics, "differs in"]]
    for run, apart in zip(runs, differences(runs), strict=True):
        step = f"{run.steps[-1]:g}" if len(run.steps) else "–"
        rows.append([run.name, step, *(_number(last_value(run, m)) for m in metrics), apart])
    return padded_table([list(map(html.escape, row)) for row in rows])


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
