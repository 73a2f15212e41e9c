"""Intervals and paired tests. Every proportion the suite states carries its interval and n."""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy  # its parts, and those of statsmodels, take seconds: they are loaded where they are used

# Half of the 95 % of a normal distribution lies between 0 and this.
NORMAL_975 = 1.9599639845400545


def derangement(length: int, seed: int) -> np.ndarray:
    """A random order of 0 … length − 1 in which nothing keeps its place (one cycle; Sattolo 1986)."""
    if length < 2:
        raise ValueError(f"{length} item cannot be shuffled: at least 2 are needed")
    cycle = np.random.default_rng(seed).permutation(length)
    order = np.empty(length, dtype=int)
    order[cycle] = np.roll(cycle, 1)
    return order


@dataclass(frozen=True)
class Proportion:
    """A share of n with its 95 % Wilson interval."""

    value: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        return f"{self.short_text()} (n = {self.n})"

    def short_text(self) -> str:
        """Without n, for tables that state it once."""
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def proportion(hits: float, n: int) -> Proportion:
    """95 % Wilson score interval (Wilson 1927) of `hits` out of `n`; half hits are allowed.

    As statsmodels has it to the last bit, which `check` has no time to import.
    """
    share = hits / n
    squared = NORMAL_975 * NORMAL_975
    widened = 1 + squared / n
    centre = (share + squared / (2 * n)) / widened
    spread = share * (1 - share) / n + squared / (4.0 * n**2)
    half = NORMAL_975 * math.sqrt(spread) / widened
    # rounding may put an end a hair outside 0 … 1
    return Proportion(share, float(max(centre - half, 0)), float(min(centre + half, 1)), n)


class Mean(NamedTuple):
    """A mean with its 95 % interval (Student 1908)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def mean_interval(values: Sequence[float]) -> Mean:
    """Mean of two or more values with its 95 % interval, as if they were independent and normal."""
    numbers = np.asarray(values, dtype=float)
    mean, half = (
        numbers.mean(),
        scipy.stats.t.ppf(0.975, len(numbers) - 1) * numbers.std(ddof=1) / math.sqrt(len(numbers)),
    )
    return Mean(float(mean), float(mean - half), float(mean + half))


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, which is None where the values cannot give one."""

    value: float
    low: float | None
    high: float | None
    n: int  # independent values that it is made of

    def __str__(self) -> str:
        return f"{self.short_text()} (n = {self.n})"

    def short_text(self) -> str:
        """Without n, for tables that state it once."""
        if self.low is None:
            return f"{self.value:.3g} [no interval]"
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"


def sample_mean(values: Sequence[float]) -> Estimate | None:
    """`mean_interval` of any number of values: None without one; no interval for one value, or if all are equal.

    Equal values would give an interval of no width, a certainty that no sample has. Raises ValueError for NaN.
    """
    numbers = _finite(values)
    if len(numbers) == 0:
        return None
    if (numbers == numbers[0]).all():
        return Estimate(float(numbers[0]), None, None, len(numbers))
    return Estimate(*mean_interval(numbers), len(numbers))


def _finite(values: Sequence[float]) -> np.ndarray:
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"value {np.isfinite(numbers).argmin()} is not a finite number; leave it out and say so"
        )
    return numbers


def cluster_bootstrap(
    values_before: Sequence[float],
    values_after: Sequence[float],
    clusters: Sequence[Hashable],
    resamples: int = 2000,
    seed: int = 0,
) -> Estimate:
    """Mean gain, after − before; whole clusters are resampled for its percentile interval (Efron 1979).

    clusters: of each item, what it shares with others, such as its image. Questions about one image are
    not independent: resampling them one at a time gives too narrow an interval. n is the number of
    clusters; below about 20 of them the interval is too narrow still, and one cluster has none.
    Raises ValueError for lists of different lengths, empty ones and NaN.
    """
    before, after = _finite(values_before), _finite(values_after)
    if not len(before) == len(after) == len(clusters) or not len(clusters):
        raise ValueError(
            f"{len(before)}, {len(after)} and {len(clusters)} items: as many of each, and at least one"
        )
    gains = after - before
    codes = {name: code for code, name in enumerate(dict.fromkeys(clusters))}
    members = np.array([codes[name] for name in clusters])
    sums, sizes = np.bincount(members, gains), np.bincount(members)
    rng, k = np.random.default_rng(seed), len(codes)
    means = [
        sums[draw].sum() / sizes[draw].sum()
        for draw in (rng.integers(k, size=k) for _ in range(resamples))
    ]
    low, high = np.percentile(means, [2.5, 97.5]).tolist()
    no_interval = np.ptp(means) < 1e-12  # one cluster, or the same gain in each
    return Estimate(float(gains.mean()), *((None, None) if no_interval else (low, high)), k)


