"""Lengths of paths: how many there are of each, what each contributes to the gradient, and what is typical."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pandas as pd
from torch import Tensor

from resnotes.errors import UsageError


def path_shares(gradients: Tensor) -> pd.DataFrame:
    """What each length contributes to the gradient.

    Args:
        gradients: G, of `path_gradients`; ``gradients[:, i]`` for image i alone.

    Returns:
        One row per length: ``length``, ``paths`` (how many there are, C(n, k), as Python's whole numbers), ``norm``
        (‖G_k‖), ``norm_share`` (of the sum of the norms) and ``share`` (⟨G_k, g⟩ / ‖g‖² with g = Σ G_k). Both shares
        sum to 1; the latter may be negative or above 1, where lengths cancel.

    Raises:
        UsageError: g is zero, or not finite.
    """
    flat = gradients.flatten(1).double()
    total = flat.sum(0)
    if not total.isfinite().all() or not total.any():
        raise UsageError("expected a gradient that is finite and not zero: any other has no shares")
    norms = flat.norm(dim=1).cpu().numpy()
    n = len(flat) - 1
    return pd.DataFrame(
        {
            "length": range(n + 1),
            "paths": [math.comb(n, k) for k in range(n + 1)],
            "norm": norms,
            "norm_share": norms / norms.sum(),
            "share": (flat @ total / (total @ total)).cpu().numpy(),
        }
    )


def coherence(shares: pd.DataFrame, samples: pd.DataFrame) -> pd.DataFrame:
    """Whether the paths of one length pull in one direction: their sum, against single ones times their number.

    Veit et al. 2016 take the mean norm of a path times the number of paths for the contribution of a length
    (Fig. 6c). It is the norm of the sum if all their gradients are parallel; if they are orthogonal, only about the
    root of their number counts.

    Args:
        shares: of `path_shares`.
        samples: of `sampled_path_gradients`, for the same network and images.

    Returns:
        One row per length that was drawn: ``length``, ``norm`` (‖G_k‖, exact), ``parallel`` (C(n, k) times the mean
        of the paths' norms), ``orthogonal`` (root of C(n, k) times the mean of their squares) and ``coherence``
        (``norm / parallel``: at most 1 but for the chance of the draws).
    """
    paths = shares.set_index("length").paths.astype(float)
    norm = shares.set_index("length").norm
    drawn = samples.groupby("length").norm
    parallel = (paths * drawn.mean()).dropna()
    orthogonal = (paths * drawn.agg(lambda norms: (norms**2).mean())).dropna() ** 0.5
    columns = {"norm": norm[parallel.index], "parallel": parallel, "orthogonal": orthogonal}
    return pd.DataFrame(columns | {"coherence": columns["norm"] / parallel}).reset_index()


def mean_length(weights: Iterable[float]) -> float:
    """Mean path length under weights for the lengths 0, 1, ..., n, which may be negative.

    Under the ``share`` of `path_shares`, it is how fast the gradient grows, along its own direction and relative to
    its size, when all residual branches' Jacobians are scaled up together.

    Raises:
        UsageError: weights that are not finite, or have no sum that could be divided by.
    """
    values = np.array([float(weight) for weight in weights])
    if not np.isfinite(values).all() or not values.sum():
        raise UsageError(f"weights must be finite, and their sum not 0, found {values.tolist()}")
    return float(np.arange(len(values)) @ values / values.sum())


def shortest_interval(weights: Iterable[float], mass: float = 0.9) -> tuple[int, int]:
    """The fewest neighbouring lengths that hold the given part of all weights; of several, that which holds most.

    Args:
        weights: for the lengths 0, 1, ..., n, not negative: ``norm`` of `path_shares`, or `length_distribution`.
        mass: the part, above 0 and at most 1.

    Returns:
        The first and the last length.

    Raises:
        UsageError: a mass or weights outside what is allowed.
    """
    values = np.array([float(weight) for weight in weights])
    if not 0 < mass <= 1:
        raise UsageError(f"mass must be above 0 and at most 1, found {mass}")
    if not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise UsageError("weights must be finite and not negative, and one above 0")
    below = np.concatenate([[0.0], values.cumsum()])
    enough = mass * below[-1] * (1 - 1e-12)  # all is all, however the sums are rounded
    windows = (below[size:] - below[:-size] for size in range(1, len(below)))
    held = next(sums for sums in windows if sums.max() >= enough)  # of each window of the smallest size that suffices
    first = int(held.argmax())
    return first, first + len(values) - len(held)


def length_distribution(n: int) -> list[Fraction]:
    """Share of the 2^n paths through `n` units that have length 0, 1, ..., n: binomial, exact."""
    return [Fraction(math.comb(n, k), 2**n) for k in range(n + 1)]


def share_of_lengths(n: int, first: int, last: int) -> Fraction:
    """Share of the paths through `n` units with a length of `first` to `last`, both included: exact.

    Of 54 units' paths, 98.0 % have 19 to 35, where Veit et al. 2016 say 95 %, and 0.45 % have 5 to 17, as they say.

    Raises:
        UsageError: not ``0 <= first <= last <= n``.
    """
    distribution = length_distribution(n)
    if not 0 <= first <= last <= n:
        raise UsageError(f"expected lengths with 0 <= first <= last <= {n}, found {first} to {last}")
    return sum(distribution[first : last + 1], Fraction())
