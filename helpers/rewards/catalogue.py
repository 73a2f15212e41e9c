"""The scorers that are ready to use, by name: what recipes and notebooks may ask for."""

from pathlib import Path

from helpers.files import UsageError, did_you_mean

from . import scoring
from .own import is_own_reward, load_reward
from .references import anls, choice, exact_match, token_f1, vqa_accuracy, yes_no
from .scoring import Scorer

# those of similarity.py need an embedder or a model first
SCORERS: dict[str, Scorer] = {
    scorer.__name__: scorer
    for scorer in (
        scoring.heuristic_scorer(),
        scoring.count_exact,
        scoring.count_per_class,
        scoring.count_graded,
        exact_match,
        vqa_accuracy,
        anls,
        token_f1,
        choice,
        yes_no,
    )
}


def get_scorer(name: str, folder: Path | None = None) -> Scorer:
    """The ready scorer of that name, or one of your own: `my_rewards.py:brevity`.

    folder: that the path of a file counts from; None is where one stands, then the repository.
    Raises UsageError listing the ready ones, or saying what is wrong with the file.
    """
    if is_own_reward(name):
        return load_reward(name, folder)
    if name not in SCORERS:
        raise UsageError(
            f"unknown scorer {name!r}: choose from {', '.join(SCORERS)}. One of your own is named "
            f"FILE.py:FUNCTION.{did_you_mean(name, SCORERS)}"
        )
    return SCORERS[name]
