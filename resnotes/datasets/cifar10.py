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
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from resnotes import progress
from resnotes.datasets.archives import damage_reported, is_archive, unpacked
from resnotes.datasets.cache import Decoded, cached
from resnotes.datasets.classification import Classification
from resnotes.datasets.download import download, has_checksum
from resnotes.datasets.layouts import FORMATS, IMAGES, listed, refusal, visible
from resnotes.datasets.pixels import as_rgb
from resnotes.errors import DatasetError, UsageError
from resnotes.typed import NOT_NEGATIVE

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
SIZES = {"train": 50_000, "test": 10_000}  # of the official split
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"

_DECODED = "cifar10-upright"  # names the cache: earlier versions kept what they read otherwise under other names
_ARRAYS = ("train_images", "train_labels", "test_images", "test_labels")
_ARCHIVE = "cifar-10-python.tar.gz"
_BATCHES = {"train": tuple(f"data_batch_{i}" for i in range(1, 6)), "test": ("test_batch",)}
_FIRST = ("data_batch_1", "data_batch_1.bin")  # for Python, and of nothing but labels and pixels
_IN_TREE = re.compile(
    rf"(?:(.*)/)?(train|test)(?:ing)?/([^/]+)/.*(?:{'|'.join(map(re.escape, IMAGES))})", re.IGNORECASE
)
_USUAL = re.compile(r"cifar-?10(-python.*|-binary.*|-images.*)?\.", re.IGNORECASE)
_NAMED = re.compile(r"cifar(?![-_ ]?100)", re.IGNORECASE)
_OTHER_NAMES = {"plane": "airplane", "aeroplane": "airplane", "car": "automobile"} | {
    str(label): name for label, name in enumerate(CLASSES)
}
_EXPECTED = (
    "cifar-10-batches-py/, cifar-10-batches-bin/, cifar-10-python.tar.gz, or an image tree {train,test}/<class>/ with"
    f" the classes {', '.join(CLASSES)}, as a folder or an archive"
)
Part = tuple[NDArray[np.uint8], Sequence[int]]  # images `[N, 3, 32, 32]` and labels of a split


def load(root: Path, holdout: Annotated[int, NOT_NEGATIVE] = 0) -> Classification:
    """Training and test images, uint8 `[N, 3, 32, 32]`; decoded once, from then on mapped from the cache.

    Args:
        root: folder of the data sets.
        holdout: so many training images of each class, the first ones in the order of hashes, become the test set, and
            the official test set is left out. 500 gives the 45,000 and 5,000 images of He et al. 2015, Sec. 4.2, and
            anyone with CIFAR-10 the very same ones. 0 keeps the official split.

    Raises:
        UsageError: `holdout` leaves a class without training images.
        DatasetError: the data is missing and cannot be downloaded, damaged, or not laid out as expected; or
            the cache cannot be written.
    """
    source = _found(root) or _downloaded(root)
    official = partial(cached, _DECODED, source, _ARRAYS, partial(_decode, source))
    if holdout == 0:
        decoded = official()
    else:  # which needs the official split only where it was not cut out before
        name = f"{_DECODED}-holdout-{holdout}"
        decoded = cached(name, source, _ARRAYS, lambda _: _held_out(official(), holdout))
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
    if layout.kind == "tree":  # of which another size is another data set
        layout = layout._replace(files={split: dict([*files.items()][:1]) for split, files in layout.files.items()})
    chosen = [*chain(*layout.files.values())]
    with tempfile.TemporaryDirectory() as scratch, unpacked(source, Path(scratch, "content"), chosen) as folder:
        _read(folder, layout)
    return source / layout.top if source.is_dir() else source


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
    """What is read, None where there is nothing, or an error about what cannot be read; archives stay closed."""
    with damage_reported(root, "a readable folder"):
        there = visible(root)
        named = [path for path in there if _NAMED.search(path.name)]
        archives = [file for path in named for file in (path, *visible(path)) if is_archive(file)]
        inside = {path.name.lower() for path in there}
        if root.is_file() or _NAMED.match(root.name) or not inside.isdisjoint((*SIZES, *_FIRST, *CLASSES)):
            named.append(root)
    archives.sort(key=lambda file: (file.name != _ARCHIVE, not _USUAL.match(file.name)))
    refused = []
    for place in named:
        if archives and (place in archives or archives[0].name == _ARCHIVE):
            continue
        try:
            if names := listed(place):
                _layout(place, names)
                return place
        except DatasetError as error:
            refused.append(error)
    if refused and not archives:
        raise refused[0]
    return archives[0] if archives else None


def _label(folder: str) -> int:
    """The label of a class by the name of its folder; -1 where that is another name."""
    name = re.sub(r"^\d+[\W_]+", "", folder.lower())  # as in 3_cat
    name = _OTHER_NAMES.get(name, name)
    return CLASSES.index(name) if name in CLASSES else -1


class _Layout(NamedTuple):
    """How CIFAR-10 lies in a folder or an archive.

    Attributes:
        kind: `python` and `bin`, for batches, or `tree`.
        top: the folder in it that has everything.
        files: of each split, relative to the source; those of a tree with their labels.
    """

    kind: str
    top: str
    files: dict[str, dict[str, int]]


