"""The index of a run: its claims, its figures and its notebooks on one page that opens from disk."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from resnotes import claims, figures
from resnotes.files import write_atomic, write_json
from resnotes.notebooks import OUTCOME, read
from resnotes.provenance import code_version, versions


@dataclass(frozen=True)
class ExecutedNotebook:
    """A notebook in the folder of a run."""

    stem: str
    title: str
    profile: str | None
    seconds: float | None
    failed: bool


def write_index(out: Path) -> Path:
    """Merge the claims in `out` into `claims.json` and write `index.html`, both from what lies in the folder.

    Args:
        out: folder of a run, with `claims/`, `figures/` and `notebooks/` as `run` leaves them.

    Returns:
        Path of `index.html`.

    Raises:
        ResnotesError: a ledger, a figure or a notebook in the folder is damaged.
    """
    ledger = claims.collect(out / "claims")
    write_json(out / "claims.json", ledger)
    notebooks = [_executed(path) for path in sorted((out / "notebooks").glob("*.ipynb"))]
    page = (
        _environment()
        .get_template("index.html")
        .render(
            claims=ledger,
            figures=figures.load(out / "figures"),
            notebooks=notebooks,
            profiles=sorted(
                {book.profile for book in notebooks if book.profile} or {claim["profile"] for claim in ledger}
            ),
            verdicts=Counter(claims.WORDS[claim["holds"]] for claim in ledger),
            words=claims.WORDS,
            code=code_version(),
            versions=versions(),
        )
    )
    return write_atomic(out / "index.html", page)


def _executed(path: Path) -> ExecutedNotebook:
    """What the runner noted in an executed notebook."""
    notebook = read(path)
    noted: dict[str, Any] = notebook.metadata.get(OUTCOME, {})
    return ExecutedNotebook(
        stem=path.stem,
        title=_title(notebook) or path.stem,
        profile=noted.get("parameters", {}).get("profile"),
        seconds=noted.get("seconds"),
        failed=noted.get("failed", False),
    )


def _title(notebook: Any) -> str:
    """The first Markdown heading; papermill may have put a note on an error above it."""
    lines = (line for cell in notebook.cells if cell.cell_type == "markdown" for line in cell.source.splitlines())
    return next((line.lstrip("# ") for line in lines if line.startswith("# ")), "")


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("resnotes"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
