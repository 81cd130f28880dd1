"""Residual nets for large images: encoders, and ResNet-18 to ResNet-152 (He et al. 2015, Table 1).

The submodules carry torchvision's names, so that state dicts load strictly from and into `torchvision.models.resnet*`;
other than there, the width is free, and a BasicBlock can be dilated. (A Bottleneck strides in its 3x3 convolution,
"v1.5"; the authors' first 1x1 never reads three quarters of its input.)

Every convolution and pooling is padded alike on all sides. Cell i of a map is therefore centred on pixel i * stride of
the image, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from resnotes.models.network import Block
from resnotes.models.residual import EXPANSION
from resnotes.typed import Count, check_arguments

OUTPUT_STRIDES = (8, 16, 32)

# Whether the units are bottlenecks, and how many there are in each stage.
LAYOUTS: dict[str, tuple[bool, tuple[int, ...]]] = {
    "resnet18": (False, (2, 2, 2, 2)),
    "resnet34": (False, (3, 4, 6, 3)),
    "resnet50": (True, (3, 4, 6, 3)),
    "resnet101": (True, (3, 4, 23, 3)),
    "resnet152": (True, (3, 8, 36, 3)),
}


def as_block(unit: Any) -> Block:
    """A `ResidualUnit`, or torchvision's BasicBlock or Bottleneck, as a `Block` of the same layers."""
    layers = [unit.conv1, unit.bn1, unit.relu, unit.conv2, unit.bn2]
    if hasattr(unit, "conv3"):
        layers += [unit.relu, unit.conv3, unit.bn3]
    return Block(nn.Sequential(*layers), unit.downsample or nn.Identity(), unit.relu)


class ResidualUnit(nn.Module):
    """``relu(shortcut(x) + residual(x))``, under the names of torchvision's blocks; the shortcut is computed first.

    Where a map has more readers than these two, the order of its gradients decides how their sum is rounded: with the
    other order, recorded segmentation networks would train to other last digits.

    Args:
        convolutions: two of 3x3 (He et al. 2015, Fig. 5 left), or 1x1, 3x3 and 1x1 (right); BN follows each.
        downsample: the projection on the shortcut; None for the identity.
    """

    def __init__(self, convolutions: list[nn.Conv2d], downsample: nn.Module | None) -> None:
        super().__init__()
        for number, convolution in enumerate(convolutions, 1):
            self.add_module(f"conv{number}", convolution)
            self.add_module(f"bn{number}", nn.BatchNorm2d(convolution.out_channels))
        self.relu = nn.ReLU()
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """``[N, C_in, H, W]`` to ``[N, C_out, H / stride, W / stride]``."""
        parts = as_block(self)
        shortcut = parts.shortcut(x)  # type: ignore[misc]
        out: Tensor = parts.after(shortcut + parts.residual(x))
        return out


def _convolutions(
    bottleneck: bool, entering: int, channels: int, stride: int, incoming: int, outgoing: int
) -> list[nn.Conv2d]:
    """Those of a unit. The first of 3x3 spreads to the spacing of the map it reads, another to that of its own map."""

    def spread(entering: int, stride: int, spacing: int) -> nn.Conv2d:
        return nn.Conv2d(entering, channels, 3, stride, padding=spacing, dilation=spacing, bias=False)

    if not bottleneck:
        return [spread(entering, stride, incoming), spread(channels, 1, outgoing)]
    narrow = nn.Conv2d(entering, channels, 1, bias=False)
    return [narrow, spread(channels, stride, incoming), nn.Conv2d(channels, EXPANSION * channels, 1, bias=False)]


def _stage(
    bottleneck: bool, entering: int, channels: int, depth: int, stride: int, incoming: int, outgoing: int
) -> nn.Sequential:
    """`depth` units, the first with a stride, and with a projection where it changes the shape (option B)."""
    leaving = EXPANSION * channels if bottleneck else channels
    projection = None
    if stride != 1 or entering != leaving:
        projection = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))
    units = [ResidualUnit(_convolutions(bottleneck, entering, channels, stride, incoming, outgoing), projection)]
    for _ in range(depth - 1):
        units.append(ResidualUnit(_convolutions(bottleneck, leaving, channels, 1, outgoing, outgoing), None))
    return nn.Sequential(*units)


