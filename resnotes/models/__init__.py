"""Networks by name: `build("resnet-56", num_classes=10)`."""

from __future__ import annotations

import re
from inspect import signature
from typing import Any

from resnotes.errors import UsageError
from resnotes.models.deepening import deepen
from resnotes.models.network import Block, Network, count_parameters
from resnotes.models.residual import FAMILIES, from_published, residual_network

__all__ = ["Block", "Network", "build", "count_parameters", "deepen", "from_published"]

_NAMES = "plain-N, resnet-N, preresnet-N (N = 6n + 2)"


def build(name: str, **options: Any) -> Network:
    """Build a network with fresh weights, drawn from PyTorch's global generator.

    Args:
        name: ``plain-N``, ``resnet-N`` or ``preresnet-N`` with N = 6n + 2.
        options: ``num_classes``, ``in_channels``, ``width``, ``shortcut``, ``order``;
            see `resnotes.models.residual.residual_network`.

    Raises:
        UsageError: an unknown name or option, or a value that the network cannot take.
    """
    match = re.fullmatch(r"([a-z]+)-(\d+)", name)
    if not match or match[1] not in FAMILIES:
        raise UsageError(f"unknown network {name!r}; allowed: {_NAMES}")
    allowed = list(signature(residual_network).parameters)[2:]
    for option in options:
        if option not in allowed:
            raise UsageError(f"{name} takes no option {option!r}; allowed: {', '.join(allowed)}")
    return residual_network(match[1], int(match[2]), **options)
