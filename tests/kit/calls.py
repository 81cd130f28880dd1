"""What tests have other processes do; imports nothing that takes long, as each of them would."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


def traced(folder: Path, function: Callable[..., Any], spec: Any, **options: Any) -> Any:
    """A call that trains `spec`, with a checkpoint after every epoch; the process leaves its number under its name."""
    from resnotes.training import loop

    loop.CHECKPOINT_SECONDS = 0.0
    (folder / spec.name).write_text(str(os.getpid()))
    return function(spec, **options)


def killed_at_first(mark: Path) -> str:
    """A call whose process is killed, the first time."""
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def slow(mark: Path, seconds: float = 600) -> None:
    mark.touch()
    time.sleep(seconds)


def until(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """What `condition` gives, as soon as that is true."""
    patience = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < patience
        time.sleep(0.005)
    return found


def begun(root: Path, names: list[str], epochs: int) -> str | None:
    """One of the runs at `root` that has a checkpoint, but not yet as many epochs."""
    for name in names:
        history = root / name / "history.csv"
        if (root / name / "checkpoint.pt").exists() and len(history.read_text().splitlines()) <= epochs:
            return name
    return None
