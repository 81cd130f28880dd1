"""Networks by name: `build("resnet-56", num_classes=10)`."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Mapping
from functools import partial
from inspect import signature
from typing import Any, cast

from resnotes.errors import UsageError
from resnotes.models.deepening import deepen
from resnotes.models.feedforward import FEEDFORWARD
from resnotes.models.imagenet import LAYOUTS, imagenet_resnet
from resnotes.models.network import Block, Network, batch_statistics, count_parameters, in_mode
from resnotes.models.published_networks import Published, from_published, published
from resnotes.models.residual import FAMILIES, residual_network
from resnotes.models.segmentation import NAMES as SEGMENTATION
from resnotes.models.segmentation import SMALL, segmentation_network

__all__ = [
    "Block",
    "Network",
    "Published",
    "batch_statistics",
    "build",
    "count_parameters",
    "deepen",
    "from_label",
    "from_published",
    "in_mode",
    "label",
    "published",
]

_NAMES = ", ".join(
    [
        *(f"{family}-N (N = {3 * count}n + 2)" for family, (count, _) in FAMILIES.items()),
        *LAYOUTS,
        *FEEDFORWARD,
        f"fcn-E, pspnet-E (E = {SMALL}, {', '.join(LAYOUTS)})",
    ]
)


def build(name: str, **options: Any) -> Network:
    """Build a network with fresh weights, drawn from PyTorch's global generator.

    Args:
        name: ``plain-N``, ``resnet-N`` or ``preresnet-N`` with N = 6n + 2, ``bottleneck-N`` or ``prebottleneck-N``
            with N = 9n + 2, ``resnet18`` to ``resnet152``, ``vgg-15`` (the only depth of a VGG), ``alexnet``, or
            for segmentation ``fcn-E`` or ``pspnet-E`` with an encoder E, ``small`` or ``resnet18`` to ``resnet152``.
        options: ``num_classes``, ``in_channels``, ``width`` and others, see
            `resnotes.models.residual.residual_network` for networks with N, `resnotes.models.feedforward` for VGG
            and AlexNet, `resnotes.models.imagenet.imagenet_resnet`, and
            `resnotes.models.segmentation.segmentation_network`.

    Raises:
        UsageError: an unknown name or option, or a value that the network cannot take.
    """
    builder: Callable[..., Any]
    if (match := re.fullmatch(r"([a-z]+)-(\d+)", name)) and match[1] in FAMILIES:
        builder = partial(residual_network, match[1], int(match[2]))
    elif name in FEEDFORWARD:
        builder = FEEDFORWARD[name]
    elif name in LAYOUTS:
        builder = partial(imagenet_resnet, name)
    elif name in SEGMENTATION:
        builder = partial(segmentation_network, name)
    else:
        raise UsageError(f"unknown network {name!r}; allowed: {_NAMES}")
    allowed = [
        parameter.name
        for parameter in signature(builder).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    ]
    for option in options:
        if option not in allowed:
            raise UsageError(f"{name} takes no option {option!r}; allowed: {', '.join(allowed)}")
    # Those for ImageNet have a network's shape, under torchvision's names for the parameters. Those for segmentation
    # are no classifiers, and share only `name` and `options` with the others.
    return cast(Network, builder(**options))


def label(name: str, options: Mapping[str, Any]) -> str:
    """A network and its options in one line: ``"resnet-56 shortcut=dropout:0.5"``; without options, its name."""

    def written(value: Any) -> str:  # a list, as JSON has it, and a tuple alike, and without spaces
        return str(tuple(value)).replace(" ", "") if isinstance(value, list | tuple) else str(value)

    return " ".join([name, *(f"{option}={written(value)}" for option, value in options.items())])


def from_label(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a network from what `label` wrote; numbers, tuples, True and False are read as such.

    Raises:
        UsageError: something other than ``option=value`` after the name.
    """
    name, *settings = text.split() or [""]
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not (option and equals and value):
            raise UsageError(f"network {text!r}: expected option=value after its name, found {setting!r}")
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
            read = value
        # Of other kinds, such as sets, there are no options; whoever builds the network will say so.
        options[option] = read if isinstance(read, bool | int | float | tuple | list | None) else value
    return name, options
