"""Lesion studies: the error of a trained network without some of its blocks, or with blocks in another order.

Veit et al. 2016, Sec. 4: deleting one block (Fig. 3), many (Fig. 5a), and reordering them (Fig. 5b). Of a deleted
block the residual branch goes; its shortcut, down-sampling included, and what follows the addition stay:
``after(shortcut(x))``, without a shortcut ``after(x)``. (With ReLU after the addition that is the identity on the
non-negative maps between blocks.) The deletion itself is `resnotes.unravel.steps.Steps.delete`.

All measures take normalised images ``[N, C, H, W]``, of which a language model has tokens in place, int64 ``[N, T]``.
They use eval mode and leave the network alone: the arithmetic is done on a copy, so a sweep that is interrupted leaves
nothing behind.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor, nn

from resnotes.errors import UsageError, unknown
from resnotes.models.adapters import blocks_of
from resnotes.models.inputs import check_images, check_labels, check_logits, evaluating
from resnotes.models.network import in_mode, kept_statistics
from resnotes.models.passes import check
from resnotes.unravel.steps import Repaired, Site, prepare, survey
from resnotes.unravel.tree import walk

# Maps of a batch between blocks, at most: larger batches are no faster on a CPU. A sweep takes a few times that.
MAP_BYTES = 32 << 20
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


@dataclass(frozen=True)
class Lesion:
    """Blocks to be deleted, another order of the blocks, or both.

    Attributes:
        deleted: numbers of the blocks, from 0, as the network was built; wherever they stand in `order`.
        order: ``order[i]`` is the block that stands at position i; None: as built.
    """

    deleted: frozenset[int] = frozenset()
    order: tuple[int, ...] | None = None


def _groups(model: nn.Module, sites: Sequence[Site]) -> list[tuple[int, ...]]:
    groups: defaultdict[object, list[int]] = defaultdict(list)
    for i, (block, site) in enumerate(zip(blocks_of(model), sites, strict=True)):
        groups[site.inputs, site.outputs, repr(block)].append(i)  # layers, their sizes and their settings
    return [tuple(group) for group in groups.values()]


def _deletable(sites: Sequence[Site]) -> tuple[int, ...]:
    return tuple(i for i, site in enumerate(sites) if site.lesioned == site.outputs)


def _checked(
    lesion: Lesion | Iterable[int], number: int, can_go: Sequence[int], groups: Sequence[tuple[int, ...]]
) -> Lesion:
    """`lesion` as a `Lesion` of blocks that there are, which changes no shape on the way."""
    try:
        given = lesion if isinstance(lesion, Lesion) else Lesion(frozenset(lesion))
        checked = Lesion(frozenset(given.deleted), None if given.order is None else tuple(map(int, given.order)))
    except (TypeError, ValueError):
        raise UsageError(
            f"lesion {number}: expected a Lesion or numbers of blocks to delete, found {lesion!r}"
        ) from None
    for i in checked.deleted:
        if not isinstance(i, Integral) or isinstance(i, bool) or i not in can_go:
            raise UsageError(
                f"lesion {number} deletes block {i!r}; blocks that can go, as the shape is the same without them:"
                f" {', '.join(map(str, can_go)) or 'none'}"
            )
    if checked.order is not None:
        companions = {i: group for group in groups for i in group}
        if sorted(checked.order) != sorted(companions):
            raise UsageError(
                f"lesion {number}: the order {checked.order} is no permutation of the blocks 0 to {len(companions) - 1}"
            )
        for position, i in enumerate(checked.order):
            if i not in companions[position]:
                raise UsageError(
                    f"lesion {number} puts block {i} at position {position}, which has another shape; blocks that"
                    f" can stand there: {', '.join(map(str, companions[position]))}"
                )
    return checked


def _measure(
    model: nn.Module,
    lesions: Iterable[Lesion | Iterable[int]],
    images: Tensor,
    dtype: torch.dtype,
    repair: Tensor | None,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """What `read` makes of the logits under each lesion, ``[number of lesions, N, ...]``."""
    check(model, images)
    if repair is not None:
        check_images(repair)
    if dtype not in DTYPES:
        raise unknown("dtype", dtype, map(str, DTYPES))
    if not isinstance(lesions, Iterable):
        raise UsageError(f"expected lesions, each a Lesion or numbers of blocks to delete; found {lesions!r}")
    with _at_rest(model):
        steps = prepare(model, images)
        sites = survey(steps, images[:1])
        can_go, groups = _deletable(sites), _groups(model, sites)
        checked = [_checked(lesion, number, can_go, groups) for number, lesion in enumerate(lesions)]
        numbers = range(len(sites))
        # Where there are none, an empty result of the right shape.
        programs = [
            tuple((i, i in lesion.deleted) for i in lesion.order or numbers) for lesion in checked or [Lesion()]
        ]
        image_bytes = max(site.largest for site in sites) * steps.input(images[:1]).element_size()
        steps = steps if repair is None else Repaired(steps, repair)
        with evaluating(model, images if repair is None else repair):
            found = walk(steps, programs, images, DTYPES[dtype], max(1, MAP_BYTES // image_bytes), read)
    return found[: len(checked)].clone()  # of which anything can be made, as of no tensor from inference mode


@contextlib.contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Copies are evaluated, but what they call may be the model's own, such as a function in place of a forward."""
    with in_mode(model, training=False), kept_statistics(model):
        yield


