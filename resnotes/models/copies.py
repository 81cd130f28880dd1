"""Copies of a network that differ from it in one thing."""

from __future__ import annotations

from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from resnotes.models.inputs import check_images, evaluating
from resnotes.models.network import Model, copied
from resnotes.models.passes import check_repeatable


def recalibrate(network: Model, images: Tensor) -> Model:
    """A copy in eval mode whose BN has the running statistics of these images; nothing is trained.

    Args:
        network: any model; left as it was.
        images: normalised ``[N, C, H, W]``, all sent through at once.

    Raises:
        UsageError: what are no normalised images, or cannot be sent through; or a network with dropout.
    """
    check_images(images)
    network = copied(network).train()
    check_repeatable(network)
    with evaluating(network, images):
        update_bn([images], network)
    return network.eval()


def without_borders(network: Model) -> Model:
    """A copy with circular padding in all convolutions but 1x1: every tap of a kernel meets a pixel, wherever it is."""
    network = copied(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1):
            module.padding_mode = "circular"
    return network
