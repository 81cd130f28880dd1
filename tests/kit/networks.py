"""Small networks whose BN layers all differ, and layers written out by hand."""

import copy
import linecache
import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resnotes import models
from resnotes.models import Network
from resnotes.unravel import Lesion


@torch.no_grad()
def randomise_bn(network: nn.Module) -> None:
    """Give every BN layer its own affine map and statistics: at 1, 0, 0, 1 swapped layers would go unnoticed."""
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for positive in (layer.weight, layer.running_var):
                nn.init.uniform_(positive, 0.5, 1.5)
            for signed in (layer.bias, layer.running_mean):
                nn.init.normal_(signed, std=0.3)


@torch.no_grad()
def warmed_up(network: nn.Module) -> nn.Module:
    """As `randomise_bn`, in a deep network: the statistics are those of one batch, so that activations stay near 1."""
    layers = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.2)
        layer.momentum = 1.0
    network.train()(torch.randn(4, 3, 64, 64))
    for layer in layers:
        layer.momentum = 0.1
    return network


def small(name: str, **options: object) -> Network:
    """A narrow network in float64 and eval mode."""
    network = models.build(name, **{"width": 4, **options})
    randomise_bn(network)
    return network.double().eval()


def build(name: str, **options: object) -> Network:
    """`small` for grey images, and the same each time."""
    torch.manual_seed(0)
    return small(name, in_channels=1, **options)


def conv(x: Tensor, layer: nn.Conv2d, stride: int = 1) -> Tensor:
    return F.conv2d(x, layer.weight, stride=stride, padding=layer.kernel_size[0] // 2)


def bn(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
    scale = layer.weight / (layer.running_var + 1e-5).sqrt()
    return (x - layer.running_mean[:, None, None]) * scale[:, None, None] + layer.bias[:, None, None]


def option_a(x: Tensor) -> Tensor:
    """Twice the channels on half the map, as published weights have it: a quarter of zeros before and after."""
    n, channels, height, width = x.shape
    y = x.new_zeros(n, 2 * channels, math.ceil(height / 2), math.ceil(width / 2))
    for c in range(channels):
        for i in range(0, height, 2):
            for j in range(0, width, 2):
                y[:, channels // 2 + c, i // 2, j // 2] = x[:, c, i, j]
    return y


def first_gradient(network: Any, images: Tensor, labels: Tensor) -> Tensor:
    """Of the summed cross-entropy at the first block's input, by autograd."""
    network = copy.deepcopy(network)
    first = network.stem(images.clone()).detach().requires_grad_()
    x = first.clone()
    for block in network.blocks:
        x = block(x.clone())  # what a block writes over may be needed to go back
    (found,) = torch.autograd.grad(F.cross_entropy(network.head(x), labels, reduction="sum"), first)
    return found


def in_a_cell(body: str, **names: Any) -> Any:
    """What executing a cell of a notebook defines as `build`: its source is kept, its module is `__main__`."""
    code, cell = f"def build(num_classes, in_channels):\n    {body}\n", f"<cell {body}>"
    linecache.cache[cell] = len(code), None, code.splitlines(keepends=True), cell
    defined: dict[str, Any] = {"__name__": "__main__", **names}
    exec(compile(code, cell, "exec"), defined)
    return defined["build"]


@torch.no_grad()
def plain_loop(network: Any, lesions: Iterable[Lesion], images: Tensor) -> Tensor:
    """Logits ``[lesions, N, classes]``, each lesion from the images on, block by block.

    Whatever writes over its argument does so on a copy.
    """
    network = copy.deepcopy(network).eval()
    logits = []
    for lesion in lesions:
        x = network.stem(images.clone())
        for i in range(len(network.blocks)) if lesion.order is None else lesion.order:
            block = network.blocks[i]
            if i not in lesion.deleted:
                x = block(x.clone())
            else:
                x = block.after(x.clone() if block.shortcut is None else block.shortcut(x.clone()))
        logits.append(network.head(x.clone()))
    return torch.stack(logits)
