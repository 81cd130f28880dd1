"""Identity by construction: a deeper network that computes exactly what a trained shallow one does.

He et al. 2015, Sec. 1: copy the learned shallow model and add layers that are identity mappings; the deeper
model then has no higher training error than the shallow one. Here the construction is carried out.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn

from resnotes.errors import UsageError
from resnotes.models.network import Network, in_mode
from resnotes.models.residual import residual_network


@torch.no_grad()
def _become_identity(block: Any, inputs: Tensor) -> None:
    """Set the weights of `block` so that it returns its input, given typical non-negative `inputs`.

    Without a shortcut, each convolution becomes a Dirac kernel, and each BN is given the mean and standard
    deviation of the inputs both to remove and to put back. It is an exact identity in eval mode, and in
    training mode up to the difference between the batch's statistics and these. With a shortcut, the last BN
    of the residual branch is set to zero: the branch adds nothing. In both cases ReLU leaves non-negative
    maps as they are.
    """
    norms = [module for module in block.residual.modules() if isinstance(module, nn.BatchNorm2d)]
    if block.shortcut is not None:
        nn.init.zeros_(norms[-1].weight)
        nn.init.zeros_(norms[-1].bias)
        return
    mean = inputs.mean(dim=(0, 2, 3))
    variance = inputs.var(dim=(0, 2, 3), correction=0)
    for module in block.residual.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.dirac_(module.weight)
    for norm in norms:
        norm.running_mean, norm.running_var = mean.clone(), variance.clone()
        norm.weight.copy_((variance + norm.eps).sqrt())
        norm.bias.copy_(mean)


@torch.no_grad()
def deepen(network: Network, depth: int, inputs: Tensor) -> Network:
    """A network of `depth` layers of the same family with the same outputs as `network`.

    Each stage keeps its blocks and gets identity blocks after them.

    Args:
        network: a ``plain-N`` or ``resnet-N`` (its maps between blocks are non-negative).
        depth: the new number of layers, above N.
        inputs: normalised images ``[N, C, H, W]`` on which the identity blocks' BN statistics are measured;
            the outputs agree on any images.

    Returns:
        The deeper network, in eval mode, on the device and in the dtype of `network`.

    Raises:
        UsageError: another family, another order than the original, or a depth that is not 6n + 2 or adds no block.
    """
    known = re.fullmatch(r"(plain|resnet)-(\d+)", network.name)
    options = {"order": "original", "shortcut": "A", "batch_norm": True, **network.options}
    usual = options["order"] == "original" and options["shortcut"] in ("A", "B") and options["batch_norm"]
    if not known or not usual:
        raise UsageError(
            f"cannot deepen {network.name} {network.options}: identity blocks need non-negative maps between"
            " blocks, BN and identity shortcuts, as plain-N and resnet-N in the original order have"
        )
    if depth <= int(known[2]):
        raise UsageError(f"cannot deepen {network.name} to {depth} layers; the new depth must be larger")
    deep = residual_network(known[1], depth, **network.options).to(inputs.device, inputs.dtype).eval()
    deep.stem.load_state_dict(network.stem.state_dict())
    deep.head.load_state_dict(network.head.state_dict())

    old, new = iter(network.blocks), iter(deep.blocks)
    with in_mode(network, training=False):
        x = network.stem(inputs)
        for n_old, n_new in zip(network.stages, deep.stages, strict=True):
            for _ in range(n_old):
                block = next(old)
                next(new).load_state_dict(block.state_dict())
                x = block(x)
            for _ in range(n_new - n_old):
                _become_identity(next(new), x)
    return deep
