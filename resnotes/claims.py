"""The ledger: what each notebook claims, what was expected, what was measured, and whether the claim holds.

A claim is decided by intervals over seeds, not by single numbers, and has three outcomes: it holds, it does
not, or the measurement at hand cannot tell.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.special import stdtrit

from resnotes import paths
from resnotes.errors import ResnotesError, UsageError
from resnotes.files import read_json, write_json

Verdict = bool | None
WORDS: dict[Verdict, str] = {True: "true", False: "false", None: "undecided"}

_ID = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*(\.[a-z0-9]+(-[a-z0-9]+)*)+")


@dataclass(frozen=True)
class Interval:
    """Mean of `n` seeds with its two-sided 95 % t-interval; bounds are `None`, unknown, for a single seed.

    Or another estimate from `n` seeds with its 95 % interval, as `rank_correlation` gives.
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
        if self.low is None or self.high is None:
            text = _plus_minus(self.mean, None)
        elif abs((self.low + self.high) / 2 - self.mean) <= 1e-9 * max(abs(self.low), abs(self.high)):
            text = _plus_minus(self.mean, (self.high - self.low) / 2)
        else:
            text = f"{self.mean:.2g} [{self.low:.2g}, {self.high:.2g}]"
        return " ".join(part for part in (text, self.unit, f"(n = {self.n})") if part)


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
    return interval([float(x) - float(y) for x, y in zip(a, b, strict=True)], unit)


def rank_correlation(ours: Sequence[Sequence[float]], theirs: Sequence[float], *, draws: int = 2000) -> Interval:
    """Spearman's ρ between what we measure and what a paper reports, with a 95 % bootstrap interval over our seeds.

    Args:
        ours: for each thing compared, its values, one per seed; their mean is ranked.
        theirs: the paper's value for each; equal ones share a rank.
        draws: bootstrap samples; each draws the seeds of every thing anew, with replacement.

    Returns:
        ρ of the means and the 2.5th and 97.5th percentile over the samples; no bounds for a single seed.

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
    if n == 1:
        return Interval(mean, None, None, 1)
    generator = np.random.default_rng(0)
    drawn = np.stack([generator.choice(sample, (draws, sample.size)).mean(1) for sample in samples], axis=1)
    low, high = np.quantile(rho(drawn), (0.025, 0.975))
    return Interval(mean, float(low), float(high), n)


def bootstrap_ratio(
    numerator: ArrayLike,
    denominator: ArrayLike,
    unit: str = "",
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The ratio of two sums over images, with a percentile bootstrap interval over the images.

    An image's regions or pixels are not independent of each other, but images are: they are what is drawn. Of few
    images, the interval is a little too narrow, as is usual: with 30 it may hold the truth 91 times in 100.

    Args:
        numerator: one number an image, such as its wrong regions; times 100 for a ratio in percent.
        denominator: one number an image, such as all its regions; images with 0 are fine.
        unit: of the ratio.
        draws: bootstrap samples, each of as many images, with replacement. Those whose denominator is 0 are left out.
        level: share of the samples that the interval holds.
        seed: of the samples.

    Returns:
        The ratio of the sums; `n` counts images. No bounds for a single image. Where no image differs from another, as
        when all numerators are 0, the interval is a point; it cannot tell rare from never.

    Raises:
        UsageError: no image, numbers of images that differ, numbers that are negative or not finite, or a denominator
            of 0 in all images.
    """
    return _bootstrap([(numerator, denominator)], unit, draws, level, seed)


