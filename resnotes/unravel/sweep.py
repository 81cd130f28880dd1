"""The arithmetic of a lesion sweep: a folded copy of the network, and a walk over what the lesions share.

A lesion is compiled to a program, the steps that carry the stem's output to the head. Programs that begin alike
share these steps: together they form a tree. It is walked depth-first, so that only the activations at open forks
are kept; the fork's last branch takes its activation over. With the branch that needs most walked last, all single
deletions keep two activations, all pairs three, and any set of n lesions at most log2(n) + 1.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnotes import progress
from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models.imagenet import ImageNetResNet, ResidualBlock

Step = tuple[int, bool]  # number of a block, and whether it is deleted
Program = tuple[Step, ...]

# Maps of a batch, at most: larger batches are no faster on a CPU.
_MAP_BYTES = 32 << 20
# The modules whose children are evaluated in the order in which they are registered.
_SEQUENTIAL = (nn.Sequential, ResidualBlock, ImageNetResNet)


class Parts(Protocol):
    """The shape of a block: ``after(shortcut(x) + residual(x))``."""

    residual: Callable[[Tensor], Tensor]
    shortcut: Callable[[Tensor], Tensor] | None
    after: Callable[[Tensor], Tensor]


def blocks_of(model: nn.Module) -> list[Parts]:
    """The blocks of a network.

    Raises:
        UsageError: it has not the shape of stem, blocks and head, or a block not that of `Parts`.
    """
    name = type(model).__name__
    if not all(callable(getattr(model, part, None)) for part in ("stem", "head")) or not hasattr(model, "blocks"):
        raise UsageError(f"lesions need a network with stem, blocks and head, found {name}")
    blocks = list(cast(Any, model).blocks)
    if not blocks:
        raise UsageError(f"lesions need a network with at least one block, found {name} with none")
    for i, block in enumerate(blocks):
        if not all(hasattr(block, part) for part in ("residual", "shortcut", "after")):
            raise UsageError(
                f"lesions need blocks with residual, shortcut and after; block {i} of {name} is a"
                f" {type(block).__name__}"
            )
    return blocks


def inference_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, in channels_last, with BN folded into the convolution before it where there is one.

    ReLU works in place where it follows a convolution or BN, whose output nobody else reads.
    """
    model = copy.deepcopy(model).eval()
    for module in model.modules():
        if not isinstance(module, _SEQUENTIAL):
            continue
        before, its_name = cast(nn.Module, nn.Identity()), ""
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.BatchNorm2d) and isinstance(before, nn.Conv2d):
                before = fuse_conv_bn_eval(before, layer)
                setattr(module, its_name, before)
                setattr(module, name, nn.Identity())
                continue
            if isinstance(layer, nn.ReLU) and isinstance(before, (nn.Conv2d, nn.BatchNorm2d)):
                layer.inplace = True
            before, its_name = layer, name
    return model.to(memory_format=torch.channels_last)


def keep(block: Parts, x: Tensor) -> Tensor:
    """The block's output, in the precision of `x`; sums and ReLU are written over the branch's output."""
    y = block.residual(x).to(x.dtype)
    mine = y.untyped_storage().data_ptr() != x.untyped_storage().data_ptr()  # a branch may hand its input on
    if block.shortcut is not None:
        skip = block.shortcut(x)
        y = y.add_(skip) if mine else y + skip
        mine = True
    return F.relu_(y) if mine and isinstance(block.after, nn.ReLU) else block.after(y)


def delete(block: Parts, x: Tensor) -> Tensor:
    """What is left of a block without its residual branch, in the precision of `x`, which is not written to."""
    return block.after(x if block.shortcut is None else block.shortcut(x).to(x.dtype))


def without_effect(model: nn.Module) -> list[bool]:
    """For each block, whether it hands on its input, the very same values, once it is deleted."""
    blocks = blocks_of(model)
    stem: Any = model.stem
    last = list(stem.modules())[-1] if isinstance(stem, nn.Module) else None
    # After the stem's ReLU, and with nothing but ReLUs to follow, there is nothing left to rectify.
    rectified = isinstance(last, nn.ReLU) and all(isinstance(block.after, nn.ReLU) for block in blocks)
    passing: tuple[type, ...] = (nn.Identity, nn.ReLU) if rectified else (nn.Identity,)
    return [
        isinstance(block.after, passing)
        and (block.shortcut is None or isinstance(block.shortcut, (nn.Identity, nn.Dropout)))
        for block in blocks
    ]


