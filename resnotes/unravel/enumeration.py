"""All paths through a few units, one by one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from resnotes.errors import UsageError

MOST_LISTED = 20  # units of which all paths are listed


def all_paths(n: int) -> Tensor:
    """All paths through `n` units: each through the residual branch of a unit, or through its shortcut.

    Args:
        n: 0 to `MOST_LISTED`.

    Returns:
        bool ``[2^n, n]``, True where a path goes through the residual branch, as `gradients_along` takes them. The
        shortest paths come first; those of one length in the order of the units they go through: for three units
        none, 1, 2, 3, 12, 13, 23, 123.

    Raises:
        UsageError: `n` is outside that.
    """
    if not 0 <= n <= MOST_LISTED:
        raise UsageError(f"expected 0 to {MOST_LISTED} units, whose 2^n paths can be listed, found {n}")
    binary = (
        torch.arange(2**n, dtype=torch.int32)[:, None] >> torch.arange(n - 1, -1, -1) & 1 == 1
    )  # unit 1 is the first digit
    paths = binary.flip(0)  # 111, 110, ...: of one length, those through the first units come first
    return paths[paths.sum(1).argsort(stable=True)]


def surviving(paths: Tensor, deleted: int | Iterable[int]) -> Tensor:
    """Which paths are left when the residual branches of some units are deleted: those around all of these.

    Args:
        paths: bool ``[P, n]``, see `all_paths`. The only path of a feed-forward network goes through all units.
        deleted: one unit or several, counted from 0.

    Returns:
        bool ``[P]``.

    Raises:
        UsageError: a unit that there is not.
    """
    units = list(deleted) if isinstance(deleted, Iterable) else [deleted]
    n = paths.shape[1]
    if wrong := [unit for unit in units if not 0 <= unit < n]:
        raise UsageError(f"expected units 0 to {n - 1} to delete, found {wrong[0]}")
    return ~paths[:, units].any(1)
