"""How far is a judge to be trusted? Its verdicts beside what is known, and beside blind rules.

The pairs are those of records that people or the truth have ranked. A judge earns its place if it
agrees with them better than chance *and* better than the best rule that never looks ("the longer
one"); otherwise its verdicts would teach a policy to write longer answers. Taught in notebook 03.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from helpers.data import (
    PreferenceRecord,
    conversation_text,
    is_first_shown_second,
    tasks_of,
)
from helpers.files import UsageError
from helpers.rewards import (
    Ranker,
    RankingCost,
    pair_gaps,
    pair_hits,
    paired_p,
    rule_scores,
)
from helpers.statistics import (
    SIGNIFICANCE_LEVEL,
    Estimate,
    Kappa,
    TableRows,
    clustered_share,
    cohen_kappa,
)

# Rules that need nothing but the words and the place of an answer, and those of counts
BLIND_RULES = (
    "longer",
    "shorter",
    "shown first",
    "shown last",
    "smaller total",
    "larger total",
    "more zeros",
)


@dataclass(frozen=True)
class JudgeExam:
    """What a ranker's verdicts on known pairs say about it."""

    name: str
    agreement: Estimate  # share of the pairs; an abstention counts ½; the interval is over photos
    decided: Estimate  # share of the pairs about which it says something
    kappa: Kappa | None  # of the pairs that it decides; None: there is none
    best_rule: str
    rule_agreement: Estimate
    p: float  # exact McNemar test of the judge against that rule, on the same pairs
    remarks: Sequence[str]  # of a judge that is asked: its position bias, what it says unreadably
    cost: RankingCost

    @property
    def is_trusted(self) -> bool:
        """Does it agree better than chance, and better than every blind rule?"""
        better = self.agreement.value > self.rule_agreement.value
        return self.agreement.low > 0.5 and better and self.p < SIGNIFICANCE_LEVEL

    def rows(self) -> TableRows:
        """The table, the head first."""
        return [
            ["", "agrees with what is known [95 %]", "decides", "κ"],
            [self.name, str(self.agreement), self.decided.short_text(), str(self.kappa or "none")],
            [f"the rule {self.best_rule!r}", str(self.rule_agreement), "", ""],
        ]

    def sentences(self) -> list[str]:
        """What this allows to say; whether its verdicts may be used comes first."""
        against = (
            f"{self.name} agrees in {self.agreement}, the blind rule {self.best_rule!r} in "
            f"{self.rule_agreement} of the same pairs (p = {self.p:.2g})"
        )
        if self.is_trusted:
            said = [f"{against}: its verdicts can be used."]
        else:
            said = [f"⚠️ {against}: do not use its verdicts, they are no better than a blind rule."]
        return [*said, *self.remarks, f"{self.name} has cost {self.cost}."]


def examine_judge(records: Sequence[PreferenceRecord], ranker: Ranker) -> JudgeExam:
    """Compare a ranker with the rankings of records, pair by pair.

    Raises UsageError if no answer of any record is known to be better than another.
    """
    judged = [record for record in records if record.pairs()]
    if not judged:
        raise UsageError(
            "the records hold no pair of a better and a worse answer: nothing to examine a judge "
            "by."
        )
    answers = []
    for record in judged:
        answers.append([answer.text for answer in record.answers])
    tasks = tasks_of(judged)
    # higher is better, as scores are
    scores = []
    for ranked, texts in zip(ranker.rank(tasks, answers), answers, strict=True):
        scores.append(ranked.values(len(texts)))
    # above 0 where the judge prefers the better answer, 0 where it abstains
    gaps = pair_gaps(judged, scores)
    hits = pair_hits(gaps)
    # pairs of one photo are no independent evidence
    photos = []
    for task, record in zip(tasks, judged, strict=True):
        photos += [task.photo] * len(list(record.tier_pairs()))
    best_rule, rule_hits = _best_rule(judged)
    decided = gaps != 0
    return JudgeExam(
        name=ranker.name,
        agreement=clustered_share(hits, photos),
        decided=clustered_share(decided.astype(float), photos),
        kappa=_kappa(judged, gaps, photos),
        best_rule=best_rule,
        rule_agreement=clustered_share(rule_hits, photos),
        p=paired_p(hits, rule_hits),
        remarks=ranker.sentences(),
        cost=ranker.cost,
    )


def _best_rule(records: Sequence[PreferenceRecord]) -> tuple[str, np.ndarray]:
    """The blind rule that is right in most pairs, and its hits."""
    hits = {rule: pair_hits(pair_gaps(records, rule_scores(records, rule))) for rule in BLIND_RULES}
    best = max(hits, key=lambda rule: hits[rule].mean())
    return best, hits[best]


def _kappa(
    records: Sequence[PreferenceRecord], gaps: np.ndarray, photos: Sequence[str]
) -> Kappa | None:
    """Cohen's κ on the pairs that are decided; which answer is "A" follows from the texts."""
    # a coin that only the texts decide, so that both labels are as frequent
    known = []
    for record in records:
        question = conversation_text(record.prompt)
        for better, worse in record.tier_pairs():
            texts = record.answers[better].text, record.answers[worse].text
            known.append("B" if is_first_shown_second(question + texts[0], texts[1]) else "A")
    other = {"A": "B", "B": "A"}
    # labels of what is known and of the judge, without its abstentions
    first = []
    second = []
    groups = []
    for label, gap, photo in zip(known, gaps, photos, strict=True):
        if gap:
            first.append(label)
            second.append(label if gap > 0 else other[label])
            groups.append(photo)
    return cohen_kappa(first, second, groups) if first else None
