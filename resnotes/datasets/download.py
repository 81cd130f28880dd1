"""Downloads from the first of several mirrors that delivers the published file."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tqdm.utils import CallbackIOWrapper

from resnotes import progress
from resnotes.errors import DatasetError

# Seconds without a byte after which a mirror is given up; torchvision's own download would wait forever.
_STALLED_AFTER = 30.0


def chosen_mirrors(given: Sequence[str], variable: str) -> list[str]:
    """The mirrors that are given, else those in an environment variable, by commas; without slashes at the end."""
    listed = list(given) or os.environ.get(variable, "").split(",")
    return [mirror.strip().rstrip("/") for mirror in listed if mirror.strip()]


def is_file(path: Path) -> bool:
    """Whether there is such a file; not, where it cannot even be looked for."""
    try:
        return path.is_file()
    except OSError:
        return False


def has_checksum(path: Path, checksum: str) -> bool:
    """Whether there is such a file that can be read, with that MD5, or a SHA-256 that begins so.

    Args:
        path: the file.
        checksum: an MD5 if it has 32 hex digits, else the first digits of a SHA-256, or all.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, _kind(checksum)).hexdigest().startswith(checksum)
    except OSError:
        return False


def _kind(checksum: str) -> str:
    return "md5" if len(checksum) == 32 else "sha256"


def download(urls: Sequence[str], target: Path, checksum: str) -> None:
    """Brings the file with this checksum to `target`, with a progress bar; nothing to do if it is there.

    Args:
        urls: tried in this order; http, https, ftp or file.
        target: appears whole or not at all.
        checksum: of the published file, see `has_checksum`.

    Raises:
        DatasetError: the folder cannot be written, or every URL failed; the message lists each failure.
    """
    if has_checksum(target, checksum):
        return
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the target's own folder, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            part = Path(folder) / target.name
            for url in urls:
                try:
                    _transfer(url, part)
                except Exception as error:  # a mirror can fail in any way; the next one is tried whatever it was
                    failures.append(f"{url} ({type(error).__name__}: {error})")
                    continue
                if has_checksum(part, checksum):
                    part.replace(target)
                    return
                found = f"{part.stat().st_size} bytes whose {_kind(checksum).upper()}"
                failures.append(f"{url} ({found} is not the published {checksum})")
    except OSError as error:
        raise DatasetError(
            f"cannot write {target} ({error}); expected a writable folder; set RESNOTES_DATA to one"
        ) from error
    raise DatasetError(f"cannot download {target.name}; tried {'; '.join(failures)}")


def _transfer(url: str, target: Path) -> None:
    request = urllib.request.Request(url, headers={"User-Agent": "resnotes"})
    with urllib.request.urlopen(request, timeout=_STALLED_AFTER) as response, target.open("wb") as file:
        size = response.headers.get("Content-Length")
        total = int(size) if size else None
        with progress.bar(total=total, desc=f"downloading {url}", unit="B", unit_scale=True) as bar:
            shutil.copyfileobj(response, CallbackIOWrapper(bar.update, file, "write"))
