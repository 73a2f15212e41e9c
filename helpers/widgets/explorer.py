"""Browse held-out images by what became of them: broken, fixed, wrong before and after, right before and after.

What is shown follows from pure functions (`tabulate`, `select`); the widget only calls them. All cards of a
page are one HTML widget, so that a notebook exported as HTML still shows the page.
"""

import base64
import functools
import html
import io
import math
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import ipywidgets as w
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from helpers.data import CountedImage, is_exact, is_well_formed, parse_counts
from helpers.files import UsageError, open_image
from helpers.report import ADDED_COLOR, REMOVED_COLOR, color_style, format_counts, mark_changes
from helpers.statistics import proportion

from .common import ERROR_COLOR, button, listen_to_keys, note, show, show_errors

ItemOutcome = Literal["broken", "fixed", "both wrong", "both right"]
OUTCOMES: tuple[ItemOutcome, ...] = (
    "broken",
    "fixed",
    "both wrong",
    "both right",
)  # right → wrong is what to look at first
Order = Literal["outcome", "change", "number"]
PER_PAGE = 12
THUMBNAIL = (240, 150)  # pixels


@dataclass(frozen=True)
class ItemRow:
    """An item with the answers of the base (`before`) and of one policy (`after`)."""

    number: int  # place in `items`
    item: CountedImage
    before: str
    after: str
    outcome: ItemOutcome
    kinds: frozenset[str]  # of the policy's answer, see `error_kinds`
    change: float


def outcome_of(before: str, after: str, truth: Mapping[str, int]) -> ItemOutcome:
    """Compare two answers to one question; an answer is right if the count of every class is true."""
    names = {
        (True, False): "broken",
        (False, True): "fixed",
        (False, False): "both wrong",
        (True, True): "both right",
    }
    return names[is_exact(before, truth), is_exact(after, truth)]


def error_kinds(text: str, truth: Mapping[str, int]) -> frozenset[str]:
    """All that is true of an answer: one of "right", "wrong count", "not parsed"; too many or few of what; its form.

    error_kinds("There are 3 cars, 0 buses in the image", {"cars": 2, "buses": 1})
    → {"wrong count", "too many cars", "too few buses", "not well formed"} (the full stop is missing)
    """
    counts = parse_counts(text, list(truth))
    kinds = set() if is_well_formed(text, list(truth)) else {"not well formed"}
    if counts is None:
        return frozenset(kinds | {"not parsed"})
    kinds |= {f"too many {name}" for name in truth if counts[name] > truth[name]}
    kinds |= {f"too few {name}" for name in truth if counts[name] < truth[name]}
    return frozenset(kinds | {"right" if counts == dict(truth) else "wrong count"})


def all_kinds(classes: Sequence[str]) -> list[str]:
    """Every kind that `error_kinds` knows, in the order of a menu."""
    wrong = [f"too {much} {name}" for name in classes for much in ("many", "few")]
    return ["right", "wrong count", *wrong, "not parsed", "not well formed"]


def count_changes(before: str, after: str, classes: Sequence[str]) -> int:
    """Classes with another count than before: all of them if only one of the answers can be read, none if neither."""
    old, new = parse_counts(before, classes), parse_counts(after, classes)
    if old is None or new is None:
        return 0 if old is new else len(classes)
    return sum(old[name] != new[name] for name in classes)


def tabulate(
    items: Sequence[CountedImage],
    before: Sequence[str],
    after: Sequence[str],
    change: Sequence[float] | None = None,
) -> list[ItemRow]:
    """A row for each item. `change`: how far the policy went from the base; by default `count_changes`."""
    rows = []
    for number, (item, old, new) in enumerate(zip(items, before, after, strict=True)):
        size = (
            count_changes(old, new, list(item.counts)) if change is None else float(change[number])
        )
        kinds = error_kinds(new, item.counts)
        rows.append(ItemRow(number, item, old, new, outcome_of(old, new, item.counts), kinds, size))
    return rows


def select_rows(
    rows: Sequence[ItemRow],
    group: str = "",
    kind: str = "",
    outcome: str = "",
    order: Order = "outcome",
) -> list[ItemRow]:
    """The rows that fit ("": any), sorted: broken first, or the biggest |change| first, or as in the data.

    Rows of one outcome come by |change| too, and equal ones as in the data.
    """
    keys = {
        "outcome": lambda row: (OUTCOMES.index(row.outcome), -abs(row.change), row.number),
        "change": lambda row: (-abs(row.change), row.number),
        "number": lambda row: row.number,
    }
    fitting = [
        row
        for row in rows
        if group in ("", row.item.group)
        and (not kind or kind in row.kinds)
        and outcome in ("", row.outcome)
    ]
    return sorted(fitting, key=keys[order])


