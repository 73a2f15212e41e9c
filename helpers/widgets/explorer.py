"""Browse held-out images by what became of them: broken, fixed, both wrong, both right.

That is: wrong or right before and after training. What is shown follows from pure functions
(`tabulate`, `select_rows`); the widget only calls them. All cards of a page are one HTML widget, so
that a notebook exported as HTML still shows the page.
"""

import base64
import difflib
import functools
import html
import io
import math
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import ipywidgets as w
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from helpers.data import Task, conversation_text
from helpers.evaluation import Rightness
from helpers.files import UsageError, open_image
from helpers.models import BASE_POLICY
from helpers.report import ADDED_COLOR, REMOVED_COLOR, color_style, mark_changes
from helpers.statistics import proportion

from .common import (
    ERROR_COLOR,
    Panel,
    button,
    errors_in,
    html_place,
    in_column,
    in_row,
    labelled,
    listen_to_keys,
    note,
    show,
)

# the last two are of tasks whose truth nobody knows
ItemOutcome = Literal["broken", "fixed", "both wrong", "both right", "changed", "same"]
# right → wrong is what to look at first
OUTCOMES: tuple[ItemOutcome, ...] = get_args(ItemOutcome)
Order = Literal["outcome", "change", "number"]
PER_PAGE = 12
THUMBNAIL = (240, 150)  # pixels
END = 10**9  # pages: farther than any goes


@dataclass(frozen=True)
class ItemRow:
    """A task with the answers of the base (`before`) and of one policy (`after`)."""

    number: int  # place in `tasks`
    task: Task
    before: str
    after: str
    outcome: ItemOutcome
    kinds: frozenset[str]  # of the policy's answer: right, wrong, and what is wrong with it
    change: int  # see `count_changes`


def _group(task: Task) -> str:
    """What the menu calls the photo of a task."""
    return task.group or ", ".join(image.name for image in task.images)


def outcome_of(was_right: bool | None, is_right: bool | None, change: int) -> ItemOutcome:
    """What became of one answer; where no truth is known, whether it is another one."""
    if was_right is None or is_right is None:
        return "changed" if change else "same"
    if was_right == is_right:
        return "both right" if is_right else "both wrong"
    return "fixed" if is_right else "broken"


def count_changes(before: str, after: str) -> int:
    """Words that differ, of the answer that has more of them."""
    old, new = before.split(), after.split()
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    kept = sum(block.size for block in matcher.get_matching_blocks())
    return max(len(old), len(new)) - kept


def tabulate(
    tasks: Sequence[Task],
    before: Sequence[str],
    after: Sequence[str],
    rightness: Rightness,
) -> list[ItemRow]:
    """A row for each task."""
    rows = []
    for number, (task, old, new) in enumerate(zip(tasks, before, after, strict=True)):
        change = count_changes(old, new)
        is_right = rightness.is_right(task, new)
        outcome = outcome_of(rightness.is_right(task, old), is_right, change)
        kinds = set(rightness.faults(task, new))
        if is_right is not None:
            kinds.add("right" if is_right else "wrong")
        rows.append(ItemRow(number, task, old, new, outcome, frozenset(kinds), change))
    return rows


def select_rows(
    rows: Sequence[ItemRow],
    group: str = "",
    kind: str = "",
    outcome: str = "",
    order: Order = "outcome",
) -> list[ItemRow]:
    """The rows that fit ("": any), sorted by outcome (broken first), change or number.

    Rows of one outcome come by change too, and equal ones as in the data.
    """
    fitting = []
    for row in rows:
        is_kind = not kind or kind in row.kinds
        if is_kind and group in ("", _group(row.task)) and outcome in ("", row.outcome):
            fitting.append(row)
    # sorting keeps the order of equal rows, so the last sort weighs most
    fitting.sort(key=lambda row: row.number)
    if order != "number":
        fitting.sort(key=lambda row: -row.change)
    if order == "outcome":
        fitting.sort(key=lambda row: OUTCOMES.index(row.outcome))
    return fitting


def thumbnail(path: Path, where: str) -> str:
    """The image as a data URI of at most THUMBNAIL pixels; made once for each state of the file.

    Raises UsageError.
    """
    return _encode_thumbnail(path, where, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=2048)  # some 10 KB each
