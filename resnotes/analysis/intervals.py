"""Estimates over seeds or images with their intervals, and the verdicts that follow from them.

A claim is decided by intervals, not by single numbers, and has three outcomes: it holds, it does not, or the
measurement at hand cannot tell.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtr, stdtrit

from resnotes.analysis.numbers import number, plus_minus, with_bounds, with_unit
from resnotes.errors import UsageError

Verdict = bool | None

UNITS_ZH = {  # those that are words
    "points": "个百分点",
    "decades": "个数量级",
    "decades of loss": "个数量级（损失）",
    "decades per unit": "个数量级每单元",
    "of the initial norm": "倍初始范数",
    "units": "个单元",
    "pairs": "对",
    "px": "像素",
}
OF_ZH = {"seeds": "个种子", "images": "幅图像", "networks": "个网络"}


@dataclass(frozen=True)
class Interval:
    """An estimate with its two-sided 95 % interval; bounds are `None`, unknown, for a single seed or image.

    Attributes:
        mean: the estimate, of seeds their mean.
        low: lower bound.
        high: upper bound.
        n: how many were sampled.
        unit: of all three.
        of: what was sampled: seeds, images, networks.
        p: of a bound, the two-sided p-value of the test that the interval inverts; None where it has none.
    """

    mean: float
    low: float | None
    high: float | None
    n: int
    unit: str = ""
    of: str = "seeds"
    p: Callable[[float], float | None] = field(default=lambda _: None, compare=False, repr=False)

    def __post_init__(self) -> None:
        """Refuse numbers that no verdict can be drawn from.

        Raises:
            UsageError: the mean or a bound is NaN or infinite.
        """
        if not all(math.isfinite(bound) for bound in (self.mean, self.low, self.high) if bound is not None):
            raise UsageError(f"an interval needs finite values; found {self.mean} in [{self.low}, {self.high}]")

    def within(self, least: float, most: float) -> Interval:
        """The same with its bounds cut off where nothing can lie, such as errors below 0 and above 100 %."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, least), high=min(self.high, most))

    def __str__(self) -> str:
        """For instance `12.3 ± 0.4 % (n = 3)`; `0.81 [0.62, 0.88] (n = 3)` where the interval is not symmetric."""
        return self._text(self.unit, f"all {self.n} {self.of}: ", "± the range over {} sources")

    @property
    def zh(self) -> str:
        """The same in Chinese: units that are words are those of `UNITS_ZH`."""
        return self._text(UNITS_ZH.get(self.unit, self.unit), f"{self.n} {OF_ZH[self.of]}均为 ", "± 为 {} 个来源的全距")

    def _text(self, unit: str, all_alike: str, spread: str) -> str:
        if self.low is None or self.high is None:
            text = number(self.mean)
        elif self.of == "networks":
            text = f"{number(self.mean, 3)} ± {number(self.high - self.mean, 3)}"
        elif self.high - self.low <= 2e-9 * abs(self.mean):  # equal values, up to rounding
            return all_alike + with_unit(number(self.mean), unit)
        elif abs((self.low + self.high) / 2 - self.mean) <= 1e-9 * max(abs(self.low), abs(self.high)):
            text = plus_minus(self.mean, (self.high - self.low) / 2)
        else:
            text = with_bounds(self.mean, self.low, self.high)
        sampled = spread.format(self.n) if self.of == "networks" else f"n = {self.n}"
        return f"{with_unit(text, unit)} ({sampled})"


