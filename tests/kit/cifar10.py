"""Small CIFAR-10 trees and archives for the tests."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from PIL import Image

from resnotes import datasets
from resnotes.datasets import Classification
from resnotes.datasets.cifar10 import CLASSES

Tree = dict[str, bytes]
Originals = Callable[..., Tree]

# One image that is in every tree of two and more images a class.
IMAGE = "train/cat/0001.png"

fuzzed = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)


def pixels(seed: int, size: tuple[int, int] = (32, 32)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)


def encoded(image: np.ndarray, kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def tree(kind: str = "png", train: int = 2, test: int = 1) -> Tree:
    """Path and content of every file of a small image tree; image `i` of a class holds noise of its own."""
    return {
        f"{split}/{name}/{i:04d}.{kind}": encoded(pixels(seed_of(split, name, i)), "JPEG" if kind == "jpg" else "PNG")
        for split, count in (("train", train), ("test", test))
        for name in CLASSES
        for i in range(count)
    }


def seed_of(split: str, name: str, i: int) -> int:
    return zlib.crc32(f"{split}/{name}/{i}".encode())


def as_folder(files: Tree, folder: Path) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def as_zip(files: Tree, path: Path, top: str = "") -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(top + name, content)
    return path


def as_tar(files: Tree, path: Path, mode: str = "w", top: str = "", extra: tuple[tarfile.TarInfo, ...] = ()) -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in files.items():
            member = tarfile.TarInfo(top + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for member in extra:
            archive.addfile(member)
    return path


def batch(seed: int) -> bytes:
    """Ten images of noise, one of each class, in the form of an original batch."""
    images = np.random.default_rng(seed).integers(0, 256, (10, 3072), dtype=np.uint8)
    return pickle.dumps({"data": images, "labels": [(seed + i) % 10 for i in range(10)]}, 2)


def load(root: Path, **options: Any) -> Classification:
    return datasets.load("cifar10", root, **options)


def by_hash(images: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Images `[32, 32, 3]` of one class in the canonical order, as `[3, 32, 32]`."""
    turned = [np.ascontiguousarray(image.transpose(2, 0, 1)) for image in images]
    return sorted(turned, key=lambda image: hashlib.sha256(image.tobytes()).hexdigest())


def decoded_folders(cache: Path) -> list[str]:
    """What lies in the cache besides lock files."""
    return sorted(p.name for p in cache.iterdir() if p.suffix != ".lock") if cache.exists() else []
