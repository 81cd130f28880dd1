"""How signals and gradients travel through a network.

Responses and gradients of layers and what a gradient step gains (He et al. 2015); Eqs (4), (5), (7) and (8) of He et
al. 2016, measured between any two units; what each unit adds to its shortcut; and the gradient unit by unit and its
share through the shortcuts alone.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes.errors import UsageError
from resnotes.models import Network, batch_statistics, in_mode
from resnotes.models.adapters import Parts, blocks_of
from resnotes.models.network import Statistics, branches, copied, on_statistics
from resnotes.models.passes import Visit, check, check_repeatable, classify, in_a_row, measuring, visit
from resnotes.models.shortcuts import Scale, ZeroPadShortcut


def _check_network(network: nn.Module) -> None:
    if not isinstance(network, Network):
        raise UsageError(
            f"expected a network of resnotes.models, found {type(network).__name__}; resnotes.unravel.adapt makes one"
            " of torchvision's ResNets and others"
        )


def _layers(network: Network) -> Iterator[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Each 3x3 convolution and the BN after it, from the input on; the shortcuts' projections are left out."""
    _check_network(network)
    parts = [network.stem, *(block.residual for block in network.blocks)]
    modules = [module for part in parts for module in part.modules()]  # type: ignore[union-attr]
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
    deviations: list[float] = []  # taken at once: a ReLU in place may write over the output
    norms = [norm for _, norm in _layers(network)]
    with contextlib.ExitStack() as hooks:
        for norm in norms:
            handle = norm.register_forward_hook(lambda _, __, output: deviations.append(output.std().item()))
            hooks.callback(handle.remove)
        with in_mode(network, training=False):
            network(inputs)
    return pd.DataFrame(
        {
            "layer": range(1, len(norms) + 1),
            "std": deviations,
            "gamma": [norm.weight.square().mean().sqrt().item() for norm in norms],
        }
    )


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
    weights = [convolution.weight for convolution, _ in _layers(network)]
    with batch_statistics(network):
        gradients = torch.autograd.grad(F.cross_entropy(network(inputs), labels), weights)
    norms = [gradient.norm().item() for gradient in gradients]
    relative = [norm / weight.norm().item() for norm, weight in zip(norms, weights, strict=True)]
    return pd.DataFrame({"layer": range(1, len(norms) + 1), "gradient": norms, "relative": relative})


def gradient_step_gain(
    network: Network, inputs: Tensor, labels: Tensor, fractions: Sequence[float] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
) -> float:
    """How much of its loss a network can lose in one step along the negative gradient: zero at a local optimum.

    The loss is the mean cross-entropy over all of `inputs`, with BN on their statistics, so that the step and
    the loss belong to the same function of the weights. (1,437 digits through resnet-56 take half a GiB at once.)

    Args:
        network: any classifier; left as it was.
        inputs: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.
        fractions: lengths of the step that are tried, relative to the norm of all weights.

    Returns:
        The largest relative decrease of the loss over the lengths, 0 to 1.

    Raises:
        UsageError: a network with dropout.
    """
    network = copied(network).train()
    if inputs.ndim == 4:  # takes two thirds of the time
        network = network.to(memory_format=torch.channels_last)
        inputs = inputs.contiguous(memory_format=torch.channels_last)
    check_repeatable(network)
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


@contextlib.contextmanager
def _in_training(network: nn.Module, inputs: Tensor, labels: Tensor) -> Iterator[None]:
    """For a measurement as in training, with BN on the statistics of the batch."""
    with measuring(network, inputs, labels), in_mode(network, training=True), torch.enable_grad():
        yield


def _pass(network: Network, inputs: Tensor, labels: Tensor) -> tuple[list[Visit], list[Tensor]]:
    """The units, and the gradients of the mean cross-entropy at each one's input and at the last one's output."""
    units = list[Visit]()

    def through(block: Parts, x: Tensor) -> Tensor:
        if not x.requires_grad:  # where weights are frozen
            x.requires_grad_()
        units.append(visit(block, x))
        return units[-1].output

    last, logits, labels = classify(network, inputs, labels, through)
    points = [*(unit.x for unit in units), last]
    loss = F.cross_entropy(logits, labels)
    return units, list(torch.autograd.grad(loss, points, retain_graph=True, materialize_grads=True))


