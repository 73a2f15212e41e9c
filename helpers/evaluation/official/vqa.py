"""VQA accuracy as the evaluation code of VQA v2 counts it (github.com/GT-Vision-Lab/VQA).

Blanks at the ends are taken off, and line ends and tabs are blanks. Only where the annotators do
not all say the same are answers normalised; where they do, the raw texts must be equal, so that
"Yes" is wrong where all ten say "yes". The reward `vqa_accuracy` normalises always: a published
figure is to be compared with this one.
"""

from collections.abc import Sequence

import numpy as np

from helpers.rewards import normalise, vote_share


def official_vqa_accuracy(answer: str, annotated: Sequence[str]) -> float:
    """The accuracy of an answer, 0 … 1, given what each annotator has said.

    >>> official_vqa_accuracy("Yes", ["yes"] * 10), official_vqa_accuracy("yes", ["yes"] * 10)
    (0.0, 1.0)
    """
    given = _plain(answer)
    known = [_plain(text) for text in annotated]
    if len(set(known)) > 1:
        given = normalise(given)
        known = [normalise(text) for text in known]
    return vote_share([text == given for text in known])


def _plain(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def official_vqa_accuracies(
    answers: Sequence[str], annotated: Sequence[Sequence[str]]
) -> np.ndarray:
    """The accuracy of each answer, (answers,)."""
    pairs = zip(answers, annotated, strict=True)
    return np.array([official_vqa_accuracy(answer, texts) for answer, texts in pairs])
