"""Browse held-out images by what became of them: broken, fixed, both wrong, both right.

That is: wrong or right before and after training. What is shown follows from pure functions
(`tabulate`, `select_rows`); the widget only calls them. All cards of a page are one HTML widget, so
that a notebook exported as HTML still shows the page.
"""

import base64
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

from helpers.data import CountedImage, is_exact, is_well_formed, parse_counts
from helpers.files import UsageError, open_image
from helpers.models import BASE_POLICY
from helpers.report import ADDED_COLOR, REMOVED_COLOR, color_style, format_counts, mark_changes
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

ItemOutcome = Literal["broken", "fixed", "both wrong", "both right"]
# right → wrong is what to look at first
OUTCOMES: tuple[ItemOutcome, ...] = get_args(ItemOutcome)
Order = Literal["outcome", "change", "number"]
PER_PAGE = 12
THUMBNAIL = (240, 150)  # pixels
END = 10**9  # pages: farther than any goes


@dataclass(frozen=True)
class ItemRow:
    """An item with the answers of the base (`before`) and of one policy (`after`)."""

    number: int  # place in `items`
    item: CountedImage
    before: str
    after: str
    outcome: ItemOutcome
    kinds: frozenset[str]  # of the policy's answer, see `error_kinds`
    change: int  # see `count_changes`


def outcome_of(before: str, after: str, truth: Mapping[str, int]) -> ItemOutcome:
    """Compare two answers to one question; right is one that has all counts right."""
    was_right = is_exact(before, truth)
    is_right = is_exact(after, truth)
    if was_right == is_right:
        return "both right" if is_right else "both wrong"
    return "fixed" if is_right else "broken"


def error_kinds(text: str, truth: Mapping[str, int]) -> frozenset[str]:
    """All that is true of an answer: right, wrong or not parsed; too many or few of what; its form.

    error_kinds("There are 3 cars, 0 buses in the image", {"cars": 2, "buses": 1})
    → {"wrong count", "too many cars", "too few buses", "not well formed"} (no full stop)
    """
    # the form of the answer
    counts = parse_counts(text, list(truth))
    kinds = set()
    if not is_well_formed(text, list(truth)):
        kinds.add("not well formed")
    if counts is None:
        kinds.add("not parsed")
        return frozenset(kinds)
    # what it gets wrong
    for name, true in truth.items():
        if counts[name] != true:
            kinds.add(f"too {'many' if counts[name] > true else 'few'} {name}")
    kinds.add("right" if counts == dict(truth) else "wrong count")
    return frozenset(kinds)


def all_kinds(classes: Sequence[str]) -> list[str]:
    """Every kind that `error_kinds` knows, in the order of a menu."""
    wrong = [f"too {much} {name}" for name in classes for much in ("many", "few")]
    return ["right", "wrong count", *wrong, "not parsed", "not well formed"]


def count_changes(before: str, after: str, classes: Sequence[str]) -> int:
    """Classes with another count than before.

    All of them if only one of the answers can be read, none if neither.
    """
    old = parse_counts(before, classes)
    new = parse_counts(after, classes)
    if old is None or new is None:
        return 0 if old is new else len(classes)
    return sum(old[name] != new[name] for name in classes)


