"""Estimates over seeds or images with their intervals, and the verdicts that follow from them.

A claim is decided by intervals, not by single numbers, and has three outcomes: it holds, it does not, or the
measurement at hand cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from resnotes.errors import UsageError

Verdict = bool | None

UNITS_ZH = {  # those that are words
    "points": "个百分点",
    "decades": "个数量级",
    "decades of loss": "个数量级（损失）",
    "decades per unit": "个数量级每单元",
    "of the initial norm": "倍初始范数",
    "units": "个单元",
    "px": "像素",
}


@dataclass(frozen=True)
class Interval:
    """Mean of `n` seeds with its two-sided 95 % t-interval; bounds are `None`, unknown, for a single seed.

    Or another estimate with its interval: from `n` seeds, as `rank_correlation` gives, or from `n` images, as
    `bootstrap` does.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    unit: str = ""

    def __post_init__(self) -> None:
        """Refuse numbers that no verdict can be drawn from.

        Raises:
            UsageError: the mean or a bound is NaN or infinite.
        """
        if not all(math.isfinite(bound) for bound in (self.mean, self.low, self.high) if bound is not None):
            raise UsageError(f"an interval needs finite values; found {self.mean} in [{self.low}, {self.high}]")

    def __str__(self) -> str:
        """For instance `12.3 ± 0.4 % (n = 3)`; `0.81 [0.62, 0.88] (n = 3)` where the interval is not symmetric."""
        return self._text(self.unit)

    @property
    def zh(self) -> str:
        """The same in Chinese: units that are words are those of `UNITS_ZH`."""
        return self._text(UNITS_ZH.get(self.unit, self.unit))

    def _text(self, unit: str) -> str:
        if self.low is None or self.high is None:
            text = _plus_minus(self.mean, None)
        elif abs((self.low + self.high) / 2 - self.mean) <= 1e-9 * max(abs(self.low), abs(self.high)):
            text = _plus_minus(self.mean, (self.high - self.low) / 2)
        else:
            text = f"{self.mean:.2g} [{self.low:.2g}, {self.high:.2g}]"
        return " ".join(part for part in (text, unit, f"(n = {self.n})") if part)


def interval(values: Sequence[float], unit: str = "") -> Interval:
    """The 95 % Student t-interval of the mean of `values`, one per seed, in `unit`.

    Raises:
        UsageError: there is no value, or one of them is NaN or infinite.
    """
    sample = np.asarray([float(value) for value in values], dtype=np.float64)
    if sample.size == 0:
        raise UsageError("an interval needs at least one value, all of them finite")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, None, None, 1, unit)
    # scipy.special has the same quantile as scipy.stats.t without its second of import time.
    half = float(stdtrit(sample.size - 1, 0.975) * sample.std(ddof=1) / math.sqrt(sample.size))
    return Interval(mean, mean - half, mean + half, int(sample.size), unit)


def paired_difference(a: Sequence[float], b: Sequence[float], unit: str = "") -> Interval:
    """The interval of `a - b`, paired by seed, which removes what the seeds have in common.

    Raises:
        UsageError: `a` and `b` differ in length, are empty, or hold a value that is not finite.
    """
    if len(a) != len(b):
        raise UsageError(f"paired values need the same seeds on both sides; found {len(a)} and {len(b)}")
    return interval([_less(float(x), float(y)) for x, y in zip(a, b, strict=True)], unit)


def _less(a: float, b: float) -> float:
    """`a - b`, and exactly 0 where they differ by rounding alone: such a difference is not to decide anything."""
    return 0.0 if abs(a - b) <= 1e-12 * max(abs(a), abs(b)) else a - b


def unpaired_difference(a: Sequence[float], b: Sequence[float], unit: str = "") -> Interval:
    """The interval of `mean(a) - mean(b)` for samples that have nothing in common: Welch's, variances may differ.

    `n` is the size of the smaller sample; no bounds where one has a single value.

    Raises:
        UsageError: a sample is empty, or holds a value that is not finite.
    """
    both = [np.asarray([float(value) for value in values], dtype=np.float64) for values in (a, b)]
    if not all(sample.size for sample in both):
        raise UsageError("an interval needs at least one value on each side, all of them finite")
    difference, n = _less(float(both[0].mean()), float(both[1].mean())), min(sample.size for sample in both)
    if n == 1:
        return Interval(difference, None, None, 1, unit)
    errors = [float(sample.var(ddof=1)) / sample.size for sample in both]  # squared, of each mean
    if not sum(errors):
        return Interval(difference, difference, difference, n, unit)
    shares = [error / sum(errors) for error in errors]
    freedom = 1 / sum(s**2 / (sample.size - 1) for s, sample in zip(shares, both, strict=True))  # Welch-Satterthwaite
    half = float(stdtrit(freedom, 0.975) * math.sqrt(sum(errors)))
    return Interval(difference, difference - half, difference + half, n, unit)


