"""Damaged, cut and hostile trees and archives of CIFAR-10: one error that names the file, and nothing left behind."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from kit.cifar10 import (
    IMAGE,
    Tree,
    as_tar,
    as_zip,
    decoded_folders,
    encoded,
    load,
    pixels,
    tree,
)
from kit.pairs import png

from resnotes.errors import DatasetError


def packed(files: Tree, path: Path) -> Path:
    kind = path.name.partition(".")[2]
    return as_zip(files, path) if kind == "zip" else as_tar(files, path, "w:" + kind.partition(".")[2])


def without(part: str, files: Tree) -> Tree:
    return {name: content for name, content in files.items() if part not in name}


DAMAGES: dict[str, tuple[Callable[[Tree], Tree], str]] = {
    "wrong size": (lambda f: f | {IMAGE: encoded(pixels(0, (16, 33)), "PNG")}, f"{IMAGE} is 16x33; expected .*32x32"),
    "alpha": (lambda f: f | {IMAGE: encoded(np.zeros((32, 32, 4), np.uint8), "PNG")}, f"{IMAGE} has transparent"),
    "empty file": (lambda f: f | {IMAGE: b""}, f"{IMAGE} is empty; expected a complete 32x32"),
    "cut image": (lambda f: f | {IMAGE: f[IMAGE][:900]}, f"{IMAGE} is damaged .*copy or download it again"),
    "gif": (lambda f: f | {IMAGE: encoded(pixels(0), "GIF")}, f"{IMAGE} is a GIF image; expected"),
    "bomb": (lambda f: f | {IMAGE: png(9000, 9000, bytes(100))}, "is 9000x9000; expected"),
    "big bomb": (lambda f: f | {IMAGE: png(2**31 - 1, 2**31 - 1, bytes(100))}, "is damaged .*DecompressionBomb"),
    "no images": (
        lambda f: {"README": b""},
        "no CIFAR-10 in .*, but 1 file .1 without suffix., the first is README; ",
    ),
    "missing class": (
        lambda f: without("train/frog", f),
        "train has images in the folders airplane, .*; expected .*, frog, .*; missing: frog;",
    ),
    "missing split": (lambda f: without("test", f), "test has no images in folders of classes, beside train; expected"),
    "empty class": (
        lambda f: without("train/frog", f) | {"train/frog/x": b""},
        r"missing: frog \(frog: a file.* or a folder without",
    ),
    "unknown class": (lambda f: f | {"train/lion/1.png": f[IMAGE]}, "train has .*, lion, .*; missing: none; rename"),
    "link as text": (
        lambda f: without("train/frog", f) | {"train/frog": b"../frogs"},
        r"missing: frog \(frog: a file, a link that leads nowhere",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("suffix", ["zip", "tar.gz"])
def test_what_is_wrong_with_a_tree_is_named(root: Path, cache: Path, damage: str, suffix: str) -> None:
    change, message = DAMAGES[damage]
    path = packed(change(tree()), root / f"cifar10.{suffix}")
    with pytest.raises(DatasetError, match=message) as caught:
        load(root)
    assert str(path) in str(caught.value)
    assert str(cache) not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert decoded_folders(cache) == []
    assert sorted(p.name for p in root.rglob("*")) == ["cifar10", path.name]


def test_no_device_is_made(root: Path) -> None:
    member = tarfile.TarInfo("train/cat/device.png")
    member.type = tarfile.CHRTYPE
    as_tar(tree(), root / "cifar10.tar", extra=(member,))
    with pytest.raises(DatasetError, match=r"cifar10.tar is damaged .*SpecialFileError"):
        load(root)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.999])
def test_truncated_archive(root: Path, cache: Path, suffix: str, kept: float) -> None:
    path = packed(tree(), root / f"cifar10.{suffix}")
    whole = path.read_bytes()
    if suffix == "tar":  # its last part is padding that nobody misses
        whole = whole.rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DatasetError, match=r"cifar10\..* is (damaged .*|empty; .*)copy or download it again"):
        load(root)
    assert decoded_folders(cache) == []


def cut_before(content: bytearray, last: int) -> None:
    del content[last:]  # all but the last member is whole; every class is there but for one image


def damage_header(content: bytearray, last: int) -> None:
    content[last + 1] ^= 1


def hole_of_zeros(content: bytearray, last: int) -> None:
    content[last : last + 1024] = bytes(1024)


@pytest.mark.parametrize("change", [cut_before, damage_header, hole_of_zeros])
def test_what_looks_like_the_end_of_a_tar_is_not_taken_for_it(
    root: Path, change: Callable[[bytearray, int], None]
) -> None:
    path = as_tar(tree(train=3), root / "cifar10.tar")
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        change(content, archive.getmembers()[-1].offset)
    path.write_bytes(content)
    with pytest.raises(DatasetError, match=r"is damaged .*does not end as an archive does"):
        load(root)
