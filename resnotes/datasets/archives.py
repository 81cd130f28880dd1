"""Archives that data sets come in, unpacked while they are read; nothing in them is trusted."""

from __future__ import annotations

import posixpath
import re
import shutil
import tarfile
import zipfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from resnotes.errors import DatasetError

_EXPECTED = "a complete zip or tar archive"
_NAME = re.compile(r"\.(zip|tar|tgz|txz|tbz2?|tar\.(gz|xz|bz2))$", re.IGNORECASE)
_OTHERS = (".npz", ".pt", ".pth", ".part", ".crdownload", ".download")
_KINDS = {  # by how a file begins, where that says more than a decoder's error
    rb"\Z": "empty",
    rb"version https://git-lfs": "a pointer of Git LFS to the file, which `git lfs pull` gets",
    rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype|html|\?xml)": "a web page",
    rb"RIFF....WEBP": "a WebP image",
    rb"GIF8": "a GIF image",
    rb"II\*\0|MM\0\*": "a TIFF image",
    rb"....ftyp": "a HEIC or AVIF image, or a film",
    rb"\xff\xd8\xff": "JPEG",
    rb"\x89HDF": "a file of HDF5",
    rb"7z\xbc\xaf|Rar!|\x28\xb5\x2f\xfd": "an archive of 7-Zip, RAR or Zstandard",
}


@contextmanager
def damage_reported(what: object, expected: str) -> Iterator[None]:
    """Turns whatever is raised over foreign bytes into one `DatasetError` about `what`.

    Decoders of damaged input raise nearly anything (zlib.error, struct.error, SyntaxError, ...), hence the
    broad catch; the cause stays attached.
    """
    try:
        yield
    except DatasetError:
        raise
    except Exception as error:
        found = " ".join(f"{type(error).__name__}: {error}".split())
        kind = kind_of(what) if isinstance(what, Path) else None
        if kind is None or kind in expected:
            kind = f"damaged or unreadable ({found})"
        raise DatasetError(f"{what} is {kind}; expected {expected}; copy or download it again") from error


def kind_of(file: Path) -> str | None:
    """What a file is, by how it begins, if that is something that no data set is made of; None for all else."""
    try:
        with file.open("rb") as opened:
            begin = opened.read(64)
    except OSError:
        return None
    return next((kind for sign, kind in _KINDS.items() if re.match(sign, begin, re.DOTALL)), None)


@contextmanager
def unpacked(source: Path, scratch: Path, only: Collection[str] | None = None) -> Iterator[Path]:
    """A folder with what a data set is read from: `source` itself, or, if that is an archive, its content.

    Args:
        source: a folder, or a zip or tar archive of any compression.
        scratch: where an archive is unpacked; a folder that is not there before, nor afterwards. No member gets outside
            of it.
        only: the files of an archive that are unpacked, as `members` names them; None for all.

    Raises:
        DatasetError: the archive is damaged or cut, or holds a device; or whatever the caller finds wrong in it, which
            then names the archive.
    """
    if source.is_dir():
        yield source
        return
    try:
        with damage_reported(source, _EXPECTED):
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as archive:
                    names = [each for each in archive.namelist() if only is None or posixpath.normpath(each) in only]
                    archive.extractall(scratch, names)
            else:
                _untar(source, scratch, only)
        yield scratch
    except DatasetError as error:
        raise DatasetError(str(error).replace(str(scratch), str(source))) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def is_archive(file: Path) -> bool:
    """Whether this is a zip or tar archive by its content, whatever a browser called it, or else by its name.

    Neither NumPy's archives of arrays nor what a browser has not finished are meant.
    """
    if not file.is_file() or file.suffix.lower() in _OTHERS:
        return False
    return bool(_NAME.search(file.name)) or zipfile.is_zipfile(file) or tarfile.is_tarfile(file)


def members(source: Path) -> list[str] | None:
    """The files in an archive; None where only unpacking can tell, as it holds links, devices or paths to elsewhere.

    Raises:
        DatasetError: the archive is damaged or cut.
    """
    with damage_reported(source, _EXPECTED):
        if zipfile.is_zipfile(source):
            with zipfile.ZipFile(source) as packed:
                return [posixpath.normpath(each.filename) for each in packed.infolist() if not each.is_dir()]
        with tarfile.open(source) as archive:
            found = {posixpath.normpath(each.name): each for each in archive.getmembers()}
            _require_end(archive)
    if any(not (each.isfile() or each.isdir()) or name.startswith(("..", "/")) for name, each in found.items()):
        return None
    return [name for name, each in found.items() if each.isfile()]


def _untar(source: Path, target: Path, only: Collection[str] | None) -> None:
    with tarfile.open(source) as archive:
        found = archive.getmembers()
        if only is not None and not any(each.issym() for each in found):  # or what they lead to would be lacking
            found = [each for each in found if posixpath.normpath(each.name) in only]
        archive.extractall(target, found, filter="data")
        _require_end(archive)


def _require_end(archive: tarfile.TarFile) -> None:
    """Refuses an archive, all of whose members were read, that ends too early."""
    # A damaged header and a cut are taken for the end, which is zeros to the last byte. Reading these also makes a
    # decompressor compare its checksum.
    stream: Any = archive.fileobj
    stream.seek(archive.offset)
    end = [chunk.strip(b"\0") for chunk in iter(lambda: stream.read(2**20), b"")]
    if any(end) or not end:
        raise tarfile.ReadError("it does not end as an archive does")