def mcnemar_p(before: Sequence[bool], after: Sequence[bool]) -> float:
    """Exact two-sided McNemar test (McNemar 1947): did the same items get better or worse?

    Only items on which the two disagree count; with b broken → fixed and c fixed → broken, p is that
    of b heads in b + c tosses of a fair coin. No disagreement gives p = 1.
    """
    from statsmodels.stats.contingency_tables import mcnemar

    table = np.zeros((2, 2), dtype=int)
    for b, a in zip(before, after, strict=True):
        table[int(b), int(a)] += 1
    return float(mcnemar(table, exact=True).pvalue)


def binomial_p(hits: int, n: int, chance: float) -> float:
    """Exact two-sided p of `hits` out of `n` if each were a hit with probability `chance`."""
    return float(scipy.stats.binomtest(hits, n, chance).pvalue)


def holm_adjust(p_values: Mapping[str, float]) -> dict[str, float]:
    """The p of each test when all of them were tried, adjusted by Holm 1979: no false alarm in 95 % of such families.

    Raises ValueError for NaN and numbers outside 0 … 1: a test that was not made belongs left out.
    """
    from statsmodels.stats.multitest import multipletests

    for name, p in p_values.items():
        if not 0 <= p <= 1:
            raise ValueError(
                f"p of {name} is {p}, not within 0 … 1; leave out tests that were not made"
            )
    adjusted = multipletests(list(p_values.values()), method="holm")[1] if p_values else []
    return {name: float(p) for name, p in zip(p_values, adjusted, strict=True)}


def win_rate(wins: int, losses: int, ties: int = 0) -> Proportion:
    """Share of votes won, a tie being half a win, with its Wilson interval, which ties make wider than need be.

    Raises ValueError without a vote.
    """
    if min(wins, losses, ties) < 0 or not wins + losses + ties:
        raise ValueError(
            f"{wins} wins, {losses} losses and {ties} ties: at least one vote, and none below 0"
        )
    return proportion(wins + ties / 2, wins + losses + ties)


# --- How many items show what difference, by the exact tests above ---

DISAGREEMENT = 0.25  # share of the items on which two models are assumed to disagree where nobody has measured it


def mcnemar_power(
    n: int, difference: float, disagree: float = DISAGREEMENT, alpha: float = 0.05
) -> float:
    """Probability that `mcnemar_p` of n paired items is at most `alpha`, with the right sign.

    difference: the true difference of the two shares. disagree: the probability that one model is right
    on an item and the other wrong; at least `difference`. Exact: items of disagreement are Binomial(n,
    disagree), those that got worse among them Binomial(·, (disagree − difference) / (2 disagree)); all
    counts are summed but for a mass of 2·10⁻¹² at the ends.
    """
    if not (0 < difference <= 1 and difference <= disagree <= 1 and 0 < alpha < 1):
        raise ValueError(
            f"0 < difference {difference} ≤ disagree {disagree} ≤ 1 and 0 < alpha {alpha} < 1 must hold"
        )
    first, last = scipy.stats.binom.ppf([1e-12, 1 - 1e-12], n, disagree)
    discordant = np.arange(first, last + 1)
    most = scipy.stats.binom.ppf(
        alpha / 2, discordant, 0.5
    )  # items that may have got worse for p ≤ alpha, or one too many
    most -= 2 * scipy.stats.binom.cdf(most, discordant, 0.5) > alpha
    found = scipy.stats.binom.cdf(most, discordant, (disagree - difference) / (2 * disagree))
    return float((scipy.stats.binom.pmf(discordant, n, disagree) * found).sum())


