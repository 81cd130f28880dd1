"""Networks that others trained, in our classes: known errors on real images, files, mirrors, curves."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from kit.cifar10 import as_folder
from kit.networks import randomise_bn
from torch import Tensor, nn

from resnotes import datasets, models, paths
from resnotes.datasets import Classification, cifar10
from resnotes.errors import DatasetError, UsageError
from resnotes.models import Published
from resnotes.models.published_networks import _address, _entries, fetch, is_at_hand, names, status
from resnotes.training.classification import evaluate

DEPTHS = (20, 32, 44, 56)


def real(name: str) -> Published:
    """The published network, where its file is at hand."""
    if not os.environ.get("RESNOTES_DATA") or not is_at_hand(name):
        pytest.skip(f"RESNOTES_DATA names no folder with the weights of {name}")
    return models.published(name)


def error(network: Published, images: Tensor, labels: Tensor) -> float:
    return evaluate(network.network, images, labels, network.normalization).error


# Errors in percent that were measured apart from this code: on the 5,000 images that the author kept out, on which the
# author's own logs have the same, and on the first 1,000 test images.
KNOWN = {
    ("plain", 20): (8.84, 8.9),
    ("plain", 32): (10.18, 9.7),
    ("plain", 44): (11.58, 12.1),
    ("plain", 56): (11.70, 11.6),
    ("resnet", 20): (9.14, 6.7),
    ("resnet", 32): (8.32, 8.6),
    ("resnet", 44): (8.22, 7.6),
    ("resnet", 56): (6.68, 6.3),
}


@pytest.mark.parametrize(("family", "depth"), KNOWN)
def test_baeks_networks_reach_the_known_errors(family: str, depth: int, real_cifar10: Classification) -> None:
    found = real(f"wooyeolBaek/{family}-{depth}")
    assert found.network.name == f"{family}-{depth}"
    assert not found.network.training
    heldout, test = KNOWN[family, depth]
    images, labels = found.heldout(real_cifar10)
    if depth in (20, 56):  # it takes half a minute for all
        assert len(labels) == 5000
        assert error(found, images, labels) == pytest.approx(heldout, abs=0.05)
    if len(real_cifar10.test_labels) == 1000:
        assert error(found, real_cifar10.test_images, real_cifar10.test_labels) == pytest.approx(test, abs=0.05)


@pytest.mark.parametrize(("depth", "known"), [(20, 8.5), (56, 7.4)])
def test_akamasters_networks_reach_the_known_errors(depth: int, known: float, real_cifar10: Classification) -> None:
    found = real(f"akamaster/resnet-{depth}")
    images, labels = found.heldout(real_cifar10)
    assert torch.equal(images, real_cifar10.test_images)
    assert len(found.trained_on(real_cifar10)[1]) == 50_000
    if len(labels) != 1000:
        pytest.skip("the known errors are those of the first 1,000 test images")
    assert error(found, images, labels) == pytest.approx(known, abs=0.05)


def test_a_published_network_has_trained_on_its_training_images(real_cifar10: Classification) -> None:
    """Else the mean, or the split, would be another's: clean errors far below those on images it has not seen."""
    found = real("wooyeolBaek/plain-20")
    images, labels = found.trained_on(real_cifar10)
    assert len(labels) == 45_000
    assert error(found, images[::20], labels[::20]) < 1
    torch.testing.assert_close(found.normalization.mean.double(), images.double().mean(0), rtol=0, atol=1e-4)


def test_a_sample_is_spaced_evenly_over_the_classes_and_mixed(real_cifar10: Classification) -> None:
    found = real("wooyeolBaek/resnet-20")
    images, labels = found.sample(real_cifar10, 50, held=True)
    every, all_labels = found.heldout(real_cifar10)
    expected = found.normalization(every[::100])
    places = [next(i for i, other in enumerate(expected) if torch.equal(image, other)) for image in images]
    assert sorted(places) == list(range(50))
    assert labels.tolist() == all_labels[::100][places].tolist()
    assert all(len(batch.unique()) > 4 for batch in labels.split(16)[:3]), "a batch is no class alone"