def interval(values: Sequence[float], unit: str = "") -> Interval:
    """The 95 % Student t-interval of the mean of `values`, one per seed, in `unit`.

    Raises:
        UsageError: there is no value, or one of them is no number, NaN or infinite.
    """
    try:
        sample = np.asarray([float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError) as wrong:
        raise UsageError(f"an interval needs a number for each seed; found {values!r:.200}") from wrong
    if sample.size == 0:
        raise UsageError("an interval needs at least one value, all of them finite")
    mean = float(sample.mean())
    if sample.size == 1:
        return Interval(mean, None, None, 1, unit)
    # scipy.special has the same quantile as scipy.stats.t without its second of import time.
    error = float(sample.std(ddof=1)) / math.sqrt(sample.size)
    half = float(stdtrit(sample.size - 1, 0.975)) * error
    return Interval(mean, mean - half, mean + half, int(sample.size), unit, p=_student(mean, error, sample.size - 1))


def _student(mean: float, error: float, freedom: float) -> Callable[[float], float | None]:
    """The t-test's two-sided p-value by bound; None of values that do not vary, whose spread is unknown."""
    return lambda bound: float(2 * stdtr(freedom, -abs(mean - bound) / error)) if error > 1e-12 * abs(mean) else None


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


def replicated(difference: float, others: Sequence[float], unit: str = "") -> Interval:
    """A difference between single networks, with the spread of what independent replications found as its margin.

    One network a kind has no spread of its own. Where a difference is larger than that between what other people found
    for the same, it does not hang on who trained the networks; there is no p-value.

    Args:
        difference: between two networks.
        others: the same difference as others found it.
        unit: of all of them.

    Raises:
        UsageError: there is no other, or a number is not finite.
    """
    if not len(others):
        raise UsageError("one network a kind needs what a replication found, to tell what another would differ by")
    spread = float(np.ptp([difference, *others]))
    return Interval(difference, difference - spread, difference + spread, 1 + len(others), unit, "networks")


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
        return f"{number(round(self.rho, 2))} (p = {number(self.p, 2)}, n = {self.n})"

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

    groups = [np.asarray(values, dtype=np.float64) for values in (*x, *y)]
    n = groups[0].size if groups else 0
    if len(x) != len(y) or n < 3 or any(values.shape != (n,) for values in groups):
        raise UsageError(
            "ranks need at least three things, as many in each group, and the same groups on both sides;"
            f" found {[len(values) for values in groups[: len(x)]]} and {[len(values) for values in groups[len(x) :]]}"
        )
    if not all(np.isfinite(values).all() for values in groups):
        raise UsageError("ranks need finite values")
    if not all(np.ptp(values) for values in groups):
        raise UsageError("ranks need values that differ")

    def unit(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        ranks = rankdata(values) - (len(values) + 1) / 2
        return np.asarray(ranks / np.linalg.norm(ranks))

    fixed, moved = [unit(values) for values in groups[: len(x)]], [unit(values) for values in groups[len(x) :]]

    def mean_rho(*orders: np.ndarray[Any, Any], axis: int = -1) -> Any:
        return sum((order * ours).sum(axis) for order, ours in zip(orders, fixed, strict=True)) / len(fixed)

    found = permutation_test(
        moved, mean_rho, permutation_type="pairings", vectorized=True, n_resamples=draws, rng=np.random.default_rng(0)
    )
    return RankTest(float(np.clip(found.statistic, -1, 1)), float(found.pvalue), n)


def matrix_rank_test(x: ArrayLike, y: ArrayLike, *, draws: int = 2000, seed: int = 0) -> RankTest:
    """Whether pairs of things rank alike by two measures, against random orders of the things (Mantel 1967).

    Pairs that share a thing are not independent, so that an order of the pairs would be too easy to beat.

    Args:
        x: a number for each pair, ``[n, n]``; NaN for pairs that do not count, such as a thing with itself.
        y: the same, but infinite numbers may be among them. NaN in all pairs of a thing leaves that thing out; a thing
            with itself may be NaN if it is in x.
        draws: random orders.
        seed: of the orders.

    Returns:
        Spearman's rho over the pairs; `n` counts the things.

    Raises:
        UsageError: matrices of other shapes, NaN in y for some pairs of a thing, fewer than three pairs that count, or
            numbers that do not differ.
    """
    from scipy.stats import rankdata  # a second of import time

    one, other = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if one.shape == other.shape == (len(one), len(one)):
        there = ~np.isnan(np.where(np.eye(len(one)), np.nan, other)).all(1)  # else an order would rank what is missing
        one, other = (each[np.ix_(there, there)] for each in (one, other))
    known, n = ~np.isnan(one), len(one)
    if one.shape != (n, n) or other.shape != (n, n) or known.sum() < 3:
        found = f"{one.shape}, {other.shape}, {known.sum()} pairs"
        raise UsageError(f"expected two square matrices with three pairs or more, found {found}")
    uncounted = np.eye(n, dtype=bool) & ~known.diagonal().any()  # a thing with itself, where it counts for none
    if np.isnan(other[~uncounted]).any():
        raise UsageError("a second number for each pair of things is needed, in whichever order; found NaN among them")
    if not np.ptp(one[known]) or (other[~uncounted] == other[~uncounted][0]).all():
        raise UsageError("ranks need values that differ")
    ranks = rankdata(one[known])

    def rho(order: np.ndarray[Any, Any]) -> float:
        return float(np.corrcoef(ranks, rankdata(other[np.ix_(order, order)][known]))[0, 1])

    measured, rng = rho(np.arange(n)), np.random.default_rng(seed)
    as_far = sum(abs(rho(rng.permutation(n))) >= abs(measured) - 1e-12 for _ in range(draws))
    return RankTest(measured, (1 + as_far) / (1 + draws), n)


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
        return Interval(measured, None, None, 1, unit, "images")
    generator = np.random.default_rng(seed)
    drawn = np.array([float(statistic(rows[generator.integers(len(rows), size=len(rows))])) for _ in range(draws)])
    return percentiles(measured, drawn, len(rows), unit)


def percentiles(measured: float, drawn: np.ndarray[Any, Any], images: int, unit: str = "") -> Interval:
    """An estimate from so many images, with the middle 95 % of what was drawn for it, ``[draws]``, as its interval."""
    low, high = np.quantile(drawn, (0.025, 0.975)).tolist()

    def p(bound: float) -> float:
        """Twice the smaller tail beyond the bound, never below what so many draws can tell."""
        return float(min(1, 2 * (1 + min((drawn <= bound).sum(), (drawn >= bound).sum())) / (1 + len(drawn))))

    return Interval(measured, low, high, images, unit, "images", p)


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
