"""Curves of several runs over each other, read from their logs, also while they are training."""

import base64
import html
import io
import itertools
import time
from collections.abc import Callable, Sequence
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

from .common import button, note, show, show_errors

SHOWN_RUNS = 6  # runs that are chosen to begin with: more are hard to tell apart


class Dashboard:
    """Choose runs, figures and smoothing; see curves, last values and definitions. `show()` gives the widget.

    folder: where logs are looked for, with all folders below it. "Refresh" reads all of them again. What
    is wrong with a log is said by its name, and the others are shown. Smoothing is a running mean of so
    many rows; held-out figures are few, and are left as they are.
    """

    def __init__(self, folder: Path):
        self.folder, self.state, self.runs, self._filling = Path(folder), {}, [], False
        wide = {"layout": w.Layout(width="auto"), "style": {"description_width": "70px"}}
        self.stage = w.Dropdown(description="stage", **wide)
        self.chosen = w.SelectMultiple(description="runs", rows=6, **wide)
        self.axis = w.Dropdown(description="against", **wide)
        self.smoothing = w.IntSlider(
            5, 1, 50, description="smoothing", continuous_update=False, **wide
        )
        self.refresh = button("Refresh", self._read)
        self.metrics: dict[tuple[str, str], w.Checkbox] = {}  # by stage and figure
        self._ticks = w.HBox(
            layout=w.Layout(flex_flow="row wrap", height="176px", overflow="auto", flex="1 1 420px")
        )
        self.message = w.HTML(layout=w.Layout(height="68px", overflow="auto"))
        self.picture = w.Image(
            format="png", layout=w.Layout(width="auto", height="auto", max_width="100%")
        )
        self.table = w.HTML(layout=w.Layout(height="190px", overflow="auto"))
        self.meanings = w.HTML(layout=w.Layout(height="130px", overflow="auto"))
        self.box = self._lay_out()
        self.box.add_class("dashboard")
        self.stage.observe(lambda _: self._on_change(self._fill), "value")
        for control in (self.chosen, self.axis, self.smoothing):
            control.observe(lambda _: self._on_change(self._draw), "value")
        self._read()

    def show(self) -> None:
        """Display the widget; where no widgets run, figure and table as they are now."""
        picture = base64.b64encode(self.picture.value).decode()
        static = (
            f"<img alt='training curves' style='max-width:100%' src='data:image/png;base64,{picture}'>"
            if picture
            else ""
        )
        show(self.box, static + self.table.value)

    def _lay_out(self) -> w.Widget:
        controls = [self.stage, self.chosen, self.axis, self.smoothing, self.refresh]
        left = w.VBox(controls, layout=w.Layout(flex="1 1 300px"))
        top = w.HBox([left, self._ticks], layout=w.Layout(flex_flow="row wrap", width="99%"))
        frame = w.VBox([self.picture], layout=w.Layout(height="600px", overflow="auto"))
        self._results = w.VBox([frame, self.table, self.meanings])
        return w.VBox([top, self.message, self._results], layout=w.Layout(padding="6px"))

    # What can be chosen

    def _on_change(self, update: Callable[[], None]) -> None:
        """A control was moved by the reader; `_set` moves them, too, and draws once by itself."""
        if not self._filling:
            with show_errors(self._fail):
                update()

    def _read(self) -> None:
        """Read all logs anew; what was chosen stays chosen where it is still there."""
        before = {run.name for run in self.runs}
        with show_errors(self._fail):
            self.runs = find_runs(self.folder)
            self._results.layout.display = (
                "flex" if self.runs else "none"
            )  # no blank page before the first run
            new = (
                sorted({run.name for run in self.runs if not run.error} - before) if before else []
            )
            self._told = f"{len(self.runs)} logs, read at {time.strftime('%H:%M:%S')}"
            self._told += f"; new: {', '.join(new)}" if new else ""
            stages = [stage for stage in LOGGED_STAGES if self._runs_of_stage(stage)]
            stage = self.stage.value if self.stage.value in stages else next(iter(stages), None)
            self._set(self.stage, [(LOGGED_STAGES[stage].title, stage) for stage in stages], stage)
            self._fill()

    def _runs_of_stage(self, stage: str | None) -> list[LoggedRun]:
        return [run for run in self.runs if run.stage == stage and not run.error]

    def _fill(self) -> None:
        """Runs, axes and figures of the stage."""
        runs = self._runs_of_stage(self.stage.value)
        names = [run.name for run in runs]
        kept = [name for name in self.chosen.value if name in names] or names[:SHOWN_RUNS]
        self._set(self.chosen, [(name, name) for name in names], tuple(kept))
        main_figures = LOGGED_STAGES[self.stage.value].main_figures if runs else ()
        metrics = dict.fromkeys(
            [*main_figures, *sorted({name for run in runs for name in run.columns})]
        )
        self._ticks.children = [self._tick(name, name in main_figures) for name in metrics]
        self._draw()

    def _set(
        self, control: w.Widget, options: list[tuple[str, str]], value: str | tuple[str, ...] | None
    ) -> None:
        """New options without a redraw for each of the steps in between."""
        self._filling = True
        try:
            if list(control.options) != options:
                control.options = options
            control.value = value
        finally:
            self._filling = False

    def _tick(self, name: str, ticked: bool) -> w.Checkbox:
        """The box of a figure, kept as it is once it was made. ipywidgets 7 would take `<` in it for markup."""
        key = (self.stage.value, name)
        if key not in self.metrics:
            shown = name.replace("<", "‹").replace(">", "›")
            self.metrics[key] = w.Checkbox(
                ticked, description=shown, indent=False, layout=w.Layout(width="220px")
            )
            self.metrics[key].observe(lambda _: self._on_change(self._draw), "value")
        return self.metrics[key]

    # What is shown of it

    def _draw(self) -> None:
        stage = self.stage.value
        runs = [run for run in self._runs_of_stage(stage) if run.name in self.chosen.value]
        possible = axes(runs)
        self._set(
            self.axis,
            [(n, n) for n in possible],
            self.axis.value if self.axis.value in possible else possible[0],
        )
        shown = {id(box) for box in self._ticks.children}
        metrics = [
            name for (_, name), box in self.metrics.items() if id(box) in shown and box.value
        ]
        self._show_picture(runs, metrics)
        self.table.value = last_values(runs, metrics)
        self.meanings.value = "".join(
            f"<div style='line-height:20px'><b>{html.escape(name)}</b>: {html.escape(text)}</div>"
            for name in metrics
            if (text := definition(stage, name))
        )
        self._tell(runs, metrics)

    def _show_picture(self, runs: Sequence[LoggedRun], metrics: Sequence[str]) -> None:
        panels: dict[str, dict[str, tuple]] = {metric: {} for metric in metrics}
        for metric, run in itertools.product(metrics, runs):
            x, values = points(run, metric, self.axis.value)
            width = 1 if metric.startswith((HELD_OUT_PREFIX, "eval_")) else self.smoothing.value
            if len(x):
                panels[metric][run.name] = (x, values, running_mean(values, width))
        panels = {metric: lines for metric, lines in panels.items() if lines}
        self.picture.value = (
            figure_png(plots.run_curves(panels, self.axis.value)) if panels else b""
        )
        self.picture.layout.visibility = "visible" if panels else "hidden"

    def _tell(self, runs: Sequence[LoggedRun], metrics: Sequence[str]) -> None:
        """Errors first, then what was left out, then gaps, then how many logs were read and when."""
        gaps = {
            run.name: {m: int(run.gaps[m].sum()) for m in metrics if m in run.gaps} for run in runs
        }
        lines = [f"{run.name}: {text}" for run in runs for text in run.notes]
        lines += [
            f"{name}: {n} of {metric} {'is' if n == 1 else 'are'} NaN, infinite or null, shown as gaps"
            for name, counted in gaps.items()
            for metric, n in counted.items()
        ]
        if not self.runs:
            lines.append(
                f"No logs under {self.folder}. Run notebook 03, 04 or 05, then press Refresh."
            )
        elif not (runs and metrics):
            lines.append("Choose at least one run and one figure.")
        errors = [f"{run.name}: {run.error}" for run in self.runs if run.error]
        self.state = {
            "stage": self.stage.value, "runs": [run.name for run in runs], "metrics": list(metrics),
            "axis": self.axis.value, "smoothing": self.smoothing.value, "gaps": gaps, "errors": errors, "notes": lines,
            "last": {run.name: {metric: last_value(run, metric) for metric in metrics} for run in runs},
        }  # fmt: skip
        said = [note(text, error=True) for text in errors] + [
            note(text) for text in [*lines, self._told]
        ]
        self.message.value = "".join(said)

    def _fail(self, text: str) -> None:
        self.state |= {"errors": [text]}
        self.message.value = note(text, error=True)


def last_values(runs: Sequence[LoggedRun], metrics: Sequence[str]) -> str:
    """HTML table: of each run its last step, the last finite value of each of `metrics`, and what sets it apart."""
    head = ["run", "last step", *metrics, "differs in"]
    rows = [
        [run.name, f"{run.steps[-1]:g}" if len(run.steps) else "–", *(_number(last_value(run, m)) for m in metrics), apart]
        for run, apart in zip(runs, differences(runs), strict=True)
    ]  # fmt: skip
    cells = [
        "".join(f"<th scope='col' style='padding:0 8px'>{html.escape(text)}</th>" for text in head)
    ]
    cells += [
        "".join(f"<td style='padding:0 8px'>{html.escape(text)}</td>" for text in row)
        for row in rows
    ]
    return (
        f"<table style='line-height:20px'>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"
        if rows
        else ""
    )


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def figure_png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()
