"""A folder of anybody's with a folder of images for each class."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from resnotes.datasets.archives import damage_reported
from resnotes.datasets.classification import Classification, fingerprinted, spaced
from resnotes.datasets.layouts import FORMATS, IMAGES, names_in, refusal, visible
from resnotes.datasets.pixels import as_rgb
from resnotes.errors import DatasetError

_LARGEST = 256  # pixels a side
_TESTS = ("test", "testing", "val", "valid", "validation", "eval", "dev")
_EXPECTED = "a folder of PNG, JPEG or BMP files for each class, or train/ and test/ (or val/) with these"


def load(folder: Path, *, train: int, test: int) -> Classification:
    """Images of ``<class>/*`` or of ``{train,test}/<class>/*``, evenly spaced over the classes; only these are read.

    Args:
        folder: where the folders of the classes lie; for ``train`` and ``test`` it may have other usual names.
        train: at most so many training images; where there is but one set, they are others than the test images.
        test: at most so many test images.

    Returns:
        uint8 ``[N, 3, H, W]``; if they are not all of one square size up to 256 pixels, the middle of each, at 256x256.

    Raises:
        DatasetError: there are no such folders, or an image is damaged.
    """
    parts = {path.name.lower().replace("training", "train"): path for path in visible(folder) if path.is_dir()}
    split = [parts[name] for name in _TESTS if name in parts and "train" in parts][:1]
    found = [_classes(part) for part in ([parts["train"], *split] if split else [folder])]
    classes = tuple(found[0])
    if classes != tuple(found[-1]):
        raise DatasetError(
            f"{split[0]} has the classes {', '.join(found[-1])}; expected {', '.join(classes)}, as train/"
        )
    samples = [[(file, label) for label, name in enumerate(each) for file in each[name]] for each in found]
    tests = _spaced(samples[-1], test)
    left_out = set(tests)
    others = samples[0] if split else [each for each in samples[0] if each not in left_out]
    chosen = [*_spaced(others, train), *tests]
    images, labels = _stacked([file for file, _ in chosen]), torch.tensor([label for _, label in chosen])
    count = len(chosen) - len(tests)
    return fingerprinted(
        images[:count],
        labels[:count],
        images[count:],
        labels[count:],
        classes=classes,
        variant=folder.resolve().name,
    )


def _classes(folder: Path) -> dict[str, list[Path]]:
    """The images of each class, both by name."""
    found: dict[str, list[Path]] = {path.name: [] for path in visible(folder) if path.is_dir()}
    for name in (names := names_in(folder)):
        label, _, file = name.partition("/")
        if file:
            found.setdefault(label, []).extend([folder / name] if name.lower().endswith(IMAGES) else [])
    if len(found) < 2 or not all(found.values()):
        lacking = ", ".join(label for label, images in found.items() if not images)
        what = f"images of {lacking}" if lacking else "two folders of images"
        raise refusal(what, folder, names, f"expected {_EXPECTED}, for two classes or more")
    return found


def _spaced(samples: Sequence[tuple[Path, int]], count: int) -> list[tuple[Path, int]]:
    return [samples[i] for i in spaced(len(samples), count).tolist()]


def _stacked(files: Sequence[Path]) -> Tensor:
    sizes = {_size(file) for file in files}
    alike = len(sizes) == 1 and all(width == height <= _LARGEST for width, height in sizes)

    def fitted(file: Path) -> NDArray[np.uint8]:  # one by one: photographs as they are would fill the memory
        image = _image(file)
        if not alike:
            image = ImageOps.fit(image, (_LARGEST, _LARGEST), Image.Resampling.BILINEAR)
        return np.asarray(image)

    pixels: NDArray[np.uint8] = np.stack([fitted(file) for file in files])
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def _size(file: Path) -> tuple[int, int]:
    with damage_reported(file, "a complete PNG, JPEG or BMP"), Image.open(file, formats=FORMATS) as image:
        return image.size  # before it is turned, which makes no square and undoes none


def _image(file: Path) -> Image.Image:
    with damage_reported(file, "a complete PNG, JPEG or BMP"), Image.open(file, formats=FORMATS) as image:
        return as_rgb(image, f"image {file}")
