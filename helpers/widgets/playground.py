"""Weigh the rules of the heuristic and watch what becomes of its ranking, beside the truth.

What it shows is worked out in `helpers/rewards/rule_ranking.py`.
"""

import html
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import ipywidgets as w
import numpy as np
from scipy.stats import rankdata

from helpers.data import PreferenceRecord, record_key
from helpers.files import UsageError, read_json, write_json
from helpers.rewards import (
    HEURISTIC_RULES,
    Correlation,
    correlate,
    draw_records,
    flatten,
    pair_agreement,
    rule_values,
    select_judged,
    weighted_sum,
    worth_name,
)
from helpers.statistics import Proportion

from .common import (
    Panel,
    button,
    centred,
    escape_text,
    html_place,
    in_column,
    in_row,
    labelled,
    note,
    open_strip,
    padded_table,
    picture_place,
    show,
    show_errors,
    show_picture,
)
from .typed import prompt_text

DEFAULT_WEIGHTS = {rule.name: rule.weight for rule in HEURISTIC_RULES}
WEIGHT_LIMIT = 2.0  # of a weight, either way
BLIND_NOTE = (
    "This score never sees the image: its rules read words, and the counts if they are told them."
)


def read_weights(path: Path) -> dict[str, float]:
    """Weights that a playground kept.

    Raises UsageError unless every rule has one between −2 and 2.
    """
    weights = read_json(path)
    # the file may have been written by hand
    is_right = isinstance(weights, dict) and weights.keys() == DEFAULT_WEIGHTS.keys()
    for name in DEFAULT_WEIGHTS if is_right else ():
        number = weights[name]
        is_right &= isinstance(number, int | float) and abs(number) <= WEIGHT_LIMIT
    if not is_right:
        raise UsageError(
            f"{path}: must hold a weight from {-WEIGHT_LIMIT:g} to {WEIGHT_LIMIT:g} "
            f"for each of {', '.join(DEFAULT_WEIGHTS)}. "
            "The defaults are shown; moving a slider writes the file anew."
        )
    return {name: float(weights[name]) for name in DEFAULT_WEIGHTS}


