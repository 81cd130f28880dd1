"""Residual encoders for dense prediction: the last stages may spread their filters instead of striding.

Every convolution and pooling is padded alike on all sides. Cell i of a map is therefore centred on pixel i * stride of
the image, whatever the image's size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from torch import Tensor, nn

from resnotes.models.imagenet import BasicBlock, Bottleneck, ResidualBlock, residual_stages
from resnotes.models.network import initialize


class Encoder(nn.Module):
    """Stem and residual stages, under torchvision's names: images ``[N, in_channels, H, W]`` to the last two maps.

    Args:
        block: the kind of block.
        depths: blocks of each stage.
        in_channels: channels of the images.
        width: channels of the stem and of the first stage's 3x3 convolutions; doubles from stage to stage.
        output_stride: pixels of the image per cell of the last map, at most.
        small: a 3x3 stem that halves the map once, for small images; otherwise 7x7 and max pooling, a quarter.

    Attributes:
        channels: channels that each stage puts out.
        strides: pixels of the image per cell of each stage's map.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        in_channels: int,
        width: int,
        output_stride: int,
        small: bool,
    ) -> None:
        super().__init__()
        self.depths = tuple(depths)
        self.channels = tuple(block.expansion * width * 2**i for i in range(len(depths)))
        kernel = 3 if small else 7
        self.conv1 = nn.Conv2d(in_channels, width, kernel, stride=2, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, stride=2, padding=1)
        reached = 2 if small else 4
        self.strides = tuple(min(reached * 2**i, output_stride) for i in range(len(depths)))
        stages = residual_stages(block, depths, width, reached=reached, output_stride=output_stride)
        for i, stage in enumerate(stages, 1):
            self.add_module(f"layer{i}", stage)
        initialize(self)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages, in order."""
        return [cast(nn.Sequential, self.get_submodule(f"layer{i}")) for i in range(1, len(self.depths) + 1)]

    @property
    def blocks(self) -> list[ResidualBlock]:
        """The residual blocks of all stages, in order."""
        return [cast(ResidualBlock, block) for stage in self.stages for block in stage]

    def stem(self, images: Tensor) -> Tensor:
        """Images to the first block's input, ``[N, width, h, w]``."""
        x: Tensor = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return x

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The maps of the last stage but one and of the last, ``[N, channels[i], h, w]``."""
        before = x = self.stem(images)
        for stage in self.stages:
            before, x = x, stage(x)
        return before, x
