"""Small images with label maps for the tests."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def labels(seed: int, highest: int, height: int = 12, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, highest + 1, (height, width), dtype=np.uint8)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def png(
    width: int, height: int, rows: bytes, *, bits: int = 8, colours: int = 2, more: dict[bytes, bytes] | None = None
) -> bytes:
    """A PNG by the standard, whatever its rows: 8 bits of RGB, or 0 for grey; with more chunks after the header."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = {b"IHDR": header, **(more or {}), b"IDAT": zlib.compress(rows), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks.items()
    )


SIZES = {0: (12, 16), 1: (20, 9), 2: (8, 8)}


def ade20k_tree(folder: Path, splits: tuple[str, ...] = ("training", "validation")) -> Path:
    for split in splits:
        for i, (height, width) in SIZES.items():
            name = f"ADE_{split[:5]}_{i:08d}"
            save(folder / "images" / split / f"{name}.jpg", picture(i, height, width))
            save(folder / "annotations" / split / f"{name}.png", labels(i, 150, height, width))
    folder.mkdir(parents=True, exist_ok=True)
    rows = [f"{i} \t0.0{i:03d}\t{i}\t{2 * i}\tname{i}, synonym {i} " for i in range(1, 151)]
    (folder / "objectInfo150.txt").write_text("\n".join(["Idx\tRatio\tTrain\tVal\tName", *rows]) + "\n")
    scenes = [f"ADE_{split[:5]}_{i:08d} scene_{i}" for split in ("training", "validation") for i in range(9)]
    (folder / "sceneCategories.txt").write_text("\n".join(scenes) + "\n")
    return folder


COUNTS = {"train": 3, "val": 2, "test": 2}


def camvid_tree(folder: Path, suffix: str = "png") -> Path:
    for split, count in COUNTS.items():
        for i in range(count):
            save(folder / split / f"{split}{i}.{suffix}", picture(hash_of(split, i)))
            save(folder / f"{split}annot" / f"{split}{i}.png", labels(hash_of(split, i), 11))
    return folder


def hash_of(split: str, i: int) -> int:
    return 10 * list(COUNTS).index(split) + i
