"""Augmentation of images together with their labels, for a batch at once.

Mirror, scale, rotation and crop are one map from the pixels of the crop to points of the image, so that an image is
interpolated once. Where several points give way to one, the image is not smoothed before, as in the authors' code.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.models.segmentation import IGNORED

BLUR = 5, 1.1  # side of the window and standard deviation, in pixels; those of the authors' code


def _offsets(sizes: Tensor, crop: int, drawn: Tensor) -> Tensor:
    """Whole pixels ``[N]`` from the edge of images of `sizes` to the crop's; images that are smaller are centred."""
    room = sizes - crop
    return torch.where(room >= 0, (drawn * (room + 1)).floor(), (room / 2).ceil())


def _points(
    image_size: tuple[int, int], crop: tuple[int, int], drawn: Tensor, scales: Tensor, angles: Tensor
) -> Tensor:
    """Where in the image each pixel of the crop comes from.

    Args:
        image_size: height and width.
        crop: height and width.
        drawn: ``[2, N]``, 0 to 1, the crop's place, vertical and horizontal.
        scales: ``[N]``.
        angles: ``[N]``, in radians, clockwise.

    Returns:
        ``[N, *crop, 2]``, x and y; -1 and 1 are the image's edges, as `F.grid_sample` has it.
    """
    height, width = ((scales * side).round().clamp(min=1) for side in image_size)
    y, x = (  # from the centre of the scaled image; the centre of a pixel is half a pixel from its edge
        torch.arange(side) + 0.5 + (_offsets(size, side, place) - size / 2)[:, None]
        for side, size, place in zip(crop, (height, width), drawn, strict=True)
    )
    y, x = y[:, :, None], x[:, None, :]
    cosine, sine = angles.cos()[:, None, None], angles.sin()[:, None, None]
    across = (cosine * x + sine * y) / (width / 2)[:, None, None]
    down = (cosine * y - sine * x) / (height / 2)[:, None, None]
    return torch.stack([across, down], -1)


def augment(
    images: Tensor,
    labels: Tensor,
    generator: torch.Generator,
    *,
    crop: int | tuple[int, int],
    mirror: bool = True,
    scale: tuple[float, float] = (0.5, 2.0),
    rotate: float = 10.0,
    blur: bool = True,
    ignore_index: int = IGNORED,
) -> tuple[Tensor, Tensor]:
    """Mirror, resize, rotate, blur and crop each image and its labels (Zhao et al. 2017, Sec. 5.1).

    As in the authors' code, half of the images are mirrored, half are rotated and half are blurred. What lies outside
    an image has its mean colour, and the label to ignore.

    Args:
        images: ``[N, C, H, W]``, uint8, or floating point of any range.
        labels: integers ``[N, H, W]``.
        generator: on the CPU. The same numbers are drawn from it whatever the options.
        crop: side of the result, or its height and width.
        mirror: left and right.
        scale: smallest and largest factor, between which it is uniform.
        rotate: largest angle in degrees, to either side.
        blur: Gaussian, see `BLUR`.
        ignore_index: label of what lies outside.

    Returns:
        Images ``[N, C, *crop]`` and labels ``[N, *crop]``, of the types and on the device they came with.

    Raises:
        UsageError: images and labels of different sizes, or scales that are not positive and in order.
    """
    if labels.shape != (len(images), *images.shape[2:]):
        raise UsageError(f"labels of shape {tuple(labels.shape)} do not fit images of shape {tuple(images.shape)}")
    if not 0 < scale[0] <= scale[1]:
        raise UsageError(f"scale must be two positive factors in order, found {scale!r}")
    crop = (crop, crop) if isinstance(crop, int) else crop
    size = (images.shape[2], images.shape[3])
    sizes, turns, turned, mirrored, blurred, *places = torch.rand(7, len(images), generator=generator)

    scales = scale[0] + (scale[1] - scale[0]) * sizes
    angles = torch.where(turned < 0.5, (2 * turns - 1) * math.radians(rotate), 0.0)
    points = _points(size, crop, torch.stack(places), scales, angles)
    if mirror:
        points[..., 0] *= torch.where(mirrored < 0.5, -1, 1)[:, None, None]

    # Samples beyond the edge repeat the outermost pixel; they are overwritten below.
    pixels = images if images.is_floating_point() else images.float()
    points = points.to(images.device, pixels.dtype)
    new_images = F.grid_sample(pixels, points, mode="bilinear", padding_mode="border", align_corners=False)
    new_labels = F.grid_sample(
        labels[:, None].to(pixels.dtype), points, mode="nearest", padding_mode="border", align_corners=False
    )[:, 0].to(labels.dtype)
    outside = (points.abs() > 1).any(-1)
    new_images = torch.where(outside[:, None], pixels.mean((2, 3), keepdim=True), new_images)
    new_labels = torch.where(outside, ignore_index, new_labels)
    if blur:
        # Importing it takes as long as importing torch, which every kernel and worker would pay.
        from torchvision.transforms.v2.functional import gaussian_blur

        side, deviation = BLUR
        smooth = gaussian_blur(new_images, [side, side], [deviation, deviation])
        new_images = torch.where((blurred < 0.5).to(images.device)[:, None, None, None], smooth, new_images)
    if not images.is_floating_point():
        new_images = new_images.round().clamp(0, 255).to(images.dtype)
    return new_images, new_labels
