"""Whether blocks refine one estimate, block by block: what each adds, which way it points, and what the head reads.

Greff, Srivastava and Schmidhuber 2017 (arXiv 1612.07771) see the blocks of a stage as steps that refine one and the
same estimate; Jastrzębski et al. 2018 (arXiv 1710.04773) measure it by the direction of what a block adds, against the
loss gradient. The head after every block is nostalgebraist's "logit lens" (2020). By the angle between a block's input
and output, Gromov et al. 2024 (arXiv 2403.17887) predict which blocks can go.
"""

from __future__ import annotations

import contextlib
import math

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.models.adapters import Parts
from resnotes.models.inputs import check_result
from resnotes.models.network import copied
from resnotes.models.passes import Visit, check_repeatable, classify, measuring, visit


def refinement(model: nn.Module, images: Tensor, labels: Tensor) -> pd.DataFrame:
    """How far each block changes what it gets, and whether that lowers the loss.

    Args:
        model: a network of stem, blocks and head, in the mode in which it is; left as it was.
        images: normalised images ``[N, C, H, W]``. Memory grows with them; in eval mode they can be split.
        labels: int64 ``[N]``.

    Returns:
        One row a block, ``block`` from 0, with means over the images; with x a block's input, y its output, h its
        shortcut and F its residual branch:

        - ``cosine`` of F(x) and the negative gradient of the loss at x: above 0 where the branch goes down the loss
          (Jastrzębski et al. 2018). NaN without a shortcut, to which F(x) would be added, or where their shapes
          differ. An image on which one of the two is zero does not count.
        - ``norm_ratio``: ‖F(x)‖ / ‖h(x)‖; NaN without a shortcut.
        - ``angle`` between x and y, in degrees (Gromov et al. 2024); NaN where their shapes differ.
        - ``lens_error``, in percent, and ``lens_loss``, cross-entropy in nats, of the head applied to y; NaN where the
          head is made for another number of channels. The last block's are those of the network.

    Raises:
        UsageError: no images, labels that do not fit, active dropout, or a model of another shape.
    """
    with measuring(model, images, labels), torch.enable_grad():
        check_repeatable(model)
        network = copied(model).requires_grad_(False)
        visits = list[Visit]()

        def through(block: Parts, x: Tensor) -> Tensor:
            visits.append(visit(block, x if visits else x.detach().requires_grad_()))
            return visits[-1].output

        _, logits, labels = classify(network, images.clone(), labels, through)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        gradients = torch.autograd.grad(loss, [each.x for each in visits])
        with torch.no_grad():
            rows = [_row(network, *each, labels) for each in zip(visits, gradients, strict=True)]
    return pd.DataFrame(rows).rename_axis("block").reset_index()


def _row(network: nn.Module, found: Visit, gradient: Tensor, labels: Tensor) -> dict[str, float]:
    """See `refinement`."""
    nan = torch.tensor(torch.nan)
    cosine = ratio = angle = nan
    if found.shortcut is not None:
        branch = found.sum - found.shortcut
        ratio = _norms(branch) / _norms(found.shortcut)
        if branch.shape == gradient.shape:
            cosine = _cosines(branch, -gradient)
    if found.output.shape == found.x.shape:
        angle = _cosines(found.x, found.output).clamp(-1, 1).acos().rad2deg()
    error, loss = _lens(network, found.output, labels)
    return {
        "cosine": cosine.nanmean().item(),
        "norm_ratio": ratio.mean().item(),
        "angle": angle.nanmean().item(),
        "lens_error": error,
        "lens_loss": loss,
    }


def _norms(maps: Tensor) -> Tensor:
    """Of each image's; in float32, the squares of the smallest gradients would be zero."""
    norms: Tensor = torch.linalg.vector_norm(maps.flatten(1).cpu(), dim=1, dtype=torch.float64)
    return norms


def _cosines(first: Tensor, second: Tensor) -> Tensor:
    """Of each image's two; NaN where one is zero."""
    products = (first.cpu().double() * second.cpu().double()).flatten(1).sum(1)
    return products / (_norms(first) * _norms(second))


def _lens(network: nn.Module, maps: Tensor, labels: Tensor) -> tuple[float, float]:
    """Error in percent, and loss in nats, of the head on a block's output; NaN where it cannot read that."""
    with contextlib.suppress(RuntimeError):  # of layers that are made for other shapes
        logits = check_result(network.head(maps.clone()), "the head")  # type: ignore[operator]
        wrong = ((logits.argmax(1) != labels) | logits.isnan().any(1)).cpu().double().mean()
        return 100 * wrong.item(), F.cross_entropy(logits, labels).item()
    return math.nan, math.nan