def test_heldout_images_are_the_same_with_and_without_a_holdout(real_cifar10: Classification) -> None:
    found = real("wooyeolBaek/resnet-20")
    images, labels = found.heldout(real_cifar10)
    split = datasets.load("cifar10", holdout=500)
    for divided in (found.heldout, found.trained_on):
        for ours, theirs in zip(divided(real_cifar10), divided(split), strict=True):
            assert torch.equal(ours, theirs)
    assert labels.bincount().tolist() == [500] * 10  # the author's split is stratified
    listed = np.load(Path(models.__file__).with_name("wooyeolBaek-validation.npy"))
    assert sorted(digest[:16] for digest in cifar10.hashes(images.numpy())) == [each.tobytes().hex() for each in listed]


# Files


def test_the_networks_that_there_are() -> None:
    expected = [f"wooyeolBaek/{family}-{depth}" for family in ("plain", "resnet") for depth in DEPTHS]
    assert names() == [*expected, *(f"akamaster/resnet-{depth}" for depth in (*DEPTHS, 110))]
    with pytest.raises(UsageError, match="unknown published network 'plain-56'; allowed: wooyeolBaek/plain-20"):
        models.published("plain-56")


@pytest.fixture
def folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights; nothing is downloaded from GitHub."""
    monkeypatch.setenv("RESNOTES_DATA", str(root))
    monkeypatch.setattr("resnotes.models.published_networks.UPSTREAM", (root / "nowhere").as_uri())
    (root / "weights").mkdir()
    return root / "weights"


FILES = {"wooyeolBaek/plain-20": "baek-plainnet20.pth", "akamaster/resnet-20": "resnet20-12fca82f.th"}
PLAIN = FILES["wooyeolBaek/plain-20"]


@pytest.fixture
def upstream() -> nn.Module:
    """A plain-20 as its author wrote it, with biases before BN."""
    torch.manual_seed(0)
    channels = [3, *[16] * 7, *[32] * 6, *[64] * 6]
    layers: list[nn.Module] = []
    for c_in, c_out in pairwise(channels):
        stride = 2 if c_in not in (3, c_out) else 1
        layers += [nn.Conv2d(c_in, c_out, 3, stride, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
    network = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    randomise_bn(network)
    return network.eval()


@pytest.fixture
def listed(upstream: nn.Module, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two networks in place of the real ones, by name; their files are as upstream's."""
    contents: dict[str, Any] = {
        "wooyeolBaek/plain-20": upstream.state_dict(),
        "akamaster/resnet-20": {"state_dict": models.build("resnet-20").state_dict(), "best_prec1": 91.0},
    }
    files, entries = {}, {}
    for name, content in contents.items():
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files[name] = buffer.getvalue()
        digest = hashlib.sha256(files[name]).hexdigest()[: 64 if name.startswith("wooyeolBaek") else 8]
        entries[name] = {**_entries()[name], "sha256": digest}
    monkeypatch.setattr("resnotes.models.published_networks._entries", lambda: entries)
    return files


@torch.no_grad()
def test_biases_before_bn_are_folded_into_it(folder: Path, listed: dict[str, bytes], upstream: nn.Module) -> None:
    (folder / PLAIN).write_bytes(listed["wooyeolBaek/plain-20"])
    random_numbers = torch.get_rng_state()
    found = models.published("wooyeolBaek/plain-20")
    assert torch.equal(torch.get_rng_state(), random_numbers), "none is drawn"
    assert (found.network.name, found.network.training) == ("plain-20", False)
    assert found.sha256 == hashlib.sha256(listed["wooyeolBaek/plain-20"]).hexdigest()
    assert found.source.startswith("wooyeolBaek/deep-residual-learning at a9333e0a, trained_models/plainnet20_A")
    assert found.training == "64,000 iterations on 45,000 images"
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(found.network(images), upstream(images), rtol=1e-4, atol=1e-4)


def test_a_missing_file_is_one_clear_error(folder: Path, listed: dict[str, bytes]) -> None:
    with pytest.raises(DatasetError, match=rf"cannot read the weights {folder / PLAIN} .*data fetch published"):
        models.published("wooyeolBaek/plain-20")


@pytest.mark.parametrize("change", ["cut", "flipped", "empty"])
def test_a_file_that_is_not_the_published_one_is_refused(folder: Path, listed: dict[str, bytes], change: str) -> None:
    content = listed["wooyeolBaek/plain-20"]
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    wrong = {"cut": content[:middle], "flipped": flipped, "empty": b""}[change]
    (folder / PLAIN).write_bytes(wrong)
    expected = hashlib.sha256(content).hexdigest()
    with pytest.raises(DatasetError, match=rf"{len(wrong):,} bytes .*expected {expected}; remove it, and get it with"):
        models.published("wooyeolBaek/plain-20")


