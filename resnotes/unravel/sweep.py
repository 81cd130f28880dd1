"""The arithmetic of a lesion sweep: a folded copy of the network, and a walk over what the lesions share.

A lesion is compiled to a program, the steps that carry the stem's output to the head. Programs that begin alike
share these steps: together they form a tree. It is walked depth-first, so that only the activations at open forks
are kept; the fork's last branch takes its activation over. With the branch that needs most walked last, all single
deletions keep two activations, all pairs three, and any set of n lesions at most log2(n) + 1.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

from resnotes import progress
from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models.adapters import Parts, blocks_of, shaped
from resnotes.models.imagenet import ImageNetResNet
from resnotes.models.inputs import check_result, evaluating
from resnotes.models.network import Block, agree, branches, copied, has_forward
from resnotes.models.shortcuts import Scale, ZeroPadShortcut

Map = Callable[[Tensor], Tensor]
Step = tuple[int, bool]  # number of a block, and whether it is deleted
Program = tuple[Step, ...]

# Maps of a batch, at most: larger batches are no faster on a CPU.
_MAP_BYTES = 32 << 20


@dataclass(frozen=True)
class Swept:
    """A network as a sweep evaluates it, step by step. No step writes over its argument, which others may read.

    Attributes:
        module: in eval mode; all that the steps call is in it.
        stem: images to the first block's input.
        keep: for each block, its input to its output.
        delete: for each block, its input to what is left of its output without the residual branch.
        head: the last block's output to logits.
        passing: for each block, whether it hands on its input, the very same values, once it is deleted.
        memory_format: of the images.
    """

    module: nn.Module
    stem: Map
    keep: tuple[Map, ...]
    delete: tuple[Map, ...]
    head: Map
    passing: tuple[bool, ...]
    memory_format: torch.memory_format

    def input(self, images: Tensor) -> Tensor:
        """A copy of `images` as the network takes them: the stem may write over it."""
        parameter = next(self.module.parameters(), images)
        return images.to(parameter.device, parameter.dtype).clone(memory_format=self.memory_format)


def as_it_is(model: nn.Module) -> Swept:
    """The network in eval mode, block by block, in its own arithmetic; a copy of it."""
    module = copied(model).eval()
    network, blocks = cast(Any, module), blocks_of(module)
    return Swept(
        module,
        network.stem,
        tuple(partial(_whole, block) for block in blocks),
        tuple(partial(_shortcut, block) for block in blocks),
        partial(_on_a_copy, network.head),
        (False,) * len(blocks),
        torch.contiguous_format,
    )


def rewritten(model: nn.Module) -> Swept:
    """The same for less: in channels_last, with BN folded into the convolution before it, and in place.

    Rewritten is only what provably computes the same. Convolution, BN and ReLU that follow each other do where they
    stand in an `nn.Sequential` that is itself a part of the network: it calls them in that order, and nobody else
    reads what passes between them. All three must be PyTorch's own, without hooks; convolution and BN stand nowhere
    else in the network.
    """
    module = copied(model).eval()
    module = shaped(module) if type(module) is ImageNetResNet else module
    network, blocks = cast(Any, module), blocks_of(module)
    places = Counter(child for parent in module.modules() for child in parent._modules.values())
    parts = [network.stem, network.head, *(part for block in blocks for part in (block.residual, block.shortcut))]
    for part in {id(part): part for part in parts}.values():  # one that is shared is rewritten once
        _simplify(part, places)
    module.to(memory_format=torch.channels_last)
    # After the stem's ReLU, and with nothing but ReLUs to follow, there is nothing left to rectify.
    rectified = _rectifies(network.stem) and all(_is(block, Block) and _is(block.after, nn.ReLU) for block in blocks)
    return Swept(
        module,
        network.stem,
        # What else a block's own forward does, or a hook, is done by calling it.
        tuple(_parts(block) if _is(block, Block) else partial(_whole, block) for block in blocks),
        tuple(partial(_shortcut, block) for block in blocks),
        network.head if _only_reads(network.head) else partial(_on_a_copy, network.head),
        tuple(
            (_is(block.after, nn.Identity) or (rectified and _is(block.after, nn.ReLU)))
            and (block.shortcut is None or _is(block.shortcut, nn.Identity, nn.Dropout))
            for block in blocks
        ),
        torch.channels_last,
    )


def _is(part: object, *types: type[nn.Module]) -> bool:
    """Whether a module is of one of these types, of no subclass, and no hook and no other forward changes it."""
    return type(part) in types and not _is_hooked(part)


def _is_hooked(part: object) -> bool:
    hooks = isinstance(part, nn.Module) and (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))
    return bool(hooks)


def _simplify(part: object, places: Mapping[nn.Module | None, int]) -> None:
    """Fold BN, and let ReLU work in place, in an `nn.Sequential` and in those within it."""
    if not _is(part, nn.Sequential) or places[cast(nn.Module, part)] != 1:
        return
    parent = cast(nn.Sequential, part)
    before, its_name = cast(nn.Module, nn.Identity()), ""
    for name, layer in parent._modules.items():  # unlike `named_children`, twice what stands there twice
        assert layer is not None
        alone = places[before] == places[layer] == 1
        if alone and _is(before, nn.Conv2d) and _is(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            before = fuse_conv_bn_eval(cast(nn.Conv2d, before), cast(nn.BatchNorm2d, layer))
            setattr(parent, its_name, before)
            setattr(parent, name, nn.Identity())
            continue
        if _is(layer, nn.ReLU) and _is(before, nn.Conv2d, nn.BatchNorm2d):
            setattr(parent, name, nn.ReLU(inplace=True))  # one of its own: the layer may stand elsewhere, too
        _simplify(layer, places)
        before, its_name = layer, name


def _is_fresh(part: object) -> bool:
    """Whether what a part puts out was just made, so that nobody else reads it."""
    if _is(part, nn.Sequential):
        layers = [layer for layer in cast(nn.Sequential, part) if not _is(layer, nn.Identity)]
        return bool(layers) and _is_fresh(layers[-1])
    return _is(part, nn.Conv2d, nn.BatchNorm2d, nn.Linear)


def _rectifies(part: object) -> bool:
    """Whether nothing that a part puts out is negative."""
    if _is(part, nn.Sequential):
        layers = [layer for layer in cast(nn.Sequential, part) if not _is(layer, nn.Identity, nn.MaxPool2d)]
        return bool(layers) and _rectifies(layers[-1])
    return _is(part, nn.ReLU)


def _only_reads(part: object) -> bool:
    """Whether a part surely does not write over its input."""
    if _is(part, nn.Sequential):
        # What comes after a layer that only reads has that one's output to write over; an identity hands its input on.
        layers = [layer for layer in cast(nn.Sequential, part) if not _is(layer, nn.Identity)]
        return not layers or (_is_fresh(layers[0]) or (_is(layers[0], nn.ReLU) and _only_reads(layers[0])))
    if _is(part, nn.ReLU):
        return not cast(nn.ReLU, part).inplace
    return part is None or _is_fresh(part) or _is(part, nn.Identity, nn.Dropout, ZeroPadShortcut, Scale)


def _on_a_copy(part: Map, x: Tensor) -> Tensor:
    return part(x.clone())


def _whole(block: Any, x: Tensor) -> Tensor:
    """The output of a block, as it computes it itself; by its parts, where it only holds them."""
    x = x.clone()
    if has_forward(block):
        return check_result(block(x), f"a {type(block).__name__}").to(x.dtype)
    residual, shortcut = branches(block, x)
    return cast(Tensor, block.after(residual if shortcut is None else shortcut + residual).to(x.dtype))


def _parts(block: Any) -> Map:
    """The output of a `Block`, in the precision of its input.

    The sum is written over what the branch puts out, if nobody else reads that, and ReLU over the sum.
    """
    fresh, relu = _is_fresh(block.residual), _is(block.after, nn.ReLU)
    reads = _only_reads(block.residual) and _only_reads(block.shortcut)

    def keep(x: Tensor) -> Tensor:
        residual, shortcut = branches(block, x if reads else x.clone())
        y, mine = residual.to(x.dtype), fresh
        if shortcut is not None:
            y = y.add_(shortcut) if mine and shortcut.shape == y.shape else y + shortcut
            mine = True
        return F.relu_(y) if mine and relu else cast(Tensor, block.after(y if mine else y.clone()))

    return keep


def _shortcut(block: Parts, x: Tensor) -> Tensor:
    """What is left of a block without its residual branch, in the precision of `x`."""
    x = x if _only_reads(block.shortcut) and _only_reads(block.after) else x.clone()
    return block.after(x if block.shortcut is None else block.shortcut(x).to(x.dtype))


@torch.inference_mode()
def prepare(model: nn.Module, images: Tensor) -> Swept:
    """`model` as it can be swept: rewritten, if that does on two images what the model does, else as it is.

    Warns:
        UserWarning: it is swept as it is, which takes longer; says why.

    Raises:
        UsageError: the model cannot be evaluated on the images; it is not its stem, its blocks and its head in a row;
            or its logits for an image depend on chance or on the other images.
    """
    device, dtype = next(((each.device, each.dtype) for each in model.parameters()), (images.device, images.dtype))
    with autocast(device, "float32"):
        with evaluating(model, images):
            plain = as_it_is(model)
            _check(plain, type(model).__name__, images)
        if torch.finfo(dtype).bits < 32:  # so coarse that a difference could not be told from rounding
            return plain
        return _rewritten_or(plain, model, images)


def _rewritten_or(plain: Swept, model: nn.Module, images: Tensor) -> Swept:
    """See `prepare`."""
    try:
        fast = rewritten(model)
        reason = _difference(fast, plain, images[:: max(1, len(images) - 1)])  # the first and the last
    except Exception as error:  # of modules that we do not know
        reason = f"{type(error).__name__}: {error}"
    if not reason:
        return fast
    warnings.warn(
        f"{type(model).__name__} is swept as it is, which takes longer: rewritten for speed, it would be another"
        f" network ({reason})",
        stacklevel=4,
    )
    return plain


def _check(plain: Swept, name: str, images: Tensor) -> None:
    """Refuse what a sweep would not be right for."""
    for where, module in plain.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UsageError(
                f"{where} of {name} keeps no running statistics, so that the logits of an image would depend on the"
                " others in its batch"
            )

    def steps(images: Tensor) -> Tensor:
        x = check_result(plain.stem(plain.input(images)), f"the stem of {name}", len(images))
        for i, keep in enumerate(plain.keep):
            x = check_result(keep(x), f"block {i} of {name}", len(images))
        return check_result(plain.head(x), f"the head of {name}", len(images))

    def whole(images: Tensor) -> Tensor:
        return check_result(plain.module(plain.input(images)), name, len(images))

    ways = (steps, whole if has_forward(plain.module) else steps)
    first, again = (way(images[:1]) for way in ways)
    # Alone or with another, each image is to have the same logits; where there is no second one, there is no other.
    alone, both = torch.cat([first, ways[1](images[1:2])]) if len(images) > 1 else first, ways[1](images[:2])
    if not agree(again, first, units=8):
        if not agree(ways[1](images[:1]), again, units=8):
            raise UsageError(f"{name} puts out other logits each time, in eval mode, too")
        raise UsageError(f"{name} puts out something else than its stem, its blocks and its head in a row")
    if not agree(both, alone):
        raise UsageError(f"the logits that {name} puts out for an image depend on the others in its batch")


def _difference(fast: Swept, plain: Swept, images: Tensor) -> str:
    """Where the two do not agree on some images, if anywhere: each on its way from the stem to the head."""
    found, x = fast.stem(fast.input(images)), plain.stem(plain.input(images))
    if not agree(found, x):
        return "the stem differs"
    for i in range(len(plain.keep)):
        lesioned = list[Tensor]()
        for swept, there in ((fast, found), (plain, x)):
            with contextlib.suppress(Exception):  # a block that cannot be deleted: its parts do not fit each other
                lesioned.append(swept.delete[i](there))
        if len(lesioned) == 1 or (lesioned and not agree(lesioned[0], lesioned[1])):
            return f"block {i} differs when it is deleted"
        found, x = fast.keep[i](found), plain.keep[i](x)
        if not agree(found, x):
            return f"block {i} differs"
    return "" if agree(fast.head(found), plain.head(x)) else "the head differs"


@dataclass(frozen=True)
class Site:
    """A block as one image finds it: shapes ``[C, H, W]`` before and after, and after it without its residual.

    The last is None where the block cannot do without, since its parts then do not fit each other.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    lesioned: tuple[int, ...] | None


