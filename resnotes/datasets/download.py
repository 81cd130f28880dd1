"""Downloads from the first of several mirrors that delivers the published file."""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from resnotes.errors import DatasetError

# Seconds without a byte after which a mirror is given up.
_STALLED_AFTER = 30.0


def download(urls: Sequence[str], target: Path, md5: str) -> None:
    """Brings the file with checksum `md5` to `target`, with a progress bar; nothing to do if it is there.

    Args:
        urls: tried in this order.
        target: appears whole or not at all.
        md5: hex digest of the published file.

    Raises:
        DatasetError: the folder cannot be written, or every URL failed; the message lists each failure.
    """
    from torchvision.datasets.utils import check_integrity, download_url

    if check_integrity(target, md5):
        return
    failures = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # In the target's own folder, so that the last step is a rename within one file system.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".download-") as folder:
            for url in urls:
                try:
                    with _giving_up_on_stalls():
                        download_url(url, folder, filename=target.name, md5=md5)
                except (
                    Exception
                ) as error:  # a mirror can fail in any way; the next one is tried whatever it was
                    failures.append(f"{url} ({type(error).__name__}: {error})")
                else:
                    (Path(folder) / target.name).replace(target)
                    return
    except OSError as error:
        raise DatasetError(
            f"cannot write {target} ({error}); expected a writable folder; set RESNOTES_DATA to one"
        ) from error
    raise DatasetError(f"cannot download {target.name}; tried {'; '.join(failures)}")


@contextmanager
def _giving_up_on_stalls() -> Iterator[None]:
    # torchvision offers no timeout, so the one of all new sockets is set for the time of the download.
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_STALLED_AFTER)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
