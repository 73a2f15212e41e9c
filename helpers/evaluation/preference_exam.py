"""Held-out pairs: does a policy prefer what people preferred, and does it look at the image for it?

What can be said where nobody knows a truth. Two figures for every policy, of pairs of photos that
it was not trained on:

    DPO margin        does the chosen answer gain more log-probability over the base than the
                      rejected one? This is what DPO trains; the base itself has no gain
    log-probability   is the chosen answer the likelier one, as it is? A short answer is likelier
                      than a long one, whatever it says; the base has this figure, too

Both stand beside the best rule that sees no image (`helpers/data/blind.py`) and beside themselves
with the images of other photos. All pairs of one photo count as one in intervals and tests. Taught
in notebooks 04 and 07.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from helpers.data import PreferenceRecord, best_rule, blind_rules
from helpers.models import BASE_POLICY, Packer, Policies
from helpers.rewards import RecordScores, other_images, pair_gaps, pair_hits, rule_scores
from helpers.statistics import (
    SIGNIFICANCE_LEVEL,
    Estimate,
    TableRows,
    clustered_share,
    format_figure,
    sign_flip_p,
)

from .pair_accuracy import record_logps
from .paired import Metric, PolicyComparison, compare_policies, power_note

Measure = Literal["DPO margin", "log-probability"]
MEASURES: tuple[Measure, ...] = ("DPO margin", "log-probability")
PAIR_COLUMNS = [
    "model",
    "prefers the chosen answer by",
    "accuracy [95 %]",
    "images of other photos [95 %]",
    "difference to the base [95 %]",
    "p (Holm)",
    "so",
]


def photo_of(record: PreferenceRecord) -> str:
    """Name what a record shares with others about the same photo: the clusters of a test."""
    return record.group or "|".join(record.images)


@dataclass(frozen=True)
class PreferenceExam:
    """Log-probabilities of all answers of some held-out records, by model, the base among them.

    shuffled: the same with the images of other photos; empty if that was not asked, or if there is
    one photo only. rule: the blind rule to compare with; None without a pair. rule_chosen_here: it
    is the best on these very pairs, since none were given to choose it on. stopped: these pairs
    also said when to stop the training, or which setting to take.
    """

    records: Sequence[PreferenceRecord]
    logps: Mapping[str, RecordScores]
    shuffled: Mapping[str, RecordScores]
    rule: str | None
    rule_chosen_here: bool
    stopped: bool

    @cached_property
    def photos(self) -> list[str]:
        """The photo of each pair."""
        photos = []
        for record in self.records:
            photos += [photo_of(record)] * len(list(record.tier_pairs()))
        return photos

    @property
    def policies(self) -> list[str]:
        return [name for name in self.logps if name != BASE_POLICY]

    def hits(self, name: str, measure: Measure, shuffled: bool = False) -> np.ndarray:
        """1 where the model prefers the chosen answer, ½ where it is undecided, else 0; (pairs,).

        shuffled: with the images of other photos.
        """
        # the base's log-probabilities are those with the same images
        logps = self.shuffled if shuffled else self.logps
        gaps = pair_gaps(self.records, logps[name])
        if measure == "DPO margin":
            # (chosen − base chosen) − (rejected − base rejected)
            gaps = gaps - pair_gaps(self.records, logps[BASE_POLICY])
        return pair_hits(gaps)

    def accuracy(self, name: str, measure: Measure, shuffled: bool = False) -> Estimate | None:
        """The share of the pairs; None without a pair."""
        return clustered_share(self.hits(name, measure, shuffled), self.photos)

    def rule_hits(self) -> np.ndarray:
        return pair_hits(pair_gaps(self.records, rule_scores(self.records, self.rule)))

    @cached_property
    def comparisons(self) -> list[PolicyComparison]:
        """Every policy against the base, which is judged by its log-probabilities both times."""
        if not self.photos:
            return []
        before = self.hits(BASE_POLICY, "log-probability")
        # the base has no margin of its own: it is judged by what it finds likelier
        metrics = []
        for measure in MEASURES:
            values = {BASE_POLICY: _right_or_wrong(before)}
            for name in self.policies:
                values[name] = _right_or_wrong(self.hits(name, measure))
            metrics.append(Metric(measure, values))
        return compare_policies(metrics, self.photos)

    # --- the table ---

    def rows(self) -> TableRows:
        """The table, the head first; without a pair the head alone."""
        if not self.photos:
            return [PAIR_COLUMNS]
        # the base, two rows a policy, and what needs no model
        base = self._shares(BASE_POLICY, "log-probability")
        rows = [PAIR_COLUMNS, [BASE_POLICY, "log-probability", *base, "", "", ""]]
        for row in self.comparisons:
            shares = self._shares(row.policy, row.metric)
            found = [row.difference.short_text(), f"{row.adjusted:.2g}", row.verdict]
            rows.append([row.policy, row.metric, *shares, *found])
        share = clustered_share(self.rule_hits(), self.photos)
        # a rule sees no image, so there is none to exchange, and it is no policy to compare
        rule = ["no model", f"rule {self.rule!r}", share.short_text()]
        rows.append([*rule, "", "", "", ""])
        return rows

    def _shares(self, name: str, measure: Measure) -> list[str]:
        """Accuracy with the right images and with those of others, as texts."""
        texts = [self.accuracy(name, measure).short_text()]
        if not self.shuffled:
            return [*texts, ""]
        other = self.accuracy(name, measure, shuffled=True)
        return [*texts, other.short_text()]

    # --- the words ---

    def conclusions(self) -> list[str]:
        """One sentence a policy."""
        # the margin is what DPO trains; the sentence has the log-probability, too
        said = []
        for row in self.comparisons:
            if row.metric == "DPO margin":
                said.append(self._say_accuracy(row))
        return said

    def sentences(self) -> list[str]:
        """What the table allows to say, the most important first."""
        if not self.photos:
            return ["There is no held-out pair of a better and a worse answer: none can be judged."]
        # what each policy reached, then what takes it back
        photos = len(set(self.photos))
        said = self.conclusions()
        for name in self.policies:
            said.append(self._say_rule(name))
            if self.shuffled:
                said.append(self._say_whether_it_looks(name))
        if not self.shuffled:
            said.append("Images were not exchanged: that needs held-out pairs of two photos.")
        if self.stopped:
            said.append(
                "These are the pairs that also stopped the training, since there are too few "
                "photos for a test split: read the figures as the best case."
            )
        said.append(power_note(photos, self.comparisons))
        return said

    def _say_accuracy(self, row: PolicyComparison) -> str:
        margin = self.accuracy(row.policy, "DPO margin")
        plain = self.accuracy(row.policy, "log-probability")
        base = self.accuracy(BASE_POLICY, "log-probability")
        pairs = f"{len(self.photos)} held-out pairs ({len(set(self.photos))} photos)"
        return (
            f"{row.policy} prefers the chosen answer more than the base does in "
            f"{margin.short_text()} of {pairs}, and finds it the likelier one in "
            f"{plain.short_text()} (base {base.short_text()}); against the base p = "
            f"{row.adjusted:.2g}: {row.verdict}."
        )

    def _say_rule(self, name: str) -> str:
        hits = self.hits(name, "DPO margin")
        other = self.rule_hits()
        share = format_figure(clustered_share(other, self.photos).short_text())
        # a rule without eyes must be beaten
        p = sign_flip_p(hits - other, self.photos)
        found = "it cannot be shown that the policy is better than that"
        if p < SIGNIFICANCE_LEVEL:
            found = "the policy is better" if hits.mean() > other.mean() else "the policy is WORSE"
        where = " (the best of them on these very pairs)" if self.rule_chosen_here else ""
        return (
            f"The rule {self.rule!r}{where}, which sees no image, gets {share} of them: {found} "
            f"({name}, p = {p:.2g})."
        )

    def _say_whether_it_looks(self, name: str) -> str:
        right = self.hits(name, "DPO margin")
        wrong = self.hits(name, "DPO margin", shuffled=True)
        # other images must do harm
        p = sign_flip_p(right - wrong, self.photos)
        share = self.accuracy(name, "DPO margin", shuffled=True).short_text()
        found = "it cannot be shown that its preferences come from the image"
        if p < SIGNIFICANCE_LEVEL and right.mean() > wrong.mean():
            found = "its preferences come from the image, at least in part"
        return f"{name} with the images of other photos: {share} (p = {p:.2g}): {found}."


def _right_or_wrong(hits: np.ndarray) -> np.ndarray:
    """The hits as bool, which allows McNemar's test, if none is a tie."""
    return hits if (hits == 0.5).any() else hits > 0


