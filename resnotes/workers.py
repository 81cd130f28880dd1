"""Calls made in other processes of this machine, any of which may be killed: a `concurrent.futures` executor."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch

from resnotes import distributed
from resnotes.devices import resolve_device
from resnotes.errors import RunError

ATTEMPTS = 4  # as often as a Dask scheduler tries by default


class Workers(Executor):
    """So many processes with one thread each, started when they are needed; they end when this process does.

    A call whose process was killed is made again, in a new process; the others do not notice.

    Args:
        count: of calls that are made at once.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)  # each waits for a process of its own
        self._own = threading.local()
        self._pools: list[ProcessPoolExecutor] = []
        self._context = get_context("spawn")
        # Its other end is at its end of file as soon as this one is closed, also because this process was killed.
        self._watched, self._lifeline = self._context.Pipe(duplex=False)
        self._ended = False

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Make a call; its future raises a `RunError` if `ATTEMPTS` processes were killed over it."""
        return self._threads.submit(self._call, function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: after the calls that are under way, or, if `wait` is false, at once."""
        if not wait:
            self._ended = True
            self._lifeline.close()
        self._threads.shutdown(True, cancel_futures=cancel_futures or not wait)
        for pool in self._pools:
            pool.shutdown()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Leave by an exception, such as an interrupt, and nothing is waited for."""
        self.shutdown(wait=kind is None)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for _ in range(ATTEMPTS):
            try:
                return self._process().submit(function, *args, **kwargs).result()
            except BrokenProcessPool:
                del self._own.pool
                if self._ended:
                    raise
        raise RunError(f"its process was killed {ATTEMPTS} times; look for the cause, such as too little memory")

    def _process(self) -> ProcessPoolExecutor:
        """The process of this thread, as a pool of one."""
        if not hasattr(self._own, "pool"):
            self._own.pool = ProcessPoolExecutor(1, self._context, _begin, (self._watched,))
            self._pools.append(self._own.pool)
        pool: ProcessPoolExecutor = self._own.pool
        return pool


def local_workers(device: str, count: int | None) -> Workers | None:
    """So many of them, by default one for each thread of a CPU; None if one is enough, which is this process.

    One is, too, where processes train together.
    """
    if count is None:
        count = torch.get_num_threads() if resolve_device(device).type == "cpu" else 1
    return Workers(count) if count > 1 and distributed.size() == 1 else None


def _begin(watched: Connection) -> None:
    torch.set_num_threads(1)
    # Ctrl+C reaches every process of a terminal; whoever asked for the calls decides what becomes of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    wait([watched])
    os._exit(1)
