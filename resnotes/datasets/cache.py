"""Decoded data sets on disk: memory-mapped on reuse, after a check against source and checksum."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from resnotes.datasets.archives import damage_reported
from resnotes.datasets.classification import fingerprint
from resnotes.datasets.layouts import files
from resnotes.errors import DatasetError
from resnotes.files import lock
from resnotes.paths import cache_root

_log = logging.getLogger(__name__)


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


def cached(name: str, source: Path, arrays: Sequence[str], decode: Callable[[Path], Decoded]) -> Decoded:
    """The data set decoded from `source`: from the cache where it is up to date, else decoded and stored.

    Several processes may call this at once: one decodes, the others wait for it.

    Args:
        name: of the data set; begins the name of the cache folder.
        source: what the data set is read from, a folder or an archive.
        arrays: the names of what is decoded, in order.
        decode: reads the source; what it unpacks goes to the path that it is given, and is cleared afterwards.

    Raises:
        DatasetError: the source cannot be decoded, or the cache cannot be written.
    """
    key = hashlib.sha256(os.fsencode(source.resolve())).hexdigest()[:16]
    folder = cache_root() / f"{name}-{key}"
    signature = _signature(source)
    # A filled cache needs no lock, so it may lie on a read-only disk.
    if found := _open(folder, signature, arrays):
        return found
    try:
        with lock(folder.with_name(f"{folder.name}.lock")):
            return _open(folder, signature, arrays) or _made(folder, signature, decode)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        raise DatasetError(
            f"the cache of decoded data {cache_root()} cannot be written ({error}); expected a writable folder with"
            " room for the data set (CIFAR-10: 400 MB at first, then 185 MB, with a holdout 155 MB more, CamVid:"
            " 490 MB); set RESNOTES_CACHE to one"
        ) from error


def _signature(source: Path) -> str:
    """Hex digest over path and names, sizes and modification times; differs once the source was changed."""
    top = str(source)
    with damage_reported(source, "a readable file or folder"):
        stats = [(file[len(top) + 1 :], os.stat(file)) for file in sorted(files(source))]  # noqa: PTH116
    lines = (f"{name}\0{stat.st_size}\0{stat.st_mtime_ns}" for name, stat in stats)
    return hashlib.sha256(os.fsencode("\n".join((str(source.resolve()), *lines)))).hexdigest()


def _open(folder: Path, signature: str, arrays: Sequence[str]) -> Decoded | None:
    """What `folder` holds, if that is intact and was decoded from the source with this `signature`."""
    if not folder.exists():
        return None
    try:
        record = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        # Copy-on-write maps: torch gets the writable memory it asks for, the files stay as they are.
        tensors = {name: torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c")) for name in arrays}
        found = Decoded(tensors, record["variant"])
        if (record["signature"], record["fingerprint"]) != (signature, found.fingerprint):
            raise ValueError("the data or the copy has changed")
    except Exception as error:  # a damaged file raises nearly anything, and is decoded again whatever it was
        _log.warning("decoded copy %s is out of date (%s: %s); decoding it again", folder, type(error).__name__, error)
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
        record = {"signature": signature, "variant": decoded.variant, "fingerprint": decoded.fingerprint}
        (partial / "record.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        return decoded
    finally:
        shutil.rmtree(partial, ignore_errors=True)
