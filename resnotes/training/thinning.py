"""Training only some of the blocks in each batch: short paths only, and stochastic depth.

Which blocks, a recipe says in one string:

    all                 every block in every batch
    exactly:k           k blocks, drawn uniformly for each batch (Veit et al. 2016, arXiv 1605.06431, Sec. 5)
    stochastic-depth:p  block l of L with probability 1 - l/L (1 - p), each on its own (Huang et al. 2016,
                        arXiv 1603.09382, Eq. 4)

The residual branch of a block that is left out adds nothing; its shortcut stays. The whole network is evaluated,
each branch times the probability that a batch trains it, so that the following layers find what they expect
(Huang et al., Eq. 5; Veit et al. do not say what they do). The trained network has these factors in its weights:
its forward pass is a plain one. To divide by them in training instead is the same in expectation only: on digits it
keeps resnet-56 with 12 of 27 blocks from learning. Without factors that network classifies at chance.

BN statistics are those of thinned networks: a block gathers its own in the batches that train it, and inputs then
vary more than in the whole network. Evaluation uses them as they are.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from resnotes.errors import UsageError
from resnotes.models.network import Block, Network, copied

FORMS = "all, exactly:k (whole k >= 1), stochastic-depth:p (0 < p <= 1)"


def parse(blocks: str) -> tuple[str, float]:
    """Name and number of a choice of blocks: ``"exactly:23"`` gives ``("exactly", 23)``, ``"all"`` ``("all", 1)``.

    Raises:
        UsageError: an unknown name, or a number that it does not take.
    """
    kind, colon, text = str(blocks).partition(":")
    with contextlib.suppress(ValueError):
        if kind == "all" and not colon:
            return kind, 1
        if kind == "exactly" and int(text) >= 1:
            return kind, int(text)
        if kind == "stochastic-depth" and 0 < float(text) <= 1:
            return kind, float(text)
    raise UsageError(f"unknown blocks {blocks!r}; allowed: {FORMS}")


def survival(blocks: str, count: int) -> Tensor:
    """The probability of each of `count` blocks to be trained in a batch, float64 ``[count]``.

    Raises:
        UsageError: see `parse`; or more blocks are asked for than there are.
    """
    kind, number = parse(blocks)
    if kind == "stochastic-depth":
        return 1 - torch.arange(1, count + 1, dtype=torch.float64) / count * (1 - number)
    if kind == "exactly" and number > count:
        raise UsageError(f"blocks={blocks!r}, but the network has {count}; allowed: exactly:1 to exactly:{count}")
    return torch.full((count,), number / count if kind == "exactly" else 1, dtype=torch.float64)


def draws(blocks: str, count: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
    """Which of `count` blocks each batch of an epoch trains, bool ``[count]``, batch after batch without end.

    A function of its arguments alone, so that a resumed training draws what an uninterrupted one does.

    Raises:
        UsageError: see `survival`, at once.
    """
    kind, number = parse(blocks)
    chances = survival(blocks, count)
    # The negative of the seed of order and crops: drawn from the same numbers, blocks would depend on images.
    generator = torch.Generator().manual_seed(-(seed * 1_000_003 + epoch))
    if kind == "exactly":
        return (torch.randperm(count, generator=generator) < number for _ in itertools.count())
    return (torch.rand(count, dtype=torch.float64, generator=generator) < chances for _ in itertools.count())


def _residual(network: nn.Module, blocks: str) -> Network:
    """`network`, if each of its blocks can be left out, and its branch takes a factor."""
    if (
        isinstance(network, Network)
        and len(network.blocks)
        and all(isinstance(block, Block) and block.shortcut is not None for block in network.blocks)
        and all(isinstance(block.residual, nn.Sequential) for block in network.blocks)
    ):
        return network
    name = getattr(network, "name", type(network).__name__)
    raise UsageError(
        f"blocks={blocks!r}: {name} is not made of blocks with a shortcut around a plain sequence of layers, so that"
        " none can be left out; allowed: all"
    )


def thin(network: Network, kept: Iterable[bool]) -> Network:
    """`network` without the residual branches that are not `kept`; it shares modules and weights."""
    blocks = [
        block if keep else nn.Sequential(block.shortcut, block.after)  # type: ignore[arg-type]
        for block, keep in zip(network.blocks, kept, strict=True)
    ]
    return network.with_blocks(blocks)


def thinned(network: nn.Module, blocks: str, *, seed: int, epoch: int) -> Iterator[nn.Module]:
    """What each batch of an epoch trains in place of `network`, batch after batch without end.

    Args:
        network: anything for ``"all"``; else a network of blocks with shortcuts around plain sequences of layers.
        blocks: see the head of this module.
        seed: of the run.
        epoch: 1, 2, ...

    Raises:
        UsageError: another network; or see `survival`.
    """
    if blocks == "all":
        return itertools.repeat(network)
    residual = _residual(network, blocks)
    drawn = draws(blocks, len(residual.blocks), seed=seed, epoch=epoch)
    return (thin(residual, kept.tolist()) for kept in drawn)


@torch.no_grad()
def whole(network: nn.Module, blocks: str) -> nn.Module:
    """What is evaluated after training `network`: a copy, each branch times its survival (Huang et al. 2016, Eq. 5).

    The factor goes into the last layer with weights: what may follow it in a branch, a ReLU or a constant factor,
    commutes with a positive one. For ``"all"`` it is `network` itself.

    Raises:
        UsageError: see `thinned`.
    """
    if blocks == "all":
        return network
    scaled = copied(_residual(network, blocks))
    for block, chance in zip(scaled.blocks, survival(blocks, len(scaled.blocks)).tolist(), strict=True):
        last = [layer for layer in block.residual if list(layer.parameters())][-1]  # type: ignore[union-attr]
        for parameter in last.parameters():
            parameter.mul_(chance)
    return scaled
