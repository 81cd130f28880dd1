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
from collections.abc import Mapping
from threading import Thread
from typing import Any, Self

import psutil

_PATIENCE = 10.0  # seconds in which papermill can notice that its kernel is gone, and write what the notebook has


class Lifeline:
    """Starts papermill; once this is left, or its process ends, papermill, its kernel and their children end.

    A notebook then keeps the cells that were finished.
    """

    def __enter__(self) -> Self:
        reading, writing = os.pipe()
        self._reading, self._writing = os.fdopen(reading, "rb"), os.fdopen(writing, "wb")
        return self

    def __exit__(self, *_: object) -> None:
        self._writing.close()
        self._reading.close()

    def papermill(self, environment: Mapping[str, str], **arguments: Any) -> subprocess.CompletedProcess[str]:
        """Call `papermill.execute_notebook` with arguments that JSON can hold; what it raises is in `stderr`."""
        return subprocess.run(
            [sys.executable, "-m", "resnotes.book.lifeline", json.dumps(arguments)],
            env=environment,
            stdin=self._reading,
            capture_output=True,
            text=True,
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
    # Unless it cannot, jsonschema imports a grammar for internationalised addresses, which no notebook needs: 0.7 s.
    sys.modules["rfc3987_syntax"] = None  # type: ignore[assignment]
    import papermill

    papermill.execute_notebook(**json.loads(sys.argv[1]))
