"""Reward functions for answers: the heuristic, counts, exact match, weighted sums, and the way into TRL.

All have one signature, `score(image, question, answer, facts=None) -> Score`. `facts` is the truth of
the record: counts, a reference answer, a list of accepted (or of the annotators') answers, or None.
Facts of a kind that a scorer cannot use raise UsageError. `helpers/rewards/similarity.py` has two more.

Simplification: texts are scored one at a time, but for scorers with a model in them (`score_all`).
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral

import numpy as np
from PIL.Image import Image

from helpers.data import Counts, counting
from helpers.files import UsageError

from .heuristic import HEURISTIC_RULES, NUMBER_WORDS, Facts


@dataclass(frozen=True)
class Score:
    """A reward and where it comes from: the weighted `parts` sum to `total`."""

    total: float
    parts: dict[str, float]

    def __float__(self) -> float:
        return self.total


ScorerInputs = tuple[Image | None, str, str, Facts]  # image, question, answer, facts
Scorer = Callable[[Image | None, str, str, Facts], Score]


def make_scorer(
    name: str, parts: Callable[[Image | None, str, str, Facts], dict[str, float]]
) -> Scorer:
    """The scorer `name` (which trainers and tables show) that sums `parts(image, question, answer, facts)`."""

    def score(image: Image | None, question: str, answer: str, facts: Facts = None) -> Score:
        values = {
            part: float(value) + 0.0
            for part, value in parts(image, question, answer, facts).items()
        }  # no −0.0
        return Score(sum(values.values()), values)

    score.__name__ = name
    return score


def score_all(scorer: Scorer, rows: Sequence[ScorerInputs]) -> list[Score]:
    """Scores of many answers. A scorer with an attribute `batch`, which scores a list, gets them together."""
    together = getattr(scorer, "batch", None)
    return together(rows) if together else [scorer(*given) for given in rows]


def heuristic_scorer(weights: Mapping[str, float] | None = None) -> Scorer:
    """The three criteria of a student project (grounding, reasoning, contradictions): the sum of `RULES`.

    weights: replaces weights by rule name; UsageError for a name that is no rule. Each contradiction
    rule counts once, however often it is broken, so that one bad sentence cannot outweigh all others.

    What it cannot do: it never looks at the image; it knows no truth but counts; copying the question
    scores; any "so" gains 0.5. The project also took 1.0 off an answer about a dog that names a cat.
    A true "the dog chases a cat" does so, too: only known counts can decide it (`absent_object`).
    """
    chosen = {rule.name: rule.weight for rule in HEURISTIC_RULES}
    unknown = set(weights or ()) - set(chosen)
    if unknown:
        raise UsageError(
            f"weights: no rule is called {', '.join(sorted(unknown))}. Choose from {', '.join(chosen)}."
        )
    chosen |= weights or {}
    return make_scorer(
        "heuristic",
        lambda image, *given: {
            rule.name: chosen[rule.name] * rule.value(*given) for rule in HEURISTIC_RULES
        },
    )


# --- Rewards against known counts and reference answers ---


def _refusal(who: str, needed: str, facts: Facts, others: str) -> UsageError:
    return UsageError(
        f"{who}: facts must be {needed}, not {facts!r}. Give what the record holds (for GRPO, name the column of the "
        f"data set), or take a scorer for other facts: {others}."
    )


def _require_counts(facts: Facts, who: str) -> Counts:
    if (
        isinstance(facts, Mapping)
        and facts
        and all(isinstance(n, Integral) for n in facts.values())
    ):
        return dict(facts)
    raise _refusal(
        who,
        "true counts such as {'cars': 2, 'buses': 0}",
        facts,
        "exact_match, vqa_accuracy, cosine",
    )


def require_references(facts: Facts, who: str) -> list[str]:
    references = [facts] if isinstance(facts, str) else facts
    if (
        isinstance(references, list | tuple)
        and references
        and all(isinstance(text, str) for text in references)
    ):
        return list(references)
    raise _refusal(
        who,
        "a reference answer or a list of them",
        facts,
        "count_exact, count_per_class, count_graded",
    )


def _make_count_scorer(
    name: str, value: Callable[[int], float], combine: Callable[[list[float]], float]
) -> Scorer:
    """`combine` of `value(stated − true)` over the classes; 0 if `counting.parse_counts` cannot read the answer."""

    def parts(image: Image | None, question: str, answer: str, facts: Facts) -> dict[str, float]:
        truth = _require_counts(facts, name)
        stated = counting.parse_counts(answer, list(truth))
        return {
            name: combine([value(stated[cls] - truth[cls]) for cls in truth]) if stated else 0.0
        }

    return make_scorer(name, parts)


count_exact = _make_count_scorer(
    "count_exact", lambda error: error == 0, all
)  # 1 if every count is true, else 0
count_per_class = _make_count_scorer(
    "count_per_class", lambda error: error == 0, np.mean
)  # share of true counts
# 1 for a true count, 1/2 for one off, 1/3 for two off; mean over the classes (our definition)
count_graded = _make_count_scorer("count_graded", lambda error: 1 / (1 + abs(error)), np.mean)

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # the official list: no apostrophe, colon or full stop
_CONTRACTED = """ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll
how's isn't it'd it'll ma'am might've mightn't must've mustn't needn't not've o'clock oughtn't shan't should've shouldn't
somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's they'd
they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's where've who'd
who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've"""
CONTRACTIONS = {word.replace("'", ""): word for word in _CONTRACTED.split()}


