"""From questions and a model's answers to preferences, whatever the data is; taught in notebook 02.

Data that comes with preferences keeps them. Of true counts, worse answers can be written
(`data.build_records`); of any other questions the model's own answers are ranked, by what is known
to be true, or by rules that know nothing but words.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.stats import spearmanr

from helpers.data import (
    PreferenceRecord,
    PreparedData,
    Task,
    build_records,
    counted_items,
)
from helpers.files import UsageError
from helpers.models import SampledAnswer
from helpers.statistics import proportion, share_of

from .catalogue import SCORERS, get_scorer
from .ranking import rank_samples
from .scoring import Scorer
from .truths import are_right, degree_of, known_answers

PAIR_KINDS = ("built", "ranked")
SampledAnswers = Sequence[Sequence[SampledAnswer]]  # (tasks, answers)


def default_scorer(tasks: Sequence[Task], name: str | None = None) -> Scorer:
    """The scorer of that name; of None, how far an answer is right, or where nobody knows, rules.

    Says so where it has to be the rules.
    """
    if name:
        return get_scorer(name)
    score = degree_of(tasks)
    if score is None:
        print("⚠️  no truth is known: answers are ranked by rules about words, or by you, below")
    return score or SCORERS["heuristic"]


def make_preferences(
    prepared: PreparedData,
    split: str,
    sample: Callable[[list[Task]], SampledAnswers],
    pairs: str = "built",
    negatives: Sequence[str] = ("own", "other image"),
    score: Scorer | None = None,
    seed: int = 0,
) -> list[PreferenceRecord]:
    """The preferences of a split: those of the data, or made of the answers that `sample` gives.

    pairs: "built" keeps the data's own preferences, writes worse answers where the counts are
    known, and adds other true answers to the model's own (`add_true_answers`). The model's answers
    are ranked by `score`; with "ranked", nothing but them is.
    Raises UsageError if there is nothing to prefer in train.
    """
    if pairs not in PAIR_KINDS:
        raise UsageError(f"PAIRS = {pairs!r}: choose from {', '.join(PAIR_KINDS)}.")
    if prepared.has_preferences and pairs == "built":
        return prepared.records(split)
    tasks = prepared.tasks(split)
    answers = sample(tasks)
    items = counted_items(tasks) if pairs == "built" else []
    if items:
        texts = []
        for several in answers:
            texts.append([answer.text for answer in several])
        return build_records(items, texts, negatives, seed)
    if pairs == "built":
        answers = add_true_answers(tasks, answers, seed)
    records = rank_samples(tasks, answers, score)
    if split == "train" and not records:
        raise UsageError(
            "no question got two different answers, so there is nothing to prefer. Take more "
            "ANSWERS, or another MODEL."
        )
    return records


def add_true_answers(
    tasks: Sequence[Task], answers: SampledAnswers, seed: int = 0
) -> SampledAnswers:
    """Put beside the sampled answers the true one, and one that is right for another question.

    A model whose samples are all wrong would leave nothing to prefer. They stand in random places.
    Answers to questions without a known truth stay as they are.
    """
    rng = np.random.default_rng(seed)
    known = [task for task in tasks if task.is_known]
    rows = iter(known_answers(known, seed) or [])
    whole = []
    for task, several in zip(tasks, answers, strict=True):
        row = next(rows, None) if task.is_known else None
        if row is None:
            whole.append(several)
            continue
        # the right answer stands twice in such a row, then come wrong ones
        true, elsewhere = row[0], row[2]
        more = [*several, SampledAnswer(true, True), SampledAnswer(elsewhere, True)]
        whole.append([more[place] for place in rng.permutation(len(more))])
    return whole


def mark_answers(task: Task, answers: Sequence[SampledAnswer]) -> list[str]:
    """The answers to a task, one a line: ✓ right, ✗ wrong, · nobody knows; … cut off."""
    known = task.facts is not None
    lines = []
    for answer in answers:
        mark = "·"
        if known:
            mark = "✓" if are_right([task], [answer.text])[0] else "✗"
        lines.append(f"  {mark} {answer.text}{'' if answer.ended else ' …'}")
    return lines


def describe_samples(tasks: Sequence[Task], answers: SampledAnswers) -> list[str]:
    """How many sampled answers are right, came to their end, and leave something to choose."""
    flat = _flatten(tasks, answers)
    lines = [f"answers that came to their end: {share_of(answer.ended for _, answer in flat)}"]
    differ = 0
    for several in answers:
        texts = {answer.text for answer in several}
        differ += len(texts) > 1
    lines.append(f"questions with different answers: {proportion(differ, len(tasks))}")
    # The rest can only be said where somebody knows what is right
    known = [(task, answer) for task, answer in flat if task.facts is not None]
    if not known:
        return [*lines, "which of them are right: nobody has said what is"]
    right = are_right([task for task, _ in known], [answer.text for _, answer in known])
    # By identity: two tasks may ask the same of one image
    hopeful = {id(task) for (task, _), hit in zip(known, right, strict=True) if hit}
    lines.insert(0, f"sampled answers that are right:  {share_of(right)}")
    lines.append(f"questions with at least one right answer: {len(hopeful)} of {len(tasks)}")
    return lines


def compare_heuristic(tasks: Sequence[Task], answers: SampledAnswers) -> list[str]:
    """How the heuristic's scores go with "is the answer right?", with and without the truth.

    Spearman's ρ over all answers; a line of words where there is nothing to compare.
    """
    if any(task.facts is None for task in tasks):
        return ["nobody has said what is right, so the heuristic cannot be compared with it"]
    flat = _flatten(tasks, answers)
    right = are_right([task for task, _ in flat], [answer.text for _, answer in flat])
    lines = []
    # What it is worth as a teacher is what it is worth without the truth
    for name in ("truth known", "truth unknown"):
        totals = []
        for task, answer in flat:
            facts = task.facts if name == "truth known" else None
            score = SCORERS["heuristic"](
                None,
                task.question,
                answer.text,
                facts,
            )
            totals.append(score.total)
        # ρ is not defined where one of the two never changes
        if len(set(totals)) > 1 and len(set(right.tolist())) > 1:
            found = spearmanr(totals, right.astype(float)).statistic
            lines.append(f"{name}: {found:+.2f}")
        else:
            lines.append(f"{name}: all scores or all answers are alike, so nothing correlates")
    return lines


def _flatten(tasks: Sequence[Task], answers: SampledAnswers) -> list[tuple[Task, SampledAnswer]]:
    """Every answer with its task."""
    flat = []
    for task, several in zip(tasks, answers, strict=True):
        flat += [(task, answer) for answer in several]
    return flat
