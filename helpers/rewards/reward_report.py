"""How good is a reward model, and does it look? Figures of held-out pairs beside what needs no model.

Every figure is a function of a list of scores for each record, wherever those come from: a reward
model, a rule, a judge, a file. Pairs that a model scores equally count as half a hit. Taught in
notebook 03.

Simplification: intervals and tests take pairs as independent, though those of one image share it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from helpers.data import PreferenceRecord, blind_values
from helpers.files import UsageError, open_image
from helpers.statistics import Proportion, binomial_p, derangement, proportion

from .reward_model import RecordScores, pair_gaps, pair_hits


def rule_scores(records: Sequence[PreferenceRecord], rule: str) -> list[list[float]]:
    """Scores by a rule of `blind_values`, such as "shorter" or "shown first", which never sees the image."""
    return [
        [blind_values(a.text, (), place)[rule] for place, a in enumerate(record.answers)]
        for record in records
    ]


def other_images(
    records: Sequence[PreferenceRecord], condition: str, seed: int = 0
) -> list[list[Path | Image.Image]]:
    """For each record another record's images ("shuffled": never the same ones), or grey ones ("blank")."""
    own = [record.image_paths for record in records]
    if condition == "blank":
        return [
            [Image.new("RGB", open_image(image).size, (127, 127, 127)) for image in row]
            for row in own
        ]
    if condition != "shuffled":
        raise ValueError(f"unknown condition {condition!r}: choose shuffled or blank")
    distinct = sorted(set(map(tuple, own)))
    partner = dict(
        zip(distinct, (distinct[i] for i in derangement(len(distinct), seed)), strict=True)
    )
    return [list(partner[tuple(row)]) for row in own]


def paired_p(first: np.ndarray, second: np.ndarray) -> float:
    """Exact two-sided McNemar test of the hits of two models on the same pairs (ties of one count as no win)."""
    wins, losses = int((first > second).sum()), int((first < second).sum())
    return binomial_p(wins, wins + losses, 0.5) if wins + losses else 1.0


