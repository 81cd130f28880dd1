"""ADE20K as in the MIT scene parsing benchmark: 150 classes, 20,210 images to train and 2,000 to validate on.

Read from the first folder in `root`, or `ADEChallengeData2016` in one, or `root`, that is laid out as that archive is:
`images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png` with labels 1..150, and 0 where no one
named it, `objectInfo150.txt` and `sceneCategories.txt`. A part of the images will do, if each has its annotation.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch

from resnotes.datasets.archives import damage_reported
from resnotes.datasets.classification import IMAGENET
from resnotes.datasets.layouts import names_in, refusal, visible
from resnotes.datasets.pairs import Pair, pairs, read
from resnotes.datasets.segmentation import IGNORED, Lazy, Sample, Segmentation
from resnotes.errors import DatasetError

_CLASSES = 150
_PARTS = ("images", "annotations", "objectInfo150.txt", "sceneCategories.txt")
_NAMED = re.compile("ade[-_ ]?20k|adechallenge|scene[-_ ]?pars", re.IGNORECASE)
_COUNTS = {"training": 20_210, "validation": 2_000}


def load(root: Path) -> Segmentation:
    """Both splits, decoded image by image as they are asked for; `test` is the benchmark's validation split.

    The fingerprint is one of names and sizes of the files. Where there are fewer images than published the variant is
    `ade20k-part`; either split may then be empty.

    Raises:
        DatasetError: the data is missing, incomplete or another edition. What is wrong inside of an image is raised
            when that is decoded.
    """
    folder, scenes = _folder(root), scene_categories(root)
    listed = {split: _listed(folder, split) for split in _COUNTS}
    if not any(listed.values()):
        raise DatasetError(f"{folder} has no images; expected some in images/{{{','.join(_COUNTS)}}}; copy it again")
    train, test = (
        Lazy(tuple(pair.image.name for pair in found), _Reader(folder, split, scenes))
        for split, found in listed.items()
    )
    whole = all(len(found) == _COUNTS[split] for split, found in listed.items())
    return Segmentation(
        name="ade20k",
        variant="ade20k" if whole else "ade20k-part",
        classes=class_names(root),
        ignore_index=IGNORED,
        train=train,
        test=test,
        val=None,
        normalization=IMAGENET,  # as for pretrained weights: that of 20,210 images would take minutes to count
        fingerprint=_fingerprint(pair for found in listed.values() for pair in found),
    )


def find(root: Path) -> Path:
    """The folder that `load` reads, which opens no image.

    Raises:
        DatasetError: as `load`.
    """
    load(root)
    return _folder(root)


def _folder(root: Path) -> Path:
    """The folder in the benchmark's layout, or one error that says what is there instead."""
    with damage_reported(root, "a readable folder"):
        inside = visible(root)
    for place in (*(place for path in inside for place in (path, path / "ADEChallengeData2016")), root):
        if all((place / part).exists() for part in _PARTS):
            return place
    expected = f"expected {', '.join(_PARTS)} in a folder of {root}"
    get = "get ADEChallengeData2016.zip from data.csail.mit.edu/places/ADEchallenge, unpack it"
    for place in (*inside, root):
        if _NAMED.search(place.name) and (names := names_in(place)):
            raise refusal("whole ADE20K", place, names, f"{expected}; {get}")
    raise DatasetError(
        f"found no ADE20K, in the edition of the scene parsing benchmark; {expected}; {get}, and set RESNOTES_DATA to"
        " the folder that has it"
    )


def class_names(root: Path) -> tuple[str, ...]:
    """The 150 classes in label order, each by its usual name, as `objectInfo150.txt` lists them.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = _folder(root) / "objectInfo150.txt"
    expected = "a heading and the lines 1 to 150: index, pixel ratio, training and validation images, names, by tabs"
    with damage_reported(path, expected):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8-sig").splitlines()[1:] if line.strip()]
        if [int(row[0]) for row in rows] != list(range(1, _CLASSES + 1)):
            raise ValueError(f"{len(rows)} classes, or not in order")
        return tuple(names.split(",")[0].strip() for _, _, _, _, names in rows)


def scene_categories(root: Path) -> dict[str, str]:
    """The scene of each image, by its name without suffix, as `sceneCategories.txt` lists them.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = _folder(root) / "sceneCategories.txt"
    with damage_reported(path, "lines of an image's name and its scene"):
        lines = [line.split() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return {name: scene for name, scene in lines}  # noqa: C416 -- fails on a line with anything else


@dataclass(frozen=True)
class _Reader:
    """Decodes the image of a name; pickles, for the workers of a DataLoader."""

    folder: Path
    split: str
    scenes: dict[str, str]

    def __call__(self, file: str) -> Sample:
        image = self.folder / "images" / self.split / file
        pair = Pair(image, self.folder / "annotations" / self.split / f"{image.stem}.png")
        pixels, labels = read(pair, _CLASSES, {})
        labels -= 1  # uint8: the unlabelled 0 becomes 255, which is ignored
        scene = self.scenes.get(image.stem, "")
        return Sample(torch.from_numpy(pixels), torch.from_numpy(labels), scene, image.stem)


def _listed(folder: Path, split: str) -> list[Pair]:
    """The files of a split; none where it has no folder of images."""
    images = folder / "images" / split
    return pairs(images, folder / "annotations" / split) if images.is_dir() else []


def _fingerprint(files: Iterable[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in files:
        for path in pair:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
