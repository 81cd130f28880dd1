"""Residual nets for large images, of torchvision's blocks: ResNet-18 to ResNet-152 (He et al. 2015, Table 1).

torchvision's own ResNet has one width, and does not dilate a BasicBlock; here both are free. The submodules carry its
names, so that state dicts load strictly from and into `torchvision.models.resnet*`. (Its Bottleneck strides in the 3x3
convolution, "v1.5"; the authors' first 1x1 never reads three quarters of its input.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from resnotes.errors import unknown
from resnotes.models.network import Block, check_options

OUTPUT_STRIDES = (8, 16, 32)


class Layout(NamedTuple):
    """A column of He et al. 2015, Table 1: a class of `resnotes.models.imagenet_blocks`, and blocks in each stage."""

    block: str
    stages: tuple[int, ...]


LAYOUTS = {
    "resnet18": Layout("BasicBlock", (2, 2, 2, 2)),
    "resnet34": Layout("BasicBlock", (3, 4, 6, 3)),
    "resnet50": Layout("Bottleneck", (3, 4, 6, 3)),
    "resnet101": Layout("Bottleneck", (3, 4, 23, 3)),
    "resnet152": Layout("Bottleneck", (3, 8, 36, 3)),
}


def as_block(block: Any) -> Block:
    """A BasicBlock or Bottleneck of torchvision's as a `Block` of the same layers."""
    layers = [block.conv1, block.bn1, block.relu, block.conv2, block.bn2]
    if hasattr(block, "conv3"):
        layers += [block.relu, block.conv3, block.bn3]
    return Block(nn.Sequential(*layers), block.downsample or nn.Identity(), block.relu)


def _stage(block: Any, entering: int, channels: int, depth: int, stride: int) -> nn.Sequential:
    """`depth` blocks, the first with a stride, and with a projection where it changes the shape (option B)."""
    leaving = block.expansion * channels
    projection = None
    if stride != 1 or entering != leaving:
        projection = nn.Sequential(nn.Conv2d(entering, leaving, 1, stride, bias=False), nn.BatchNorm2d(leaving))
    first = block(entering, channels, stride, projection)
    return nn.Sequential(first, *(block(leaving, channels) for _ in range(depth - 1)))


def _dilate(stage: nn.Sequential, incoming: int, outgoing: int) -> None:
    """Spread a stage's filters: the first 3x3 convolution to the spacing of the map it reads, the others to its own."""
    spacing = incoming
    for layer in stage.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            layer.dilation = layer.padding = (spacing, spacing)
            spacing = outgoing


class Trunk(nn.Module):
    """A stem, and stages that halve the map and double the channels, from the second on, down to an output stride.

    Below that, they spread their filters instead of striding: every second or fourth cell of their map is then a cell
    of the strided net's, and the cells between are new.

    Args:
        layout: the kind of block and the number of blocks per stage.
        in_channels: channels of the images.
        width: channels of the stem and of the first stage's 3x3 convolutions; doubles from stage to stage.
        output_stride: pixels of the image per cell of the last map, at most.
        small: a 3x3 stem that halves the map once, for small images; otherwise 7x7 and max pooling, a quarter.

    Attributes:
        stages: blocks per stage.
        channels: channels that each stage puts out.
        strides: pixels of the image per cell of each stage's map.
    """

    def __init__(
        self, layout: Layout, *, in_channels: int, width: int, output_stride: int, small: bool = False
    ) -> None:
        from resnotes.models import imagenet_blocks  # seconds of import

        super().__init__()
        block = getattr(imagenet_blocks, layout.block)
        kernel, reached = (3, 2) if small else (7, 4)
        self.stages = layout.stages
        self.channels = tuple(block.expansion * width * 2**i for i in range(len(layout.stages)))
        self.strides = tuple(min(reached * 2**i, output_stride) for i in range(len(layout.stages)))
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        entering, before, spacing = width, reached, 1
        for i, (depth, stride) in enumerate(zip(self.stages, self.strides, strict=True)):
            stage = _stage(block, entering, width * 2**i, depth, stride // before)
            incoming, spacing = spacing, reached * 2**i // stride
            _dilate(stage, incoming, spacing)
            self.add_module(f"layer{i + 1}", stage)
            entering, before = self.channels[i], stride
        for module in self.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False  # the parts of a block are called one by one, too

    @property
    def layers(self) -> list[nn.Sequential]:
        """The stages, in order."""
        return [stage for name, stage in self.named_children() if name.startswith("layer")]  # type: ignore[misc]

    def stem(self, images: Tensor) -> Tensor:
        """Images ``[N, in_channels, H, W]`` to the first block's input, ``[N, width, h, w]``."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x


class ImageNetResNet(Trunk):
    """A residual net for large images: ``[N, in_channels, H, W]`` to logits ``[N, num_classes]``.

    It has the stem, blocks and head that lesions and path gradients are written against; these are views of the named
    submodules, which would have two names in the state dict if they were registered a second time.

    Args:
        name: the name that `imagenet_resnet` takes.
        options: the options that it takes; see there.
    """

    def __init__(self, name: str, options: dict[str, Any]) -> None:
        super().__init__(LAYOUTS[name], **{key: value for key, value in options.items() if key != "num_classes"})
        self.name, self.options = name, options
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(self.channels[-1], options["num_classes"])
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def blocks(self) -> list[Block]:
        """The residual blocks of all four stages, in order."""
        return [as_block(block) for stage in self.layers for block in stage]

    def head(self, x: Tensor) -> Tensor:
        """The last map ``[N, channels[-1], h, w]``, of any size, to logits ``[N, num_classes]``."""
        logits: Tensor = self.fc(self.avgpool(x).flatten(1))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[N, num_classes]`` of normalised images ``[N, in_channels, H, W]``."""
        x = self.stem(images)
        for stage in self.layers:
            x = stage(x)
        return self.head(x)


def imagenet_resnet(
    name: str, *, num_classes: int = 1000, in_channels: int = 3, width: int = 64, output_stride: int = 32
) -> ImageNetResNet:
    """Build a net of He et al. 2015, Table 1, in training mode, with convolutions drawn "fan out".

    Args:
        name: a key of `LAYOUTS`, ``"resnet18"`` to ``"resnet152"``.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the stem; 64 in the paper.
        output_stride: pixels per cell of the last map: 32 as in the paper, or 16 or 8 by dilation.

    Raises:
        UsageError: unknown `name` or `output_stride`, or a count that is none; the message says what is allowed.
    """
    if name not in LAYOUTS:
        raise unknown("network", name, LAYOUTS)
    options: dict[str, Any] = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    check_options(name, options)
    if output_stride not in OUTPUT_STRIDES:
        raise unknown("output stride", output_stride, OUTPUT_STRIDES)
    return ImageNetResNet(name, options | {"output_stride": output_stride})
