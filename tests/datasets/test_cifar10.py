"""CIFAR-10: one order whatever the packing, the holdout, the original batches and their download."""

from __future__ import annotations

import hashlib
import os
import pickle
import re
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.cifar10 import (
    CLASSES,
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
from resnotes.datasets import Classification, cifar10
from resnotes.datasets.classification import fingerprint
from resnotes.errors import DatasetError, UsageError

FIELDS = ("train_images", "train_labels", "test_images", "test_labels")


def test_png_tree_is_read_exactly_in_order_of_class_and_hash(root: Path) -> None:
    as_folder(tree(), root / "cifar10")
    data = load(root)
    assert data.sizes == (20, 10)
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
    "zip": lambda files, root: as_zip(files, root / "cifar10" / "cifar10.zip"),
    "wrapped zip in root": lambda files, root: as_zip(files, root / "CIFAR-10-images-master.zip", "images/"),
    "tar.gz": lambda files, root: as_tar(files, root / "cifar10.tgz", "w:gz", "./"),
    "tar.bz2": lambda files, root: as_tar(files, root / "cifar10" / "cifar10.tar.bz2", "w:bz2"),
    "tar.xz": lambda files, root: as_tar(files, root / "cifar10" / "cifar10.tar.xz", "w:xz", "cifar10/"),
}


def test_the_same_images_give_the_same_arrays_however_they_are_packed(tmp_path: Path, originals: Originals) -> None:
    batches = originals()
    as_folder(batches, tmp_path / "original")
    files: Tree = {}
    for path, content in batches.items():
        if "batch_" in path or "test_" in path:
            held = pickle.loads(content)
            for i, (row, label) in enumerate(zip(held["data"], held["labels"], strict=True)):
                name = f"{'test' if 'test' in path else 'train'}/{CLASSES[label]}/{Path(path).name}-{9 - i}.png"
                files[name] = encoded(row.reshape(3, 32, 32).transpose(1, 2, 0), "PNG")
    for number, pack in enumerate(PACKERS.values()):
        (tmp_path / f"{number}/cifar10").mkdir(parents=True)
        pack(dict(reversed(files.items())), tmp_path / str(number))
    for holdout in (0, 2):
        first = load(tmp_path / "original", holdout=holdout)
        for number, packing in enumerate(PACKERS):
            other = load(tmp_path / str(number), holdout=holdout)
            assert (other.variant, other.fingerprint) == (first.variant, first.fingerprint), packing
            assert all(torch.equal(getattr(other, field), getattr(first, field)) for field in FIELDS), packing


def test_the_holdout_is_the_first_images_of_each_class_by_hash(root: Path) -> None:
    as_folder(tree(train=5), root / "cifar10")
    data = load(root, holdout=2)
    assert (data.sizes, data.variant) == ((30, 20), "cifar10, train 50, holdout 2")
    assert data.test_labels.tolist() == [label for label in range(10) for _ in range(2)]
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(3)]
    every = [by_hash(pixels(seed_of("train", name, i)) for i in range(5)) for name in CLASSES]
    np.testing.assert_array_equal(data.test_images.numpy(), np.concatenate([images[:2] for images in every]))
    np.testing.assert_array_equal(data.train_images.numpy(), np.concatenate([images[2:] for images in every]))
    assert data.fingerprint == fingerprint(*(getattr(data, field) for field in FIELDS)) != load(root).fingerprint
    assert load(root, holdout=0).fingerprint == load(root).fingerprint


def test_the_holdout_of_uneven_classes(root: Path) -> None:
    files = tree(train=3)
    del files["train/cat/0000.png"]
    as_folder(files, root / "cifar10")
    data = load(root, holdout=1)
    assert data.test_labels.tolist() == list(range(10))
    assert data.train_labels.bincount().tolist() == [2, 2, 2, 1, 2, 2, 2, 2, 2, 2]
    with pytest.raises(UsageError, match=r"below 2, which is what the smallest class has for training; found 2"):
        load(root, holdout=2)


@pytest.mark.parametrize("holdout", [-1, 5, 2.0, True, "2", None])
def test_a_holdout_that_cannot_be_is_one_clear_error(root: Path, holdout: object) -> None:
    if holdout != -1:  # which needs no data to be refused
        as_folder(tree(train=5), root / "cifar10")
    with pytest.raises(UsageError, match=rf"cifar10: holdout must .*found {re.escape(repr(holdout))}"):
        load(root, holdout=holdout)