def _encode_thumbnail(path: Path, where: str, _changed: int) -> str:
    buffer = io.BytesIO()
    small = ImageOps.contain(open_image(path, where), THUMBNAIL, Image.Resampling.LANCZOS)
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class Explorer(Panel):
    """Base and policy on all held-out items, a page of PER_PAGE at a time; `show()` displays it.

    answers: model → its answer to each item, the base among them. `.state` says what is on the
    screen. Raises UsageError for lengths or names that do not fit.
    """

    def __init__(self, tasks: Sequence[Task], answers: Mapping[str, Sequence[str]]):
        self.tasks = list(tasks)
        self.answers = answers
        self._check()
        self.rightness = Rightness(self.tasks)
        self._rows = {}  # policy → its rows
        for name in answers:
            if name != BASE_POLICY:
                given = answers[BASE_POLICY], answers[name]
                self._rows[name] = tabulate(self.tasks, *given, self.rightness)
        self.state = {}
        # what is chosen; the menus list what there is
        groups = dict.fromkeys(map(_group, self.tasks))
        kinds, outcomes = self._found()
        self.policy = _menu("policy", [name for name in answers if name != BASE_POLICY])
        self.group = _menu("group", groups, "all")
        self.kind = _menu("policy's answer", kinds, "any")
        self.outcome = _menu("outcome", outcomes, "all")
        self.order = _menu("sort", [])
        self.order.options = [
            ("broken first", "outcome"),
            ("biggest change first", "change"),
            ("as in the data", "number"),
        ]
        self.order.value = "outcome"
        # what is shown of it
        self.header = html_place("56px")
        self.message = html_place("28px")
        self.grid = w.HTML(layout=w.Layout(width="99%"))
        self.turns = {
            "First page": button("First page", partial(self._turn, -END), "f"),
            "Previous": button("Previous", partial(self._turn, -1), "p"),
            "Next": button("Next", partial(self._turn, 1), "n"),
            "Last page": button("Last page", partial(self._turn, END), "l"),
        }
        self.on_change(self._filter, *self._menus())
        menus = in_row(*self._menus())
        self.box = in_column(
            self.header, menus, in_row(*self.turns.values()), self.message, self.grid
        )
        self.box.add_class("explorer")
        self._filter()

    def show(self) -> None:
        """Display the widget; where no widgets run, the page as it is now; buttons have keys."""
        listen_to_keys(self.box)
        show(self.box, f"{self.header.value}{self.grid.value}")

    def _menus(self) -> list[w.Dropdown]:
        return [self.policy, self.outcome, self.kind, self.group, self.order]

    def _check(self) -> None:
        if BASE_POLICY not in self.answers or len(self.answers) < 2:
            raise UsageError(
                f"answers are of {', '.join(self.answers) or 'nobody'}: "
                f"give {BASE_POLICY!r} and a policy."
            )
        for name, texts in self.answers.items():
            if len(texts) != len(self.tasks) or not self.tasks:
                raise UsageError(
                    f"{len(texts)} answers of {name} for {len(self.tasks)} items. "
                    "Give one for each."
                )

    def _found(self) -> tuple[list[str], list[ItemOutcome]]:
        """The kinds of answers and the outcomes that any policy has, in the order of a menu."""
        # of all policies, so that the menus stay when another one is chosen
        kinds = set()
        outcomes = set()
        for rows in self._rows.values():
            for row in rows:
                kinds |= row.kinds
                outcomes.add(row.outcome)
        # where there is a truth, all of its outcomes, since 0 broken is a result, too
        known = OUTCOMES[:4] if self.rightness.is_known else ()
        named = [name for name in OUTCOMES if name in known or name in outcomes]
        first = [name for name in ("right", "wrong") if name in kinds]
        return first + sorted(kinds - set(first)), named

    def rows(self) -> list[ItemRow]:
        """All tasks with the chosen policy's answers."""
        return self._rows[self.policy.value]

    def _filter(self) -> None:
        """Another choice in a menu: back to the first page."""
        self._page = 0
        self._draw()

    def _turn(self, by: int) -> None:
        self._page += by
        self._draw()

    def _draw(self) -> None:
        with errors_in(self.message):
            picked = {
                "group": self.group.value,
                "kind": self.kind.value,
                "outcome": self.outcome.value,
                "order": self.order.value,
            }
            # the page that is asked for, or the nearest one that there is
            rows = self.rows()
            chosen = select_rows(rows, **picked)
            pages = max(1, math.ceil(len(chosen) / PER_PAGE))
            self._page = min(max(self._page, 0), pages - 1)
            shown = chosen[self._page * PER_PAGE :][:PER_PAGE]
            cards, errors = self._cards(shown)
            # of all items, whatever is filtered
            counts = Counter(row.outcome for row in rows)
            self.state = {
                "policy": self.policy.value,
                **picked,
                "page": self._page,
                "pages": pages,
                "matching": len(chosen),
                "shown": [row.number for row in shown],
                "counts": {name: counts[name] for name in self._found()[1]},
                "errors": errors,
            }
            self.header.value = self._heading(counts)
            self.grid.value = _grid(cards)
            self.message.value = note(self._count_text(len(chosen), pages))

    def _count_text(self, number: int, pages: int) -> str:
        line = f"{number} of {len(self.tasks)} items; page {self._page + 1} of {pages}."
        if not number:
            return f"{line} Nothing fits: choose less narrowly."
        return f"{line} Change: number of words that differ."

    def _heading(self, counts: Mapping[str, int]) -> str:
        line = " · ".join(f"<b>{name}</b> {counts[name]}" for name in self._found()[1])
        return f"<div style='line-height:22px'>{line}<br>{self._shares(counts)}</div>"

    def _shares(self, counts: Mapping[str, int]) -> str:
        """The share of right answers before and after; without a truth, of changed ones."""
        policy = html.escape(self.policy.value)
        n = sum(counts[name] for name in OUTCOMES[:4])
        if not n:
            changed = proportion(counts["changed"], len(self.tasks))
            return f"another answer than {BASE_POLICY}'s: {policy} {changed}; no truth is known"
        # right before: still right, or broken; right after: still right, or fixed
        before = proportion(counts["both right"] + counts["broken"], n)
        after = proportion(counts["both right"] + counts["fixed"], n)
        heading = html.escape(self.rightness.heading)
        return f"{heading}: {BASE_POLICY} {before.short_text()}, {policy} {after}"

    def _cards(self, shown: Sequence[ItemRow]) -> tuple[list[str], list[str]]:
        """The cards, and what is wrong with pictures.

        Tells how far it is if reading them takes a while: by a bar before the widget is there.
        """
        cards = []
        errors = []
        started = time.monotonic()
        is_displayed = bool(self.state)
        bar = tqdm(shown, desc="pictures", leave=False, delay=0.5, disable=is_displayed)
        for done, row in enumerate(bar):
            if time.monotonic() - started > 0.5:
                self.message.value = note(f"reading pictures: {done} of {len(shown)} …")
            picture, wrong = _pictures(row)
            errors += wrong
            truth = self.rightness.truth(row.task)
            cards.append(item_card(row, picture, self.policy.value, truth))
        return cards, errors