def thumbnail(path: Path, where: str) -> str:
    """The image as a data URI of at most THUMBNAIL pixels; made once for each state of the file. Raises UsageError."""
    return _encode_thumbnail(path, where, path.stat().st_mtime_ns if path.exists() else 0)


@functools.lru_cache(maxsize=2048)  # some 10 KB each
def _encode_thumbnail(path: Path, where: str, _changed: int) -> str:
    buffer = io.BytesIO()
    ImageOps.contain(open_image(path, where), THUMBNAIL, Image.Resampling.LANCZOS).save(
        buffer, "JPEG", quality=85
    )
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


class Explorer:
    """Base and policy on all held-out items, a page of PER_PAGE at a time; `show()` displays it.

    answers: model → its answer to each item, `base` among them. change: policy → how much its answer to
    each item changed, for example the difference of log-probabilities (default: counts that changed).
    `.state` says what is on the screen. Raises UsageError for lengths or names that do not fit.
    """

    def __init__(
        self,
        items: Sequence[CountedImage],
        answers: Mapping[str, Sequence[str]],
        base: str = "base",
        change: Mapping[str, Sequence[float]] | None = None,
    ):
        self.items, self.answers, self.base, self.change = list(items), answers, base, change or {}
        self._check()
        self._rows: dict[str, list[ItemRow]] = {}
        self.state: dict[str, object] = {}
        classes = list(dict.fromkeys(name for item in self.items for name in item.counts))
        groups = list(dict.fromkeys(item.group for item in self.items))
        self.policy = _menu("policy", [(name, name) for name in answers if name != base])
        self.group = _menu("group", [("all", ""), *((name, name) for name in groups)])
        self.kind = _menu(
            "policy's answer", [("any", ""), *((name, name) for name in all_kinds(classes))]
        )
        self.outcome = _menu("outcome", [("all", ""), *((name, name) for name in OUTCOMES)])
        orders = [
            ("broken first", "outcome"),
            ("biggest change first", "change"),
            ("as in the data", "number"),
        ]
        self.order = _menu("sort", orders)
        self.header = w.HTML(layout=w.Layout(height="56px", overflow="auto"))
        self.message = w.HTML(layout=w.Layout(height="28px", overflow="auto"))
        self.grid = w.HTML(layout=w.Layout(width="99%"))
        turns = (
            ("First page", -(10**9), "f"),
            ("Previous", -1, "p"),
            ("Next", 1, "n"),
            ("Last page", 10**9, "l"),
        )
        self.turns = {text: button(text, partial(self._turn, by), key) for text, by, key in turns}
        for menu in self._menus():
            menu.observe(lambda _: self._filter(), "value")
        wrap = w.Layout(flex_flow="row wrap", width="99%")
        rows = [w.HBox(self._menus(), layout=wrap), w.HBox(list(self.turns.values()), layout=wrap)]
        self.box = w.VBox(
            [self.header, *rows, self.message, self.grid], layout=w.Layout(padding="6px")
        )
        self.box.add_class("explorer")
        self._filter()

    def show(self) -> None:
        """Display the widget; where no widgets run, the page as it is now. Its buttons have keys."""
        listen_to_keys(self.box)
        show(self.box, f"{self.header.value}{self.grid.value}")

    def _menus(self) -> list[w.Dropdown]:
        return [self.policy, self.outcome, self.kind, self.group, self.order]

    def _check(self) -> None:
        if self.base not in self.answers or len(self.answers) < 2:
            raise UsageError(
                f"answers are of {', '.join(self.answers) or 'nobody'}: give {self.base!r} and a policy."
            )
        if unknown := [name for name in self.change if name not in self.answers]:
            raise UsageError(
                f"change has {', '.join(unknown)}, but answers are of {', '.join(self.answers)}."
            )
        for what, columns in (("answers", self.answers), ("changes", self.change)):
            for name, values in columns.items():
                if len(values) != len(self.items) or not self.items:
                    raise UsageError(
                        f"{len(values)} {what} of {name} for {len(self.items)} items. Give one for each."
                    )
        for name, values in self.change.items():
            for number, value in enumerate(values):
                if not math.isfinite(value):
                    raise UsageError(
                        f"change of {name} for item {number} is {value}. Give a finite number."
                    )

    def rows(self) -> list[ItemRow]:
        """All items with the chosen policy's answers."""
        name = self.policy.value
        if name not in self._rows:
            change = self.change.get(name)
            self._rows[name] = tabulate(
                self.items, self.answers[self.base], self.answers[name], change
            )
        return self._rows[name]

    def _filter(self) -> None:
        """Another choice in a menu: back to the first page."""
        self._page = 0
        self._draw()

    def _turn(self, by: int) -> None:
        self._page += by
        self._draw()

    def _draw(self) -> None:
        with show_errors(lambda text: setattr(self.message, "value", note(text, error=True))):
            menus = {
                "group": self.group,
                "kind": self.kind,
                "outcome": self.outcome,
                "order": self.order,
            }
            picked = {name: menu.value for name, menu in menus.items()}
            rows = self.rows()
            chosen = select_rows(rows, **picked)
            pages = max(1, math.ceil(len(chosen) / PER_PAGE))
            self._page = min(max(self._page, 0), pages - 1)
            shown = chosen[self._page * PER_PAGE :][:PER_PAGE]
            cards, errors = self._cards(shown)
            counts = Counter(row.outcome for row in rows)
            self.state = {
                "policy": self.policy.value, **picked, "page": self._page, "pages": pages, "matching": len(chosen),
                "shown": [row.number for row in shown], "counts": {name: counts[name] for name in OUTCOMES},
                "errors": errors,
            }  # fmt: skip
            self.header.value, self.grid.value = self._heading(), _grid(cards)
            self.message.value = note(self._count_text())

    def _count_text(self) -> str:
        number, page, pages = (self.state[name] for name in ("matching", "page", "pages"))
        line = f"{number} of {len(self.items)} items; page {page + 1} of {pages}."
        if not number:
            return f"{line} Nothing fits: choose less narrowly."
        return f"{line} Change: {'as given' if self.policy.value in self.change else 'number of counts that differ'}."

    def _heading(self) -> str:
        counts, n = self.state["counts"], len(self.items)
        right = [proportion(counts["both right"] + counts[name], n) for name in ("broken", "fixed")]
        line = " · ".join(f"<b>{name}</b> {counts[name]}" for name in OUTCOMES)
        names = [html.escape(name) for name in (self.base, self.policy.value)]
        shares = f"all counts right: {names[0]} {right[0].short_text()}, {names[1]} {right[1]}"
        return f"<div style='line-height:22px'>{line}<br>{shares}</div>"

    def _cards(self, shown: Sequence[ItemRow]) -> tuple[list[str], list[str]]:
        """The cards, and what is wrong with pictures; tells how far it is if reading them takes a while."""
        cards, errors, started = [], [], time.monotonic()
        names = (self.base, self.policy.value)
        waiting = tqdm(
            shown, desc="pictures", leave=False, delay=0.5, disable=bool(self.state)
        )  # not yet displayed
        for done, row in enumerate(waiting):
            if time.monotonic() - started > 0.5:
                self.message.value = note(f"reading pictures: {done} of {len(shown)} …")
            try:
                source = thumbnail(row.item.path, f"item {row.number}")
                name = html.escape(row.item.path.name, quote=True)
                picture = f"<img src='{source}' alt='{name}' style='width:100%;height:100%;object-fit:contain'>"
            except UsageError as error:
                errors.append(str(error))
                picture = f"<div style='color:{ERROR_COLOR};background:#fff'>{html.escape(str(error))}</div>"
            cards.append(item_card(row, picture, names))
        return cards, errors


