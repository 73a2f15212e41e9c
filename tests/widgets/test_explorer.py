"""The explorer: what the filters keep, worked by hand, and what is on the screen."""

import html
import itertools
import re

import pytest
from made_up_tasks import tasks_about
from PIL import Image

from helpers.data import Task, ask, counting_tasks
from helpers.data.counting import count_answer
from helpers.evaluation import Rightness
from helpers.files import UsageError
from helpers.rewards import count_faults
from helpers.statistics import proportion
from helpers.widgets import Explorer, explorer as module
from helpers.widgets.explorer import (
    PER_PAGE,
    count_changes,
    outcome_of,
    select_rows,
    tabulate,
)

TRUTH = {"cars": 2, "buses": 1}


def says(cars, buses):
    return count_answer({"cars": cars, "buses": buses})


RIGHT, MORE, LESS, BOTH = says(2, 1), says(3, 1), says(2, 0), says(3, 0)

# Pure functions


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        (RIGHT, set()),
        (RIGHT.removesuffix("."), {"not well formed"}),
        (MORE, {"too many cars"}),
        (BOTH, {"too many cars", "too few buses"}),
        (
            "There are 3 cars, 0 buses in the image",
            {"too many cars", "too few buses", "not well formed"},
        ),
        ("I see 2 cars.", {"not parsed", "not well formed"}),
        ("", {"not parsed", "not well formed"}),
    ],
)
def test_faults_of_counts(text, kinds):
    assert count_faults(TRUTH, text) == kinds


@pytest.mark.parametrize(
    ("was", "now", "change", "expected"),
    [
        (True, False, 1, "broken"),
        (False, True, 1, "fixed"),
        (False, False, 2, "both wrong"),
        (True, True, 0, "both right"),
        (None, None, 1, "changed"),
        (None, None, 0, "same"),
    ],
)
def test_outcomes(was, now, change, expected):
    assert outcome_of(was, now, change) == expected


@pytest.mark.parametrize(
    ("before", "after", "number"),
    [
        (RIGHT, RIGHT, 0),
        (RIGHT, MORE, 1),
        (RIGHT, BOTH, 2),
        (MORE, LESS, 2),
        (RIGHT, "?", 9),  # There are 2 cars, 1 buses in the image.
        ("?", RIGHT, 9),
        ("a red bus", "a bus", 1),
        ("", "", 0),
    ],
)
def test_changed_words(before, after, number):
    assert count_changes(before, after) == number


def items(folder, number, picture=True):
    if picture:
        for i in range(number):
            Image.new("RGB", (64, 48), (i % 256, 120, 90)).save(folder / f"{i}.png")
    tasks = []
    for i in range(number):
        tasks.append(ask("How many?", [folder / f"{i}.png"], TRUTH, "counts", f"photo {i // 2}"))
    return tasks


BEFORE = [RIGHT, MORE, MORE, RIGHT, "?", RIGHT]
AFTER = [RIGHT, RIGHT, LESS, MORE, RIGHT, "?"]
# outcome: both right, fixed, both wrong, broken, fixed, broken; words changed: 0 1 2 1 9 9


def numbers(rows):
    return [row.number for row in rows]


def rows_of(folder):
    tasks = items(folder, 6, picture=False)
    return tabulate(tasks, BEFORE, AFTER, Rightness(tasks))


def test_filters_and_orders_by_hand(tmp_path):
    rows = rows_of(tmp_path)
    assert [row.change for row in rows] == [0, 1, 2, 1, 9, 9]
    assert numbers(select_rows(rows)) == [5, 3, 4, 1, 2, 0], (
        "broken, fixed, both wrong, both right; most changed first"
    )
    assert numbers(select_rows(rows, order="change")) == [4, 5, 2, 1, 3, 0]
    assert numbers(select_rows(rows, order="number")) == [0, 1, 2, 3, 4, 5]
    assert numbers(select_rows(rows, outcome="fixed")) == [4, 1]
    assert numbers(select_rows(rows, group="photo 1")) == [3, 2]
    assert numbers(select_rows(rows, kind="too many cars")) == [3]
    assert numbers(select_rows(rows, kind="not parsed")) == [5]
    assert numbers(select_rows(rows, kind="right", order="number")) == [0, 1, 4]
    assert numbers(
        select_rows(rows, group="photo 1", kind="too few buses", outcome="both wrong")
    ) == [2]
    assert select_rows(rows, group="photo 0", outcome="broken") == []


