"""ImageNet residual nets, ResNet-18 to ResNet-152 (He et al. 2015, Table 1).

The submodules carry torchvision's names, so state dicts load strictly from and into
`torchvision.models.resnet*`. On top of those names every network offers the one shape that lesions and path
gradients are written against:

    x = net.stem(images)
    for block in net.blocks:
        x = block(x)  # == block.after(block.shortcut(x) + block.residual(x))
    logits = net.head(x)

`stem`, `blocks` and `head` are views of the named submodules, not submodules themselves: registering a module
a second time would duplicate its keys in the state dict.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, cast

import torch.nn.functional as F
from torch import Tensor, nn

from resnotes.errors import unknown
from resnotes.models.network import check_options

OUTPUT_STRIDES = (8, 16, 32)


def _conv3x3(in_channels: int, out_channels: int, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)


def _conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


def _downsample(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option B of He et al. 2015, Section 3.3: project where the shape changes, else the identity."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(_conv1x1(in_channels, out_channels, stride), nn.BatchNorm2d(out_channels))


class ResidualBlock(nn.Module):
    """One residual unit, ReLU(shortcut(x) + residual(x)) (He et al. 2015, Eqs (1) and (2), Fig. 2).

    Maps `[N, in_channels, H, W]` to `[N, expansion * channels, ceil(H / stride), ceil(W / stride)]`.
    """

    expansion: ClassVar[int]
    downsample: nn.Module

    def shortcut(self, x: Tensor) -> Tensor:
        """The path around the convolutions: `x` itself, or its projection where the shape changes."""
        out: Tensor = self.downsample(x)
        return out

    def residual(self, x: Tensor) -> Tensor:
        """The residual branch F(x), of the same shape as `shortcut(x)`."""
        raise NotImplementedError

    def after(self, x: Tensor) -> Tensor:
        """What follows the addition: a ReLU, shape kept."""
        return F.relu(x)

    def forward(self, x: Tensor) -> Tensor:
        """`after(shortcut(x) + residual(x))`."""
        return self.after(self.shortcut(x) + self.residual(x))


class BasicBlock(ResidualBlock):
    """Two 3x3 convolutions (He et al. 2015, Fig. 5 left).

    Args:
        in_channels: channels of the incoming map.
        channels: channels of both convolutions, and of the outgoing map.
        stride: stride of the first convolution and of the shortcut.
        dilation: sample spacing of the incoming and of the outgoing map. The two differ where dilation stands
            in for a stride: the first convolution still reads the old spacing, the second reads the new one.
    """

    expansion = 1

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, dilation: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        incoming, outgoing = dilation
        self.conv1 = _conv3x3(in_channels, channels, stride, incoming)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, dilation=outgoing)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = _downsample(in_channels, channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        """BN(conv(ReLU(BN(conv(x)))))."""
        x = F.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class Bottleneck(ResidualBlock):
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide (He et al. 2015, Fig. 5 right).

    The stride sits on the 3x3 convolution, as in torchvision ("v1.5"). The authors' own nets put it on the
    first 1x1, which then never reads three quarters of its input.

    Args:
        in_channels: channels of the incoming map.
        channels: channels of the first two convolutions; the outgoing map has four times as many.
        stride: stride of the 3x3 convolution and of the shortcut.
        dilation: sample spacing of the incoming and of the outgoing map, as in `BasicBlock`. The only 3x3
            convolution reads the incoming spacing.
    """

    expansion = 4

    def __init__(self, in_channels: int, channels: int, *, stride: int = 1, dilation: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        incoming, _ = dilation
        out_channels = self.expansion * channels
        self.conv1 = _conv1x1(in_channels, channels)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels, stride, incoming)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = _conv1x1(channels, out_channels)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = _downsample(in_channels, out_channels, stride)

    def residual(self, x: Tensor) -> Tensor:
        """Three convolutions, each with BN, and a ReLU between them."""
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class Layout(NamedTuple):
    """One column of He et al. 2015, Table 1: the kind of block, and how many in conv2_x to conv5_x."""

    block: type[BasicBlock] | type[Bottleneck]
    stages: tuple[int, int, int, int]


LAYOUTS = {
    "resnet18": Layout(BasicBlock, (2, 2, 2, 2)),
    "resnet34": Layout(BasicBlock, (3, 4, 6, 3)),
    "resnet50": Layout(Bottleneck, (3, 4, 6, 3)),
    "resnet101": Layout(Bottleneck, (3, 4, 23, 3)),
    "resnet152": Layout(Bottleneck, (3, 8, 36, 3)),
}