@dataclass(frozen=True)
class Site:
    """A block as one image finds it: shapes ``[C, H, W]`` before and after, and after it without its residual.

    The last is None where the block cannot do without, since its parts then do not fit each other.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lesioned: tuple[int, ...] | None


@torch.inference_mode()
def survey(model: nn.Module, image: Tensor) -> list[Site]:
    """The blocks of a network in eval mode, on their way from one normalised image ``[1, C, H, W]``."""
    sites = []
    x = cast(Any, model).stem(_as_input(model, image))
    for block in blocks_of(model):
        lesioned = None
        with contextlib.suppress(RuntimeError):  # what follows may be made for other channels
            lesioned = tuple(delete(block, x).shape[1:])
        inputs, x = tuple(x.shape[1:]), keep(block, x)
        sites.append(Site(inputs, tuple(x.shape[1:]), lesioned))
    return sites


@dataclass(frozen=True)
class Branch:
    """Steps without a fork, and the branches that go on from there.

    Attributes:
        steps: from the fork before.
        lesions: numbers of the lesions whose program is at its end.
        branches: the one that needs most is the last.
        alive: activations that must be kept at a time, the one at work included.
    """

    steps: Program
    lesions: tuple[int, ...]
    branches: tuple[Branch, ...]
    alive: int

    def count(self) -> int:
        """Steps, over all branches: each is evaluated once."""
        return len(self.steps) + sum(branch.count() for branch in self.branches)


def plan(programs: Sequence[Program]) -> Branch:
    """The tree of `programs`; lesion i has program i."""
    return _plan(sorted((program, i) for i, program in enumerate(programs)), 0)


def _plan(programs: Sequence[tuple[Program, int]], start: int) -> Branch:
    """The tree of sorted programs that are equal before `start`."""
    (first, _), (last, _) = programs[0], programs[-1]
    end = start  # sorted, they have in common what the first and the last have
    while end < len(first) and first[end] == last[end]:
        end += 1
    ended = tuple(i for program, i in programs if len(program) == end)
    forks = itertools.groupby(programs[len(ended) :], key=lambda each: each[0][end])
    branches = sorted((_plan(list(group), end) for _, group in forks), key=lambda branch: branch.alive)
    alive = max([1, *(branch.alive + 1 for branch in branches[:-1]), *(branch.alive for branch in branches[-1:])])
    return Branch(first[start:end], ended, tuple(branches), alive)


def _as_input(model: nn.Module, images: Tensor) -> Tensor:
    parameter = next(model.parameters(), images)
    return images.to(parameter.device, parameter.dtype).contiguous(memory_format=torch.channels_last)


def _bytes_per_image(model: nn.Module, image: Tensor, alive: int) -> tuple[int, int]:
    """What a sweep takes per image, at most, and the largest map between blocks; measured on one.

    Counted are the activations kept, and one step's result with all its layers' outputs: an upper bound.
    """
    network = cast(Any, model)
    maps, work, outputs = list[int](), list[int](), list[int]()

    def note(_: nn.Module, __: tuple[Tensor, ...], output: Tensor) -> None:
        outputs.append(output.nbytes)

    layers = [module for module in model.modules() if not list(module.children())]
    handles = [layer.register_forward_hook(note) for layer in layers]
    x = _as_input(model, image)
    dtype = x.dtype
    for step in (network.stem, *(partial(keep, block) for block in blocks_of(model)), network.head):
        outputs.clear()
        x = step(x).to(dtype)
        maps.append(x.nbytes)
        work.append(sum(outputs) + x.nbytes)
    for handle in handles:
        handle.remove()
    return alive * max(maps) + max(work), max(maps)


@torch.inference_mode()
def sweep(
    model: nn.Module,
    tree: Branch,
    lesions: int,
    images: Tensor,
    precision: str,
    memory: int,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """What `read` makes of the logits of every lesion in `tree`, ``[lesions, N, ...]``, on the CPU.

    Args:
        model: what `inference_copy` returned.
        tree: what `plan` returned.
        lesions: their number.
        images: normalised, ``[N, C, H, W]``.
        precision: ``"float32"`` (more exactly, that of the weights) or ``"bfloat16"``.
        memory: bound in bytes on the activations.
        read: takes logits ``[B, classes]`` to what is kept of them, ``[B, ...]``.

    Raises:
        UsageError: `memory` does not suffice for one image.
    """
    network, blocks = cast(Any, model), blocks_of(model)
    device = next((parameter.device for parameter in model.parameters()), images.device)
    weights = next((parameter.dtype for parameter in model.parameters()), images.dtype)
    found: Tensor | None = None
    # In bfloat16 are the layers of blocks and stem. Were what runs past the blocks rounded after each, the errors would
    # add up; and with the head's logits rounded, too many would be equal.
    whole = autocast(device, "float32")
    with autocast(device, precision):
        per_image, largest = _bytes_per_image(model, images[:1], tree.alive)
        if memory < per_image:
            raise UsageError(f"a memory of {memory:,} bytes is too little: one image takes {per_image:,}")
        parts = math.ceil(len(images) / max(1, min(memory // per_image, _MAP_BYTES // largest)))
        batch = math.ceil(len(images) / parts)

        def walk(branch: Branch, x: Tensor, rows: slice) -> None:
            nonlocal found
            while True:
                for i, deleted in branch.steps:
                    x = (delete if deleted else keep)(blocks[i], x)
                    bar.update()
                if branch.lesions:
                    with whole:
                        kept = read(network.head(x)).cpu()
                    if found is None:
                        found = kept.new_empty(lesions, len(images), *kept.shape[1:])
                    found[list(branch.lesions), rows] = kept
                if not branch.branches:
                    return
                *others, last = branch.branches
                for other in others:
                    walk(other, x, rows)
                branch = last  # here and not by a call, so that x goes as soon as it was used

        steps = tree.count() * math.ceil(len(images) / batch)
        with progress.bar(total=steps, desc="lesions", unit="block") as bar:
            for start in range(0, len(images), batch):
                rows = slice(start, start + batch)
                walk(tree, network.stem(_as_input(model, images[rows])).to(weights), rows)
    assert found is not None  # there is a lesion, and an image
    return found