def _pictures(row: ItemRow) -> tuple[str, list[str]]:
    """The pictures of a row as HTML, and what is wrong with them.

    One that cannot be read leaves the rest of its card.
    """
    pictures = ""
    errors = []
    # all beside each other
    width = 100 // max(1, len(row.task.images))
    for path in row.task.images:
        try:
            source = thumbnail(path, f"item {row.number}")
            name = html.escape(path.name, quote=True)
            style = f"width:{width}%;height:100%;object-fit:contain"
            pictures += f"<img src='{source}' alt='{name}' style='{style}'>"
        except UsageError as error:
            errors.append(str(error))
            style = f"color:{ERROR_COLOR};background:#fff"
            pictures += f"<div style='{style}'>{html.escape(str(error))}</div>"
    return pictures, errors


def _menu(label: str, names: Iterable[str], everything: str = "") -> w.Dropdown:
    """A menu of names; `everything`: what it calls the choice of none of them."""
    options = [(name, name) for name in names]
    if everything:
        options.insert(0, (everything, ""))
    layout = w.Layout(width="300px", max_width="100%")
    return labelled(w.Dropdown, label, options=options, layout=layout)


def item_card(row: ItemRow, picture_html: str, policy: str, truth: str | None = None) -> str:
    """One item as HTML of a fixed height; what is longer scrolls.

    `picture_html` is HTML, all else is escaped.
    """
    # only a change has a colour, and it is said in words as well
    colors = {"broken": color_style(REMOVED_COLOR), "fixed": color_style(ADDED_COLOR)}
    badge = f"<b style='padding:0 4px;{colors.get(row.outcome, '')}'>{row.outcome}</b>"
    answers = ""
    texts = mark_changes(row.before, row.after)
    for name, text in zip((BASE_POLICY, policy), texts, strict=True):
        answers += f"<div><b>{html.escape(name)}</b> {text or '(no answer)'}</div>"
    question = html.escape(conversation_text(row.task.turns)).replace("\n", "<br>")
    known = f"<div><b>truth</b> {html.escape(truth)}</div>" if truth else ""
    kinds = html.escape("; ".join([*sorted(row.kinds), f"group {_group(row.task)}"]))
    return (
        "<div tabindex='0' role='group' style='height:360px;overflow:auto;border:1px solid #888;"
        "padding:6px;box-sizing:border-box;line-height:20px;overflow-wrap:anywhere' "
        f"aria-label='item {row.number}, {row.outcome}'>"
        f"<div>item {row.number} {badge} change {row.change}</div>"
        f"<div style='height:{THUMBNAIL[1]}px;overflow:auto'>{picture_html}</div>"
        f"<div><small>{question}</small></div>{answers}{known}"
        f"<div><small>{kinds}</small></div></div>"
    )


def _grid(cards: Sequence[str]) -> str:
    """Always PER_PAGE places, so that a page with less is as high as the others."""
    empty = "<div style='height:360px;visibility:hidden'></div>" * (PER_PAGE - len(cards))
    columns = "repeat(auto-fill,minmax(min(100%,230px),1fr))"
    style = f"display:grid;grid-template-columns:{columns};grid-gap:8px"
    return f"<div style='{style}'>{''.join(cards)}{empty}</div>"