def lesion_logits(
    model: nn.Module,
    lesions: Iterable[Lesion | Iterable[int]],
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    repair: Tensor | None = None,
) -> Tensor:
    """The logits of a network under each lesion, in eval mode.

    What several lesions have in common from the stem on is computed once, see `resnotes.unravel.tree`.

    Args:
        model: a network with stem, blocks and head; neither its weights nor its mode are touched.
        lesions: each a `Lesion`, or the numbers of the blocks that are deleted.
        images: normalised images ``[N, C, H, W]``.
        dtype: ``torch.float32`` predicts what a plain loop over the lesions would (but for ties);
            ``torch.bfloat16`` is faster and may change some predictions.
        repair: normalised images ``[M, C, H, W]`` of the training set. With them, the statistics of all BN layers are
            computed anew after each lesion, as `resnotes.models.recalibrate` does on these images: what a
            lesion then costs is lost computation, and not that the statistics became stale. Nothing is trained; in a
            network without BN, such as a transformer, nothing changes.

    Returns:
        ``[number of lesions, N, classes]``, on the CPU.

    Raises:
        UsageError: no such block, a block that cannot be deleted or moved there, an order that is no
            permutation, no images, another kind of model, another dtype, or repair images that BN cannot be run on.
    """
    return _measure(model, lesions, images, dtype, repair, lambda logits: logits)


def lesion_predictions(
    model: nn.Module,
    lesions: Iterable[Lesion | Iterable[int]],
    images: Tensor,
    dtype: torch.dtype = torch.float32,
    repair: Tensor | None = None,
) -> Tensor:
    """The classes that a network predicts under each lesion, int64 ``[number of lesions, N]``; see `lesion_logits`.

    Where logits are NaN it is -1: what is no number is no class either.
    """
    return _measure(model, lesions, images, dtype, repair, lambda logits: _classes(_of_images(model, logits)))


def _of_images(model: nn.Module, logits: Tensor) -> Tensor:
    return check_logits(logits, f"the head of {type(model).__name__}", len(logits))


def _classes(logits: Tensor) -> Tensor:
    return logits.argmax(1).where(~logits.isnan().any(1), -1)


def lesion_errors(
    model: nn.Module,
    lesions: Iterable[Lesion | Iterable[int]],
    images: Tensor,
    labels: Tensor,
    dtype: torch.dtype = torch.float32,
    repair: Tensor | None = None,
) -> Tensor:
    """The error of a network under each lesion (Veit et al. 2016, Figs. 3 and 5).

    Args:
        model: see `lesion_logits`, also for the other arguments.
        lesions: each a `Lesion`, or the numbers of the blocks that are deleted.
        images: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        dtype: of the arithmetic, float32 or bfloat16.
        repair: images on which BN's statistics are computed anew after each lesion; None: they stay as they are.

    Returns:
        Percent of the images, float64 ``[number of lesions]``; an image whose logits are NaN counts as wrong.

    Raises:
        UsageError: see `lesion_logits`; or not one label of its classes an image.
    """
    check(model, images, labels)

    def predictions(logits: Tensor) -> Tensor:
        check_labels(labels, images, _of_images(model, logits).shape[1])
        return _classes(logits)

    predicted = _measure(model, lesions, images, dtype, repair, predictions)
    return 100 * (predicted != labels.cpu().long()).double().mean(1)


def deletable(model: nn.Module, images: Tensor) -> tuple[int, ...]:
    """Numbers of the blocks that can go: without the residual branch, their output has the same shape.

    Args:
        model: a network with stem, blocks and head.
        images: normalised ``[N, C, H, W]``; the first one is sent through.

    Raises:
        UsageError: no images, or another kind of model.
    """
    return _deletable(_survey(model, images))


def exchangeable(model: nn.Module, images: Tensor) -> list[tuple[int, ...]]:
    """All blocks, in groups that can change places: of equal shapes and made of equal layers.

    Args:
        model: a network with stem, blocks and head.
        images: normalised ``[N, C, H, W]``; the first one is sent through.

    Raises:
        UsageError: no images, or another kind of model.
    """
    return _groups(model, _survey(model, images))


