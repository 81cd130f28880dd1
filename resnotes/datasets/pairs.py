"""Images with their label maps, side by side in two folders: `images/a.jpg` and `annotations/a.png`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnotes.datasets.archives import damage_reported
from resnotes.datasets.layouts import visible
from resnotes.datasets.pixels import Color, as_labels, as_rgb
from resnotes.errors import DatasetError


class Pair(NamedTuple):
    """The two files of a sample; neither has been opened."""

    image: Path
    annotation: Path


def pairs(images: Path, annotations: Path) -> list[Pair]:
    """Every image in a folder, PNG or JPEG, with its label map, a PNG of the same name in the other, by name.

    Raises:
        DatasetError: a folder is missing or empty, an image has no label map or is there twice, or a label map has no
            image.
    """
    listed, labelled = _files(images, ".png", ".jpg", ".jpeg"), _files(annotations, ".png")
    names, others = (Counter(path.stem for path in files) for files in (listed, labelled))
    if odd := sorted((names - others) | (others - names)):
        raise DatasetError(
            f"{len(odd)} of the names in {images} and {annotations}, the first is {odd[0]}, are not there once in both;"
            " expected an image, PNG or JPEG, and a label map, PNG, for each; copy the data set again"
        )
    return [Pair(*files) for files in zip(listed, labelled, strict=True)]


def _files(folder: Path, *suffixes: str) -> list[Path]:
    """The files with these suffixes by name; hidden ones are passed over."""
    if not folder.is_dir():
        raise DatasetError(f"there is no {folder}; expected a folder of PNG or JPEG files; copy it, too")
    with damage_reported(folder, "a folder of PNG or JPEG files"):
        files = [file for file in visible(folder) if file.suffix.lower() in suffixes]
    if not files:
        raise DatasetError(f"found no files {', '.join(suffixes)} in {folder}; copy the data set again")
    return sorted(files, key=lambda file: file.stem)


def read(
    pair: Pair, highest: int, colors: Mapping[Color, int], size: tuple[int, int] | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decodes an image and its label map, as they look: see `resnotes.datasets.pixels`.

    Args:
        pair: the files.
        highest: the highest label that may occur.
        colors: colours by which the labels of a palette are recognised.
        size: height and width to bring both to; None for their own. Images are averaged over the area that becomes
            a pixel, labels are taken from its centre.

    Returns:
        uint8 `[3, H, W]` and `[H, W]`, not shared with anything.

    Raises:
        DatasetError: a file is damaged or shows something else than its numbers, their sizes differ, or the map holds
            colours or a label above `highest`.
    """
    with (
        damage_reported(pair.image, "a complete PNG or JPEG"),
        Image.open(pair.image, formats=("PNG", "JPEG")) as image,
    ):
        pixels = as_rgb(image, f"image {pair.image}")
    with (
        damage_reported(pair.annotation, "a complete PNG"),
        Image.open(pair.annotation, formats=("PNG",)) as annotation,
    ):
        found = as_labels(annotation, pair.annotation, highest, colors)
    if pixels.size != found.shape[::-1]:
        raise DatasetError(
            f"image {pair.image}, upright by its EXIF data, is {pixels.width}x{pixels.height}, its label map"
            f" {pair.annotation} {found.shape[1]}x{found.shape[0]}; expected one size; get both from the same source"
        )
    if found.max() > highest:
        row, column = np.argwhere(found > highest)[0].tolist()
        raise DatasetError(
            f"label map {pair.annotation} has label {found[row, column]} at row {row}, column {column}; expected 0 to"
            f" {highest}; it belongs to another list of classes, or was resized with interpolation"
        )
    if size is not None and size != found.shape:
        pixels = pixels.resize(size[::-1], Image.Resampling.BILINEAR)  # which PIL widens to the area when it shrinks
        found = np.asarray(Image.fromarray(found).resize(size[::-1], Image.Resampling.NEAREST))
    return np.array(pixels).transpose(2, 0, 1).copy(), found.astype(np.uint8)