def detectable_difference(
    n: int, disagree: float | None = None, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true difference of two shares that `mcnemar_p` detects with probability `power` in n paired items.

    It grows with the share on which the two models disagree, which the first run tells. `DISAGREEMENT`, the
    default, is plausible for a model before and after a short training: 400 items detect .072.
    Pessimistic is ½, of two models that are right on half of the items each, independently: .101. A
    difference above `disagree` is taken to come with no disagreement but itself. Raises ValueError if n
    items can show nothing (fewer than 6 at 5 %).
    """
    share = DISAGREEMENT if disagree is None else disagree

    def has_power(difference: float) -> bool:
        return mcnemar_power(n, difference, max(share, difference), alpha) >= power

    if not has_power(1.0):
        raise ValueError(f"{n} items cannot give p ≤ {alpha} in an exact test; take more")
    low, high = 0.0, 1.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (low, middle) if has_power(middle) else (middle, high)
    return high


def items_needed(
    difference: float, disagree: float = DISAGREEMENT, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Smallest number of paired items in which `mcnemar_p` detects `difference` with probability `power`.

    The inverse of `detectable_difference`. Exact tests have steps: some larger numbers can fall short by
    a hair. Raises ValueError as `mcnemar_power` does.
    """
    if not 0 < power < 1:
        raise ValueError(f"power {power} must be between 0 and 1")
    return _smallest_where(lambda n: mcnemar_power(n, difference, disagree, alpha) >= power)


def _smallest_where(is_enough: Callable[[int], bool]) -> int:
    """Smallest n for which `is_enough(n)` is true; near that place it may switch back within 2 √n."""
    high = 1
    while not is_enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return next(n for n in range(max(1, high - 2 * math.isqrt(high)), high + 1) if is_enough(n))


def votes_needed(
    difference: float, tie_share: float = 0.0, power: float = 0.8, alpha: float = 0.05
) -> int:
    """Smallest number of votes in which an exact two-sided sign test tells a win rate of ½ + difference from ½.

    The win rate is that of decisive votes. `tie_share` of all votes are ties, which say nothing, and so
    many more have to be asked for. Without ties: .6 against .5 takes 199 votes.
    """
    if not (0 < difference <= 0.5 and 0 <= tie_share < 1):
        raise ValueError(
            f"0 < difference {difference} ≤ ½ and 0 ≤ tie_share {tie_share} < 1 must hold"
        )
    return math.ceil(items_needed(2 * difference, 1.0, power, alpha) / (1 - tie_share))


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
    groups: Sequence[object] | None = None,
    resamples: int = 2000,
) -> Kappa:
    """Agreement of two raters beyond chance, (observed − expected) / (1 − expected) (Cohen 1960).

    `first[i]` and `second[i]` are the labels that the raters gave to i. Labels that share a value in
    `groups` are not independent; the interval is the percentile bootstrap over groups (Efron 1979,
    seed 0; draws without a kappa are left out). Not defined if both always gave one and the same label.
    """
    if len(first) != len(second) or not first:
        raise ValueError(
            f"{len(first)} labels against {len(second)}: both raters need as many, and at least one"
        )
    names, codes = np.unique([*first, *second], return_inverse=True)
    members = np.unique(
        list(groups) if groups is not None else range(len(first)), return_inverse=True
    )[1]
    tables = np.zeros(
        (members.max() + 1, len(names), len(names))
    )  # (groups, first's label, second's label)
    np.add.at(tables, (members, codes[: len(first)], codes[len(first) :]), 1)
    whole = tables.sum(axis=0)
    value, low, high = _kappa(whole), None, None
    if value is not None:
        draws = np.random.default_rng(0).integers(len(tables), size=(resamples, len(tables)))
        found = [kappa for draw in draws if (kappa := _kappa(tables[draw].sum(axis=0))) is not None]
        low, high = (float(limit) for limit in np.percentile(found, [2.5, 97.5]))
    return Kappa(value, low, high, float(whole.trace() / whole.sum()), len(first), len(tables))


def _kappa(table: np.ndarray) -> float | None:
    """None if both raters used one and the same label, so that chance alone agrees always."""
    from statsmodels.stats.inter_rater import cohens_kappa

    if table.max() == table.sum() == table.trace():
        return None
    return float(cohens_kappa(table, return_results=False))


def repeated_share(ids: Sequence[int]) -> float:
    """Share of 3-grams that were there before.

    >>> repeated([1, 2, 3, 1, 2, 3, 1])  # 123 231 312 123 231
    0.4
    """
    grams = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
