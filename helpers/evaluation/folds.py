"""Parts of a data set that share no photo, and what was learnt on one and judged on another.

Two parts (`halves`) give a reward model to train against and a second one to judge with. Several
parts give a cross-validation, for data of so few photos that none can be set aside for good: every
pair is judged by a reward model that has not seen its photo. What is judged so is the data and the
reward model: is there something in these pairs that carries over to other photos? A policy is not,
since training it once for each part takes that many times as long. Taught in notebooks 03 and 05.
"""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import ProcessorMixin

from helpers.config import RewardSettings
from helpers.data import PreferenceRecord, best_rule, blind_rules
from helpers.files import UsageError
from helpers.models import VLM
from helpers.rewards import (
    RecordScores,
    RewardModel,
    new_reward_model,
    pair_gaps,
    pair_hits,
    rule_scores,
    score_records,
)
from helpers.statistics import TableRows, clustered_share, sign_flip_p
from helpers.training import RewardTrainer

from .preference_exam import photo_of

FOLDS = 5  # parts of a cross-validation
FEW_PHOTOS = 30  # with fewer, there is no test split, and pairs are cross-validated


def photo_folds(
    records: Sequence[PreferenceRecord], number: int, seed: int = 0
) -> list[list[PreferenceRecord]]:
    """Deal the photos of `records` into `number` parts of nearly equal numbers of photos.

    Raises UsageError if there are fewer photos than parts.
    """
    photos = sorted({photo_of(record) for record in records})
    if len(photos) < number:
        raise UsageError(
            f"{len(photos)} photos cannot be dealt into {number} parts. Add photos, or ask for "
            "fewer parts."
        )
    # dealt in a random order, one photo after the other
    order = np.random.default_rng(seed).permutation(len(photos))
    part_of = {photos[place]: rank % number for rank, place in enumerate(order)}
    parts: list[list[PreferenceRecord]] = [[] for _ in range(number)]
    for record in records:
        parts[part_of[photo_of(record)]].append(record)
    return parts


def halves(
    records: Sequence[PreferenceRecord], seed: int = 0
) -> tuple[list[PreferenceRecord], list[PreferenceRecord]]:
    """Split records into two halves by photo: one to train against, one for a second judge."""
    first, second = photo_folds(records, 2, seed)
    return first, second


def train_judge(
    model: VLM,
    processor: ProcessorMixin,
    records: Sequence[PreferenceRecord],
    held_out: Sequence[PreferenceRecord],
    settings: RewardSettings,
    seed: int = 0,
    folder: Path | None = None,
) -> RewardModel:
    """Train a reward model on `model`, a base of its own; `held_out` says when to stop.

    folder: of its checkpoints. Raises UsageError for records without a pair.
    """
    reward = new_reward_model(model, processor, settings, seed)
    RewardTrainer(reward, records, held_out, settings, seed, folder).train()
    return reward


@dataclass(frozen=True)
class CrossValidation:
    """Scores of all answers by reward models that have not seen their photos."""

    records: Sequence[PreferenceRecord]
    scores: RecordScores
    folds: int

    @property
    def photos(self) -> list[str]:
        """The photo of each pair."""
        photos = []
        for record in self.records:
            photos += [photo_of(record)] * len(list(record.tier_pairs()))
        return photos

    def hits(self) -> np.ndarray:
        return pair_hits(pair_gaps(self.records, self.scores))

    def rows(self) -> TableRows:
        """The table, the head first."""
        # the reward models, and what needs none
        share = clustered_share(self.hits(), self.photos)
        rule, hits = self._rule()
        head = ["pairs of unseen photos", "accuracy [95 %]"]
        own = [f"reward model, {self.folds} folds", share.short_text()]
        return [head, own, [f"rule {rule!r}", clustered_share(hits, self.photos).short_text()]]

    def sentences(self) -> list[str]:
        """What was done, and what it allows to say."""
        share = clustered_share(self.hits(), self.photos)
        rule, hits = self._rule()
        # a rule that sees no image must be beaten
        p = sign_flip_p(self.hits() - hits, self.photos)
        better = p < 0.05 and self.hits().mean() > hits.mean()
        found = "more than" if better else "which cannot be shown to be more than"
        return [
            f"With fewer than {FEW_PHOTOS} photos there is no test split. So the pairs were "
            f"cross-validated: {self.folds} reward models, each trained without the photos that it "
            f"judges, get {share} of {len(self.photos)} pairs, {found} the rule {rule!r} gets "
            f"(p = {p:.2g}). This judges the data and the reward model, not a policy."
        ]

    def _rule(self) -> tuple[str, np.ndarray]:
        """The best blind rule on all pairs, and its hits."""
        rule = best_rule(blind_rules(self.records))[0]
        return rule, pair_hits(pair_gaps(self.records, rule_scores(self.records, rule)))


def cross_validate(
    load: Callable[[], tuple[VLM, ProcessorMixin]],
    records: Sequence[PreferenceRecord],
    settings: RewardSettings,
    folds: int = FOLDS,
    seed: int = 0,
) -> CrossValidation:
    """Train a reward model for each fold on all other folds, and let it score that one.

    load: gives a fresh base and its processor. A training takes as long as one of notebook 03 on as
    many records; all of its epochs are trained, since there is no pair left to stop it with. With
    fewer photos than folds there are as many folds as photos. Raises UsageError for one photo.
    """
    with_pairs = [record for record in records if any(record.tier_pairs())]
    photos = len({photo_of(record) for record in with_pairs})
    parts = photo_folds(with_pairs, max(2, min(folds, photos)), seed)
    # evaluated once, at the end, so that nothing is chosen by an evaluation
    settings = dataclasses.replace(settings, evaluations=1)
    # in the order of the folds, not of the records
    asked: list[PreferenceRecord] = []
    scores: list[list[float]] = []
    for number, part in enumerate(parts):
        others = []
        for other in parts[:number] + parts[number + 1 :]:
            others += other
        reward = train_judge(*load(), others, others[:1], settings, seed)
        asked += part
        scores += score_records(reward, part)
    return CrossValidation(asked, scores, len(parts))