class ScorerPlayground(Panel):
    """Sliders for the weights of the heuristic's rules; records ranked by it, and the truth.

    One record is shown with its ranking, and all of them are compared with the truth. Records
    without a known truth are left out, which is said; if none has one, people's rankings take its
    place. counts_known: do the rules know the counts? (A
    box changes it.) weights_path: a JSON file of weights, written with each change and read when
    the cell is run again. Raises UsageError if no record has a truth or a ranking.
    """

    def __init__(
        self,
        records: Sequence[PreferenceRecord],
        counts_known: bool = True,
        weights_path: Path | None = None,
    ):
        self.records = select_judged(records)
        self.weights_path = weights_path
        self.left_out = len(records) - len(self.records)
        self.state = {}
        # what does not change with the weights is worked out once
        self.answers = flatten(self.records)
        self.standard = worth_name(self.records)
        self.drawn = draw_records(len(self.records))
        self._values = {}  # are the counts known? → value of each rule for each answer
        self._faults = {}  # what is wrong with weights and picture, by these words
        # what is chosen
        self.sliders = {rule.name: _weight_slider(rule.name) for rule in HEURISTIC_RULES}
        self.counts_known = w.Checkbox(
            counts_known,
            description="the rules know the true counts",
            indent=False,
        )
        self.record = labelled(w.IntSlider, "record", max=len(self.records) - 1)
        self.reset = button("Reset", self._reset)
        # what is shown of it
        self.message = html_place("48px")
        self.summary = html_place("112px")
        self.prompt = html_place("64px")
        self.table = html_place(self._room())
        self.picture = picture_place("jpeg", "250px")
        self.box = self._lay_out()
        self.box.add_class("playground")
        # kept weights first, so that they are not taken for a move
        self._restore()
        self.on_change(self._pick, self.record)
        self.on_change(self._weigh, *self.sliders.values(), self.counts_known)
        self._measure()
        self._pick()

    def show(self) -> None:
        """Display the widget; where no widgets run, its tables as they are now."""
        show(self.box, f"{self.prompt.value}{self.table.value}{self.summary.value}")

    def _lay_out(self) -> w.Widget:
        rows = []
        for rule in HEURISTIC_RULES:
            says = w.HTML(f"<small>{html.escape(rule.description)}</small>")
            says.layout.flex = "1 1 300px"
            rows.append(in_row(self.sliders[rule.name], says))
        ranked = w.VBox([self.prompt, self.table], layout=w.Layout(flex="1 1 640px"))
        return in_column(
            w.HTML(note(BLIND_NOTE)),
            *rows,
            in_row(self.reset, self.counts_known),
            self.summary,
            self.record,
            in_row(centred(self.picture, "260px", "0 1 260px"), ranked),
            self.message,
        )

    def _room(self) -> str:
        """Height for the record with the most text, so that nothing jumps."""
        most = 0
        for record in self.records:
            lines = sum(len(answer.text) // 30 + 1 for answer in record.answers)
            most = max(most, lines)
        return f"{min(90 + 24 * most, 420)}px"

    @property
    def weights(self) -> dict[str, float]:
        return {name: slider.value for name, slider in self.sliders.items()}

    def _shown(self) -> PreferenceRecord:
        return self.records[self.record.value]

    def _told(self, kind: str) -> AbstractContextManager:
        """Keep errors, which `_tell` shows, until the next time."""
        self._faults.pop(kind, None)
        return show_errors(partial(self._faults.__setitem__, kind))

    def _restore(self) -> None:
        if self.weights_path and self.weights_path.exists():
            with self._told("weights"):
                self._set(read_weights(self.weights_path))

    def _set(self, weights: Mapping[str, float]) -> None:
        for name, slider in self.sliders.items():
            slider.value = weights[name]

    def _reset(self) -> None:
        # one measurement, not one a slider
        with self.silence():
            self._set(DEFAULT_WEIGHTS)
        self._weigh()

    def _weigh(self) -> None:
        """A weight or what the rules know was changed."""
        with self._told("weights"):
            if self.weights_path:
                write_json(self.weights_path, self.weights)
        self._measure()

    def _measure(self) -> None:
        told = self.counts_known.value
        # rules take long, a sum with weights does not
        if told not in self._values:
            self._values[told] = rule_values(self.records, told)
        self.totals = weighted_sum(self._values[told], self.weights)
        correlation = correlate(self.totals, self.answers, self.drawn)
        agreement = pair_agreement(self.totals, self.answers.pairs)
        self.state |= {
            "weights": self.weights,
            "counts_known": told,
            "correlation": correlation,
            "agreement": agreement,
        }
        self.summary.value = ranking_summary(correlation, agreement, told, self.standard)
        self._rank()

    def _pick(self) -> None:
        """Another record: its picture and question.

        A picture that cannot be shown is said, the rest goes on.
        """
        record = self._shown()
        self.prompt.value = escape_text(prompt_text(record))
        content = b""
        with self._told("picture"):
            content = open_strip(record.image_paths, f"record {record_key(record)}")
        show_picture(self.picture, content)
        self._rank()

    def _rank(self) -> None:
        """The answers of the record that is shown, the best first."""
        record = self._shown()
        # rows of this record's answers, in their order
        own = np.flatnonzero(self.answers.record == self.record.value)
        totals = self.totals[own]
        truth = self.answers.truth[own]
        values = self._values[self.counts_known.value][own]
        # + 0.0 turns −0.0 into 0.0
        parts = values * np.array([*self.weights.values()]) + 0.0
        order = np.argsort(-totals, kind="stable").tolist()
        texts = [record.answers[place].text for place in order]
        self.table.value = ranking_table(texts, parts[order], totals[order], truth[order])
        self.state |= {
            "record": record_key(record),
            "ranking": order,
            "totals": totals.tolist(),
            "truth": truth.tolist(),
        }
        self._tell()

    def _tell(self) -> None:
        left = ""
        if self.left_out:
            left = f"{self.left_out:,} records without a known truth are left out."
        faults = list(self._faults.values())
        self.state["message"] = " ".join([*faults, left]).strip()
        self.message.value = "".join(note(text, error=True) for text in faults) + note(left)


def _weight_slider(name: str) -> w.FloatSlider:
    return labelled(
        w.FloatSlider,
        name,
        value=DEFAULT_WEIGHTS[name],
        min=-WEIGHT_LIMIT,
        max=WEIGHT_LIMIT,
        step=0.1,
        readout_format="+.1f",
        layout=w.Layout(flex="0 1 380px"),
    )


def ranking_summary(
    correlation: Correlation,
    agreement: Proportion | None,
    counts_known: bool,
    standard: str = "the truth",
) -> str:
    """HTML: how well the score ranks as `standard` does, and what cannot be said."""
    # no interval, one around 0, or one on either side of it
    if correlation.low is None:
        verdict = "Whether that is more than chance cannot be said."
    elif correlation.is_chance:
        verdict = "The interval includes 0: it cannot be told from chance."
    elif correlation.value > 0:
        verdict = f"It ranks with {standard}."
    else:
        verdict = f"It ranks against {standard}."
    shared = "there are none that are not equally good"
    if agreement:
        shared = f"{agreement}; a tie counts half, .5 is chance"
    knows = "know no counts"
    if counts_known:
        knows = "are told the counts, where there are any: the very ones that they are judged by"
    lines = [
        f"Rank correlation (Spearman) with {standard}: {correlation}.",
        verdict,
        f"Pairs of one record's answers that are ranked in the same order: {shared}.",
        f"The rules {knows}.",
    ]
    return "".join(map(note, lines))


def ranking_table(
    texts: Sequence[str],
    parts: np.ndarray,
    totals: np.ndarray,
    truth: np.ndarray,
) -> str:
    """HTML table, best first: place (ties share one), answer, total, worth, part of each rule.

    texts, totals and truth have one entry an answer; parts: (answers, rules).
    """
    # names of rules are long: they may break
    names = [rule.name.replace("_", "<wbr>_") for rule in HEURISTIC_RULES]
    rows = [["", "answer", "total", "worth", *names]]
    places = rankdata(-totals, method="min").astype(int)
    for place, text, total, true, row in zip(places, texts, totals, truth, parts, strict=True):
        answer = f"<div style='min-width:220px'>{escape_text(text)}</div>"
        figures = [f"{number:+.2f}" for number in row]
        rows.append([str(place), answer, f"{total:+.2f}", f"{true:.2f}", *figures])
    return padded_table(rows)
