"""Damaged, cut and hostile trees and archives of CIFAR-10: one error that names the file, and nothing left behind."""

from __future__ import annotations

import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.cifar10 import (
    IMAGE,
    Tree,
    as_tar,
    as_zip,
    decoded_folders,
    encoded,
    fuzzed,
    load,
    pixels,
    tree,
)

from resnotes.errors import DatasetError


def packed(files: Tree, path: Path) -> Path:
    kind = path.name.partition(".")[2]
    return as_zip(files, path) if kind == "zip" else as_tar(files, path, "w:" + kind.partition(".")[2])


def claims_to_be(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge image."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(100))), (b"IEND", b""))
    body = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


DAMAGES: dict[str, tuple[Callable[[Tree], Tree], str]] = {
    "wrong size": (lambda f: f | {IMAGE: encoded(pixels(0, (16, 33)), "PNG")}, f"{IMAGE} is 16x33; expected .*32x32"),
    "alpha": (lambda f: f | {IMAGE: encoded(np.zeros((32, 32, 4), np.uint8), "PNG")}, f"{IMAGE} has transparent"),
    "empty file": (lambda f: f | {IMAGE: b""}, f"{IMAGE} is damaged .*expected a complete 32x32"),
    "cut image": (lambda f: f | {IMAGE: f[IMAGE][:900]}, f"{IMAGE} is damaged .*copy or download it again"),
    "gif": (lambda f: f | {IMAGE: encoded(pixels(0), "GIF")}, f"{IMAGE} is damaged"),
    "bomb": (lambda f: f | {IMAGE: claims_to_be(9000, 9000)}, "is 9000x9000; expected"),
    "big bomb": (lambda f: f | {IMAGE: claims_to_be(2**31 - 1, 2**31 - 1)}, "is damaged .*DecompressionBomb"),
    "large file": (lambda f: f | {"x": bytes(2**26 + 1)}, "'x' has 67108865 bytes; expected at most 67108864"),
    "no images": (lambda f: {"README": b""}, "no images in train/airplane, .*train/truck; expected"),
    "missing class": (lambda f: {k: v for k, v in f.items() if "train/frog" not in k}, "no images in train/frog;"),
    "missing split": (lambda f: {k: v for k, v in f.items() if "test" not in k}, "no images in test/airplane"),
    "unknown class": (lambda f: f | {"train/lion/1.png": f[IMAGE]}, "train/lion/1.png' is out of place; .*airplane"),
    "no class": (lambda f: f | {"train/1.png": f[IMAGE]}, "train/1.png' is out of place"),
    "too deep": (lambda f: f | {"train/cat/more/1.png": f[IMAGE]}, "is out of place"),
    "dots": (lambda f: f | {"train/cat/../../../x.png": f[IMAGE]}, r"'train/cat/../../../x.png' points outside"),
    "absolute": (lambda f: f | {"/etc/train/cat/1.png": f[IMAGE]}, "points outside"),
    "windows": (lambda f: f | {"..\\train\\cat\\1.png": f[IMAGE]}, "points outside"),
    "drive": (lambda f: f | {"C:\\train\\cat\\1.png": f[IMAGE]}, "points outside"),
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


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(root: Path, kind: bytes) -> None:
    member = tarfile.TarInfo("train/cat/link.png")
    member.type, member.linkname = kind, "/etc/passwd"
    as_tar(tree(), root / "cifar10.tar", extra=(member,))
    with pytest.raises(DatasetError, match=r"'train/cat/link.png' is a link or a device"):
        load(root)


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.bz2", "tar.xz"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.9, 0.999])
def test_truncated_archive(root: Path, cache: Path, suffix: str, kept: float) -> None:
    path = packed(tree(), root / f"cifar10.{suffix}")
    whole = path.read_bytes()
    if suffix == "tar":  # its last part is padding that nobody misses
        whole = whole.rstrip(b"\0")
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DatasetError, match=r"cifar10\..* is damaged .*copy or download it again"):
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


def loads_or_reports(root: Path, cache: Path) -> None:
    try:
        data = load(root)
    except DatasetError as error:
        assert "\n" not in str(error)
        assert decoded_folders(cache) == []
    else:
        # Damage that left the pixels alone, or changed only them: the result must be whole.
        assert len(data.train_images) == len(data.train_labels) >= 10
        for folder in decoded_folders(cache):
            for file in (cache / folder).iterdir():
                file.unlink()
            (cache / folder).rmdir()


@fuzzed
@given(
    content=st.binary(max_size=2000), magic=st.sampled_from([b"", b"PK\3\4", b"\x1f\x8b\x08", b"BZh9", b"\xfd7zXZ\0"])
)
def test_arbitrary_bytes_as_an_archive(root: Path, cache: Path, content: bytes, magic: bytes) -> None:
    (root / "cifar10.tar.xz").write_bytes(magic + content)
    with pytest.raises(DatasetError):
        load(root)
    assert decoded_folders(cache) == []


@pytest.mark.parametrize("suffix", ["zip", "tar", "tar.gz", "tar.xz"])
@fuzzed
@given(data=st.data())
def test_flipped_and_missing_bytes(root: Path, cache: Path, suffix: str, data: st.DataObject) -> None:
    path = packed(tree("jpg", 1), root / f"cifar10.{suffix}")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    loads_or_reports(root, cache)


@fuzzed
@given(where=st.integers(0, 10**6), bits=st.integers(1, 255), kind=st.sampled_from(["jpg", "png"]))
def test_flipped_bytes_in_an_image(root: Path, cache: Path, where: int, bits: int, kind: str) -> None:
    files = tree(kind, 1)
    name = f"test/deer/0000.{kind}"
    content = bytearray(files[name])
    content[where % len(content)] ^= bits
    as_tar(files | {name: bytes(content)}, root / "cifar10.tar")
    loads_or_reports(root, cache)
