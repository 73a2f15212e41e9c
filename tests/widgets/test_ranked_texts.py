"""What is written below the best of several answers, from answers made up by hand."""

from dataclasses import replace

from helpers.evaluation import BestAnswer, PolicyAnswer, RankedText
from helpers.widgets.ranked_texts import cost_text, is_misled, samples_html


def found_with(*texts, number=8, seconds=(0.25, 0.05), ranker="judge"):
    spoken = PolicyAnswer("base", texts[0].text if texts else "", [1], ["a"], [-1], [-1], [0], True)
    best = replace(spoken, best_of=number, ranked_by=ranker)
    return BestAnswer(best, list(texts), *seconds)


def ranked(text, times=1, place=1, score=None, ended=True):
    return RankedText(text, times, place, score, ended)


def test_score_and_share_of_the_best_and_of_those_behind_it():
    found = found_with(
        ranked("x", 5, 1, 0.5),
        ranked("y", 2, 2, -1.25),
        ranked("z", 1, 3, 9.0, ended=False),
    )
    shown = samples_html(found, dict.fromkeys("xyz"))
    assert "score 0.500 · share 5 of 8<" in shown and "without a word" not in shown
    assert "right" not in shown, "nobody knows what is right"
    assert ">-1.250<" in shown and ">2 of 8<" in shown
    assert ">9.000<" in shown and ">1 of 8, cut off<" in shown
    assert shown.count("<tr>") == 3, "the head, and the two that are not the best"
    assert "<details><summary>2 other answers, ranked</summary>" in shown


def test_shares_count_what_is_without_a_word():
    shown = samples_html(found_with(ranked("x", 5, 1, 0.5)), {"x": None})
    assert "share 5 of 8 · 3 without a word" in shown and "details" not in shown
    assert "none of the 8 answers has a word" in samples_html(found_with(), {})


def test_the_ranker_is_wrong_where_only_wrong_answers_are_first():
    first, other, right = ranked("f", 1, 1), ranked("o", 1, 1), ranked("r", 3, 2)
    rights = {"f": False, "o": False, "r": True}
    assert is_misled(found_with(first, right), {"f": False, "r": True})
    assert is_misled(found_with(first, other, right), rights)
    assert not is_misled(found_with(first, other, right), rights | {"o": True}), "a tie"
    assert not is_misled(found_with(first, right), {"f": True, "r": False})
    assert not is_misled(found_with(first, right), {"f": False, "r": False}), "none to find"
    assert not is_misled(found_with(first, right), {"f": None, "r": None})
    cut = ranked("r", 3, 2, ended=False)
    assert not is_misled(found_with(first, cut), {"f": False, "r": True}), "last by the rule"
    shown = samples_html(found_with(first, other, right), rights)
    assert "right: 3 of 8" in shown and "⚠️ judge is wrong here" in shown
    assert "✗ o<" in shown and "✓ r<" in shown


def test_ties_are_called_so_wherever_they_are():
    found = found_with(ranked("a"), ranked("b"), ranked("c", place=3), ranked("d", place=3))
    shown = samples_html(found, dict.fromkeys("abcd"))
    assert "tie: 2 answers share the first place" in shown
    assert shown.count(">1 (tie)<") == 1 and shown.count(">3 (tie)<") == 2


def test_a_ranker_that_only_compares_or_does_not_say():
    shown = samples_html(found_with(ranked("a"), ranked("b", place=2)), {"a": None, "b": None})
    assert "no score" in shown and ">–<" in shown and "1 other answer, ranked" in shown
    silent = found_with(ranked("a", place=None), ranked("b", place=None))
    shown = samples_html(silent, {"a": False, "b": True})
    assert "judge does not say which is better: the first one sampled is shown" in shown
    assert "1 other answer, as they were sampled" in shown and "wrong here" not in shown


def test_the_cost_is_that_of_all_policies():
    """8 + 8 answers; 2 + 1 texts; 0.25 + 0.5 s, 0.05 + 0.1 s."""
    found = [
        found_with(ranked("a"), ranked("b", place=2)),
        found_with(ranked("c"), seconds=(0.5, 0.1)),
    ]
    expected = "16 answers sampled in 0.75 s; 3 texts ranked in 0.15 s by judge"
    assert cost_text(found) == expected


def test_markup_in_answers_and_names_is_shown_not_run():
    found = found_with(ranked("a"), ranked("<b>", place=2), ranker="<i>")
    shown = samples_html(found, {"a": False, "<b>": True})
    assert "<b>" not in shown and "&lt;b&gt;" in shown
    assert "<i>" not in shown and "&lt;i&gt; is wrong here" in shown