def _check_linear(network: Network) -> None:
    """The direct term is a product of the shortcuts, so they have to be linear maps."""
    _check_network(network)
    linear = (nn.Identity, Scale, ZeroPadShortcut, nn.Sequential)
    for block in blocks_of(network):
        modules = list(block.shortcut.modules()) if isinstance(block.shortcut, nn.Module) else []
        if not modules or not all(isinstance(module, linear) for module in modules):
            raise UsageError(
                f"{network.name} {network.options}: expected shortcuts that are identities, scalings or zero padding"
            )


def identity_errors(network: Network, inputs: Tensor, labels: Tensor, *, across: bool = False) -> pd.DataFrame:
    """By how much Eqs (4) and (5), or (7) and (8), of He et al. 2016 fail between any two units of a stage.

    With S_i the linear shortcut of unit i (the identity, or λ_i), the equations claim, of the units' inputs x and
    the mean cross-entropy E,

        x_L     = S_{L-1} ... S_l x_l + Σ_i F̂_i,               F̂_i = S_{L-1} ... S_{i+1} F(x_i)
        ∂E/∂x_l = ∂E/∂x_L (S_{L-1} ... S_l + ∂/∂x_l Σ_i F̂_i),  i = l, ..., L - 1

    Every term is computed by itself, the last by autograd through the sum of the F̂_i. Where an activation follows
    the addition, they fail by what it does.

    Args:
        network: residual, with shortcuts that are identities, scalings or zero padding; left as it was. BN uses
            the statistics of the batch, as in training.
        inputs: normalised images ``[N, C, H, W]``, best in float64, as the network.
        labels: int64 ``[N]``.
        across: instead of every pair of a stage, from the first unit to every later one, over all stages.

    Returns:
        One row per pair: ``stage`` (1, 2, 3; where the pair ends), ``l``, ``L`` (numbers of units, from 0 over the
        whole network), ``forward`` and ``backward`` (Euclidean norm of the difference of both sides over that of
        the left).

    Raises:
        UsageError: a network without shortcuts, or with others.
    """
    _check_linear(network)
    stage_of = [stage for stage, units in enumerate(network.stages, start=1) for _ in range(units)]
    ends = list(itertools.accumulate(network.stages))
    ranges = [(0, ends[-1])] if across else [(unit, ends[stage - 1]) for unit, stage in enumerate(stage_of)]
    rows: list[dict[str, float]] = []
    with _in_training(network, inputs, labels):
        units, gradients = _pass(network, inputs, labels)
        for l, end in ranges:  # noqa: E741 - the papers' name
            x_l = units[l].x.detach().requires_grad_()
            x, direct, terms = x_l, x_l, list[Tensor]()
            for i in range(l, end):
                block = network.blocks[i]
                skip: nn.Module = block.shortcut  # type: ignore[assignment]
                branch, skipped = branches(block, x.clone())
                x = block.after(skipped + branch)  # type: ignore[operator]
                direct, terms = skip(direct), [*(skip(term) for term in terms), branch]
                total = torch.stack(terms).sum(0)
                cotangent = gradients[i + 1]
                (through_shortcuts,) = torch.autograd.grad(direct, x_l, cotangent, retain_graph=True)
                (through_branches,) = torch.autograd.grad(total, x_l, cotangent, retain_graph=True)
                backward = gradients[l] - through_shortcuts - through_branches
                rows.append(
                    {
                        "stage": stage_of[i],
                        "l": l,
                        "L": i + 1,
                        "forward": ((x - direct - total).norm() / x.norm()).item(),
                        "backward": (backward.norm() / gradients[l].norm()).item(),
                    }
                )
    return pd.DataFrame(rows)


