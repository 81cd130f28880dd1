"""CIFAR-10: 32x32 colour images of ten classes, 50,000 for training and 10,000 for testing (Krizhevsky 2009).

Read from the first of these that lies in a folder of `root` named like `cifar10`, in `root`, or is `root` itself:

1. the original batches, for Python or `.bin`, or `cifar-10-python.tar.gz`;
2. an image tree `{train,test}/<class>/*` of PNG, JPEG or BMP; a subset will do. Classes may also be called plane and
   car, or by their labels 0 to 9;
3. an archive of either, zip or tar, whatever it is called;
4. where there is nothing: a download of the original, unless `RESNOTES_OFFLINE=1` is set.

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
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnotes import progress
from resnotes.datasets.archives import damage_reported, is_archive, unpacked
from resnotes.datasets.cache import Decoded, cached
from resnotes.datasets.classification import Classification
from resnotes.datasets.download import download, has_checksum
from resnotes.datasets.layouts import FORMATS, IMAGES, described, listed, trees, visible
from resnotes.datasets.pixels import as_rgb
from resnotes.errors import DatasetError, UsageError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}  # of the official split
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

_DECODED = "cifar10-upright"  # names the cache: earlier versions kept what they read otherwise under other names
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_ARCHIVE = "cifar-10-python.tar.gz"
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_SUFFIXES = ("", ".bin")  # of batches for Python, and of those that are nothing but labels and pixels
_USUAL = re.compile(r"cifar-?10(-python.*|-binary.*|-images.*)?\.", re.IGNORECASE)
_NAMED = re.compile(r"cifar[-_ ]?10(?!\d)", re.IGNORECASE)
_OTHER_NAMES = {"plane": "airplane", "car": "automobile"} | {str(label): name for label, name in enumerate(CLASSES)}
_EXPECTED = (
    "cifar-10-batches-py/, cifar-10-batches-bin/, cifar-10-python.tar.gz, or an image tree {train,test}/<class>/ with"
    f" the classes {', '.join(CLASSES)}, as a folder or an archive"
)
_KNOWN = {  # what else people have, by a name in it
    r"\.(part|crdownload|download)$": "a download that a browser has not finished",
    r"(^|/)(trainLabels|sampleSubmission)\.csv$": "Kaggle's competition, whose test images have no labels",
    r"\.(parquet|arrow)$": "tables of Hugging Face, which are not read",
    r"\.(npz|npy)$": "NumPy arrays, which are not read",
    r"\.mat$": "the version for MATLAB, which is not read",
    r"\.(zip|tar|tgz|gz|bz2|xz|7z|rar)$": "packed twice, or in a way that is not read; unpack it",
}

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
    only = [path.name for path in visible(source) if path.name.lower() in SIZES] or [""]
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
    """What `load` would read, after the same checks, but for those of the pixels.

    Raises:
        DatasetError: there is nothing, or something that `load` would refuse.
    """
    source = _found(root)
    if source is None:
        raise DatasetError(
            f"found no CIFAR-10; expected {_EXPECTED}, in {root / 'cifar10'} or {root}; copy it there, set"
            " RESNOTES_DATA to a folder that has it, or download it with `resnotes data fetch cifar10`"
        )
    if has_checksum(source, SHA256):
        return source
    layout = _layout(source, listed(source))
    if layout.kind == "tree" and source.is_dir():
        for files in layout.files.values():  # another size is another data set
            _image(source / files[0])
    if layout.kind == "python":
        with tempfile.TemporaryDirectory() as scratch, unpacked(source, Path(scratch, "content")) as folder:
            _check_sums(folder / layout.top)
    return source


def fetch(root: Path) -> None:
    """Downloads the original archive to `root/cifar10`, unless it or anything else that `load` reads is there.

    Raises:
        DatasetError: what is there cannot be read, the folder cannot be written, or the publisher's server gave no
            intact file.
    """
    target = root / "cifar10" / _ARCHIVE
    if target.exists() or _found(root) is None:
        download(URL, target, SHA256)
    else:
        print(f"cifar10: {find(root)} is there already; there is nothing to download", file=sys.stderr)


def _downloaded(root: Path) -> Path:
    if os.environ.get("RESNOTES_OFFLINE", "0") not in ("", "0"):
        return find(root)
    print(f"no CIFAR-10 in {root}; downloading it to {root / 'cifar10'}", file=sys.stderr)
    fetch(root)
    return root / "cifar10" / _ARCHIVE


def _found(root: Path) -> Path | None:
    """What is read; else the place of whatever else is there, or None."""
    with damage_reported(root, "a readable folder"):
        named = [path for path in visible(root) if _NAMED.match(path.name)]
        named.sort(key=lambda path: (path.is_file(), path.name != "cifar10"))
        folders = [*(folder for path in named for folder in _around(path)), root]
        archives = [file for path in named for file in (path, *visible(path)) if is_archive(file)]
        archives.sort(key=lambda file: not _USUAL.match(file.name))
        others = {path.name.lower() for path in visible(root)} - {"weights"}
        if others and (_NAMED.match(root.name) or others & SIZES.keys()):
            named.append(root)
        candidates = chain(
            (folder for folder in folders for suffix in _SUFFIXES if _has_batches(folder, suffix)),
            (file for file in archives if file.name == _ARCHIVE),
            (folder for folder in folders if _is_tree(folder)),
            archives,
            (path for path in named if path.is_file() or visible(path)),
        )
        return next(candidates, None)


def _around(folder: Path, depth: int = 3) -> Iterator[Path]:
    """A folder and those in it, but for the images'; nothing of a file."""
    if folder.is_dir() and folder.name.lower() not in SIZES:
        yield folder
        if depth:
            for path in visible(folder):
                yield from _around(path, depth - 1)


