"""What lies in a folder or an archive, by its names: one code for what is found, what is read and what is refused."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from resnotes.datasets.archives import damage_reported, is_archive, members, unpacked
from resnotes.errors import DatasetError

IMAGES = (".png", ".jpg", ".jpeg", ".bmp")
FORMATS = ("PNG", "JPEG", "BMP")

_KNOWN = {  # what people have, by a pattern that one of the names matches; the first counts
    r"\.(part|crdownload|download)$": "a download that a browser has not finished",
    r"\.(zip|tar|tgz|gz|bz2|xz|7z|rar|zst)$": "an archive, which has to be unpacked",
    r"\.(parquet|arrow)$": "tables of Hugging Face, which are not read",
    r"\.(npz|npy|mat|h5|hdf5)$": "arrays of NumPy, MATLAB or HDF5, which are not read",
    r"(?i)cifar[-_ ]?100(?!\d)": "CIFAR-100, which is another data set",
    r"(^|/)(trainLabels|sampleSubmission)\.csv$": "Kaggle's competition, whose test images have no labels",
    r"(^|/)train_labels/": "Kaggle's edition, painted in the colours of 32 classes, with other splits than the papers'",
    r"(^|/)codes\.txt$|_P\.png$": "fast.ai's edition, with 32 classes, and without the papers' splits",
    r"(^|/)LabeledApproved|_L\.png$": "the original, painted in the colours of 32 classes, without the papers' splits",
    r"_seg\.png$|index_ade20k": "the full release, with 3,000 classes, and not the benchmark's edition of 150",
    r"\.(pkl|pickle|pt|pth|mdb|beton)$|\.tfrecord": "records of PyTorch, TensorFlow or others, which are not read",
}
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX|@eaDir)|\.partial(/|$)")
_DEPTH = 6  # of folders in each other: links may lead back to a folder that they are in


def hidden(name: str) -> bool:
    """Whether a file or folder of this name, or in a folder of such a name, is no part of any data set.

    These are `.ipynb_checkpoints`, `._*`, the extras of macOS and Synology, and a download that we did not finish.
    """
    return bool(_HIDDEN.search(name))


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is no folder."""
    return sorted(path for path in folder.iterdir() if not hidden(path.name)) if folder.is_dir() else []


def files(source: Path) -> Iterator[str]:
    """The paths of all files below a folder, in any order, or of the one that `source` is.

    Links are followed; those that lead nowhere count as files. A folder that cannot be read raises an OSError.
    """
    if source.is_file():
        yield str(source)
        return
    for at, folders, names in os.walk(source, onerror=_raise, followlinks=True):
        deep = at.count(os.sep) - str(source).count(os.sep) >= _DEPTH
        folders[:] = [] if deep else [name for name in folders if not hidden(name)]
        yield from (f"{at}{os.sep}{name}" for name in names if not hidden(name))


def _raise(error: OSError) -> None:
    raise error


def listed(source: Path) -> list[str]:
    """The files in a folder, or in an archive without unpacking it, relative to it and with `/`, by name.

    Of any other file it is the name.

    Raises:
        DatasetError: the archive is damaged, or the folder cannot be read.
    """
    if source.is_dir():
        with damage_reported(source, "a readable folder"):
            names = [file[len(str(source)) + 1 :].replace(os.sep, "/") for file in files(source)]
    elif not is_archive(source):
        names = [source.name]
    elif (found := members(source)) is not None:
        names = found
    else:
        with tempfile.TemporaryDirectory() as scratch, unpacked(source, Path(scratch, "content")) as folder:
            names = listed(folder)
    return sorted(name for name in names if name.count("/") <= _DEPTH and not hidden(name))


def names_in(place: Path) -> list[str]:
    """`listed`, but nothing where there is nothing, and of whatever is no folder, archives too, the name."""
    return listed(place) if place.is_dir() else [place.name] * os.path.lexists(place)


def refusal(name: str, place: Path, names: Sequence[str], advice: str) -> DatasetError:
    """The error that a data set does not lie in this place, where these files are.

    It says how many there are, of which kinds, and how people call the layout; `advice` has what was expected.
    """
    if not names:
        return DatasetError(f"found nothing in {place}; {advice}")
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
    known = [] if place.exists() else ["a link that leads nowhere"]
    known += ["an archive, which has to be unpacked"] if names == [place.name] and is_archive(place) else []
    known += [words for pattern, words in _KNOWN.items() if any(map(re.compile(pattern).search, (place.name, *names)))]
    files = "1 file" if len(names) == 1 else f"{len(names)} files"
    there = f"{files} ({counts}), the first is {names[0]}" + "".join(f": {words}" for words in known[:1])
    return DatasetError(f"found no {name} in {place}, but {there}; {advice}")
