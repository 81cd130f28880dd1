"""Networks and data sets that somebody registered, and how another process comes to know them."""

from __future__ import annotations

from multiprocessing.reduction import ForkingPickler
from types import ModuleType
from typing import TYPE_CHECKING, Any

from resnotes import datasets, models

if TYPE_CHECKING:
    from resnotes.runs.spec import RunSpec

ROOMS: dict[str, ModuleType] = {"models": models, "datasets": datasets}

Registrations = list[tuple[str, tuple[Any, ...]]]  # names of rooms, and the arguments of their `register`


def source(name: str) -> str | None:
    """Hash of the source of a network that was registered; None for those of this package, and unknown ones."""
    return ROOMS["models"].source(name) if hasattr(models, "source") else None


def _registered(room: str, name: str) -> Any:
    """What builds a network, or loads a data set, if it was registered; else None."""
    return ROOMS[room].registered(name) if hasattr(ROOMS[room], "registered") else None


def to_send(spec: RunSpec) -> Registrations | None:
    """What another process must register to train `spec`; None if it cannot be sent there.

    What a notebook or a program defines is part of its module `__main__`, which is another one elsewhere.
    """
    needed: Registrations = []
    if build := _registered("models", spec.model):
        needed.append(("models", (spec.model, build)))
    elif spec.source:  # one that is not at hand here either
        return None
    if load := _registered("datasets", spec.dataset):
        needed.append(("datasets", (spec.dataset, load, datasets.task(spec.dataset))))
    try:
        return None if b"__main__" in bytes(ForkingPickler.dumps(needed)) else needed
    except Exception:  # whatever the pickling of a foreign object raises
        return None


def register(needed: Registrations) -> None:
    """Do what `to_send` says, in a process that may have done it before."""
    for room, arguments in needed:
        if _registered(room, arguments[0]) is None:
            ROOMS[room].register(*arguments)
