from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from cifar10_files import (
    Tree,
    as_folder,
    as_tar,
    as_zip,
    encoded,
    load,
    pixels,
    seed_of,
    tree,
)

from resnotes import datasets
from resnotes.datasets import Classification
from resnotes.datasets.cifar10 import CLASSES


def test_png_tree_is_read_exactly_in_order_of_class_and_name(root: Path) -> None:
    as_folder(tree(), root / "cifar10")
    data = load(root)
    assert data.train_images.shape == (20, 3, 32, 32)
    assert data.test_images.shape == (10, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.classes == CLASSES == tuple(sorted(CLASSES))
    assert (data.variant, data.in_channels, data.num_classes) == ("cifar10", 3, 10)
    for row, (name, i) in enumerate((name, i) for name in CLASSES for i in range(2)):
        expected = pixels(seed_of("train", name, i)).transpose(2, 0, 1)
        np.testing.assert_array_equal(data.train_images[row].numpy(), expected)


PACKERS: dict[str, Callable[[Tree, Path], Path]] = {
    "folder in cifar10/": lambda files, root: as_folder(files, root / "cifar10"),
    "folder in a folder": lambda files, root: as_folder(files, root / "cifar10" / "CIFAR-10-images"),
    "folder in root": lambda files, root: as_folder(files, root),
    "zip": lambda files, root: as_zip(files, root / "cifar10" / "cifar10.zip"),
    "wrapped zip in root": lambda files, root: as_zip(files, root / "CIFAR-10-images-master.zip", "images/"),
    "tar": lambda files, root: as_tar(files, root / "cifar10.tar"),
    "tar.gz": lambda files, root: as_tar(files, root / "cifar10.tgz", "w:gz", "./"),
    "tar.bz2": lambda files, root: as_tar(files, root / "cifar10" / "cifar10.tar.bz2", "w:bz2"),
    "tar.xz": lambda files, root: as_tar(files, root / "cifar10" / "cifar10.tar.xz", "w:xz", "cifar10/"),
}


def test_the_same_content_has_the_same_fingerprint_however_it_is_packed(tmp_path: Path) -> None:
    files = tree("jpg")
    backwards = dict(reversed(files.items()))
    found = {}
    for number, (packing, pack) in enumerate(PACKERS.items()):
        (tmp_path / f"{number}/cifar10").mkdir(parents=True)
        pack(backwards, tmp_path / str(number))
        data = load(tmp_path / str(number))
        found[packing] = (data.fingerprint, data.variant)
    assert set(found.values()) == {(found["zip"][0], "cifar10-jpeg")}, found


def test_fingerprint_tells_pixels_and_labels_apart(tmp_path: Path) -> None:
    files = tree()
    swapped = dict(files)
    swapped["train/cat/0000.png"], swapped["train/dog/0000.png"] = (
        files["train/dog/0000.png"],
        files["train/cat/0000.png"],
    )
    found = {load(as_folder(content, tmp_path / str(i))).fingerprint for i, content in enumerate((files, swapped))}
    assert len(found) == 2


def test_a_single_jpeg_makes_the_variant_jpeg_whatever_its_name(root: Path) -> None:
    files = tree()
    files["test/ship/0000.png"] = encoded(pixels(0), "JPEG")
    as_zip(files, root / "cifar10.zip")
    assert load(root).variant == "cifar10-jpeg"


def test_other_files_are_passed_over(root: Path) -> None:
    extra: Tree = {
        "README.md": b"#",
        "train/cat/Thumbs.db": b"x",
        "__MACOSX/train/cat/._0000.png": b"resource fork",
        "train/labels.csv": b"",
    }
    as_zip(tree() | extra, root / "cifar10.zip")
    assert len(load(root).train_images) == 20


def test_grey_and_palette_pngs_are_read_as_rgb(root: Path) -> None:
    files = tree()
    grey = pixels(1)[:, :, 0]
    files["train/airplane/0000.png"] = encoded(grey, "PNG")
    as_zip(files, root / "cifar10.zip")
    np.testing.assert_array_equal(load(root).train_images[0].numpy(), np.broadcast_to(grey, (3, 32, 32)))


def test_the_real_copy_is_complete(real_cifar10: Classification) -> None:
    assert real_cifar10.train_images.shape == (50_000, 3, 32, 32)
    assert real_cifar10.test_images.shape == (10_000, 3, 32, 32)
    assert real_cifar10.train_labels.bincount().tolist() == [5_000] * 10
    assert real_cifar10.test_labels.bincount().tolist() == [1_000] * 10
    assert real_cifar10.variant in ("cifar10", "cifar10-jpeg")
    # The channel means everyone knows from the lossless images; JPEG hardly moves them.
    means = real_cifar10.normalization.mean.mean(dim=(1, 2)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=2e-3, rtol=0)
    assert 0.24 < real_cifar10.normalization.std / 255 < 0.26


def test_the_real_copy_loads_fast_the_second_time(real_cifar10: Classification) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        again = datasets.load("cifar10")
        seconds.append(time.perf_counter() - start)
    assert again.fingerprint == real_cifar10.fingerprint
    assert min(seconds) < 0.5
