"""Intervals and paired tests. Every proportion the suite states carries its interval and n.

scipy and statsmodels are imported where they are used: both take seconds to load, and most programs
that import this module only need its classes.
"""

import math
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import numpy as np

SIGNIFICANCE_LEVEL = 0.05
LIMITS_95 = (2.5, 97.5)  # percentiles between which 95 % lie
NORMAL_975 = 1.9599639845400545  # half of the 95 % of a normal distribution lies from 0 to this
# Share of the items on which two models are assumed to disagree where nobody has measured it.
DISAGREEMENT = 0.25
RESAMPLES = 2000  # of a bootstrap

Item = TypeVar("Item")
TableRows = list[list[str]]  # the texts of a table; the first row is the head


def drawn_share(items: Sequence[Item], share: float, seed: int) -> list[Item]:
    """A share of the items, at least one, drawn without repeats; they stay in their order.

    A smaller share of the same items and seed is part of a larger one.
    """
    number = max(1, round(share * len(items)))
    drawn = np.random.default_rng(seed).permutation(len(items))[:number]
    return [items[i] for i in sorted(drawn.tolist())]


def derangement(length: int, seed: int) -> np.ndarray:
    """Draw an order of 0 … length − 1 in which nothing keeps its place (Sattolo 1986)."""
    if length < 2:
        raise ValueError(f"{length} item cannot be shuffled: at least 2 are needed")
    # one cycle through all places: each gets what the one before it in the cycle had
    cycle = np.random.default_rng(seed).permutation(length)
    order = np.empty(length, dtype=int)
    order[cycle] = np.roll(cycle, 1)
    return order


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, which is None where the values cannot give one."""

    value: float
    low: float | None
    high: float | None
    n: int  # independent values that it is made of
    digits = ".3g"  # of the class, no field

    def __str__(self) -> str:
        return f"{self.short_text()} (n = {self.n})"

    def short_text(self) -> str:
        """Write it without n, for tables that state n once."""
        # one value, or all equal: an interval would claim a certainty that is not there
        interval = "no interval"
        if self.low is not None:
            interval = f"{self.low:{self.digits}}, {self.high:{self.digits}}"
        return f"{self.value:{self.digits}} [{interval}]"


@dataclass(frozen=True)
class Proportion(Estimate):
    """A share of n with its 95 % Wilson interval."""

    digits = ".3f"


def proportion(hits: float, n: int) -> Proportion:
    """95 % Wilson score interval (Wilson 1927) of `hits` out of `n`; half hits are allowed.

    As statsmodels has it to the last bit, which `check` has no time to import.
    """
    share = float(hits / n)
    squared = NORMAL_975 * NORMAL_975
    widened = 1 + squared / n
    centre = (share + squared / (2 * n)) / widened
    spread = share * (1 - share) / n + squared / (4.0 * n**2)
    half = NORMAL_975 * math.sqrt(spread) / widened
    # rounding may put an end a hair outside 0 … 1
    return Proportion(share, float(max(centre - half, 0)), float(min(centre + half, 1)), n)


def share_of(hits: Iterable[float]) -> Proportion | None:
    """The share of true values, or of points from 0 to 1; None if there are none."""
    points = list(hits)
    return proportion(sum(points), len(points)) if points else None


class Mean(NamedTuple):
    """A mean with its 95 % interval (Student 1908)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean of two or more values with its 95 % interval, as if independent and normal."""
    from scipy.stats import t as student

    numbers = np.asarray(values, dtype=float)
    n, mean = len(numbers), numbers.mean()
    # by hand, since `student.interval` gives NaN where all values are equal
    half = student.ppf(0.975, n - 1) * numbers.std(ddof=1) / math.sqrt(n)
    return Mean(float(mean), float(mean - half), float(mean + half))


def sample_mean(values: Sequence[float]) -> Estimate | None:
    """`mean_interval` of any number of values.

    None without a value; no interval for one value, or if all are equal: that would be an interval
    of no width, a certainty that no sample has. Raises ValueError for NaN.
    """
    numbers = _finite(values)
    if len(numbers) == 0:
        return None
    if (numbers == numbers[0]).all():
        return Estimate(float(numbers[0]), None, None, len(numbers))
    return Estimate(*mean_interval(numbers), len(numbers))


def _finite(values: Sequence[float]) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    known = np.isfinite(numbers)
    if not known.all():
        raise ValueError(f"value {known.argmin()} is not a finite number; leave it out and say so")
    return numbers


def format_figure(figure: Estimate | float | str | None, digits: str = ".3f") -> str:
    """Write a figure into the cell of a table; `digits` are those of a plain number."""
    if figure is None:
        return "not defined"
    return f"{figure:{digits}}" if isinstance(figure, float) else str(figure)


def cluster_bootstrap(
    values_before: Sequence[float],
    values_after: Sequence[float],
    clusters: Sequence[Hashable],
) -> Estimate:
    """Mean gain, after − before, with a percentile interval over whole clusters (Efron 1979).

    clusters: of each item, what it shares with others, such as its image. Questions about one image
    are not independent: resampling them one at a time gives too narrow an interval. n is the number
    of clusters; below about 20 of them the interval is too narrow still, and one cluster has none.
    Raises ValueError for lists of different lengths, empty ones and NaN.
    """
    before = _finite(values_before)
    after = _finite(values_after)
    if not len(before) == len(after) == len(clusters) or not len(clusters):
        raise ValueError(
            f"{len(before)}, {len(after)} and {len(clusters)} items: "
            "as many of each, and at least one"
        )
    gains = after - before
    codes = {name: code for code, name in enumerate(dict.fromkeys(clusters))}
    members = [codes[name] for name in clusters]
    # of each cluster the sum of its gains and its size: a draw of clusters needs no more
    sums = np.bincount(members, gains)
    sizes = np.bincount(members)
    rng = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES):
        draw = rng.integers(len(codes), size=len(codes))
        means.append(sums[draw].sum() / sizes[draw].sum())
    low, high = np.percentile(means, LIMITS_95).tolist()
    if np.ptp(means) < 1e-12:  # one cluster, or the same gain in each
        low = high = None
    return Estimate(float(gains.mean()), low, high, len(codes))


def clustered_share(points: Sequence[float], clusters: Sequence[Hashable]) -> Estimate | None:
    """Mean of points from 0 to 1 with an interval over whole clusters; None if there are none.

    Wilson's where every cluster is a single item, else the bootstrap of `cluster_bootstrap`. Where
    that has no width, since all points are equal, it is Wilson's of as many points as there are
    clusters. n is the number of clusters.
    """
    values = _finite(points)
    if not len(values):
        return None
    number = len(set(clusters))
    if number == len(values):
        return proportion(float(values.sum()), number)
    found = cluster_bootstrap(np.zeros_like(values), values, clusters)
    if found.low is None:
        return proportion(float(values.mean()) * number, number)
    return Proportion(found.value, found.low, found.high, number)


def _cluster_sums(values: Sequence[float], clusters: Sequence[str]) -> np.ndarray:
    if not len(clusters):
        return np.zeros(0)
    _, members = np.unique(clusters, return_inverse=True)
    return np.bincount(members, np.asarray(values, dtype=float))


def sign_flip_p(gains: Sequence[float], clusters: Sequence[str]) -> float:
    """Two-sided p of the sum of gains if the sign of each cluster's were a coin (Fisher 1935).

    All combinations of signs where there are few, else 9,999 draws of seed 0. 1 where no test can
    be made: fewer than two clusters, or no gain anywhere.
    """
    # the gains of a cluster turn together: only its sum counts
    sums = _cluster_sums(gains, clusters)
    if len(sums) < 2 or not sums.any():
        return 1.0
    from scipy.stats import permutation_test

    # exchanging a sum with 0 in `sums − 0` turns its sign
    found = permutation_test(
        (sums, np.zeros_like(sums)),
        lambda a, b, axis: (a - b).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(0),
    )
    return float(found.pvalue)


def sign_test_p(gains: Sequence[float], clusters: Sequence[str]) -> float:
    """Exact two-sided sign test: as many clusters with a gain as with a loss? (Arbuthnott 1710).

    A cluster counts once, by the sign of its sum; one without gain or loss says nothing. 1 where
    none is left.
    """
    sums = _cluster_sums(gains, clusters)
    gained = int((sums > 0).sum())
    changed = int((sums != 0).sum())
    return binomial_p(gained, changed, 0.5) if changed else 1.0


def mcnemar_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar test (McNemar 1947): did the same items get better or worse?

    Only items on which the two disagree count; with b broken → fixed and c fixed → broken, p is
    that of b heads in b + c tosses of a fair coin. No disagreement gives p = 1.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    table = np.zeros((2, 2), dtype=int)
    for was_right, is_right in zip(before, after, strict=True):
        table[int(was_right), int(is_right)] += 1
    return float(mcnemar(table, exact=True).pvalue)


def binomial_p(hits: int, n: int, chance: float) -> float:
    """Exact two-sided p of `hits` out of `n` if each were a hit with probability `chance`."""
    from scipy.stats import binomtest

    return float(binomtest(hits, n, chance).pvalue)


def holm_adjust(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p of each test when all of them were tried (Holm 1979).

    No false alarm in 95 % of such families. Raises ValueError for NaN and numbers outside 0 … 1: a
    test that was not made belongs left out.
    """
    from statsmodels.stats.multitest import multipletests

    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(
                f"p of {name} is {p}, not within 0 … 1; leave out tests that were not made"
            )
    if not p_values:
        return {}
    adjusted = multipletests(list(p_values.values()), method="holm")[1]
    return {name: float(p) for name, p in zip(p_values, adjusted, strict=True)}


