"""How good is a reward model, and does it look? Figures of held-out pairs beside rules.

Every figure is a function of a list of scores for each record, wherever those come from: a reward
model, a rule, a judge, a file. Pairs that a model scores equally count as half a hit. Taught in
notebook 03.

Simplification: intervals and tests take pairs as independent, though those of one image share it.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.stats import spearmanr

from helpers.data import PreferenceRecord, blind_record_values
from helpers.files import UsageError, open_image
from helpers.statistics import Proportion, derangement, mcnemar_p, share_of

from .reward_model import RecordScores, pair_gaps, pair_hits

CONFIDENCE_BINS = 10  # of equal width, from ½ to 1
SURE = 0.05  # p of a difference that is taken for one


def rule_scores(records: Sequence[PreferenceRecord], rule: str) -> list[list[float]]:
    """Score answers by a rule of `blind_values`, such as "shorter" or "shown first"."""
    scores = []
    for record in records:
        scores.append([value[rule] for value in blind_record_values(record)])
    return scores


def other_images(
    records: Sequence[PreferenceRecord],
    condition: str,
    seed: int = 0,
) -> list[list[Path | Image.Image]]:
    """For each record another record's images ("shuffled": never the same ones), or grey ones.

    condition: "shuffled" or "blank".
    """
    own = [record.image_paths for record in records]
    if condition == "blank":
        return [list(map(_grey_image, row)) for row in own]
    if condition != "shuffled":
        raise ValueError(f"unknown condition {condition!r}: choose shuffled or blank")
    # whole sets of images change places, so that records of one photo get the same other one
    distinct = sorted(set(map(tuple, own)))
    order = derangement(len(distinct), seed)
    partner = {row: distinct[other] for row, other in zip(distinct, order, strict=True)}
    return [list(partner[tuple(row)]) for row in own]


def _grey_image(path: Path) -> Image.Image:
    """A grey image of the size of another one."""
    return Image.new("RGB", open_image(path).size, (127, 127, 127))


def paired_p(first: np.ndarray, second: np.ndarray) -> float:
    """Test the hits of two models on the same pairs: exact, two-sided McNemar.

    Ties of one model count as no win.
    """
    return mcnemar_p(first > second, first < second)


def calibration_error(gaps: np.ndarray) -> tuple[float, list[tuple[float, float, int]]]:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599), and the bins it is made of.

    A bin is (confidence, accuracy, n). A pair's confidence is σ(|gap|), ½ … 1; the error is the
    mean of |accuracy − confidence| over the bins, weighted by their pairs.
    """
    # ½ for a tie, 1 for a large gap
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    hits = pair_hits(gaps)
    bins = ((confidence - 0.5) * 2 * CONFIDENCE_BINS).astype(int)
    # a confidence of exactly 1 belongs to the last bin
    bins = np.minimum(bins, CONFIDENCE_BINS - 1)
    rows = []
    for place in np.unique(bins):
        inside = bins == place
        rows.append(
            (
                float(confidence[inside].mean()),
                float(hits[inside].mean()),
                int(inside.sum()),
            )
        )
    error = sum(abs(accuracy - sure) * n for sure, accuracy, n in rows)
    return error / len(gaps), rows


