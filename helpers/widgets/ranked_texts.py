"""What a reader sees of n sampled answers: why the best is the best, and the others, collapsed."""

import html
from collections.abc import Mapping, Sequence

from helpers.evaluation import BestAnswer, RankedText
from helpers.report import MARKS

from .common import escape_text, padded_table


def samples_html(found: BestAnswer, right: Mapping[str, bool | None]) -> str:
    """HTML below the best answer: its score and share, what is to be noted, the other answers.

    right: whether each text is right; None where nobody knows.
    """
    lines = [_first_line(found, right), *_remarks(found, right)]
    said = "<br>".join(f"<small>{html.escape(line)}</small>" for line in lines)
    return f"<div>{said}</div>{_others(found, right)}"


def cost_text(found: Sequence[BestAnswer]) -> str:
    """What sampling and ranking cost for all policies together, in answers and seconds."""
    sampled = sum(best.answer.best_of for best in found)
    ranked = sum(len(best.texts) for best in found)
    sampling = sum(best.sampling_seconds for best in found)
    ranking = sum(best.ranking_seconds for best in found)
    return (
        f"{sampled} answers sampled in {sampling:.2f} s; {ranked} texts ranked in "
        f"{ranking:.2f} s by {found[0].answer.ranked_by}"
    )


def _first_line(found: BestAnswer, right: Mapping[str, bool | None]) -> str:
    """Score and share of the best answer, and how many of the samples are right."""
    number = found.answer.best_of
    if not found.texts:
        return f"none of the {number} answers has a word"
    best = found.texts[0]
    score = "no score" if best.score is None else f"score {best.score:.3f}"
    parts = [score, f"share {_share(best, found)}"]
    if found.empty:
        parts.append(f"{found.empty} without a word")
    # of the samples, not of the texts: what a single answer would have been
    known = [text for text in found.texts if right[text.text] is not None]
    if known:
        parts.append(f"right: {sum(text.times for text in known if right[text.text])} of {number}")
    return " · ".join(parts)


def _remarks(found: BestAnswer, right: Mapping[str, bool | None]) -> list[str]:
    """Where the ranker does not know, or is wrong."""
    who = found.answer.ranked_by
    remarks = []
    if len(found.first) > 1:
        remarks.append(f"tie: {len(found.first)} answers share the first place, one is shown")
    # a judge may abstain
    if found.texts and not found.is_ranked:
        remarks.append(f"{who} does not say which is better: the first one sampled is shown")
    if is_misled(found, right):
        remarks.append(f"⚠️ {who} is wrong here: it ranks a wrong answer above every right one")
    return remarks


def is_misled(found: BestAnswer, right: Mapping[str, bool | None]) -> bool:
    """Does the ranker put only wrong answers first, although there are right ones?"""
    # one that was cut off is not behind the others by the ranker's will
    whole = [right[text.text] for text in found.texts if text.ended]
    firsts = [right[text.text] for text in found.first]
    return False in firsts and True not in firsts and True in whole


def _share(text: RankedText, found: BestAnswer) -> str:
    return f"{text.times} of {found.answer.best_of}"


def _others(found: BestAnswer, right: Mapping[str, bool | None]) -> str:
    """The answers behind the best as a table that opens by a click, or by Enter."""
    others = found.texts[1:]
    if not others:
        return ""
    places = [text.place for text in found.texts]
    rows = [["place", "answer", "score", "share"]]
    for text in others:
        place = "–" if text.place is None else str(text.place)
        if text.place is not None and places.count(text.place) > 1:
            place += " (tie)"
        score = "–" if text.score is None else f"{text.score:.3f}"
        share = _share(text, found) + ("" if text.ended else ", cut off")
        answer = escape_text(MARKS[right[text.text]] + text.text)
        rows.append([place, answer, score, share])
    # the page's own way to open and close, which keys and screen readers know
    title = "1 other answer" if len(others) == 1 else f"{len(others)} other answers"
    order = "ranked" if found.is_ranked else "as they were sampled"
    return (
        f"<details><summary>{title}, {order}</summary>"
        f"<div style='overflow:auto'>{padded_table(rows)}</div></details>"
    )
