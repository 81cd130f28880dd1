"""Calls made by the workers of a Dask cluster, as a `concurrent.futures` executor. Needs ``resnotes[cluster]``.

Dask makes a call again, elsewhere, whose worker died, a few times at most.
"""

from __future__ import annotations

import contextlib
import logging
import re
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import TYPE_CHECKING, Any

from resnotes.errors import RunError, UsageError

if TYPE_CHECKING:
    from distributed import Client

TIMEOUT = 10.0  # seconds in which a scheduler must answer


class Cluster(Executor):
    """The workers that a client's scheduler has, or will have.

    Args:
        client: of the scheduler.
        token: a file that exists as long as calls are made, in the folder that all workers must share.
    """

    def __init__(self, client: Client, token: Path) -> None:
        self._executor = client.get_executor(pure=False)
        self._token = token
        self.workers = len(client.nthreads())
        self.dashboard: str | None = None
        with contextlib.suppress(KeyError):  # of a scheduler that was started without one
            self.dashboard = client.dashboard_link

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Make a call. Its future is cancelled if the scheduler goes away."""
        future: Future[Any] = self._executor.submit(_checked, self._token, function, args, kwargs)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Wait for all calls, or else take back those that have not begun; a worker ends what it has begun."""
        self._executor.shutdown(wait=wait and not cancel_futures)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Leave by an exception, such as an interrupt, and nothing is waited for."""
        self.shutdown(wait=kind is None)


@contextlib.contextmanager
def connected(address: str, folder: Path) -> Iterator[Cluster]:
    """The cluster of the Dask scheduler at `address`.

    Args:
        address: ``tcp://HOST:PORT``.
        folder: that all workers must share with this process; made if it does not exist.

    Raises:
        UsageError: Dask is not installed, or there is no scheduler at the address.
    """
    try:
        from distributed import Client
    except ImportError as error:
        raise UsageError(f"a cluster needs Dask, but {error}; pip install 'resnotes[cluster]'") from error
    logging.getLogger("distributed.client").setLevel(logging.CRITICAL)  # the errors raised here say it in a line
    try:
        if not re.fullmatch(r"(\w+://)?[^\s/]+:\d+", address):
            raise ValueError(address)  # with which Dask would try for long, and end in a traceback
        client = Client(address, timeout=TIMEOUT, set_as_default=False)
    except (OSError, ValueError) as error:
        raise UsageError(
            f"no Dask scheduler answers at {address!r} (in {TIMEOUT:g} s at most); start one with `dask scheduler`,"
            " and take the address that it prints, such as tcp://10.0.0.1:8786"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    with client, tempfile.NamedTemporaryFile(dir=folder.absolute(), prefix=".shared-") as token:
        yield Cluster(client, Path(token.name))


def _checked(token: Path, function: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """Make a call on a worker, unless its results could be wrong or nobody would see them."""
    from distributed import get_worker

    worker = get_worker()
    if worker.state.nthreads > 1:
        raise RunError(
            f"worker {worker.address} has {worker.state.nthreads} threads, but runs in one process would share random"
            " numbers; start it with --nthreads 1 (and --nworkers for several)"
        )
    if not token.exists():
        raise RunError(
            f"worker {worker.address} does not see the run store {token.parent}; set RESNOTES_RUNS to a folder that"
            " all machines share"
        )
    return function(*args, **kwargs)
