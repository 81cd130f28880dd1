from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from kit.cifar10 import (
    IMAGE,
    as_folder,
    as_tar,
    as_zip,
    decoded_folders,
    encoded,
    load,
    pixels,
    tree,
)

from resnotes import datasets
from resnotes.datasets import cifar10
from resnotes.errors import DatasetError, UsageError


@pytest.fixture
def decodings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names every image that is decoded."""
    seen: list[str] = []

    decode = cifar10._image
    monkeypatch.setattr(cifar10, "_image", lambda file: (seen.append(str(file)), decode(file))[1])
    return seen


def test_images_are_decoded_once(root: Path, cache: Path, decodings: list[str]) -> None:
    as_folder(tree(), root / "cifar10")
    first, second = load(root), load(root)
    assert len(decodings) == 30
    for field in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(first, field), getattr(second, field))
    assert (first.variant, first.fingerprint, first.classes) == (second.variant, second.fingerprint, second.classes)
    second.train_images.zero_()  # which the cache does not notice
    assert load(root).fingerprint == first.fingerprint
    assert len(decodings) == 30
    assert len(decoded_folders(cache)) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def garble(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY" + bytes(range(256)))


@pytest.mark.parametrize("damage", [cut, alter, garble, Path.unlink])
@pytest.mark.parametrize("file", ["train_images.npy", "record.json"])
def test_a_damaged_cache_is_decoded_again(
    root: Path,
    cache: Path,
    decodings: list[str],
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: Callable[[Path], None],
) -> None:
    as_folder(tree(), root / "cifar10")
    fingerprint = load(root).fingerprint
    damaged = cache / decoded_folders(cache)[0] / file
    before = damaged.read_bytes()
    damage(damaged)
    if file == "record.json" and damage is alter:
        damaged.write_bytes(before.replace(b'"fingerprint": "', b'"fingerprint": "0'))
    with caplog.at_level(logging.WARNING, "resnotes"):
        assert load(root).fingerprint == fingerprint
    assert "decoding it again" in caplog.text
    assert len(decodings) == 60
    assert damaged.read_bytes() == before
    assert len(decoded_folders(cache)) == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "added": lambda folder: as_folder({"train/cat/new.png": encoded(pixels(5), "PNG")}, folder),
    "replaced": lambda folder: as_folder({IMAGE: encoded(pixels(5), "PNG")}, folder),
    "removed": lambda folder: (folder / IMAGE).unlink(),
    "renamed": lambda folder: (folder / IMAGE).rename(folder / "train/dog/moved.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_decoded_again(root: Path, cache: Path, change: str) -> None:
    before = load(as_folder(tree(), root / "cifar10").parent).fingerprint
    CHANGES[change](root / "cifar10")
    after = load(root).fingerprint
    assert after != before
    assert load(root).fingerprint == after
    assert len(decoded_folders(cache)) == 1


def test_a_changed_archive_is_decoded_again(root: Path) -> None:
    path = as_zip(tree(), root / "cifar10.zip")
    before = load(root)
    as_zip(tree("jpg"), path)
    after = load(root)
    assert (before.variant, after.variant) == ("cifar10, train 20, test 10", "cifar10-jpeg, train 20, test 10")
    # What was mapped before stays valid.
    assert before.fingerprint == datasets.classification.fingerprint(
        before.train_images, before.train_labels, before.test_images, before.test_labels
    )


def test_what_a_killed_process_left_is_cleared(root: Path, cache: Path) -> None:
    as_folder(tree(), root / "cifar10")
    load(root)
    (folder,) = decoded_folders(cache)
    (cache / folder).rename(cache / f"{folder}.partial")
    load(root)
    assert decoded_folders(cache) == [folder]


def test_two_processes_at_once_decode_once(root: Path, cache: Path) -> None:
    as_tar(tree(train=30), root / "cifar10.tar.xz", "w:xz")
    program = (
        "import sys, logging; logging.basicConfig(level='INFO')\n"
        "from resnotes import datasets; from resnotes.datasets import cifar10\n"
        "original = cifar10._read_tree\n"
        "cifar10._read_tree = lambda *tree: (print('decoded'), original(*tree))[1]\n"
        "print(datasets.load('cifar10', sys.argv[1]).fingerprint)"
    )
    command = [sys.executable, "-c", program, str(root)]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    printed = "".join(out for out, _ in outputs).split()
    assert printed.count("decoded") == 1
    assert len({line for line in printed if line != "decoded"}) == 1
    assert len(decoded_folders(cache)) == 1


def test_a_cache_that_cannot_be_made_is_named(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_folder(tree(), root / "cifar10")
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("RESNOTES_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(UsageError, match=r"file is a file; expected a folder"):
        load(root)


def test_a_full_disk_is_named_and_nothing_is_left(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_folder(tree(), root / "cifar10")

    def full(path: Path, array: np.ndarray) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(DatasetError, match=r"No space left on device.*set RESNOTES_CACHE"):
        load(root)
    assert decoded_folders(cache) == []
