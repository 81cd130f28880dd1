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
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from resnotes import progress
from resnotes.datasets.archives import Source, damage_reported, decode_rgb
from resnotes.datasets.availability import Availability
from resnotes.datasets.batches import read_batch
from resnotes.datasets.cache import Decoded, cached, cached_variant
from resnotes.datasets.classification import Classification
from resnotes.datasets.download import chosen_mirrors, download
from resnotes.errors import DatasetError, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_SPLITS = ("train", "test")
SIZES = {"train": 50_000, "test": 10_000}  # of the official split
_DECODED = "cifar10-upright"  # names the cache: earlier versions kept what they read otherwise under other names
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_SIZE = (32, 32)
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_TREE_ARCHIVE = re.compile(r"cifar-?10(-images.*)?\.(zip|tar|tgz|txz|tbz2?|tar\.(gz|xz|bz2))", re.IGNORECASE)
# torchvision knows these names too, but importing it takes longer than loading the data.
_ORIGINAL_FOLDER = "cifar-10-batches-py"
_ORIGINAL_ARCHIVE = "cifar-10-python.tar.gz"
# Far above any honest file, and far below what would hurt: an uncompressed image has 3 kB, a batch 31 MB.
_MAX_IMAGE_BYTES = 2**20
_MAX_BATCH_BYTES = 2**26


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
    source = _original(root) or _image_tree(root) or _downloaded(root)
    read = _read_original if _is_original(source) else _read_tree
    official = partial(cached, _DECODED, source, _ARRAYS, partial(read, source))
    if holdout == 0:
        decoded = official()
    else:
        decoded = cached(f"{_DECODED}-holdout-{holdout}", source, _ARRAYS, lambda: _held_out(official(), holdout))
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


def status(root: Path) -> Availability:
    """What `load` would read; the variant of an image tree is known once it has been decoded."""
    source = _original(root) or _image_tree(root)
    if source is None:
        return Availability("cifar10", False, None, f"missing: {_expected(root)}", _how(root))
    variant = "cifar10" if _is_original(source) else cached_variant(_DECODED, source)
    return Availability("cifar10", True, variant, str(source.path), "nothing to do")


def fetch(root: Path, mirrors: Sequence[str]) -> None:
    """Downloads the original archive to `root/cifar10`, unless it is there and intact.

    Args:
        root: folder of the data sets.
        mirrors: URLs of the archive, or of folders that hold it, tried in order before torchvision's own;
            empty for those in `RESNOTES_CIFAR10_MIRRORS`, separated by commas.

    Raises:
        DatasetError: the folder cannot be written, or no URL gave an intact file; the message lists why not.
    """
    from torchvision.datasets import CIFAR10

    urls = [
        mirror if mirror.endswith(_ORIGINAL_ARCHIVE) else f"{mirror}/{_ORIGINAL_ARCHIVE}"
        for mirror in chosen_mirrors(mirrors, "RESNOTES_CIFAR10_MIRRORS")
    ]
    try:
        download([*urls, CIFAR10.url], root / "cifar10" / _ORIGINAL_ARCHIVE, CIFAR10.tgz_md5)
    except DatasetError as error:
        raise DatasetError(f"{error}; {_how(root)}") from error


def _downloaded(root: Path) -> Source:
    if os.environ.get("RESNOTES_OFFLINE", "0") not in ("", "0"):
        raise DatasetError(f"found no CIFAR-10; expected {_expected(root)}; {_how(root)}")
    print(f"no CIFAR-10 in {root}; downloading it to {root / 'cifar10'}", file=sys.stderr)
    fetch(root, ())
    return Source(root / "cifar10" / _ORIGINAL_ARCHIVE)


def _expected(root: Path) -> str:
    return (
        f"{_ORIGINAL_FOLDER}/, {_ORIGINAL_ARCHIVE}, or an image tree {{train,test}}/<class>/ as a folder or "
        f"as cifar10.{{zip,tar,tar.*}}, in {root / 'cifar10'} or {root}"
    )


def _how(root: Path) -> str:
    return (
        f"copy it to {root / 'cifar10'}, set RESNOTES_DATA to a folder that has it, or download it with "
        "`resnotes data fetch cifar10`, from mirrors of your own with RESNOTES_CIFAR10_MIRRORS=URL,URL"
    )


def _original(root: Path) -> Source | None:
    for folder in (root / "cifar10", root):
        for name in (_ORIGINAL_FOLDER, _ORIGINAL_ARCHIVE):
            if (folder / name).exists():
                return Source(folder / name)
    return None


def _is_original(source: Source) -> bool:
    return source.path.name in (_ORIGINAL_FOLDER, _ORIGINAL_ARCHIVE)


