"""The index of a run: notebooks, figures and claims on one page."""

from __future__ import annotations

from pathlib import Path

from resnotes.book import cards
from resnotes.book.claims import SCOPES, WORDS, verdicts
from resnotes.book.results import merge
from resnotes.book.templating import environment
from resnotes.book.words import words_of
from resnotes.files import write_atomic
from resnotes.provenance import versions


def write_index(out: Path) -> Path:
    """Write `index.html` (notebooks, figures and claims on one page that opens from disk) and `claims.json` of a run.

    Args:
        out: folder with `claims/`, `figures/` and `notebooks/` as `run` leaves them.

    Returns:
        Path of `index.html`.

    Raises:
        ResnotesError: a ledger, or what describes a figure, is damaged.
    """
    results = merge(out)
    page = (
        environment()
        .get_template("index.html")
        .render(
            results=results,
            verdicts=verdicts,
            words=WORDS,
            scopes=SCOPES,
            marks=cards.MARKS,
            w=words_of("en"),
            sample=cards.sample,
            ground=cards.ground,
            chance=cards.chance(results.claims, "en"),
            datasets=sorted({s["dataset"] for c in results.claims for s in c["scopes"].values() if s["dataset"]}),
            versions=versions(),
        )
    )
    return write_atomic(out / "index.html", page)
