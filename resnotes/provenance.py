"""Which code, on which versions, made a result."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import resnotes
from resnotes import paths


def code_version() -> dict[str, Any]:
    """``commit`` of the checkout, and whether the code differs from it: ``dirty``.

    The commit is `None` where the package does not lie in a git checkout of its own. `dirty` looks at package and
    notebooks only: a result just written must not mark the code as changed.
    """
    folder = paths.checkout()
    top = folder and _said("git", "rev-parse", "--show-cdup", at=folder)
    commit = folder and _said("git", "rev-parse", "--verify", "HEAD", at=folder)
    if top != "" or commit is None:  # a non-empty way up means that the repository is somebody else's
        return {"commit": None, "dirty": False}
    changes = _said("git", "status", "--porcelain", "--", "resnotes", "notebooks", at=folder)
    return {"commit": commit, "dirty": bool(changes)}


def processor() -> str:
    """The processor in words, with its number of cores."""
    listed = Path("/proc/cpuinfo")  # Linux knows more than Python tells
    found = re.search(r"^model name\s*: (.*)", listed.read_text() if listed.exists() else "", re.MULTILINE)
    return f"{found[1] if found else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def machine() -> str:
    """The processor, and the GPUs that NVIDIA's driver knows, without importing torch."""
    gpus = _said("nvidia-smi", "--query-gpu=name", "--format=csv,noheader") or ""
    return "; ".join([processor(), *gpus.splitlines()])


def versions() -> dict[str, str]:
    """Versions of what results depend on, without importing any of it."""
    others = {package: metadata.version(package) for package in ("torch", "torchvision", "numpy")}
    return {"resnotes": resnotes.__version__, "python": platform.python_version(), **others}


def _said(*command: str, at: Path | None = None) -> str | None:
    """What a command prints in a folder, or `None` where there is no such command, or it fails."""
    try:
        done = subprocess.run(command, cwd=at, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
