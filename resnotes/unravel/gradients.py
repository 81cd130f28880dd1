"""Gradients by the length of the paths that carry them (Veit et al. 2016, Sec. 5 and Fig. 6), exact or by random signs.

A unit computes y = after(shortcut(x) + residual(x)). Linearised at the data, it takes the gradient g at y to

    Sᵀ Dᵀ g + Fᵀ Dᵀ g

with the Jacobians D of what follows the addition, S of the shortcut and F of the residual branch. Multiplied out over
n units, these are 2^n products, one for each path, and the length of a path is the number of its F. Carrying a
polynomial back, whose k-th coefficient G_k is the sum over all paths of length k, takes n(n + 1)/2 products with F:

    G_k  <-  Sᵀ Dᵀ G_k + Fᵀ Dᵀ G_{k-1}

Every function here takes the network in the mode in which it is: in eval mode BN uses its running statistics, and the
images do not depend on each other; in training mode it uses those of the batch, and the Jacobians are of the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.models.adapters import Parts
from resnotes.models.network import branches, copied, has_forward
from resnotes.models.passes import check_repeatable, classify, measuring, visit
from resnotes.unravel.lengths import shares

# Elements of the gradients that go back through a branch at once. Few small ones are slow one by one; many large ones
# leave the processor's cache.
_AT_ONCE = 2**20

# Of float32 gradients through many layers of a network that was not trained, one part in a hundred may be rounding.
_SUM = 0.1

Map = Callable[[Tensor], Tensor]


class _Unit(NamedTuple):
    """A unit at the data: the block, its input and the sum that its addition puts out."""

    block: Parts
    x: Tensor
    sum: Tensor

    def pullbacks(self) -> tuple[Map, Map | None, Map]:
        """Of what follows the addition, of the shortcut and of the residual branch."""
        with torch.enable_grad():
            # Parts are given copies, over which they may write: a ReLU in place does.
            total = self.sum.detach().requires_grad_()
            after = _pullback(self.block.after(total.clone()), total)
            x = self.x.detach().requires_grad_()
            residual, shortcut = (
                None if part is None else _pullback(part.expand_as(total), x)  # an addition may spread it over more
                for part in branches(self.block, x.clone())
            )
        assert residual is not None
        return after, shortcut, residual


def _zeros(count: int, like: Tensor) -> Tensor:
    """Zeros ``[count, *like]`` in the memory format of `like`, with memory of their own where `like` repeats itself."""
    strides = torch.empty_like(like, device="meta").stride()
    return like.new_empty_strided((count, *like.shape), (like.numel(), *strides)).zero_()


def _pullback(output: Tensor, x: Tensor) -> Map:
    """Takes ``[K, *output]`` cotangents to their products with the Jacobian of `output` by `x`, ``[K, *x]``."""

    def back(cotangents: Tensor) -> Tensor:
        found = _zeros(len(cotangents), x)
        if output.requires_grad:  # else it is a constant
            at_once = max(1, _AT_ONCE // output.numel())
            for start in range(0, len(cotangents), at_once):
                some = slice(start, start + at_once)
                (found[some],) = torch.autograd.grad(
                    output, x, cotangents[some], retain_graph=True, is_grads_batched=True
                )
        return found

    return back


def _linearise(model: nn.Module, images: Tensor, labels: Tensor) -> tuple[list[_Unit], Tensor]:
    """The units at the data, and the gradient of the summed cross-entropy at the output of the last.

    They are those of a copy: passes in training mode would change BN's running statistics.
    """
    check_repeatable(model)
    try:
        # Convolutions of many small maps are up to three times as fast with the channels last.
        return _units(model, images, labels, torch.channels_last)
    except UsageError:
        raise
    except Exception:  # a `view` in a network that somebody else wrote needs them first
        return _units(model, images, labels, torch.contiguous_format)


def _units(
    model: nn.Module, images: Tensor, labels: Tensor, memory_format: torch.memory_format
) -> tuple[list[_Unit], Tensor]:
    """See `_linearise`."""
    network: Any = copied(model).requires_grad_(False).to(memory_format=memory_format)  # no gradients of weights
    units = list[_Unit]()

    def through(block: Parts, x: Tensor) -> Tensor:
        found = visit(block, x)
        units.append(_Unit(block, x, found.sum))
        return found.output

    with torch.no_grad():
        last, _, labels = classify(network, images.clone(memory_format=memory_format), labels, through)
    with torch.enable_grad():
        last = last.detach().requires_grad_()
        loss = F.cross_entropy(network.head(last.clone()), labels, reduction="sum")
        return units, torch.autograd.grad(loss, last)[0]


def path_gradients(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """The gradient of the summed cross-entropy at the first unit's input, split by path length: exact.

    Args:
        model: any network of stem, blocks and head; left as it was. What counts as the shortcut path is all of a
            unit's shortcut, with the projections and gates in it.
        images: normalised images ``[N, C, H, W]``, or tokens int64 ``[N, T]``, where the stem takes these. Memory grows
            with them; in eval mode they can be split.
        labels: int64 ``[N]``.

    Returns:
        ``[n + 1, *first unit's input]`` with n the number of units: at k, the sum over all paths through k residual
        branches. The sum over k is the gradient. Units without shortcuts have no way around: in a plain network
        all is at k = n.

    Raises:
        UsageError: no images, labels that do not fit, active dropout, or a model of another shape.
    """
    with measuring(model, images, labels):
        units, gradient = _linearise(model, images, labels)
        by_length = _by_length(units, gradient)
        _check_sum(model, units, gradient, by_length.sum(0))
        return by_length


def _check_sum(model: nn.Module, units: Sequence[_Unit], gradient: Tensor, total: Tensor) -> None:
    """Refuse a network of which what goes through the parts of its blocks is not what goes through the blocks."""
    if total.dtype.itemsize < 4:  # in fewer, rounding could not be told from an error
        return
    expected = _through(units, gradient)
    if (total - expected).norm() > _SUM * expected.norm():
        raise UsageError(
            f"the paths of {type(model).__name__} do not add up to the gradient that autograd finds through its"
            " blocks: something in them has no derivative of its own, such as a detached branch or a hook"
        )


def _through(units: Sequence[_Unit], gradient: Tensor) -> Tensor:
    """The gradient at the first unit's input, by autograd through the blocks as they are called."""
    with torch.enable_grad():
        first = units[0].x.detach().requires_grad_()
        x = first.clone()
        for unit in units:
            block: Any = unit.block
            x = block(x.clone()) if has_forward(block) else visit(block, x).output
        (found,) = torch.autograd.grad(x, first, gradient, materialize_grads=True)
    return found


def _by_length(units: Sequence[_Unit], gradient: Tensor, signs: Sequence[int] | None = None) -> Tensor:
    """See `path_gradients`; with a sign for each branch, each path counts with the product of those it takes."""
    by_length = _zeros(len(units) + 1, gradient)
    by_length[0] = gradient
    signs = [1] * len(units) if signs is None else signs
    for lengths, (unit, sign) in enumerate(reversed(list(zip(units, signs, strict=True))), 1):
        after, shortcut, residual = unit.pullbacks()
        cotangents = after(by_length[:lengths])
        by_length = _zeros(len(units) + 1, unit.x)
        by_length[1 : lengths + 1] = sign * residual(cotangents)
        if shortcut:
            by_length[:lengths] += shortcut(cotangents)
    return by_length


def unit_shares(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """What share of the gradient passes each unit's residual branch, all paths taken together: exact.

    Unit i's share is ⟨g_i, g⟩ / ‖g‖², with g the gradient at the first unit's input and g_i the sum over the paths that
    pass its branch. A path of length k passes k branches, so that the shares sum to the mean length of all paths under
    the shares of `resnotes.unravel.path_shares`: they say which units make that length up.

    Args:
        model: see `path_gradients`.
        images: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.

    Returns:
        float64 ``[n]``, on the CPU; signed, and above 1 where what goes around a unit points against the gradient.

    Raises:
        UsageError: as `path_gradients`, or the gradient is zero or not finite.
    """
    with measuring(model, images, labels):
        units, gradient = _linearise(model, images, labels)
        last, through = gradient, gradient.new_zeros((0, *gradient.shape))  # what passed each branch, from the last on
        for unit in reversed(units):
            after, shortcut, residual = unit.pullbacks()
            cotangents = after(torch.cat([through, gradient[None]]))
            branch = residual(cotangents)
            whole = branch if shortcut is None else branch + shortcut(cotangents)
            through, gradient = torch.cat([whole[:-1], branch[-1:]]), whole[-1]
        _check_sum(model, units, last, gradient)
        return shares(through, gradient).flip(0)


def path_norms(model: nn.Module, images: Tensor, labels: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Squared norms of what paths of one length carry, as if they were orthogonal, from branches with random signs.

    Each draw gives every branch a sign s_i of -1 or 1, all equally likely, and decomposes the gradient by length, as
    `path_gradients` does. Then E ‖G_k(s)‖² = Σ ‖g_p‖² over all paths p of length k: of two paths, the signs of the
    branches that only one of them takes are independent, and the product of the two is 0 on average. So one
    decomposition a draw takes all paths into account, where single ones, drawn at random, miss the few large ones.
    Divided by the number of paths and under the root, the mean over draws is the root mean square of a path's norm.

    Args:
        model: see `path_gradients`.
        images: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        draws: of signs.
        generator: the source of the draws.

    Returns:
        float64 ``[draws, n + 1]``, on the CPU: ‖G_k(s)‖² over the whole batch.

    Raises:
        UsageError: as `path_gradients`, or less than one draw.
    """
    if draws < 1:
        raise UsageError(f"draws must be at least 1, found {draws}")
    with measuring(model, images, labels):
        units, gradient = _linearise(model, images, labels)
        signs = 2 * torch.randint(2, (draws, len(units)), generator=generator, device=generator.device) - 1
        squares = []
        for each in signs.tolist():
            flat = _by_length(units, gradient, each).flatten(1).cpu()
            # In float32, the squares of the smallest gradients would be zero.
            squares.append(torch.linalg.vector_norm(flat, dim=1, dtype=torch.float64) ** 2)
        return torch.stack(squares)


def gradients_along(model: nn.Module, images: Tensor, labels: Tensor, paths: Tensor) -> Tensor:
    """What arrives at the first unit's input along single paths.

    Args:
        model: see `path_gradients`.
        images: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        paths: bool ``[P, n]``; True where a path goes through the unit's residual branch, False where it goes
            through the shortcut.

    Returns:
        ``[P, *first unit's input]``; zero along a shortcut that a unit does not have. Over all 2^n paths, it sums to
        the gradient of the summed cross-entropy.

    Raises:
        UsageError: as `path_gradients`, and no paths, or paths of another shape or type.
    """
    with measuring(model, images, labels):
        units, gradient = _linearise(model, images, labels)
        paths = torch.as_tensor(paths, device="cpu")
        if paths.dtype != torch.bool or paths.ndim != 2 or paths.shape[1] != len(units) or not len(paths):
            raise UsageError(
                f"expected paths as bool [P, {len(units)}] with P >= 1, one column per unit; "
                f"found {str(paths.dtype).removeprefix('torch.')} {list(paths.shape)}"
            )
        gradients = _zeros(len(paths), gradient) + gradient
        for unit, taken in reversed(list(zip(units, paths.T, strict=True))):
            after, shortcut, residual = unit.pullbacks()
            cotangents = after(gradients)
            gradients = _zeros(len(paths), unit.x)
            gradients[taken] = residual(cotangents[taken])
            if shortcut:
                gradients[~taken] = shortcut(cotangents[~taken])
        return gradients