def win_rate(wins: int, losses: int, ties: int = 0) -> Proportion:
    """Share of votes won, a tie being half a win; ties make its interval wider than need be.

    Raises ValueError without a vote.
    """
    # half a win for either keeps the two rates at a sum of 1
    votes = wins + losses + ties
    if min(wins, losses, ties) < 0 or not votes:
        raise ValueError(
            f"{wins} wins, {losses} losses and {ties} ties: at least one vote, and none below 0"
        )
    return proportion(wins + ties / 2, votes)


# --- How many items show what difference, by the exact tests above ---
# statsmodels has the power of tests on normal approximations only; these are exact.


def mcnemar_power(n: int, difference: float, disagree: float = DISAGREEMENT) -> float:
    """Probability that `mcnemar_p` of n paired items is at most .05, with the right sign.

    difference: the true difference of the two shares. disagree: the probability that one model is
    right on an item and the other wrong; at least `difference`. Exact: items of disagreement are
    Binomial(n, disagree), those that got worse among them Binomial(·, (disagree − difference) /
    (2 disagree)); all counts are summed but for a mass of 2·10⁻¹² at the ends.
    """
    from scipy.stats import binom

    if not 0 < difference <= disagree <= 1:
        raise ValueError(f"0 < difference {difference} ≤ disagree {disagree} ≤ 1 must hold")
    first, last = binom.ppf([1e-12, 1 - 1e-12], n, disagree)
    discordant = np.arange(first, last + 1)
    # of each number of disagreements, how many may have got worse for p ≤ .05, or one too many
    most = binom.ppf(SIGNIFICANCE_LEVEL / 2, discordant, 0.5)
    most -= 2 * binom.cdf(most, discordant, 0.5) > SIGNIFICANCE_LEVEL
    found = binom.cdf(most, discordant, (disagree - difference) / (2 * disagree))
    return float((binom.pmf(discordant, n, disagree) * found).sum())


