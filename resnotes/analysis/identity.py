"""How hard is it to fit an identity? Two layers, with and without a shortcut, on the same task.

He et al. 2015, Sec. 3.1: "if the optimal function is closer to an identity mapping than to a zero mapping, it
should be easier for the solver to find the perturbations with reference to an identity mapping".
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
    residual = nn.Sequential(
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels),
    )
    initialize(residual)
    return Block(residual, nn.Identity() if shortcut else None, nn.ReLU())


def fit(
    inputs: Tensor, targets: Tensor, *, shortcut: bool, seed: int, steps: int, lr: float, batch_size: int = 64
) -> pd.DataFrame:
    """Fit ``targets`` from ``inputs`` with one two-layer unit by SGD with momentum 0.9.

    Both kinds of unit start from the same weights at the same seed, and see the same batches.

    Args:
        inputs: non-negative maps ``[N, C, H, W]``.
        targets: non-negative maps of the same shape.
        shortcut: whether the unit adds its input before the last ReLU.
        seed: of the initial weights and the batches.
        steps: of the optimiser.
        lr: learning rate.
        batch_size: maps per step.

    Returns:
        One row per step: ``step`` (1, 2, ...), ``loss`` (mean squared error over the variance of the targets,
        before the step) and ``distance`` (Euclidean distance of the weights from their start, relative to the
        norm of the start, after the step).
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        unit = _two_layers(inputs.shape[1], shortcut=shortcut)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.SGD(unit.parameters(), lr=lr, momentum=0.9)
    start = nn.utils.parameters_to_vector(unit.parameters()).detach().clone()
    scale = targets.var()
    rows = []
    for step in range(1, steps + 1):
        chosen = torch.randint(len(inputs), (batch_size,), generator=generator)
        loss = F.mse_loss(unit(inputs[chosen]), targets[chosen]) / scale
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        moved = nn.utils.parameters_to_vector(unit.parameters()).detach() - start
        rows.append({"step": step, "loss": loss.item(), "distance": (moved.norm() / start.norm()).item()})
    return pd.DataFrame(rows)


def compare_fits(
    inputs: Tensor,
    *,
    strengths: Iterable[float],
    lrs: Iterable[float],
    seeds: Iterable[int],
    steps: int,
) -> pd.DataFrame:
    """`fit` for every target, unit, learning rate and seed, each unit at the learning rate that suits it best.

    The best learning rate is the one with the lowest mean loss over the last tenth of the steps and all seeds, so
    that neither unit is judged at the other's.

    Returns:
        The columns of `fit` and ``strength``, ``unit`` ("plain" or "residual"), ``seed`` and ``lr``.
    """
    lrs, seeds = list(lrs), list(seeds)
    kept = []
    for strength in strengths:
        targets = near_identity(inputs, strength)
        for shortcut in (False, True):
            by_lr = [
                pd.concat(
                    fit(inputs, targets, shortcut=shortcut, seed=seed, steps=steps, lr=lr).assign(seed=seed, lr=lr)
                    for seed in seeds
                )
                for lr in lrs
            ]
            # A loss that is no longer a number is the worst of all.
            best = min(by_lr, key=lambda frame: frame.loc[frame.step > 0.9 * steps, "loss"].fillna(math.inf).mean())
            kept.append(best.assign(strength=strength, unit="residual" if shortcut else "plain"))
    return pd.concat(kept, ignore_index=True)