def blank(train: int, test: int, variant: str) -> Classification:
    """So many black images."""
    images = [torch.zeros(count, 3, 32, 32, dtype=torch.uint8) for count in (train, test)]
    labels = [torch.zeros(count, dtype=torch.int64) for count in (train, test)]
    return Classification(images[0], labels[0], images[1], labels[1], cifar10.CLASSES, variant, "none")


REFUSED = [
    blank(20, 10, "cifar10, train 20, test 10"),
    blank(50_000, 10, "cifar10-jpeg, test 10"),
    blank(40_000, 10_000, "cifar10, train 40000"),  # with the official test images as many as there should be
    blank(45_000, 5000, "cifar10, holdout 500"),  # other images than one author's; the other had all for training
]


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: data.variant)
@pytest.mark.parametrize("name", FILES)
def test_images_that_it_may_not_be_measured_on_are_refused(
    folder: Path, listed: dict[str, bytes], name: str, data: Classification
) -> None:
    (folder / FILES[name]).write_bytes(listed[name])
    found = models.published(name)
    for part in (found.heldout, found.trained_on):
        with pytest.raises(DatasetError, match=rf"expected lossless CIFAR-10 with all .*found {data.variant}, with"):
            part(data)


# Downloads


@pytest.fixture
def server(listed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files as GitHub lays them out."""
    as_folder({_address(_entries()[name]): content for name, content in listed.items()}, tmp_path / "server")
    monkeypatch.setattr("resnotes.models.published_networks.UPSTREAM", (tmp_path / "server").as_uri())
    return tmp_path / "server"


def test_networks_that_are_not_there_or_damaged_are_fetched(
    folder: Path, listed: dict[str, bytes], server: Path
) -> None:
    (folder / PLAIN).write_bytes(b"half")
    fetch()
    assert {name: (folder / file).read_bytes() for name, file in FILES.items()} == listed
    shutil.rmtree(server)
    fetch()  # all are there: nobody is asked


def test_what_could_not_be_fetched_is_named_and_the_rest_is_there(folder: Path, server: Path) -> None:
    shutil.rmtree(server / "wooyeolBaek")
    with pytest.raises(DatasetError, match=rf"1 of 2 networks are missing: cannot download .*put it to .*{PLAIN}"):
        fetch()
    assert [path.name for path in folder.iterdir()] == ["resnet20-12fca82f.th"]


def test_status_names_what_is_missing(folder: Path, listed: dict[str, bytes]) -> None:
    assert not status().found
    (folder / PLAIN).write_bytes(listed["wooyeolBaek/plain-20"])
    assert status().found
    assert status().where.startswith(f"1 of 2 networks in {folder}; missing or damaged: akamaster/resnet-20; get")


# What is kept of them


def test_curves_end_where_their_authors_say() -> None:
    """Their logs' last lines: 100 minus the running training accuracy."""
    curves = pd.read_csv(paths.published_root() / "curves.csv")
    baek = curves[curves.source.str.startswith("wooyeolBaek")]
    last = baek.sort_values("epoch").groupby("network").train_error.last()
    known = {"plain-20": 1.21, "plain-32": 1.54, "plain-44": 2.79, "plain-56": 4.36, "resnet-56": 0.11}
    assert {name: last[name] for name in known} == pytest.approx(known, abs=0.005)
    assert (baek.groupby("network").iteration.max() >= 63_900).all()


def test_what_was_measured_on_them_is_kept_with_their_checksums() -> None:
    errors = pd.read_csv(paths.published_root() / "errors.csv", index_col="network")
    for (family, depth), (heldout, _) in KNOWN.items():
        row = errors.loc[f"wooyeolBaek/{family}-{depth}"]
        assert row["held-out error"] == pytest.approx(heldout, abs=0.05)
        assert (row["training images"], row["held-out images"]) == (45_000, 5000)
        assert row["sha256"] == _entries()[f"wooyeolBaek/{family}-{depth}"]["sha256"]
    assert errors.commit.str.fullmatch("[0-9a-f]{40}").all()
    assert not errors.dirty.any()
