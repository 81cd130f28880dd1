"""Images with their label maps, side by side in two folders: `images/a.jpg` and `annotations/a.png`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnotes.datasets.archives import damage_reported
from resnotes.datasets.pixels import Color, as_labels, as_rgb
from resnotes.errors import DatasetError

_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


class Pair(NamedTuple):
    """The two files of a sample; neither has been opened."""

    image: Path
    annotation: Path


def pairs(images: Path, annotations: Path) -> list[Pair]:
    """Every image in a folder with its label map, a PNG of the same name in the other, by name.

    Raises:
        DatasetError: a folder is missing or empty, an image has no label map, or a label map no image.
    """
    listed, labelled = _files(images), _files(annotations)
    if twice := [name for name, files in listed.items() if len(files) > 1]:
        raise DatasetError(f"{images} has {twice[0]} as PNG and as JPEG; expected one image of a name; remove one")
    for found, here, wanted, there in (
        (listed, "image", labelled, annotations),
        (labelled, "label map", listed, images),
    ):
        if lacking := sorted(found.keys() - wanted):
            raise DatasetError(
                f"{len(lacking)} of {len(found)} {here}s, the first is {found[lacking[0]][0]}, have no file of the same"
                f" name in {there}; expected one for each; copy the data set again"
            )
    for files in labelled.values():
        if files[0].suffix.lower() != ".png":
            raise DatasetError(f"label map {files[0]} is no PNG; expected a lossless one; get the original")
    return [Pair(listed[name][0], labelled[name][0]) for name in sorted(listed)]


def _files(folder: Path) -> dict[str, list[Path]]:
    """PNG and JPEG files by their name without suffix; hidden ones are passed over."""
    if not folder.is_dir():
        raise DatasetError(f"found no folder {folder}; expected PNG or JPEG files in it; copy the data set again")
    files: dict[str, list[Path]] = {}
    with damage_reported(folder, "a readable folder"):
        for path in sorted(folder.iterdir()):
            if path.suffix.lower() in _SUFFIXES and not path.name.startswith("."):
                files.setdefault(path.stem, []).append(path)
    if not files:
        raise DatasetError(f"{folder} is empty; expected PNG or JPEG files in it; copy the data set again")
    return files


def read(
    pair: Pair, highest: int, size: tuple[int, int] | None = None, colors: Mapping[Color, int] = MappingProxyType({})
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Decodes an image and its label map, as they look: see `resnotes.datasets.pixels`.

    Args:
        pair: the files.
        highest: the highest label that may occur.
        size: height and width to bring both to; None for their own. Images are averaged over the area that becomes
            a pixel, labels are taken from its centre.
        colors: colours by which the labels of a palette are recognised.

    Returns:
        uint8 `[3, H, W]` and `[H, W]`, not shared with anything.

    Raises:
        DatasetError: a file is damaged or shows something else than its numbers, their sizes differ, or the map holds
            colours or a label above `highest`.
    """
    with (
        damage_reported(pair.annotation, "a complete PNG"),
        Image.open(pair.annotation, formats=("PNG",)) as annotation,
    ):
        with (
            damage_reported(pair.image, "a complete PNG or JPEG"),
            Image.open(pair.image, formats=("PNG", "JPEG")) as image,
        ):
            stored = image.size
            if sorted(stored) != sorted(annotation.size):  # before a pixel is decoded, whichever way they are turned
                raise _other_size(pair, stored, annotation.size)
            pixels = as_rgb(image, f"image {pair.image}")
        found = as_labels(annotation, pair.annotation, highest, colors)
    if pixels.size != found.shape[::-1]:
        raise _other_size(pair, pixels.size, found.shape[::-1], turned=stored != pixels.size)
    if found.max() > highest:
        where = np.argwhere(found > highest)[0].tolist()
        raise DatasetError(
            f"label map {pair.annotation} has label {found[tuple(where)]} at row {where[0]}, column {where[1]};"
            f" expected 0 to {highest}; it belongs to another list of classes, or was resized with interpolation"
        )
    if size is not None and size != found.shape:
        pixels = pixels.resize(size[::-1], Image.Resampling.BILINEAR)  # which PIL widens to the area when it shrinks
        found = np.asarray(Image.fromarray(found).resize(size[::-1], Image.Resampling.NEAREST))
    return np.array(pixels).transpose(2, 0, 1).copy(), found.astype(np.uint8)


def _other_size(pair: Pair, image: tuple[int, ...], labels: tuple[int, ...], *, turned: bool = False) -> DatasetError:
    upright = ", turned upright as its EXIF data says" if turned else ""
    return DatasetError(
        f"image {pair.image} is {image[0]}x{image[1]}{upright}, its label map {pair.annotation}"
        f" {labels[0]}x{labels[1]}; expected one size; get both from the same source"
    )


def missing(name: str, folders: Sequence[str], layout: str, root: Path) -> str:
    """What was looked for, for a message."""
    return f"found no {name}; expected {layout} in {', '.join(str(root / folder) for folder in folders)}"
