"""Pixels as they look: what an image shows and which labels a label map holds, or one error that names the cause."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from resnotes.errors import DatasetError

Color = tuple[int, int, int]

_GAMMA = 1 / 2.2  # of screens
_ALPHA = frozenset({"LA", "PA", "RGBA"})
_OPAQUE = frozenset({"1", "L", "P", "RGB"})


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """An image as viewers show it: turned as its EXIF data says, in 8 bits and RGB.

    Of 16 bits in a channel, the upper eight count.

    Args:
        image: an open PNG or JPEG.
        where: names it in errors.

    Raises:
        DatasetError: pixels are transparent, colours are for printing or of another brightness than usual, or there
            are several pictures.
    """
    _refuse_animated(image, where)
    gamma = image.info.get("gamma")
    if gamma and "srgb" not in image.info and abs(gamma - _GAMMA) > 0.01:
        raise DatasetError(
            f"{where} says that it looks brighter or darker than its numbers (gamma {gamma:g}); expected {_GAMMA:.2g},"
            " or none; convert it"
        )
    image = ImageOps.exif_transpose(image)
    if "transparency" in image.info or (image.mode in _ALPHA and image.getchannel("A").getextrema()[0] != 255):
        raise DatasetError(
            f"{where} has transparent pixels, which look like whatever is behind them; expected opaque ones; put it on"
            " a background"
        )
    if image.mode.startswith("I"):
        # Pillow would cut off what is above 255, which turns nearly everything white.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode not in _OPAQUE | _ALPHA:
        raise DatasetError(f"{where} has colours of type {image.mode}; expected grey, palette or RGB; convert it")
    return image.convert("RGB")


def as_labels(image: Image.Image, path: Path, highest: int, colors: Mapping[Color, int]) -> NDArray[np.uint8]:
    """The labels of a map, uint8 ``[H, W]``: grey values, or the indices of a palette that leaves no doubt.

    A palette says how an index looks, and files that were painted, quantised or written with another list of classes
    have indices in another order. It is read if it only numbers them, by a ramp of grey or by Pascal VOC's colours, or
    if all its colours are those of the data set's classes.

    Args:
        image: an open PNG.
        path: its file.
        highest: the highest label that may occur.
        colors: the data set's colours, and their labels.

    Raises:
        DatasetError: it holds colours, more than 8 bits, several pictures, or a palette that leaves doubt.
    """
    if image.mode not in ("L", "P"):
        raise DatasetError(
            f"label map {path} is a picture of type {image.mode}; expected one channel of 8 bits, grey or palette,"
            " whose values are labels; maps painted in colours have to be converted first"
        )
    _refuse_animated(image, f"label map {path}")
    palette = np.array(image.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3)
    found = np.asarray(ImageOps.exif_transpose(image))
    if image.mode == "P":
        return np.asarray(_labels_of_indices(palette, int(found.max()), path, highest, colors)[found])
    with path.open("rb") as file:
        bits = file.read(25)[24]  # of a sample, by the header; Pillow has stretched fewer than 8 to 0 to 255
    return found // (255 // (2**bits - 1)) if bits < 8 else found


def _refuse_animated(image: Image.Image, where: str) -> None:
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise DatasetError(f"{where} is animated; expected a single picture; save the one that is meant")


def _labels_of_indices(
    palette: NDArray[np.int64], used: int, path: Path, highest: int, colors: Mapping[Color, int]
) -> NDArray[np.uint8]:
    """The label of each index of a palette, of which `used` is the highest that occurs."""
    count = max([used, *np.flatnonzero(palette.any(axis=1))]) + 1  # what follows is no colour but padding
    palette = palette[:count]
    shown = [(int(r), int(g), int(b)) for r, g, b in palette]
    index = np.arange(len(shown))
    readings = []
    if _is_ramp(palette, highest) or np.array_equal(palette, _voc(index)):
        readings.append(index)
    if all(color in colors for color in shown):
        readings.append(np.array([colors[color] for color in shown]))
    if len(readings) != 1:
        raise DatasetError(
            f"label map {path} has a palette of {len(shown)} colours, {shown[0]} first, whose order of classes"
            f" {'can be read in several ways' if readings else 'is unknown'}; expected grey values; if the indices are"
            " the labels, save them as grey: Image.fromarray(numpy.asarray(image))"
        )
    return readings[0].astype(np.uint8)


def _is_ramp(palette: NDArray[np.int64], highest: int) -> bool:
    """Whether greys rise with their index in equal steps, up to white; not where they may be the labels themselves."""
    step = palette[1:2].max(initial=1)
    grey = (np.arange(len(palette)) * step).clip(0, 255)
    return bool((palette == grey[:, None]).all()) and (step == 1 or palette.max() > highest)


def _voc(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pascal VOC's colours of numbers: their bits, three at a time, are the upper bits of red, green and blue."""
    rest, colors = index, np.zeros((len(index), 3), dtype=np.int64)
    for bit in range(7, -1, -1):
        colors |= ((rest[:, None] >> np.arange(3)) & 1) << bit
        rest = rest >> 3
    return colors
