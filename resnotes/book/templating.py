"""What report and index are made with: templates, text in Markdown, pictures of a size for pages."""

from __future__ import annotations

import io
import re
from pathlib import Path

from jinja2 import ChoiceLoader, Environment, FileSystemLoader, PackageLoader, StrictUndefined, select_autoescape
from PIL import Image

from resnotes.errors import ResnotesError

# ~ strikes out and $ sets mathematics on GitHub and in Typora; | ends the cell of a table, & begins an entity, :// and
# www. make links. At the start of a paragraph # is a heading; -, + and numbers with a dot or a parenthesis are lists.
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>~$|&]|:(?=//)|(?<=www)\.|^#|^[+-](?=[ -]|$)")
_NUMBERED = re.compile(r"^(\d+)(?=[.)](?: |$))")


def escape(text: str) -> str:
    """`text` on one line, so that Markdown shows it as it is, in a paragraph, a link or a cell of a table."""
    return _NUMBERED.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", " ".join(text.split())))


def environment(own: Path | None = None) -> Environment:
    """The templates of report and index, by the names of their files; those in the folder `own` come first."""
    ours = PackageLoader("resnotes.book")
    found = Environment(
        loader=ours if own is None else ChoiceLoader([FileSystemLoader(own), ours]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["md"] = escape
    return found


def picture(path: Path, width: int) -> bytes:
    """The image at `path`, at most `width` pixels across, as a PNG file of 256 colours: enough for a plot.

    Raises:
        ResnotesError: it is damaged or not there.
    """
    buffer = io.BytesIO()
    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError) as error:  # Pillow raises either
        raise ResnotesError(f"cannot read the image {path}: {error}; save the figure again") from error
    if image.width > width:
        image = image.resize((width, round(image.height * width / image.width)), Image.Resampling.LANCZOS)
    image.quantize(256, dither=Image.Dither.NONE).save(buffer, "png")
    return buffer.getvalue()