def normalise(text: str) -> str:
    """The answer as the VQA evaluation compares it: "There are two, I guess!" → "there are 2 i guess".

    As in the official code: a punctuation mark disappears if it stands beside a space anywhere in the
    text, or if the text has a number like 1,000; else it becomes a space. A full stop stays before a
    digit only. Then lower case, "none" to "ten" as digits, no articles, missing apostrophes put back.
    Simplified: double contractions ("couldnt've") are left as they are. Nothing but articles and marks
    is kept ("A" is an answer, too), where the official code would have every such text equal.
    """
    text = " ".join(text.split())
    bare, thousands = text, re.search(r"\d,\d", text)
    for mark in PUNCTUATION:
        bare = bare.replace(
            mark, "" if thousands or f"{mark} " in text or f" {mark}" in text else " "
        )
    words = [
        {"none": "0", **NUMBER_WORDS}.get(word, word)
        for word in re.sub(r"\.(?!\d)", "", bare).lower().split()
    ]
    return (
        " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ("a", "an", "the"))
        or text.lower()
    )


def _make_reference_scorer(name: str, combine: Callable[[list[bool]], float]) -> Scorer:
    """`combine` of which references equal the answer, both normalised. An empty answer equals none."""

    def parts(image: Image | None, question: str, answer: str, facts: Facts) -> dict[str, float]:
        given = normalise(answer)
        return {
            name: combine(
                [
                    given != "" and normalise(text) == given
                    for text in require_references(facts, name)
                ]
            )
        }

    return make_scorer(name, parts)


def _vote(matches: list[bool]) -> float:
    """VQA accuracy (Antol et al. 2015, arXiv 1505.00468), as it is evaluated for VQA v2.

    Each annotator is left out in turn; min(matches among the others / 3, 1), averaged. With n < 10 annotators the
    same, so that n < 4 give (n − 1)/3 at best; one reference cannot be left out and gives 1/3 (exact_match gives 1).
    Simplified: the official code compares raw texts where all annotators agree; here they are always normalised.
    """
    others = [sum(matches) - match for match in matches] if len(matches) > 1 else matches
    return float(np.mean([min(n / 3, 1) for n in others]))


exact_match = _make_reference_scorer(
    "exact_match", any
)  # 1 if the answer is the reference, or one of them, else 0
vqa_accuracy = _make_reference_scorer("vqa_accuracy", _vote)


