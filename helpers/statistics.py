"""Intervals and paired tests. Every proportion the suite states carries its interval and n."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import binomtest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint


@dataclass(frozen=True)
class Proportion:
    """A share of n with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.short()} (n = {self.n})"

    def short(self) -> str:
        """Without n, for tables that state it once."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(hits: float, n: int) -> Proportion:
    """95 % Wilson score interval (Wilson 1927) of `hits` out of `n`; half hits are allowed."""
    low, high = proportion_confint(hits, n, method="wilson")
    return Proportion(hits / n, float(low), float(high), n)


def mcnemar_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar test (McNemar 1947): did the same items get better or worse?

    Only items on which the two disagree count; with b broken → fixed and c fixed → broken, p is that
    of b heads in b + c tosses of a fair coin. No disagreement gives p = 1.
    """
    table = np.zeros((2, 2), dtype=int)
    for b, a in zip(before, after, strict=True):
        table[int(b), int(a)] += 1
    return float(mcnemar(table, exact=True).pvalue)


def binomial_p(hits: int, n: int, chance: float) -> float:
    """Exact two-sided p of `hits` out of `n` if each were a hit with probability `chance`."""
    return float(binomtest(hits, n, chance).pvalue)
