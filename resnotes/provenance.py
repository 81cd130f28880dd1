"""Which code, on which versions, made a result."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
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