class Encoder(nn.Module):
    """Images ``[N, in_channels, H, W]`` to the last two stages' maps, ``[N, channels[i], h, w]``.

    A stem, and stages that halve the map and double the channels, from the second on, down to an output stride. Below
    that, they spread their filters instead of striding: every second or fourth cell of their map is then a cell of the
    strided net's, and the cells between are new.

    Args:
        bottleneck: whether the units are bottlenecks.
        stages: blocks per stage.
        in_channels: channels of the images.
        width: channels of the stem and of the first stage's 3x3 convolutions; doubles from stage to stage.
        output_stride: pixels of the image per cell of the last map, at most.
        small: a 3x3 stem that halves the map once, for small images; otherwise 7x7 and max pooling, a quarter.
        dilations: for each stage, how many times farther yet its filters are spread; 1 by default. No weight more,
            and a larger field.

    Attributes:
        stages: blocks per stage.
        channels: channels that each stage puts out.
        strides: pixels of the image per cell of each stage's map.
    """

    def __init__(
        self,
        bottleneck: bool,
        stages: tuple[int, ...],
        *,
        in_channels: int,
        width: int,
        output_stride: int = 32,
        small: bool = False,
        dilations: Sequence[int] = (),
    ) -> None:
        super().__init__()
        kernel, reached = (3, 2) if small else (7, 4)
        self.stages = stages
        self.channels = tuple((EXPANSION if bottleneck else 1) * width * 2**i for i in range(len(stages)))
        self.strides = tuple(min(reached * 2**i, output_stride) for i in range(len(stages)))
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        entering, before, spacing = width, reached, 1
        farther = dilations or (1,) * len(stages)
        for i, (depth, stride, dilation) in enumerate(zip(stages, self.strides, farther, strict=True)):
            incoming, spacing = spacing, dilation * (reached * 2**i // stride)
            stage = _stage(bottleneck, entering, width * 2**i, depth, stride // before, incoming, spacing)
            self.add_module(f"layer{i + 1}", stage)
            entering, before = self.channels[i], stride

    @property
    def layers(self) -> list[nn.Sequential]:
        """The stages, in order."""
        return [stage for name, stage in self.named_children() if name.startswith("layer")]  # type: ignore[misc]

    def stem(self, images: Tensor) -> Tensor:
        """Images ``[N, in_channels, H, W]`` to the first block's input, ``[N, width, h, w]``."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the last stage but one and of the last."""
        before = x = self.stem(images)
        for stage in self.layers:
            before, x = x, stage(x)
        return before, x


class ImageNetResNet(Encoder):
    """A net of He et al. 2015, Table 1: ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``, drawn "fan out".

    It has the stem, blocks and head that lesions and path gradients are written against; these are views of the named
    submodules, which would have two names in the state dict if they were registered a second time.

    Args:
        name: a key of `LAYOUTS`, ``"resnet18"`` to ``"resnet152"``.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the stem; 64 in the paper.

    Raises:
        UsageError: a count that is no whole number of at least 1.
    """

    def __init__(self, name: str, *, num_classes: Count = 1000, in_channels: Count = 3, width: Count = 64) -> None:
        options = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
        check_arguments(ImageNetResNet.__init__, options, name)
        super().__init__(*LAYOUTS[name], in_channels=in_channels, width=width)
        self.name, self.options = name, options
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.channels[-1], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def blocks(self) -> list[Block]:
        """The residual blocks of all four stages, in order."""
        return [as_block(unit) for stage in self.layers for unit in stage]

    def head(self, x: Tensor) -> Tensor:
        """The last map ``[N, channels[-1], h, w]``, of any size, to logits ``[N, num_classes]``."""
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        """Logits ``[N, num_classes]`` of normalised images ``[N, in_channels, H, W]``."""
        return self.head(super().forward(images)[1])
