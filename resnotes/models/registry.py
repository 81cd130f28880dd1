"""Networks by name: those of the package, and those that somebody registered."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from resnotes.errors import UsageError, unknown
from resnotes.models.feedforward import FEEDFORWARD
from resnotes.models.imagenet import LAYOUTS, ImageNetResNet
from resnotes.models.network import Network
from resnotes.models.residual import FAMILIES, residual_network
from resnotes.models.segmentation import NAMES as SEGMENTATION
from resnotes.models.segmentation import SMALL, SegmentationNetwork
from resnotes.models.transformer import vision_transformer

Builder = Callable[..., Any]

_NAMES = [
    *(f"{family}-N (N = {3 * count}n + 2 < 10000)" for family, (count, _) in FAMILIES.items()),
    *LAYOUTS,
    "vit-L (L = 1 to 9999)",
    *FEEDFORWARD,
    f"fcn-E, pspnet-E (E = {SMALL}, {', '.join(LAYOUTS)})",
]

_registered: dict[str, tuple[Builder, str]] = {}  # with what `source` says of it


def _ours(name: str) -> Builder | None:
    """The builder of a network of the package."""
    # More than 9,999 layers fit no memory.
    if (match := re.fullmatch(r"([a-z]+)-(\d{1,4})", name)) and match[1] in FAMILIES:
        return partial(residual_network, match[1], int(match[2]))
    if match and match[1] == "vit":
        return partial(vision_transformer, int(match[2]))
    if name in FEEDFORWARD:
        return FEEDFORWARD[name]
    if name in LAYOUTS:
        return partial(ImageNetResNet, name)
    return partial(SegmentationNetwork, name) if name in SEGMENTATION else None


def register(name: str, build: Builder) -> None:
    """Let `build` and all that trains, records and lists networks know one of somebody's own by name.

    Args:
        name: of letters, digits, - and _; becomes part of the names of runs.
        build: a function or a class, with at least the options `num_classes` and `in_channels`; returns a `Network`.
            All randomness is to come from PyTorch's global generator. Where somebody edits it and registers it again,
            as a notebook cell that is executed again does, it takes the place of what it was before, and its runs get
            other addresses, see `source`.

    Raises:
        UsageError: a name that is malformed, that a network of the package has, or another builder (one of another
            module or name); a builder without source, or that does not take these two options.
    """
    if not re.fullmatch(r"[\w-]+", name, re.ASCII):
        raise UsageError(f"a network's name must be of letters, digits, - and _, found {name!r}")
    try:
        # Of an object that is called, the source would not say what it holds.
        if not (inspect.isfunction(build) or inspect.isclass(build)):
            raise TypeError(f"found {build!r}")
        text = inspect.getsource(build)
        inspect.signature(build).bind(num_classes=10, in_channels=3)
    except (OSError, TypeError) as error:
        raise UsageError(
            f"cannot register {name!r}: it must be a function or class of Python whose source can be read, and that"
            f" takes num_classes and in_channels ({error}); write def build(num_classes, in_channels): ..."
        ) from error
    by = _written_as(registered(name)) if name in _registered else "a network of resnotes"
    if _ours(name) or (name in _registered and by != _written_as(build)):
        raise UsageError(f"the name {name!r} is taken, by {by}; register your network under another")
    _registered[name] = build, hashlib.sha256(text.encode()).hexdigest()[:12]


def _written_as(builder: Any) -> str:
    return f"{builder.__module__}.{builder.__qualname__}"


def source(name: str) -> str | None:
    """What tells two versions of a registered builder apart; None for every other name.

    Returns:
        The first 12 hex digits of the SHA-256 of its source. What it calls or reads from elsewhere is not part of it.
    """
    return _registered[name][1] if name in _registered else None


def registered(name: str) -> Builder | None:
    """The builder that was registered under this name, if one was."""
    return _registered[name][0] if name in _registered else None


def build(name: str, **options: Any) -> Any:
    """Build a network with fresh weights, drawn from PyTorch's global generator.

    Args:
        name: ``plain-N``, ``resnet-N`` or ``preresnet-N`` with N = 6n + 2, ``bottleneck-N`` or ``prebottleneck-N``
            with N = 9n + 2, ``resnet18`` to ``resnet152``, ``vgg-15`` (the only depth of a VGG), ``alexnet``,
            ``vit-L`` with L layers, for segmentation ``fcn-E`` or ``pspnet-E`` with an encoder E, ``small`` or
            ``resnet18`` to ``resnet152``, or what somebody registered, see `register`.
        options: ``num_classes``, ``in_channels``, ``width`` and others, see
            `resnotes.models.residual.residual_network` for networks with N, `resnotes.models.feedforward` for VGG
            and AlexNet, `resnotes.models.transformer.vision_transformer`, `resnotes.models.imagenet.ImageNetResNet`,
            and `resnotes.models.segmentation.SegmentationNetwork`.

    Returns:
        A `Network`; for ``resnet18`` to ``resnet152`` a `resnotes.models.imagenet.ImageNetResNet`, which has its stem,
        blocks and head; for segmentation a `resnotes.models.segmentation.SegmentationNetwork`. All have `name` and
        `options`, from which they can be built again.

    Raises:
        UsageError: an unknown name or option, a value that the network cannot take, or a registered builder that
            returns something else than a `Network`.
    """
    builder = (registered(name) or _ours(name)) if isinstance(name, str) else None
    if builder is None:
        raise unknown("network", name, [*_NAMES, *_registered])
    try:
        inspect.signature(builder).bind(**options)
    except TypeError as error:
        allowed = list(inspect.signature(builder).parameters)
        wrong = [option for option in options if option not in allowed]
        found = f"takes no option {wrong[0]!r}" if wrong else f"cannot be built: {error}"
        raise UsageError(f"{name} {found}; allowed: {', '.join(allowed)}") from None
    network = builder(**options)
    if name in _registered:
        if not isinstance(network, Network):
            raise UsageError(
                f"the builder of {name} returned a {type(network).__name__}, expected a Network: return"
                " models.Network(stem, blocks, head), or what unravel.adapt makes of a ResNet of torchvision's"
            )
        network.name, network.options = name, dict(options)
    return network
