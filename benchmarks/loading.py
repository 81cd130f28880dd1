"""What users wait for before anything happens: the package, and its command's help, against `import torch`."""

from __future__ import annotations

import resource
import subprocess
import sys
from functools import partial

from benchmarks.timing import Row, Settings, turns

PROGRAMS = {
    "import resnotes": ["-c", "import resnotes"],
    "resnotes --help": ["-m", "resnotes", "--help"],
    "import torch": ["-c", "import torch"],
}


def of_children() -> float:
    """CPU seconds of all processes that were started and have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def started(arguments: list[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True)


def measure(settings: Settings) -> list[Row]:
    """Whole processes of Python; files are in the system's cache."""
    sides = {name: partial(started, arguments) for name, arguments in PROGRAMS.items()}
    if not settings.quick:
        turns(sides, 1, of_children)  # reads the files
    times = turns(sides, settings.rounds, of_children)
    reference = times.pop("import torch")
    return [
        Row(what=f"loading: `{name}`, from the start of Python; `import torch`", ours=ours, reference=reference)
        for name, ours in times.items()
    ]
