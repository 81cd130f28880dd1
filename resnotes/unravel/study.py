"""Studies of a network, a table each: lesions of all kinds, all pairs of deletions, and its paths by their length."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.models.inputs import check_labels
from resnotes.models.passes import check
from resnotes.unravel.gradients import path_gradients, path_norms
from resnotes.unravel.lengths import mean_length, path_shares
from resnotes.unravel.lesions import (
    Lesion,
    contiguous_deletions,
    deletable,
    exchangeable,
    kendall_tau,
    lesion_logits,
    lesion_predictions,
    pairs,
    random_reorderings,
    shrinking,
    single_deletions,
)

SWAPS = (1, 2, 4, 8, 12, 16, 24)  # pairs of blocks that are exchanged, one after the other
MARKS = ".x"  # of an image that was right, and of one that was wrong
MOST = 20  # blocks deleted at once, as in Veit et al. 2016, Fig. 5a


def lesion_study(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    draws: int = 0,
    lengths: Iterable[int] = (),
    seed: int = 0,
    repair: Tensor | None = None,
    repaired: Collection[str] = ("single",),
) -> pd.DataFrame:
    """What a network gets wrong under each lesion (Veit et al. 2016, Figs. 3 and 5; Gromov et al. 2024 for runs).

    Args:
        model: a network with stem, blocks and head; it is left alone.
        images: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        draws: random orders along which blocks are deleted, and orders for each number of exchanges; 0 for neither.
        lengths: of runs of consecutive blocks that are deleted together, from each block on from which they can be.
        seed: of the draws.
        repair: normalised training images on which BN's statistics are taken anew after each lesion of a kind that is
            `repaired`, see `resnotes.unravel.lesion_logits`; None for lesions as they are alone. Without BN, nothing
            changes.
        repaired: of the kinds ``"single"``, ``"run"``, ``"random"``, ``"exchanged"``.

    Returns:
        A row for each lesion, with `bn` (``"as trained"`` or ``"repaired"``), `kind` (these four, and ``"intact"``
        once for each `bn`), `k` (the deleted block, or how many are deleted or exchanged), `x` (the same, but the first
        block of a run, and Kendall's τ of an order), `draw`, `shrinks` (whether a single block that is deleted, or one
        of a run, changes the size of the map), `error` in percent, and `wrong`: a character an image, see `wrong`.

    Raises:
        UsageError: see `resnotes.unravel.lesion_logits`; or not one label an image.
    """
    check(model, images, labels)
    labels = labels.cpu().long()
    plan = pd.DataFrame(_plan(model, images, draws, lengths, seed), columns=["kind", "k", "x", "draw", "lesion"])
    smaller = shrinking(model, images)
    changes = plan.lesion.map(lambda lesion: not lesion.deleted.isdisjoint(smaller))
    plan["shrinks"] = plan.kind.isin(["single", "run"]) & changes
    tables = []
    for bn, statistics in (("as trained", None), ("repaired", repair)):
        rows = plan if bn == "as trained" else plan[plan.kind.isin(["intact", *repaired])]
        if bn == "as trained" or repair is not None:
            missed = lesion_predictions(model, rows.lesion, images, repair=statistics) != labels
            marks = ["".join(MARKS[each] for each in row) for row in missed.tolist()]
            table = rows.drop(columns="lesion").assign(bn=bn, error=100 * missed.double().mean(1).numpy(), wrong=marks)
            tables.append(table)
    return pd.concat(tables, ignore_index=True)


def pair_study(
    model: nn.Module, images: Tensor, labels: Tensor, *, repair: Tensor | None = None, batches: int = 1
) -> pd.DataFrame:
    """What the deletion of two blocks does, against what their two single deletions do.

    Args:
        model: a network with stem, blocks and head; it is left alone.
        images: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        repair: see `lesion_study`.
        batches: so many parts of the images, for each of which the same is said.

    Returns:
        A row for each `batch` and pair of blocks that can go: `first` and `second`; `loss`, by how much deleting both
        raises the mean cross-entropy, and `interaction`, what is left of it without the rises that deleting each alone
        makes; `logits`, the norm of the change of all logits, and `logits_left`, that of what is left of it likewise;
        and `loss_left`, the loss above that of logits whose two changes add up. (The loss bends: where these do, its
        rises need not.)

    Raises:
        UsageError: see `resnotes.unravel.lesion_logits`; not one label of its classes an image; fewer than one batch,
            or more than images.
    """
    if not 1 <= batches <= len(images):
        raise UsageError(f"expected 1 to {len(images)} batches of {len(images)} images, found {batches}")
    check(model, images, labels)
    blocks = deletable(model, images)
    pairs_of = [sorted(pair.deleted) for pair in pairs(blocks)]
    every = [Lesion(), *single_deletions(blocks), *pairs(blocks)]
    single = {block: number for number, block in enumerate(blocks, start=1)}
    apart = torch.tensor([[single[block] for block in pair] for pair in pairs_of]).reshape(-1, 2)
    both = slice(1 + len(blocks), None)
    tables = []
    every_logits = lesion_logits(model, every, images, repair=repair)
    check_labels(labels, images, every_logits.shape[2])
    labels = labels.cpu().long()
    for batch, (part, targets) in enumerate(
        zip(every_logits.tensor_split(batches, dim=1), labels.tensor_split(batches), strict=True)
    ):
        losses = torch.stack([F.cross_entropy(each, targets) for each in part])
        summed = part[apart].sum(1) - part[0]  # the logits, if the two changes added up
        expected = torch.tensor([F.cross_entropy(each, targets) for each in summed])
        table = pd.DataFrame(pairs_of, columns=["first", "second"]).assign(
            batch=batch,
            loss=(losses[both] - losses[0]).numpy(),
            interaction=(losses[both] + losses[0] - losses[apart].sum(1)).numpy(),
            loss_left=(losses[both] - expected).numpy(),
            logits=(part[both] - part[0]).flatten(1).norm(dim=1).numpy(),
            logits_left=(part[both] - summed).flatten(1).norm(dim=1).numpy(),
        )
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def select(table: pd.DataFrame, *kinds: str, bn: str = "as trained", **where: object) -> pd.DataFrame:
    """The rows of a `lesion_study` of these kinds, and of one value each of other columns, such as ``seed=0``."""
    chosen = table.kind.isin(kinds) & (table.bn == bn)
    for column, value in where.items():
        chosen &= table[column] == value
    return table[chosen]


def wrong(table: pd.DataFrame) -> NDArray[np.bool_]:
    """Which images were wrong under the lesions of a `lesion_study`, ``[lesions, images]``."""
    return np.array([[mark == MARKS[True] for mark in marks] for marks in table.wrong])


def excess(table: pd.DataFrame, other: pd.DataFrame) -> NDArray[np.float64]:
    """By how much each image is more often wrong under lesions of one table than of another, in points ``[images]``."""
    mine, others = (100 * wrong(each).mean(0) for each in (table, other))
    return np.asarray(mine - others)


def length_study(model: nn.Module, images: Tensor, labels: Tensor, *, draws: int = 0, seed: int = 0) -> pd.DataFrame:
    """What paths of one length carry, together and alone (Veit et al. 2016, Fig. 6).

    Args:
        model: a network with stem, blocks and head, in the mode in which it is.
        images: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        draws: of random signs, see `resnotes.unravel.path_norms`; 0 for nothing that takes them.
        seed: of these.

    Returns:
        A row for each `length` from 0: the `number` of paths; the `norm` of what they sum to, its `norm_share`, and
        their `share` of the gradient, see `resnotes.unravel.path_shares`; the norm of the whole gradient, `total`; and
        of the mean lengths of single images the 10th, 50th and 90th in a hundred, `low`, `median` and `high`. With
        draws, `single`, the root mean square of the norms of single paths, and what these would sum to if they pointed
        the same way, `parallel` (number times `single`), or if their directions were independent, `independent` (with
        the root of the number).

    Raises:
        UsageError: see `resnotes.unravel.path_gradients` and `path_norms`.
    """
    gradients = path_gradients(model, images, labels)
    table = path_shares(gradients).rename(columns={"paths": "number"}).astype({"number": float})
    images_with = (image for image in gradients.unbind(1) if image.sum(0).any())  # one that is fitted has none
    means = [mean_length(path_shares(image).share) for image in images_with]
    low, median, high = np.quantile(means, (0.1, 0.5, 0.9))
    table = table.assign(total=gradients.sum(0).norm().item(), low=low, median=median, high=high)
    if not draws:
        return table
    squares = path_norms(model, images, labels, draws, torch.Generator().manual_seed(seed)).mean(0).numpy()
    single = np.sqrt(squares / table.number)
    return table.assign(single=single, parallel=table.number * single, independent=np.sqrt(squares))


def _plan(
    model: nn.Module, images: Tensor, draws: int, lengths: Iterable[int], seed: int
) -> Iterator[tuple[str, int, float, int, Lesion]]:
    generator = torch.Generator().manual_seed(seed)
    can_go, groups = deletable(model, images), exchangeable(model, images)
    yield "intact", 0, 0, 0, Lesion()
    yield from (("single", i, i, 0, lesion) for i, lesion in zip(can_go, single_deletions(can_go), strict=True))
    for length in lengths:
        yield from (("run", length, min(run.deleted), 0, run) for run in contiguous_deletions(can_go, length))
    for draw in range(draws):
        yield from (("random", k, k, draw, lesion) for k, lesion in enumerate(_nested(can_go, generator), start=1))
    for swaps in SWAPS if any(len(group) > 1 for group in groups) else ():
        for draw, lesion in enumerate(random_reorderings(groups, swaps, draws, generator)):
            yield "exchanged", swaps, kendall_tau(lesion.order or ()), draw, lesion


def _nested(blocks: Sequence[int], generator: torch.Generator) -> list[Lesion]:
    """Along a random order, one more each time."""
    order = [blocks[i] for i in torch.randperm(len(blocks), generator=generator)]
    return [Lesion(frozenset(order[:k])) for k in range(1, min(MOST, len(order)) + 1)]
