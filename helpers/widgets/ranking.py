"""Rank answers by clicks or keys, without knowing whose they are."""

import html
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import ipywidgets as w

from helpers.data import (
    ANSWER_LABELS,
    PreferenceRecord,
    Tiers,
    Votes,
    VoteVerdict,
    VotingItem,
)
from helpers.files import UsageError

from .common import (
    Panel,
    button,
    centred,
    escape_text,
    in_column,
    in_row,
    listen_to_keys,
    note,
    open_strip,
    picture_place,
    show,
    show_picture,
)
from .typed import complete_tiers, prompt_text

KEYS_NOTE = "letters in brackets are keys while the frame is blue: click into it once"


def _room(texts: Iterable[str], columns: int) -> w.Layout:
    """Height for the longest of `texts`, so that nothing jumps from item to item.

    What is longer than ten lines scrolls.
    """
    most = 1
    for text in texts:
        most = max(most, sum(len(line) // columns + 1 for line in text.splitlines()))
    return w.Layout(height=f"{min(20 * most + 12, 212)}px", overflow="auto", flex="0 0 auto")


class AnswerRanker(Panel):
    """Rank the answers of one record after another without knowing whose they are.

    `show()` displays it. A vote is on the disk before the next item appears, and all state is in
    the file of `votes`: after a kill, or when the cell is run again, it goes on where it was. Of
    two answers the better one is clicked; more are clicked best first, and saved. A click within
    `pause` seconds of an item's appearing is the second half of a double click and does not count.
    `clock` gives seconds, from any start.
    """

    def __init__(
        self,
        votes: Votes,
        criteria: Sequence[str] = ("helpful", "followed", "concise"),
        pause: float = 0.3,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.votes = votes
        self.criteria = criteria
        self.pause = pause
        self.clock = clock
        self.state = {}
        # what is judged
        records = list(votes.records.values())
        self.picture = picture_place("jpeg", "300px")
        self.prompt = w.HTML(layout=_room(map(prompt_text, records), 30))
        self.prompt.layout.flex = "1 1 220px"
        # how far it is, and what is to be said
        self.progress = w.HTML()
        self.message = w.HTML(layout=w.Layout(min_height="28px"))
        # what is clicked
        self.joined = w.ToggleButton(
            description="Level with the last (=)",
            layout=w.Layout(width="auto"),
        )
        self.joined.add_class("key-equal")
        self.on_change(self._draw_ranks, self.joined)
        self.buttons = {
            "save": button("Save", self._save, "v"),
            "over": button("Start over", self._place, "r"),
            "tie": button("All equal", partial(self._vote, "tie"), "t"),
            "all bad": button("All bad", partial(self._vote, "all bad"), "x"),
            "skip": button("Skip", partial(self._vote, "skip"), "s"),
            "undo": button("Undo", self._undo, "u"),
        }
        self._make_cards(records)
        self.box = self._lay_out()
        self._show(votes.next())

    def _make_cards(self, records: Sequence[PreferenceRecord]) -> None:
        """A card for each answer of the record with the most: text, criteria and button."""
        self.choices = []
        self.texts = []
        self.marks = []
        self._cards = []
        # a line more than the text has, for the label
        answers = [f"{a.text}\n." for record in records for a in record.answers]
        room = _room(answers, 44)
        edge = w.Layout(padding="6px", margin="4px", border="1px solid #999", flex="1 1 300px")
        wide = w.Layout(width="auto")
        most = max(len(record.answers) for record in records)
        # k is a place on the screen, not in the record
        for k, label in enumerate(ANSWER_LABELS[:most]):
            self.choices.append(button(label, partial(self._choose, k), label.lower()))
            self.texts.append(w.HTML(layout=room))
            self.marks.append([w.ToggleButton(description=c, layout=wide) for c in self.criteria])
            card = [self.texts[k], in_row(*self.marks[k]), self.choices[k]]
            self._cards.append(w.VBox(card, layout=edge))

    def show(self) -> None:
        """Display the widget; where scripts run, its buttons have keys, too."""
        print("If no buttons appear below: widgets.rank_in_text(votes)")
        listen_to_keys(self.box)
        show(self.box)

    def _lay_out(self) -> w.Widget:
        self._shelf = in_row()
        self._many = w.HBox([self.joined, self.buttons["save"], self.buttons["over"]])
        parts = [
            self.progress,
            in_row(centred(self.picture, "310px", "1 1 480px"), self.prompt),
            self._shelf,
        ]
        # two answers need one click, and no order to be saved
        if len(self._cards) > 2:
            parts.append(self._many)
        verdicts = [self.buttons[name] for name in ("tie", "all bad", "skip", "undo")]
        return in_column(*parts, in_row(*verdicts), self.message)

    def _show(self, item: VotingItem | None, message: str = "") -> None:
        """Put `item` (None: all are done) on the screen; the clock starts when it is there."""
        self.item = item
        texts = item.texts if item else []
        self._shelf.children = self._cards[: len(texts)]
        for label, text, widget, marks in zip(
            ANSWER_LABELS, texts, self.texts, self.marks, strict=False
        ):
            widget.value = f"<b>{label}</b>{escape_text(text)}"
            for mark in marks:
                mark.value = False
        # the question, and how far it is
        asked = prompt_text(item.record) if item else "All are judged. Thank you."
        self.prompt.value = escape_text(asked)
        who = html.escape(self.votes.annotator)
        self.progress.value = (
            f"<b>{self.votes.progress()}</b> &nbsp; {who} &nbsp; <small>{KEYS_NOTE}</small>"
        )
        self._many.layout.visibility = "visible" if len(texts) > 2 else "hidden"
        self._say(message or self.votes.notice)
        self._show_picture()
        self._place()
        # last, so that loading the picture does not count as thinking
        self._shown = self.clock()

    def _show_picture(self) -> None:
        """Without its picture an item can only be skipped."""
        content = b""
        try:
            if self.item:
                content = open_strip(self.item.record.image_paths, "this item")
        except UsageError as error:
            self._say(f"{error} Or skip it.", error=True)
        show_picture(self.picture, content)
        for control in [self.joined, *self.buttons.values(), *self.choices]:
            control.disabled = not content
        self.buttons["skip"].disabled = self.item is None
        self.buttons["undo"].disabled = not self.votes.judged

    def _say(self, text: str, error: bool = False) -> None:
        self.state = {
            "record": self.item and self.item.key,
            "message": text,
            "progress": self.votes.progress(),
        }
        self.message.value = note(text, error)

    @property
    def _number(self) -> int:
        """Answers on the screen."""
        return len(self.item.order) if self.item else 0

    def _complete(self, joined: bool = False) -> Tiers | None:
        return complete_tiers(self._tiers, self._number, joined)

    def _place(self, *tiers: Sequence[int]) -> None:
        """Answers ranked so far, none to start with; the only one left comes last by itself."""
        self._tiers = list(tiers)
        self.joined.value = False
        self._draw_ranks()

    def _draw_ranks(self) -> None:
        # the places as they would be saved now, or those so far
        done = self._complete(self.joined.value)
        ranks = {}
        for rank, tier in enumerate(done or self._tiers, start=1):
            ranks |= dict.fromkeys(tier, rank)
        unranked = "is better" if self._number == 2 else "comes next"
        for k, (label, choice) in enumerate(zip(ANSWER_LABELS, self.choices, strict=False)):
            does = f"has rank {ranks[k]}" if k in ranks else unranked
            choice.description = f"{label} {does} ({label.lower()})"
            choice.button_style = "primary" if k in ranks else ""
        self.buttons["save"].disabled = not (done and self.picture.value)

    def _choose(self, k: int) -> None:
        """A click on the k-th answer shown."""
        if self._number == 2:
            self._vote("ranked", [[k], [1 - k]])
            return
        is_placed = any(k in tier for tier in self._tiers)
        if is_placed or self._complete() or self._is_too_soon():
            return
        # a place of its own, or level with the last one
        tiers = [*self._tiers, [k]]
        if self.joined.value and self._tiers:
            tiers = [*self._tiers[:-1], [*self._tiers[-1], k]]
        self._place(*tiers)

    def _is_too_soon(self) -> bool:
        if soon := self.clock() - self._shown < self.pause:
            self._say("That click came as the item appeared, so it did not count.")
        return soon

    def _save(self) -> None:
        ranking = self._complete(self.joined.value)
        if self.item and ranking:
            self._vote("ranked", ranking)

    def _vote(self, verdict: VoteVerdict, tiers: Tiers = ()) -> None:
        """Write the vote to the disk, then show the next item; after an error this one stays."""
        if self.item is None or self._is_too_soon():
            return
        # of each criterion 0 or 1 for each answer, in the order of showing
        marks = {}
        for place, name in enumerate(self.criteria):
            marks[name] = [int(ticks[place].value) for ticks in self.marks[: self._number]]
        seconds = round(self.clock() - self._shown, 2)
        try:
            counted = self.votes.vote(self.item, verdict, tiers, marks, seconds)
            elsewhere = "The last one had been judged elsewhere; that vote stays."
            self._show(self.votes.next(), "" if counted else elsewhere)
        except (OSError, UsageError) as error:
            # the same item, to be voted on anew
            self.item = self.votes.renew(self.item)
            self._say(f"Not counted: {error}", error=True)

    def _undo(self) -> None:
        try:
            if not self._is_too_soon() and (item := self.votes.undo()):
                self._show(item, "Judge this one again.")
        except (OSError, UsageError) as error:
            self._say(f"Not undone: {error}", error=True)
