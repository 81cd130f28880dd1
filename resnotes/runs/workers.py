"""Calls made in other processes of this machine, any of which may be killed: a `concurrent.futures` executor."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from typing import Any

import torch

from resnotes import distributed
from resnotes.devices import resolve_device
from resnotes.errors import RunError, UsageError

VARIABLE = "RESNOTES_WORKERS"
ATTEMPTS = 4  # as often as a Dask scheduler tries by default


class Workers(Executor):
    """`count` processes with one thread each, started when they are needed; they end when this process does.

    A call whose process was killed is made again, in a new process; the others do not notice.

    Args:
        count: of calls that are made at once.
    """

    def __init__(self, count: int) -> None:
        self._threads = ThreadPoolExecutor(count)  # each waits for a process of its own
        self._own = threading.local()
        self._processes: list[ProcessPoolExecutor] = []
        self._context = _context()
        # Its other end is at its end of file as soon as this one is closed, also because this process was killed.
        self._watched, self._lifeline = self._context.Pipe(duplex=False)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Make a call; its future raises a `RunError` if `ATTEMPTS` processes were killed over it."""
        return self._threads.submit(self._call, function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes: after the calls that are under way, or, if `wait` is false, at once."""
        if not wait:
            self._lifeline.close()
        self._threads.shutdown(True, cancel_futures=cancel_futures or not wait)
        for process in self._processes:
            process.shutdown()

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Leave by an exception, such as an interrupt, and nothing is waited for."""
        self.shutdown(wait=kind is None)

    def _call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for _ in range(ATTEMPTS):
            if not hasattr(self._own, "process"):  # of this thread
                start = (self._watched, dict(os.environ))
                self._own.process = ProcessPoolExecutor(1, self._context, _begin, start)
                self._processes.append(self._own.process)
            try:
                return self._own.process.submit(function, *args, **kwargs).result()
            except BrokenProcessPool:
                del self._own.process
                if self._lifeline.closed:
                    raise
        raise RunError(
            f"its process was killed {ATTEMPTS} times; look for the cause, such as too little memory, or a program that"
            " trains where it is imported, and not under `if __name__ == '__main__':`"
        )


def local_workers(device: str, count: int | None) -> Workers | None:
    """A pool of `count` workers; None where this process alone trains, or together with others.

    By default there are as many as `RESNOTES_WORKERS` says, else as PyTorch has threads here; on a GPU there is none.

    Raises:
        UsageError: that variable is no number of processes.
    """
    if distributed.size() > 1 or (count is None and resolve_device(device).type != "cpu"):
        return None
    if count is None:
        text = os.environ.get(VARIABLE) or str(torch.get_num_threads())
        count = int(text) if text.isdecimal() and len(text) < 5 else 0
        if count < 1:
            raise UsageError(f"{VARIABLE} must be a number of processes, 1 or more; found {text!r}")
    return Workers(count) if count > 1 else None


def _context() -> BaseContext:
    """How processes are started: afresh, as neither PyTorch's threads nor CUDA survive a fork.

    On Linux that is a fork of a process that has imported what takes long, and done nothing else: of this package
    nothing, which might be another checkout's there. Elsewhere libraries that were merely loaded may not survive it.
    """
    if sys.platform != "linux":
        return get_context("spawn")
    context = get_context("forkserver")
    context.set_forkserver_preload(["torch._dynamo", "pandas"])  # every optimizer imports the first
    return context


def _begin(watched: Connection, environment: dict[str, str]) -> None:
    os.environ.clear()  # it may be that of an earlier moment
    os.environ.update(environment)
    torch.set_num_threads(1)
    # Ctrl+C reaches every process of a terminal; whoever asked for the calls decides what becomes of them.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with, args=(watched,), daemon=True).start()


def _end_with(watched: Connection) -> None:
    wait([watched])
    os._exit(1)