def bootstrap_ratio_difference(
    a: tuple[ArrayLike, ArrayLike],
    b: tuple[ArrayLike, ArrayLike],
    unit: str = "",
    *,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The ratio of `a` minus that of `b`, each a numerator and a denominator, on the same images in the same order.

    Both ratios of a bootstrap sample are of the same images, which removes what these have in common. For the rest, and
    the errors, see `bootstrap_ratio`.
    """
    return _bootstrap([a, b], unit, draws, level, seed)


def verdict(measured: Interval, *, above: float | None = None, below: float | None = None) -> Verdict:
    """Whether `measured` lies above (or below) a bound: True if all of it does, False if none, else None.

    Raises:
        UsageError: not exactly one of `above` and `below` is given.
    """
    if (above is None) == (below is None):
        raise UsageError("a verdict takes exactly one of above=, below=")
    low, high = measured.low, measured.high
    if low is None or high is None:
        return None
    if above is not None:
        holds, fails = low > above, high <= above
    else:
        assert below is not None
        holds, fails = high < below, low >= below
    return True if holds else False if fails else None


def all_of(*verdicts: Verdict) -> Verdict:
    """Kleene's three-valued *and*: one False decides, otherwise one None leaves it open."""
    if any(given is False for given in verdicts):
        return False
    return None if any(given is None for given in verdicts) else True


@dataclass(frozen=True)
class Claim:
    """One entry of the ledger, as it stands in `claims.json`.

    `measured` is `{mean, low, high, n, unit, text}` for an interval and `{value, text}` for anything else.
    """

    id: str
    statement: str
    statement_zh: str
    source: str
    expected: str
    measured: dict[str, Any]
    holds: Verdict
    profile: str
    dataset: str
    seeds: tuple[int, ...]
    notebook: str


class Ledger:
    """The claims of one notebook, kept on disk as they are recorded.

    Args:
        notebook: stem of the notebook's file, such as `01_degradation`; its ledger starts afresh.
        profile: profile that the measurements were made at.
        dataset: variant of the data set measured on.
        seeds: seeds measured.
    """

    def __init__(self, notebook: str, profile: str, dataset: str, seeds: Sequence[int]) -> None:
        self.notebook, self.profile, self.dataset = notebook, profile, dataset
        self.seeds = tuple(int(seed) for seed in seeds)
        self._claims: dict[str, Claim] = {}
        self._write()

    def record(
        self,
        id: str,
        statement: str,
        *,
        statement_zh: str,
        source: str,
        expected: str,
        measured: Interval | float | str,
        holds: Verdict,
        profile: str | None = None,
        dataset: str | None = None,
        seeds: Sequence[int] | None = None,
    ) -> Claim:
        """Enter a claim, replacing one of the same id, and write the ledger.

        Args:
            id: `study.claim` in lower case with hyphens, such as `degradation.plain-deeper-worse`.
            statement: what is claimed, in English.
            statement_zh: the same in Chinese.
            source: where it is claimed, such as `He et al. 2016, Fig. 6`.
            expected: what the source reports.
            measured: what was found; NumPy and torch scalars are taken as numbers.
            holds: True, False, or None where the measurement cannot decide.
            profile: profile, where it differs from the ledger's, as for recorded runs.
            dataset: data set variant, where it differs from the ledger's.
            seeds: seeds, where they differ from the ledger's.

        Raises:
            UsageError: the id is malformed, a number is NaN or infinite, or `holds` is none of the three.
        """
        if not _ID.fullmatch(id):
            raise UsageError(f"claim id {id!r} is not of the form study.claim (lower case, digits, hyphens)")
        claim = Claim(
            id=id,
            statement=statement,
            statement_zh=statement_zh,
            source=source,
            expected=expected,
            measured=_measured(id, measured),
            holds=_holds(id, holds),
            profile=self.profile if profile is None else profile,
            dataset=self.dataset if dataset is None else dataset,
            seeds=self.seeds if seeds is None else tuple(int(seed) for seed in seeds),
            notebook=self.notebook,
        )
        self._claims[id] = claim
        self._write()
        return claim

    def table(self) -> pd.DataFrame:
        """Statement, expected, measured and verdict, one row per claim, by id."""
        rows = [
            (claim.statement, claim.expected, claim.measured["text"], WORDS[claim.holds])
            for claim in self._claims.values()
        ]
        return pd.DataFrame(
            rows,
            columns=["statement", "expected", "measured", "verdict"],
            index=pd.Index(self._claims, name="claim"),
        )

    def verdicts(self) -> dict[str, str]:
        """`true`, `false` or `undecided` by id: what nbval compares, free of numbers that vary by machine."""
        return {claim.id: WORDS[claim.holds] for claim in self._claims.values()}

    def _write(self) -> None:
        entries = [asdict(claim) for claim in self._claims.values()]
        write_json(paths.out_root() / "claims" / f"{self.notebook}.json", entries)


def collect(folder: Path) -> list[dict[str, Any]]:
    """The claims of all notebooks whose ledgers lie in `folder`, by notebook, then in the order recorded."""
    return [claim for path in sorted(folder.glob("*.json")) for claim in load(path)]


def load(path: Path) -> list[dict[str, Any]]:
    """The claims in a ledger or in a run's `claims.json`.

    Raises:
        ResnotesError: the file is missing, damaged, or an entry lacks a field or a valid verdict.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ResnotesError(f"{path} is no ledger: expected a list of claims, found {type(entries).__name__}")
    for position, entry in enumerate(entries, start=1):
        claim = f"{path}: claim {position}"
        fields = entry.keys() if isinstance(entry, dict) else set()
        if missing := sorted(Claim.__dataclass_fields__.keys() - fields):
            raise ResnotesError(f"{claim} lacks {', '.join(missing)}")
        if not (entry["holds"] is None or isinstance(entry["holds"], bool)):
            raise ResnotesError(f"{claim} holds {entry['holds']!r}; expected true, false or null")
        if not (isinstance(entry["measured"], dict) and "text" in entry["measured"]):
            raise ResnotesError(f"{claim} measured {entry['measured']!r}; expected an object with text")
    return entries


def _bootstrap(
    ratios: Sequence[tuple[ArrayLike, ArrayLike]], unit: str, draws: int, level: float, seed: int
) -> Interval:
    """The first ratio, less the second if there is one."""
    numbers = [[np.asarray(part, dtype=np.float64) for part in ratio] for ratio in ratios]
    shapes = [part.shape for ratio in numbers for part in ratio]
    n = numbers[0][0].size
    if n == 0 or any(shape != (n,) for shape in shapes):
        raise UsageError(f"a ratio needs one number for each image, the same images throughout; found shapes {shapes}")
    stacked = np.array(numbers)  # [ratio, 2, n]
    if not (np.isfinite(stacked).all() and (stacked >= 0).all() and (stacked[:, 1].sum(1) > 0).all()):
        raise UsageError("a ratio needs finite numbers, none negative, and a denominator that is not 0 in all images")
    # How often each image is in each sample; before them, the images as they are.
    samples = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), draws)
    sums = stacked @ np.vstack([np.ones(n), samples]).T
    with np.errstate(divide="ignore", invalid="ignore"):
        quotients = sums[:, 0] / sums[:, 1]
    values = quotients[0] - quotients[1:].sum(0)
    if n == 1:
        return Interval(float(values[0]), None, None, 1, unit)
    drawn = values[1:][np.isfinite(values[1:])]
    low, high = np.quantile(drawn, ((1 - level) / 2, (1 + level) / 2))
    return Interval(float(values[0]), float(low), float(high), n, unit)


def _measured(id: str, measured: Any) -> dict[str, Any]:
    """The JSON form of a measurement."""
    if isinstance(measured, str):
        return {"value": measured, "text": measured}
    if isinstance(measured, Interval):
        return {**asdict(measured), "text": str(measured)}
    value = measured.item() if hasattr(measured, "item") else measured
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise UsageError(f"claim {id} measured {measured!r}; expected an interval, a finite number or a string")
    return {"value": value, "text": f"{value:.4g}" if isinstance(value, float) else str(value)}


def _holds(id: str, holds: Any) -> Verdict:
    """`holds` as Python's own bool or None; 1, 0 and arrays are mistakes, not verdicts."""
    if holds is None or isinstance(holds, bool | np.bool_):
        return None if holds is None else bool(holds)
    raise UsageError(f"claim {id} holds {holds!r}; expected True, False or None")


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
