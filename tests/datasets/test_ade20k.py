from __future__ import annotations

import logging
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.pairs import SIZES, ade20k_tree, labels, picture, save

from resnotes import datasets
from resnotes.datasets import Segmentation, ade20k
from resnotes.errors import DatasetError


def load(root: Path) -> Segmentation:
    return datasets.load("ade20k", root)


@pytest.mark.parametrize("place", ["ade20k", "ADEChallengeData2016", "ade20k-sample", "ADE20K/ADEChallengeData2016"])
def test_images_of_any_size_are_read_one_by_one(root: Path, place: str) -> None:
    ade20k_tree(root / place)
    data = load(root)
    assert (len(data.train), len(data.test), data.val) == (3, 3, None)
    assert (data.name, data.variant, data.num_classes, data.ignore_index) == ("ade20k", "ade20k-part", 150, 255)
    assert data.classes[:2] == ("name1", "name2")
    for i, sample in enumerate(data.test):
        assert sample.image.shape == (3, *SIZES[i])
        expected = labels(i, 150, *SIZES[i]).astype(int) - 1
        np.testing.assert_array_equal(sample.label.numpy(), np.where(expected < 0, 255, expected))
        assert (sample.name, sample.scene) == (f"ADE_valid_{i:08d}", f"scene_{i}")
        assert sample.image.dtype == sample.label.dtype == torch.uint8
    assert data.normalization(data.train[0].image[None]).shape == (1, 3, 12, 16)


def test_splits_pickle_and_slice(root: Path) -> None:
    ade20k_tree(root / "ade20k")
    train = pickle.loads(pickle.dumps(load(root).train[1:]))
    assert [sample.name for sample in train] == ["ADE_train_00000001", "ADE_train_00000002"]
    assert [sample.name for sample in train.subset([1])] == ["ADE_train_00000002"]


def test_a_part_without_training_images_says_so(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = ade20k_tree(root / "ade20k", splits=("validation",))
    (folder / "annotations/training").mkdir()
    with caplog.at_level(logging.WARNING):
        data = load(root)
    assert (len(data.train), len(data.test), list(data.train)) == (0, 3, [])
    assert "has no training images" in caplog.text
    [status] = [entry for entry in datasets.status(root) if entry.name == "ade20k"]
    assert status.where == f"{folder}: 0 training and 3 validation images"
    assert (status.found, status.variant) == (True, "ade20k-part")


def test_fingerprint_knows_the_files(root: Path) -> None:
    folder = ade20k_tree(root / "ade20k")
    before = load(root).fingerprint
    assert load(root).fingerprint == before
    save(folder / "images/validation/ADE_valid_00000000.jpg", picture(77))
    assert load(root).fingerprint != before


def test_scenes_and_classes_are_read_without_images(root: Path) -> None:
    folder = ade20k_tree(root / "ade20k", splits=())
    assert ade20k.scene_categories(root)["ADE_train_00000003"] == "scene_3"
    assert ade20k.class_names(root) == tuple(f"name{i}" for i in range(1, 151))
    with pytest.raises(DatasetError, match="found no ADE20K; expected images"):
        load(root)
    for file in folder.iterdir():
        file.unlink()
    with pytest.raises(DatasetError, match=r"found no sceneCategories.txt; .*ADEChallengeData2016.zip"):
        ade20k.scene_categories(root)


def test_scenes_may_be_unknown(root: Path) -> None:
    (ade20k_tree(root / "ade20k") / "sceneCategories.txt").unlink()
    assert load(root).test[0].scene == ""


def _full_2021(root: Path) -> None:
    folder = root / "ADE20K_2021_17_01"
    save(folder / "images/ADE/training/urban/street/ADE_train_00000001.jpg", picture(0))
    (folder / "index_ade20k.pkl").write_bytes(b"")


def _full_2016(root: Path) -> None:
    folder = root / "ADE20K_2016_07_26/images/training/a/abbey"
    save(folder / "ADE_train_00000001.jpg", picture(0))
    save(folder / "ADE_train_00000001_seg.png", picture(1))


@pytest.mark.parametrize("release", [_full_2021, _full_2016])
def test_the_full_release_is_told_apart(root: Path, release: Callable[[Path], None]) -> None:
    release(root)
    with pytest.raises(DatasetError, match=r"is the full release .*expected the edition .*ADEChallengeData2016.zip"):
        load(root)
    [status] = [entry for entry in datasets.status(root) if entry.name == "ade20k"]
    assert not status.found
    assert "full release" in status.where
    ade20k_tree(root / "ade20k-challenge")
    assert len(load(root).test) == 3


LISTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no annotation": (
        lambda f: (f / "annotations/validation/ADE_valid_00000001.png").unlink(),
        r"1 of 3 images, .*ADE_valid_00000001.jpg, have no file",
    ),
    "no annotations": (lambda f: shutil.rmtree(f / "annotations/training"), "found no folder .*annotations/training"),
    "no image": (
        lambda f: (f / "images/validation/ADE_valid_00000001.jpg").unlink(),
        r"1 of 3 label maps, .*ADE_valid_00000001.png, have no file",
    ),
    "empty": (
        lambda f: [path.unlink() for path in f.rglob("ADE_*")],
        "has no images; expected images/{training,validation}",
    ),
    "no classes": (lambda f: (f / "objectInfo150.txt").unlink(), "found no objectInfo150.txt"),
    "cut classes": (
        lambda f: (f / "objectInfo150.txt").write_text("Idx\tRatio\n1\t0.1\t1\t1\twall\n"),
        "objectInfo150.txt is damaged .*1 classes",
    ),
    "no scene": (lambda f: (f / "sceneCategories.txt").write_text("ADE_train_1\n"), "sceneCategories.txt is damaged"),
}


