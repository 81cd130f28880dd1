"""Plain and residual networks for small images, in every order of layers (He et al. 2015, Sec. 4.2; He et al. 2016).

A 3x3 convolution, then three stages of n units on maps of full, half and quarter size with 1, 2 and 4 times
`width` channels, then global average pooling and a linear classifier. Units of two layers make 6n + 2 layers,
bottlenecks 9n + 2. The plain network is the residual one with the shortcuts taken out, and has exactly as many
parameters with option A.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from torch import nn

from resnotes.errors import UsageError, unknown
from resnotes.models.network import Block, Network, initialize
from resnotes.models.shortcuts import ExclusiveGatingBlock, Gate, GatedResidual, SkipInit, build_shortcut
from resnotes.typed import Count, check_arguments

# Convolutions in a unit, and the order of its layers unless another is asked for.
FAMILIES: dict[str, tuple[int, str]] = {
    "plain": (2, "original"),
    "resnet": (2, "original"),
    "preresnet": (2, "pre-activation"),
    "bottleneck": (3, "original"),
    "prebottleneck": (3, "pre-activation"),
}

# Layers of a residual branch with two convolutions, and what follows the addition (He et al. 2016, Fig. 4).
# A third convolution comes with what stands between the two once more.
ORDERS: dict[str, tuple[str, str]] = {
    "original": ("conv bn relu conv bn", "relu"),
    "bn-after-addition": ("conv bn relu conv", "bn relu"),
    "relu-before-addition": ("conv bn relu conv bn relu", ""),
    "relu-only-pre-activation": ("relu conv bn relu conv bn", ""),
    "pre-activation": ("bn relu conv bn relu conv", ""),
}
EXPANSION = 4  # a bottleneck puts out so many times the channels of its 3x3 convolution


def _unit_layers(order: str, convolutions: int, batch_norm: bool) -> tuple[list[str], list[str]]:
    """The residual branch, and what follows the addition, as lists of ``"conv"``, ``"bn"`` and ``"relu"``."""
    if order not in ORDERS:
        raise unknown("order", order, ORDERS)
    branch, after = ORDERS[order] if batch_norm else (part.replace("bn", "") for part in ORDERS[order])
    opening, between, closing = branch.split("conv")
    return "conv".join([opening, *[between] * (convolutions - 1), closing]).split(), after.split()


def _layers(kinds: list[str], channels: int, convolutions: list[nn.Conv2d]) -> nn.Sequential:
    """The layers that `kinds` spells, on maps of `channels`, named conv1, bn1, relu1, conv2, ... as they come."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    counts = {"conv": 0, "bn": 0, "relu": 0}
    remaining = iter(convolutions)
    for kind in kinds:
        counts[kind] += 1
        name = f"{kind}{counts[kind]}"
        if kind == "conv":
            convolution = next(remaining)
            layers[name], channels = convolution, convolution.out_channels
        elif kind == "bn":
            layers[name] = nn.BatchNorm2d(channels)
        else:
            layers[name] = nn.ReLU()
    return nn.Sequential(layers)


def _convolutions(count: int, in_channels: int, channels: int, stride: int) -> list[nn.Conv2d]:
    """Two 3x3 convolutions, or 1x1, 3x3 and 1x1 to four times the channels; the first one has the stride."""
    kernels = (3, 3) if count == 2 else (1, 3, 1)
    widths = [in_channels, *[channels] * (count - 1), channels if count == 2 else EXPANSION * channels]
    return [
        nn.Conv2d(widths[i], widths[i + 1], kernel, stride if i == 0 else 1, padding=kernel // 2, bias=False)
        for i, kernel in enumerate(kernels)
    ]


def _block(
    branch: list[str],
    after: list[str],
    convolutions: list[nn.Conv2d],
    shortcut: str | None,
    batch_norm: bool,
    alpha: float | None,
) -> Block:
    """A unit of these layers, with the stride and the channels of its convolutions."""
    first, out_channels = convolutions[0], convolutions[-1].out_channels
    layers, closing = _layers(branch, first.in_channels, convolutions), _layers(after, out_channels, [])
    end = closing if len(closing) > 1 else closing[0] if closing else nn.Identity()
    if shortcut is None:
        return Block(layers, None, end)
    if alpha is not None:
        layers.add_module("skipinit", SkipInit(alpha))
    channels, stride = (first.in_channels, out_channels), first.stride[0]
    skip, residual = build_shortcut(shortcut, layers, *channels, stride, batch_norm=batch_norm)
    return (ExclusiveGatingBlock if isinstance(residual, GatedResidual) else Block)(residual, skip, end)


def rectified(
    in_channels: int, out_channels: int, kernel: int = 3, *, batch_norm: bool, bias: bool = False
) -> nn.Sequential:
    """A convolution that keeps the map's size, BN and ReLU."""
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=bias)
    )
    if batch_norm:
        layers["bn"] = nn.BatchNorm2d(out_channels)
    layers["relu"] = nn.ReLU()
    return nn.Sequential(layers)


