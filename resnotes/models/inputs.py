"""What may be sent through a network that somebody else wrote, and what comes out: one clear error for all else."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from resnotes.errors import UsageError


def check_images(images: Tensor) -> None:
    """Refuse what are neither normalised images nor tokens, which a language model takes in place of images.

    Raises:
        UsageError: says what was found.
    """
    pixels = isinstance(images, Tensor) and images.ndim == 4 and images.is_floating_point()
    tokens = isinstance(images, Tensor) and images.ndim == 2 and images.dtype == torch.int64
    _require(images, pixels or tokens, "normalised images, floating point [N, C, H, W], or tokens, int64 [N, T]")
    if not images.is_meta and images.isnan().any():
        raise UsageError("expected normalised images, found NaN among their numbers")


def beside(images: Tensor, weight: Tensor) -> Tensor:
    """Images on the device and in the precision of a weight; tokens, which are whole numbers, on its device."""
    return images.to(weight.device, weight.dtype if images.is_floating_point() else images.dtype)


def check_stored(images: Tensor) -> None:
    """Refuse what are not images as data sets hold them, before they are normalised.

    Raises:
        UsageError: says what was found.
    """
    pixels = isinstance(images, Tensor) and images.ndim == 4 and images.dtype == torch.uint8
    _require(images, pixels, "images of 0 to 255, uint8 [N, C, H, W]")


def _require(images: Tensor, fit: bool, expected: str) -> None:
    if not fit:
        raise UsageError(f"expected {expected}; found {_described(images)}")
    if not len(images):
        raise UsageError("expected at least one image, found none")


def check_labels(labels: Tensor, images: Tensor, classes: int | None = None) -> None:
    """Refuse what is not one label an image, of 0 to `classes` - 1.

    Raises:
        UsageError: says what was found.
    """
    whole = isinstance(labels, Tensor) and not (labels.is_floating_point() or labels.is_complex())
    if not whole or labels.dtype == torch.bool or labels.shape != images.shape[:1]:
        raise UsageError(f"expected one label an image, whole numbers [{len(images)}]; found {_described(labels)}")
    low, high = (int(bound) for bound in labels.long().aminmax())
    if classes is not None and not 0 <= low <= high < classes:
        raise UsageError(f"labels must be 0 to {classes - 1}, found {low} to {high}")


def _described(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")


def check_result(found: object, what: str, images: int | None = None) -> Tensor:
    """`found`, what a part of a network puts out.

    Raises:
        UsageError: it is no tensor, or not one row for each of `images`.
    """
    if not isinstance(found, Tensor):
        raise UsageError(f"{what} puts out a {type(found).__name__}, expected a tensor; wrap it to return that alone")
    if images is not None and (not found.ndim or len(found) != images):
        raise UsageError(f"{what} puts out {list(found.shape)} for {images} images, expected one row for each")
    return found


def check_logits(logits: object, what: str, images: int) -> Tensor:
    """`logits`, what `what` puts out, of a classifier.

    Raises:
        UsageError: they are not ``[images, classes]``.
    """
    found = check_result(logits, what, images)
    if found.ndim != 2:
        raise UsageError(f"{what} puts out {list(found.shape)}, expected logits of images: [{images}, classes]")
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module, images: Tensor, how: str = "evaluated") -> Iterator[None]:
    """What goes wrong within is that the model cannot be evaluated, or trained, on these images.

    Raises:
        UsageError: says why, in the words of what was raised.
    """
    try:
        yield
    except (UsageError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of the model, whatever it is
        raise UsageError(
            f"{type(model).__name__} cannot be {how} on images {list(images.shape)}:"
            f" {type(error).__name__}: {' '.join(str(error).split())}"
        ) from error
