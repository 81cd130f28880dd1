"""Lengths of paths: how many there are of each, what each contributes to the gradient, their mean, and its course."""

from __future__ import annotations

import math
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pandas as pd
from torch import Tensor

from resnotes.errors import UsageError


def shares(parts: Tensor, whole: Tensor) -> Tensor:
    """⟨g_i, g⟩ / ‖g‖² of each part g_i ``[K, ...]`` of a gradient g: float64 ``[K]``, on the CPU.

    Raises:
        UsageError: g is zero, or not finite.
    """
    total = whole.flatten().cpu().double()  # which not every GPU has
    if not total.isfinite().all() or not total.any():
        raise UsageError("expected a gradient that is finite and not zero: any other has no shares")
    return parts.flatten(1).cpu().double() @ total / (total @ total)


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
    flat = gradients.flatten(1).cpu().double()
    of_gradient, norms = shares(flat, flat.sum(0)), flat.norm(dim=1).numpy()
    n = len(flat) - 1
    return pd.DataFrame(
        {
            "length": range(n + 1),
            "paths": [math.comb(n, k) for k in range(n + 1)],
            "norm": norms,
            "norm_share": norms / norms.sum(),
            "share": of_gradient.numpy(),
        }
    )


def mean_length(weights: Iterable[float]) -> float:
    """Mean path length under weights for the lengths 0, 1, ..., n, which may be negative.

    Under the ``share`` of `path_shares`, it is how fast the gradient grows, along its own direction and relative to
    its size, when all residual branches' Jacobians are scaled up together.

    Raises:
        UsageError: weights that are not finite, or have no sum that could be divided by.
    """
    try:
        values = np.array([float(weight) for weight in weights])
    except (TypeError, ValueError) as error:
        raise UsageError(
            f"expected a number for each length, such as the column share of a table, found {error}"
        ) from None
    if not np.isfinite(values).all() or not values.sum():
        raise UsageError(f"weights must be finite, and their sum not 0, found {values.tolist()}")
    return float(np.arange(len(values)) @ values / values.sum())


def relative_lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Mean length of a network's paths, by signed shares, over that of all paths: a row a seed, a column a moment.

    Args:
        table: rows of `resnotes.unravel.length_study` with columns `seed` and `moment` of the training beside.
    """
    half = table.groupby(["seed", "moment"]).length.transform("max") / 2
    parts = table.assign(part=table.length / half * table.share)
    return parts.pivot_table(index="seed", columns="moment", values="part", aggfunc="sum")


def over_training(table: pd.DataFrame) -> pd.Series[float]:
    """`relative_lengths` over all moments, each weighted by the norm of its gradient (`total`): one a seed."""
    weights = table.pivot_table(index="seed", columns="moment", values="total")
    return (relative_lengths(table) * weights).sum(axis=1) / weights.sum(axis=1)


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