RANK_SEEDS = 5  # from so many on, a bootstrap over seeds says something about a rank correlation


def rank_correlation(ours: Sequence[Sequence[float]], theirs: Sequence[float], *, draws: int = 2000) -> Interval:
    """Spearman's ρ between what we measure and what a paper reports, with a 95 % bootstrap interval over our seeds.

    Of fewer seeds than `RANK_SEEDS` there is no interval, and so no verdict: over three, it would hold the truth
    between 47 and 95 times in 100. `rank_test` decides without one.

    Args:
        ours: for each thing compared, its values, one per seed; their mean is ranked.
        theirs: the paper's value for each; equal ones share a rank.
        draws: bootstrap samples; each draws the seeds of every thing anew, with replacement.

    Returns:
        ρ of the means and the 2.5th and 97.5th percentile over the samples; no bounds for too few seeds.

    Raises:
        UsageError: fewer than three things, different numbers of them, a value that is not finite, or all equal.
    """
    from scipy.stats import rankdata  # a second of import time that no other claim needs

    samples = [np.asarray(values, dtype=np.float64) for values in ours]
    reference = np.asarray(theirs, dtype=np.float64)
    if len(samples) != len(reference) or len(samples) < 3:
        raise UsageError(f"ranks need at least three values on both sides; found {len(samples)} and {len(reference)}")
    if not all(sample.size and np.isfinite(sample).all() for sample in (*samples, reference)):
        raise UsageError("ranks need finite values")

    def rho(means: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Of each row; where all its values are equal, nothing is ordered: 0."""
        x = rankdata(means, axis=1)
        y = rankdata(reference)
        x, y = x - x.mean(1, keepdims=True), y - y.mean()
        norms = np.linalg.norm(x, axis=1) * np.linalg.norm(y)
        correlations: np.ndarray[Any, Any] = np.clip(x @ y / np.where(norms, norms, 1), -1, 1)
        return correlations

    middle = np.array([[sample.mean() for sample in samples]])
    if len(set(reference)) == 1 or len(set(middle[0])) == 1:
        raise UsageError("ranks need values that differ")
    mean = float(rho(middle)[0])
    n = min(sample.size for sample in samples)
    if n < RANK_SEEDS:
        return Interval(mean, None, None, n)
    generator = np.random.default_rng(0)
    drawn = np.stack([generator.choice(sample, (draws, sample.size)).mean(1) for sample in samples], axis=1)
    low, high = np.quantile(rho(drawn), (0.025, 0.975))
    return Interval(mean, float(low), float(high), n)


@dataclass(frozen=True)
class RankTest:
    """Whether two rankings go together, by a permutation test.

    Attributes:
        rho: Spearman's ρ, -1 to 1, a mean over the groups where there are several.
        p: how often random orders are as far from 0, two-sided.
        n: things in each ranking.
    """

    rho: float
    p: float
    n: int

    def __str__(self) -> str:
        """For instance ``0.81 (p = 0.0021, n = 11)``."""
        return f"{self.rho:.2f} (p = {self.p:.2g}, n = {self.n})"

    def verdict(self, *, same: bool = True) -> Verdict:
        """Whether the order is the same (or the reverse) rather than chance: None if 5 % of random ones do as well."""
        if self.p >= 0.05 or not self.rho:
            return None
        return (self.rho > 0) == same


def rank_test(x: Sequence[ArrayLike], y: Sequence[ArrayLike], *, draws: int = 20_000) -> RankTest:
    """Whether things rank alike by two measures, against all orders in which they could, or so many random ones.

    Args:
        x: for each group, the first measure of its things, as many in each group. Groups must not have things in
            common, such as the same lesions for all seeds: these are one group, of means over the seeds.
        y: the second measure of the same things.
        draws: random orders, where there are more than that.

    Raises:
        UsageError: no group, fewer than three things, different numbers of them, a value that is not finite, or all
            equal.
    """
    from scipy.stats import permutation_test, rankdata  # a second of import time

    if len(x) != len(y):
        raise UsageError(f"ranks need the same groups on both sides; found {len(x)} and {len(y)}")
    pairs = [[np.asarray(each, dtype=np.float64) for each in pair] for pair in zip(x, y, strict=True)]
    shapes = {values.shape for pair in pairs for values in pair}
    if len(shapes) != 1 or len(shape := next(iter(shapes))) != 1 or shape[0] < 3:
        raise UsageError(
            f"ranks need at least three values on both sides, the same number in each group; found {shapes}"
        )
    if not all(np.isfinite(values).all() for pair in pairs for values in pair):
        raise UsageError("ranks need finite values")
    if any(len(set(values.tolist())) == 1 for pair in pairs for values in pair):
        raise UsageError("ranks need values that differ")

    def unit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        ranks = rankdata(values) - (len(values) + 1) / 2
        return np.asarray(ranks / np.linalg.norm(ranks))

    fixed, moved = ([unit(pair[side]) for pair in pairs] for side in (0, 1))

    def mean_rho(*orders: np.ndarray[Any, Any], axis: int = -1) -> Any:
        return sum((order * ours).sum(axis) for order, ours in zip(orders, fixed, strict=True)) / len(fixed)

    found = permutation_test(
        moved, mean_rho, permutation_type="pairings", vectorized=True, n_resamples=draws, rng=np.random.default_rng(0)
    )
    return RankTest(float(np.clip(found.statistic, -1, 1)), float(found.pvalue), shape[0])


def bootstrap(
    images: ArrayLike,
    statistic: Callable[[np.ndarray[Any, Any]], float],
    unit: str = "",
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Interval:
    """Any statistic of a set of images, with a 95 % percentile bootstrap interval over the images.

    Args:
        images: a row for each, ``[N]`` or ``[N, ...]``, such as what was wrong under each lesion: paired measures of an
            image stay together.
        statistic: of as many rows, a number.
        unit: of that.
        draws: bootstrap samples, each of as many images, with replacement.
        seed: of the samples.

    Returns:
        The statistic of all images; `n` counts them. No bounds for a single image.

    Raises:
        UsageError: no image, or a number that is not finite.
    """
    rows = np.asarray(images, dtype=np.float64)
    if not rows.ndim or not len(rows) or not np.isfinite(rows).all():
        raise UsageError("a bootstrap needs at least one image, and finite numbers")
    measured = float(statistic(rows))
    if len(rows) == 1:
        return Interval(measured, None, None, 1, unit)
    generator = np.random.default_rng(seed)
    drawn = [float(statistic(rows[generator.integers(len(rows), size=len(rows))])) for _ in range(draws)]
    low, high = np.quantile(drawn, (0.025, 0.975))
    return Interval(measured, float(low), float(high), len(rows), unit)


def verdict(measured: Interval, *, above: float | None = None, below: float | None = None) -> Verdict:
    """Whether `measured` lies above (or below) a bound: True if all of it does, False if none, else None.

    A bound that the interval only touches, from whichever side, is not passed: it decides nothing.

    Raises:
        UsageError: not exactly one of `above` and `below` is given.
    """
    if (above is None) == (below is None):
        raise UsageError("a verdict takes exactly one of above=, below=")
    low, high = measured.low, measured.high
    if low is None or high is None:
        return None
    if above is not None:
        holds, fails = low > above, high < above
    else:
        assert below is not None
        holds, fails = high < below, low > below
    return True if holds else False if fails else None


def all_of(*verdicts: Verdict) -> Verdict:
    """Kleene's three-valued *and*: one False decides, otherwise one None leaves it open."""
    if any(given is False for given in verdicts):
        return False
    return None if any(given is None for given in verdicts) else True


def _plus_minus(mean: float, half: float | None) -> str:
    """`mean ± half`, to the first digit of `half`, or its second where the first is a 1."""
    if half is None:
        return f"{mean:.4g}"
    if half <= 1e-9 * abs(mean):  # equal values, up to rounding
        return f"{mean:.4g} ± 0"
    largest = max(abs(mean), half)
    if not 1e-3 <= largest < 1e6:
        power = math.floor(math.log10(largest))
        return f"({_plus_minus(mean / 10.0**power, half / 10.0**power)})e{power:+d}"
    leading = math.floor(math.log10(half))
    decimals = max(0, (1 if half / 10.0**leading < 2 else 0) - leading)
    return f"{mean:z.{decimals}f} ± {half:.{decimals}f}"
