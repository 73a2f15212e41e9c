"""Whether an answer is right, and how far: one line for each kind of truth.

The kind is a field of a record or task (`helpers/data/truth.py`). Another kind enters by its name
there and its line in `TRUTHS` here; what judges and tables make of it is in
`helpers/evaluation/judges.py`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from transformers import ProcessorMixin

from helpers.data import Facts, Task, TruthKind, count_answer, kind_of
from helpers.models import FREE_TEXT_TOKENS, answer_budget

from .references import anls, choice, exact_match, token_f1, vqa_accuracy, yes_no
from .scoring import Scorer, count_exact, count_graded
from .similarity import cosine_scorer, tfidf_embedder


def _references(facts: Facts) -> list[str]:
    return [facts] if isinstance(facts, str) else list(facts)


def _most_frequent(facts: Facts) -> str:
    return Counter(_references(facts)).most_common(1)[0][0]


def _cosine(truths: Sequence[Facts]) -> Scorer:
    """Cosine of TF-IDF vectors whose words are those of the reference answers."""
    return cosine_scorer(tfidf_embedder([text for facts in truths for text in _references(facts)]))


def _always(scorer: Scorer) -> Callable[[Sequence[Facts]], Scorer]:
    return lambda truths: scorer


@dataclass(frozen=True)
class TruthJudge:
    """How answers are compared with one kind of truth.

    reward: from all truths of a data set, the scorer to train on, 0 … 1. degree: likewise, how far
    an answer is right, 0 … 1. right_from: the degree from which an answer is right. answer: a
    right answer in words. least_tokens: to allow for an answer, where the truth may be shorter than
    what a model says: "2" is right, and "There are 2 cars." is, too.
    """

    heading: str  # of the share of right answers in tables
    reward: Callable[[Sequence[Facts]], Scorer]
    degree: Callable[[Sequence[Facts]], Scorer]
    right_from: float
    answer: Callable[[Facts], str] = lambda facts: _references(facts)[0]
    least_tokens: int = 64


def _by(scorer: Scorer, heading: str, right_from: float = 1.0) -> TruthJudge:
    return TruthJudge(heading, _always(scorer), _always(scorer), right_from)


# Where a degree is no yes or no, an answer is right from one half on: of the people who agree
# (vqa_accuracy), of the letters (anls, as its authors have it), of the words (token_f1). Cosines of
# unlike sentences come higher than that; .7 is our choice.
TRUTHS: Mapping[TruthKind, TruthJudge] = {
    "counts": TruthJudge(
        "all counts right", _always(count_exact), _always(count_graded), 1.0, count_answer, 0
    ),
    "exact_match": _by(exact_match, "right"),
    "vqa_accuracy": TruthJudge(
        "right by most", _always(vqa_accuracy), _always(vqa_accuracy), 0.5, _most_frequent
    ),
    "anls": _by(anls, "right but for spelling", 0.5),
    "token_f1": _by(token_f1, "right by half of the words", 0.5),
    "cosine": TruthJudge("alike (cosine from .7)", _cosine, _cosine, 0.7),
    "choice": _by(choice, "right choice"),
    "yes_no": _by(yes_no, "right"),
}


def token_budget(processor: ProcessorMixin, tasks: Sequence[Task]) -> int:
    """Tokens to allow for an answer to any of the tasks, by their truths.

    Where one has no truth, at least `FREE_TEXT_TOKENS`.
    """
    least, texts = 0, []
    for task in tasks:
        if task.kind == "none":
            least = max(least, FREE_TEXT_TOKENS)
            continue
        truth = TRUTHS[task.kind]
        least = max(least, truth.least_tokens)
        texts.append(truth.answer(task.facts))
    return max(least, answer_budget(processor, texts) if texts else 0)


def reward_of(tasks: Sequence[Task]) -> Scorer | None:
    """The scorer to train on where the truth is known; None where it is not."""
    kind = kind_of(tasks)
    known = [task.facts for task in tasks if task.kind != "none"]
    return TRUTHS[kind].reward(known) if known else None
