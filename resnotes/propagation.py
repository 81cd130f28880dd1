"""How signals and gradients travel through a network: responses, gradient norms, and what a gradient step gains."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.models import Network


def _layers(network: Network) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each 3x3 convolution and the BN after it, from the input on; the shortcuts' projections are left out."""
    branches = [network.stem, *(block.residual for block in network.blocks)]
    modules = [module for branch in branches for module in branch.modules()]  # type: ignore[union-attr]
    convolutions = [module for module in modules if isinstance(module, nn.Conv2d)]
    norms = [module for module in modules if isinstance(module, nn.BatchNorm2d)]
    if len(convolutions) != len(norms) or network.options.get("order", "original") != "original":
        raise UsageError(f"{network.name}: expected each convolution to be followed by its BN (the original order)")
    yield from zip(convolutions, norms, strict=True)


@torch.no_grad()
def layer_responses(network: Network, inputs: Tensor) -> pd.DataFrame:
    """Standard deviation of each 3x3 layer's output, after BN and before ReLU or addition (He et al. 2015, Fig. 7).

    Args:
        network: a plain or residual network in the original order.
        inputs: normalised images ``[N, C, H, W]``.

    Returns:
        One row per layer: ``layer`` (1, 2, ...), ``std`` (over images, channels and pixels, in eval mode) and
        ``gamma``, the root mean square of BN's weights, which is what the standard deviation within a channel
        would be if the batch had BN's running statistics.

    Raises:
        UsageError: a network with another order of layers.
    """
    rows: list[dict[str, float]] = []

    def note(norm: nn.BatchNorm2d, _: tuple[Tensor, ...], output: Tensor) -> None:
        rows.append(
            {"layer": len(rows) + 1, "std": output.std().item(), "gamma": norm.weight.square().mean().sqrt().item()}
        )

    handles = [norm.register_forward_hook(note) for _, norm in _layers(network)]
    was_training = network.training
    try:
        network.eval()(inputs)
    finally:
        network.train(was_training)
        for handle in handles:
            handle.remove()
    return pd.DataFrame(rows)


def gradient_norms(network: Network, inputs: Tensor, labels: Tensor) -> pd.DataFrame:
    """Gradient of the mean cross-entropy, layer by layer, with BN on batch statistics as in training.

    Args:
        network: a plain or residual network in the original order; left as it was.
        inputs: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.

    Returns:
        One row per 3x3 layer: ``layer`` (1, 2, ...), ``gradient`` (Euclidean norm of the gradient of its weights)
        and ``relative`` (that norm over the norm of the weights).

    Raises:
        UsageError: a network with another order of layers.
    """
    network = copy.deepcopy(network).train()
    F.cross_entropy(network(inputs), labels).backward()
    rows = []
    for layer, (convolution, _) in enumerate(_layers(network), start=1):
        assert convolution.weight.grad is not None
        norm = convolution.weight.grad.norm().item()
        rows.append({"layer": layer, "gradient": norm, "relative": norm / convolution.weight.norm().item()})
    return pd.DataFrame(rows)


def gradient_step_gain(
    network: Network, inputs: Tensor, labels: Tensor, fractions: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
) -> float:
    """How much of its loss a network can lose in one step along its gradient: zero at a local optimum.

    The loss is the mean cross-entropy over all of `inputs`, with BN on their statistics, so that the step and
    the loss belong to the same function of the weights.

    Args:
        network: any classifier; left as it was.
        inputs: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        fractions: lengths of the step that are tried, relative to the norm of all weights.

    Returns:
        The largest relative decrease of the loss over the lengths, 0 to 1.
    """
    network = copy.deepcopy(network).train()
    loss = F.cross_entropy(network(inputs), labels)
    if not loss.item():  # exactly zero once every probability rounds to 1
        return 0.0
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad(loss, parameters)
    weight_norm = torch.stack([parameter.detach().norm() for parameter in parameters]).norm()
    gradient_norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    best = loss.item()
    with torch.no_grad():
        start = [parameter.clone() for parameter in parameters]
        for fraction in fractions:
            step = fraction * weight_norm / gradient_norm
            for parameter, origin, gradient in zip(parameters, start, gradients, strict=True):
                parameter.copy_(origin - step * gradient)
            best = min(best, F.cross_entropy(network(inputs), labels).item())
    return 1 - best / loss.item()
