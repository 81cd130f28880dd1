"""How hard is it to fit an identity? Two layers, with and without a shortcut, on the same task.

He et al. 2015, Sec. 3.1: "if the optimal function is closer to an identity mapping than to a zero mapping, it
should be easier for the solver to find the perturbations with reference to an identity mapping".
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap
from torch.nn import functional as F

from resnotes.devices import one_thread
from resnotes.models import Block
from resnotes.models.network import initialize


def near_identity(inputs: Tensor, strength: float) -> Tensor:
    """The target ``x + p(x)``: p is ReLU of a fixed random 3x3 convolution.

    Args:
        inputs: non-negative maps ``[N, C, H, W]``.
        strength: standard deviation of p(x) relative to that of x; 0 gives the identity.

    Returns:
        Non-negative maps of the same shape.
    """
    channels = inputs.shape[1]
    kernel = torch.randn(channels, channels, 3, 3, generator=torch.Generator().manual_seed(0))
    perturbation = F.conv2d(inputs, kernel, padding=1).relu()
    return inputs + strength * inputs.std() / perturbation.std() * perturbation


def _two_layers(channels: int, *, shortcut: bool) -> Block:
    def batch_norm() -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, track_running_stats=False)  # those of the batch; nothing else is read here

    residual = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        batch_norm(),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        batch_norm(),
    )
    initialize(residual)
    return Block(residual, nn.Identity() if shortcut else None, nn.ReLU())


def _norms(weights: dict[str, Tensor]) -> Tensor:
    """Euclidean norms of all weights together, one a learning rate."""
    return torch.cat([each.flatten(1) for each in weights.values()], 1).square().sum(1).sqrt()


@one_thread()
def fit(
    inputs: Tensor,
    targets: Tensor,
    *,
    shortcut: bool,
    seed: int,
    steps: int,
    lrs: Sequence[float],
    batch_size: int = 16,
) -> pd.DataFrame:
    """Fit ``targets`` from ``inputs`` with one two-layer unit by SGD with momentum 0.9, at several learning rates.

    Both kinds of unit start from the same weights at the same seed, and see the same batches; so they do at all
    rates, which are computed side by side.

    Args:
        inputs: non-negative maps ``[N, C, H, W]``.
        targets: non-negative maps of the same shape.
        shortcut: whether the unit adds its input before the last ReLU.
        seed: of the initial weights and the batches.
        steps: of the optimiser.
        lrs: learning rates.
        batch_size: maps per step.

    Returns:
        One row per rate and step: ``lr``, ``step`` (1, 2, ...), ``loss`` (mean squared error over the variance of the
        targets, before the step) and ``distance`` (Euclidean distance of the weights from their start, relative to
        the norm of the start, after the step).
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        unit = _two_layers(inputs.shape[1], shortcut=shortcut)
    scale = targets.var()

    def loss_of(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        loss: Tensor = F.mse_loss(functional_call(unit, weights, (x,)), y) / scale
        return loss

    at_each_rate = vmap(grad_and_value(loss_of), in_dims=(0, None, None))
    generator = torch.Generator().manual_seed(seed)
    start = {name: weight.detach() for name, weight in unit.named_parameters()}
    rates = {name: torch.tensor(lrs).view(-1, *[1] * weight.ndim) for name, weight in start.items()}
    weights = {name: weight.expand(len(lrs), *weight.shape) for name, weight in start.items()}
    momenta = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    initial = _norms(weights)
    losses, distances = [], []
    for _ in range(steps):
        chosen = torch.randint(len(inputs), (batch_size,), generator=generator)
        gradients, loss = at_each_rate(weights, inputs[chosen], targets[chosen])
        momenta = {name: 0.9 * momenta[name] + gradients[name] for name in start}
        weights = {name: weights[name] - rates[name] * momenta[name] for name in start}
        losses.append(loss)
        distances.append(_norms({name: weights[name] - start[name] for name in start}) / initial)
    return pd.DataFrame(
        {
            "lr": np.repeat(lrs, steps),
            "step": np.tile(np.arange(1, steps + 1), len(lrs)),
            "loss": torch.stack(losses, 1).flatten().numpy(),
            "distance": torch.stack(distances, 1).flatten().numpy(),
        }
    )


def compare_fits(
    inputs: Tensor,
    *,
    strengths: Iterable[float],
    lrs: Iterable[float],
    seeds: Iterable[int],
    steps: int,
) -> pd.DataFrame:
    """`fit` for every target, unit and seed, at every learning rate; the best of them is marked.

    The rate that suits a unit best is the one with the lowest mean loss over the last tenth of the steps and all seeds,
    so that neither unit need be judged at the other's.

    Returns:
        The columns of `fit` and ``strength``, ``unit`` ("plain" or "residual"), ``seed`` and ``best``: whether it is
        at the rate that suits this unit best on this target.
    """
    lrs, seeds = list(lrs), list(seeds)
    found = []
    for strength in strengths:
        targets = near_identity(inputs, strength)
        for unit in ("plain", "residual"):
            fits = pd.concat(
                fit(inputs, targets, shortcut=unit == "residual", seed=seed, steps=steps, lrs=lrs).assign(seed=seed)
                for seed in seeds
            )
            # A loss that is no longer a number is the worst of all.
            last = fits[fits.step > 0.9 * steps].fillna({"loss": math.inf}).groupby("lr").loss.mean()
            found.append(fits.assign(strength=strength, unit=unit, best=fits.lr == last.idxmin()))
    return pd.concat(found, ignore_index=True)
