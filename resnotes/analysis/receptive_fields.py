"""How far a network could look, from its kernels, and how far it does look, from its gradients.

Luo et al. 2016, "Understanding the effective receptive field" (arXiv 1701.04128).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from resnotes.errors import UsageError
from resnotes.models import in_mode
from resnotes.models.imagenet import Encoder
from resnotes.models.segmentation import SegmentationNetwork

_BATCH = 16  # images per backward pass
SHARE = 0.95  # of the gradient, that the effective field holds


class ReceptiveField(NamedTuple):
    """What a cell of a map can depend on: the square of `size` pixels a side around pixel ``stride * i`` for cell i.

    Attributes:
        size: pixels; infinite where pooling takes in the whole image.
        stride: pixels from a cell to the next.
    """

    size: float
    stride: int


class EffectiveField(NamedTuple):
    """What the logits of a pixel do depend on.

    Attributes:
        map: float64 ``[H, W]``, magnitude of their gradient with respect to each pixel, as a share of the sum.
        centre: row and column of the pixel.
        radius: half the side, without the centre, of the smallest square around it that holds `SHARE` of the sum.
    """

    map: Tensor
    centre: tuple[int, int]
    radius: int

    @property
    def size(self) -> int:
        """Side of that square in pixels, to compare with `ReceptiveField.size`."""
        return 2 * self.radius + 1

    def relative(self, theory: float) -> float:
        """`size` over that of a gradient which weighs all pixels within the theoretical field and the image alike.

        Args:
            theory: side of the theoretical field, `ReceptiveField.size`.
        """
        short, long = sorted(min(theory, side) for side in self.map.shape)
        alike = math.sqrt(SHARE * short * long)
        return self.size / (alike if alike <= short else SHARE * long)


def theoretical_receptive_field(module: Encoder | SegmentationNetwork) -> ReceptiveField:
    """The receptive field of a cell of the encoder's last map, or of the FCN's logits before upsampling.

    The logits of pixels at multiples of the stride are those of a cell; other pixels lie between two cells on each
    axis, and see one stride more.
    """
    parts: list[nn.Module] = [module]
    if isinstance(module, SegmentationNetwork):
        parts = [module.encoder, module.head]
    size, stride = 1, 1
    for part in parts:
        for name, layer in part.named_modules():
            if isinstance(layer, nn.Conv2d | nn.MaxPool2d) and "downsample" not in name:  # a shortcut sees less
                kernel, step, dilation = (
                    value if isinstance(value, int) else value[0]
                    for value in (layer.kernel_size, layer.stride, layer.dilation)
                )
                size += (kernel - 1) * dilation * stride
                stride *= step
    pooled = isinstance(module, SegmentationNetwork) and module.pyramid.bins
    return ReceptiveField(math.inf if pooled else size, stride)


def effective_receptive_field(network: nn.Module, images: Tensor, *, seed: int = 0) -> EffectiveField:
    """The gradient of the central pixel's logits with respect to the image, in eval mode.

    Its magnitude at a pixel is the root mean square over images, their channels and classes: each image's logits are
    added up with random signs, which has the same mean square as one backward pass for each class.

    Args:
        network: ``[N, C, H, W]`` to logits ``[N, K, H, W]``.
        images: normalised, ``[N, C, H, W]``; noise (`torch.randn`) shows the field of the network alone.
        seed: of the signs.

    Raises:
        UsageError: a gradient that is 0 everywhere.
    """
    generator = torch.Generator().manual_seed(seed)
    height, width = images.shape[2:]
    centre = height // 2, width // 2
    energy = torch.zeros(height, width, dtype=torch.float64)
    with in_mode(network, training=False):
        for part in images.split(_BATCH):
            inputs = part.detach().requires_grad_()
            with torch.enable_grad():
                logits = network(inputs)[:, :, *centre]
            signs = torch.randint(2, logits.shape, generator=generator).to(logits) * 2 - 1
            (gradient,) = torch.autograd.grad(logits, inputs, signs)
            energy += gradient.cpu().double().square().sum((0, 1))
    if not energy.any():
        raise UsageError("the logits of the central pixel do not depend on the image")

    magnitude = energy.sqrt()
    magnitude /= magnitude.sum()
    rows, columns = (torch.arange(n) - middle for n, middle in zip((height, width), centre, strict=True))
    distance = torch.maximum(rows.abs()[:, None], columns.abs()[None, :])
    within = torch.bincount(distance.flatten(), magnitude.flatten()).cumsum(0)
    radius = int((within >= SHARE).nonzero()[0])
    return EffectiveField(magnitude, centre, radius)
