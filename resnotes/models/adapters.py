"""The one shape of stem, blocks and head for networks that others wrote."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models.imagenet import ImageNetResNet, as_block
from resnotes.models.inputs import check_images, evaluating
from resnotes.models.network import Network, agree, check_weights, in_mode, kept_statistics

_SIDE = 64  # pixels of the image that is compared, if none is given


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
    _require(model, name, ("stem", "blocks", "head"))
    blocks: list[Any] = list(model.blocks)  # type: ignore[arg-type]
    for i, block in enumerate(blocks):
        _require(block, f"block {i} of {name}, a {type(block).__name__},", ("residual", "shortcut", "after"))
    return blocks


def _require(part: object, what: str, names: tuple[str, str, str]) -> None:
    if missing := [name for name in names if not hasattr(part, name)]:
        raise UsageError(
            f"expected {names[0]}, {names[1]} and {names[2]}, as all networks here have; found {what} without"
            f" {missing[0]}; resnotes.unravel.adapt gives that shape to torchvision's ResNets"
        )


def adapt(model: nn.Module, images: Tensor | None = None) -> Network:
    """A ResNet of torchvision, or one of `resnotes.models.imagenet`, as stem, blocks and head.

    What is returned is made of the model's own modules, so it shares weights, BN's statistics and modes. Hooks on
    what is passed over, the stages and the blocks as a whole, are not called.

    Args:
        model: ``resnet18`` to ``resnet152``, ResNeXt or Wide ResNet, with any head; left as it was.
        images: normalised ``[N, C, H, W]``, of which the first is sent through both; by default noise of 64 x 64.

    Returns:
        A network that computes what the model computes: ``blocks`` are the units of all four stages, each
        ``after(shortcut(x) + residual(x))``.

    Raises:
        UsageError: another model, one with other parts, or one whose logits are not reproduced.
    """
    network = shaped(model)
    _compare(network, model, images)
    return network


def shaped(model: nn.Module) -> Network:
    """`adapt` without the comparison.

    Raises:
        UsageError: another model, or one with other parts.
    """
    from torchvision.models.resnet import ResNet  # a second of import

    name = type(model).__name__
    if not isinstance(model, (ResNet, ImageNetResNet)):
        raise UsageError(
            f"cannot adapt a {name}; known are torchvision's ResNet, ResNeXt and Wide ResNet. Others need a stem,"
            " blocks and a head, and in each block residual, shortcut and after"
        )
    parts: Any = model
    try:
        stages = [parts.layer1, parts.layer2, parts.layer3, parts.layer4]
        network = Network(
            nn.Sequential(parts.conv1, parts.bn1, parts.relu, parts.maxpool),
            [as_block(block) for stage in stages for block in stage],
            nn.Sequential(parts.avgpool, nn.Flatten(), parts.fc),
            stages=tuple(map(len, stages)),
            name=getattr(parts, "name", name),
            options=getattr(parts, "options", {}),
        )
    except (AttributeError, TypeError) as error:
        raise UsageError(f"cannot adapt this {name}: its parts are not those of a ResNet ({error})") from error
    for module in set(network.modules()) - set(model.modules()):
        module.training = model.training
    return network


@torch.no_grad()
def _compare(network: Network, model: nn.Module, images: Tensor | None) -> None:
    """Refuse a network that does not do what the model does, on one image and in eval mode."""
    name = type(model).__name__
    check_weights(model)
    weight = next(model.parameters())
    if images is None:
        channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
        images = torch.rand(1, channels, _SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    check_images(images)
    image = images[:1].to(weight.device, weight.dtype)
    with (
        evaluating(model, image),
        in_mode(model, training=False),
        in_mode(network, training=False),
        kept_statistics(model),
        autocast(image.device, "float32"),
    ):
        expected, found = model(image.clone()), network(image.clone())
    if not isinstance(expected, Tensor) or not agree(found, expected, units=8):
        raise UsageError(
            f"cannot adapt this {name}: stem, blocks and head in a row put out something else than it does;"
            " it has a forward of its own, or hooks"
        )
