"""Feed-forward networks for small images: the VGG of Veit et al. 2016 (arXiv 1605.06431, Fig. 3), and an AlexNet.

They have the one shape of every network here, without shortcuts. To delete a block is to leave out its `residual`
and keep its `after`: max pooling is therefore in `after`, and the maps keep their size when a block goes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from resnotes.models.network import Block, Network, initialize
from resnotes.models.residual import classifier, rectified
from resnotes.typed import Count, check_arguments

GRID = 4  # cells along a side of what AlexNet's first fully connected layer reads: all there is of 32x32 pixels


def _layer(in_channels: int, out_channels: int, kernel: int = 3, *, batch_norm: bool) -> nn.Sequential:
    """As in the residual networks; BN makes the convolution's bias redundant."""
    return rectified(in_channels, out_channels, kernel, batch_norm=batch_norm, bias=not batch_norm)


def _pool() -> nn.Module:
    """Max pooling to half the size, rounded up, as a convolution with stride 2 has it."""
    return nn.MaxPool2d(2, ceil_mode=True)


@torch.no_grad()
def _network(
    stem: nn.Module, blocks: list[Block], head: nn.Module, stages: tuple[int, ...], name: str, options: dict[str, Any]
) -> Network:
    """Draw the weights: as everywhere, but with "fan in" (He et al. 2015, ICCV, Eq. 10), in hidden linear layers, too.

    "Fan out" would scale the signal by the root of in_channels over width in the first convolution. That is no
    matter where BN follows; without BN, VGG then hardly begins to learn.
    """
    network = Network(stem, blocks, head, stages=stages, name=name, options=options)
    initialize(network)
    for part in (network.stem, network.blocks):
        for module in part.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
    return network


def _options(name: str, **options: Any) -> dict[str, Any]:
    """The options of a network, checked; without those that change nothing."""
    checked = check_arguments(FEEDFORWARD[name], options, name)
    return {option: value for option, value in checked.items() if value is not False}


def vgg(*, num_classes: Count = 10, in_channels: Count = 3, width: Count = 128, batch_norm: bool = False) -> Network:
    """Build ``vgg-15``: 14 convolutions of 3x3 and a classifier (Simonyan, Zisserman 2015; Veit et al. 2016).

    Veit et al. say little more of it than 15 layers and 128 channels throughout, so that any layer can go. Where
    the pooling sits is our choice: it ends the first two of three stages of 5, 5 and 4 convolutions, on maps of
    full, half and quarter size, as in the residual networks. The classifier is theirs, too: global average pooling
    and one linear layer.

    The first convolution is the stem, the other 13 are the blocks. Every block can be deleted.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input images, ``[N, in_channels, H, W]`` of any size.
        width: channels of every convolution.
        batch_norm: BN after each convolution.

    Raises:
        UsageError: a count that is no whole number of at least 1.
    """
    options = _options("vgg-15", **locals())
    stages = (4, 5, 4)  # the stem is the first stage's fifth convolution
    ends = [stage < 2 and i == count - 1 for stage, count in enumerate(stages) for i in range(count)]
    blocks = [
        Block(_layer(width, width, batch_norm=batch_norm), None, _pool() if pooled else nn.Identity())
        for pooled in ends
    ]
    head = classifier([], width, num_classes)
    stem = _layer(in_channels, width, batch_norm=batch_norm)
    return _network(stem, blocks, head, stages, "vgg-15", options)


def alexnet(*, num_classes: Count = 10, in_channels: Count = 3, width: Count = 64, batch_norm: bool = False) -> Network:
    """Build ``alexnet``, a form for small images of Krizhevsky et al. 2012: five convolutions, three linear layers.

    Pooling follows the first, second and fifth convolution, as in the paper; 32 pixels become 16, 8 and 4. Smaller
    are the first convolution, 5x5 with stride 1, the second, 3x3, the pooling, 2x2 without overlap, and the hidden
    layers, of 16 times `width`. There are neither dropout nor local response normalisation nor two towers.

    The first convolution is the stem, the last linear layer the head. Of the blocks, conv2 to conv5, fc6 and fc7,
    only conv5 and fc7 can be deleted: the others change the number of channels, or make a vector of the map.

    Args:
        num_classes: length of the logits.
        in_channels: channels of the input images, ``[N, in_channels, H, W]`` of any size: fc6 reads a grid of
            4x4 cells, to which other maps than those of 32x32 pixels are averaged, or repeated.
        width: channels of the first convolution; the others have 3, 6, 4 and 4 times as many.
        batch_norm: BN after each convolution; the linear layers stay without.

    Raises:
        UsageError: a count that is no whole number of at least 1.
    """
    options = _options("alexnet", **locals())
    stem = _layer(in_channels, width, 5, batch_norm=batch_norm)
    stem.add_module("pool", _pool())
    channels, hidden = [factor * width for factor in (1, 3, 6, 4, 4)], 16 * width
    residuals: list[nn.Module] = [_layer(c_in, c_out, batch_norm=batch_norm) for c_in, c_out in pairwise(channels)]
    fc6 = OrderedDict[str, nn.Module](
        pool=nn.AdaptiveAvgPool2d(GRID),
        flatten=nn.Flatten(),
        fc=nn.Linear(channels[-1] * GRID**2, hidden),
        relu=nn.ReLU(),
    )
    fc7 = OrderedDict[str, nn.Module](fc=nn.Linear(hidden, hidden), relu=nn.ReLU())
    residuals += [nn.Sequential(fc6), nn.Sequential(fc7)]
    afters = [_pool(), nn.Identity(), nn.Identity(), _pool(), nn.Identity(), nn.Identity()]
    blocks = [Block(residual, None, after) for residual, after in zip(residuals, afters, strict=True)]
    head = nn.Sequential(OrderedDict(fc=nn.Linear(hidden, num_classes)))
    stages = (1, 3, 2)  # conv2 at half size, conv3 to conv5 at a quarter, fc6 and fc7 without a map
    return _network(stem, blocks, head, stages, "alexnet", options)


FEEDFORWARD: dict[str, Callable[..., Network]] = {"vgg-15": vgg, "alexnet": alexnet}
