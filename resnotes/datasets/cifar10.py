"""CIFAR-10: 32x32 colour images of ten classes, 50,000 for training and 10,000 for testing (Krizhevsky 2009).

Read from the first of these that lies in `root/cifar10` or `root`:

1. the original `cifar-10-batches-py/` or `cifar-10-python.tar.gz`;
2. an image tree `{train,test}/<class>/*` of PNG or JPEG, as a folder or as `cifar10.{zip,tar,tar.xz,...}`,
   with at most one folder around it; a subset will do;
3. a download of the original, unless `RESNOTES_OFFLINE=1` is set.

However they were packed, images are ordered by class, then by the SHA-256 of their `[C, H, W]` bytes: the same images
give the same arrays, the same fingerprint and the same runs. The variant is `cifar10`, with any JPEG in either part
`cifar10-jpeg`, and names what is not the official split: `cifar10, test 1000` where the test set is incomplete,
`cifar10, holdout 500` where it was cut out of the training images.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnotes import progress
from resnotes.datasets.archives import damage_reported, unpacked
from resnotes.datasets.cache import Decoded, cached
from resnotes.datasets.classification import Classification
from resnotes.datasets.download import download
from resnotes.datasets.pixels import as_rgb
from resnotes.errors import DatasetError, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}  # of the official split
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

_DECODED = "cifar10-upright"  # names the cache: earlier versions kept what they read otherwise under other names
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_ORIGINALS = ("cifar-10-batches-py", "cifar-10-python.tar.gz")
_TREE_ARCHIVE = re.compile(r"cifar-?10(-images.*)?\.(zip|tar|tgz|txz|tbz2?|tar\.(gz|xz|bz2))", re.IGNORECASE)

Part = tuple[NDArray[np.uint8], Sequence[int]]  # images `[N, 3, 32, 32]` and labels of a split


def load(root: Path, holdout: int = 0) -> Classification:
    """Training and test images, uint8 `[N, 3, 32, 32]`; decoded once, from then on mapped from the cache.

    Args:
        root: folder of the data sets.
        holdout: so many training images of each class, the first ones in the order of hashes, become the test set, and
            the official test set is left out. 500 gives the 45,000 and 5,000 images of He et al. 2015, Sec. 4.2, and
            anyone with CIFAR-10 the very same ones. 0 keeps the official split.

    Raises:
        UsageError: `holdout` is negative, or leaves a class without training images.
        DatasetError: the data is missing and cannot be downloaded, damaged, or not laid out as expected; or
            the cache cannot be written.
    """
    if holdout < 0:
        raise UsageError(f"cifar10: holdout must be 0 or a number of images a class, found {holdout}")
    source = _found(root) or _downloaded(root)
    only = ("",) if source.name in _ORIGINALS else tuple(SIZES)
    official = partial(cached, _DECODED, source, _ARRAYS, partial(_decode, source), only)
    if holdout == 0:
        decoded = official()
    else:  # which needs the official split only where it was not cut out before
        name = f"{_DECODED}-holdout-{holdout}"
        decoded = cached(name, source, _ARRAYS, lambda _: _held_out(official(), holdout), only)
    return Classification(**decoded.arrays, classes=CLASSES, variant=decoded.variant, fingerprint=decoded.fingerprint)


def _held_out(official: Decoded, holdout: int) -> Decoded:
    images, labels = official.arrays["train_images"], official.arrays["train_labels"]
    counts = labels.bincount(minlength=len(CLASSES))
    smallest = int(counts.min())
    if holdout >= smallest:
        raise UsageError(
            f"cifar10: holdout must be a number of images a class below {smallest}, which is what the smallest class"
            f" has for training; found {holdout}"
        )
    arrays = [
        torch.cat([members[part] for members in tensor.split(counts.tolist())])
        for part in (slice(holdout, None), slice(holdout))
        for tensor in (images, labels)
    ]
    variant = _variant(official.variant.partition(",")[0], {"train": len(labels)}, f"holdout {holdout}")
    return Decoded(dict(zip(_ARRAYS, arrays, strict=True)), variant)


def _variant(edition: str, sizes: Mapping[str, int], *more: str) -> str:
    """The edition with the splits that are incomplete, and `more`."""
    return ", ".join([edition, *(f"{split} {size}" for split, size in sizes.items() if size != SIZES[split]), *more])


def hashes(images: NDArray[np.uint8]) -> list[str]:
    """SHA-256 of the bytes of each of the images `[N, C, H, W]`, 64 hex digits."""
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def find(root: Path) -> Path:
    """What `load` would read: the first that is there of the original, a folder with a tree, an archive of one.

    Raises:
        DatasetError: there is none.
    """
    if found := _found(root):
        return found
    raise DatasetError(
        f"found no CIFAR-10; expected {_ORIGINALS[0]}/, {_ORIGINALS[1]}, or an image tree {{train,test}}/<class>/ as a"
        f" folder or as cifar10.{{zip,tar,tar.*}}, in {root / 'cifar10'} or {root}; copy it there, set RESNOTES_DATA to"
        " a folder that has it, or download it with `resnotes data fetch cifar10`"
    )


def fetch(root: Path) -> None:
    """Downloads the original archive to `root/cifar10`, unless it is there and intact.

    Raises:
        DatasetError: the folder cannot be written, or the publisher's server gave no intact file.
    """
    download(URL, root / "cifar10" / _ORIGINALS[1], SHA256)


def _downloaded(root: Path) -> Path:
    if os.environ.get("RESNOTES_OFFLINE", "0") not in ("", "0"):
        return find(root)
    print(f"no CIFAR-10 in {root}; downloading it to {root / 'cifar10'}", file=sys.stderr)
    fetch(root)
    return root / "cifar10" / _ORIGINALS[1]


def _found(root: Path) -> Path | None:
    home = root / "cifar10"
    with damage_reported(root, "a readable folder"):
        inside, beside = (sorted(folder.iterdir()) if folder.is_dir() else [] for folder in (home, root))
    originals = (folder / name for folder in (home, root) for name in _ORIGINALS)
    trees = (folder for folder in (home, *inside, root) if _is_tree(folder))
    archives = (file for file in (*inside, *beside) if _TREE_ARCHIVE.fullmatch(file.name) and file.is_file())
    return next((path for path in (*originals, *trees, *archives) if path.exists()), None)


def _is_tree(folder: Path) -> bool:
    """Whether there are folders of classes in its train/ or test/."""
    return any((folder / split / name).is_dir() for split in SIZES for name in CLASSES)


def _decode(source: Path, scratch: Path) -> Decoded:
    """All images in canonical order: by class, then by hash."""
    with unpacked(source, scratch) as folder:
        if source.name in _ORIGINALS:
            edition, parts = "cifar10", _read_batches(folder.parent if folder == source else folder)
        else:
            edition, parts = _read_tree(next(filter(_is_tree, (folder, *sorted(folder.iterdir()))), folder))
    arrays = []
    for images, labels in parts.values():
        digests = hashes(images)
        order = sorted(range(len(labels)), key=lambda i: (labels[i], digests[i]))
        arrays += [torch.from_numpy(images[order]), torch.tensor(labels, dtype=torch.int64)[order]]
    variant = _variant(edition, {split: len(labels) for split, (_, labels) in parts.items()})
    return Decoded(dict(zip(_ARRAYS, arrays, strict=True)), variant)


def _read_batches(root: Path) -> dict[str, Part]:
    """The original distribution in `root`, whose pickles torchvision reads only with the published checksums."""
    from torchvision.datasets import CIFAR10

    with damage_reported(root / CIFAR10.base_folder, "the batches of CIFAR-10 with the MD5 sums as published"):
        read = {split: CIFAR10(root, train=split == "train") for split in SIZES}
        return {split: (batch.data.transpose(0, 3, 1, 2), batch.targets) for split, batch in read.items()}


def _read_tree(tree: Path) -> tuple[str, dict[str, Part]]:
    """The edition and the parts of an image tree."""
    from torchvision.datasets import ImageFolder

    formats: set[str | None] = set()
    parts = {}
    for split in SIZES:
        with damage_reported(tree / split, f"a folder of PNG or JPEG files for each of {', '.join(CLASSES)}"):
            listed = ImageFolder(tree / split, is_valid_file=_is_image)
            if tuple(listed.classes) != CLASSES:
                raise ValueError(f"the classes {', '.join(listed.classes)}")
        bar = progress.bar(listed.samples, desc=f"decoding CIFAR-10 {split}", unit=" images")
        images, kinds = zip(*(_image(Path(file)) for file, _ in bar), strict=True)
        formats.update(kinds)
        parts[split] = np.stack(images), listed.targets
    return "cifar10" if formats == {"PNG"} else "cifar10-jpeg", parts


def _is_image(file: str) -> bool:
    path = Path(file)
    return path.suffix.lower() in (".png", ".jpg", ".jpeg") and not path.name.startswith(".")


def _image(file: Path) -> tuple[NDArray[np.uint8], str | None]:
    """The pixels of an image as it looks, uint8 `[3, 32, 32]`, and the format of its file."""
    expected = "a complete 32x32 PNG or JPEG"
    with damage_reported(file, expected), Image.open(file, formats=("PNG", "JPEG")) as image:
        if image.size != (32, 32):  # before any pixel is decoded: a small file may claim to be a huge image
            raise DatasetError(f"{file} is {image.width}x{image.height}; expected {expected}; convert it or remove it")
        return np.asarray(as_rgb(image, f"image {file}")).transpose(2, 0, 1), image.format