@torch.inference_mode()
def survey(swept: Swept, image: Tensor) -> list[Site]:
    """The blocks of a network, on their way from one normalised image ``[1, C, H, W]``."""
    sites = []
    x = swept.stem(swept.input(image))
    for keep, delete in zip(swept.keep, swept.delete, strict=True):
        lesioned = None
        with contextlib.suppress(Exception):  # what follows may be made for other channels
            lesioned = tuple(delete(x).shape[1:])
        inputs, x = tuple(x.shape[1:]), keep(x)
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


def _bytes_per_image(swept: Swept, image: Tensor, alive: int) -> tuple[int, int]:
    """What a sweep takes per image, at most, and the largest map between blocks; measured on one.

    Counted are the activations kept, and one step's result with all its layers' outputs: an upper bound.
    """
    maps, work, outputs = list[int](), list[int](), list[int]()

    def note(_: nn.Module, __: tuple[Tensor, ...], output: object) -> None:
        outputs.extend(leaf.nbytes for leaf in tree_leaves(output) if isinstance(leaf, Tensor))

    layers = [module for module in swept.module.modules() if not list(module.children())]
    layers = [layer for layer in layers if not isinstance(layer, torch.jit.ScriptModule)]  # which take no hooks
    handles = [layer.register_forward_hook(note) for layer in layers]
    x = swept.input(image)
    dtype = x.dtype
    for step in (swept.stem, *swept.keep, swept.head):
        outputs.clear()
        x = step(x).to(dtype)
        maps.append(x.nbytes)
        work.append(sum(outputs) + x.nbytes)
    for handle in handles:
        handle.remove()
    return alive * max(maps) + max(work), max(maps)


