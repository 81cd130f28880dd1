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


def to_send(spec: RunSpec) -> Registrations | None:
    """What another process must register to train `spec`; None if it cannot be sent there.

    What a notebook or a program defines is part of its module `__main__`, which is another one elsewhere.
    """
    needed: Registrations = []
    if build := models.registered(spec.model):
        needed.append(("models", (spec.model, build)))
    elif spec.source:  # one that is not at hand here either
        return None
    if load := datasets.registered(spec.dataset):
        needed.append(("datasets", (spec.dataset, load, datasets.task(spec.dataset))))
    try:
        return None if b"__main__" in bytes(ForkingPickler.dumps(needed)) else needed
    except Exception:  # whatever the pickling of a foreign object raises
        return None


def register(needed: Registrations) -> None:
    """Do what `to_send` says, in a process that may have done it before."""
    for room, arguments in needed:
        if ROOMS[room].registered(arguments[0]) is None:
            ROOMS[room].register(*arguments)
