"""Files below a folder or inside a zip or tar, read as one stream: nothing is extracted, nothing trusted."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from resnotes.datasets.pixels import as_rgb
from resnotes.errors import DatasetError

Wanted = Callable[[PurePosixPath], bool]
Files = Iterator[tuple[PurePosixPath, bytes]]

_DECOMPRESSORS: dict[bytes, Callable[[Path], io.BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ\x00": lzma.LZMAFile,
}

_MAX_HEADER_BYTES = 2**20


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


@dataclass(frozen=True)
class Source:
    """What a data set is read from.

    Attributes:
        path: a folder, or a zip or tar archive of any compression.
        only: where `path` is a folder, the folders in it that belong to the data set; empty for all of it.
    """

    path: Path
    only: tuple[str, ...] = ()

    def signature(self) -> str:
        """Hex digest over path and names, sizes and modification times; differs once the source was changed.

        Raises:
            DatasetError: the source cannot be listed.
        """
        with damage_reported(self.path, "a readable file or folder"):
            if self.path.is_dir():
                entries = sorted((name, file.stat()) for name, file in self._folder_entries())
            else:
                entries = [("", self.path.stat())]
        lines = (f"{name}\0{found.st_size}\0{found.st_mtime_ns}" for name, found in entries)
        return hashlib.sha256(os.fsencode("\n".join((str(self.path.resolve()), *lines)))).hexdigest()

    def files(self, wanted: Wanted, max_bytes: int) -> Files:
        """Path inside the source, and contents, of every file that is `wanted`, in the order they are stored.

        Hidden files, among them macOS' `._` companions, are passed over.

        Args:
            wanted: says by its path whether a file is to be read.
            max_bytes: a larger file is refused before it is read.

        Raises:
            DatasetError: the source is damaged or truncated; a member of an archive is a link, a device, or
                lies outside of the archive's own folder; a wanted file is too large.
        """
        if self.path.is_dir():
            reader = self._folder_files
        else:
            with damage_reported(self.path, "a readable file"), self.path.open("rb") as file:
                reader = self._zip_files if file.read(2) == b"PK" else self._tar_files
        with damage_reported(self.path, "a folder, or a complete zip or tar archive"):
            yield from reader(lambda path: not path.name.startswith(".") and wanted(path), max_bytes)

    def _folder_entries(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Relative path and entry of every file; links to files are followed, links to folders are not."""
        pending = [name for name in self.only if (self.path / name).is_dir()] if self.only else [""]
        while pending:
            folder = pending.pop()
            with os.scandir(self.path / folder) as entries:
                for entry in entries:
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(name)
                    elif entry.is_file():
                        yield name, entry

    def _folder_files(self, wanted: Wanted, max_bytes: int) -> Files:
        for name, entry in self._folder_entries():
            path = PurePosixPath(name)
            if wanted(path):
                self._refuse_large(path, entry.stat().st_size, max_bytes)
                yield path, Path(entry.path).read_bytes()

    def _zip_files(self, wanted: Wanted, max_bytes: int) -> Files:
        with zipfile.ZipFile(self.path) as archive:
            for member in archive.infolist():
                path = self._inside(member.filename)
                # The upper half of the attributes is the Unix mode where the packer stored one, else 0.
                kind = stat.S_IFMT(member.external_attr >> 16)
                if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                    raise self._irregular(path)
                if not member.is_dir() and wanted(path):
                    self._refuse_large(path, member.file_size, max_bytes)
                    with archive.open(member) as file:  # however much is behind it, no more than it says
                        yield path, file.read(member.file_size)

    def _tar_files(self, wanted: Wanted, max_bytes: int) -> Files:
        with (
            self._decompressed() as stream,
            # Reading no further than the archive does leaves the rest of the stream for the check at the end.
            tarfile.open(fileobj=stream, mode="r|", bufsize=tarfile.BLOCKSIZE, tarinfo=_StrictTarInfo) as archive,
        ):
            for member in archive:
                path = self._inside(member.name)
                if not (member.isreg() or member.isdir()):
                    raise self._irregular(path)
                if member.isreg() and wanted(path):
                    self._refuse_large(path, member.size, max_bytes)
                    content = archive.extractfile(member)
                    assert content is not None  # regular members have content
                    yield path, content.read()
            # Reading on to the end also makes the decompressor compare its checksum.
            while rest := stream.read(2**16):
                if rest.strip(b"\0"):
                    raise tarfile.ReadError("data after the end-of-archive mark")

    def _decompressed(self) -> io.BufferedIOBase:
        # tarfile's own streaming decompression takes a cut-off stream for its end; these modules do not.
        with self.path.open("rb") as file:
            start = file.read(8)
        for magic, opener in _DECOMPRESSORS.items():
            if start.startswith(magic):
                return opener(self.path)
        return self.path.open("rb")

    def _inside(self, name: str) -> PurePosixPath:
        # The Windows flavour knows both separators, drives and shares: the strictest reading of a name.
        path = PureWindowsPath(name)
        if path.anchor or ".." in path.parts:
            raise DatasetError(
                f"{self.path}: member {name!r} points outside of the archive; expected relative paths "
                "without '..'; do not use this archive, get it from a source you trust"
            )
        return PurePosixPath(*path.parts)

    def _irregular(self, path: PurePosixPath) -> DatasetError:
        return DatasetError(
            f"{self.path}: member {str(path)!r} is a link or a device; expected files and folders only; "
            "pack the archive again without links"
        )

    def _refuse_large(self, path: PurePosixPath, size: int, max_bytes: int) -> None:
        if size > max_bytes:
            raise DatasetError(
                f"{self.path}: {str(path)!r} has {size} bytes; expected at most {max_bytes}; remove it or get the data"
                " again"
            )


class _StrictTarInfo(tarfile.TarInfo):
    """Reports a damaged or cut-off header, which `tarfile` beyond the first member takes for the end.

    Also refuses long names and extended headers that would fill the memory.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if bytes(buf) == bytes(tarfile.BLOCKSIZE):
                raise  # the block of zeros that ends every complete archive
            raise tarfile.ReadError(str(error)) from error
        if not header.isreg() and header.size > _MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {header.size} bytes")
        return header


def decode_rgb(data: bytes, where: str, size: tuple[int, int]) -> tuple[NDArray[np.uint8], bool]:
    """Decodes one PNG or JPEG, as it looks: see `resnotes.datasets.pixels`.

    Args:
        data: the encoded image.
        where: names the image in errors.
        size: the width and height it must have; checked before any pixel is decoded, so that a small file
            which claims to be a huge image costs nothing.

    Returns:
        uint8 `[3, H, W]`, and whether the format is lossless.

    Raises:
        DatasetError: not a complete PNG or JPEG, another size, neither RGB, palette nor grey, or transparent.
    """
    width, height = size
    expected = f"a complete {width}x{height} RGB PNG or JPEG"
    with damage_reported(where, expected), Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
        if image.size != size or image.mode not in ("RGB", "P", "L", "I", "I;16"):
            raise DatasetError(
                f"{where} is {image.width}x{image.height} {image.mode}; expected {expected}; convert it or remove it"
            )
        pixels = np.asarray(as_rgb(image, where))
        if pixels.shape[:2] != (height, width):
            raise DatasetError(f"{where} is {pixels.shape[1]}x{pixels.shape[0]}, turned upright; expected {expected}")
        return pixels.transpose(2, 0, 1), image.format == "PNG"
