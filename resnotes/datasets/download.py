"""Downloads of files whose SHA-256 was published."""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import torch.hub

from resnotes.errors import DatasetError


def has_checksum(path: Path, sha256: str) -> bool:
    """Whether there is such a file that can be read, with a SHA-256 that begins so."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest().startswith(sha256)
    except OSError:
        return False


def download(url: str, target: Path, sha256: str) -> None:
    """Brings a file to `target`, where it appears whole or not at all; nothing to do if it is there.

    Args:
        url: http, https, ftp or file.
        target: replaced, if it is another file.
        sha256: of the published file, all hex digits or the first ones.

    Raises:
        DatasetError: the folder cannot be written, or the URL does not give the published file.
    """
    if has_checksum(target, sha256):
        return
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(target), hash_prefix=sha256, progress=sys.stderr.isatty())
    except Exception as error:  # servers, proxies and disks fail in many ways
        raise DatasetError(
            f"cannot download {url} ({type(error).__name__}: {error}); get that file otherwise and put it to {target},"
            " or set RESNOTES_DATA to a folder that has it and can be written"
        ) from error