def _has_batches(folder: Path, suffix: str) -> bool:
    return any((folder / f"{name}{suffix}").is_file() for names in _BATCHES.values() for name in names)


def _is_tree(folder: Path) -> bool:
    """Whether there are folders of classes in its train/ or test/."""
    splits = (path for path in visible(folder) if path.name.lower() in SIZES)
    return any(_label(path.name) is not None and path.is_dir() for split in splits for path in visible(split))


def _label(folder: str) -> int | None:
    """The label of a class by the name of its folder."""
    name = _OTHER_NAMES.get(folder.lower(), folder.lower())
    return CLASSES.index(name) if name in CLASSES else None


class _Layout(NamedTuple):
    """How CIFAR-10 lies in a folder or an archive.

    Attributes:
        kind: `python` and `bin`, for batches, or `tree`.
        top: the folder in it that has everything.
        files: of each split, relative to the source.
        labels: of the files of a tree.
    """

    kind: str
    top: str
    files: dict[str, list[str]]
    labels: dict[str, list[int]]


def _layout(source: Path, names: Sequence[str]) -> _Layout:
    """The layout of what lies in a source, or one error that says what is there instead."""
    for kind, suffix in zip(("python", "bin"), _SUFFIXES, strict=True):
        batches = {split: [name + suffix for name in each] for split, each in _BATCHES.items()}
        everything = {*chain(*batches.values())}
        tops = {name[: -len(last)] for name in names if (last := name.rpartition("/")[2]) in everything}
        if tops:
            top = min(tops, key=lambda top: (top.count("/"), top))
            files = {split: [top + name for name in each] for split, each in batches.items()}
            if missing := [name for name in chain(*files.values()) if name not in names]:
                raise DatasetError(
                    f"{source} has no {', '.join(missing)}; expected all of {', '.join(sorted(everything))}; copy or"
                    " download it again"
                )
            return _Layout(kind, top, files, {})
    found = trees(names, SIZES)
    if not found:
        there = described(names, _KNOWN) if names else "no files"
        raise DatasetError(
            f"found no CIFAR-10 in {source}, but {there}; expected {_EXPECTED}; move it elsewhere and get the original"
            " with `resnotes data fetch cifar10`"
        )
    top = min(found, key=lambda top: (top.count("/"), top))
    parts = {split: _of_classes(source / top / split, found[top].get(split, {})) for split in SIZES}
    files = {split: [name for name, _ in part] for split, part in parts.items()}
    return _Layout("tree", top, files, {split: [label for _, label in part] for split, part in parts.items()})


def _of_classes(split: Path, found: Mapping[str, Sequence[str]]) -> list[tuple[str, int]]:
    """The images of a split with their labels; `found` has the files in the folder of each class."""
    images = {folder: [name for name in names if name.lower().endswith(IMAGES)] for folder, names in found.items()}
    labels = {folder: _label(folder) for folder, those in images.items() if those}
    if sorted(-1 if label is None else label for label in labels.values()) != [*range(len(CLASSES))]:
        there = f"images in the folders {', '.join(labels)}" if labels else "no images in folders of classes"
        missing = [name for label, name in enumerate(CLASSES) if label not in labels.values()]
        links = [name for name in missing if os.path.lexists(split / name) and not (split / name).is_dir()]
        why = f" ({', '.join(links)}: a file, or a link that leads nowhere, in place of the folder)" if links else ""
        raise DatasetError(
            f"{split} has {there}; expected a folder of PNG, JPEG or BMP files for each of {', '.join(CLASSES)};"
            f" missing: {', '.join(missing) or 'none'}{why}; rename, remove or add folders"
        )
    return [(name, label) for folder, label in labels.items() if label is not None for name in images[folder]]


