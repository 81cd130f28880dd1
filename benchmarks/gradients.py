"""Gradients split by path length: `resnotes.unravel.path_gradients` against what one would do without it.

With few units, autograd along each of the 2^n paths, all other ways detached. With many, interpolation: if every
branch's Jacobian is multiplied by t, the gradient is the polynomial sum over k of G_k t^k, and its values at the n + 1
complex roots of unity give the G_k by a Fourier transform. That takes n + 1 passes through the whole network: a
complex gradient is two real ones, and that at a root's conjugate is the conjugate.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.lesions import settled
from benchmarks.timing import Peak, Row, Settings, built, operations, turns
from resnotes.models import Network
from resnotes.unravel import path_gradients

VIT = "size=32 patch=4"
LARGE, QUICK = ("preresnet-56", "preresnet-110", f"vit-12 {VIT}"), ("preresnet-20", f"vit-2 {VIT}")


def gradient(network: Network, start: Tensor, labels: Tensor, branch: Callable[[int, Tensor, Any], Tensor]) -> Tensor:
    """Autograd's at the output of the stem, ``start``; ``branch(i, x, block)`` is what unit i adds up."""
    x = start = start.detach().requires_grad_()
    for i, block in enumerate(network.blocks):
        x = block.after(branch(i, x, block))  # type: ignore[operator]
    loss = F.cross_entropy(network.head(x)[: len(labels)], labels, reduction="sum")
    (found,) = torch.autograd.grad(loss, start)
    return found


def brute_force(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """As `path_gradients`, one path after the other."""
    start = network.stem(images)
    n = len(network.blocks)
    by_length: Tensor = start.new_zeros(n + 1, *start.shape)
    for path in itertools.product((False, True), repeat=n):

        def branch(i: int, x: Tensor, block: Any, path: tuple[bool, ...] = path) -> Tensor:
            residual, shortcut = block.residual(x), block.shortcut(x)
            total: Tensor = residual + shortcut.detach() if path[i] else residual.detach() + shortcut
            return total

        by_length[sum(path)] += gradient(network, start, labels, branch)
    return by_length


class _Turned(torch.autograd.Function):
    """The identity, whose gradient, real parts before imaginary ones, is multiplied by exp(-i angle)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, angle: float) -> Tensor:
        ctx.angle = angle
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        real, imaginary = gradients[0].chunk(2)
        cos, sin = math.cos(ctx.angle), math.sin(ctx.angle)
        return torch.cat([cos * real + sin * imaginary, cos * imaginary - sin * real]), None


def interpolated(network: Network, images: Tensor, labels: Tensor) -> Tensor:
    """As `path_gradients`, for a network in eval mode: each image is there twice, for real and imaginary parts."""
    start = network.stem(torch.cat([images, images]))
    points = len(network.blocks) + 1
    values = []
    for j in range(points // 2 + 1):

        def branch(_: int, x: Tensor, block: Any, angle: float = 2 * math.pi * j / points) -> Tensor:
            total: Tensor = block.shortcut(x) + _Turned.apply(block.residual(x), angle)
            return total

        values.append(torch.complex(*gradient(network, start, labels, branch).chunk(2)))
    by_length: Tensor = torch.fft.irfft(torch.stack(values), n=points, dim=0)
    return by_length


def random_network(name: str, images: Tensor) -> Network:
    """With random weights that need no gradients, in eval mode, as both sides take it."""
    return settled(built(name), images).requires_grad_(False)


def apart(ours: Tensor, reference: Tensor) -> float:
    """The largest difference's norm over lengths, as a share of the largest length's."""
    largest, difference = (part.flatten(1).norm(dim=1).max() for part in (ours, ours - reference))
    return float(difference / largest)


def measure(settings: Settings) -> list[Row]:
    """One network with few units, three with many, of which one is a transformer."""
    images = torch.randn(2 if settings.quick else 8, 3, 32, 32)
    labels = torch.arange(len(images)) % 10
    cases = [
        ("preresnet-14" if settings.quick else "preresnet-20", brute_force),
        *((name, interpolated) for name in (QUICK if settings.quick else LARGE)),
    ]
    peak = Peak("float32", size=settings.matrix)
    rows = []
    for name, reference in cases:
        network = random_network(name, images)
        found: dict[str, Tensor] = {}

        def side(
            which: Callable[..., Tensor], network: Network = network, found: dict[str, Tensor] = found
        ) -> Callable[[], None]:
            return lambda: found.update({which.__name__: which(network, images, labels)})

        ours = side(path_gradients)
        counted = operations(ours)
        interpolated(network, images[:1], labels[:1])  # warms up
        times = turns({"ours": ours, "reference": side(reference), "peak": peak}, settings.rounds)
        single = apart(found["path_gradients"], found[reference.__name__])
        # Float32's rounding turns ReLUs on and off, in a deep network visibly: what is equal shows in float64.
        doubled = copy.deepcopy(network).double(), images.double(), labels
        double = apart(path_gradients(*doubled), reference(*doubled))
        n = len(network.blocks)
        by = f"autograd along all {2**n} paths" if reference is brute_force else f"interpolation from {n + 1} passes"
        rows.append(
            Row(
                what=f"path gradients of {name}, {len(images)} images of 32x32, float32; {by}",
                ours=times["ours"],
                reference=times["reference"],
                operations=counted,
                ceiling=peak.rate(times["peak"]),
                headline=name in ("preresnet-56", f"vit-12 {VIT}"),
                remark=f"differ by {single:.0e} of the largest length's norm, in float64 by {double:.0e}",
            )
        )
    return rows
