"""Predictions of a segmentation network: the largest logit of each pixel."""

from __future__ import annotations

from collections.abc import Iterable
from typing import overload

import torch
from torch import Tensor, nn

from resnotes.datasets import Normalization
from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models import in_mode


@overload
def predict(
    network: nn.Module, images: Tensor, normalization: Normalization, *, precision: str = ..., batch: int = ...
) -> Tensor: ...
@overload
def predict(
    network: nn.Module,
    images: Iterable[Tensor],
    normalization: Normalization,
    *,
    precision: str = ...,
    batch: int = ...,
) -> list[Tensor]: ...
@torch.inference_mode()
def predict(
    network: nn.Module,
    images: Tensor | Iterable[Tensor],
    normalization: Normalization,
    *,
    precision: str = "float32",
    batch: int = 16,
) -> Tensor | list[Tensor]:
    """Labels, int64 ``[N, H, W]``, of uint8 images ``[N, C, H, W]``, in eval mode.

    Of images ``[C, H, W]`` of various sizes, which go one at a time, a list of labels ``[H, W]``.

    Args:
        network: ``[N, C, H, W]`` to logits ``[N, K, H, W]``.
        images: uint8, on any device.
        normalization: what the network's inputs were normalised with in training.
        precision: ``"float32"`` or ``"bfloat16"`` (autocast).
        batch: images per forward pass.

    Raises:
        UsageError: logits that are NaN.
    """
    if not isinstance(images, Tensor):
        return [predict(network, image[None], normalization, precision=precision)[0] for image in images]
    device = next(network.parameters()).device
    labels = []
    with in_mode(network, training=False), autocast(device, precision):
        for part in images.split(batch):
            inputs = normalization(part.to(device)).contiguous(memory_format=torch.channels_last)
            logits = network(inputs)
            if logits.isnan().any():
                raise UsageError(f"{type(network).__name__} puts out NaN, which is no class; look at its weights")
            labels.append(logits.argmax(1))
    return torch.cat(labels)