def residual_stages(
    block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], width: int, *, reached: int, output_stride: int
) -> list[nn.Sequential]:
    """Stages that halve the map and double the channels, from the second on, down to an output stride.

    Below that, they spread their filters instead of striding.

    Args:
        block: the kind of block.
        depths: blocks of each stage.
        width: channels of the incoming map, and of the first stage's 3x3 convolutions.
        reached: pixels of the image per cell of the incoming map.
        output_stride: pixels of the image per cell of the last map, at most.
    """
    stages = []
    entering, dilation = width, 1
    for i, depth in enumerate(depths):
        stride, incoming = 1 if i == 0 else 2, dilation
        if reached * stride > output_stride:
            stride, dilation = 1, dilation * stride
        reached *= stride
        blocks = [block(entering, width * 2**i, stride=stride, dilation=(incoming, dilation))]
        entering = block.expansion * width * 2**i
        for _ in range(depth - 1):
            blocks.append(block(entering, width * 2**i, dilation=(dilation, dilation)))
        stages.append(nn.Sequential(*blocks))
    return stages


class ImageNetResNet(nn.Module):
    """A residual net for large images: `[N, in_channels, H, W]` to logits `[N, num_classes]`.

    Attributes:
        name: the name that `imagenet_resnet` takes.
        options: the options that it takes, so that the network can be built again.
        stages: blocks per stage.
        channels: channels that each stage puts out.

    Args:
        layout: the kind of block and the number of blocks per stage.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the stem and of the first stage's 3x3 convolutions; doubles from stage to stage.
        output_stride: pixels of the image per cell of the last map, 8, 16 or 32. Below 32, the last stages
            spread their filters instead of striding; every second or fourth cell of their map is then a cell
            of the strided net's map, and the cells between are new.

    Raises:
        UsageError: `output_stride` is not among `OUTPUT_STRIDES`.
    """

    name: str
    options: dict[str, int]

    def __init__(
        self,
        layout: Layout,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        width: int = 64,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if output_stride not in OUTPUT_STRIDES:
            raise unknown("output stride", output_stride, OUTPUT_STRIDES)
        self.stages = layout.stages
        self.channels = tuple(layout.block.expansion * width * 2**i for i in range(4))

        self.conv1 = nn.Conv2d(in_channels, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)

        # The stem's convolution and max pooling each halve the map.
        layers = residual_stages(layout.block, layout.stages, width, reached=4, output_stride=output_stride)
        self.layer1, self.layer2, self.layer3, self.layer4 = layers

        self.fc = nn.Linear(self.channels[-1], num_classes)

        for module in self.modules():  # BN starts at weight 1 and bias 0 by default
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The residual blocks of all four stages, in order."""
        layers = (self.layer1, self.layer2, self.layer3, self.layer4)
        return [cast(ResidualBlock, block) for layer in layers for block in layer]

    def stem(self, images: Tensor) -> Tensor:
        """Images `[N, in_channels, H, W]` to block input `[N, width, ceil(H / 4), ceil(W / 4)]`."""
        return F.max_pool2d(F.relu(self.bn1(self.conv1(images))), 3, stride=2, padding=1)

    def head(self, x: Tensor) -> Tensor:
        """The last map `[N, channels[-1], h, w]`, of any size, to logits `[N, num_classes]`."""
        logits: Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Images `[N, in_channels, H, W]` to logits `[N, num_classes]`."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def imagenet_resnet(
    name: str, *, num_classes: int = 1000, in_channels: int = 3, width: int = 64, output_stride: int = 32
) -> ImageNetResNet:
    """Build a net of He et al. 2015, Table 1, with freshly drawn weights.

    Convolutions are drawn from N(0, 2 / (k * k * out_channels)), He initialisation over the fan-out.

    Args:
        name: a key of `LAYOUTS`, `"resnet18"` to `"resnet152"`.
        num_classes: number of logits.
        in_channels: channels of the images.
        width: channels of the stem; 64 in the paper.
        output_stride: pixels per cell of the last map: 32 as in the paper, or 16 or 8 by dilation.

    Returns:
        The network, in training mode.

    Raises:
        UsageError: unknown `name` or `output_stride`, or a count that is none; the message says what is allowed.
    """
    if name not in LAYOUTS:
        raise unknown("network", name, LAYOUTS)
    options = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
    check_options(name, options, True)
    options["output_stride"] = output_stride
    network = ImageNetResNet(LAYOUTS[name], **options)
    network.name, network.options = name, options
    return network
