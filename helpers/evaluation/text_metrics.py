"""Figures of answers against reference texts: short answers, and corpus scores of longer ones.

Short answers: exact match and VQA accuracy (`helpers/rewards/scoring.py`), and ANLS, which forgives
a few wrong letters. Longer texts: corpus BLEU (Papineni et al. 2002) and chrF (Popović 2015) by
sacrebleu with its signature, ROUGE-L (Lin 2004) by rouge-score, distinct-1 and -2 (Li et al. 2016,
arXiv 1510.03055), length. They compare words: none of them knows what is in the image. BLEU is 0
where no answer has four words, even if all are right.

Simplification: ROUGE-L splits words as rouge-score does, but knows the letters of all alphabets
(rouge-score's own splitter sees a–z and 0–9 only, so that a text in Cyrillic scores 0). Languages
without spaces are poorly served by every word figure; chrF is the one to read.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import Tokenizer
from sacrebleu.metrics import BLEU, CHRF

from helpers.files import UsageError
from helpers.rewards import (
    Scorer,
    anls,
    exact_match,
    vqa_accuracy,
)
from helpers.statistics import (
    LIMITS_95,
    Estimate,
    Proportion,
    TableRows,
    format_figure,
    sample_mean,
    share_of,
)

BLEU_RESAMPLES = 1000  # as many as sacrebleu draws
VQA_REFERENCES = 4  # with fewer, the VQA accuracy of a right answer cannot reach 1


class _WordTokenizer(Tokenizer):
    def tokenize(self, text: str) -> list[str]:
        """Letters and digits in a row, in lower case: of ASCII texts the words of rouge-score."""
        return re.findall(r"[^\W_]+", text.lower())


@dataclass(frozen=True)
class TextMetrics:
    """Figures of n answers: BLEU and chrF 0 … 100 as in sacrebleu, others 0 … 1, words a number."""

    empty: Proportion  # answers of nothing but blanks; they count in every other figure, too
    exact_match: Proportion  # the normalised answer is a normalised reference
    vqa_accuracy: Estimate | None  # None unless every answer has `VQA_REFERENCES`
    anls: Estimate
    bleu: Estimate
    bleu_signature: str
    chrf: Estimate
    chrf_signature: str
    rouge_l: Estimate  # F measure, mean over the answers; of several references the best
    distinct_1: float | None  # different words ÷ words of all answers; None without a word
    distinct_2: float | None  # different pairs of neighbours ÷ words (not pairs), as in the paper
    words: Estimate  # of an answer, separated by blanks

    def rows(self) -> TableRows:
        """A table: figure, value with its interval, and the signatures."""
        rows = [["figure", "value"]]
        for name, value in vars(self).items():
            rows.append([name.replace("_", " "), format_figure(value)])
        return rows


def reference_metrics(
    answers: Sequence[str], references: Sequence[str | Sequence[str]]
) -> TextMetrics:
    """Figures of `answers`; of each, `references` holds one right text or several.

    Intervals of BLEU and chrF are the central 95 % of 1,000 resamples of answers, seed 0 (Koehn
    2004), scored by sacrebleu. Its own bootstrap (2.6) fails for chrF where a resample scores 0.
    Intervals of means are Student's. All take answers as independent. Raises UsageError for lists
    of different lengths, no answers, and an answer without a reference or with a blank one.
    """
    known = _check_references(answers, references)

    def totals(scorer: Scorer) -> list[float]:
        rows = zip(answers, known, strict=True)
        return [scorer(None, "", answer, texts).total for answer, texts in rows]

    bleu, bleu_signature = _corpus_score(BLEU(), answers, known)
    chrf, chrf_signature = _corpus_score(CHRF(), answers, known)
    rouge = RougeScorer(["rougeL"], tokenizer=_WordTokenizer())
    rouges = [
        rouge.score_multi(texts, answer) for texts, answer in zip(known, answers, strict=True)
    ]
    enough = min(map(len, known)) >= VQA_REFERENCES
    return TextMetrics(
        empty=share_of(not answer.strip() for answer in answers),
        exact_match=share_of(totals(exact_match)),
        vqa_accuracy=sample_mean(totals(vqa_accuracy)) if enough else None,
        anls=sample_mean(totals(anls)),
        bleu=bleu,
        bleu_signature=bleu_signature,
        chrf=chrf,
        chrf_signature=chrf_signature,
        rouge_l=sample_mean([found["rougeL"].fmeasure for found in rouges]),
        distinct_1=distinct_share(answers, 1),
        distinct_2=distinct_share(answers, 2),
        words=sample_mean([len(answer.split()) for answer in answers]),
    )


def _check_references(
    answers: Sequence[str], references: Sequence[str | Sequence[str]]
) -> TableRows:
    if len(answers) != len(references) or not answers:
        raise UsageError(
            f"{len(answers)} answers, references for {len(references)}: as many, and at least one."
        )
    known = []
    for place, (answer, texts) in enumerate(zip(answers, references, strict=True)):
        if not isinstance(answer, str):
            raise UsageError(f"answers[{place}] is {answer!r}, not a text; an empty answer is ''.")
        given = [texts] if isinstance(texts, str) else texts
        if not given or not all(isinstance(text, str) and text.strip() for text in given):
            raise UsageError(
                f"references[{place}] is {texts!r}; give one text that is not blank, or more."
            )
        known.append(list(given))
    return known


def _corpus_score(
    metric: BLEU | CHRF, answers: Sequence[str], known: Sequence[Sequence[str]]
) -> tuple[Estimate, str]:
    """The score of all answers with its interval, and the signature of sacrebleu."""
    # By column: the first reference of each answer, the second … Where an answer has no more it
    # must be None: "" would be a reference of length 0.
    columns = list(zip_longest(*known))
    score = metric.corpus_score(answers, columns).score
    # (answers, counts of n-grams): the score of a resample follows from the sum of its rows
    parts = np.array(metric._extract_corpus_statistics(answers, columns), dtype=float)
    draws = np.random.default_rng(0).integers(len(answers), size=(BLEU_RESAMPLES, len(answers)))
    scores = []
    for draw in draws:
        counts = parts[draw].sum(axis=0).tolist()
        scores.append(metric._compute_score_from_stats(counts).score)
    low = high = None
    if np.ptp(scores) > 1e-9:
        low, high = np.percentile(scores, LIMITS_95).tolist()
    return Estimate(float(score), low, high, len(answers)), str(metric.get_signature())


def distinct_share(answers: Sequence[str], n: int) -> float | None:
    """Different n-grams within the answers ÷ all their words, in lower case (Li et al. 2016).

    None without a word. Many programs divide by the number of n-grams. It falls as texts grow:
    compare equal amounts of text only.
    """
    tokenizer = _WordTokenizer()
    # n-grams do not reach from one answer into the next
    grams = set()
    total = 0
    for answer in answers:
        words = tokenizer.tokenize(answer)
        total += len(words)
        grams.update(tuple(words[i : i + n]) for i in range(len(words) - n + 1))
    return len(grams) / total if total else None
