"""All paths through a few units, one by one: what `resnotes.unravel.drawing` draws, read from a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from resnotes.drawings import read_steps
from resnotes.errors import UsageError
from resnotes.models import Network

MOST_LISTED = 20  # units of which all paths are listed


class Unit(NamedTuple):
    """What a view shows of a unit.

    Attributes:
        name: what its residual branch is called, ``"f1"``.
        downsamples: the maps become smaller in it.
        identity: its shortcut is the identity.
        after: what follows its addition, as written: ``"ReLU"``, or nothing.
    """

    name: str
    downsamples: bool = False
    identity: bool = True
    after: str = ""

    @property
    def symbol(self) -> str:
        """Its name in mathematical type."""
        return f"$f_{{{self.name[1:]}}}$"

    @property
    def on_shortcut(self) -> str:
        """What is written on its shortcut, if anything."""
        return "" if self.identity else "↓" if self.downsamples else "h"


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


def read_units(network: Network | int) -> list[Unit]:
    """The units of a residual network, or so many with identity shortcuts.

    Raises:
        UsageError: no unit, one without a shortcut, or something after an addition that no drawing shows.
    """
    if isinstance(network, int):
        units = [Unit(f"f{i + 1}") for i in range(network)]
    else:
        units = []
        for i, block in enumerate(network.blocks, 1):
            if block.shortcut is None:
                raise UsageError(f"{network.name} has no shortcut in unit {i}: expected a residual network")
            strides = [module.stride for module in block.residual.modules() if isinstance(module, nn.Conv2d)]  # type: ignore[union-attr]
            after = ", ".join(step.text for step in read_steps(block.after))  # type: ignore[arg-type]
            units.append(
                Unit(f"f{i}", any(s != (1, 1) for s in strides), isinstance(block.shortcut, nn.Identity), after)
            )
    if not units:
        raise UsageError("expected at least one unit, found none")
    return units


def path_table(
    network: Network | int,
    *,
    deleted: int | Iterable[int] | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> pd.DataFrame:
    """What the views draw.

    Args:
        network: a residual network, or a number of units.
        deleted: units whose residual branch is deleted, counted from 0.
        weights: a number for each of `all_paths`, not negative.

    Returns:
        One row for each of `all_paths`, in their order: ``path`` (the units' names, that which acts last first:
        ``"f3·f1"``; ``"identity"`` around all of them, or ``"shortcuts"`` if these are not all identities), ``length``,
        ``survives``, and ``weight`` if there are weights.

    Raises:
        UsageError: units that there are not, or weights that do not fit.
    """
    units = read_units(network)
    paths = all_paths(len(units))
    around = "identity" if all(unit.identity for unit in units) else "shortcuts"
    taken = [[unit.name for unit, through in zip(units, path, strict=True) if through] for path in paths.tolist()]
    columns: dict[str, Any] = {
        "path": ["·".join(reversed(names)) or around for names in taken],
        "length": [len(names) for names in taken],
        "survives": surviving(paths, [] if deleted is None else deleted).tolist(),
    }
    if weights is not None:
        values = [float(weight) for weight in weights]
        if len(values) != len(paths):
            raise UsageError(f"expected {len(paths)} weights, one for each path, found {len(values)}")
        if not np.isfinite(values).all() or min(values) < 0:
            raise UsageError("expected weights that are finite and not negative")
        columns["weight"] = values
    return pd.DataFrame(columns)
