"""Label maps from anywhere: tensors, arrays of other frameworks, or lists."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from resnotes.errors import UsageError


def as_classes(values: Any, what: str) -> Tensor:
    """Numbers of classes as int64 of the same shape; a tensor stays on its device.

    Args:
        values: whole numbers of any type: a tensor, an array or lists.
        what: names it in the error, such as ``"labels"``.

    Raises:
        UsageError: another type.
    """
    found = _as_tensor(values, what)
    if found.is_floating_point() or found.is_complex() or found.dtype == torch.bool:
        raise UsageError(f"expected {what} of an integer type, found {found.dtype}")
    return found.long()


def as_map(values: Any, what: str) -> Tensor:
    """One map of classes as int64 ``[H, W]`` on the CPU.

    Args:
        values: whole numbers ``[H, W]``: a tensor, an array or lists.
        what: names it in the error, such as ``"labels"``.

    Raises:
        UsageError: another shape or type, or no pixel.
    """
    found = as_classes(values, what).cpu()
    if found.ndim != 2 or not found.numel():
        raise UsageError(f"expected {what} [H, W] of each image, not empty; found {list(found.shape)}")
    return found


def as_table(values: Any, what: str, rows: int | None, columns: int) -> Tensor:
    """Yes or no for each of two things, bool ``[rows, columns]`` on the CPU: whether an image shows a class, say.

    Args:
        values: bool: a tensor, an array or lists.
        what: names it in the error.
        rows: how many there must be; None for any.
        columns: how many there must be.

    Raises:
        UsageError: another shape or type, or no row.
    """
    found = _as_tensor(values, what).cpu()
    if found.dtype != torch.bool or found.ndim != 2 or tuple(found.shape) != (rows or max(1, len(found)), columns):
        asked = f"bool [{rows or 'N'}, {columns}], not empty"
        raise UsageError(f"expected {what} as {asked}; found {found.dtype} {list(found.shape)}")
    return found


def _as_tensor(values: Any, what: str) -> Tensor:
    """A tensor as it is; what else there is, copied, in the byte order of this machine."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.array(values)
        return torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
    except (TypeError, ValueError) as error:  # lists of different lengths, objects
        raise UsageError(f"expected {what} as an array of numbers, found a {type(values).__name__}: {error}") from None


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
