"""Which code, on which versions, made a result."""

from __future__ import annotations

import contextlib
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import TypedDict

import resnotes
from resnotes import paths


class CodeVersion(TypedDict):
    """The commit checked out, and whether the code differs from it."""

    commit: str | None
    dirty: bool


def code_version() -> CodeVersion:
    """Commit of the checkout; `None` where the package does not lie in a git checkout of its own.

    `dirty` looks at package and notebooks only: a result just written must not mark the code as changed.
    """
    top = _git("rev-parse", "--show-cdup")
    commit = _git("rev-parse", "--verify", "HEAD")
    if top != "" or commit is None:  # a non-empty way up means that the repository is somebody else's
        return {"commit": None, "dirty": False}
    return {"commit": commit, "dirty": bool(_git("status", "--porcelain", "--", "resnotes", "notebooks"))}


def processor() -> str:
    """The processor in words, with its number of cores."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # Linux knows more than Python tells
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} cores"


def machine() -> str:
    """The processor, and the GPUs that NVIDIA's driver knows, without importing torch."""
    try:
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        found = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        found = []
    return "; ".join([processor(), *found])


def versions() -> dict[str, str]:
    """Versions of what results depend on, without importing any of it; what is not installed is left out."""
    found = {"resnotes": resnotes.__version__, "python": platform.python_version()}
    for package in ("torch", "torchvision", "numpy"):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(*arguments: str) -> str | None:
    """Output of a git command in the checkout, or `None` where git or the repository is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=paths.project_root(),
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