def _decode(source: Path, scratch: Path) -> Decoded:
    """All images in canonical order: by class, then by hash."""
    if source.is_file() and not is_archive(source):
        _layout(source, listed(source))  # which has nothing to read in a single file
    with unpacked(source, scratch) as folder:
        layout = _layout(folder, listed(folder))
        if layout.kind == "tree":
            edition, parts = _read_tree(folder, layout)
        else:
            edition = "cifar10"
            parts = _read_bin(folder, layout) if layout.kind == "bin" else _read_batches(folder / layout.top)
    arrays = []
    for images, labels in parts.values():
        digests = hashes(images)
        order = sorted(range(len(labels)), key=lambda i: (labels[i], digests[i]))
        arrays += [torch.from_numpy(images[order]), torch.tensor(labels, dtype=torch.int64)[order]]
    variant = _variant(edition, {split: len(labels) for split, (_, labels) in parts.items()})
    return Decoded(dict(zip(_ARRAYS, arrays, strict=True)), variant)


def _check_sums(folder: Path) -> None:
    """Refuses batches in a folder that are not the published ones: as pickles, others might run code."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_integrity

    for name, md5 in (*CIFAR10.train_list, *CIFAR10.test_list):
        if not check_integrity(folder / name, md5):
            raise DatasetError(
                f"{folder / name} is damaged or another file; expected the batches of CIFAR-10 with the MD5 sums as"
                " published; copy or download it again"
            )


def _read_batches(folder: Path) -> dict[str, Part]:
    """The original batches for Python, which torchvision reads only with the published checksums."""
    from torchvision.datasets import CIFAR10

    class Batches(CIFAR10):
        base_folder = ""

        def _load_meta(self) -> None:
            """The names of the classes, which are known, are in a file that not everyone has."""

    _check_sums(folder)
    with damage_reported(folder, "the batches of CIFAR-10"):
        read = {split: Batches(folder, train=split == "train") for split in SIZES}
        return {split: (batch.data.transpose(0, 3, 1, 2), batch.targets) for split, batch in read.items()}


def _read_bin(folder: Path, layout: _Layout) -> dict[str, Part]:
    """The batches that are nothing but a label and `[C, H, W]` pixels, a byte each, for every image."""
    parts = {}
    for split, files in layout.files.items():
        batches = []
        for file in files:
            with damage_reported(folder / file, "records of 3,073 bytes, each a label 0 to 9 and an image"):
                batches.append(np.fromfile(folder / file, np.uint8).reshape(-1, 3073))
                if batches[-1][:, 0].max() >= len(CLASSES):
                    raise ValueError(f"label {batches[-1][:, 0].max()}")
        records = np.concatenate(batches)
        parts[split] = records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].tolist()
    return parts


def _read_tree(folder: Path, layout: _Layout) -> tuple[str, dict[str, Part]]:
    """The edition and the parts of an image tree."""
    formats: set[str | None] = set()
    parts = {}
    for split, files in layout.files.items():
        bar = progress.bar(files, desc=f"decoding CIFAR-10 {split}", unit=" images")
        images, kinds = zip(*(_image(folder / file) for file in bar), strict=True)
        formats.update(kinds)
        parts[split] = np.stack(images), layout.labels[split]
    return "cifar10-jpeg" if "JPEG" in formats else "cifar10", parts


def _image(file: Path) -> tuple[NDArray[np.uint8], str | None]:
    """The pixels of an image as it looks, uint8 `[3, 32, 32]`, and the format of its file."""
    expected = "a complete 32x32 PNG, JPEG or BMP"
    with damage_reported(file, expected), Image.open(file, formats=FORMATS) as image:
        if image.size != (32, 32):  # before any pixel is decoded: a small file may claim to be a huge image
            raise DatasetError(f"{file} is {image.width}x{image.height}; expected {expected}; convert it or remove it")
        return np.asarray(as_rgb(image, f"image {file}")).transpose(2, 0, 1), image.format
