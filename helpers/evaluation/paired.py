"""Policies against the base on the same items: what can be claimed, and what cannot.

A metric that was a policy's training reward is *circular* for it: that it rose says that training ran, not that
answers became better. It is marked, and a table needs a metric beside it that is not. Taught in notebook 07.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import permutation_test

from helpers.files import UsageError
from helpers.models import BASE_POLICY
from helpers.statistics import (
    Estimate,
    Proportion,
    binomial_p,
    cluster_bootstrap,
    detectable_difference,
    holm_adjust,
    mcnemar_p,
)

SIGNIFICANCE_LEVEL = 0.05
CIRCULAR = "circular: the training reward"


@dataclass(frozen=True)
class Metric:
    """What every model reached on the same items; (items,) each, bool for right or wrong."""

    name: str
    values: Mapping[str, np.ndarray]  # by model, the base among them
    reward: str | None = None  # name of the scorer that gives this metric, if there is one
    truth: bool = False  # does it compare answers with what is true?


@dataclass(frozen=True)
class PolicyComparison:
    """One policy against the base by one metric."""

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

    @property
    def direction(self) -> int:
        """1 better, −1 worse, 0 no difference can be claimed."""
        return 0 if self.adjusted >= SIGNIFICANCE_LEVEL else 1 if self.difference.value > 0 else -1

    @property
    def verdict(self) -> str:
        words = {1: "better", -1: "WORSE", 0: "no difference can be claimed"}[self.direction]
        return f"{words} ({CIRCULAR})" if self.circular else words

    def __str__(self) -> str:
        items = "" if self.fixed is None else f"; {self.fixed} fixed, {self.broken} broken"
        return (
            f"{self.policy}, {self.metric}: {self.before:.3f} before → {self.after:.3f} after, difference "
            f"{self.difference.short_text()} (n = {self.n}){items}, {self.test} p = {self.adjusted:.2g}: "
            f"{self.verdict}."
        )


def compare_policies(
    metrics: Sequence[Metric],
    clusters: Sequence[str],
    rewards: Mapping[str, str | None] | None = None,
    base: str = BASE_POLICY,
) -> list[PolicyComparison]:
    """Every policy against `base` by every metric, the p-values adjusted for all of them (Holm 1979).

    clusters: of each item, what it shares with others (its photo). rewards: the scorer that each policy was
    trained with, as `about.json` says. Right or wrong is tested by exact McNemar where all clusters are single
    items; everything else by turning the signs of whole clusters at random (Fisher 1935; 9,999 draws, seed 0).
    Raises UsageError if a policy has no metric that is not circular for it, or the lengths differ.
    """
    rewards, rows = rewards or {}, []
    for metric in metrics:
        for policy, values in metric.values.items():
            if len(values) != len(clusters):
                raise UsageError(
                    f"{metric.name} of {policy}: {len(values)} values for {len(clusters)} items."
                )
            if policy != base:
                circular = metric.reward is not None and rewards.get(policy) == metric.reward
                rows.append(
                    _compare_policy(metric, policy, metric.values[base], values, clusters, circular)
                )
    for policy in {row.policy for row in rows}:
        if all(row.circular for row in rows if row.policy == policy):
            raise UsageError(
                f"{policy} is only judged by its own training reward, {rewards[policy]}. Add a metric that is not."
            )
    adjusted = holm_adjust({str(number): row.p for number, row in enumerate(rows)})
    return [replace(row, adjusted=adjusted[str(number)]) for number, row in enumerate(rows)]


def _compare_policy(
    metric: Metric,
    policy: str,
    before: np.ndarray,
    after: np.ndarray,
    clusters: Sequence[str],
    circular: bool,
) -> PolicyComparison:
    binary = before.dtype == after.dtype == bool
    single = len(set(clusters)) == len(clusters)
    fixed, broken = (
        (int((~before & after).sum()), int((before & ~after).sum())) if binary else (None, None)
    )
    test = "McNemar" if binary and single else "sign-flip"
    p = (
        mcnemar_p(before, after)
        if test == "McNemar"
        else _sign_flip_p(after * 1.0 - before, clusters)
    )
    difference = cluster_bootstrap(before, after, clusters)
    return PolicyComparison(
        policy, metric.name, float(before.mean()), float(after.mean()), difference, fixed, broken, test, p, p,
        circular, metric.truth, len(after),
    )  # fmt: skip


def _sign_flip_p(gains: np.ndarray, clusters: Sequence[str]) -> float:
    """Two-sided p of the sum of gains if the sign of each cluster's were a coin."""
    members = np.unique(list(clusters), return_inverse=True)[1]
    sums = np.bincount(members, gains)
    found = permutation_test(
        (sums, np.zeros_like(sums)), lambda a, b, axis=-1: (a - b).sum(axis=axis), permutation_type="samples",
        vectorized=True, n_resamples=9999, rng=np.random.default_rng(0),
    )  # fmt: skip
    return float(found.pvalue)


def comparison_rows(rows: Sequence[PolicyComparison]) -> list[list[str]]:
    """The comparisons for `report.table_html`, the head first."""
    lines = [
        [
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
    ]
    for row in rows:
        items = "" if row.fixed is None else f"{row.fixed} / {row.broken}"
        lines.append([
            row.policy, row.metric, f"{row.before:.3f}", f"{row.after:.3f}", row.difference.short_text(), items,
            row.test, f"{row.adjusted:.2g}", row.verdict,
        ])  # fmt: skip
    return lines


def find_reward_hacking(rows: Sequence[PolicyComparison]) -> list[str]:
    """A sentence for each policy whose training reward, itself no truth, rose while a metric of truth fell."""
    found = []
    for policy in dict.fromkeys(row.policy for row in rows):
        own = [row for row in rows if row.policy == policy]
        risen = [row for row in own if row.circular and not row.truth and row.direction > 0]
        fallen = [row for row in own if row.truth and row.direction < 0]
        if risen and fallen:
            found.append(
                f"{policy}: REWARD HACKING. {risen[0].metric}, its training reward, rose from {risen[0].before:.3f} to "
                f"{risen[0].after:.3f} while {fallen[0].metric} fell from {fallen[0].before:.3f} to {fallen[0].after:.3f}."
            )
    return found


def power_note(n: int, rows: Sequence[PolicyComparison] = ()) -> str:
    """Say which difference n items can show, if models disagree on as many items as they did here at most."""
    if n < 6:
        return f"{n} items can show no difference: with fewer than 6, McNemar's p cannot be below {SIGNIFICANCE_LEVEL}."
    shares = [(row.fixed + row.broken) / row.n for row in rows if row.fixed is not None]
    smallest = detectable_difference(n, max(shares) if any(shares) else None)
    return (
        f"{n} items detect a difference of {smallest:.3f} with 80 % power"
        + (
            f" if two models disagree on {max(shares):.0%} of them, as here at most"
            if any(shares)
            else ""
        )
        + "; a smaller one may exist and not show."
    )


def describe_sight(right_images: Proportion, shuffled: Proportion, chance: float) -> str:
    """Do the answers come from the image? Shares of exact answers with the right and with other items' images.

    chance: probability that another item's truth is this one's (`evaluation.chance_exact`).
    """
    p = binomial_p(round(shuffled.value * shuffled.n), shuffled.n, chance)
    if right_images.low <= shuffled.high:
        return "it cannot be shown that the answers depend on the image"
    if p >= SIGNIFICANCE_LEVEL:
        return "it falls to chance, so the answers come from the image"
    return f"it falls, but differs from chance (p = {p:.2g})"
