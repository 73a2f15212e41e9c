"""Policies against the base, or against SFT, on the same items: what can be claimed, what not.

A metric that was a policy's training reward is *circular* for it: that it rose says that training
ran, not that answers became better. It is marked, and a table needs a metric beside it that is not.
Taught in notebook 07.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from helpers.files import UsageError
from helpers.models import BASE_POLICY
from helpers.statistics import (
    SIGNIFICANCE_LEVEL,
    Estimate,
    Proportion,
    TableRows,
    binomial_p,
    cluster_bootstrap,
    detectable_difference,
    holm_adjust,
    mcnemar_p,
    sign_flip_p,
)

# heads of the columns of `comparison_rows`
HEAD = [
    "policy",
    "metric",
    "before",
    "after",
    "difference [95 %]",
    "fixed / broken",
    "test",
    "p (Holm)",
    "so",
]


@dataclass(frozen=True)
class Metric:
    """What every model reached on the same items; (items,) each, bool for right or wrong."""

    name: str
    values: Mapping[str, np.ndarray]  # by model, the base among them
    rewards: tuple[str, ...] = ()  # names of the scorers that give this metric
    truth: bool = False  # does it compare answers with what is true?


@dataclass(frozen=True)
class PolicyComparison:
    """One policy by one metric against a baseline, whose figure is `before`."""

    policy: str
    metric: str
    before: float
    after: float
    difference: Estimate  # over clusters of items
    fixed: int | None  # wrong → right; None of a metric that is no right or wrong
    broken: int | None
    test: str
    p: float
    adjusted: float  # by Holm, over all rows of the table
    circular: bool
    truth: bool
    n: int
    baseline: str = BASE_POLICY

    @property
    def direction(self) -> int:
        """1 better, −1 worse, 0 no difference can be claimed."""
        if self.adjusted >= SIGNIFICANCE_LEVEL:
            return 0
        return 1 if self.difference.value > 0 else -1

    @property
    def verdict(self) -> str:
        words = {1: "better", -1: "WORSE", 0: "no difference can be claimed"}[self.direction]
        return f"{words} (circular: the training reward)" if self.circular else words

    def __str__(self) -> str:
        items = "" if self.fixed is None else f"; {self.fixed} fixed, {self.broken} broken"
        who = self.policy
        if self.baseline != BASE_POLICY:
            who = f"{self.policy} against {self.baseline}"
        return (
            f"{who}, {self.metric}: {self.before:.3f} before → {self.after:.3f} after, "
            f"difference {self.difference.short_text()} (n = {self.n}){items}, "
            f"{self.test} p = {self.adjusted:.2g}: {self.verdict}."
        )


def compare_policies(
    metrics: Sequence[Metric],
    clusters: Sequence[str],
    rewards: Mapping[str, str | None] | None = None,
    baseline: str = BASE_POLICY,
) -> list[PolicyComparison]:
    """Every policy against a baseline by every metric, the p-values adjusted for all (Holm 1979).

    baseline: the base, or another of the models, such as "sft/seed-0"; then the base and what is of
    the same stage, its other seeds, are no rows.
    clusters: of each item, what it shares with others (its photo). rewards: the scorer that each
    policy was trained with, as `about.json` says. Right or wrong is tested by exact McNemar where
    all clusters are single items; everything else by turning the signs of whole clusters at random
    (Fisher 1935; 9,999 draws, seed 0). Raises UsageError if a policy has no metric that is not
    circular for it, or the lengths differ.
    """
    rewards = rewards or {}
    rows = []
    for metric in metrics:
        for policy, values in metric.values.items():
            if len(values) != len(clusters):
                raise UsageError(
                    f"{metric.name} of {policy}: {len(values)} values for {len(clusters)} items."
                )
            if policy != BASE_POLICY and _stage(policy) != _stage(baseline):
                circular = _is_circular(metric, rewards.get(policy))
                rows.append(_compare_policy(metric, policy, baseline, clusters, circular))
    # a policy that is only judged by what it was trained on would look good whatever it does
    for policy in {row.policy for row in rows}:
        if all(row.circular for row in rows if row.policy == policy):
            raise UsageError(
                f"{policy} is only judged by its own training reward, {rewards[policy]}. "
                "Add a metric that is not."
            )
    # Holm's family is the whole table: every policy by every metric
    adjusted = holm_adjust({str(number): row.p for number, row in enumerate(rows)})
    return [replace(row, adjusted=p) for row, p in zip(rows, adjusted.values(), strict=True)]


def _stage(policy: str) -> str:
    """ "dpo" of "dpo/seed-0"."""
    return policy.split("/")[0]


def _is_circular(metric: Metric, reward: str | None) -> bool:
    """Was the policy trained on this very metric, alone or as a part of a sum ("a+b")?"""
    parts = reward.split("+") if reward else []
    return any(part in metric.rewards for part in parts)


def _compare_policy(
    metric: Metric, policy: str, baseline: str, clusters: Sequence[str], circular: bool
) -> PolicyComparison:
    # (items,) each
    before = metric.values[baseline]
    after = metric.values[policy]
    fixed = broken = None
    if before.dtype == after.dtype == bool:
        fixed = int((~before & after).sum())
        broken = int((before & ~after).sum())
    # McNemar's test takes items as independent, which those of one photo are not
    if fixed is not None and len(set(clusters)) == len(clusters):
        test, p = "McNemar", mcnemar_p(before, after)
    else:
        test, p = "sign-flip", sign_flip_p(after * 1.0 - before, clusters)
    return PolicyComparison(
        policy,
        metric.name,
        float(before.mean()),
        float(after.mean()),
        cluster_bootstrap(before, after, clusters),
        fixed,
        broken,
        test,
        p,
        p,
        circular,
        metric.truth,
        len(after),
        baseline,
    )


def comparison_rows(rows: Sequence[PolicyComparison]) -> TableRows:
    """The comparisons for `report.table_html`, the head first."""
    lines = [HEAD]
    for row in rows:
        items = "" if row.fixed is None else f"{row.fixed} / {row.broken}"
        shares = [f"{row.before:.3f}", f"{row.after:.3f}", row.difference.short_text()]
        found = [items, row.test, f"{row.adjusted:.2g}", row.verdict]
        lines.append([row.policy, row.metric, *shares, *found])
    return lines


def find_reward_hacking(rows: Sequence[PolicyComparison]) -> list[str]:
    """A sentence for each policy whose training reward rose while a metric of truth fell.

    A reward that is itself the truth cannot be hacked.
    """
    found = []
    for policy in dict.fromkeys(row.policy for row in rows):
        # a reward that is the truth itself cannot rise while the truth falls
        own = [row for row in rows if row.policy == policy]
        risen = [row for row in own if row.circular and not row.truth and row.direction > 0]
        fallen = [row for row in own if row.truth and row.direction < 0]
        if risen and fallen:
            up, down = risen[0], fallen[0]
            found.append(
                f"{policy}: REWARD HACKING. {up.metric}, its training reward, rose from "
                f"{up.before:.3f} to {up.after:.3f} while {down.metric} fell from "
                f"{down.before:.3f} to {down.after:.3f}."
            )
    return found


def power_note(n: int, rows: Sequence[PolicyComparison] = ()) -> str:
    """Say which difference n items can show, if models disagree as much as here at most."""
    if n < 6:
        return (
            f"{n} items can show no difference: with fewer than 6, McNemar's p cannot be below "
            f"{SIGNIFICANCE_LEVEL}."
        )
    disagreements = [(row.fixed + row.broken) / row.n for row in rows if row.fixed is not None]
    most = max(disagreements, default=0)
    smallest = detectable_difference(n, most) if most else detectable_difference(n)
    here = f" if two models disagree on {most:.0%} of them, as here at most" if most else ""
    return (
        f"{n} items detect a difference of {smallest:.3f} with 80 % power{here}; "
        "a smaller one may exist and not show."
    )


def describe_sight(right_images: Proportion, shuffled: Proportion, chance: float | None) -> str:
    """Do the answers come from the image? Shares of right answers with right and other images.

    chance: probability that another question's truth is this one's (`Judge.chance`); None if the
    questions differ, so that a part may be known without an image.
    """
    if right_images.low <= shuffled.high:
        return "it cannot be shown that the answers depend on the image"
    if chance is None:
        return (
            f"it falls by {right_images.value - shuffled.value:.3f}, which the image gave; the "
            "rest can be answered without looking"
        )
    # shuffled images against chance: does nothing but the image tell the truth?
    p = binomial_p(round(shuffled.value * shuffled.n), shuffled.n, chance)
    if p >= SIGNIFICANCE_LEVEL:
        return "it falls to chance, so the answers come from the image"
    return f"it falls, but differs from chance (p = {p:.2g})"