def _image_tree(root: Path) -> Source | None:
    home = root / "cifar10"
    with damage_reported(root, "a readable folder"):
        inside, beside = (sorted(folder.iterdir()) if folder.is_dir() else [] for folder in (home, root))
    for folder in (home, *inside, root):
        if any((folder / split / name).is_dir() for split in _SPLITS for name in CLASSES):
            return Source(folder, only=_SPLITS)
    for file in (*inside, *beside):
        if _TREE_ARCHIVE.fullmatch(file.name) and file.is_file():
            return Source(file)
    return None


def _read_original(source: Source) -> Decoded:
    from torchvision.datasets import CIFAR10

    published: dict[str, str] = dict([*CIFAR10.train_list, *CIFAR10.test_list])
    batches: dict[str, tuple[Tensor, Tensor]] = {}
    for path, content in source.files(lambda path: path.name in published, _MAX_BATCH_BYTES):
        digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
        if digest != published[path.name]:
            raise DatasetError(
                f"{source.path}: {str(path)!r} has MD5 {digest}; expected {published[path.name]}, as published; "
                f"remove {source.path} and get it again"
            )
        batches[path.name] = read_batch(content, f"{source.path}: {str(path)!r}")
    if missing := published.keys() - batches:
        raise DatasetError(
            f"{source.path} lacks {', '.join(sorted(missing))}; expected {', '.join(published)}; get it again"
        )
    splits = (
        [torch.cat(parts) for parts in zip(*(batches[name] for name, _ in listed), strict=True)]
        for listed in (CIFAR10.train_list, CIFAR10.test_list)
    )
    return _decoded([(images.numpy(), labels.tolist()) for images, labels in splits], "cifar10")


def _read_tree(source: Source) -> Decoded:
    splits: dict[str, dict[tuple[int, str], NDArray[np.uint8]]] = {split: {} for split in _SPLITS}
    lossless = True
    wrapper: tuple[str, ...] | None = None
    files = source.files(lambda path: path.suffix.lower() in _SUFFIXES, _MAX_IMAGE_BYTES)
    for path, content in progress.bar(files, desc=f"decoding {source.path.name}", unit=" images"):
        *top, split, label, name = _place(source, path)
        wrapper = tuple(top) if wrapper is None else wrapper
        key = CLASSES.index(label), name
        if wrapper != tuple(top) or key in splits[split]:
            raise DatasetError(
                f"{source.path}: {str(path)!r} is there twice or part of a second tree; expected a single tree;"
                " remove it"
            )
        pixels, is_lossless = decode_rgb(content, f"{source.path}: {str(path)!r}", _SIZE)
        splits[split][key] = pixels
        lossless &= is_lossless
    for split, images in splits.items():
        empty = [name for label, name in enumerate(CLASSES) if all(key[0] != label for key in images)]
        if empty:
            folders = ", ".join(f"{split}/{name}" for name in empty)
            raise DatasetError(
                f"{source.path} has no images in {folders}; expected PNG or JPEG files"
                " for every class in train/ and test/; copy or download it again"
            )
    stacked = [(np.stack(list(images.values())), [label for label, _ in images]) for images in splits.values()]
    return _decoded(stacked, "cifar10" if lossless else "cifar10-jpeg")


def _place(source: Source, path: PurePosixPath) -> tuple[str, ...]:
    """Parts of `path`, once they are known to be `[top/]{train,test}/<class>/<file>`."""
    parts = path.parts
    if len(parts) not in (3, 4) or parts[-3] not in _SPLITS or parts[-2] not in CLASSES:
        raise DatasetError(
            f"{source.path}: image {str(path)!r} is out of place; expected {{train,test}}/<class>/<file>, with "
            f"at most one folder around it and the classes {', '.join(CLASSES)}; move or remove it"
        )
    return parts


def _decoded(splits: Sequence[tuple[NDArray[np.uint8], Sequence[int]]], edition: str) -> Decoded:
    """Images `[N, 3, 32, 32]` and labels of training and test set, in canonical order."""
    train, test = (_ordered(images, labels) for images, labels in splits)
    variant = _variant(edition, {split: len(labels) for split, (_, labels) in zip(_SPLITS, splits, strict=True)})
    return Decoded(dict(zip(_ARRAYS, (*train, *test), strict=True)), variant)


def _ordered(images: NDArray[np.uint8], labels: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Images `[N, 3, 32, 32]` and labels by class, then by the SHA-256 of an image's bytes."""
    digests = hashes(images)
    order = sorted(range(len(labels)), key=lambda i: (labels[i], digests[i]))
    return torch.from_numpy(images[order]), torch.tensor(labels, dtype=torch.int64)[order]