def calibration_error(
    gaps: np.ndarray, bins: int = 10
) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), and (confidence, accuracy, n) of each bin.

    A pair's confidence is σ(|gap|), ½ … 1, in bins of equal width; the error is the mean of
    |accuracy − confidence| over the bins, weighted by their pairs.
    """
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    places = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    rows = []
    for place in range(bins):
        inside = places == place
        if inside.any():
            rows.append(
                (
                    float(confidence[inside].mean()),
                    float(pair_hits(gaps)[inside].mean()),
                    int(inside.sum()),
                )
            )
    return sum(abs(a - c) * n for c, a, n in rows) / len(gaps), rows


@dataclass(frozen=True)
class RewardReport:
    """What the scores of one model say on `records`. `scores` maps "right", "shuffled", "blank" to scores."""

    name: str
    records: Sequence[PreferenceRecord]
    scores: Mapping[str, RecordScores]
    baselines: Mapping[str, RecordScores] = field(
        default_factory=dict
    )  # a random head, a text-only twin, …

    def __post_init__(self) -> None:
        if not len(self.gaps()):
            raise UsageError(
                f"{self.name}: the records hold no pair of a better and a worse answer."
            )

    def gaps(self, condition: str = "right") -> np.ndarray:
        return pair_gaps(self.records, self.scores[condition])

    def accuracy(
        self, condition: str = "right", where: np.ndarray | None = None
    ) -> Proportion | None:
        """Share of the pairs that are right, of all or of those in `where`, (pairs,) bool; None without any."""
        found = pair_hits(self.gaps(condition))
        found = found if where is None else found[where]
        return proportion(float(found.sum()), len(found)) if len(found) else None

    @property
    def kinds(self) -> np.ndarray:
        """Origin of the worse answer of each pair, (pairs,) str."""
        return np.array(
            [r.answers[w].origin or "unknown" for r in self.records for _, w in r.tier_pairs()]
        )

    def accuracy_by_kind(self, condition: str = "right") -> dict[str, Proportion]:
        return {
            kind: self.accuracy(condition, self.kinds == kind)
            for kind in sorted(set(self.kinds.tolist()))
        }

    @property
    def macro(self) -> float:
        """Mean of the accuracies by kind, each kind counting the same."""
        return float(np.mean([share.value for share in self.accuracy_by_kind().values()]))

    @property
    def negative_log_likelihood(self) -> float:
        """Mean of −log σ(gap); ln 2 = 0.6931 for scores that say nothing."""
        return float(np.logaddexp(0, -self.gaps()).mean())

    def accuracy_by_length(self) -> dict[str, Proportion | None]:
        """Accuracy where the better answer is longer, shorter, or as long, in characters."""
        pairs = [
            (len(r.answers[b].text), len(r.answers[w].text))
            for r in self.records
            for b, w in r.tier_pairs()
        ]
        difference = np.subtract(*np.array(pairs).T)
        where = {"longer": difference > 0, "shorter": difference < 0, "as long": difference == 0}
        return {name: self.accuracy(where=mask) for name, mask in where.items()}

    @property
    def length_correlation(self) -> float:
        """Spearman's ρ of score and length over all answers; nan where all are as long."""
        lengths = [len(answer.text) for record in self.records for answer in record.answers]
        flat = [value for row in self.scores["right"] for value in row]
        constant = len(set(lengths)) < 2 or len(set(flat)) < 2
        return float("nan") if constant else float(spearmanr(flat, lengths).statistic)

    def compare_with(self, scores: RecordScores) -> tuple[Proportion, float]:
        """Accuracy of other scores on the same pairs, and p of the paired test of the model against them."""
        own, other = pair_hits(self.gaps()), pair_hits(pair_gaps(self.records, scores))
        return proportion(float(other.sum()), len(other)), paired_p(own, other)

    def rivals(self) -> dict[str, tuple[Proportion, float]]:
        """Accuracy of every baseline on the same pairs, and p of the paired test of the model against it."""
        rules = {
            name: rule_scores(self.records, name) for name in ("shown first", "shorter", "longer")
        }
        return {
            name: self.compare_with(scores) for name, scores in {**rules, **self.baselines}.items()
        }

    def rows(self) -> list[list[str]]:
        """The report as a table, the head first."""
        own = pair_hits(self.gaps())
        rows = [
            ["", "accuracy", "p against the model"],
            [f"{self.name}, right image", str(self.accuracy()), ""],
        ]
        for condition in self.scores:
            if condition != "right":
                p = paired_p(own, pair_hits(self.gaps(condition)))
                rows.append(
                    [f"{self.name}, {condition} image", str(self.accuracy(condition)), f"{p:.2g}"]
                )
        rows += [[name, str(share), f"{p:.2g}"] for name, (share, p) in self.rivals().items()]
        rows += [
            [f"worse answer: {kind}", str(share), ""]
            for kind, share in self.accuracy_by_kind().items()
        ]
        lengths = self.accuracy_by_length()
        rows += [
            [f"better answer {name}", str(share), ""] for name, share in lengths.items() if share
        ]
        return rows

    def sentences(self) -> list[str]:
        """What the figures mean, in words; the bad news first."""
        own, said = pair_hits(self.gaps()), []
        for name, (share, p) in self.rivals().items():
            if p > 0.05 or share.value >= own.mean():
                said.append(
                    f"{self.name} is no better than {name!r} ({share.value:.3f}, p = {p:.2g}): do not use it."
                )
        if "shuffled" in self.scores:
            p, shuffled = paired_p(own, pair_hits(self.gaps("shuffled"))), self.accuracy("shuffled")
            if p > 0.05 or shuffled.value >= own.mean():
                said.append(
                    f"{self.name} does not use the image: with another one it is right in {shuffled}, p = {p:.2g}."
                )
            elif shuffled.low > 0.5:
                said.append(
                    f"With another image it is still right in {shuffled}: part of it is done without looking."
                )
        error, _ = calibration_error(self.gaps())
        said.append(
            f"{self.name}: {self.accuracy()} of the pairs, macro {self.macro:.3f}; mean margin {self.gaps().mean():.2f}, "
            f"negative log-likelihood {self.negative_log_likelihood:.3f}, calibration error {error:.3f}, "
            f"correlation with length {self.length_correlation:+.2f}."
        )
        return said


def swap_answers(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """The records with their answers in the opposite order: a reward model's scores must follow the answers."""
    result = []
    for record in records:
        last = len(record.answers) - 1
        ranking = record.ranking and [[last - place for place in tier] for tier in record.ranking]
        update = {"answers": record.answers[::-1], "ranking": ranking, "judgements": []}
        result.append(record.model_copy(update=update))
    return result
