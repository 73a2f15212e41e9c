"""LLaVA-Bench (in the wild) and MMHal-Bench: a judge's reviews, counted as the authors' code does.

* LLaVA-Bench (Liu et al. 2023, arXiv 2304.08485): `parse_score` of
  `llava/eval/eval_gpt_review_bench.py` and `llava/eval/summarize_gpt_review.py` of
  github.com/haotian-liu/LLaVA. The first line must be two numbers with one blank or one comma
  between them, the reference's first; "8, 7" already is none. What cannot be read is −1 for both
  and enters the means: a file of nothing else has the relative score 100. Means are rounded to
  three digits before the ratio. Papers give three figures: the relative score, and the means of the
  reference and of the model, × 10.
* MMHal-Bench (Sun et al. 2023, arXiv 2309.14525): `MMHal-Bench-eval/eval_gpt4.py` of
  github.com/llava-rlhf/LLaVA-RLHF. "rating: 0" … "rating: 6" are looked for in lower case; none or
  several different ones count as 0, which is a hallucination; "rating: 4.5" is 4, "**Rating**: 5"
  none. Question types are taken from the file; the official code goes by place modulo 8 and prints
  no names.

Reviews are read from files: no judge is called here. The official figures are of gpt-4-0314,
another judge gives others.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from helpers.data import DatasetRow
from helpers.files import UsageError
from helpers.statistics import share_of

from ..keyed import check_each, read_each
from .common import OfficialGrade, Questions, Texts

FAILED_SCORES = (-1.0, -1.0)


def read_reviews(path: Path, questions: Questions) -> dict[str, str]:
    """A judge's reviews of the answers to `questions`, each once, from a JSON or JSONL file.

    A row is `{"question_id" or "id": …, "review" or "content": …}` (LLaVA's file has `content`; in
    lmms-eval's that is the prompt, and `review` the reply), or the API's own response without an
    id, `{"choices": [{"message": {"content": …}}]}`, in the order of the questions, as
    `eval_gpt4.py` saves them. A stored `tuple` that the review does not say is an error. Raises
    UsageError naming file and line.
    """

    def read(row: DatasetRow, place: int) -> tuple[str, str]:
        # a response of the API has no id, so that its place counts
        if "choices" in row:
            if place >= len(questions):
                raise UsageError(
                    f"more than {len(questions)} responses, and as many questions. "
                    "Give all questions."
                )
            return questions[place].id, _content_of(row)
        key = row.get("question_id", row.get("id"))
        text = row.get("review", row.get("content"))
        if type(key) not in (str, int) or not isinstance(text, str):
            raise UsageError(
                "a row needs question_id or id, and the judge's text in review or content."
            )
        if "tuple" in row and row["tuple"] != list(parse_llava_scores(text)):
            raise UsageError(
                f"tuple {row['tuple']} is not what the review's first line says. Judge it again."
            )
        return str(key), text

    return read_each([path], questions, "review", read)


def _content_of(response: DatasetRow) -> str:
    try:
        content = response["choices"][0]["message"]["content"]
    except (KeyError, IndexError, TypeError):
        content = None
    if not isinstance(content, str):
        raise UsageError("a response needs choices[0].message.content, a text.")
    return content


def _by_group(questions: Questions, values: Mapping[str, Any]) -> dict[str, list]:
    """The values of the questions of each group, in the order of the questions."""
    groups = {}
    for question in questions:
        groups.setdefault(question.group, []).append(values[question.id])
    return groups


# --- LLaVA-Bench ----------------------------------------------------------------------------------


def parse_llava_scores(review: str) -> tuple[float, float]:
    """(reference, model) as `parse_score`; (−1, −1) if the first line is not two numbers.

    >>> parse_llava_scores("8 7.5"), parse_llava_scores("8, 7.5")
    ((8.0, 7.5), (-1.0, -1.0))
    """
    try:
        reference, model = review.split("\n")[0].replace(",", " ").split(" ")
        return float(reference), float(model)
    except ValueError:  # not two fields, or no numbers
        return FAILED_SCORES


def grade_llava_bench(questions: Questions, reviews: Texts) -> OfficialGrade:
    """The figures of `summarize_gpt_review.py`, of all questions and of each category.

    Raises UsageError unless each question has one review.
    """
    check_each(reviews, questions, "reviews", "review")
    # (reference, model) of each question
    scores = {question.id: parse_llava_scores(reviews[question.id]) for question in questions}
    groups = {"all": list(scores.values())} | _by_group(questions, scores)
    figures = {name: _relative_score(pairs) for name, pairs in groups.items()}
    for name, pairs in groups.items():
        figures |= _means(name, pairs)
    figures["unparsable"] = share_of(pair == FAILED_SCORES for pair in scores.values())
    for name, pairs in groups.items():
        parsed = [pair for pair in pairs if pair != FAILED_SCORES]
        figures[f"{name} without unparsable"] = _relative_score(parsed)
    return OfficialGrade("LLaVA-Bench (in the wild), relative score", figures)


def _relative_score(pairs: Sequence[tuple[float, float]]) -> float | None:
    """100 · mean of the model's scores / mean of the reference's; None where the latter is 0."""
    if not pairs:
        return None
    reference, model = _rounded_means(pairs)
    return round(model / reference * 100, 1) if reference else None


def _rounded_means(pairs: Sequence[tuple[float, float]]) -> list[float]:
    # Python's `round` of each mean, as in the official code; NumPy's differs in the last digit
    return [round(mean, 3) for mean in np.mean(pairs, axis=0).tolist()]


def _means(name: str, pairs: Sequence[tuple[float, float]]) -> dict[str, float]:
    """The mean scores of the reference and of the model, times 10."""
    reference, model = (round(mean * 10, 1) for mean in _rounded_means(pairs))
    return {f"{name}: reference": reference, f"{name}: model": model}


# --- MMHal-Bench ----------------------------------------------------------------------------------


def parse_mmhal_rating(review: str) -> int | None:
    """0 … 6, or None if "rating: N" stands there with no N or with several.

    >>> parse_mmhal_rating("Rating: 5"), parse_mmhal_rating("rating: 2 … rating: 3")
    (5, None)
    """
    found = [rating for rating in range(7) if f"rating: {rating}" in review.lower()]
    return found[0] if len(found) == 1 else None


def grade_mmhal_bench(questions: Questions, reviews: Texts) -> OfficialGrade:
    """The figures of `eval_gpt4.py`: the average rating, 0 … 6, and the share of those below 3.

    Raises UsageError unless each question has one review.
    """
    check_each(reviews, questions, "reviews", "review")
    read = {question.id: parse_mmhal_rating(reviews[question.id]) for question in questions}
    parsed = [rating for rating in read.values() if rating is not None]
    ratings = {key: rating or 0 for key, rating in read.items()}  # as the official code counts
    types = _by_group(questions, ratings)
    figures = {
        "average score": fmean(ratings.values()),
        "hallucination rate": share_of(rating < 3 for rating in ratings.values()),
        **{f"average score, {name}": fmean(group) for name, group in types.items()},
        "unparsable": share_of(rating is None for rating in read.values()),
        "average score without unparsable": fmean(parsed) if parsed else None,
        "hallucination rate without unparsable": share_of(rating < 3 for rating in parsed),
    }
    return OfficialGrade("MMHal-Bench", figures)
