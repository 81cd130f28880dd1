"""The index of a run: its notebooks, figures and claims on one page that opens from disk."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from resnotes.book.ledger import WORDS, merge
from resnotes.book.results import read_results, verdicts
from resnotes.errors import ResnotesError
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
        ResnotesError: a ledger, a figure or a notebook in the folder is damaged.
    """
    results = read_results(out)
    merge(out)
    names = [figure["name"] for figure in results.figures]
    with ThreadPoolExecutor() as pool:  # Pillow works without Python's lock
        sizes = dict(zip(names, pool.map(partial(_write_thumbnail, out / "figures"), names), strict=True))
    environment = Environment(
        loader=PackageLoader("resnotes.book"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("index.html").render(
        results=results,
        sizes=sizes,
        verdicts=verdicts,
        words=WORDS,
        profiles=sorted({book.profile for book in results.notebooks if book.profile}),
        versions=versions(),
    )
    return write_atomic(out / "index.html", page)


def _write_thumbnail(folder: Path, name: str) -> tuple[int, int]:
    """Shrink a figure into the folder `thumbnails`; its size there."""
    image = shrunk(folder / f"{name}.png", THUMBNAIL)
    write_atomic(folder / "thumbnails" / f"{name}.png", png(image))
    return image.size


def shrunk(path: Path, width: int) -> Image.Image:
    """The image at `path`, at most `width` pixels across.

    Raises:
        ResnotesError: it is damaged.
    """
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises either
        raise ResnotesError(f"cannot read the image {path}: {error}; save the figure again") from error
    if image.width <= width:
        return image
    return image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)


def png(image: Image.Image) -> bytes:
    """`image` as a PNG file of 256 colours: enough for a plot, in a third of the bytes."""
    buffer = io.BytesIO()
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()
