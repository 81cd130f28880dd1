"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock

from resnotes.errors import ResnotesError

TEMPORARY = ".*.????????"  # what `write_atomic` leaves behind if its process is killed; a pattern


def lock(path: Path) -> BaseFileLock:
    """A lock between processes, made with its folder; the kernel takes it from a process that dies.

    A file that merely exists would outlive it, so a file system without locks is refused when it is acquired.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path, fallback_to_soft=False)


def write_atomic(path: Path, content: str | bytes) -> Path:
    """Replace the file at `path` by `content` (text as UTF-8) in one step, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    payload = content.encode() if isinstance(content, str) else content
    # The temporary file lies in the same folder, since a rename is atomic only within one file system.
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(payload)
        temporary.chmod(0o644)  # mkstemp makes files that only their owner can read
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path


def write_folder(folder: Path, files: Mapping[str, str | bytes]) -> None:
    """Write `files`, by path below `folder`, of which none is put in its place before all could be written.

    A folder that is there keeps what else it holds.

    Raises:
        IsADirectoryError: a folder stands where a file should go.
    """
    new = not folder.exists()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent if new else folder, prefix=f".{folder.name}.") as scratch:
        whole = Path(scratch) / folder.name
        for name, content in files.items():
            write_atomic(whole / name, content)
        if new:
            whole.replace(folder)
            return
        targets = {name: folder / name for name in files}
        for target in targets.values():  # what stands in the way must be found before the first file is moved
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, "expected a file, found a folder", str(target))
        for target in targets.values():
            target.parent.mkdir(parents=True, exist_ok=True)
        for name, target in targets.items():
            (whole / name).replace(target)


def sealed(content: bytes) -> bytes:
    """`content` with its SHA-256 behind it, for formats that would be read with a flipped bit as well."""
    return content + hashlib.sha256(content).digest()


def unsealed(stored: bytes) -> bytes | None:
    """What `sealed` was given; None if it is damaged."""
    content, digest = stored[:-32], stored[-32:]
    return content if hashlib.sha256(content).digest() == digest else None


def write_json(path: Path, value: Any) -> Path:
    """Write `value` atomically as indented JSON; arrays, tensors and their scalars become lists and numbers.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON has no words for.
        TypeError: `value` holds something that is neither JSON nor an array.
    """
    return write_atomic(path, to_json(value))


def to_json(value: Any) -> str:
    """The text that `write_json` writes."""
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def read_json(path: Path) -> Any:
    """The JSON document at `path`.

    Raises:
        ResnotesError: the file is missing, unreadable or damaged.
    """
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ResnotesError(f"cannot read {path}: {error}") from error


def _plain(value: Any) -> Any:
    """What `json` cannot write itself: NumPy and torch values, by the method they share."""
    if hasattr(value, "tolist"):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not JSON: {value!r}")