def classifier(opening: list[str], channels: int, num_classes: int) -> nn.Sequential:
    """Pooling and classifier; where branches open with an activation, one more follows the last addition."""
    layers = OrderedDict[str, nn.Module]()
    for kind in opening:
        layers[kind] = nn.BatchNorm2d(channels) if kind == "bn" else nn.ReLU()
    layers.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes))
    return nn.Sequential(layers)


def _blocks_per_stage(family: str, depth: int) -> int:
    """n of 6n + 2 or 9n + 2 layers."""
    if family not in FAMILIES:
        raise unknown("network family", family, FAMILIES)
    per_n = 3 * FAMILIES[family][0]
    if depth < per_n + 2 or (depth - 2) % per_n:
        below = max(per_n + 2, depth - (depth - 2) % per_n)
        raise UsageError(f"{family}-{depth}: depth must be {per_n}n + 2 with n >= 1; nearest: {below}, {below + per_n}")
    return (depth - 2) // per_n


def residual_network(
    family: str,
    depth: int,
    *,
    num_classes: Count = 10,
    in_channels: Count = 3,
    width: Count = 16,
    shortcut: str | None = None,
    order: str | None = None,
    batch_norm: bool = True,
    alpha: float | None = None,
) -> Network:
    """Build ``plain-N``, ``resnet-N``, ``preresnet-N`` (N = 6n + 2), ``bottleneck-N``, ``prebottleneck-N`` (9n + 2).

    Args:
        family: ``plain`` (no shortcuts), ``resnet`` (ReLU after the addition), ``preresnet``, or one of the latter
            two with bottlenecks.
        depth: N, counting the convolutions off the shortcuts and the classifier.
        num_classes: length of the logits.
        in_channels: channels of the input images.
        width: channels of the first stage's 3x3 convolutions; the papers use 16.
        shortcut: see `resnotes.models.shortcuts`; ``"A"`` by default, ``"B"`` for bottlenecks, whose first
            unit widens the map. (With pre-activation, the authors' own code projects the activated input, without
            BN.) A plain network takes none.
        order: a key of `ORDERS`; the default follows from the family.
        batch_norm: False takes every BN layer out and changes nothing else.
        alpha: SkipInit (De & Smith 2020, Sec. 3): every residual branch is multiplied by a learned scalar that starts
            from it; they take 0, or 1 over the root of the number of units. None for no such scalar. A plain network
            takes none.

    Raises:
        UsageError: a depth that is not 6n + 2 or 9n + 2, a count below 1, an unknown family, shortcut or order, or
            an alpha that is no finite number.
    """
    name, n = f"{family}-{depth}", _blocks_per_stage(family, depth)
    for option, value in (("shortcut", shortcut), ("alpha", alpha)):
        if family == "plain" and value is not None:
            raise UsageError(f"{name} has no shortcuts, so it takes no option {option}={value!r}")
    options: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    options |= {} if shortcut is None else {"shortcut": shortcut}
    options |= {} if order is None else {"order": order}
    options |= {} if batch_norm else {"batch_norm": False}
    options |= {} if alpha is None else {"alpha": alpha}
    check_arguments(residual_network, {**options, "batch_norm": batch_norm}, name)

    count, usual_order = FAMILIES[family]
    if shortcut is None and family != "plain":
        shortcut = "A" if count == 2 else "B"
    branch, after = _unit_layers(usual_order if order is None else order, count, batch_norm)
    opening = branch[: branch.index("conv")]
    blocks: list[Block] = []
    channels = width
    for stage in range(3):
        for i in range(n):
            convolutions = _convolutions(count, channels, width * 2**stage, stride=2 if stage > 0 and i == 0 else 1)
            # The very first unit's activation acts before the split (He et al. 2016, Appendix): it is the stem's.
            kinds = branch if blocks else branch[len(opening) :]
            blocks.append(_block(kinds, after, convolutions, shortcut, batch_norm, alpha))
            channels = convolutions[-1].out_channels
    stem = rectified(in_channels, width, batch_norm=batch_norm)
    head = classifier(opening, channels, num_classes)
    network = Network(stem, blocks, head, stages=(n, n, n), name=name, options=options)
    initialize(network)
    for module in network.modules():
        if isinstance(module, Gate):
            module.reset_bias()
    return network
