"""A network as lesions evaluate it, step by step: as it is, or rewritten for speed where that computes the same."""

from __future__ import annotations

import contextlib
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeGuard, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models.adapters import Parts, blocks_of, shaped
from resnotes.models.imagenet import ImageNetResNet
from resnotes.models.inputs import check_result, evaluating
from resnotes.models.network import Block, agree, branches, copied, has_forward
from resnotes.models.passes import in_a_row, visit
from resnotes.models.shortcuts import Scale, ZeroPadShortcut

Layer = TypeVar("Layer", bound=nn.Module)
Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Steps:
    """A network, step by step. No step writes over its argument, which others may read.

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

    def lesioned(self, i: int, x: Tensor) -> Tensor | None:
        """What is left of block `i`; None where it cannot do without its branch, as its parts do not fit each other."""
        with contextlib.suppress(Exception):  # what follows may be made for other channels
            return self.delete[i](x)
        return None


def as_it_is(model: nn.Module) -> Steps:
    """The network in eval mode, block by block, in its own arithmetic; a copy of it."""
    module = copied(model).eval()
    network, blocks = cast(Any, module), blocks_of(module)
    return Steps(
        module,
        network.stem,
        tuple(partial(_whole, block) for block in blocks),
        tuple(partial(_shortcut, block) for block in blocks),
        partial(_on_a_copy, network.head),
        (False,) * len(blocks),
        torch.contiguous_format,
    )


def rewritten(model: nn.Module) -> Steps:
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
    return Steps(
        module,
        network.stem,
        # What else a block's own forward does, or a hook, is done by calling it.
        tuple(_parts(block) if _is(block, Block) else partial(_whole, block) for block in blocks),
        tuple(partial(_shortcut, block) for block in blocks),
        network.head if _only_reads(network.head) else partial(_on_a_copy, network.head),
        tuple(
            not _layers(block.shortcut) and (_is(block.after, nn.Identity) or (rectified and _is(block.after, nn.ReLU)))
            for block in blocks
        ),
        torch.channels_last,
    )


def _is(part: object, *types: type[Layer]) -> TypeGuard[Layer]:
    """Whether a module is of one of these types, of no subclass, and no hook and no other forward changes it."""
    if not isinstance(part, nn.Module) or type(part) not in types:
        return False
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in vars(part))


def _simplify(part: object, places: Mapping[nn.Module | None, int]) -> None:
    """Fold BN, and let ReLU work in place, in an `nn.Sequential` and in those within it."""
    if not _is(part, nn.Sequential) or places[part] != 1:
        return
    before: nn.Module | None = None
    its_name = ""
    for name, layer in part._modules.items():  # unlike `named_children`, twice what stands there twice
        alone = places[before] == places[layer] == 1
        if alone and _is(before, nn.Conv2d) and _is(layer, nn.BatchNorm2d) and layer.running_mean is not None:
            before = fuse_conv_bn_eval(before, layer)
            setattr(part, its_name, before)
            setattr(part, name, nn.Identity())
            continue
        if _is(layer, nn.ReLU) and _is(before, nn.Conv2d, nn.BatchNorm2d):
            setattr(part, name, nn.ReLU(inplace=True))  # one of its own: the layer may stand elsewhere, too
        _simplify(layer, places)
        before, its_name = layer, name


def _layers(part: object) -> list[object]:
    """The layers of a part, one after the other, without those that hand on their input in eval mode."""
    if _is(part, nn.Sequential):
        return [layer for child in part for layer in _layers(child)]
    return [] if part is None or _is(part, nn.Identity, nn.Dropout) else [part]


def _is_fresh(part: object) -> bool:
    """Whether what a part puts out was just made, so that nobody else reads it."""
    layers = _layers(part)
    return bool(layers) and _is(layers[-1], nn.Conv2d, nn.BatchNorm2d, nn.Linear)


def _rectifies(part: object) -> bool:
    """Whether nothing that a part puts out is negative."""
    layers = [layer for layer in _layers(part) if not _is(layer, nn.MaxPool2d)]
    return bool(layers) and _is(layers[-1], nn.ReLU)


def _only_reads(part: object) -> bool:
    """Whether a part surely does not write over its input: its first layer makes something new of it, or its only."""
    layers = _layers(part)
    if len(layers) == 1 and _is(layers[0], ZeroPadShortcut, Scale):
        return True
    return not layers or _is_fresh(layers[0]) or (_is(layers[0], nn.ReLU) and not layers[0].inplace)


def _on_a_copy(part: Map, x: Tensor) -> Tensor:
    return part(x.clone())


def _whole(block: Parts, x: Tensor) -> Tensor:
    """The output of a block, as it computes it itself; by its parts, where it only holds them."""
    output = cast(Any, block)(x.clone()) if has_forward(block) else visit(block, x).output
    return check_result(output, f"a {type(block).__name__}").to(x.dtype)


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
def prepare(model: nn.Module, images: Tensor) -> Steps:
    """The steps of `model`: rewritten, if that does on two images what the model does, else as it is.

    Warns:
        UserWarning: it is swept as it is, which takes longer; says why.

    Raises:
        UsageError: the model cannot be evaluated on the images; it is not its stem, its blocks and its head in a row;
            or its logits for an image depend on chance or on the other images.
    """
    name = type(model).__name__
    weight = next(model.parameters(), images)
    with autocast(weight.device, "float32"):
        with evaluating(model, images):
            plain = as_it_is(model)
            _check(plain, name, images)
        if torch.finfo(weight.dtype).bits < 32:  # so coarse that a difference could not be told from rounding
            return plain
        try:
            fast = rewritten(model)
            reason = _difference(fast, plain, images[:: max(1, len(images) - 1)])  # the first and the last
        except Exception as error:  # of modules that we do not know
            reason = f"{type(error).__name__}: {error}"
        if not reason:
            return fast
    warnings.warn(
        f"{name} is swept as it is, which takes longer: rewritten for speed, it would be another network ({reason})",
        stacklevel=3,
    )
    return plain


def _check(plain: Steps, name: str, images: Tensor) -> None:
    """Refuse what lesions cannot be evaluated of step by step and image by image."""
    for where, module in plain.module.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise UsageError(
                f"{where} of {name} keeps no running statistics, so that the logits of an image would depend on the"
                " others in its batch"
            )

    def steps(images: Tensor) -> Tensor:
        return in_a_row(plain.module, plain.input(images), _whole)[-1]

    def whole(images: Tensor) -> Tensor:
        return check_result(plain.module(plain.input(images)), name, len(images))

    logits = whole if has_forward(plain.module) else steps
    stepped, first = steps(images[:1]), logits(images[:1])  # step by step first: that says which part is at fault
    if not agree(logits(images[:1]), first, units=8):
        raise UsageError(f"{name} puts out other logits each time, in eval mode, too")
    if not agree(stepped, first, units=8):
        raise UsageError(f"{name} puts out something else than its stem, its blocks and its head in a row")
    if len(images) > 1 and not agree(logits(images[:2]), torch.cat([first, logits(images[1:2])])):
        raise UsageError(f"the logits that {name} puts out for an image depend on the others in its batch")


def _difference(fast: Steps, plain: Steps, images: Tensor) -> str:
    """Where the two do not agree on some images, if anywhere: each on its way from the stem to the head."""
    found, x = fast.stem(fast.input(images)), plain.stem(plain.input(images))
    if not agree(found, x):
        return "the stem differs"
    for i in range(len(plain.keep)):
        ours, theirs = fast.lesioned(i, found), plain.lesioned(i, x)
        if (ours is None) != (theirs is None) or (ours is not None and theirs is not None and not agree(ours, theirs)):
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
def survey(steps: Steps, image: Tensor) -> list[Site]:
    """The blocks of a network, on their way from one normalised image ``[1, C, H, W]``."""
    sites = []
    x = steps.stem(steps.input(image))
    for i, keep in enumerate(steps.keep):
        inputs, left, x = x, steps.lesioned(i, x), keep(x)
        sites.append(Site(inputs.shape[1:], x.shape[1:], None if left is None else left.shape[1:]))
    return sites