def examine_preferences(
    policies: Policies,
    names: Sequence[str],
    records: Sequence[PreferenceRecord],
    *,
    trained_on: Sequence[PreferenceRecord] = (),
    shuffle: bool = True,
    stopped: bool = False,
) -> PreferenceExam:
    """Ask the base and the policies `names` for the log-probability of every answer.

    records: of photos that were not trained on; of several images and turns, too. trained_on:
    records on which the blind rule to compare with is chosen. shuffle: ask a second time with the
    images of other photos. stopped: as in `PreferenceExam`.
    """
    asked = [record for record in records if any(record.tier_pairs())]
    distinct = {tuple(record.images) for record in asked}
    names = list(dict.fromkeys([BASE_POLICY, *names]))
    exchanged = other_images(asked, "shuffled") if shuffle and len(distinct) > 1 else None
    logps: dict[str, RecordScores] = {}
    shuffled: dict[str, RecordScores] = {}
    packs = None
    # without a pair no model is asked
    for name in names if asked else ():
        with policies.use_policy(name) as model:
            # features of all held-out images would fill the memory
            packer = Packer(model, policies.processor, packs=packs, keeps_features=False)
            packs = packer.packs
            logps[name] = record_logps(packer, asked)
            if exchanged is not None:
                shuffled[name] = record_logps(packer, asked, exchanged)
    # a rule that is the best of several on the pairs it is judged by looks better than it is
    table = blind_rules(trained_on)
    rule_chosen_here = not table
    table = table or blind_rules(asked)
    rule = best_rule(table)[0] if table else None
    return PreferenceExam(asked, logps, shuffled, rule, rule_chosen_here, stopped)