@torch.inference_mode()
def sweep(
    swept: Swept,
    tree: Branch,
    lesions: int,
    images: Tensor,
    precision: str,
    memory: int,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """What `read` makes of the logits of every lesion in `tree`, ``[lesions, N, ...]``, on the CPU.

    Args:
        swept: what `prepare` returned.
        tree: what `plan` returned.
        lesions: their number.
        images: normalised, ``[N, C, H, W]``.
        precision: ``"float32"`` (more exactly, that of the weights) or ``"bfloat16"``.
        memory: bound in bytes on the activations.
        read: takes logits ``[B, classes]`` to what is kept of them, ``[B, ...]``.

    Raises:
        UsageError: `memory` does not suffice for one image.
    """
    first = swept.input(images[:1])
    device, weights = first.device, first.dtype
    found: Tensor | None = None
    # In bfloat16 are the layers of blocks and stem. Were what runs past the blocks rounded after each, the errors would
    # add up; and with the head's logits rounded, too many would be equal.
    whole = autocast(device, "float32")
    with autocast(device, precision):
        per_image, largest = _bytes_per_image(swept, images[:1], tree.alive)
        if memory < per_image:
            raise UsageError(f"a memory of {memory:,} bytes is too little: one image takes {per_image:,}")
        parts = math.ceil(len(images) / max(1, min(memory // per_image, _MAP_BYTES // largest)))
        batch = math.ceil(len(images) / parts)

        def walk(branch: Branch, x: Tensor, rows: slice) -> None:
            nonlocal found
            while True:
                for i, deleted in branch.steps:
                    x = (swept.delete if deleted else swept.keep)[i](x)
                    bar.update()
                if branch.lesions:
                    with whole:
                        kept = read(swept.head(x)).cpu()
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
                walk(tree, swept.stem(swept.input(images[rows])).to(weights), rows)
    assert found is not None  # there is a lesion, and an image
    return found