def _layout(source: Path, names: Sequence[str]) -> _Layout:
    """The layout of what lies in a source, or one error that says what is there instead."""
    for kind, suffix in (("python", ""), ("bin", ".bin")):
        batches = {split: [name + suffix for name in each] for split, each in _BATCHES.items()}
        everything = [*chain(*batches.values())]
        if tops := {name[: -len(last)] for name in names if (last := name.rpartition("/")[2]) in everything}:
            top = min(tops, key=_depth)
            if missing := [name for name in everything if top + name not in names]:
                raise DatasetError(
                    f"{source / top} has no {', '.join(missing)}; expected {', '.join(everything)}; copy or download it"
                    " again"
                )
            return _Layout(kind, top, {s: dict.fromkeys((top + n for n in each), -1) for s, each in batches.items()})
    images = [(name, *match.groups("")) for name in names if (match := _IN_TREE.fullmatch(name))]
    if not images:
        advice = (
            f"expected {_EXPECTED}; move it elsewhere, or set RESNOTES_DATA to another folder, and get the original"
            " with `resnotes data fetch cifar10`"
        )
        raise refusal("CIFAR-10", source, names, advice)
    top = min((top for _, top, _, _ in images), key=_depth)
    files = {}
    for split in SIZES:
        folders = {name: folder for name, *at, folder in images if at == [top, at[1]] and at[1].lower() == split}
        labels = {folder: _label(folder) for folder in folders.values()}
        _require_classes(source / top / split, labels)
        files[split] = {name: labels[folder] for name, folder in folders.items()}
    return _Layout("tree", top, files)


def _depth(folder: str) -> tuple[int, str]:
    return folder.count("/"), folder


def _require_classes(split: Path, labels: Mapping[str, int]) -> None:
    """Refuses folders with images that are not one for each class; `labels` has their names."""
    if sorted(labels.values()) == [*range(len(CLASSES))]:
        return
    there = f"images in the folders {', '.join(labels)}"
    if not labels:
        beside = ", ".join(path.name for path in visible(split.parent))
        there = "no images in folders of classes" + (f", beside {beside}" if beside else "")
    missing = [name for label, name in enumerate(CLASSES) if label not in labels.values()]
    others = [name for name in missing if os.path.lexists(split / name)]
    why = f" ({', '.join(others)}: a file, a link that leads nowhere, or a folder without such files)" if others else ""
    raise DatasetError(
        f"{split} has {there}; expected a folder of PNG, JPEG or BMP files for each of {', '.join(CLASSES)}; missing:"
        f" {', '.join(missing) or 'none'}{why}; rename, remove or add folders"
    )


def _decode(source: Path, scratch: Path) -> Decoded:
    """All images in canonical order: by class, then by hash."""
    with unpacked(source, scratch) as folder:
        edition, parts = _read(folder, _layout(folder, listed(folder)))
    arrays = []
    for images, labels in parts.values():
        digests = hashes(images)
        order = sorted(range(len(labels)), key=lambda i: (labels[i], digests[i]))
        arrays += [torch.from_numpy(images[order]), torch.tensor(labels, dtype=torch.int64)[order]]
    variant = _variant(edition, {split: len(labels) for split, (_, labels) in parts.items()})
    return Decoded(dict(zip(_ARRAYS, arrays, strict=True)), variant)


def _read(folder: Path, layout: _Layout) -> tuple[str, dict[str, Part]]:
    """The edition and the parts of what lies in a folder."""
    if layout.kind == "tree":
        return _read_tree(folder, layout)
    if layout.kind == "python":
        return "cifar10", _read_batches(folder / layout.top)
    return "cifar10", {split: _read_bin(folder, [*files]) for split, files in layout.files.items()}


def _read_batches(folder: Path) -> dict[str, Part]:
    """The original batches, whose pickles torchvision reads only with the published checksums."""
    from torchvision.datasets import CIFAR10

    # The file with the names of the classes, which are known, is not everywhere.
    batches: Any = type("Batches", (CIFAR10,), {"base_folder": "", "_load_meta": lambda _: None})
    with damage_reported(folder, "the batches of CIFAR-10 with the MD5 sums as published"):
        read = {split: batches(folder, train=split == "train") for split in SIZES}
        return {split: (batch.data.transpose(0, 3, 1, 2), batch.targets) for split, batch in read.items()}


def _read_bin(folder: Path, files: Sequence[str]) -> Part:
    """Batches that are nothing but a label and `[C, H, W]` pixels, a byte each, for every image."""
    with damage_reported(
        folder / files[0], "batches of 3,073 bytes an image, of which the first is its label, with all of 0 to 9"
    ):
        records = np.concatenate([np.fromfile(folder / file, np.uint8).reshape(-1, 3073) for file in files])
        if (labels := np.unique(records[:, 0]).tolist()) != [*range(len(CLASSES))]:
            raise ValueError(f"labels {labels}")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].tolist()


def _read_tree(folder: Path, layout: _Layout) -> tuple[str, dict[str, Part]]:
    """The edition and the parts of an image tree."""
    formats: set[str | None] = set()
    parts: dict[str, Part] = {}
    for split, files in layout.files.items():
        bar = progress.bar(files, desc=f"decoding CIFAR-10 {split}", unit=" images")
        images, kinds = zip(*(_image(folder / file) for file in bar), strict=True)
        formats.update(kinds)
        parts[split] = np.stack(images), tuple(files.values())
    return "cifar10-jpeg" if "JPEG" in formats else "cifar10", parts


def _image(file: Path) -> tuple[NDArray[np.uint8], str | None]:
    """The pixels of an image as it looks, uint8 `[3, 32, 32]`, and the format of its file."""
    expected = "a complete 32x32 PNG, JPEG or BMP"
    with damage_reported(file, expected), Image.open(file, formats=FORMATS) as image:
        if image.size != (32, 32):  # before any pixel is decoded: a small file may claim to be a huge image
            raise DatasetError(f"{file} is {image.width}x{image.height}; expected {expected}; convert it or remove it")
        return np.asarray(as_rgb(image, f"image {file}")).transpose(2, 0, 1), image.format
