"""A pass through a network by its parts, checked at every step: what lesions, paths and gradient flows share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models.adapters import Parts, blocks_of
from resnotes.models.inputs import beside, check_images, check_labels, check_logits, check_result, evaluating
from resnotes.models.network import agree, branches, has_forward, kept_statistics

_DROP_BLOCKS = ("StochasticDepth", "DropPath")  # as torchvision and timm call them


class Visit(NamedTuple):
    """A block on a pass: its input, what its two branches make of it, the sum, and what follows the addition.

    Without a shortcut, the sum is what the residual branch puts out.
    """

    x: Tensor
    residual: Tensor
    shortcut: Tensor | None
    sum: Tensor
    output: Tensor


def visit(block: Parts, x: Tensor) -> Visit:
    """What the parts of a block make of `x`. They are given copies, over which they may write: a ReLU in place does."""
    residual, shortcut = branches(block, x.clone())
    total = residual if shortcut is None else shortcut + residual
    return Visit(x, residual, shortcut, total, block.after(total.clone()))


def check(model: nn.Module, images: Tensor, labels: Tensor | None = None) -> list[Parts]:
    """The blocks of a network that can be taken apart, of which there is one at least.

    Raises:
        UsageError: another kind of model, or what are no normalised images or no labels of them.
    """
    blocks = blocks_of(model)
    if not blocks:
        raise UsageError(f"expected a network with at least one block, found {type(model).__name__} with none")
    check_images(images)
    if labels is not None:
        check_labels(labels, images)
    return blocks


def check_repeatable(model: nn.Module) -> None:
    """Refuse active dropout, of neurons or of whole blocks.

    Raises:
        UsageError: there is some.
    """
    for module in model.modules():
        dropout = isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _DROP_BLOCKS
        if dropout and module.training and getattr(module, "p", 1) > 0:
            raise UsageError(
                "expected no active dropout, with which each pass is through another network: use model.eval(), or"
                " p = 0 for what is measured in training mode"
            )


@contextlib.contextmanager
def _one_attention() -> Iterator[None]:
    """For a while, `nn.MultiheadAttention` takes no fast path without gradients, which rounds otherwise."""
    usual = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(usual)


@contextlib.contextmanager
def measuring(model: nn.Module, images: Tensor, labels: Tensor) -> Iterator[None]:
    """For a measurement, whatever the caller's settings: in full precision, with graphs; BN's statistics are kept.

    Raises:
        UsageError: see `check`; and what goes wrong within.
    """
    check(model, images, labels)
    device = next(model.parameters(), images).device
    with (
        torch.inference_mode(False),
        autocast(device, "float32"),
        _one_attention(),
        kept_statistics(model),
        evaluating(model, images),
    ):
        yield


def in_a_row(model: nn.Module, images: Tensor, through: Callable[[Parts, Tensor], Tensor]) -> list[Tensor]:
    """What the stem puts out, then each block, and at last the head.

    Args:
        model: a network of stem, blocks and head.
        images: as the stem takes them.
        through: takes a block and its input to its output.

    Raises:
        UsageError: one puts out no tensor, or not one row an image.
    """
    network: Any = model
    name, count = type(model).__name__, len(images)
    found = [check_result(network.stem(images.clone()), f"the stem of {name}", count)]
    for i, block in enumerate(blocks_of(model)):
        found.append(check_result(through(block, found[-1]), f"block {i} of {name}", count))
    return [*found, check_result(network.head(found[-1].clone()), f"the head of {name}", count)]


def classify(
    model: nn.Module, images: Tensor, labels: Tensor, through: Callable[[Parts, Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """`in_a_row` for a classifier: the last block's output, the logits and the labels, on the network's device.

    Raises:
        UsageError: see `in_a_row`; labels beyond the logits' classes, or a model that does something else as a whole.
    """
    name = type(model).__name__
    weight = next(model.parameters(), images)
    images, labels = beside(images, weight), labels.to(weight.device, torch.int64)
    *_, last, logits = in_a_row(model, images, through)
    check_logits(logits, f"the head of {name}", len(images))
    check_labels(labels, images, logits.shape[1])
    with torch.no_grad():
        if has_forward(model) and not agree(logits, model(images.clone()), units=8):
            raise UsageError(
                f"{name} puts out something else than its stem, its blocks and its head in a row, each block"
                " after(shortcut(x) + residual(x))"
            )
    return last, logits, labels