def shrinking(model: nn.Module, images: Tensor) -> tuple[int, ...]:
    """Numbers of the blocks whose output map is smaller than their input map; see `deletable`."""
    return tuple(i for i, site in enumerate(_survey(model, images)) if site.outputs[1:] != site.inputs[1:])


def _survey(model: nn.Module, images: Tensor) -> list[Site]:
    check(model, images)
    with _at_rest(model):
        return survey(prepare(model, images), images[:1])


# Protocols


def single_deletions(blocks: Iterable[int] | nn.Module) -> list[Lesion]:
    """Each of `blocks`, or of a network's, by itself (Veit et al. 2016, Fig. 3)."""
    blocks = range(len(blocks_of(blocks))) if isinstance(blocks, nn.Module) else blocks
    return [Lesion(frozenset({i})) for i in blocks]


def pairs(blocks: Iterable[int]) -> list[Lesion]:
    """Each two of `blocks`."""
    return [Lesion(frozenset(pair)) for pair in itertools.combinations(blocks, 2)]


def contiguous_deletions(blocks: Iterable[int], k: int) -> list[Lesion]:
    """Every run of `k` consecutive numbers among `blocks` (Gromov et al. 2024, arXiv 2403.17887).

    Raises:
        UsageError: `k` is less than 1.
    """
    if k < 1:
        raise UsageError(f"expected runs of 1 block or more, found {k}")
    numbers = set(blocks)
    runs = (frozenset(range(first, first + k)) for first in sorted(numbers))
    return [Lesion(run) for run in runs if run <= numbers]


def random_deletions(blocks: Iterable[int], k: int, draws: int, generator: torch.Generator) -> list[Lesion]:
    """Deletions of `k` of `blocks` at a time, each set as likely as any other (Veit et al. 2016, Fig. 5a).

    Args:
        blocks: numbers of the blocks that may go, see `deletable`.
        k: blocks per lesion.
        draws: number of lesions, drawn independently of each other.
        generator: the source of the draws.

    Raises:
        UsageError: `k` is negative or more than there are.
    """
    numbers = list(blocks)
    if not 0 <= k <= len(numbers):
        raise UsageError(f"cannot delete {k} of {len(numbers)} blocks; allowed: 0 to {len(numbers)}")
    drawn = (torch.randperm(len(numbers), generator=generator)[:k].tolist() for _ in range(draws))
    return [Lesion(frozenset(numbers[place] for place in places)) for places in drawn]


def random_reorderings(
    groups: Iterable[Sequence[int]], swaps: int, draws: int, generator: torch.Generator
) -> list[Lesion]:
    """Orders after `swaps` exchanges of two random blocks of equal shape (Veit et al. 2016, Sec. 4.3, Fig. 5b).

    Args:
        groups: see `exchangeable`.
        swaps: exchanges, one after the other, each of any two positions that allow it, all equally likely.
        draws: number of orders, drawn independently of each other.
        generator: the source of the draws.

    Raises:
        UsageError: `swaps` is negative, no two blocks have equal shape, or the groups do not hold every block once.
    """
    groups = [tuple(group) for group in groups]
    blocks = sorted(itertools.chain.from_iterable(groups))
    if blocks != list(range(len(blocks))):
        raise UsageError(f"expected groups that hold every block once, as `exchangeable` gives them; found {groups}")
    allowed = [pair for group in groups for pair in itertools.combinations(group, 2)]
    if swaps < 0:
        raise UsageError(f"expected 0 swaps or more, found {swaps}")
    if swaps and not allowed:
        raise UsageError("no two blocks have equal shape, so no two can be exchanged")
    lesions = []
    for _ in range(draws):
        order = list(blocks)
        for drawn in torch.randint(max(1, len(allowed)), (swaps,), generator=generator).tolist():
            i, j = allowed[drawn]
            order[i], order[j] = order[j], order[i]
        lesions.append(Lesion(order=tuple(order)))
    return lesions


def kendall_tau(order: Sequence[int]) -> float:
    """Rank correlation of an order with the original one: 1 for the same, -1 for the reverse.

    Of all pairs of blocks, the share still in order less the share that is not (Veit et al. 2016, Fig. 5b).

    Raises:
        UsageError: no permutation of 0, 1, ...
    """
    if sorted(order) != list(range(len(order))):
        raise UsageError(f"expected a permutation of 0 to {len(order) - 1}, found {tuple(order)}")
    if len(order) < 2:
        return 1.0  # there is no pair that could be out of order
    from scipy.stats import kendalltau  # half a second of import

    return float(kendalltau(range(len(order)), order).statistic)
