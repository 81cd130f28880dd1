"""What lies in a folder or an archive, by its names: one code for what is found, what is read and what is refused."""

from __future__ import annotations

import os
import re
import tempfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from resnotes.datasets.archives import damage_reported, is_archive, members, unpacked

IMAGES = (".png", ".jpg", ".jpeg", ".bmp")
FORMATS = ("PNG", "JPEG", "BMP")

_DEPTH = 6  # of folders in each other: links may lead back to a folder that they are in


def hidden(name: str) -> bool:
    """Whether a file or folder of this name is no part of any data set.

    These are `.ipynb_checkpoints`, `._*`, the extras of macOS and Synology, and a download that we did not finish.
    """
    return name.startswith((".", "__MACOSX", "@eaDir")) or name.endswith(".partial")


def visible(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing where there is no folder."""
    return sorted(path for path in folder.iterdir() if not hidden(path.name)) if folder.is_dir() else []


def files(source: Path) -> Iterator[str]:
    """The paths of all files below a folder, in any order, or of the one that `source` is.

    Links are followed; those that lead nowhere count as files. A folder that cannot be read raises an OSError.
    """
    if source.is_file():
        yield str(source)
    for at, folders, names in os.walk(source, onerror=_raise, followlinks=True):
        deep = at.count(os.sep) - str(source).count(os.sep) >= _DEPTH
        folders[:] = [] if deep else [name for name in folders if not hidden(name)]
        yield from (f"{at}{os.sep}{name}" for name in names if not hidden(name))


def _raise(error: OSError) -> None:
    if not isinstance(error, NotADirectoryError):
        raise error


def listed(source: Path) -> list[str]:
    """The files in a folder, or in an archive without unpacking it, relative to it and with `/`, by name.

    Of any other file it is the name.

    Raises:
        DatasetError: the archive is damaged, or the folder cannot be read.
    """
    if source.is_dir():
        with damage_reported(source, "a readable folder"):
            names = [os.path.relpath(file, source).replace(os.sep, "/") for file in files(source)]
    elif not is_archive(source):
        names = [source.name]
    elif (found := members(source)) is not None:
        names = found
    else:
        with tempfile.TemporaryDirectory() as scratch, unpacked(source, Path(scratch, "content")) as folder:
            names = listed(folder)
    return sorted(name for name in names if name.count("/") <= _DEPTH and not any(map(hidden, name.split("/"))))


def trees(names: Iterable[str], splits: Collection[str]) -> dict[str, dict[str, dict[str, list[str]]]]:
    """The files below `<split>/<class>/`, by the folder that these trees are in, split in lower case, and class."""
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for name in names:
        parts = name.split("/")
        if at := [i for i, part in enumerate(parts[:-2]) if part.lower() in splits]:
            top, split, label = "/".join(parts[: at[-1]]), parts[at[-1]].lower(), parts[at[-1] + 1]
            found.setdefault(top, {}).setdefault(split, {}).setdefault(label, []).append(name)
    return found


def described(names: Sequence[str], known: Mapping[str, str]) -> str:
    """How many files there are, of which kinds, and what this is, for errors.

    Args:
        names: as `listed` gives them; at least one.
        known: what people call a layout, by a pattern that one of its names matches; the first that does counts.
    """
    kinds = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(4))
    what = [words for pattern, words in known.items() if any(re.search(pattern, name) for name in names)]
    return f"{len(names)} files ({counts}), the first is {names[0]}" + "".join(f": {words}" for words in what[:1])