@torch.no_grad()
def unit_statistics(network: Network, inputs: Tensor, *, statistics: Statistics = "batch") -> pd.DataFrame:
    """What the residual branch and the shortcut of each unit put into its addition, and how negative the sum is.

    A ReLU after the addition truncates the negative sums (He et al. 2016, Sec. 4.2).

    Args:
        network: any with units; left as it was.
        inputs: normalised images ``[N, C, H, W]``.
        statistics: what BN normalises with: ``"batch"``, as in training and at initialisation, or ``"running"``.

    Returns:
        One row per unit: ``unit`` (from 0), ``stage`` (1, 2, 3), ``branch`` and ``shortcut`` (root mean squares over
        images, channels and pixels; 0 without a shortcut) and ``negative`` (share of the sums below 0).

    Raises:
        UsageError: a model that is no network of units, what are no normalised images, active dropout, or other
            statistics.
    """
    _check_network(network)
    check(network, inputs)
    rows: list[dict[str, float]] = []

    def through(block: Parts, x: Tensor) -> Tensor:
        unit = visit(block, x)
        rows.append(
            {
                "branch": unit.residual.square().mean().sqrt().item(),
                "shortcut": 0.0 if unit.shortcut is None else unit.shortcut.square().mean().sqrt().item(),
                "negative": (unit.sum < 0).float().mean().item(),
            }
        )
        return unit.output

    with on_statistics(network, statistics):
        check_repeatable(network)
        in_a_row(network, inputs, through)
    stages = [stage for stage, units in enumerate(network.stages, start=1) for _ in range(units)]
    return pd.DataFrame({"unit": range(len(rows)), "stage": stages}).join(pd.DataFrame(rows))


def gradient_flow(network: Network, inputs: Tensor, labels: Tensor) -> pd.DataFrame:
    """Signal and gradient at every unit's input, and what of the gradient came through shortcuts alone.

    The gradient g of the mean cross-entropy is a sum over all paths through the units (Veit et al. 2016). One of
    them takes no residual branch: it passes the shortcuts, and the derivatives of what follows the additions. The
    share of its gradient d is ⟨d, g⟩ / ‖g‖²; over all paths the shares sum to 1, and one may be negative.

    Args:
        network: any with units; left as it was. BN uses the statistics of the batch, as in training.
        inputs: normalised images ``[N, C, H, W]``.
        labels: int64 ``[N]``.

    Returns:
        One row per unit and one for the output: ``unit`` (from 0), ``signal`` (root mean square of x), ``gradient``
        and ``direct`` (Euclidean norms of g and d), ``share``. Without shortcuts, d is zero.

    Raises:
        UsageError: a network with dropout.
    """
    with _in_training(network, inputs, labels):
        check_repeatable(network)
        units, gradients = _pass(network, inputs, labels)
        direct = [gradients[-1]]
        for unit in reversed(units):
            if unit.shortcut is None or not unit.shortcut.requires_grad:
                direct.append(torch.zeros_like(unit.x))
                continue
            # Back through what follows the addition, then through the shortcut, which the addition may have spread.
            (back,) = torch.autograd.grad(unit.output, unit.sum, direct[-1], retain_graph=True)
            around = unit.shortcut.expand_as(unit.sum)
            direct.extend(torch.autograd.grad(around, unit.x, back, retain_graph=True, materialize_grads=True))
    signals = [unit.x.detach() for unit in units] + [units[-1].output.detach()]
    rows = []
    for number, (signal, gradient, way) in enumerate(zip(signals, gradients, reversed(direct), strict=True)):
        gradient, way = gradient.cpu().double(), way.cpu().double()
        squared = gradient.square().sum()
        rows.append(
            {
                "unit": number,
                "signal": signal.square().mean().sqrt().item(),
                "gradient": squared.sqrt().item(),
                "direct": way.norm().item(),
                "share": ((way * gradient).sum() / squared).item(),
            }
        )
    return pd.DataFrame(rows)
