"""Pieces of pages: marked words, coloured tokens, a table of pictures."""

import pytest
from shipped import TRAFFIC

from helpers.data import Task, ask, count_answer, read_counts
from helpers.evaluation.side_by_side import PolicyAnswer
from helpers.report.html import colored_tokens, comparison_table, mark_changes


@pytest.fixture(scope="module")
def items():
    return read_counts(TRAFFIC, "test")[:8]


def test_changed_words_are_marked_and_markup_is_escaped():
    before, after = mark_changes("There are 2 <b>cars</b>", "There are 3 <b>cars</b>")
    assert (
        before
        == "There are <mark style='background:#ffd7d5;color:#1f2328'>2</mark> &lt;b&gt;cars&lt;/b&gt;"
    )
    assert (
        after
        == "There are <mark style='background:#c8f0d3;color:#1f2328'>3</mark> &lt;b&gt;cars&lt;/b&gt;"
    )


def test_token_colours_grow_with_the_gain_and_do_not_speak_alone():
    """+3 nats: full green, 255 − 0.6·(255 − 46) = 130; −0.5 nats: a sixth of red, underlined."""
    page = colored_tokens(
        PolicyAnswer("p", "a<b", [1, 2], ["a", "<b"], [-1, -1], [-4, -0.5], [0.1, 0.2], True)
    )
    assert "background:rgb(130,198,142);color:#1f2328;text-decoration:none" in page
    assert (
        "text-decoration:underline dotted" in page
        and "&lt;b</span>" in page
        and "-0.50 against the base" in page
    )


def test_the_static_table_holds_pictures_and_both_answers(items):
    tasks = [ask(f"<b>{i}?", [item.path], item.counts, "counts") for i, item in enumerate(items)]
    right = count_answer(items[1].counts)
    page = comparison_table(tasks, ["one", "two"], ["one", right], [1])
    assert "✗ " in page and "✓ " in page and page.count("<img") == 1
    assert "two" in page and "one" not in page and "&lt;b&gt;1?" in page


def test_without_a_truth_nothing_is_marked_right_or_wrong(items):
    task = Task((items[0].path, items[1].path), ask("What?", []).turns)
    page = comparison_table([task], ["a bus"], ["a car"], [0])
    assert "✓" not in page and "✗" not in page and page.count("<img") == 2
