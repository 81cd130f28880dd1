"""Keeps whatever the tests write out of the checkout, and offers the data that only some machines have."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import settings
from kit.cifar10 import Originals, Tree, python2_batch

from resnotes import cli, datasets
from resnotes.datasets import Classification, Segmentation, ade20k, camvid

# How long an example takes says how busy the machine is, and what had been imported before.
settings.register_profile("resnotes", deadline=None)
settings.load_profile("resnotes")


@pytest.fixture(scope="session", autouse=True)
def _written_elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Cache, runs and outputs in a folder of this session; `RESNOTES_TEST_CACHE` keeps the cache."""
    folder = tmp_path_factory.mktemp("written")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RESNOTES_CACHE", os.environ.get("RESNOTES_TEST_CACHE") or str(folder / "cache"))
        patch.setenv("RESNOTES_RUNS", str(folder / "runs"))
        patch.setenv("RESNOTES_OUT", str(folder / "out"))
        # The networks of the tests are small: a second thread would mostly wait, on a busy machine for long.
        patch.setenv("OMP_NUM_THREADS", "1")
        torch.set_num_threads(1)
        patch.setattr("resnotes.training.loop.CHECKPOINT_SECONDS", 0.0)  # after every epoch, however short
        yield


@pytest.fixture(scope="session")
def real_cifar10(_written_elsewhere: None) -> Classification:
    """CIFAR-10 from `RESNOTES_DATA`; decoded once a session."""
    root = os.environ.get("RESNOTES_DATA")
    if not root or not (Path(root) / "cifar10").is_dir():
        pytest.skip("RESNOTES_DATA names no folder with a copy of CIFAR-10 in cifar10/")
    return datasets.load("cifar10")


@pytest.fixture(scope="session")
def real_camvid(_written_elsewhere: None) -> Segmentation:
    """CamVid from `RESNOTES_DATA` at 120 x 160; decoded once a session."""
    root = os.environ.get("RESNOTES_DATA")
    if not root or not camvid.status(Path(root)).found:
        pytest.skip("RESNOTES_DATA names no folder with a copy of CamVid in camvid/")
    return datasets.load("camvid", size=(120, 160))


@pytest.fixture(scope="session")
def real_ade20k() -> Segmentation:
    """ADE20K, or a part of it, from `RESNOTES_DATA`."""
    root = os.environ.get("RESNOTES_DATA")
    if not root or not ade20k.status(Path(root)).found:
        pytest.skip("RESNOTES_DATA names no folder with a copy of ADE20K in ade20k*/")
    return datasets.load("ade20k")


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
    monkeypatch.delenv("RESNOTES_CIFAR10_MIRRORS", raising=False)
    (tmp_path / "data" / "cifar10").mkdir(parents=True)
    return tmp_path / "data"


@pytest.fixture
def originals(monkeypatch: pytest.MonkeyPatch) -> Originals:
    """Makes the six batch files, ten images each, and has torchvision publish their checksums."""

    def make(**replaced: bytes) -> Tree:
        names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
        files = {}
        for seed, name in enumerate(names):
            images = np.random.default_rng(seed).integers(0, 256, (10, 3072), dtype=np.uint8)
            files[name] = replaced.get(name) or python2_batch(images, [(seed + i) % 10 for i in range(10)])
        listed = [[name, hashlib.md5(content).hexdigest()] for name, content in files.items()]
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "train_list", listed[:5])
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "test_list", listed[5:])
        return {f"cifar-10-batches-py/{name}": content for name, content in files.items()} | {
            "cifar-10-batches-py/readme.html": b"<html>"
        }

    return make
