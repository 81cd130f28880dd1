"""Pixels as they look: what an image shows and which labels a label map holds, or one error that names the cause."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from resnotes.errors import DatasetError

Color = tuple[int, int, int]

_ALPHA = frozenset({"LA", "PA", "RGBA"})
_OPAQUE = frozenset({"1", "L", "P", "RGB"})


def as_rgb(image: Image.Image, where: str) -> Image.Image:
    """An image as viewers show it: turned as its EXIF data says, in 8 bits and RGB.

    Of 16 bits in a channel, the upper eight count.

    Args:
        image: an open PNG or JPEG.
        where: names it in errors.

    Raises:
        DatasetError: pixels are transparent, or the colours are for printing.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _ALPHA or "transparency" in image.info:
        if image.mode.startswith("I") or np.asarray(image.convert("RGBA").getchannel("A")).min() < 255:
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


def as_labels(image: Image.Image, path: Path, colors: Mapping[Color, int]) -> NDArray[np.uint8]:
    """The labels of a map, uint8 ``[H, W]``: grey values, or the indices of a palette that leaves no doubt.

    A palette says how an index looks, and files that were painted, quantised or written with another list of classes
    have indices in another order. It is believed where it is a ramp of grey, or the colours that Pascal VOC gives to
    the numbers, which mean nothing but the index; and where it has the colours of the data set's classes, in
    whatever order.

    Args:
        image: an open PNG.
        path: its file.
        colors: the data set's colours, and their labels.

    Raises:
        DatasetError: it holds colours, more than 8 bits, or a palette of unknown colours.
    """
    if image.mode not in ("L", "P"):
        raise DatasetError(
            f"label map {path} is a picture of type {image.mode}; expected one channel of 8 bits, grey or palette,"
            " whose values are labels; maps painted in colours have to be converted first"
        )
    palette = np.array(image.getpalette("RGB") or [], dtype=np.int64).reshape(-1, 3) if image.mode == "P" else None
    found = np.asarray(ImageOps.exif_transpose(image))
    if palette is None:
        with path.open("rb") as file:
            bits = file.read(25)[24]  # of a sample, by the header; Pillow has stretched fewer than 8 to 0 to 255
        return found // (255 // (2**bits - 1)) if bits < 8 else found
    used = np.unique(found)
    if used[-1] < len(palette):
        shown = palette[used]
        if _is_ramp(used, shown, palette) or (shown == _voc(used)).all():
            return found
        tuples = [(int(r), int(g), int(b)) for r, g, b in shown]
        if all(color in colors for color in tuples):
            lookup = np.zeros(256, dtype=np.uint8)
            lookup[used] = [colors[color] for color in tuples]
            return np.asarray(lookup[found])
        index, color = next(each for each in zip(used, tuples, strict=True) if each[1] not in colors)
        doubt = f"paints index {index} in {color}"
    else:
        doubt = f"has no colour for index {used[-1]}"
    raise DatasetError(
        f"label map {path} has a palette that {doubt}; expected grey values, or a palette in which the order of the"
        " classes can be recognised; if its indices are the labels, save them as grey:"
        " Image.fromarray(numpy.asarray(image))"
    )


def _is_ramp(used: NDArray[np.uint8], shown: NDArray[np.int64], palette: NDArray[np.int64]) -> bool:
    """Whether the palette is grey, and the indices used are in proportion to how bright they are."""
    index, grey = used.astype(np.int64), shown[:, 0]
    proportional = np.outer(index, grey)
    in_order = ((grey > 0) == (index > 0)).all() and (proportional == proportional.T).all()
    return bool((palette == palette[:, :1]).all() and in_order)


def _voc(index: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Pascal VOC's colours of numbers: their bits, three at a time, are the upper bits of red, green and blue."""
    rest, colors = index.astype(np.int64), np.zeros((len(index), 3), dtype=np.int64)
    for bit in range(7, -1, -1):
        colors |= ((rest[:, None] >> np.arange(3)) & 1) << bit
        rest = rest >> 3
    return colors
