"""Whether an answer is right, and how far: one line for each kind of truth.

The kind is a field of a record or task (`helpers/data/truth.py`). Another kind enters by its name
there and its line in `TRUTHS` here; what judges and tables make of it is in
`helpers/evaluation/truth_judges.py`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from transformers import ProcessorMixin

from helpers.data import Facts, Task, TruthKind, count_answer, kind_of, true_and_wrong_answers
from helpers.models import FREE_TEXT_TOKENS, answer_budget
from helpers.statistics import Proportion, share_of

from .faults import count_faults, counts_agree
from .references import (
    anls,
    choice,
    exact_match,
    normalise,
    token_f1,
    vqa_accuracy,
    yes_no,
)
from .scoring import Scorer, count_exact, count_graded, score_all
from .similarity import cosine_scorer, tfidf_embedder


def _references(facts: Facts) -> list[str]:
    return [facts] if isinstance(facts, str) else list(facts)


def _most_frequent(facts: Facts) -> str:
    return Counter(_references(facts)).most_common(1)[0][0]


def _cosine(truths: Sequence[Facts]) -> Scorer:
    """Cosine of TF-IDF vectors whose words are those of the reference answers."""
    # rare words weigh more, and which words are rare depends on the whole data set
    texts = []
    for facts in truths:
        texts += _references(facts)
    return cosine_scorer(tfidf_embedder(texts))


def _answers_of_others(
    truths: Sequence[Facts],
    seed: int,
) -> list[list[str]] | None:
    """The right answer twice, and two that are right for other tasks and not for this one."""
    rng = np.random.default_rng(seed)
    answers = [_most_frequent(facts) for facts in truths]
    rows = []
    for right, facts in zip(answers, truths, strict=True):
        own = {normalise(text) for text in _references(facts)}
        # what is right elsewhere and not accepted here
        others = [text for text in answers if normalise(text) not in own]
        if not others:
            return None
        # the right one stands twice, so that a critic sees as much right as wrong
        drawn = rng.integers(len(others), size=2)
        wrong = [others[i] for i in drawn.tolist()]
        rows.append([right, right, *wrong])
    return rows


def _always(scorer: Scorer) -> Callable[[Sequence[Facts]], Scorer]:
    return lambda truths: scorer


@dataclass(frozen=True)
class TruthJudge:
    """How answers are compared with one kind of truth.

    reward: from all truths of a data set, the scorer to train on, 0 … 1. degree: likewise, how far
    an answer is right, 0 … 1. right_from: the degree from which an answer is right. answer: a
    right answer in words. mistakes: from all truths and a seed, right and wrong answers to each.
    least_tokens: to allow for an answer, where the truth may be shorter than what a model says: "2"
    is right, and "There are 2 cars." is, too. faults: what is wrong with an answer, beyond that it
    is. of_image: the truth is known of the image, whatever is asked. right_elsewhere: (facts,
    question, answer) → does the answer to another question about that image agree with it? None if
    nobody can say.
    """

    heading: str  # of the share of right answers in tables
    reward: Callable[[Sequence[Facts]], Scorer]
    degree: Callable[[Sequence[Facts]], Scorer]
    right_from: float
    answer: Callable[[Facts], str] = _most_frequent
    mistakes: Callable[[Sequence[Facts], int], list[list[str]] | None] = _answers_of_others
    least_tokens: int = 64
    faults: Callable[[Facts, str], frozenset[str]] = lambda facts, answer: frozenset()
    of_image: bool = False
    right_elsewhere: Callable[[Facts, str, str], bool | None] = lambda facts, question, answer: None

    def accepts(self, degree: float | np.ndarray) -> bool | np.ndarray:
        """Is an answer of this degree right?"""
        # .1 + .2 must not fail a limit of .3
        return degree >= self.right_from - 1e-9


def _by(scorer: Scorer, heading: str, right_from: float = 1.0) -> TruthJudge:
    # these scores are 0 … 1 already, so that one scorer is both the reward and the degree
    made = _always(scorer)
    return TruthJudge(
        heading,
        reward=made,
        degree=made,
        right_from=right_from,
    )


# Where a degree is no yes or no, an answer is right from one half on: of the people who agree
# (vqa_accuracy), of the letters (anls, as its authors have it), of the words (token_f1). Cosines of
# unlike sentences come higher than that; .7 is our choice.
TRUTHS: Mapping[TruthKind, TruthJudge] = {
    "counts": TruthJudge(
        "all counts right",
        _always(count_exact),
        _always(count_graded),
        1.0,
        count_answer,
        true_and_wrong_answers,
        0,
        count_faults,
        of_image=True,
        right_elsewhere=counts_agree,
    ),
    "exact_match": _by(exact_match, "right"),
    "vqa_accuracy": _by(vqa_accuracy, "right by most", 0.5),
    "anls": _by(anls, "right but for spelling", 0.5),
    "token_f1": _by(token_f1, "right by half of the words", 0.5),
    "cosine": TruthJudge(
        "alike (cosine from .7)",
        reward=_cosine,
        degree=_cosine,
        right_from=0.7,
    ),
    "choice": _by(choice, "right choice"),
    "yes_no": _by(yes_no, "right"),
}


def token_budget(processor: ProcessorMixin, tasks: Sequence[Task]) -> int:
    """Tokens to allow for an answer to any of the tasks, by their truths.

    Where one has no truth, at least `FREE_TEXT_TOKENS`.
    """
    least = 0
    texts = []
    for task in tasks:
        # how long a good answer is, nobody has said
        if not task.is_known:
            least = max(least, FREE_TEXT_TOKENS)
            continue
        truth = TRUTHS[task.kind]
        least = max(least, truth.least_tokens)
        texts.append(truth.answer(task.facts))
    # without any truth there is no text to measure
    if texts:
        least = max(least, answer_budget(processor, texts))
    return least


def _known_facts(tasks: Sequence[Task]) -> list[Facts]:
    return [task.facts for task in tasks if task.is_known]


def reward_of(tasks: Sequence[Task]) -> Scorer | None:
    """The scorer to train on where the truth is known; None where it is not."""
    known = _known_facts(tasks)
    return TRUTHS[kind_of(tasks)].reward(known) if known else None


def degree_of(tasks: Sequence[Task]) -> Scorer | None:
    """The scorer that says how far an answer is right; None where the truth is not known."""
    known = _known_facts(tasks)
    return TRUTHS[kind_of(tasks)].degree(known) if known else None


def degrees(tasks: Sequence[Task], answers: Sequence[str]) -> np.ndarray:
    """How far each answer is right, (tasks,), 0 … 1. The truth of all tasks is known."""
    judge = TRUTHS[kind_of(tasks)]
    score = judge.degree([task.facts for task in tasks])
    # words are compared with words, so that no image has to be opened
    rows = []
    for task, text in zip(tasks, answers, strict=True):
        rows.append(task.scorer_inputs([], text))
    scores = score_all(score, rows)
    return np.array([found.total for found in scores])


def are_right(tasks: Sequence[Task], answers: Sequence[str]) -> np.ndarray:
    """Which answers are right, (tasks,) bool. The truth of all tasks is known."""
    return TRUTHS[kind_of(tasks)].accepts(degrees(tasks, answers))


def right_share(tasks: Sequence[Task], answers: Sequence[str]) -> Proportion | None:
    """The share of right answers among those whose truth is known; None if none is."""
    known, texts = [], []
    for task, text in zip(tasks, answers, strict=True):
        if task.is_known:
            known.append(task)
            texts.append(text)
    if not known:
        return None
    return share_of(are_right(known, texts))


def known_answers(tasks: Sequence[Task], seed: int = 0) -> list[list[str]] | None:
    """Right and wrong answers to each task, from which a critic learns what a mistake looks like.

    The right one twice, and answers that are wrong here. None where no truth is known, or where no
    answer of another task is wrong.
    """
    facts = _known_facts(tasks)
    # a critic needs all answers of all tasks: one unknown truth would leave a hole
    if not facts or len(facts) < len(tasks):
        return None
    return TRUTHS[kind_of(tasks)].mistakes(facts, seed)
