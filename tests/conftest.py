"""Keeps whatever the tests write out of the checkout, and offers the data that only some machines have."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import settings
from kit.cifar10 import CLASSES, Originals, Tree, batch

from resnotes import cli, datasets
from resnotes.datasets import Classification, Segmentation

# How long an example takes says how busy the machine is, and what had been imported before.
settings.register_profile("resnotes", deadline=None)
settings.load_profile("resnotes")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all processes have which test side by side."""
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


@pytest.fixture(scope="session", autouse=True)
def _written_elsewhere(tmp_path_factory: pytest.TempPathFactory, shared: Path) -> Iterator[None]:
    """Cache, runs and outputs in a folder of this session; `RESNOTES_TEST_CACHE` keeps the cache."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNOTES_CACHE", os.environ.get("RESNOTES_TEST_CACHE") or str(shared / "cache"))
        patch.setenv("RESNOTES_RUNS", str(folder / "runs"))
        patch.setenv("RESNOTES_OUT", str(folder / "out"))
        # The networks of the tests are small: a second thread would mostly wait, on a busy machine for long.
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        patch.setattr("resnotes.training.loop.CHECKPOINT_SECONDS", 0.0)  # after every epoch, however short
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """Every test draws the same numbers, whichever were before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def real_cifar10(_written_elsewhere: None) -> Classification:
    """CIFAR-10 from `RESNOTES_DATA`; decoded once a session."""
    _skip_without("cifar10")
    return datasets.load("cifar10")


@pytest.fixture(scope="session")
def real_camvid(_written_elsewhere: None) -> Segmentation:
    """CamVid from `RESNOTES_DATA` at 120 x 160; decoded once a session."""
    _skip_without("camvid")
    return datasets.load("camvid", size=(120, 160))


@pytest.fixture(scope="session")
def real_ade20k() -> Segmentation:
    """ADE20K, or a part of it, from `RESNOTES_DATA`."""
    _skip_without("ade20k")
    return datasets.load("ade20k")


def _skip_without(name: str) -> None:
    """Skips what needs a data set that the folder `RESNOTES_DATA` does not hold."""
    at_hand = {each.name for each in datasets.status() if each.found}
    if "RESNOTES_DATA" not in os.environ or name not in at_hand:
        pytest.skip(f"RESNOTES_DATA names no folder with a copy of {name}")


@pytest.fixture
def resnotes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs the command line; returns exit status, stdout and stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["resnotes", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for this test alone."""
    monkeypatch.setenv("RESNOTES_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for data sets, with a cache of its own and without downloads."""
    monkeypatch.setenv("RESNOTES_OFFLINE", "1")
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> Originals:
    """Makes the files of the original, with ten images a batch, and has torchvision publish their checksums."""

    def make(**replaced: bytes) -> Tree:
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        files = {name: replaced.get(name) or batch(seed) for seed, name in enumerate(names)}
        files["batches.meta"] = pickle.dumps({"label_names": list(CLASSES)}, 2)
        *listed, meta = ([name, hashlib.md5(content).hexdigest()] for name, content in files.items())
        published = torchvision.datasets.CIFAR10
        monkeypatch.setattr(published, "train_list", listed[:5])
        monkeypatch.setattr(published, "test_list", listed[5:])
        monkeypatch.setattr(published, "meta", {"filename": meta[0], "key": "label_names", "md5": meta[1]})
        return {f"{published.base_folder}/{name}": content for name, content in files.items()}

    return make
