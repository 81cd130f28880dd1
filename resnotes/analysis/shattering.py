"""Shattered gradients: how the gradient changes between neighbouring inputs (Balduzzi et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from resnotes.models import Network, recalibrate
from resnotes.models.network import Statistics, on_statistics
from resnotes.models.passes import check_repeatable


def gradient_correlation(
    network: Network, inputs: Tensor, labels: Tensor, distance: float = 0.1, *, statistics: Statistics = "batch"
) -> float:
    """Correlation of the input gradients of neighbouring inputs ("shattered gradients", Balduzzi et al. 2017).

    A neighbour lies on the way from one image to the next of the batch; the gradient is that of the logit of the
    image's class. Where gradients are shattered, that at the neighbour is as good as unrelated. Balduzzi et al. show
    it along a line of inputs (Fig. 1), here it is along lines between images.

    Args:
        network: any classifier; left as it was.
        inputs: normalised images ``[N, C, H, W]``, at least 2.
        labels: int64 ``[N]``.
        distance: how far along the way, 0 (the image itself) to 1 (the next one).
        statistics: ``"batch"`` for BN on the statistics of the images, and on those of the neighbours, as in training:
            an image's gradient then depends on the others. ``"running"`` for a copy that is recalibrated on the
            images and in eval mode: images and neighbours are normalised alike, each by itself.

    Returns:
        Mean over the images of the Pearson correlation between the two gradients, over channels and pixels; an
        image without gradient counts as 0.

    Raises:
        UsageError: a network with dropout, or other statistics.
    """
    if statistics == "running":
        network = recalibrate(network, inputs)

    def gradient(images: Tensor) -> Tensor:
        images = images.clone().requires_grad_()
        logits = network(images).gather(1, labels[:, None])
        (found,) = torch.autograd.grad(logits.sum(), images)
        found = found.cpu().double().flatten(1)
        return F.normalize(found - found.mean(1, keepdim=True))

    neighbours = inputs + distance * (inputs.roll(1, 0) - inputs)
    with on_statistics(network, statistics):
        check_repeatable(network)
        return (gradient(inputs) * gradient(neighbours)).sum(1).mean().item()
