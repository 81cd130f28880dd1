"""What becomes of a trained network under a lesion: its error, the predictions that change, and its path lengths."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor, nn

from resnotes.datasets import Classification
from resnotes.errors import UsageError
from resnotes.models import Block, Network
from resnotes.models.network import copied
from resnotes.models.shortcuts import Scale
from resnotes.unravel import (
    Lesion,
    deletable,
    exchangeable,
    kendall_tau,
    lesion_predictions,
    path_gradients,
    path_shares,
)

# Images that are classified, and those of them whose summed gradient is split by path length. With so many, a network
# of 110 layers on digits takes 0.7 to 0.8 s on one core.
IMAGES, TRACED = 500, 8

RAISED = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")

Shares: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]


def lesioned(network: Network, lesion: Lesion) -> Network:
    """What a lesion leaves of `network`, in as many units; it shares modules and weights.

    The residual branch of a deleted block is zero, so that no path through it carries anything. Where there was no
    shortcut there is now an identity: the way past is all that is left of the block.
    """
    blocks: list[nn.Module] = []
    for i in range(len(network.blocks)) if lesion.order is None else lesion.order:
        block: Any = network.blocks[i]
        if i in lesion.deleted:
            shortcut = nn.Identity() if block.shortcut is None else block.shortcut
            # Not plain zeros: of the shortcut's shape, and a gradient goes back through it.
            block = Block(nn.Sequential(shortcut, Scale(0)), shortcut, block.after)
        blocks.append(block)
    return network.with_blocks(blocks)


def swapped(lesion: Lesion, first: int, second: int, groups: Iterable[Sequence[int]]) -> Lesion:
    """`lesion`, and two blocks in each other's place.

    Args:
        lesion: what was done before.
        first: number of a block, as the network was built.
        second: that of another one.
        groups: of `exchangeable`.

    Raises:
        UsageError: the two cannot change places.
    """
    companions = {i: group for group in groups for i in group}
    if second not in companions[first]:
        others = ", ".join(str(i) for i in companions[first] if i != first)
        raise UsageError(
            f"blocks {first} and {second} cannot change places, their shapes or layers differ; block {first} can"
            f" with {others or 'no other'}"
        )
    order = list(range(len(companions)) if lesion.order is None else lesion.order)
    here, there = order.index(first), order.index(second)
    order[here], order[there] = second, first
    return Lesion(lesion.deleted, None if order == sorted(order) else tuple(order))


@dataclass(frozen=True, eq=False)
class LesionOutcome:
    """What became of a network.

    Attributes:
        lesion: what was done to it.
        predictions: int64 ``[N]``.
        error: percent of the N images.
        shares: what path lengths 0 to n contribute to the gradient, float64 ``[n + 1]``, see `path_shares`; None if
            the gradient is zero or not finite.
    """

    lesion: Lesion
    predictions: Tensor
    error: float
    shares: Shares | None


class Subject:
    """A trained network, and the test images on which it is examined.

    Args:
        network: of stem, blocks and head; what is examined is a copy of it, in eval mode.
        data: on whose training images the network was trained.

    Attributes:
        deletable: numbers of the blocks that can be deleted.
        groups: blocks that can change places, see `exchangeable`.
        intact: the network without a lesion.

    Raises:
        UsageError: another kind of network.
    """

    def __init__(self, network: Network, data: Classification) -> None:
        self.network = copied(network).eval()
        self.raw, self.labels = data.sample(IMAGES, held=True, raw=True)
        self.classes = data.classes
        self.images = data.normalization(self.raw).to(next(network.parameters()).device)
        self.traced = min(TRACED, len(self.images))
        self.deletable = deletable(self.network, self.images)
        self.groups = exchangeable(self.network, self.images)
        self.intact = self.examine(Lesion())

    def examine(self, lesion: Lesion) -> LesionOutcome:
        """The network after a lesion.

        Raises:
            UsageError: see `lesion_predictions`.
        """
        (predictions,) = lesion_predictions(self.network, [lesion], self.images)
        error = 100 * (predictions != self.labels).double().mean().item()
        return LesionOutcome(lesion, predictions, error, self._shares(lesion))

    def _shares(self, lesion: Lesion) -> Shares | None:
        images, labels = self.images[: self.traced], self.labels[: self.traced].to(self.images.device)
        gradients = path_gradients(lesioned(self.network, lesion), images, labels)
        if not gradients.isfinite().all() or not gradients.sum(0).any():
            return None
        return path_shares(gradients)["share"].to_numpy()

    def example(self) -> Lesion:
        """Three deleted blocks: a quarter, half and three quarters down the list of those that can go."""
        return Lesion(frozenset(self.deletable[len(self.deletable) * k // 4] for k in (1, 2, 3) if self.deletable))

    def ways(self, lesion: Lesion) -> int:
        """Number of blocks at which a path can go two ways; of n such blocks, there are 2^n paths."""
        shortcuts = {i for i, block in enumerate(self.network.blocks) if block.shortcut is not None}
        return len(shortcuts - lesion.deleted)

    def changed(self, outcome: LesionOutcome) -> list[int]:
        """Numbers of the images that the intact network takes for something else."""
        numbers: list[int] = (outcome.predictions != self.intact.predictions).nonzero().flatten().tolist()
        return numbers

    def structure(self, lesion: Lesion) -> str:
        """Paths and order after a lesion, in a few words."""
        paths = (
            f"2{str(self.ways(lesion)).translate(RAISED)} paths left of 2{str(self.ways(Lesion())).translate(RAISED)}"
        )
        order = kendall_tau(lesion.order or range(len(self.network.blocks)))
        return f"{paths if self.ways(Lesion()) else 'one path'}, Kendall τ {order:.2f}"

    def summary(self, outcome: LesionOutcome) -> str:
        """A outcome in one line."""
        error = f"error {outcome.error:.1f} % (intact {self.intact.error:.1f} %)"
        changed = f"{len(self.changed(outcome))} of {len(self.images)} predictions changed"
        return f"{error}, {changed}, {self.structure(outcome.lesion)}"
