"""Weigh the rules of the heuristic and watch what becomes of its ranking, beside the truth (`helpers/rewards/ranking.py`)."""

import html
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import ipywidgets as w
import numpy as np
from scipy.stats import rankdata

from helpers.data import PreferenceRecord, record_key
from helpers.files import UsageError, open_image, read_json, write_json
from helpers.rewards import (
    HEURISTIC_RULES,
    Correlation,
    correlate,
    draw_records,
    flatten,
    pair_agreement,
    rule_values,
    select_with_counts,
    weighted_sum,
)
from helpers.statistics import Proportion

from .common import button, escape_text, jpeg_strip, note, show, show_errors
from .typed import prompt_text

DEFAULT_WEIGHTS = {rule.name: rule.weight for rule in HEURISTIC_RULES}
WEIGHT_LIMIT = 2.0  # of a weight, either way


def read_weights(path: Path) -> dict[str, float]:
    """Weights that a playground kept. Raises UsageError unless every rule has one between −2 and 2."""
    weights = read_json(path)
    numbers = isinstance(weights, dict) and all(
        isinstance(n, int | float) for n in weights.values()
    )
    if (
        not numbers
        or weights.keys() != DEFAULT_WEIGHTS.keys()
        or any(abs(n) > WEIGHT_LIMIT for n in weights.values())
    ):
        raise UsageError(
            f"{path}: must hold a weight from {-WEIGHT_LIMIT:g} to {WEIGHT_LIMIT:g} for each of {', '.join(DEFAULT_WEIGHTS)}. "
            "The defaults are shown; moving a slider writes the file anew."
        )
    return {name: float(weights[name]) for name in DEFAULT_WEIGHTS}


