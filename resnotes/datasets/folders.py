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
from resnotes.datasets.classification import Classification, fingerprinted
from resnotes.datasets.pixels import as_rgb

_LARGEST = 256  # pixels a side
_EXPECTED = "a folder of PNG or JPEG files for each class, or train/ and test/ with these"


def load(folder: Path, *, train: int, test: int) -> Classification:
    """Images of ``<class>/*``, or of ``{train,test}/<class>/*``, evenly spaced over the classes; only these are read.

    Args:
        folder: where the folders of the classes lie.
        train: at most so many training images; where there is but one set, they are others than the test images.
        test: at most so many test images.

    Returns:
        uint8 ``[N, 3, H, W]``; if they are not all of one square size up to 256 pixels, the middle of each, at 256x256.

    Raises:
        DatasetError: there are no such folders, or an image is damaged.
    """
    from torchvision.datasets import ImageFolder  # a second of import time

    split = all((folder / part).is_dir() for part in ("train", "test"))
    with damage_reported(folder, _EXPECTED):
        listed = [
            ImageFolder(folder / part, is_valid_file=_is_image) for part in (("train", "test") if split else ("",))
        ]
        if listed[0].classes != listed[-1].classes:
            raise ValueError(f"other classes in test/: {', '.join(listed[-1].classes)}")
    tests = _spaced(listed[-1].samples, test)
    others = listed[0].samples if split else [each for each in listed[0].samples if each not in tests]
    chosen = [*_spaced(others, train), *tests]
    images, labels = _stacked([Path(file) for file, _ in chosen]), torch.tensor([label for _, label in chosen])
    count = len(chosen) - len(tests)
    return fingerprinted(
        images[:count],
        labels[:count],
        images[count:],
        labels[count:],
        classes=tuple(listed[0].classes),
        variant=folder.resolve().name,
    )


def _is_image(file: str) -> bool:
    path = Path(file)
    return path.suffix.lower() in (".png", ".jpg", ".jpeg") and not path.name.startswith(".")


def _spaced(samples: Sequence[tuple[str, int]], count: int) -> list[tuple[str, int]]:
    count = min(count, len(samples))
    return [samples[i * len(samples) // count] for i in range(count)]


def _stacked(files: Sequence[Path]) -> Tensor:
    images = [_image(file) for file in files]
    alike = len({image.size for image in images}) == 1 and images[0].width == images[0].height <= _LARGEST
    if not alike:
        images = [ImageOps.fit(image, (_LARGEST, _LARGEST), Image.Resampling.BILINEAR) for image in images]
    pixels: NDArray[np.uint8] = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


def _image(file: Path) -> Image.Image:
    with damage_reported(file, "a complete PNG or JPEG"), Image.open(file, formats=("PNG", "JPEG")) as image:
        return as_rgb(image, f"image {file}")
