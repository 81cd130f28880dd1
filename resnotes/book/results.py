"""What lies in the folder of a run: executed notebooks, their claims, their figures."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from resnotes.book.exports import load
from resnotes.book.ledger import OUTCOME, WORDS, collect, is_finished
from resnotes.book.notebooks import read, title_of
from resnotes.errors import ResnotesError


@dataclass(frozen=True)
class ExecutedNotebook:
    """A notebook in the folder of a run, with what the runner noted in it.

    Attributes:
        stem: name of its file, without ending.
        title: its first heading.
        state: ``"done"``, ``"failed"`` where a cell failed, or ``"unfinished"`` where whoever executed it was ended.
        seconds: wall time.
        finished: when it was executed.
        profile: scale of the experiments; None if it was not given.
        machine: what it was executed on, in words.
        commit: commit of the code, abbreviated; with a plus where the code was changed since.
    """

    stem: str
    title: str
    state: str
    seconds: float | None
    finished: datetime | None
    profile: str | None
    machine: str | None
    commit: str | None

    @property
    def failed(self) -> bool:
        """Whether a cell failed."""
        return self.state == "failed"


@dataclass(frozen=True)
class Results:
    """What one or more executions left in a folder: the claims, the sidecars of the figures, the notebooks."""

    folder: Path
    claims: list[dict[str, Any]]
    figures: list[dict[str, Any]]
    notebooks: list[ExecutedNotebook]

    def claims_of(self, stem: str) -> list[dict[str, Any]]:
        """The claims of one notebook, in the order recorded."""
        return [claim for claim in self.claims if claim["notebook"] == stem]

    def figures_of(self, stem: str) -> list[dict[str, Any]]:
        """The figures of one notebook: those that carry its number."""
        return [figure for figure in self.figures if figure["name"].split("_")[0] == stem.split("_")[0]]


def read_results(folder: Path) -> Results:
    """What lies in `folder`, as `run` leaves it; of a notebook that was not finished, neither claims nor figures.

    Raises:
        ResnotesError: a ledger, a figure or a notebook in the folder is damaged.
    """
    return Results(
        folder,
        collect(folder / "claims"),
        load(folder / "figures"),
        [executed(path) for path in sorted((folder / "notebooks").glob("*.ipynb"))],
    )


def verdicts(ledger: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """How many claims are `true`, `false` and `undecided`."""
    return Counter(WORDS[claim["holds"]] for claim in ledger)


def executed(path: Path) -> ExecutedNotebook:
    """What is known of the executed notebook at `path`.

    Raises:
        ResnotesError: the file is missing.
    """
    if not is_finished(path):
        return ExecutedNotebook(path.stem, _title(path), "unfinished", None, None, None, None, None)
    notebook = read(path)
    noted: dict[str, Any] = notebook.metadata.get(OUTCOME, {})
    commit = noted.get("commit")
    return ExecutedNotebook(
        stem=path.stem,
        title=title_of(notebook) or path.stem,
        state="failed" if noted.get("failed") else "done",
        seconds=noted.get("seconds"),
        finished=datetime.fromisoformat(noted["finished"]) if "finished" in noted else None,
        profile=noted.get("parameters", {}).get("profile"),
        machine=noted.get("machine"),
        commit=commit and commit[:10] + ("+" if noted.get("dirty") else ""),
    )


def _title(path: Path) -> str:
    """The title of a notebook that may not be whole."""
    with contextlib.suppress(ResnotesError):
        return title_of(read(path)) or path.stem
    return path.stem