def test_the_biggest_change_comes_first_if_that_is_wanted(tmp_path):
    shown = Explorer(items(tmp_path, 6), {"base": BEFORE, "policy": AFTER})
    shown.order.value = "change"
    assert shown.state["shown"] == [4, 5, 2, 1, 3, 0]
    assert "change 9" in shown.grid.value and "words that differ" in shown.message.value


def test_selecting_loses_and_doubles_nothing(tmp_path):
    rows = rows_of(tmp_path)
    for order in ("outcome", "change", "number"):
        parts = [numbers(select_rows(rows, outcome=name, order=order)) for name in module.OUTCOMES]
        assert sorted(itertools.chain(*parts)) == list(range(6))


# The widget


@pytest.fixture
def explorer(tmp_path):
    return Explorer(
        items(tmp_path, 6),
        {"base": BEFORE, "policy": AFTER, "other": BEFORE, "perfect": [RIGHT] * 6},
    )


def test_broken_comes_first_and_the_header_counts(explorer):
    assert explorer.state["shown"] == [5, 3, 4, 1, 2, 0]
    assert explorer.state["counts"] == {"broken": 2, "fixed": 2, "both wrong": 1, "both right": 1}
    assert (
        "<b>broken</b> 2 · <b>fixed</b> 2 · <b>both wrong</b> 1 · <b>both right</b> 1"
        in explorer.header.value
    )
    # before: both right and broken, 3 of 6; after: both right and fixed, 3 of 6
    assert (
        explorer.header.value.count(proportion(3, 6).short_text()) == 2
        and "n = 6" in explorer.header.value
    )
    explorer.policy.value = "perfect"
    assert (
        f"base {proportion(3, 6).short_text()}, perfect {proportion(6, 6)}" in explorer.header.value
    )
    explorer.policy.value = "policy"
    first = explorer.grid.value.split("role='group'")[1]
    assert (
        "item 5" in first
        and "broken" in first
        and "2 cars, 1 buses" in first
        and "not parsed" in first
    )
    assert "background:#ffd7d5" in first and "data:image/jpeg;base64," in first


def test_the_words_that_changed_are_marked(explorer):
    explorer.outcome.value = "both wrong"
    marked = re.findall(r"<mark[^>]*>([^<]*)</mark>", explorer.grid.value)
    assert explorer.state["shown"] == [2] and marked == ["3", "1", "2", "0"]  # MORE → LESS


def test_menus_filter(explorer):
    explorer.kind.value = "right"
    assert explorer.state["shown"] == [4, 1, 0]
    explorer.group.value = "photo 0"
    assert explorer.state["shown"] == [1, 0] and "2 of 6 items" in explorer.message.value
    explorer.outcome.value = "broken"
    assert explorer.state["shown"] == [] and "Nothing fits" in explorer.message.value
    explorer.kind.value = explorer.group.value = explorer.outcome.value = ""
    explorer.order.value = "number"
    explorer.policy.value = "other"
    assert explorer.state["shown"] == [0, 1, 2, 3, 4, 5] and explorer.state["counts"]["broken"] == 0
    assert explorer.state["policy"] == "other" and "other" in explorer.header.value


