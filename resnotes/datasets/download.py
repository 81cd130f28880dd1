"""Downloads from the first of several mirrors that delivers the published file."""

from __future__ import annotations

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


def download(urls: Sequence[str], target: Path, md5: str) -> None:
    """Brings the file with checksum `md5` to `target`, with a progress bar; nothing to do if it is there.

    Args:
        urls: tried in this order; http, https, ftp or file.
        target: appears whole or not at all.
        md5: hex digest of the published file.

    Raises:
        DatasetError: the folder cannot be written, or every URL failed; the message lists each failure.
    """
    from torchvision.datasets.utils import check_integrity

    if check_integrity(target, md5):
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
                if check_integrity(part, md5):
                    part.replace(target)
                    return
                failures.append(f"{url} ({part.stat().st_size} bytes whose MD5 is not the published {md5})")
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
