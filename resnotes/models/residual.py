"""Plain, original and pre-activation networks for small images (He et al. 2015, Sec. 4.2; He et al. 2016).

A 3x3 convolution, then three stages of n two-layer units on maps of full, half and quarter size with 1, 2
and 4 times `width` channels, then global average pooling and a linear classifier: 6n + 2 layers. The plain
network is the residual one with the shortcuts taken out, and has exactly as many parameters with option A.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.errors import UsageError, unknown
from resnotes.models.network import Block, Network, initialize

FAMILIES = ("plain", "resnet", "preresnet")
SHORTCUTS = ("A", "B")

# Order of the layers in the residual branch, and what follows the addition (He et al. 2016, Fig. 4).
ORDERS: dict[str, tuple[str, str]] = {
    "original": ("conv bn relu conv bn", "relu"),
    "pre-activation": ("bn relu conv bn relu conv", ""),
}


class ZeroPadShortcut(nn.Module):
    """Option A: take every `stride`-th pixel and add channels of zeros, half before and half after.

    Parameter-free, so that plain and residual networks have equal parameter counts (He et al. 2015, Sec. 3.3).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        missing = out_channels - in_channels
        self.before, self.after = missing // 2, missing - missing // 2

    def forward(self, x: Tensor) -> Tensor:
        """``[N, in, H, W] -> [N, out, ceil(H / stride), ceil(W / stride)]``."""
        x = x[:, :, :: self.stride, :: self.stride]
        return F.pad(x, (0, 0, 0, 0, self.before, self.after))


def _shortcut(option: str, in_channels: int, out_channels: int, stride: int) -> nn.Module:
    if in_channels == out_channels and stride == 1:
        return nn.Identity()
    if option == "A":
        return ZeroPadShortcut(in_channels, out_channels, stride)
    conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(out_channels)))


def _layers(order: str, in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """The layers that `order` spells, named conv1, bn1, relu1, conv2, ... as they come."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    counts = {"conv": 0, "bn": 0, "relu": 0}
    channels = in_channels
    for kind in order.split():
        counts[kind] += 1
        name = f"{kind}{counts[kind]}"
        if kind == "conv":
            layers[name] = nn.Conv2d(channels, out_channels, 3, stride, padding=1, bias=False)
            channels, stride = out_channels, 1
        elif kind == "bn":
            layers[name] = nn.BatchNorm2d(channels)
        else:
            layers[name] = nn.ReLU()
    return nn.Sequential(layers)


def residual_network(
    family: str,
    depth: int,
    *,
    num_classes: int = 10,
    in_channels: int = 3,
    width: int = 16,
    shortcut: str | None = None,
    order: str | None = None,
) -> Network:
    """Build ``plain-N``, ``resnet-N`` or ``preresnet-N`` with N = 6n + 2 layers.

    Args:
        family: ``plain`` (no shortcuts), ``resnet`` (ReLU after the addition) or ``preresnet``.
        depth: N, counting the convolutions off the shortcuts and the classifier.
        num_classes: length of the logits.
        in_channels: channels of the input images.
        width: channels of the first stage; the papers use 16.
        shortcut: where the shape changes, ``"A"`` (the default) pads with zeros, ``"B"`` projects by a
            1x1 convolution and BN. A plain network takes none.
        order: ``"original"`` or ``"pre-activation"``; the default follows from the family.

    Raises:
        UsageError: a depth that is not 6n + 2, a count below 1, or an unknown family, shortcut or order.
    """
    if family not in FAMILIES:
        raise unknown("network family", family, FAMILIES)
    if depth < 8 or (depth - 2) % 6:
        below = max(8, depth - (depth - 2) % 6)
        raise UsageError(f"{family}-{depth}: depth must be 6n + 2 with n >= 1; nearest: {below}, {below + 6}")
    if family == "plain" and shortcut is not None:
        raise UsageError(f"{family}-{depth} has no shortcuts, so it takes no option shortcut={shortcut!r}")
    if shortcut is not None and shortcut not in SHORTCUTS:
        raise unknown("shortcut", shortcut, SHORTCUTS)
    if order is not None and order not in ORDERS:
        raise unknown("order", order, ORDERS)
    options: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    for option, value in options.items():
        if value < 1:
            raise UsageError(f"{family}-{depth}: {option} must be at least 1, found {value!r}")
    options |= {"shortcut": shortcut} if shortcut else {}
    options |= {"order": order} if order else {}
    shortcut = shortcut or "A"
    order = order or ("pre-activation" if family == "preresnet" else "original")
    branch, after = ORDERS[order]
    activates_first = branch.startswith("bn relu")

    n = (depth - 2) // 6
    blocks: list[Block] = []
    channels = width
    for stage in range(3):
        for i in range(n):
            out_channels = width * 2**stage
            stride = 2 if stage > 0 and i == 0 else 1
            # The very first unit's activation acts before the split (He et al. 2016, Appendix): it is the stem's.
            layers = branch.removeprefix("bn relu ") if not blocks else branch
            blocks.append(
                Block(
                    _layers(layers, channels, out_channels, stride),
                    None if family == "plain" else _shortcut(shortcut, channels, out_channels, stride),
                    nn.ReLU() if after == "relu" else nn.Identity(),
                )
            )
            channels = out_channels

    stem = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(in_channels, width, 3, padding=1, bias=False), bn=nn.BatchNorm2d(width), relu=nn.ReLU()
    )
    head = OrderedDict[str, nn.Module]()
    if activates_first:  # an extra activation follows the last addition
        head.update(bn=nn.BatchNorm2d(channels), relu=nn.ReLU())
    head.update(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), fc=nn.Linear(channels, num_classes))

    network = Network(
        nn.Sequential(stem),
        blocks,
        nn.Sequential(head),
        stages=(n, n, n),
        name=f"{family}-{depth}",
        options=options,
    )
    initialize(network)
    return network


# A residual network as published for PyTorch keys its layers layer{1,2,3}.{i}.{conv,bn}{1,2}.
_PUBLISHED_BLOCK = re.compile(r"layer(\d)\.(\d+)\.((?:conv|bn)\d\..+)")


def from_published(state: dict[str, Tensor]) -> Network:
    """The ``resnet-N`` whose weights a public checkpoint holds (akamaster/pytorch_resnet_cifar10's naming).

    Args:
        state: the checkpoint's state dict, ``[module.]conv1.weight``, ``layer1.0.conv1.weight``,
            ``linear.weight``, ...

    Raises:
        UsageError: keys or shapes that are not those of such a network.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    n = sum(bool(re.fullmatch(r"layer1\.\d+\.conv1\.weight", key)) for key in state)
    if not n:
        raise UsageError(f"no residual network: expected keys like layer1.0.conv1.weight, found {list(state)[:3]}")
    network = residual_network("resnet", 6 * n + 2)

    def renamed(key: str) -> str:
        if match := _PUBLISHED_BLOCK.fullmatch(key):
            stage, i, rest = match.groups()
            return f"blocks.{(int(stage) - 1) * n + int(i)}.residual.{rest}"
        if key.startswith(("conv1.", "bn1.")):
            return f"stem.{key.replace('1.', '.', 1)}"
        return key.replace("linear.", "head.fc.")

    try:
        network.load_state_dict({renamed(key): value for key, value in state.items()})
    except RuntimeError as error:
        raise UsageError(f"the weights do not fit resnet-{6 * n + 2}: {error}") from error
    return network
