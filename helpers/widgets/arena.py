"""The blind arena: which of two answers is better, names and standings hidden until they are asked for."""

import html
import time
from collections.abc import Callable
from pathlib import Path

import ipywidgets as w

from helpers.data import Votes, VotingItem
from helpers.evaluation import arena

from .common import button, escape_text, note, show_errors
from .ranking import AnswerRanker

HIDDEN_NOTE = (
    "Models and standings are hidden. Reveal shows them for good: votes after that are counted as not blind, "
    "so vote first."
)


class Arena(AnswerRanker):
    """Vote on the records of `arena.matches`; `show()` gives the widget.

    Votes, keys and going on after a kill are those of `AnswerRanker`. That the names were seen is on the disk
    as well, so running the cell again does not make a voter blind again. `export_path`: where "Export"
    writes the judged records (default: beside the vote file). Raises UsageError for other records.
    """

    def __init__(
        self,
        votes: Votes,
        export_path: Path | None = None,
        pause: float = 0.3,
        clock: Callable[[], float] = time.monotonic,
    ):
        arena.models_of(votes.records.values())
        self.export_path = export_path or votes.path.with_suffix(".judged.jsonl")
        self.revealed = votes.annotator in arena.read_reveals(votes.path)
        self.standings: arena.Standings | None = None
        self.reveal_button, self.export_button = (
            button("Reveal", self._reveal),
            button("Export", self._export),
        )
        self.exported = w.HTML(layout=w.Layout(height="64px", overflow="auto"))
        self.table = w.HTML(layout=w.Layout(height="240px", overflow="auto"))
        super().__init__(votes, criteria=(), pause=pause, clock=clock)
        for name, part in (
            ("arena", self.box),
            ("arena-progress", self.progress),
            ("arena-standings", self.table),
        ):
            part.add_class(name)
        self.buttons["tie"].description, self.buttons["all bad"].description = (
            "Tie (t)",
            "Both bad (x)",
        )

    def _lay_out(self) -> w.Widget:
        box = super()._lay_out()
        row = w.HBox(
            [self.reveal_button, self.export_button],
            layout=w.Layout(flex_flow="row wrap", width="99%"),
        )
        box.children = [*box.children, row, self.exported, self.table]
        return box

    def _show(self, item: VotingItem | None, message: str = "") -> None:
        super()._show(item, message)
        self._draw_standings()

    def _say(self, text: str, error: bool = False) -> None:
        super()._say(text, error)
        self._tell()

    def _tell(self) -> None:
        self.state |= {
            "revealed": self.revealed,
            "standings": self.standings and str(self.standings),
        }

    def _reveal(self) -> None:
        with show_errors(self._report_failure):
            arena.reveal(self.votes)
            self.revealed = True
            self._draw_standings()

    def _draw_standings(self) -> None:
        """Nothing about the models is made, let alone sent to the browser, before they may be seen."""
        self.reveal_button.disabled = self.revealed
        self.table.value = note(HIDDEN_NOTE)
        if self.revealed:
            self.standings = None
            with show_errors(lambda text: setattr(self.table, "value", note(text, error=True))):
                self.standings = arena.standings(list(self.votes.records.values()), self.votes.path)
                self.table.value = standings_table(self.standings)
        self._tell()

    def _export(self) -> None:
        with show_errors(self._report_failure):
            everything = list(self.votes.records.values())
            judged = arena.export_records(everything, self.votes.path, self.export_path)
            pairs = sum(len(record.pairs()) for record in judged)
            self.exported.value = note(
                f"{self.export_path.resolve()}: {len(judged)} judged records, {pairs} with a better answer to train on; "
                f"{len(everything) - len(judged)} left out, not judged or skipped. The file names the models."
            )

    def _report_failure(self, text: str) -> None:
        self.exported.value = note(text, error=True)


def standings_table(standings: arena.Standings) -> str:
    """Wins and win rates, what they allow to say, and what one must know with it, as HTML."""
    rates = standings.win_rates or ("no vote yet", "no vote yet")
    cell = "style='text-align:left;padding:2px 12px 2px 0'"
    rows = "".join(
        f"<tr><th scope='row' {cell}>{html.escape(name)}</th><td {cell}>{wins}</td><td {cell}>{rate}</td></tr>"
        for name, wins, rate in zip(standings.names, standings.wins, rates, strict=True)
    )
    head = "".join(
        f"<th scope='col' {cell}>{text}</th>"
        for text in ("model", "won", "win rate (draws ½), 95 %")
    )
    return f"<table><tr>{head}</tr>{rows}</table>" + escape_text(
        "\n".join([standings.sentence(), *standings.remarks()])
    )
