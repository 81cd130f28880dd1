"""Data sets by name. A new one is a loader module and a line in one of the tables of loaders.

Importing this costs no more than torch: scikit-learn and torchvision are imported by the loaders when called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, overload

from resnotes import typed
from resnotes.datasets import ade20k, camvid, cifar10, digits, scenes
from resnotes.datasets.availability import Availability
from resnotes.datasets.classification import Classification, Normalization
from resnotes.datasets.segmentation import Object, Sample, Segmentation, Split
from resnotes.errors import UsageError, unknown
from resnotes.paths import data_root

__all__ = [
    "Availability",
    "Classification",
    "Data",
    "Normalization",
    "Object",
    "Sample",
    "Segmentation",
    "Split",
    "fetch",
    "load",
    "load_classification",
    "load_segmentation",
    "names",
    "status",
    "task",
]

Data = Classification | Segmentation  # what `load` gives

_Data_co = TypeVar("_Data_co", bound=Classification | Segmentation, covariant=True)
_Loaded = TypeVar("_Loaded", bound=Classification | Segmentation)


class _Loader(Protocol[_Data_co]):
    """What a loader module offers; `root` is the folder of all data sets. Options of `load` are its keywords."""

    @property
    def load(self) -> Callable[..., _Data_co]: ...
    def status(self, root: Path) -> Availability: ...
    def fetch(self, root: Path, mirrors: Sequence[str]) -> None: ...


_CLASSIFICATION: dict[str, _Loader[Classification]] = {"digits": digits, "cifar10": cifar10}
_SEGMENTATION: dict[str, _Loader[Segmentation]] = {"scenes": scenes, "camvid": camvid, "ade20k": ade20k}
_LOADERS: dict[str, _Loader[Classification | Segmentation]] = {**_CLASSIFICATION, **_SEGMENTATION}


@overload
def load(name: Literal["digits", "cifar10"], root: Path | str | None = None, **options: Any) -> Classification: ...
@overload
def load(
    name: Literal["scenes", "camvid", "ade20k"], root: Path | str | None = None, **options: Any
) -> Segmentation: ...
@overload
def load(name: str, root: Path | str | None = None, **options: Any) -> Data: ...
def load(name: str, root: Path | str | None = None, **options: Any) -> Data:
    """Loads a data set: `digits` or `cifar10` for classification; `scenes`, `camvid` or `ade20k` for segmentation.

    Args:
        name: of the data set.
        root: folder of the data sets; default `RESNOTES_DATA`, else `data/cache`.
        options: of its loader, such as `holdout`: see `load` of `resnotes.datasets.cifar10`, `scenes` and `camvid`.

    Raises:
        UsageError: no data set has this name, or it has no such option or value.
        DatasetError: it is missing and cannot be downloaded, damaged, or not laid out as expected.
    """
    return _load(_LOADERS, "data set", name, root, options)


def load_classification(name: str, root: Path | str | None = None, **options: Any) -> Classification:
    """`load`, for those who need one label an image; any other data set is a `UsageError`."""
    return _load(_CLASSIFICATION, "data set for classification", name, root, options)


def load_segmentation(name: str, root: Path | str | None = None, **options: Any) -> Segmentation:
    """`load`, for those who need one label a pixel; any other data set is a `UsageError`."""
    return _load(_SEGMENTATION, "data set for segmentation", name, root, options)


def names() -> list[str]:
    """The data sets that `load` knows."""
    return list(_LOADERS)


def status(root: Path | str | None = None) -> list[Availability]:
    """Says of every data set whether it is at hand, without decoding any."""
    return [loader.status(_root(root)) for loader in _LOADERS.values()]


def task(name: str) -> str:
    """``"classification"`` or ``"segmentation"``.

    Raises:
        UsageError: no data set has this name.
    """
    if name not in _LOADERS:
        raise unknown("data set", name, _LOADERS)
    return "classification" if name in _CLASSIFICATION else "segmentation"


def fetch(name: str, root: Path | str | None = None, mirrors: Sequence[str] = ()) -> None:
    """Downloads a data set unless it is there already; one that ships with a library needs nothing.

    Args:
        name: of the data set.
        root: folder of the data sets; default `RESNOTES_DATA`, else `data/cache`.
        mirrors: URLs to try before the publisher's own.

    Raises:
        UsageError: no data set has this name.
        DatasetError: no mirror delivered it, and the message lists the failure of each; or it cannot be downloaded.
    """
    if name not in _LOADERS:
        raise unknown("data set", name, _LOADERS)
    _LOADERS[name].fetch(_root(root), mirrors)


def _load(
    loaders: Mapping[str, _Loader[_Loaded]],
    kind: str,
    name: str,
    root: Path | str | None,
    options: Mapping[str, Any],
) -> _Loaded:
    if name not in loaders:
        raise unknown(kind, name, loaders)
    allowed = list(signature(loaders[name].load).parameters)[1:]
    for option in options:
        if option not in allowed:
            raise UsageError(f"{name} takes no option {option!r}; allowed: {', '.join(allowed) or 'none'}")
    given = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    typed.check_arguments(loaders[name].load, given, name)
    return loaders[name].load(_root(root), **given)


def _root(root: Path | str | None) -> Path:
    return data_root() if root is None else Path(root)