@dataclass(frozen=True)
class RewardReport:
    """What the scores of one model say on `records`.

    `scores` maps "right", "shuffled", "blank" to scores.
    """

    name: str
    records: Sequence[PreferenceRecord]
    scores: Mapping[str, RecordScores]
    # a random head, a text-only twin, …
    baselines: Mapping[str, RecordScores] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.gaps()):
            raise UsageError(
                f"{self.name}: the records hold no pair of a better and a worse answer."
            )

    def gaps(self, condition: str = "right") -> np.ndarray:
        """Score of the better minus score of the worse answer of each pair, (pairs,)."""
        return pair_gaps(self.records, self.scores[condition])

    def hits(self, condition: str = "right") -> np.ndarray:
        """1 where the better answer has the higher score, ½ for a tie, else 0, (pairs,)."""
        return pair_hits(self.gaps(condition))

    def accuracy(self, condition: str = "right") -> Proportion:
        """Share of the pairs that are right."""
        return share_of(self.hits(condition))

    def accuracy_by_kind(self, condition: str = "right") -> dict[str, Proportion]:
        """Accuracy by the origin of the worse answer."""
        # one kind a pair, in the order of the gaps
        kinds = []
        for record in self.records:
            kinds += [record.answers[w].origin or "unknown" for _, w in record.tier_pairs()]
        hits = self.hits(condition)
        return {kind: share_of(hits[np.array(kinds) == kind]) for kind in sorted(set(kinds))}

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
        difference = pair_gaps(self.records, rule_scores(self.records, "longer"))
        hits = self.hits()
        return {
            "longer": share_of(hits[difference > 0]),
            "shorter": share_of(hits[difference < 0]),
            "as long": share_of(hits[difference == 0]),
        }

    @property
    def length_correlation(self) -> float:
        """Spearman's ρ of score and length over all answers; nan where all are as long."""
        lengths = np.concatenate(rule_scores(self.records, "longer"))
        scores = np.concatenate(self.scores["right"])
        if np.ptp(lengths) == 0 or np.ptp(scores) == 0:
            return math.nan
        return float(spearmanr(scores, lengths).statistic)

    def compare_with(self, scores: RecordScores) -> tuple[Proportion, float]:
        """Accuracy of other scores on the same pairs, and p of the paired test of the two."""
        other = pair_hits(pair_gaps(self.records, scores))
        return share_of(other), paired_p(self.hits(), other)

    def rivals(self) -> dict[str, tuple[Proportion, float]]:
        """`compare_with` of the blind rules and of every baseline."""
        found = {}
        for rule in ("shown first", "shorter", "longer"):
            found[rule] = self.compare_with(rule_scores(self.records, rule))
        for name, scores in self.baselines.items():
            found[name] = self.compare_with(scores)
        return found

    def rows(self) -> list[list[str]]:
        """The report as a table, the head first."""
        rows = [
            ["", "accuracy", "p against the model"],
            [f"{self.name}, right image", str(self.accuracy()), ""],
        ]
        # the same model with other images, then what needs no model
        compared = {}
        for condition, scores in self.scores.items():
            if condition != "right":
                compared[f"{self.name}, {condition} image"] = self.compare_with(scores)
        for name, (share, p) in {**compared, **self.rivals()}.items():
            rows.append([name, str(share), f"{p:.2g}"])
        # the parts of the model's own accuracy
        for kind, share in self.accuracy_by_kind().items():
            rows.append([f"worse answer: {kind}", str(share), ""])
        for name, share in self.accuracy_by_length().items():
            if share:
                rows.append([f"better answer {name}", str(share), ""])
        return rows

    def sentences(self) -> list[str]:
        """What the figures mean, in words; the bad news first."""
        said = []
        # what needs no model must be beaten
        own = self.accuracy().value
        for name, (share, p) in self.rivals().items():
            if p > SURE or share.value >= own:
                said.append(
                    f"{self.name} is no better than {name!r} "
                    f"({share.value:.3f}, p = {p:.2g}): do not use it."
                )
        # and other images must do harm
        if "shuffled" in self.scores:
            said += self._say_whether_it_looks(own)
        error, _ = calibration_error(self.gaps())
        said.append(
            f"{self.name}: {self.accuracy()} of the pairs, macro {self.macro:.3f}; "
            f"mean margin {self.gaps().mean():.2f}, "
            f"negative log-likelihood {self.negative_log_likelihood:.3f}, "
            f"calibration error {error:.3f}, "
            f"correlation with length {self.length_correlation:+.2f}."
        )
        return said

    def _say_whether_it_looks(self, own: float) -> list[str]:
        """What the scores with other images say; `own`: accuracy with the right ones."""
        share, p = self.compare_with(self.scores["shuffled"])
        if p > SURE or share.value >= own:
            return [
                f"{self.name} does not use the image: "
                f"with another one it is right in {share}, p = {p:.2g}."
            ]
        if share.low > 0.5:
            return [
                f"With another image it is still right in {share}: "
                "part of it is done without looking."
            ]
        return []


def swap_answers(records: Sequence[PreferenceRecord]) -> list[PreferenceRecord]:
    """The records with their answers in the opposite order.

    A reward model's scores must follow the answers.
    """
    swapped = []
    for record in records:
        last = len(record.answers) - 1
        # the same answers in each tier, at their new places
        tiers = record.ranking and [(last - np.array(tier)).tolist() for tier in record.ranking]
        update = {"answers": record.answers[::-1], "ranking": tiers, "judgements": []}
        swapped.append(record.model_copy(update=update))
    return swapped
