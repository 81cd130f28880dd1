"""What lies in the folder of a run: executed notebooks, their claims, their figures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from resnotes.book.claims import load, marked
from resnotes.book.notebooks import Notebook, title_of
from resnotes.errors import ResnotesError
from resnotes.figures.saving import described
from resnotes.files import read_json, write_json
from resnotes.typed import check_entry

# Metadata of an executed notebook: how long, when, where and with what it ran, and whether it failed. It comes last:
# without it, or where the file is not even whole, whoever executed the notebook was ended before it was finished.
NOTE = "resnotes"


@dataclass(frozen=True)
class _Note:
    """What the runner notes in a notebook, under `NOTE`, as `resnotes.book.execution` has it."""

    seconds: float
    failed: bool
    finished: str
    parameters: Mapping[str, Any]
    machine: str
    commit: str | None
    dirty: bool = False


@dataclass(frozen=True)
class ExecutedNotebook:
    """A notebook in the folder of a run, with what the runner noted in it.

    Attributes:
        stem: name of its file, without ending.
        title: its first heading.
        state: ``"done"``, ``"failed"`` where a cell failed, or ``"unfinished"`` where whoever executed it was ended.
        seconds: wall time.
        finished: when it was executed.
        profile: scale of the experiments, and other parameters than the notebook's own; None if it was not given.
        machine: what it was executed on, in words.
        commit: commit of the code, abbreviated; with a plus where the code was changed since.
    """

    stem: str
    title: str
    state: str
    seconds: float | None = None
    finished: datetime | None = None
    profile: str | None = None
    machine: str | None = None
    commit: str | None = None


@dataclass(frozen=True)
class Results:
    """What one or more executions left in a folder: the claims, the sidecars of the figures, the notebooks."""

    folder: Path
    claims: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    notebooks: list[ExecutedNotebook]

    def claims_of(self, stem: str) -> list[dict[str, Any]]:
        """The claims of one notebook, in the order decided."""
        return [claim for claim in self.claims if claim["notebook"] == stem]

    def figures_of(self, stem: str) -> list[dict[str, Any]]:
        """The figures of one notebook: those that carry its number."""
        return [figure for figure in self.figures if _number(figure["name"]) == _number(stem)]


def read_results(folder: Path) -> Results:
    """What lies in `folder`, as `run` leaves it; of a notebook that was not finished, neither claims nor figures.

    Claims come by notebook, then in the order decided, marked by Benjamini and Hochberg's procedure over all; figures
    by notebook, then in the order saved.

    Raises:
        ResnotesError: a ledger or what describes a figure is damaged.
    """
    notebooks = [executed(path) for path in sorted((folder / "notebooks").glob("*.ipynb"))]
    unfinished = {book.stem for book in notebooks if book.state == "unfinished"}
    ledgers = [path for path in sorted((folder / "claims").glob("*.json")) if path.stem not in unfinished]
    sidecars = sorted(
        (folder / "figures").glob("*.json"), key=lambda path: (_number(path.stem), path.stat().st_mtime_ns, path.name)
    )
    return Results(
        folder,
        marked([claim for path in ledgers for claim in load(path)]),
        [described(path) for path in sidecars if _number(path.stem) not in map(_number, unfinished)],
        notebooks,
    )


def merge(out: Path) -> Results:
    """Write the claims of all notebooks to `out/claims.json`; returns what lies in `out`."""
    results = read_results(out)
    write_json(out / "claims.json", results.claims)
    return results


def executed(path: Path) -> ExecutedNotebook:
    """What is known of the executed notebook at `path`."""
    title = path.stem
    try:
        notebook = read_json(path)
        title = title_of(notebook) or title
        note = _Note(**check_entry(_Note, notebook["metadata"][NOTE], "a note"))
        finished = datetime.fromisoformat(note.finished)
        own = Notebook(path).parameters
    except (ResnotesError, KeyError, TypeError, ValueError):  # of a notebook that is no longer what was written
        return ExecutedNotebook(path.stem, title, "unfinished")
    given = [
        f"{name}={value}"
        for name, value in note.parameters.items()
        if name != "profile" and own.get(name, value) != value
    ]
    return ExecutedNotebook(
        stem=path.stem,
        title=title,
        state="failed" if note.failed else "done",
        seconds=note.seconds,
        finished=finished,
        profile=", ".join(filter(None, [note.parameters.get("profile"), *given])) or None,
        machine=note.machine,
        commit=note.commit and note.commit[:10] + ("+" if note.dirty else ""),
    )


def _number(name: str) -> str:
    """What the names of a notebook and of its figures begin with."""
    return name.partition("_")[0]