def test_pages(tmp_path):
    n = 2 * PER_PAGE + 1
    shown = Explorer(items(tmp_path, n), {"base": [RIGHT] * n, "policy": [RIGHT] * n})
    seen, sizes = [], set()
    for page in range(3):
        assert (shown.state["page"], shown.state["pages"]) == (
            page,
            3,
        ) and f"page {page + 1} of 3" in shown.message.value
        seen.append(shown.state["shown"])
        sizes.add(
            (
                shown.grid.value.count("height:360px"),
                shown.header.layout.height,
                shown.message.layout.height,
            )
        )
        shown.turns["Next"].click()
    assert list(itertools.chain(*seen)) == list(range(n)) and [len(page) for page in seen] == [
        12,
        12,
        1,
    ]
    assert sizes == {(12, "56px", "28px")}, "a page with less is as high"
    assert shown.state["page"] == 2, "there is nothing after the last page"
    shown.turns["First page"].click()
    shown.turns["Previous"].click()
    assert shown.state["page"] == 0
    shown.turns["Last page"].click()
    shown.outcome.value = "both right"
    assert shown.state["page"] == 0, "another choice starts at the first page"


def test_a_picture_that_is_missing_is_told_in_its_place(tmp_path):
    photos = items(tmp_path, 3)
    (tmp_path / "1.png").unlink()
    (tmp_path / "2.png").write_text("no picture")
    shown = Explorer(photos, {"base": [RIGHT] * 3, "policy": [RIGHT] * 3})
    assert [error.split(":")[0] for error in shown.state["errors"]] == ["item 1", "item 2"]
    cards = shown.grid.value.split("role='group'")[1:]
    assert (
        "<img" in cards[0]
        and "1.png does not exist" in cards[1]
        and "2.png cannot be read" in cards[2]
    )
    assert "<img" not in cards[1] + cards[2] and all("2 cars, 1 buses" in card for card in cards)
    Image.new("RGB", (64, 48)).save(tmp_path / "1.png")
    shown.turns["First page"].click()
    assert [error.split(":")[0] for error in shown.state["errors"]] == ["item 2"]


def test_pictures_are_read_once_and_again_when_they_change(tmp_path, monkeypatch):
    photos, opened = items(tmp_path, 5), []
    original = module.open_image
    monkeypatch.setattr(
        module, "open_image", lambda path, where: opened.append(path) or original(path, where)
    )
    for _ in range(2):
        first = Explorer(photos, {"base": BEFORE[:5], "policy": AFTER[:5]})
    assert sorted(opened) == sorted(task.images[0] for task in photos)
    Image.new("RGB", (64, 48), "white").save(photos[3].images[0])
    again = Explorer(photos, {"base": BEFORE[:5], "policy": AFTER[:5]})
    assert opened[5:] == [photos[3].images[0]] and again.grid.value != first.grid.value


@pytest.mark.heavy(reason="waits")
def test_slow_pictures_show_progress(tmp_path, monkeypatch, capsys):
    original = module.open_image
    monkeypatch.setattr(
        module, "open_image", lambda path, where: module.time.sleep(0.4) or original(path, where)
    )
    Explorer(items(tmp_path, 3), {"base": [RIGHT] * 3, "policy": [RIGHT] * 3})
    assert "pictures:" in capsys.readouterr().err, "before the widget is there to say it"
    clock, said = iter(range(1000)), []
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    shown = Explorer(items(tmp_path, 3), {"base": [RIGHT] * 3, "policy": [RIGHT] * 3})
    shown.message.observe(lambda change: said.append(change["new"]), "value")
    shown.turns["Next"].click()
    assert [re.search(r"\d of 3", text)[0] for text in said[:3]] == ["0 of 3", "1 of 3", "2 of 3"]
    assert "3 of 3 items; page 1 of 1" in said[-1]


def test_markup_is_shown_not_run(tmp_path):
    evil = "<img src=x onerror=alert(1)>"
    photo = tmp_path / f"{'a'}'b.png"
    Image.new("RGB", (8, 8)).save(photo)
    item = ask(f"{evil}?", [photo], {f"{evil}cars": 1}, "counts", evil)
    shown = Explorer([item], {"base": [f"{evil} one"], f"p{evil}": [f"{evil} two"]})
    for value in (shown.grid.value, shown.header.value):
        assert "<img src=x" not in value and html.escape(evil) in value
    assert f"alt='{html.escape(photo.name)}'" in shown.grid.value, (
        "a quote does not end the attribute"
    )


