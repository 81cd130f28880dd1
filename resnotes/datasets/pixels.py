"""Pixels as they look: what an image shows and which labels a label map holds, or one error that names the cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

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
        image: an open PNG or JPEG, of which no pixel was decoded yet.
        where: names it in errors.

    Raises:
        DatasetError: pixels are transparent, colours are for printing or of another brightness than usual, or there
            are several pictures.
    """
    tiles = getattr(image, "tile", None)
    stored = str(tiles[0].args) if tiles else ""  # Pillow's name of how pixels lie in the file, such as I;16B
    if image.format == "PNG" and getattr(image, "is_animated", False):
        raise DatasetError(f"{where} is animated; expected a single picture; save the one that is meant")
    gamma = image.info.get("gamma")
    if gamma and "srgb" not in image.info and abs(gamma - _GAMMA) > 0.01:
        raise DatasetError(
            f"{where} says that it looks brighter or darker than its numbers (gamma {gamma:g}); expected {_GAMMA:.2g},"
            " or none; convert it"
        )
    # Pillow stretches or cuts pixels of other than 8 bits, but not the colour that a PNG calls transparent.
    scaled = "transparency" in image.info and ";" in stored and not stored.startswith("P")
    image = ImageOps.exif_transpose(image)
    if image.mode in _ALPHA or "transparency" in image.info:
        if scaled or np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
            raise DatasetError(
                f"{where} has transparent pixels, which look like whatever is behind them; expected opaque ones; put it"
                " on a background"
            )
    elif image.mode.startswith("I"):
        # Pillow would cut off what is above 255, which turns nearly everything white.
        image = Image.fromarray((np.asarray(image).astype(np.int64) >> 8).clip(0, 255).astype(np.uint8))
    elif image.mode not in _OPAQUE:
        raise DatasetError(f"{where} has colours of type {image.mode}; expected grey, palette or RGB; convert it")
    return image.convert("RGB")


def as_labels(image: Image.Image, path: Path, highest: int, colors: Mapping[Color, int]) -> NDArray[np.uint8]:
    """The labels of a map, uint8 ``[H, W]``: grey values, or the indices of a palette that leaves no doubt.

    A palette says how an index looks, and files that were painted, quantised or written with another list of classes
    have indices in another order. It is read in every way that explains it, and refused where none does, or two differ:
    a ramp of grey, or the colours that Pascal VOC gives to the numbers, mean the index; greys up to the highest label
    may be the labels themselves; and so may be the colours of the data set's classes, in whatever order.

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
    if getattr(image, "is_animated", False):
        raise DatasetError(f"label map {path} is animated; expected a single picture; save the one that is meant")
    palette = np.array(image.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3) if image.mode == "P" else None
    found = np.asarray(ImageOps.exif_transpose(image))
    if palette is None:
        with path.open("rb") as file:
            bits = file.read(25)[24]  # of a sample, by the header; Pillow has stretched fewer than 8 to 0 to 255
        return found // (255 // (2**bits - 1)) if bits < 8 else found
    used = np.unique(found)
    if used[-1] >= len(palette):
        raise DatasetError(f"label map {path} has no colour for index {used[-1]} in its palette; save it as grey")
    filled = np.flatnonzero(palette.any(axis=1))  # what follows is no colour but padding
    whole = np.arange(max(used[-1], *filled[-1:], 0) + 1)
    # What is used decides; where that is too little to tell ways to read it apart, so does the rest of the palette.
    readings = set(_readings(used, palette, highest, colors, used))
    if several := len(readings) > 1:
        readings = set(_readings(whole, palette, highest, colors, used))
    if len(readings) != 1:
        painted = ", ".join(f"{index} in {tuple(palette[index].tolist())}" for index in used[:3])
        doubt = "it can be read in several ways" if several else "no order of classes is known for that"
        raise DatasetError(
            f"label map {path} has a palette that paints index {painted}{', ...' if len(used) > 3 else ''}: {doubt};"
            " expected grey values; if the indices are the labels, save them as grey:"
            " Image.fromarray(numpy.asarray(image))"
        )
    lookup = np.zeros(256, dtype=np.uint8)
    lookup[used] = readings.pop()
    return np.asarray(lookup[found])


def _readings(
    shown: NDArray[Any], palette: NDArray[np.int64], highest: int, colors: Mapping[Color, int], used: NDArray[np.uint8]
) -> Iterator[tuple[int, ...]]:
    """The labels of the indices `used`, in each way that explains how the indices `shown` look."""
    index, seen = shown.astype(np.int64), palette[shown]
    tuples = [(int(r), int(g), int(b)) for r, g, b in seen]
    grey = (palette == palette[:, :1]).all()
    if (grey and _is_ramp(index, seen[:, 0])) or (seen == _voc(index)).all():
        yield tuple(used.tolist())
    if grey and seen.max() <= highest:
        yield tuple(palette[used, 0].tolist())
    if all(color in colors for color in tuples):
        yield tuple(colors[tuples[shown.tolist().index(each)]] for each in used.tolist())


def _is_ramp(index: NDArray[np.int64], grey: NDArray[np.int64]) -> bool:
    """Whether greys are in proportion to their index, up to white."""
    rising = grey < 255
    proportional = np.outer(index[rising], grey[rising])
    return bool(((grey > 0) == (index > 0)).all() and (proportional == proportional.T).all())


def _voc(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pascal VOC's colours of numbers: their bits, three at a time, are the upper bits of red, green and blue."""
    rest, colors = index, np.zeros((len(index), 3), dtype=np.int64)
    for bit in range(7, -1, -1):
        colors |= ((rest[:, None] >> np.arange(3)) & 1) << bit
        rest = rest >> 3
    return colors
