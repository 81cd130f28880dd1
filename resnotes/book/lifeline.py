"""Notebooks are executed in processes of their own, which are not to outlive the one that started them.

Each is given the end of a pipe as its standard input. Nothing is written into that: it ends when its other end is
closed, as the system does for a process that is gone, whatever ended it. `python -m resnotes.book.lifeline` calls
papermill, and waits for that beside its work.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from threading import Thread
from typing import IO, Any

import psutil

_PATIENCE = 10.0  # seconds in which papermill can notice that its kernel is gone, and write what the notebook has


@contextlib.contextmanager
def lifeline() -> Iterator[IO[bytes]]:
    """What `execute_in_child` holds on to; once this is left, or its process ends, all that do end with their kernels.

    A notebook then keeps the cells that were finished.
    """
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as held, os.fdopen(writing, "wb"):
        yield held


def execute_in_child(
    held: IO[bytes], environment: Mapping[str, str], **arguments: Any
) -> subprocess.CompletedProcess[str]:
    """Call `papermill.execute_notebook` with arguments that JSON can hold; `stdout` says what it raised."""
    return subprocess.run(
        [sys.executable, "-m", "resnotes.book.lifeline", json.dumps(arguments)],
        env={**environment, "PYTHONIOENCODING": "utf-8"},  # whatever the console's, an error may quote any letter
        stdin=held,
        capture_output=True,
        encoding="utf-8",
        errors="replace",
        check=False,
        start_new_session=True,  # Ctrl+C in a terminal is for this process alone, which then ends the others
    )


def _end_with_stdin() -> None:
    """Wait for the end of standard input, then end all processes below this one, and at last this one."""
    while os.read(0, 1):  # below Python's own streams, whose locks would be held when the interpreter finishes
        pass
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline:  # more than once: a kernel may just have been starting
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.1)
    os._exit(1)


if __name__ == "__main__":
    Thread(target=_end_with_stdin, daemon=True).start()
    from nbclient.exceptions import DeadKernelError
    from papermill import execute_notebook
    from papermill.exceptions import PapermillExecutionError

    from resnotes import errors

    try:
        execute_notebook(**json.loads(sys.argv[1]))
    except PapermillExecutionError as error:
        # What we refuse is said in one line; where the notebook did so stands in its executed copy.
        ours = hasattr(errors, error.ename)
        print(f"cell {error.exec_count}: {error.ename}: {error.evalue}" if ours else f"{type(error).__name__}: {error}")
        sys.exit(1)
    except Exception as error:
        hint = ": it was killed, ran out of memory or exited" if isinstance(error, DeadKernelError) else ""
        print(f"{type(error).__name__}: {error}{hint}")
        sys.exit(1)