@pytest.mark.parametrize("damage", LISTED)
def test_what_is_wrong_with_the_tree_is_named(root: Path, damage: str) -> None:
    change, message = LISTED[damage]
    change(ade20k_tree(root / "ade20k"))
    with pytest.raises(DatasetError, match=message) as caught:
        load(root)
    assert "\n" not in str(caught.value)


DECODED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "label": (
        lambda image, annotation: save(annotation, np.full((12, 16), 151, np.uint8)),
        "has label 151 at row 0, column 0; expected 0 to 150",
    ),
    "size": (
        lambda image, annotation: save(annotation, labels(0, 150, 16, 12)),
        r"is 16x12, its label map .*00.png 12x16; expected one size",
    ),
    "colours": (lambda image, annotation: save(annotation, picture(0)), "a picture of type RGB; expected one channel"),
    "16 bits": (
        lambda image, annotation: save(annotation, np.zeros((12, 16), np.uint16)),
        "a picture of type I;16; expected one channel of 8 bits",
    ),
    "damaged": (lambda image, annotation: image.write_bytes(image.read_bytes()[:300]), "00.jpg is damaged"),
    "gone": (lambda image, annotation: image.unlink(), "00.jpg is damaged or unreadable .FileNotFoundError"),
}


@pytest.mark.parametrize("damage", DECODED)
def test_what_is_wrong_with_an_image_is_named_when_it_is_read(root: Path, damage: str) -> None:
    change, message = DECODED[damage]
    folder = ade20k_tree(root / "ade20k")
    data = load(root)
    change(
        folder / "images/validation/ADE_valid_00000000.jpg", folder / "annotations/validation/ADE_valid_00000000.png"
    )
    with pytest.raises(DatasetError, match=message):
        data.test[0]
    assert data.test[1].label.shape == SIZES[1]


def test_it_is_missing(root: Path) -> None:
    with pytest.raises(DatasetError, match=r"found no ADE20K; expected images/.*ade20k\*, .*ADEChallengeData2016; get"):
        load(root)
    with pytest.raises(DatasetError, match=r"ade20k cannot be downloaded by us, missing: found no ADE20K; .*; get"):
        datasets.fetch("ade20k", root)


def test_the_real_copy(real_ade20k: Segmentation) -> None:
    assert real_ade20k.classes[:4] == ("wall", "building", "sky", "floor")
    assert len(set(real_ade20k.classes)) == 150
    first = real_ade20k.test[0]
    assert (first.name, first.scene, first.image.shape) == ("ADE_val_00000001", "abbey", (3, 512, 683))
    shown = {real_ade20k.classes[label] for label in first.label.unique().tolist() if label != 255}
    assert {"wall", "building", "sky", "tree"} <= shown
    if real_ade20k.variant == "ade20k-part":
        assert len(real_ade20k.train) < 20_210
