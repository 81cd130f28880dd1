"""Decoded data sets on disk: memory-mapped on reuse, after a check against source and checksum."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from resnotes.datasets.archives import damage_reported
from resnotes.datasets.classification import fingerprint
from resnotes.errors import DatasetError
from resnotes.files import lock
from resnotes.paths import cache_root

_log = logging.getLogger(__name__)


class Source(NamedTuple):
    """What a data set is read from.

    Attributes:
        path: a folder, or an archive.
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
            found = [("", self.path.stat())] if self.path.is_file() else sorted(self._files())
        lines = (f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in found)
        return hashlib.sha256(os.fsencode("\n".join((str(self.path.resolve()), *lines)))).hexdigest()

    def _files(self) -> list[tuple[str, os.stat_result]]:
        # Of 60,000 files, paths as texts take half the time of `Path`.
        top = str(self.path)
        folders = (walked for name in self.only or ("",) for walked in os.walk(self.path / name))
        files = (f"{folder}/{name}" for folder, _, names in folders for name in names)
        return [(file[len(top) + 1 :], os.stat(file)) for file in files]  # noqa: PTH116


@dataclass(frozen=True, eq=False)
class Decoded:
    """What a data set's files hold.

    Attributes:
        arrays: by name.
        variant: which edition of the data this is.
    """

    arrays: Mapping[str, Tensor]
    variant: str

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of the SHA-256 over the arrays, in their order."""
        return fingerprint(*self.arrays.values())


def cached(name: str, source: Source, arrays: Sequence[str], decode: Callable[[Path], Decoded]) -> Decoded:
    """The data set decoded from `source`: from the cache where it is up to date, else decoded and stored.

    Several processes may call this at once: one decodes, the others wait for it.

    Args:
        name: of the data set; begins the name of the cache folder.
        source: what the data set is read from.
        arrays: the names of what is decoded, in order.
        decode: reads the source; what it unpacks goes to the path that it is given, and is cleared afterwards.

    Raises:
        DatasetError: the source cannot be decoded, or the cache cannot be written.
    """
    folder = _folder(name, source)
    # Listing a large folder keeps the interpreter busy, hashing the cache does not: side by side they take less time.
    with ThreadPoolExecutor(1) as pool:
        listing = pool.submit(source.signature)
        # A filled cache needs no lock, so it may lie on a read-only disk.
        if found := _open(folder, listing.result, arrays):
            return found
    try:
        with lock(folder.with_name(f"{folder.name}.lock")):
            return _open(folder, listing.result, arrays) or _made(folder, listing.result(), decode)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise DatasetError(
            f"the cache of decoded data {cache_root()} cannot be written ({error}); expected a writable folder with"
            " room for the data set (CIFAR-10: 400 MB at first, then 185 MB, with a holdout 155 MB more, CamVid:"
            " 490 MB); set RESNOTES_CACHE to one"
        ) from error


def cached_variant(name: str, source: Source) -> str | None:
    """Variant of what is cached of `source`; None where nothing is, or where the source has changed since."""
    try:
        record = _read_record(_folder(name, source))
        return str(record["variant"]) if record["signature"] == source.signature() else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _folder(name: str, source: Source) -> Path:
    key = hashlib.sha256(os.fsencode(source.path.resolve())).hexdigest()[:16]
    return cache_root() / f"{name}-{key}"


def _read_record(folder: Path) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
    return record


def _open(folder: Path, signature: Callable[[], str], arrays: Sequence[str]) -> Decoded | None:
    """What `folder` holds, if that is intact and was decoded from the source with this `signature`."""
    if not folder.exists():
        return None
    try:
        record = _read_record(folder)
        # Copy-on-write maps: torch gets the writable memory it asks for, the files stay as they are.
        tensors = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in arrays}
        found = Decoded(tensors, record["variant"])
        decoded_from = record["signature"]
        if found.fingerprint != record["fingerprint"]:
            raise ValueError(f"fingerprint {found.fingerprint}, expected {record['fingerprint']}")
    except Exception as error:  # a damaged file raises nearly anything, and is decoded again whatever it was
        _log.warning("decoded copy %s is damaged (%s: %s); decoding it again", folder, type(error).__name__, error)
        return None
    if decoded_from != signature():
        _log.info("the source of %s has changed; decoding it again", folder)
        return None
    return found


def _made(folder: Path, signature: str, decode: Callable[[Path], Decoded]) -> Decoded:
    """What `decode` gives, once it is written to `folder`, as a whole or not at all; the caller holds its lock."""
    # Under the lock one name is enough, and what a killed process left behind is ours to clear.
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir()
        decoded = decode(partial / "unpacked")
        for name, tensor in decoded.arrays.items():
            np.save(partial / f"{name}.npy", tensor.numpy())
        record = {
            "signature": signature,
            "variant": decoded.variant,
            "fingerprint": decoded.fingerprint,
            **{name: len(tensor) for name, tensor in decoded.arrays.items()},
        }
        (partial / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return decoded
    finally:
        shutil.rmtree(partial, ignore_errors=True)
