"""The blind arena: which of two answers is better, names and standings hidden until asked for."""

import html
import time
from collections.abc import Callable

import ipywidgets as w

from helpers.data import Votes, VotingItem
from helpers.evaluation import arena

from .common import button, errors_in, escape_text, html_place, in_row, note, padded_table
from .ranking import AnswerRanker

HIDDEN_NOTE = (
    "Models and standings are hidden. Reveal shows them for good: "
    "votes after that are counted as not blind, so vote first."
)


class Arena(AnswerRanker):
    """Vote on the records of `arena.matches`; `show()` gives the widget.

    Votes, keys and going on after a kill are those of `AnswerRanker`. That the names were seen is
    on the disk as well, so running the cell again does not make a voter blind again. "Export"
    writes the judged records beside the vote file (`export_path`). Raises UsageError for other
    records.
    """

    def __init__(
        self,
        votes: Votes,
        pause: float = 0.3,
        clock: Callable[[], float] = time.monotonic,
    ):
        # refuses records that are no match of two models
        arena.models_of(votes.records.values())
        self.export_path = votes.path.with_suffix(".judged.jsonl")
        self.revealed = votes.annotator in arena.read_reveals(votes.path)
        self.standings: arena.Standings | None = None
        self.reveal_button = button("Reveal", self._reveal)
        self.export_button = button("Export", self._export)
        self.exported = html_place("64px")
        self.table = html_place("240px")
        # draws the first match, for which all of the above is needed
        super().__init__(votes, criteria=(), pause=pause, clock=clock)
        # names by which a page, and a test in a browser, finds them
        self.box.add_class("arena")
        self.progress.add_class("arena-progress")
        self.table.add_class("arena-standings")
        self.buttons["tie"].description = "Tie (t)"
        self.buttons["all bad"].description = "Both bad (x)"

    def _lay_out(self) -> w.Widget:
        box = super()._lay_out()
        buttons = in_row(self.reveal_button, self.export_button)
        box.children = [*box.children, buttons, self.exported, self.table]
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
        with errors_in(self.exported):
            arena.reveal(self.votes)
            self.revealed = True
            self._draw_standings()

    def _draw_standings(self) -> None:
        """Show the standings, if they may be seen.

        Before that nothing about the models is made, let alone sent to the browser.
        """
        self.reveal_button.disabled = self.revealed
        self.table.value = note(HIDDEN_NOTE)
        if self.revealed:
            # None in case that they cannot be worked out
            self.standings = None
            with errors_in(self.table):
                records = list(self.votes.records.values())
                self.standings = arena.standings(records, self.votes.path)
                self.table.value = standings_table(self.standings)
        self._tell()

    def _export(self) -> None:
        with errors_in(self.exported):
            everything = list(self.votes.records.values())
            judged = arena.export_records(everything, self.votes.path, self.export_path)
            pairs = sum(len(record.pairs()) for record in judged)
            self.exported.value = note(
                f"{self.export_path.resolve()}: {len(judged)} judged records, "
                f"{pairs} with a better answer to train on; "
                f"{len(everything) - len(judged)} left out, not judged or skipped. "
                "The file names the models."
            )


def standings_table(standings: arena.Standings) -> str:
    """Wins and win rates, what they allow to say, and what one must know with it, as HTML."""
    # before the first vote there are no rates
    rates = standings.win_rates or ("no vote yet", "no vote yet")
    rows = [["model", "won", "win rate (draws ½), 95 %"]]
    for name, wins, rate in zip(standings.names, standings.wins, rates, strict=True):
        rows.append([html.escape(name), str(wins), str(rate)])
    said = [standings.sentence(), *standings.remarks()]
    return padded_table(rows) + escape_text("\n".join(said))
