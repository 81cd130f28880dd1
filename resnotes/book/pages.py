"""The pages of a run: its index, with answers, claims and figures, and links between the pages of its notebooks."""

from __future__ import annotations

from pathlib import Path

from markupsafe import escape

from resnotes.book import cards, story
from resnotes.book.claims import SCOPES, WORDS, verdicts
from resnotes.book.rendering import NEIGHBOURS
from resnotes.book.results import Results, merge
from resnotes.book.templating import environment
from resnotes.book.words import LANGUAGES, words_of
from resnotes.files import write_atomic
from resnotes.provenance import versions


def write_index(out: Path) -> Path:
    """Write `index.html`, a page in both languages that opens from disk, and `claims.json` of a run.

    It shows an answer and a picture for each notebook, and all claims, to be searched. The pages of the notebooks get
    links to those before and after them.

    Args:
        out: folder with `claims/`, `figures/` and `notebooks/` as `run` leaves them.

    Returns:
        Path of `index.html`.

    Raises:
        ResnotesError: a ledger, or what describes a figure, is damaged.
    """
    results = merge(out)
    _link_neighbours(results)
    titles = {book.stem: book.title for book in results.notebooks}
    page = (
        environment()
        .get_template("index.html")
        .render(
            results=results,
            titles=titles,
            stems=_stems(results),
            chapters={chapter.notebook: chapter for chapter in story.chapters()},
            thumbnails={stem: _thumbnail(results, stem) for stem in titles},
            ledger={claim["id"]: claim for claim in results.claims},
            verdicts=verdicts,
            words=WORDS,
            scopes=SCOPES,
            marks=cards.MARKS,
            w={lang: words_of(lang) for lang in LANGUAGES},
            sample=cards.sample,
            ground=cards.ground,
            chance={lang: cards.chance(results.claims, lang) for lang in LANGUAGES},
            datasets=sorted({s["dataset"] for c in results.claims for s in c["scopes"].values() if s["dataset"]}),
            versions=versions(),
            drawn=lambda file: (out / "figures" / file).exists(),
        )
    )
    return write_atomic(out / "index.html", page)


def _stems(results: Results) -> list[str]:
    """The notebooks that have claims or figures, and the first part of the names of figures that belong to none."""
    stems = {*(book.stem for book in results.notebooks), *(claim["notebook"] for claim in results.claims)}
    numbers = {figure["name"].partition("_")[0] for figure in results.figures}
    stems |= numbers - {stem.partition("_")[0] for stem in stems}
    return sorted(stem for stem in stems if results.claims_of(stem) or results.figures_of(stem))


def _thumbnail(results: Results, stem: str) -> dict[str, object] | None:
    """The figure that shows best what a notebook found: the story's, or else its first."""
    best = {chapter.figure for chapter in story.chapters()}
    figures = results.figures_of(stem)
    return next((figure for figure in figures if figure["name"] in best), figures[0] if figures else None)


def _link_neighbours(results: Results) -> None:
    """Let the page of each notebook link to those before and after it."""
    folder = results.folder / "notebooks"
    books = [book for book in results.notebooks if (folder / f"{book.stem}.html").exists()]
    for before, book, after in zip([None, *books[:-1]], books, [*books[1:], None], strict=False):
        links = [
            f'<a href="{other.stem}.html">{arrow} {escape(other.title.partition(":")[0])}</a>'
            for arrow, other in (("←", before), ("→", after))
            if other is not None
        ]
        page = folder / f"{book.stem}.html"
        html = page.read_text(encoding="utf-8")
        linked = " ".join(links).join(NEIGHBOURS.split(html, maxsplit=1))
        if linked != html:
            write_atomic(page, linked)
