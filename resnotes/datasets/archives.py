"""Archives that data sets come in, unpacked while they are read; nothing in them is trusted."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PureWindowsPath
from typing import Any

from resnotes.errors import DatasetError

_LARGEST = 2**26  # bytes of a member; a batch of the original CIFAR-10 has 31 MB


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
        raise DatasetError(
            f"{what} is damaged or unreadable ({found}); expected {expected}; copy or download it again"
        ) from error


@contextmanager
def unpacked(source: Path, scratch: Path) -> Iterator[Path]:
    """A folder with what a data set is read from: `source` itself, or, if that is an archive, its content.

    Args:
        source: a folder, or a zip or tar archive of any compression.
        scratch: where an archive is unpacked; a folder that is not there before, nor afterwards.

    Raises:
        DatasetError: the archive is damaged or cut; a member is a link, a device or huge, or lies outside of the
            archive's own folder; or whatever the caller finds wrong in it, which then names the archive.
    """
    if source.is_dir():
        yield source
        return
    try:
        with damage_reported(source, "a complete zip or tar archive"):
            if zipfile.is_zipfile(source):
                _unzip(source, scratch)
            else:
                _untar(source, scratch)
        yield scratch
    except DatasetError as error:
        raise DatasetError(str(error).replace(str(scratch), str(source))) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _unzip(source: Path, target: Path) -> None:
    with zipfile.ZipFile(source) as archive:
        for member in archive.infolist():
            _check(source, member.filename, member.file_size)
        archive.extractall(target)  # a link becomes a small file


def _untar(source: Path, target: Path) -> None:
    def checked(member: tarfile.TarInfo, folder: str) -> tarfile.TarInfo:
        _check(source, member.name, member.size)
        if not (member.isreg() or member.isdir()):
            raise DatasetError(
                f"{source}: member {member.name!r} is a link or a device; expected files and folders only; pack the"
                " archive again without links"
            )
        return tarfile.data_filter(member, folder)

    with tarfile.open(source) as archive:
        archive.extractall(target, filter=checked)
        # A damaged header and a cut are taken for the end, which is zeros to the last byte. Reading these also makes
        # a decompressor compare its checksum.
        stream: Any = archive.fileobj
        stream.seek(archive.offset)
        end = [chunk.strip(b"\0") for chunk in iter(lambda: stream.read(2**20), b"")]
        if any(end) or not end:
            raise tarfile.ReadError("it does not end as an archive does")


def _check(source: Path, name: str, size: int) -> None:
    path = PureWindowsPath(name)  # which knows both separators, drives and shares: the strictest reading of a name
    if path.anchor or ".." in path.parts:
        raise DatasetError(
            f"{source}: member {name!r} points outside of the archive; expected relative paths without '..'; do not use"
            " this archive, get it from a source you trust"
        )
    if size > _LARGEST:
        raise DatasetError(f"{source}: {name!r} has {size} bytes; expected at most {_LARGEST}; get the data again")
