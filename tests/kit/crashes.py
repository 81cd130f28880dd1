"""A run that is trained in a process to be killed.

The processes are forks of one that has imported PyTorch, so that each of them starts at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from threading import RLock
from typing import Any

import torch
from tqdm import tqdm

from resnotes.runs.spec import RunSpec
from resnotes.runs.store import RunStore
from resnotes.training import loop

_context = get_context("forkserver")
_context.set_forkserver_preload(["torch", "resnotes.runs.store", "kit.crashes"])


def start(spec: RunSpec, root: Path, *, dies_at: int | None = None) -> ForkServerProcess:
    """A process that gets `spec` from the store at `root`, with checkpoints after every epoch.

    Args:
        spec: what to train.
        root: the store.
        dies_at: kill this process before the change with this number, from 0, of a name in a folder: before a file that
            was written gets its name, or before one is removed.
    """
    process = _context.Process(target=_get, args=(spec.to_json(), root, dies_at))
    process.start()
    return process


def _get(spec: str, root: Path, dies_at: int | None) -> None:
    loop.CHECKPOINT_SECONDS = 0
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # its own is a semaphore, of which each process that is killed would leave one
    if dies_at is not None:
        changes: Iterator[int] = iter(range(dies_at))
        for name in ("replace", "unlink"):
            setattr(Path, name, _deadly(getattr(Path, name), changes))
    RunStore(root, root / "no recorded runs").get(RunSpec.from_json(spec), device="cpu")


def _deadly(change: Callable[..., Any], changes: Iterator[int]) -> Callable[..., Any]:
    def until_the_last(*arguments: Any, **options: Any) -> Any:
        if next(changes, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return change(*arguments, **options)

    return until_the_last