def _menu(label: str, options: list[tuple[str, str]]) -> w.Dropdown:
    layout = w.Layout(width="300px", max_width="100%")
    return w.Dropdown(
        options=options, description=label, style={"description_width": "110px"}, layout=layout
    )


def item_card(row: ItemRow, picture_html: str, names: tuple[str, str]) -> str:
    """One item as HTML of a fixed height; what is longer scrolls. `picture_html` is HTML, all else is escaped."""
    color = {"broken": color_style(REMOVED_COLOR), "fixed": color_style(ADDED_COLOR)}
    badge = f"<b style='padding:0 4px;{color.get(row.outcome, '')}'>{row.outcome}</b>"
    texts = mark_changes(row.before, row.after)
    answers = "".join(
        f"<div><b>{html.escape(name)}</b> {text or '(no answer)'}</div>"
        for name, text in zip(names, texts, strict=True)
    )
    truth = html.escape(format_counts(row.item.counts))
    kinds = html.escape(", ".join(sorted(row.kinds)))
    return (
        "<div tabindex='0' role='group' style='height:360px;overflow:auto;border:1px solid #888;padding:6px;"
        f"box-sizing:border-box;line-height:20px;overflow-wrap:anywhere' aria-label='item {row.number}, {row.outcome}'>"
        f"<div>item {row.number} {badge} change {row.change:.3g}</div>"
        f"<div style='height:{THUMBNAIL[1]}px;overflow:auto'>{picture_html}</div>{answers}"
        f"<div><b>truth</b> {truth}</div><div><small>{kinds}; group {html.escape(row.item.group)}</small></div></div>"
    )


def _grid(cards: Sequence[str]) -> str:
    """Always PER_PAGE places, so that a page with less is as high as the others."""
    empty = "<div style='height:360px;visibility:hidden'></div>" * (PER_PAGE - len(cards))
    columns = "repeat(auto-fill,minmax(min(100%,230px),1fr))"
    return f"<div style='display:grid;grid-template-columns:{columns};grid-gap:8px'>{''.join(cards)}{empty}</div>"
