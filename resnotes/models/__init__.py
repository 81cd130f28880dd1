"""Networks by name: `build("resnet-56", num_classes=10)`."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any

import torch

from resnotes.errors import UsageError
from resnotes.models.copies import recalibrate, without_borders
from resnotes.models.deepening import deepen
from resnotes.models.network import Block, Network, batch_statistics, count_parameters, in_mode
from resnotes.models.published_networks import Published, published
from resnotes.models.registry import build, register, registered, source

__all__ = [
    "Block",
    "Network",
    "Published",
    "batch_statistics",
    "build",
    "count_parameters",
    "deepen",
    "fresh",
    "from_label",
    "in_mode",
    "label",
    "published",
    "recalibrate",
    "register",
    "registered",
    "source",
    "without_borders",
]


def label(name: str, options: Mapping[str, Any]) -> str:
    """A network and its options in one line: ``"resnet-56 shortcut=dropout:0.5"``; without options, its name."""

    def written(value: Any) -> str:  # a list, as JSON has it, and a tuple alike, and without spaces
        return str(tuple(value)).replace(" ", "") if isinstance(value, list | tuple) else str(value)

    return " ".join([name, *(f"{option}={written(value)}" for option, value in options.items())])


def from_label(text: str) -> tuple[str, dict[str, Any]]:
    """Name and options of a network from what `label` wrote; numbers, tuples, True and False are read as such.

    Raises:
        UsageError: something other than ``option=value`` after the name.
    """
    name, *settings = text.split() or [""]
    options: dict[str, Any] = {}
    for setting in settings:
        option, equals, value = setting.partition("=")
        if not (option and equals and value):
            raise UsageError(f"network {text!r}: expected option=value after its name, found {setting!r}")
        try:
            read = ast.literal_eval(value)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # the last two: nested too deeply
            read = value
        # Of other kinds, such as sets, there are no options; whoever builds the network will say so.
        options[option] = read if isinstance(read, bool | int | float | tuple | list | None) else value
    return name, options


def fresh(label: str, seed: int, **options: Any) -> Any:
    """The network of a `label` with the weights that a run of this seed starts from.

    PyTorch's generator is left as it was.

    Raises:
        UsageError: what `build` and `from_label` raise.
    """
    name, own = from_label(label)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return build(name, **options, **own)
