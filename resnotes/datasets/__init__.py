"""Data sets by name, and `register` for your own.

A new one of the package is a loader module, a line in the table below, and its name in the hints of `load`.
Importing this costs no more than torch: scikit-learn and torchvision are imported by the loaders when called.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any, Literal, NamedTuple, overload

from resnotes import typed
from resnotes.datasets import ade20k, camvid, cifar10, digits, scenes
from resnotes.datasets.classification import Classification, Normalization, fingerprinted
from resnotes.datasets.segmentation import IGNORED, Object, Sample, Segmentation, Split, Stacked
from resnotes.errors import DatasetError, UsageError, unknown
from resnotes.paths import data_root, expanded

__all__ = [
    "IGNORED",
    "Availability",
    "Classification",
    "Data",
    "Normalization",
    "Object",
    "Sample",
    "Segmentation",
    "Split",
    "Stacked",
    "fetch",
    "fingerprinted",
    "load",
    "names",
    "register",
    "registered",
    "status",
    "task",
]

Data = Classification | Segmentation  # what `load` gives
_RECORDS = {"classification": Classification, "segmentation": Segmentation}  # by task


@dataclass(frozen=True)
class Availability:
    """Whether a data set is at hand, or the networks that others published.

    Attributes:
        name: as `load` takes it, or ``published``.
        found: whether it loads without a download; of published networks, whether any does.
        where: what it is read from; where it is missing, what was looked for, and how to get it.
    """

    name: str
    found: bool
    where: str


class _Loader(NamedTuple):
    """A data set; one whose files lie in the folder of the data sets has a loader with the parameter `root`."""

    task: str
    load: Callable[..., Data]
    find: Callable[[Path], Path] | None = None  # None for what is always at hand
    fetch: Callable[[Path], None] | None = None  # None for what we cannot download
    ours: bool = True


_LOADERS = {
    "digits": _Loader("classification", digits.load),
    "cifar10": _Loader("classification", cifar10.load, cifar10.find, cifar10.fetch),
    "scenes": _Loader("segmentation", scenes.load),
    "camvid": _Loader("segmentation", camvid.load, camvid.find),
    "ade20k": _Loader("segmentation", ade20k.load, ade20k.find),
}


def register(
    name: str, load: Callable[..., Data], task: Literal["classification", "segmentation"] = "classification"
) -> None:
    """Adds a data set of your own, for as long as this process runs: `load(name)` then gives what its loader returns.

    Args:
        name: which no other data set has. A function of the same module and name as before takes its place, as where
            a cell of a notebook is executed again.
        load: returns a `Classification` (`fingerprinted` makes one of four tensors) or a `Segmentation`, as its task
            demands. Its parameters are options; one called `root` is given the folder of the data sets.
        task: ``"classification"``, one label an image, or ``"segmentation"``, one label a pixel.

    Raises:
        UsageError: the name is taken, or there is no such task.
    """
    if name in _LOADERS and _written_as(registered(name)) != _written_as(load):
        raise UsageError(f"a data set {name!r} is there already; expected a name other than {', '.join(_LOADERS)}")
    if task not in _RECORDS:
        raise unknown("task of a data set", task, _RECORDS)
    _LOADERS[name] = _Loader(task, load, ours=False)


def _written_as(load: Any) -> tuple[str, str]:
    definition = load if hasattr(load, "__qualname__") else type(load)
    return definition.__module__, definition.__qualname__


def registered(name: str) -> Callable[..., Data] | None:
    """The loader that was registered under this name, if one was."""
    return _LOADERS[name].load if name in _LOADERS and not _LOADERS[name].ours else None


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
        name: of the data set, one of these or a registered one.
        root: folder of the data sets; default `RESNOTES_DATA`, else `data/cache`.
        options: of its loader, such as `holdout`: see `load` of `resnotes.datasets.cifar10`, `scenes` and `camvid`.

    Raises:
        UsageError: no data set has this name, or it has no such option or value, or a registered loader returns
            something else than the record of its task.
        TypeError: a registered loader takes no such option.
        DatasetError: it is missing and cannot be downloaded, damaged, or not laid out as expected.
    """
    loader = _loader(name)
    given = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    parameters = signature(loader.load).parameters
    allowed = [option for option in parameters if option != "root"]
    if loader.ours:
        if unexpected := [option for option in given if option not in allowed]:
            raise UsageError(f"{name} takes no option {unexpected[0]!r}; allowed: {', '.join(allowed) or 'none'}")
        typed.check_arguments(loader.load, given, name)
    if "root" in parameters:
        given["root"] = _root(root)
    loaded = loader.load(**given)
    if not isinstance(loaded, record := _RECORDS[loader.task]):
        raise UsageError(
            f"{name} is registered for {loader.task}: its loader must return a {record.__name__}, found"
            f" {type(loaded).__name__}"
        )
    return loaded


def names() -> list[str]:
    """The data sets that `load` knows."""
    return list(_LOADERS)


def status(root: Path | str | None = None) -> list[Availability]:
    """Says of every data set whether it is at hand, without decoding any."""
    return [_status(name, loader, _root(root)) for name, loader in _LOADERS.items()]


def _status(name: str, loader: _Loader, root: Path) -> Availability:
    if loader.find is None:
        return Availability(name, True, "needs no download")
    try:
        return Availability(name, True, str(loader.find(root)))
    except DatasetError as error:
        return Availability(name, False, str(error))


def task(name: str) -> str:
    """``"classification"`` or ``"segmentation"``.

    Raises:
        UsageError: no data set has this name.
    """
    return _loader(name).task


def fetch(name: str, root: Path | str | None = None) -> None:
    """Downloads a data set unless it is there already; where there is nothing to download, it says so.

    Args:
        name: of the data set.
        root: folder of the data sets; default `RESNOTES_DATA`, else `data/cache`.

    Raises:
        UsageError: no data set has this name.
        DatasetError: the download failed; or the data set is missing and cannot be downloaded.
    """
    loader = _loader(name)
    if loader.fetch:
        loader.fetch(_root(root))
        return
    if loader.find:
        loader.find(_root(root))
    print(f"{name}: there is nothing to download", file=sys.stderr)


def _loader(name: str) -> _Loader:
    if name not in [*_LOADERS]:  # which may be no name at all
        raise unknown("data set", name, _LOADERS)
    return _LOADERS[name]


def _root(root: Path | str | None) -> Path:
    return data_root() if root is None else expanded(root)