@pytest.mark.parametrize(
    ("answers", "told"),
    [
        ({"policy": BEFORE}, "give 'base' and a policy"),
        ({"base": BEFORE}, "give 'base' and a policy"),
        ({"base": BEFORE, "policy": AFTER[:5]}, "5 answers of policy for 6 items"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, answers, told):
    with pytest.raises(UsageError, match=told):
        Explorer(items(tmp_path, 6, picture=False), answers)
    with pytest.raises(UsageError, match="for 0 items"):
        Explorer([], {"base": [], "policy": []})


def test_controls_have_labels_and_keys(explorer, capsys):
    explorer.show()
    assert "button.key-" in capsys.readouterr().out and any(
        name.startswith("keys-") for name in explorer.box._dom_classes
    )
    assert [menu.description for menu in explorer._menus()] == [
        "policy",
        "outcome",
        "policy's answer",
        "group",
        "sort",
    ]
    keys = {"First page": "f", "Previous": "p", "Next": "n", "Last page": "l"}
    for text, made in explorer.turns.items():
        assert (
            made.description == f"{text} ({keys[text]})"
            and f"key-{keys[text]}" in made._dom_classes
        )
    assert explorer.grid.value.count("tabindex='0'") == 6, "what scrolls can be reached"


def test_it_works_on_the_shipped_scenes(valid_items):
    answers = [count_answer(item.counts) for item in valid_items]
    tasks = counting_tasks(valid_items)
    worse = [answers[0], *(answers[1:][::-1])]
    shown = Explorer(tasks, {"base": answers, "policy": worse})
    assert (
        shown.state["counts"]["fixed"] == 0 < shown.state["counts"]["broken"]
        and not shown.state["errors"]
    )
    assert len(shown.grid.value) < 400_000


def test_without_a_truth_changed_answers_come_first(tmp_path):
    tasks = tasks_about(tmp_path, ["a", "b", "c", "d"])
    before = ["a red house", "a boat", "a tree", "a dog"]
    after = ["a red house", "a large boat", "two old trees", "a dog"]
    shown = Explorer(tasks, {"base": before, "policy": after})
    assert shown.state["shown"] == [2, 1, 0, 3]
    assert shown.state["counts"] == {"changed": 2, "same": 2}
    assert [value for _, value in shown.outcome.options] == ["", "changed", "same"]
    assert [value for _, value in shown.kind.options] == [""]
    page = shown.header.value + shown.grid.value
    assert "truth</b>" not in page and "no truth is known" in page and "right" not in page
    assert "0.500" in shown.header.value and "What is in it? (2)" in shown.grid.value


def test_a_text_as_truth_sorts_as_counts_do(tmp_path):
    tasks = tasks_about(tmp_path, ["a", "b", "c"], ["red", "dark red"], "exact_match")
    answers = {"base": ["red", "blue", "Red."], "policy": ["blue", "dark red", "red"]}
    shown = Explorer(tasks, answers)
    assert shown.state["shown"] == [0, 1, 2]
    assert shown.state["counts"] == {"broken": 1, "fixed": 1, "both wrong": 0, "both right": 1}
    assert [value for _, value in shown.kind.options] == ["", "right", "wrong"]
    assert "<b>truth</b> red" in shown.grid.value


def test_all_images_of_a_task_are_shown_with_its_conversation(tmp_path):
    first, second = tasks_about(tmp_path, ["a", "b"])
    turns = (*first.turns, *ask("And then?", []).turns)
    both = Task(first.images + second.images, turns)
    shown = Explorer([both], {"base": ["x"], "policy": ["y"]})
    assert shown.grid.value.count("<img") == 2 and "user: And then?" in shown.grid.value
    assert "group a.png, b.png" in shown.grid.value
