"""Predictions of a segmentation network: from the image as it is, or averaged over scales, mirror images and crops.

What is averaged are probabilities, as in the authors' code. (Zhao et al. 2017, Sec. 5.2: "multi-scale testing".)
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.datasets import Normalization
from resnotes.devices import autocast
from resnotes.models import in_mode

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # the paper's, for multi-scale testing
OVERLAP = 1 / 3  # of neighbouring crops, as in the authors' code


def _starts(size: int, crop: int) -> list[int]:
    """Where crops of a side begin: at steps of 2/3 of a crop, the last one at the border."""
    step = math.ceil(crop * (1 - OVERLAP))
    return [*range(0, size - crop, step), size - crop]


def _whole(network: nn.Module, inputs: Tensor, flip: bool, precision: str) -> Tensor:
    """Probabilities ``[N, K, H, W]`` of one view, or the mean over it and its mirror image."""
    views = [inputs, inputs.flip(3)] if flip else [inputs]
    with autocast(inputs.device, precision):
        logits = [network(view.contiguous(memory_format=torch.channels_last)) for view in views]
    likely: list[Tensor] = [one.softmax(1, dtype=torch.promote_types(one.dtype, torch.float32)) for one in logits]
    return (likely[0] + likely[1].flip(3)) / 2 if flip else likely[0]


def _cropped(network: nn.Module, inputs: Tensor, crop: int | None, flip: bool, precision: str) -> Tensor:
    """Probabilities ``[N, K, H, W]``, each pixel's the mean over the crops that it lies in."""
    height, width = inputs.shape[2:]
    high, wide = min(crop or height, height), min(crop or width, width)
    windows = [
        (..., slice(top, top + high), slice(left, left + wide))
        for top, left in itertools.product(_starts(height, high), _starts(width, wide))
    ]
    if len(windows) == 1:
        return _whole(network, inputs, flip, precision)
    total: Tensor | None = None
    count = inputs.new_zeros(height, width)
    for window in windows:
        part = _whole(network, inputs[window], flip, precision)
        total = part.new_zeros(*part.shape[:2], height, width) if total is None else total
        total[window] += part
        count[window] += 1
    assert total is not None
    return total / count


@torch.inference_mode()
def probabilities(
    network: nn.Module,
    inputs: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop: int | None = None,
    precision: str = "float32",
) -> Tensor:
    """Class probabilities of normalised images, in eval mode.

    Args:
        network: ``[N, C, H, W]`` to logits ``[N, K, H, W]``.
        inputs: ``[N, C, H, W]``.
        scales: sizes, relative to their own, to which the images are resized; the probabilities are resized back and
            averaged.
        flip: average with the mirror image.
        crop: side of a square; larger images are covered with overlapping ones. Images that are smaller are not
            padded.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).

    Returns:
        ``[N, K, H, W]``, float32 or as precise as the network.
    """
    size = tuple(inputs.shape[2:])
    views = []
    with in_mode(network, training=False):
        for scale in scales:
            scaled = tuple(max(1, round(scale * side)) for side in size)
            resized = inputs if scaled == size else F.interpolate(inputs, scaled, mode="bilinear", align_corners=False)
            view = _cropped(network, resized, crop, flip, precision)
            views.append(view if scaled == size else F.interpolate(view, size, mode="bilinear", align_corners=False))
    return views[0] if len(views) == 1 else torch.stack(views).mean(0)


def predict(
    network: nn.Module,
    images: Tensor,
    normalization: Normalization,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    crop: int | None = None,
    precision: str = "float32",
    batch: int = 16,
) -> Tensor:
    """Labels, int64 ``[N, H, W]``, of uint8 images ``[N, C, H, W]``; see `probabilities`.

    Images of various sizes go one at a time, as ``image[None]``.

    Args:
        network: as for `probabilities`, like what is not said here.
        images: uint8, on any device.
        normalization: what the network's inputs were normalised with in training.
        scales: sizes to average over.
        flip: average with the mirror image.
        crop: side of the crops.
        precision: of the network.
        batch: images per forward pass.
    """
    device = next(network.parameters()).device
    return torch.cat(
        [
            probabilities(
                network, normalization(part.to(device)), scales=scales, flip=flip, crop=crop, precision=precision
            ).argmax(1)
            for part in images.split(batch)
        ]
    )
