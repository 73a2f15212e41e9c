"""Reward functions for answers: the heuristic, counts, sums, and the way into TRL.

All have one signature, `score(image, question, answer, facts=None) -> Score`. `image` is None where
there is none, and a list where there are several; `question` is the last turn, which remembers the
others (`turns_of`). `facts` is the truth of the record: counts, a reference answer, a list of
accepted (or of the annotators') answers, or None. Facts of a kind that a scorer cannot use raise
UsageError. Scorers that compare with reference answers are in `helpers/rewards/references.py`, two
more in `similarity.py`, those of one's own in `own.py`; `catalogue.py` names those that are ready.

Simplification: texts are scored one at a time, but for scorers with a model in them (`score_all`).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np
from PIL.Image import Image

from helpers.data import Counts, Facts, Message, counting
from helpers.files import UsageError

from .heuristic import HEURISTIC_RULES, HeuristicRule, warn_if_not_english


@dataclass(frozen=True)
class Score:
    """A reward and where it comes from: the weighted `parts` sum to `total`."""

    total: float
    parts: dict[str, float]


Shown = Image | Sequence[Image] | None  # the image of a question, or several, or none
ScorerInputs = tuple[Shown, str, str, Facts]  # image, question, answer, facts
Scorer = Callable[..., Score]  # of `ScorerInputs`; the facts may be left out


def images_of(shown: Shown) -> list[Image]:
    """What a scorer is shown, as a list: of one image, several or none."""
    if shown is None:
        return []
    return [shown] if isinstance(shown, Image) else list(shown)


def turns_of(question: str) -> tuple[Message, ...]:
    """The conversation that a question is the end of, where it remembers one (`data.Question`).

    A plain text is a conversation of one turn.
    """
    alone = (Message.model_construct(role="user", content=question),)
    return getattr(question, "turns", alone)


def finite_number(value: object) -> float | None:
    """The value as a float if it is one number, also of numpy or torch; None if it is not."""
    if getattr(value, "ndim", None) == 0:  # of numpy or torch
        value = value.item()
    if not isinstance(value, Real):
        return None
    try:
        number = float(value)
    except OverflowError:  # an integer beyond floats
        return None
    return number + 0.0 if math.isfinite(number) else None


def make_scorer(name: str, parts: Callable[..., dict[str, float]]) -> Scorer:
    """Make the scorer that sums `parts(image, question, answer, facts)`.

    name: as trainers and tables show it.
    """

    def score(image: Shown, question: str, answer: str, facts: Facts = None) -> Score:
        found = parts(image, question, answer, facts)
        # + 0.0 turns −0.0 into 0.0
        values = {part: float(value) + 0.0 for part, value in found.items()}
        return Score(sum(values.values()), values)

    score.__name__ = name
    return score


def make_batch_scorer(
    name: str,
    batch: Callable[[Sequence[ScorerInputs]], list[Score]],
) -> Scorer:
    """Make a scorer that gives many answers to `batch` together, see `score_all`."""
    score = make_scorer(name, lambda *given: batch([given])[0].parts)
    score.batch = batch
    return score


def score_all(scorer: Scorer, rows: Sequence[ScorerInputs]) -> list[Score]:
    """Score many answers; a scorer with an attribute `batch` gets them together.

    Raises UsageError for a score that is not finite, with the scorer and the answer: one such
    number in a batch would turn every weight that is trained on it into NaN.
    """
    found = _scores(scorer, rows)
    for given, score in zip(rows, found, strict=True):
        _require_finite(scorer, given, score)
    return found


def _scores(scorer: Scorer, rows: Sequence[ScorerInputs]) -> list[Score]:
    if hasattr(scorer, "batch"):
        return scorer.batch(rows)
    return [scorer(*given) for given in rows]


def _require_finite(scorer: Scorer, given: ScorerInputs, score: Score) -> None:
    wrong = {part: value for part, value in score.parts.items() if not math.isfinite(value)}
    if not wrong and math.isfinite(score.total):
        return
    question, answer = given[1:3]
    name = getattr(scorer, "__name__", type(scorer).__name__)
    part, value = next(iter(wrong.items()), ("total", score.total))
    raise UsageError(
        f"scorer {name}: {part} is {value} for the answer {answer[:80]!r} to {question[:80]!r}. "
        "A score must be a finite number: mend the scorer, or give 0 where it cannot say."
    )


def heuristic_scorer(
    weights: Mapping[str, float] | None = None, rules: Sequence[HeuristicRule] = ()
) -> Scorer:
    """The criteria of a student project (grounding, reasoning, contradictions) as one sum.

    rules: your own, beside these. weights: replaces weights by rule name; UsageError for a name
    that is no rule, or that two rules have. Each contradiction rule counts once, however often it
    is broken, so that one bad sentence cannot outweigh all others.

    What it cannot do: it never looks at the image; it knows no truth but counts; copying the
    question scores; any "so" gains 0.5; its words are English, and it says so where most of the
    answers that it gets together are not. The project also took 1.0 off an answer about a dog that
    names a cat. A true "the dog chases a cat" does so, too: only known counts can decide it
    (`absent_object`).
    """
    used = (*HEURISTIC_RULES, *rules)
    chosen = {rule.name: rule.weight for rule in used}
    if len(chosen) < len(used):
        names = ", ".join(rule.name for rule in used)
        raise UsageError(f"rules: two have the same name ({names}). Rename yours.")
    unknown = set(weights or ()) - set(chosen)
    if unknown:
        raise UsageError(
            f"weights: no rule is called {', '.join(sorted(unknown))}. "
            f"Choose from {', '.join(chosen)}."
        )
    chosen |= weights or {}

    # the image is not looked at
    def parts(image, *given):
        return {rule.name: chosen[rule.name] * _rule_value(rule, *given) for rule in used}

    score = make_scorer("heuristic", parts)

    def batch(rows: Sequence[ScorerInputs]) -> list[Score]:
        warn_if_not_english([row[2] for row in rows])
        return [score(*row) for row in rows]

    score.batch = batch
    return score


def _rule_value(rule: HeuristicRule, question: str, answer: str, facts: Facts) -> float:
    value = rule.value(question, answer, facts)
    number = finite_number(value)
    if number is None:
        raise UsageError(
            f"rule {rule.name!r}: gave {value!r} for the answer {answer!r}. Return a finite number."
        )
    return number


# --- Rewards against known counts ---


def refuse_facts(
    who: str,
    needed: str,
    facts: Facts,
    others: str,
) -> UsageError:
    """The error of a scorer, `who`, that cannot use such facts; others: scorers that may."""
    return UsageError(
        f"{who}: facts must be {needed}, not {facts!r}. "
        "Give what the record holds (for GRPO, name the column of the data set), "
        f"or take a scorer for other facts: {others}."
    )


def _require_counts(facts: Facts, who: str) -> Counts:
    counts = facts if isinstance(facts, Mapping) else {}
    if counts and all(isinstance(n, Integral) for n in counts.values()):
        return dict(counts)
    raise refuse_facts(
        who,
        "true counts such as {'cars': 2, 'buses': 0}",
        facts,
        "exact_match, vqa_accuracy, cosine",
    )


def _make_count_scorer(name: str, value: Callable[[np.ndarray], float]) -> Scorer:
    """Make the scorer that gives `value` of the errors, stated − true, (classes,).

    An answer that `counting.parse_counts` cannot read gets 0.
    """

    def parts(image, question, answer, facts):
        truth = _require_counts(facts, name)
        stated = counting.parse_counts(answer, list(truth))
        if not stated:
            return {name: 0.0}
        return {name: value(np.array([stated[cls] - truth[cls] for cls in truth]))}

    return make_scorer(name, parts)


# 1 if every count is true, else 0
count_exact = _make_count_scorer("count_exact", lambda errors: (errors == 0).all())
# share of true counts
count_per_class = _make_count_scorer("count_per_class", lambda errors: (errors == 0).mean())
# 1 for a true count, 1/2 for one off, 1/3 for two off; mean over the classes (our definition)
count_graded = _make_count_scorer("count_graded", lambda errors: (1 / (1 + abs(errors))).mean())

# --- Sums, and the way into TRL ---


def weighted_scorer(
    scorers: Mapping[Scorer, float] | Sequence[tuple[str, Scorer, float]],
) -> Scorer:
    """Σ weight · scorer, one part each: `weighted_scorer({cosine: 0.7, clip: 0.3})`.

    Weights are no shares: CLIPScore spans 0 … 2.5, a count reward 0 … 1. Parts are named after the
    functions, or as given: [(name, scorer, weight), …]. Raises UsageError if two names are equal.
    """
    rows = scorers
    if isinstance(scorers, Mapping):
        rows = [(scorer.__name__, scorer, weight) for scorer, weight in scorers.items()]
    names = [name for name, _, _ in rows]
    if not rows or len(set(names)) < len(names):
        raise UsageError(
            f"scorers: the names {names} must be one or more, and differ. "
            "Give [(name, scorer, weight)]."
        )

    # scorer by scorer, so that one with a model in it gets all answers at once
    def batch(given: Sequence[ScorerInputs]) -> list[Score]:
        parts = [{} for _ in given]
        for name, scorer, weight in rows:
            for row, score in zip(parts, score_all(scorer, given), strict=True):
                row[name] = weight * score.total
        return [Score(sum(row.values()), row) for row in parts]

    return make_batch_scorer("+".join(names), batch)


def _last_message(messages: str | list[dict], role: str) -> str:
    """The last message of `role`, whose content is text or blocks; a plain text stays as it is."""
    if isinstance(messages, str):
        return messages
    content = ""
    for message in messages:
        if message["role"] == role:
            content = message.get("content") or ""
    if isinstance(content, str):
        return content
    return " ".join(block["text"] for block in content if block["type"] == "text")


def _image(columns: Mapping[str, list], row: int) -> Shown:
    """The image, or the list of several, of a row of TRL's columns `images` or `image`."""
    if "images" not in columns:
        return columns["image"][row] if "image" in columns else None
    images = columns["images"][row] or [None]
    return images[0] if len(images) == 1 else list(images)


def grpo_reward_function(
    scorer: Scorer,
    facts_column: str = "truth",
) -> Callable[..., list[float]]:
    """`scorer` as a reward function of TRL's GRPOTrainer, logged as `rewards/<its name>/mean`.

    TRL calls it with lists: `prompts` and `completions` (texts, or chat messages), and every column
    of the data set. The question is what the user said last, the answer what the assistant said
    last; the image (of several, their list) comes from `images` or `image`, the facts from
    `facts_column` (None if there is no such column).
    """

    def reward(prompts: list, completions: list, **columns: list) -> list[float]:
        totals = []
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            facts = columns[facts_column][row] if facts_column in columns else None
            if isinstance(facts, Mapping):
                # `datasets` fills in None for classes that only other rows have
                facts = {name: n for name, n in facts.items() if n is not None}
            question = _last_message(prompt, "user")
            answer = _last_message(completion, "assistant")
            score = scorer(_image(columns, row), question, answer, facts)
            totals.append(score.total)
        return totals

    reward.__name__ = scorer.__name__
    return reward
