"""The index of a run: its notebooks, figures and claims on one page that opens from disk."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from resnotes.book.ledger import WORDS
from resnotes.book.results import merge, verdicts
from resnotes.book.templating import environment, picture
from resnotes.files import write_atomic
from resnotes.provenance import versions

THUMBNAIL = 720  # pixels across: twice the width of a picture in the gallery, for screens with fine pixels


def write_index(out: Path) -> Path:
    """Write `index.html`, the thumbnails of its gallery and `claims.json` from what lies in the folder of a run.

    Args:
        out: folder with `claims/`, `figures/` and `notebooks/` as `run` leaves them.

    Returns:
        Path of `index.html`.

    Raises:
        ResnotesError: a ledger or a figure in the folder is damaged.
    """
    results = merge(out)

    def shrink(figure: dict[str, str]) -> None:
        image = out / "figures" / f"{figure['name']}.png"
        write_atomic(out / "figures" / "thumbnails" / image.name, picture(image, THUMBNAIL))

    with ThreadPoolExecutor() as pool:  # Pillow works without Python's lock
        list(pool.map(shrink, results.figures))
    page = (
        environment()
        .get_template("index.html")
        .render(results=results, verdicts=verdicts, words=WORDS, versions=versions())
    )
    return write_atomic(out / "index.html", page)
