"""Data sets by name. A new one is a loader module and a line in `_LOADERS`.

Importing this costs no more than torch: scikit-learn and torchvision are imported by the loaders when called.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from resnotes.datasets import cifar10, digits
from resnotes.datasets.availability import Availability
from resnotes.datasets.classification import Classification, Normalization
from resnotes.errors import unknown
from resnotes.paths import data_root

__all__ = ["Availability", "Classification", "Normalization", "fetch", "load", "status"]


class _Loader(Protocol):
    """What a loader module offers; `root` is the folder of all data sets."""

    def load(self, root: Path) -> Classification: ...
    def status(self, root: Path) -> Availability: ...
    def fetch(self, root: Path, mirrors: Sequence[str]) -> None: ...


_LOADERS: dict[str, _Loader] = {"digits": digits, "cifar10": cifar10}


def load(name: str, root: Path | str | None = None) -> Classification:
    """Loads a data set: `digits` or `cifar10`.

    Args:
        name: of the data set.
        root: folder of the data sets; default `RESNOTES_DATA`, else `data/cache`.

    Raises:
        UsageError: no data set has this name.
        DatasetError: it is missing and cannot be downloaded, damaged, or not laid out as expected.
    """
    return _loader(name).load(_root(root))


def status(root: Path | str | None = None) -> list[Availability]:
    """Says of every data set whether it is at hand, without decoding any."""
    return [loader.status(_root(root)) for loader in _LOADERS.values()]


def fetch(name: str, root: Path | str | None = None, mirrors: Sequence[str] = ()) -> None:
    """Downloads a data set unless it is there already; one that ships with a library needs nothing.

    Args:
        name: of the data set.
        root: folder of the data sets; default `RESNOTES_DATA`, else `data/cache`.
        mirrors: URLs to try before the publisher's own.

    Raises:
        UsageError: no data set has this name.
        DatasetError: no mirror delivered it; the message lists the failure of each.
    """
    _loader(name).fetch(_root(root), mirrors)


def _loader(name: str) -> _Loader:
    if name not in _LOADERS:
        raise unknown("data set", name, _LOADERS)
    return _LOADERS[name]


def _root(root: Path | str | None) -> Path:
    return data_root() if root is None else Path(root)