def test_a_single_jpeg_makes_the_variant_jpeg_whatever_its_name(root: Path) -> None:
    as_zip(tree() | {"test/ship/0000.png": encoded(pixels(0), "JPEG")}, root / "cifar10.zip")
    assert load(root).variant == "cifar10-jpeg, train 20, test 10"


def test_other_files_are_passed_over(root: Path) -> None:
    extra = ("README.md", "train/cat/Thumbs.db", "__MACOSX/train/cat/._0000.png", "train/cat/._0.png", "val/cat/0.png")
    as_zip(tree() | dict.fromkeys(extra, b"x"), root / "cifar10.zip")
    assert load(root).sizes == (20, 10)


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


# The original batches


@pytest.mark.parametrize("where", ["cifar10", "."])
@pytest.mark.parametrize("packed", [False, True])
def test_the_original_goes_first(root: Path, originals: Originals, where: str, packed: bool) -> None:
    if packed:
        as_tar(originals(), root / where / "cifar-10-python.tar.gz", "w:gz")
    else:
        as_folder(originals(), root / where)
    as_folder(tree("jpg"), root / "cifar10")
    assert Path(datasets.status(root)[1].where).name.startswith("cifar-10-")
    data = load(root)
    assert (data.variant, data.sizes) == ("cifar10, train 50, test 10", (50, 10))
    assert data.train_labels.tolist() == [label for label in range(10) for _ in range(5)]


class _Runs:
    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("packed", [False, True])
def test_a_batch_with_another_checksum_is_never_unpickled(
    root: Path, originals: Originals, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    files = originals() | {"cifar-10-batches-py/data_batch_3": pickle.dumps(_Runs())}
    path = root / "cifar10" / ("cifar-10-python.tar.gz" if packed else "cifar-10-batches-py")
    if packed:
        as_tar(files, path, "w:gz")
    else:
        as_folder(files, path.parent)
    with pytest.raises(DatasetError, match=r"damaged .*the MD5 sums as published; copy or download") as error:
        load(root)
    assert str(error.value).startswith(str(path))
    assert not (root / "pwned").exists()


# Downloads


@pytest.fixture
def published(tmp_path: Path, originals: Originals, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An archive in place of the one on the publisher's server."""
    archive = tmp_path / "server" / "cifar-10-python.tar.gz"
    archive.parent.mkdir()
    as_tar(originals(), archive, "w:gz")
    monkeypatch.setattr(cifar10, "URL", archive.as_uri())
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(archive.read_bytes()).hexdigest())
    return archive


def test_a_download_replaces_what_is_damaged_and_keeps_what_is_whole(root: Path, published: Path) -> None:
    target = root / "cifar10" / "cifar-10-python.tar.gz"
    target.write_bytes(b"half")
    datasets.fetch("cifar10", root)
    assert list((root / "cifar10").iterdir()) == [target]
    assert load(root).sizes == (50, 10)
    published.unlink()
    datasets.fetch("cifar10", root)


@pytest.mark.parametrize("content", [b"something else", None])
def test_a_download_that_fails_is_one_error_and_leaves_nothing(
    root: Path, published: Path, content: bytes | None
) -> None:
    published.write_bytes(content) if content else published.unlink()
    with pytest.raises(DatasetError, match=r"cannot download file:.*; get that file otherwise and put it to"):
        datasets.fetch("cifar10", root)
    assert list((root / "cifar10").iterdir()) == []


def test_a_data_folder_that_cannot_be_written_is_named(tmp_path: Path, published: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DatasetError, match=r"cannot download .*file/data/cifar10.*RESNOTES_DATA"):
        datasets.fetch("cifar10", tmp_path / "file" / "data")


@pytest.mark.usefixtures("published")
def test_load_downloads_what_is_missing_and_says_so(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DatasetError, match=r"found no CIFAR-10; expected cifar-10-batches-py/.*RESNOTES_DATA"):
        load(root)  # RESNOTES_OFFLINE is set
    monkeypatch.setenv("RESNOTES_OFFLINE", "0")
    assert load(root).variant == "cifar10, train 50, test 10"
    assert f"downloading it to {root / 'cifar10'}" in capsys.readouterr().err
