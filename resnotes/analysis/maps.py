"""Label maps from anywhere: tensors, arrays of other frameworks, or lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnotes.errors import UsageError


def as_map(values: Any, what: str) -> Tensor:
    """One map of classes as int64 ``[H, W]`` on the CPU.

    Args:
        values: whole numbers ``[H, W]``: a tensor, an array or lists.
        what: names it in the error, such as ``"labels"``.

    Raises:
        UsageError: another shape or type, or no pixel.
    """
    try:
        found = values.detach().cpu() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))
    except (TypeError, ValueError) as error:  # lists of different lengths, objects
        raise UsageError(f"expected {what} as whole numbers [H, W], found a {type(values).__name__}: {error}") from None
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UsageError(f"expected {what} of an integer type, found {found.dtype}")
    if found.ndim != 2 or not found.numel():
        raise UsageError(f"expected {what} [H, W] of each image, not empty; found {list(found.shape)}")
    return found.long()


def check_classes(values: Tensor, what: str, num_classes: int, ignore_index: int | None = None) -> None:
    """Refuse numbers that are no classes.

    Args:
        values: integers of any shape.
        what: names them in the error.
        num_classes: the classes are 0 to this less 1.
        ignore_index: what else is allowed, if anything.

    Raises:
        UsageError: says what was found.
    """
    counted = values if ignore_index is None else values[values != ignore_index]
    if not counted.numel():
        return
    low, high = (int(bound) for bound in counted.aminmax())
    if not 0 <= low <= high < num_classes:
        allowed = f"0 to {num_classes - 1}" + ("" if ignore_index is None else f", or {ignore_index}")
        raise UsageError(f"expected {what} of {allowed}; found {low} to {high}")
