from __future__ import annotations

import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.cifar10 import (
    Originals,
    Tree,
    as_folder,
    as_tar,
    as_zip,
    by_hash,
    encoded,
    load,
    pixels,
    seed_of,
    tree,
)

from resnotes import datasets
from resnotes.datasets import Classification
from resnotes.datasets.cifar10 import CLASSES
from resnotes.errors import UsageError


def test_png_tree_is_read_exactly_in_order_of_class_and_hash(root: Path) -> None:
    as_folder(tree(), root / "cifar10")
    data = load(root)
    assert data.train_images.shape == (20, 3, 32, 32)
    assert data.test_images.shape == (10, 3, 32, 32)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.classes == CLASSES == tuple(sorted(CLASSES))
    assert (data.variant, data.in_channels, data.num_classes) == ("cifar10, train 20, test 10", 3, 10)
    expected = [by_hash(pixels(seed_of("train", name, i)) for i in range(2)) for name in CLASSES]
    np.testing.assert_array_equal(data.train_images.numpy(), np.concatenate(expected))


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
    assert set(found.values()) == {(found["zip"][0], "cifar10-jpeg, train 20, test 10")}, found


def test_four_packings_of_the_same_images_give_the_same_arrays(tmp_path: Path, originals: Originals) -> None:
    batches = originals()
    (tmp_path / "batches").mkdir()
    as_folder(batches, tmp_path / "batches")
    labelled = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    files: Tree = {}
    for split, names in labelled.items():
        for name in names:
            batch = pickle.loads(batches[f"cifar-10-batches-py/{name}"], encoding="bytes")
            for i, (row, label) in enumerate(zip(batch[b"data"], batch[b"labels"], strict=True)):
                image = row.reshape(3, 32, 32).transpose(1, 2, 0)
                files[f"{split}/{CLASSES[label]}/{name}-{9 - i}.png"] = encoded(image, "PNG")
    as_folder(files, tmp_path / "tree")
    for name in ("zip", "tar"):
        (tmp_path / name).mkdir()
    as_zip(files, tmp_path / "zip" / "cifar10.zip")
    as_tar(dict(reversed(files.items())), tmp_path / "tar" / "cifar10.tar")
    for holdout in (0, 2):
        first, *others = (load(tmp_path / name, holdout=holdout) for name in ("batches", "tree", "zip", "tar"))
        for other in others:
            assert (other.variant, other.fingerprint) == (first.variant, first.fingerprint)
            for field in ("train_images", "train_labels", "test_images", "test_labels"):
                assert torch.equal(getattr(other, field), getattr(first, field))


def test_the_holdout_is_the_first_images_of_each_class_by_hash(root: Path) -> None:
    as_folder(tree(train=5), root / "cifar10")
    data = load(root, holdout=2)
    assert data.sizes == (30, 20)
    assert data.variant == "cifar10, train 50, holdout 2"
    assert data.test_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(3)]
    every = [by_hash(pixels(seed_of("train", name, i)) for i in range(5)) for name in CLASSES]
    np.testing.assert_array_equal(data.test_images.numpy(), np.concatenate([images[:2] for images in every]))
    np.testing.assert_array_equal(data.train_images.numpy(), np.concatenate([images[2:] for images in every]))
    tensors = data.train_images, data.train_labels, data.test_images, data.test_labels
    assert data.fingerprint == datasets.classification.fingerprint(*tensors) != load(root).fingerprint


def test_the_holdout_of_uneven_classes(root: Path) -> None:
    files = tree(train=3)
    del files["train/cat/0000.png"]
    as_folder(files, root / "cifar10")
    data = load(root, holdout=1)
    assert data.test_labels.tolist() == list(range(10))
    assert data.train_labels.bincount().tolist() == [2, 2, 2, 1, 2, 2, 2, 2, 2, 2]
    with pytest.raises(UsageError, match=r"below 2, which is what the smallest class has for training; found 2"):
        load(root, holdout=2)


@pytest.mark.parametrize("holdout", [-1, 5, 6, 2.0, True, "2", None])
def test_a_holdout_that_cannot_be_is_one_clear_error(root: Path, holdout: object) -> None:
    if holdout != -1:  # which needs no data to be refused
        as_folder(tree(train=5), root / "cifar10")
    with pytest.raises(UsageError, match=rf"cifar10: holdout must be .*found {re.escape(repr(holdout))}"):
        load(root, holdout=holdout)


def test_no_holdout_is_the_default(root: Path) -> None:
    as_folder(tree(train=5), root / "cifar10")
    assert load(root, holdout=0).fingerprint == load(root).fingerprint


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
    assert load(root).variant == "cifar10-jpeg, train 20, test 10"


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
    data = load(root)
    expected = by_hash([np.repeat(grey[:, :, None], 3, axis=2), pixels(seed_of("train", "airplane", 1))])
    np.testing.assert_array_equal(data.train_images[:2].numpy(), np.stack(expected))


def test_the_real_copy_is_lossless(real_cifar10: Classification) -> None:
    assert real_cifar10.train_images.shape == (50_000, 3, 32, 32)
    assert real_cifar10.train_labels.bincount().tolist() == [5_000] * 10
    total = len(real_cifar10.test_images)
    assert real_cifar10.variant == ("cifar10" if total == 10_000 else f"cifar10, test {total}")
    # The channel means everyone knows
    means = real_cifar10.normalization.mean.mean(dim=(1, 2)) / 255
    torch.testing.assert_close(means, torch.tensor([0.4914, 0.4822, 0.4465]), atol=5e-5, rtol=0)
    assert 0.24 < real_cifar10.normalization.std / 255 < 0.26


def test_the_real_holdout_is_that_of_anyone_with_the_same_images(real_cifar10: Classification) -> None:
    data = datasets.load("cifar10", holdout=500)
    assert (data.sizes, data.variant) == ((45_000, 5_000), "cifar10, holdout 500")
    assert data.fingerprint == "593a6ef6a9930b2d"  # computed elsewhere, from a tree of these two splits


@pytest.mark.parametrize("holdout", [0, 500])
def test_the_real_copy_loads_fast_the_second_time(real_cifar10: Classification, holdout: int) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        datasets.load("cifar10", holdout=holdout)
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 0.5
