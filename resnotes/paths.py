"""Where things lie on disk. Every location is an environment variable with a default in the checkout.

Installed without one, the package stands where the user has no business: defaults are then in the current folder.

| variable         | default              | holds                                                                      |
|------------------|----------------------|----------------------------------------------------------------------------|
| `RESNOTES_DATA`  | `data/cache`         | data sets, and in `weights/` networks, as downloaded; may be read-only     |
| `RESNOTES_CACHE` | `data/cache/decoded` | decoded copies of them, made by us                                         |
| `RESNOTES_RUNS`  | `runs`               | the run store                                                              |
| `RESNOTES_OUT`   | `out`                | claims and figures of the notebook being executed                          |
"""

from __future__ import annotations

import os
from pathlib import Path

from resnotes.errors import ResnotesError, UsageError


def checkout() -> Path | None:
    """The checkout this package belongs to; None where it is installed without one, whatever lies beside it there."""
    folder = Path(__file__).resolve().parent.parent
    project = folder / "pyproject.toml"
    named = project.is_file() and b'name = "resnotes"' in project.read_bytes()
    return folder if named else None


def project_root() -> Path:
    """The checkout this package belongs to; the current folder where it is installed without one."""
    return checkout() or Path.cwd()


def of_project(folder: Path, pattern: str) -> list[Path]:
    """The files of the project with such names in a folder of it, by name.

    Raises:
        ResnotesError: there are none.
    """
    if not (found := sorted(folder.glob(pattern))):
        raise ResnotesError(
            f"found no {folder / pattern}: such files come with a checkout of the project, not with the installed"
            " package; work in its folder"
        )
    return found


def expanded(path: str | Path) -> Path:
    """The path that somebody means: absolute, with their home folder for `~`.

    Raises:
        UsageError: it is empty, as where a script's variable is not set; or nobody's.
    """
    if not str(path).strip():
        raise UsageError("expected a path, found an empty one; the current folder is .")
    try:
        return Path(path).expanduser().resolve()
    except (OSError, RuntimeError, ValueError) as error:  # nobody is called so; links in a circle; a zero byte
        raise UsageError(f"{str(path)!r} is no path: {error}") from error


def asked(path: str | Path) -> Path:
    """`expanded`, from where `resnotes run` was called: the kernels of its notebooks work in the checkout."""
    from_there = os.environ.get("RESNOTES_CALLED_FROM", ".")
    return expanded(path and (path if str(path).startswith("~") else Path(from_there, path)))


def folder(path: str | Path) -> Path:
    """`expanded`, of a folder that is there or can be made.

    Raises:
        UsageError: it, or what it should lie in, is a file.
    """
    found = expanded(path)
    there = next(place for place in (found, *found.parents) if place.exists())
    if not there.is_dir():
        raise UsageError(f"{there} is a file; expected a folder")
    return found


def _located(variable: str, default: str) -> Path:
    value = os.environ.get(variable)
    return folder(value) if value else project_root() / default


def data_root() -> Path:
    """Folder that holds the data sets, or an archive of one."""
    return expanded(os.environ.get("RESNOTES_DATA") or project_root() / "data" / "cache")


def weights_root() -> Path:
    """Folder of weights that others trained and published, beside the data sets."""
    return data_root() / "weights"


def cache_root() -> Path:
    """Folder for decoded copies of data sets; always writable by us, unlike the data itself."""
    return _located("RESNOTES_CACHE", "data/cache/decoded")


def runs_root() -> Path:
    """Folder of the run store."""
    return _located("RESNOTES_RUNS", "runs")


def recorded_root() -> Path:
    """Folder of the recorded runs, a read-only second store."""
    return project_root() / "data" / "recorded"


def papers_root() -> Path:
    """Folder of the papers' numbers."""
    return project_root() / "data" / "papers"


def published_root() -> Path:
    """Folder of what is known of networks that others trained: their curves, their splits, and what we measured."""
    return project_root() / "data" / "published"


def out_root() -> Path:
    """Folder that receives claims and figures."""
    return _located("RESNOTES_OUT", "out")