def detectable_difference(n: int, disagree: float = DISAGREEMENT, power: float = 0.8) -> float:
    """Smallest true difference of two shares that `mcnemar_p` detects in n paired items.

    Detects: with probability `power`. It grows with the share on which the two models disagree,
    which the first run tells. `DISAGREEMENT`, the default, is plausible for a model before and
    after a short training: 400 items detect .072. Pessimistic is ½, of two models that are right
    on half of the items each, independently: .101. A difference above `disagree` is taken to come
    with no disagreement but itself. Raises ValueError if n items can show nothing (fewer than 6).
    """
    from scipy.optimize import brentq

    def surplus(difference: float) -> float:
        return mcnemar_power(n, difference, max(disagree, difference)) - power

    if surplus(1.0) < 0:
        raise ValueError(
            f"{n} items cannot give p ≤ {SIGNIFICANCE_LEVEL} in an exact test; take more"
        )
    # a millionth more than the root, so that rounding cannot leave the power short
    return min(1.0, brentq(surplus, 1e-9, 1.0, xtol=1e-7) + 1e-6)


def items_needed(difference: float, disagree: float = DISAGREEMENT, power: float = 0.8) -> int:
    """Smallest number of paired items in which `mcnemar_p` detects `difference`.

    The inverse of `detectable_difference`. Exact tests have steps: some larger numbers can fall
    short by a hair. Raises ValueError as `mcnemar_power` does.
    """
    if not 0 < power < 1:
        raise ValueError(f"power {power} must be between 0 and 1")

    def is_enough(n: int) -> bool:
        return mcnemar_power(n, difference, disagree) >= power

    high = 1
    while not is_enough(high):
        high *= 2
    near = bisect_left(range(high), True, lo=high // 2, key=is_enough)
    # because of the steps, a smaller number can do, too, within 2 √n
    start = max(1, near - 2 * math.isqrt(near))
    return next(n for n in range(start, near + 1) if is_enough(n))


def votes_needed(difference: float) -> int:
    """Smallest number of votes in which a sign test tells a win rate of ½ + difference from ½.

    The test is exact and two-sided, its power .8, and the win rate that of decisive votes:
    ties say nothing. .6 against .5 takes 199 votes.
    """
    if not 0 < difference <= 0.5:
        raise ValueError(f"0 < difference {difference} ≤ ½ must hold")
    return items_needed(2 * difference, disagree=1.0)


@dataclass(frozen=True)
class Kappa:
    """Cohen's kappa with its 95 % interval; all three are None where kappa is not defined."""

    value: float | None
    low: float | None
    high: float | None
    observed_agreement: float  # share of the labels that are equal
    n: int  # labels of each rater
    groups: int  # independent items that they come from

    def __str__(self) -> str:
        n = f"same label {self.observed_agreement:.0%}, n = {self.n}, from {self.groups} items"
        if self.value is None:
            return f"kappa not defined, both gave one and the same label throughout ({n})"
        return f"kappa {self.value:.2f} [{self.low:.2f}, {self.high:.2f}] ({n})"


def cohen_kappa(
    first: Sequence[object],
    second: Sequence[object],
    groups: Sequence[object],
) -> Kappa:
    """Agreement of two raters beyond chance, (observed − expected) / (1 − expected) (Cohen 1960).

    `first[i]` and `second[i]` are the labels that the raters gave to i. Labels that share a value
    in `groups` are not independent; the interval is the percentile bootstrap over groups (Efron
    1979, seed 0; draws without a kappa are left out), where statsmodels takes all labels as
    independent. Not defined if both always gave one and the same label.
    """
    n = len(first)
    if n != len(second) or not n:
        raise ValueError(
            f"{n} labels against {len(second)}: both raters need as many, and at least one"
        )
    # labels of both raters by one numbering
    names, codes = np.unique([*first, *second], return_inverse=True)
    _, members = np.unique(groups, return_inverse=True)
    # of each group, how often first gave one label and second another: (groups, labels, labels)
    tables = np.zeros((members.max() + 1, len(names), len(names)))
    np.add.at(tables, (members, codes[:n], codes[n:]), 1)
    whole = tables.sum(axis=0)
    value = _kappa(whole)
    low = high = None
    if value is not None:
        draws = np.random.default_rng(0).integers(len(tables), size=(RESAMPLES, len(tables)))
        found = [_kappa(tables[draw].sum(axis=0)) for draw in draws]
        defined = [kappa for kappa in found if kappa is not None]
        low, high = np.percentile(defined, LIMITS_95).tolist()
    return Kappa(value, low, high, float(whole.trace() / n), n, len(tables))


def _kappa(table: np.ndarray) -> float | None:
    """None if both raters used one and the same label, so that chance alone agrees always."""
    from statsmodels.stats.inter_rater import cohens_kappa

    if table.max() == table.sum() == table.trace():
        return None
    return float(cohens_kappa(table, return_results=False))


def repeated_share(ids: Sequence[int]) -> float:
    """Share of 3-grams that were there before.

    >>> repeated_share([1, 2, 3, 1, 2, 3, 1])  # 123 231 312 123 231
    0.4
    """
    grams = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
