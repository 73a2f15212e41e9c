"""Rank answers by clicks or keys, without knowing whose they are."""

import html
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import ipywidgets as w

from helpers.data import ANSWER_LABELS, Tiers, Votes, VoteVerdict, VotingItem
from helpers.files import UsageError, open_image

from .common import button, escape_text, jpeg_strip, listen_to_keys, note, show
from .typed import complete_tiers, prompt_text


def _room(texts: Iterable[str], columns: int) -> w.Layout:
    """Height for the longest of `texts`, so that nothing jumps from item to item; what is longer still scrolls."""
    lines = max(sum(len(line) // columns + 1 for line in text.splitlines()) for text in texts)
    return w.Layout(height=f"{min(20 * lines + 12, 212)}px", overflow="auto", flex="0 0 auto")


class AnswerRanker:
    """Rank the answers of one record after another without knowing whose they are; `show()` displays it.

    A vote is on the disk before the next item appears, and all state is in the file of `votes`: after a
    kill, or when the cell is run again, it goes on where it was. Of two answers the better one is
    clicked; more are clicked best first, and saved. A click within `pause` seconds of an item's
    appearing is the second half of a double click and does not count. `clock` gives seconds, from any start.
    """

    def __init__(
        self,
        votes: Votes,
        criteria: Sequence[str] = ("helpful", "followed", "concise"),
        pause: float = 0.3,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.votes, self.criteria, self.pause, self.clock = votes, criteria, pause, clock
        self.state: dict[str, str | None] = {}
        records = list(votes.records.values())
        size = w.Layout(width="auto", height="auto", max_width="100%", max_height="300px")
        self.picture = w.Image(format="jpeg", layout=size)
        self.prompt = w.HTML(layout=_room(map(prompt_text, records), 30))
        self.prompt.layout.flex = "1 1 220px"
        self.progress, self.message = w.HTML(), w.HTML(layout=w.Layout(min_height="28px"))
        self.joined = w.ToggleButton(
            description="Level with the last (=)", layout=w.Layout(width="auto")
        )
        self.joined.add_class("key-equal")
        self.joined.observe(lambda _: self._draw_ranks(), "value")
        self.buttons = {
            "save": button("Save", self._save, "v"),
            "over": button("Start over", self._place, "r"),
            "tie": button("All equal", partial(self._vote, "tie"), "t"),
            "all bad": button("All bad", partial(self._vote, "all bad"), "x"),
            "skip": button("Skip", partial(self._vote, "skip"), "s"),
            "undo": button("Undo", self._undo, "u"),
        }
        most = ANSWER_LABELS[: max(len(record.answers) for record in records)]
        self.choices = [
            button(label, partial(self._choose, k), label.lower()) for k, label in enumerate(most)
        ]
        self.texts = [
            w.HTML(layout=_room((a.text + "\n." for r in records for a in r.answers), 44))
            for _ in most
        ]
        wide = w.Layout(width="auto")
        self.marks = [
            [w.ToggleButton(description=name, layout=wide) for name in criteria] for _ in most
        ]
        self.box = self._lay_out()
        self._show(votes.next())

    def show(self) -> None:
        """Display the widget; where scripts run, its buttons have keys, too."""
        print("If no buttons appear below: widgets.rank_in_text(votes)")
        listen_to_keys(self.box)
        show(self.box)

    def _lay_out(self) -> w.Widget:
        wrap, card = (
            w.Layout(flex_flow="row wrap", width="99%"),
            {"border": "1px solid #999", "flex": "1 1 300px"},
        )
        self._cards = [
            w.VBox(
                [text, w.HBox(marks, layout=wrap), choice],
                layout=w.Layout(padding="6px", margin="4px", **card),
            )
            for text, marks, choice in zip(self.texts, self.marks, self.choices, strict=True)
        ]
        frame = w.HBox(
            [self.picture],
            layout=w.Layout(height="310px", flex="1 1 480px", justify_content="center"),
        )
        self._shelf = w.HBox(layout=wrap)
        self._many = w.HBox([self.joined, self.buttons["save"], self.buttons["over"]])
        rest = w.HBox(
            [self.buttons[name] for name in ("tie", "all bad", "skip", "undo")], layout=wrap
        )
        rows = [self._shelf, *([self._many] if len(self._cards) > 2 else []), rest, self.message]
        top = w.HBox([frame, self.prompt], layout=wrap)
        return w.VBox([self.progress, top, *rows], layout=w.Layout(padding="6px"))

    def _show(self, item: VotingItem | None, message: str = "") -> None:
        """Put `item` (None: all are done) on the screen; the clock starts when it is there."""
        self.item, texts = item, item.texts if item else []
        self._shelf.children = self._cards[: len(texts)]
        for label, text, widget, marks in zip(
            ANSWER_LABELS, texts, self.texts, self.marks, strict=False
        ):
            widget.value = f"<b>{label}</b>{escape_text(text)}"
            for mark in marks:
                mark.value = False
        self.prompt.value = escape_text(
            prompt_text(item.record) if item else "All are judged. Thank you."
        )
        keys = "<small>letters in brackets are keys while the frame is blue: click into it once</small>"
        self.progress.value = f"<b>{self.votes.progress()}</b> &nbsp; {html.escape(self.votes.annotator)} &nbsp; {keys}"
        self._many.layout.visibility = "visible" if len(texts) > 2 else "hidden"
        self._say(message or self.votes.notice)
        self._show_picture()
        self._place()
        self._shown = self.clock()

    def _show_picture(self) -> None:
        """Without its picture an item can only be skipped."""
        content = b""
        try:
            if self.item:
                paths = self.item.record.image_paths
                content = jpeg_strip([open_image(path, "this item") for path in paths])
        except UsageError as error:
            self._say(f"{error} Or skip it.", error=True)
        self.picture.value, self.picture.layout.visibility = (
            content,
            "visible" if content else "hidden",
        )
        for control in [self.joined, *self.buttons.values(), *self.choices]:
            control.disabled = not content
        self.buttons["skip"].disabled, self.buttons["undo"].disabled = (
            self.item is None,
            not self.votes.judged,
        )

    def _say(self, text: str, error: bool = False) -> None:
        self.state = {
            "record": self.item and self.item.key,
            "message": text,
            "progress": self.votes.progress(),
        }
        self.message.value = note(text, error)

    def _place(self, *tiers: Sequence[int]) -> None:
        """Answers ranked so far, none to start with; the only one left comes last by itself."""
        self._tiers, self.joined.value = list(tiers), False
        self._draw_ranks()

    def _draw_ranks(self) -> None:
        n = len(self.item.order) if self.item else 0
        done = complete_tiers(self._tiers, n, self.joined.value)
        ranks = {k: rank for rank, tier in enumerate(done or self._tiers, start=1) for k in tier}
        for k, (label, choice) in enumerate(zip(ANSWER_LABELS, self.choices, strict=False)):
            does = f"has rank {ranks[k]}" if k in ranks else "is better" if n == 2 else "comes next"
            choice.description, choice.button_style = (
                f"{label} {does} ({label.lower()})",
                "primary" * (k in ranks),
            )
        self.buttons["save"].disabled = not (done and self.picture.value)

    def _choose(self, k: int) -> None:
        n = len(self.item.order) if self.item else 0
        if n == 2:
            self._vote("ranked", [[k], [1 - k]])
            return
        if complete_tiers(self._tiers, n) or any(k in tier for tier in self._tiers):
            return
        if not self._is_too_soon():
            last = (
                [[*self._tiers[-1], k]]
                if self.joined.value and self._tiers
                else [*self._tiers[-1:], [k]]
            )
            self._place(*self._tiers[:-1], *last)

    def _is_too_soon(self) -> bool:
        if soon := self.clock() - self._shown < self.pause:
            self._say("That click came as the item appeared, so it did not count.")
        return soon

    def _save(self) -> None:
        if self.item and (
            ranking := complete_tiers(self._tiers, len(self.item.order), self.joined.value)
        ):
            self._vote("ranked", ranking)

    def _vote(self, verdict: VoteVerdict, tiers: Tiers = ()) -> None:
        """The vote goes to the disk, then the next item comes; after an error this one stays."""
        if self.item is None or self._is_too_soon():
            return
        shown = self.marks[: len(self.item.order)]
        marks = {name: [int(row[i].value) for row in shown] for i, name in enumerate(self.criteria)}
        try:
            counted = self.votes.vote(
                self.item, verdict, tiers, marks, round(self.clock() - self._shown, 2)
            )
            self._show(
                self.votes.next(),
                "" if counted else "The last one had been judged elsewhere; that vote stays.",
            )
        except (OSError, UsageError) as error:
            self.item = self.votes.renew(self.item)
            self._say(f"Not counted: {error}", error=True)

    def _undo(self) -> None:
        try:
            if not self._is_too_soon() and (item := self.votes.undo()):
                self._show(item, "Judge this one again.")
        except (OSError, UsageError) as error:
            self._say(f"Not undone: {error}", error=True)