# --- Sums, and the way into TRL ---


def weighted_scorer(
    scorers: Mapping[Scorer, float] | Sequence[tuple[str, Scorer, float]],
) -> Scorer:
    """Σ weight · scorer, one part each: `weighted_scorer({cosine: 0.7, clip: 0.3})` is α·cosine + β·CLIP.

    Weights are no shares: CLIPScore spans 0 … 2.5, a count reward 0 … 1. Parts are named after the
    functions, or as given: [(name, scorer, weight), …]. Raises UsageError if two names are equal.
    """
    rows = (
        [(s.__name__, s, w) for s, w in scorers.items()]
        if isinstance(scorers, Mapping)
        else list(scorers)
    )
    names = [name for name, _, _ in rows]
    if not rows or len(set(names)) < len(names):
        raise UsageError(
            f"scorers: the names {names} must be one or more, and differ. Give [(name, scorer, weight)]."
        )

    def batch(given: Sequence[ScorerInputs]) -> list[Score]:
        columns = [
            [weight * score.total for score in score_all(scorer, given)]
            for _, scorer, weight in rows
        ]
        return [
            Score(sum(values), dict(zip(names, values, strict=True)))
            for values in zip(*columns, strict=True)
        ]

    score = make_scorer("+".join(names), lambda *given: batch([given])[0].parts)
    score.batch = batch
    return score


def _last_message(messages: str | list[dict], role: str) -> str:
    """Last message of `role` in chat messages whose content is text or blocks; a plain text is returned as it is."""
    if isinstance(messages, str):
        return messages
    content = (
        next(
            (message.get("content") for message in reversed(messages) if message["role"] == role),
            None,
        )
        or ""
    )
    if isinstance(content, str):
        return content
    return " ".join(block["text"] for block in content if block["type"] == "text")


def _image(columns: Mapping[str, list], row: int) -> Image | None:
    """The image of a row of TRL's columns `images` or `image`. Raises UsageError if it has several."""
    images = (
        (columns["images"][row] or [])
        if "images" in columns
        else columns.get("image", [])[row : row + 1]
    )
    if len(images) > 1:
        raise UsageError(
            f"row {row} of the batch has {len(images)} images, a scorer reads one. Leave such rows out."
        )
    return images[0] if images else None


def grpo_reward_function(scorer: Scorer, facts_column: str = "truth") -> Callable[..., list[float]]:
    """`scorer` as a reward function of TRL's GRPOTrainer, logged as `rewards/<name of the scorer>/mean`.

    TRL calls it with lists: `prompts` and `completions` (texts, or chat messages), and every column of
    the data set. The question is what the user said last, the answer what the assistant said last; the
    image comes from `images` or `image`, the facts from `facts_column` (None if there is no such column).
    """

    def reward(prompts: list, completions: list, **columns: list) -> list[float]:
        totals = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            facts = columns[facts_column][row] if facts_column in columns else None
            if isinstance(
                facts, Mapping
            ):  # `datasets` fills in None for classes that only other rows have
                facts = {name: n for name, n in facts.items() if n is not None}
            given = (
                _image(columns, row),
                _last_message(prompt, "user"),
                _last_message(completion, "assistant"),
                facts,
            )
            totals.append(scorer(*given).total)
        return totals

    reward.__name__ = scorer.__name__
    return reward


# As recipes and notebooks ask for them; those of similarity.py need an embedder or a model first
SCORERS: dict[str, Scorer] = {
    scorer.__name__: scorer
    for scorer in (
        heuristic_scorer(),
        count_exact,
        count_per_class,
        count_graded,
        exact_match,
        vqa_accuracy,
    )
}


def get_scorer(name: str) -> Scorer:
    """The ready scorer of that name. Raises UsageError listing them."""
    if name not in SCORERS:
        raise UsageError(f"unknown scorer {name!r}: choose from {', '.join(SCORERS)}.")
    return SCORERS[name]