def tabulate(
    items: Sequence[CountedImage],
    before: Sequence[str],
    after: Sequence[str],
) -> list[ItemRow]:
    """A row for each item."""
    rows = []
    for number, (item, old, new) in enumerate(zip(items, before, after, strict=True)):
        truth = item.counts
        outcome = outcome_of(old, new, truth)
        change = count_changes(old, new, list(truth))
        rows.append(ItemRow(number, item, old, new, outcome, error_kinds(new, truth), change))
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
        if is_kind and group in ("", row.item.group) and outcome in ("", row.outcome):
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

    def __init__(self, items: Sequence[CountedImage], answers: Mapping[str, Sequence[str]]):
        self.items = list(items)
        self.answers = answers
        self._check()
        self._rows = {}  # policy → its rows
        self.state = {}
        # what is chosen; the menus list what the items have
        classes = dict.fromkeys(name for item in self.items for name in item.counts)
        groups = dict.fromkeys(item.group for item in self.items)
        self.policy = _menu("policy", [name for name in answers if name != BASE_POLICY])
        self.group = _menu("group", groups, "all")
        self.kind = _menu("policy's answer", all_kinds(list(classes)), "any")
        self.outcome = _menu("outcome", OUTCOMES, "all")
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
            if len(texts) != len(self.items) or not self.items:
                raise UsageError(
                    f"{len(texts)} answers of {name} for {len(self.items)} items. "
                    "Give one for each."
                )

    def rows(self) -> list[ItemRow]:
        """All items with the chosen policy's answers."""
        name = self.policy.value
        if name not in self._rows:
            before = self.answers[BASE_POLICY]
            self._rows[name] = tabulate(self.items, before, self.answers[name])
        return self._rows[name]

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
                "counts": {name: counts[name] for name in OUTCOMES},
                "errors": errors,
            }
            self.header.value = self._heading(counts)
            self.grid.value = _grid(cards)
            self.message.value = note(self._count_text(len(chosen), pages))

    def _count_text(self, number: int, pages: int) -> str:
        line = f"{number} of {len(self.items)} items; page {self._page + 1} of {pages}."
        if not number:
            return f"{line} Nothing fits: choose less narrowly."
        return f"{line} Change: number of counts that differ."

    def _heading(self, counts: Mapping[str, int]) -> str:
        # right before: still right, or broken; right after: still right, or fixed
        n = len(self.items)
        before = proportion(counts["both right"] + counts["broken"], n)
        after = proportion(counts["both right"] + counts["fixed"], n)
        line = " · ".join(f"<b>{name}</b> {counts[name]}" for name in OUTCOMES)
        return (
            f"<div style='line-height:22px'>{line}<br>all counts right: "
            f"{BASE_POLICY} {before.short_text()}, "
            f"{html.escape(self.policy.value)} {after}</div>"
        )

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
            # a picture that cannot be read leaves the rest of its card
            try:
                source = thumbnail(row.item.path, f"item {row.number}")
                name = html.escape(row.item.path.name, quote=True)
                style = "width:100%;height:100%;object-fit:contain"
                picture = f"<img src='{source}' alt='{name}' style='{style}'>"
            except UsageError as error:
                errors.append(str(error))
                style = f"color:{ERROR_COLOR};background:#fff"
                picture = f"<div style='{style}'>{html.escape(str(error))}</div>"
            cards.append(item_card(row, picture, self.policy.value))
        return cards, errors


def _menu(label: str, names: Iterable[str], everything: str = "") -> w.Dropdown:
    """A menu of names; `everything`: what it calls the choice of none of them."""
    options = [(name, name) for name in names]
    if everything:
        options.insert(0, (everything, ""))
    layout = w.Layout(width="300px", max_width="100%")
    return labelled(w.Dropdown, label, options=options, layout=layout)


def item_card(row: ItemRow, picture_html: str, policy: str) -> str:
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
    truth = html.escape(format_counts(row.item.counts))
    kinds = html.escape(", ".join(sorted(row.kinds)))
    return (
        "<div tabindex='0' role='group' style='height:360px;overflow:auto;border:1px solid #888;"
        "padding:6px;box-sizing:border-box;line-height:20px;overflow-wrap:anywhere' "
        f"aria-label='item {row.number}, {row.outcome}'>"
        f"<div>item {row.number} {badge} change {row.change}</div>"
        f"<div style='height:{THUMBNAIL[1]}px;overflow:auto'>{picture_html}</div>{answers}"
        f"<div><b>truth</b> {truth}</div>"
        f"<div><small>{kinds}; group {html.escape(row.item.group)}</small></div></div>"
    )


def _grid(cards: Sequence[str]) -> str:
    """Always PER_PAGE places, so that a page with less is as high as the others."""
    empty = "<div style='height:360px;visibility:hidden'></div>" * (PER_PAGE - len(cards))
    columns = "repeat(auto-fill,minmax(min(100%,230px),1fr))"
    style = f"display:grid;grid-template-columns:{columns};grid-gap:8px"
    return f"<div style='{style}'>{''.join(cards)}{empty}</div>"
