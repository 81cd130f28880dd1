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
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnotes import progress
from resnotes.datasets.archives import damage_reported, unpacked
from resnotes.datasets.availability import Availability
from resnotes.datasets.cache import Decoded, Source, cached, cached_variant
from resnotes.datasets.classification import Classification
from resnotes.datasets.download import chosen_mirrors, download, has_checksum
from resnotes.datasets.pixels import as_rgb
from resnotes.errors import DatasetError, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

SIZES = {"train": 50_000, "test": 10_000}  # of the official split
_DECODED = "cifar10-upright"  # names the cache: earlier versions kept what they read otherwise under other names
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})
_TREE_ARCHIVE = re.compile(r"cifar-?10(-images.*)?\.(zip|tar|tgz|txz|tbz2?|tar\.(gz|xz|bz2))", re.IGNORECASE)
# torchvision knows these names too, but importing it takes longer than loading the data.
_ORIGINALS = ("cifar-10-batches-py", "cifar-10-python.tar.gz")

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
    source = _source(root) or _downloaded(root)
    official = partial(cached, _DECODED, source, _ARRAYS, partial(_decode, source.path))
    if holdout == 0:
        decoded = official()
    else:
        decoded = cached(f"{_DECODED}-holdout-{holdout}", source, _ARRAYS, lambda _: _held_out(official(), holdout))
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
    source = _source(root)
    if source is None:
        return Availability("cifar10", False, None, f"missing: {_expected(root)}", _how(root))
    variant = "cifar10" if source.path.name in _ORIGINALS else cached_variant(_DECODED, source)
    return Availability("cifar10", True, variant, str(source.path))


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
        mirror if mirror.endswith(CIFAR10.filename) else f"{mirror}/{CIFAR10.filename}"
        for mirror in chosen_mirrors(mirrors, "RESNOTES_CIFAR10_MIRRORS")
    ]
    try:
        download([*urls, CIFAR10.url], root / "cifar10" / CIFAR10.filename, CIFAR10.tgz_md5)
    except DatasetError as error:
        raise DatasetError(f"{error}; {_how(root)}") from error


def _downloaded(root: Path) -> Source:
    if os.environ.get("RESNOTES_OFFLINE", "0") not in ("", "0"):
        raise DatasetError(f"found no CIFAR-10; expected {_expected(root)}; {_how(root)}")
    print(f"no CIFAR-10 in {root}; downloading it to {root / 'cifar10'}", file=sys.stderr)
    fetch(root, ())
    return Source(root / "cifar10" / _ORIGINALS[1])


def _expected(root: Path) -> str:
    return (
        f"{_ORIGINALS[0]}/, {_ORIGINALS[1]}, or an image tree {{train,test}}/<class>/ as a folder or "
        f"as cifar10.{{zip,tar,tar.*}}, in {root / 'cifar10'} or {root}"
    )


def _how(root: Path) -> str:
    return (
        f"copy it to {root / 'cifar10'}, set RESNOTES_DATA to a folder that has it, or download it with "
        "`resnotes data fetch cifar10`, from mirrors of your own with RESNOTES_CIFAR10_MIRRORS=URL,URL"
    )


def _source(root: Path) -> Source | None:
    """The first that is there: the original, a folder with a tree, an archive of one."""
    home = root / "cifar10"
    for path in (folder / name for folder in (home, root) for name in _ORIGINALS):
        if path.exists():
            return Source(path)
    with damage_reported(root, "a readable folder"):
        inside, beside = (sorted(folder.iterdir()) if folder.is_dir() else [] for folder in (home, root))
    if tree := _tree((home, *inside, root)):
        return Source(tree, only=tuple(SIZES))
    for file in (*inside, *beside):
        if _TREE_ARCHIVE.fullmatch(file.name) and file.is_file():
            return Source(file)
    return None


def _tree(folders: Iterable[Path]) -> Path | None:
    """The first of these folders that has folders of classes in train/ or test/."""
    for folder in folders:
        if any((folder / split / name).is_dir() for split in SIZES for name in CLASSES):
            return folder
    return None


def _decode(source: Path, scratch: Path) -> Decoded:
    """All images in canonical order: by class, then by hash."""
    with unpacked(source, scratch) as folder:
        if source.name in _ORIGINALS:
            edition, parts = "cifar10", _read_batches(folder.parent if folder == source else folder)
        else:
            edition, parts = _read_tree(_tree((folder, *sorted(folder.iterdir()))) or folder)
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

    folder = root / CIFAR10.base_folder
    published = dict([*CIFAR10.train_list, *CIFAR10.test_list, [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]])
    if altered := [name for name, md5 in published.items() if not has_checksum(folder / name, md5)]:
        raise DatasetError(
            f"{folder}: {', '.join(altered)} missing, damaged or altered; expected {', '.join(published)} with the MD5"
            " sums as published; remove it and get it again"
        )
    with damage_reported(folder, "the original batches of CIFAR-10"):
        read = {split: CIFAR10(root, train=split == "train") for split in SIZES}
    return {split: (batch.data.transpose(0, 3, 1, 2), batch.targets) for split, batch in read.items()}


def _read_tree(tree: Path) -> tuple[str, dict[str, Part]]:
    """The edition and the parts of an image tree."""
    files = [
        path
        for split in SIZES
        for path in (tree / split).rglob("*")
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    ]
    found: dict[str, list[tuple[int, NDArray[np.uint8]]]] = {split: [] for split in SIZES}
    formats = set()
    for file in progress.bar(files, desc="decoding CIFAR-10", unit=" images"):
        split, *folders, _ = file.relative_to(tree).parts
        if len(folders) != 1 or folders[0] not in CLASSES:
            raise DatasetError(
                f"image {str(file)!r} is out of place; expected {{train,test}}/<class>/<file> with the classes"
                f" {', '.join(CLASSES)}; move or remove it"
            )
        pixels, kind = _image(file)
        found[split].append((CLASSES.index(folders[0]), pixels))
        formats.add(kind)
    for split, images in found.items():
        if empty := [f"{split}/{name}" for i, name in enumerate(CLASSES) if all(label != i for label, _ in images)]:
            raise DatasetError(
                f"{tree} has no images in {', '.join(empty)}; expected PNG or JPEG files for every class in train/ and"
                " test/; copy or download it again"
            )
    edition = "cifar10" if formats == {"PNG"} else "cifar10-jpeg"
    return edition, {
        split: (np.stack([pixels for _, pixels in images]), [label for label, _ in images])
        for split, images in found.items()
    }


def _image(file: Path) -> tuple[NDArray[np.uint8], str | None]:
    """The pixels of an image as it looks, uint8 `[3, 32, 32]`, and the format of its file."""
    expected = "a complete 32x32 PNG or JPEG"
    with damage_reported(file, expected), Image.open(file, formats=("PNG", "JPEG")) as image:
        if image.size != (32, 32):  # before any pixel is decoded: a small file may claim to be a huge image
            raise DatasetError(f"{file} is {image.width}x{image.height}; expected {expected}; convert it or remove it")
        return np.asarray(as_rgb(image, f"image {file}")).transpose(2, 0, 1), image.format
