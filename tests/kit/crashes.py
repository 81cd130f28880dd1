"""A run that is trained in a process to be killed, or without room or rights to write; for tests/test_faults.py.

The processes are forks of one that has imported PyTorch, so that each of them starts at once.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from tqdm import tqdm

from resnotes.errors import ResnotesError
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import RunStore
from resnotes.training import loop

NO_NAMESPACES = 77  # exit status where the system does not let a process give up its rights

_context = get_context("forkserver")
_context.set_forkserver_preload(["torch", "resnotes.runs.store", "kit.crashes"])


def start(spec: RunSpec, root: Path, **faults: Any) -> ForkServerProcess:
    """A process that gets `spec` from the store at `root`, and writes the message of our own errors to `root`.error.

    Args:
        spec: what to train.
        root: the store.
        faults: see `_get`.
    """
    process = _context.Process(target=_get, args=(spec.to_json(), root), kwargs=faults)
    process.start()
    return process


def message(root: Path) -> str:
    """What the last process on the store at `root` said of its failure."""
    return root.with_suffix(".error").read_text()


def _get(
    spec: str, root: Path, *, dies_at: int | None = None, largest: int | None = None, powerless: bool = False
) -> None:
    """Get a run, with checkpoints after every epoch.

    Args:
        spec: JSON of the specification.
        root: the store.
        dies_at: kill this process before the change with this number, from 0, of a name in a folder: before a file that
            was written gets its name, or before one is removed.
        largest: no file can get larger than so many bytes, as on a disk that is full.
        powerless: the superuser's rights are given up, so that the mode of a folder means something.
    """
    loop.CHECKPOINT_SECONDS = 0
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # its own is a semaphore, of which each process that is killed would leave one
    if dies_at is not None:
        changes: Iterator[int] = iter(range(dies_at))
        for name in ("replace", "unlink"):
            setattr(Path, name, _deadly(getattr(Path, name), changes))
    if largest is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
    if powerless and os.geteuid() == 0 and ctypes.CDLL(None).unshare(0x10000000):  # CLONE_NEWUSER
        os._exit(NO_NAMESPACES)
    try:
        RunStore(root, root / "no recorded runs").get(RunSpec.from_json(spec), device="cpu")
    except ResnotesError as error:
        root.with_suffix(".error").write_text(str(error))
        os._exit(1)


def _deadly(change: Callable[..., Any], changes: Iterator[int]) -> Callable[..., Any]:
    def until_the_last(*arguments: Any, **options: Any) -> Any:
        if next(changes, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **options)

    return until_the_last
