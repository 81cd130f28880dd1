"""ADE20K as in the MIT scene parsing benchmark: 150 classes, 20,210 images to train and 2,000 to validate on.

Read from `root/ade20k*` or `root/ADEChallengeData2016`, laid out as the archive `ADEChallengeData2016.zip` is:
`images/{training,validation}/*.jpg`, `annotations/{training,validation}/*.png` with labels 1..150, and 0 where no one
named it, `objectInfo150.txt` and `sceneCategories.txt`. A part of the images will do, if each has its annotation.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from resnotes.datasets.archives import damage_reported
from resnotes.datasets.availability import Availability
from resnotes.datasets.classification import Normalization
from resnotes.datasets.pairs import Pair, missing, pairs, read
from resnotes.datasets.segmentation import IGNORED, Lazy, Sample, Segmentation
from resnotes.errors import DatasetError

_log = logging.getLogger(__name__)

_CLASSES = 150
_COUNTS = {"training": 20_210, "validation": 2_000}
_PLACES = ("ade20k*", "ADEChallengeData2016")
_LAYOUT = "images/{training,validation}/*.jpg with annotations/{training,validation}/*.png"
_HOW = (
    "get ADEChallengeData2016.zip from data.csail.mit.edu/places/ADEchallenge, unpack it,"
    " and set RESNOTES_DATA to the folder that has it"
)
# Statistics of ImageNet, as for pretrained weights: those of 20,210 images would take minutes to count.
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def load(root: Path) -> Segmentation:
    """Both splits, decoded image by image as they are asked for; `test` is the benchmark's validation split.

    The fingerprint is one of names and sizes of the files. Where there are fewer images than published the variant is
    `ade20k-part`; either split may then be empty, which is logged.

    Raises:
        DatasetError: the data is missing, incomplete or another edition. What is wrong inside of an image is raised
            when that is decoded.
    """
    folder = _folder(root)
    scenes = scene_categories(root) if (folder / "sceneCategories.txt").is_file() else {}
    listed = {split: _listed(folder, split) for split in _COUNTS}
    if not any(listed.values()):
        raise DatasetError(f"{folder} has no images; expected {_LAYOUT}; {_HOW}")
    for split, found in listed.items():
        if not found:
            _log.warning("%s has no %s images: a part of ADE20K, whose %s split is empty", folder, split, split)
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
        normalization=Normalization.published(_MEAN, _STD),
        fingerprint=_fingerprint(pair for found in listed.values() for pair in found),
    )


def status(root: Path) -> Availability:
    """What `load` would read, and how many images of each split there are."""
    try:
        folder = _folder(root)
    except DatasetError as error:
        return Availability("ade20k", False, None, f"missing: {error}".removesuffix(f"; {_HOW}"), _HOW)
    counts = [sum(1 for _ in (folder / "images" / split).glob("*.jpg")) for split in _COUNTS]
    whole = counts == list(_COUNTS.values())
    where = f"{folder}: {counts[0]} training and {counts[1]} validation images"
    return Availability("ade20k", True, "ade20k" if whole else "ade20k-part", where, _HOW)


def class_names(root: Path) -> tuple[str, ...]:
    """The 150 classes in label order, each by its usual name, from `objectInfo150.txt` alone.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = _file(root, "objectInfo150.txt")
    expected = "a heading and the lines 1 to 150: index, pixel ratio, training and validation images, names, by tabs"
    with damage_reported(path, expected):
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:] if line.strip()]
        if [int(row[0]) for row in rows] != list(range(1, _CLASSES + 1)):
            raise ValueError(f"{len(rows)} classes, or not in order")
        return tuple(names.split(",")[0].strip() for _, _, _, _, names in rows)


def scene_categories(root: Path) -> dict[str, str]:
    """The scene of each image, by its name without suffix, from `sceneCategories.txt` alone.

    Raises:
        DatasetError: the file is missing or damaged.
    """
    path = _file(root, "sceneCategories.txt")
    with damage_reported(path, "lines of an image's name and its scene"):
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
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
        pixels, labels = read(pair, _CLASSES)
        labels -= 1  # uint8: the unlabelled 0 becomes 255, which is ignored
        scene = self.scenes.get(image.stem, "")
        return Sample(torch.from_numpy(pixels), torch.from_numpy(labels), scene, image.stem)


def _places(root: Path, belongs: Callable[[Path], bool]) -> Iterator[Path]:
    """Folders where the data may lie and that have what `belongs` to it."""
    tops = sorted(path for path in root.glob("*") if path.name.lower().startswith(("ade20k", "adechallengedata2016")))
    for top in tops:
        yield from (folder for folder in (top, top / "ADEChallengeData2016") if belongs(folder))


def _folder(root: Path) -> Path:
    for folder in _places(root, _is_challenge):
        return folder
    for folder in _places(root, _is_full_release):
        raise DatasetError(
            f"{folder} is the full release of ADE20K, with thousands of classes in colour-coded *_seg.png;"
            f" expected the edition of the scene parsing benchmark, {_LAYOUT}; {_HOW}"
        )
    raise DatasetError(f"{missing('ADE20K', _PLACES, _LAYOUT, root)}; {_HOW}")


def _is_challenge(folder: Path) -> bool:
    return not _is_full_release(folder) and any(
        (folder / kind / split).is_dir() for kind in ("images", "annotations") for split in _COUNTS
    )


def _is_full_release(folder: Path) -> bool:
    images = folder / "images"
    if any((folder / name).exists() for name in ("index_ade20k.pkl", "index_ade20k.mat", "images/ADE")):
        return True
    # The release of 2016 has images/training/<letter>/<scene>/*_seg.png; the benchmark no folders below a split.
    return any((images / split).is_dir() and next((images / split).glob("*/*/*_seg.png"), None) for split in _COUNTS)


def _listed(folder: Path, split: str) -> list[Pair]:
    """The files of a split; none where it has neither images nor annotations."""
    images, annotations = folder / "images" / split, folder / "annotations" / split
    if not any(path.is_dir() and any(path.iterdir()) for path in (images, annotations)):
        return []
    return pairs(images, annotations)


def _file(root: Path, name: str) -> Path:
    for folder in _places(root, lambda folder: (folder / name).is_file()):
        return folder / name
    raise DatasetError(f"{missing(name, _PLACES, name, root)}; {_HOW}")


def _fingerprint(files: Iterator[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in files:
        for path in pair:
            digest.update(f"{path.parent.name}/{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()[:16]