class ScorerPlayground:
    """Sliders for the weights of the heuristic's rules; one record ranked by it, and all of them against the truth.

    path: file of `records`, to which their images are relative. Records without known counts are left
    out, which is said. counts_known: do the rules know the counts? (A box changes it.) weights_path: a JSON
    file of weights, written with each change and read when the cell is run again. Raises UsageError
    if no record has known counts.
    """

    def __init__(
        self,
        records: Sequence[PreferenceRecord],
        counts_known: bool = True,
        weights_path: Path | None = None,
    ):
        self.records, self.weights_path = select_with_counts(records), weights_path
        self.left_out, self.state, self._moving = len(records) - len(self.records), {}, False
        self.answers, self.drawn, self._values = (
            flatten(self.records),
            draw_records(len(self.records)),
            {},
        )
        style = {"description_width": "110px"}
        self.sliders = {
            rule.name: w.FloatSlider(
                rule.weight, min=-WEIGHT_LIMIT, max=WEIGHT_LIMIT, step=0.1, readout_format="+.1f", description=rule.name,
                style=style, layout=w.Layout(flex="0 1 380px"),
            )
            for rule in HEURISTIC_RULES
        }  # fmt: skip
        self.counts_known = w.Checkbox(
            counts_known, description="the rules know the true counts", indent=False
        )
        self.record = w.IntSlider(0, 0, len(self.records) - 1, description="record", style=style)
        self.record.layout = w.Layout(width="auto", max_width="600px")
        self.reset = button("Reset", self._reset)
        self.message = w.HTML(layout=w.Layout(height="48px", overflow="auto"))
        self.summary = w.HTML(layout=w.Layout(height="112px", overflow="auto"))
        self.prompt = w.HTML(layout=w.Layout(height="64px", overflow="auto"))
        self.table = w.HTML(layout=w.Layout(height=self._room(), overflow="auto"))
        size = w.Layout(width="auto", height="auto", max_width="100%", max_height="250px")
        self.picture = w.Image(format="jpeg", layout=size)
        self.box = self._lay_out()
        self.box.add_class("playground")
        self._faults: dict[str, str] = {}
        self._restore()
        self.record.observe(lambda _: self._pick(), "value")
        for control in (*self.sliders.values(), self.counts_known):
            control.observe(lambda _: self._weigh(), "value")
        self._measure()
        self._pick()

    def show(self) -> None:
        """Display the widget; where no widgets run, its tables as they are now."""
        show(self.box, f"{self.prompt.value}{self.table.value}{self.summary.value}")

    def _lay_out(self) -> w.Widget:
        wrap = w.Layout(flex_flow="row wrap", width="99%")
        rows = [
            w.HBox(
                [
                    self.sliders[rule.name],
                    w.HTML(
                        f"<small>{html.escape(rule.description)}</small>",
                        layout=w.Layout(flex="1 1 300px"),
                    ),
                ],
                layout=wrap,
            )
            for rule in HEURISTIC_RULES
        ]
        blind = note(
            "This score never sees the image: its rules read words, and the counts if they are told them."
        )
        frame = w.HBox(
            [self.picture],
            layout=w.Layout(height="260px", flex="0 1 260px", justify_content="center"),
        )
        ranked = w.VBox([self.prompt, self.table], layout=w.Layout(flex="1 1 640px"))
        options = w.HBox([self.reset, self.counts_known], layout=wrap)
        below = [
            options,
            self.summary,
            self.record,
            w.HBox([frame, ranked], layout=wrap),
            self.message,
        ]
        return w.VBox([w.HTML(blind), *rows, *below], layout=w.Layout(padding="6px"))

    def _room(self) -> str:
        """Height for the record with the most text, so that nothing jumps."""
        lines = [
            sum(len(answer.text) // 30 + 1 for answer in record.answers) for record in self.records
        ]
        return f"{min(90 + 24 * max(lines), 420)}px"

    @property
    def weights(self) -> dict[str, float]:
        return {name: slider.value for name, slider in self.sliders.items()}

    def _restore(self) -> None:
        if self.weights_path and self.weights_path.exists():
            with show_errors(partial(self._faults.__setitem__, "weights")):
                self._set(read_weights(self.weights_path))

    def _set(self, weights: Mapping[str, float]) -> None:
        for name, slider in self.sliders.items():
            slider.value = weights[name]

    def _reset(self) -> None:
        self._moving = True  # one measurement, not one a slider
        self._set(DEFAULT_WEIGHTS)
        self._moving = False
        self._weigh()

    def _weigh(self) -> None:
        """A weight or what the rules know was changed."""
        if self._moving:
            return
        self._faults.pop("weights", None)
        with show_errors(partial(self._faults.__setitem__, "weights")):
            if self.weights_path:
                write_json(self.weights_path, self.weights)
        self._measure()

    def _measure(self) -> None:
        told = self.counts_known.value
        if told not in self._values:
            self._values[told] = rule_values(self.records, told)
        self.totals = weighted_sum(self._values[told], self.weights)
        correlation = correlate(self.totals, self.answers, self.drawn)
        agreement = pair_agreement(self.totals, self.answers.pairs)
        self.state |= {"weights": self.weights, "counts_known": told}
        self.state |= {"correlation": correlation, "agreement": agreement}
        self.summary.value = ranking_summary(correlation, agreement, told)
        self._rank()

    def _pick(self) -> None:
        """Another record: its picture and question; a picture that cannot be shown is said, the rest goes on."""
        record = self.records[self.record.value]
        self.prompt.value, content = escape_text(prompt_text(record)), b""
        self._faults.pop("picture", None)
        with show_errors(partial(self._faults.__setitem__, "picture")):
            where = f"record {record_key(record)}"
            content = jpeg_strip([open_image(path, where) for path in record.image_paths])
        self.picture.value, self.picture.layout.visibility = (
            content,
            "visible" if content else "hidden",
        )
        self._rank()

    def _rank(self) -> None:
        """The answers of the record that is shown, the best first."""
        own = np.flatnonzero(self.answers.record == self.record.value)
        order = own[np.argsort(-self.totals[own], kind="stable")]
        parts = self._values[self.counts_known.value] * np.array([*self.weights.values()]) + 0.0
        texts = [answer.text for answer in self.records[self.record.value].answers]
        self.table.value = ranking_table(
            [texts[i - own[0]] for i in order],
            parts[order],
            self.totals[order],
            self.answers.truth[order],
        )
        self.state |= {
            "record": record_key(self.records[self.record.value]),
            "ranking": [int(i - own[0]) for i in order],
            "totals": self.totals[own].tolist(),
            "truth": self.answers.truth[own].tolist(),
        }
        self._tell()

    def _tell(self) -> None:
        left = (
            f"{self.left_out:,} records without known counts are left out." if self.left_out else ""
        )
        self.state["message"] = " ".join([*self._faults.values(), left]).strip()
        self.message.value = "".join(
            note(text, error=True) for text in self._faults.values()
        ) + note(left)


def ranking_summary(
    correlation: Correlation, agreement: Proportion | None, counts_known: bool
) -> str:
    """HTML: how well the score ranks as the truth does, and what cannot be said."""
    lines = [f"Rank correlation (Spearman) with the truth (count_graded): {correlation}."]
    if correlation.low is None or correlation.value is None:
        lines.append("Whether that is more than chance cannot be said.")
    elif correlation.is_chance:
        lines.append("The interval includes 0: it cannot be told from chance.")
    else:
        lines.append(
            "It ranks with the truth." if correlation.value > 0 else "It ranks against the truth."
        )
    shared = "there are none that are not equally true"
    if agreement:
        shared = f"{agreement}; a tie counts half, .5 is chance"
    lines.append(
        f"Pairs of one record's answers that are ranked as the truth ranks them: {shared}."
    )
    lines.append(
        f"The rules {'are told the very counts that they are judged by' if counts_known else 'know no counts'}."
    )
    return "".join(note(line) for line in lines)


def ranking_table(
    texts: Sequence[str], parts: np.ndarray, totals: np.ndarray, truth: np.ndarray
) -> str:
    """HTML table, best first: place (ties share one), answer, total, truth, the part of each rule.

    texts, totals and truth have one entry an answer; parts: (answers, rules).
    """
    head = [
        "",
        "answer",
        "total",
        "truth",
        *(rule.name.replace("_", "<wbr>_") for rule in HEURISTIC_RULES),
    ]
    rows = ["".join(f"<th scope='col' style='padding:2px 6px'>{name}</th>" for name in head)]
    places = rankdata(-totals, method="min").astype(int)
    for place, text, total, row, true in zip(places, texts, totals, parts, truth, strict=True):
        figures = [f"{total:+.2f}", f"{true:.2f}", *(f"{n:+.2f}" for n in row)]
        cells = [
            ("right", place),
            ("left", escape_text(text)),
            *(("right", figure) for figure in figures),
        ]
        wide = {"left": ";min-width:220px"}
        rows.append(
            "".join(
                f"<td style='padding:2px 6px;text-align:{side}{wide.get(side, '')}'>{cell}</td>"
                for side, cell in cells
            )
        )
    return f"<table style='line-height:20px'>{''.join(f'<tr>{row}</tr>' for row in rows)}</table>"
