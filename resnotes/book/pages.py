"""Pages made of templates: the index of a run, and what the report needs for its own."""

from __future__ import annotations

import re
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from resnotes.book.ledger import WORDS
from resnotes.book.results import merge, verdicts
from resnotes.files import write_atomic
from resnotes.provenance import versions

# ~ strikes out and $ sets mathematics on GitHub and in Typora; | ends the cell of a table, & begins an entity, :// and
# www. make links. At the start of a paragraph # is a heading; -, + and numbers with a dot or a parenthesis are lists.
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>~$|&]|:(?=//)|(?<=www)\.|^#|^[+-](?=[ -]|$)")
_NUMBERED = re.compile(r"^(\d+)(?=[.)](?: |$))")


def escape(text: str) -> str:
    """`text` on one line, so that Markdown shows it as it is, in a paragraph, a link or a cell of a table."""
    return _NUMBERED.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", " ".join(text.split())))


def environment() -> Environment:
    """The templates of report and index, by the names of their files."""
    found = Environment(
        loader=PackageLoader("resnotes.book"),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    found.filters["md"] = escape
    return found


def write_index(out: Path) -> Path:
    """Write `index.html` (notebooks, figures and claims on one page that opens from disk) and `claims.json` of a run.

    Args:
        out: folder with `claims/`, `figures/` and `notebooks/` as `run` leaves them.

    Returns:
        Path of `index.html`.

    Raises:
        ResnotesError: a ledger, or what describes a figure, is damaged.
    """
    template = environment().get_template("index.html")
    page = template.render(results=merge(out), verdicts=verdicts, words=WORDS, versions=versions())
    return write_atomic(out / "index.html", page)
