"""The templates of reports, of the index and of cards, and text that Markdown shows as it is."""

from __future__ import annotations

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

# ~ strikes out and $ sets mathematics on GitHub and in Typora; | ends the cell of a table, & begins an entity, :// and
# www. make links. At the start of a paragraph # is a heading; -, + and numbers with a dot or a parenthesis are lists.
_SPECIAL = re.compile(r"[\\`*_{}\[\]<>~$|&]|:(?=//)|(?<=www)\.|^#|^[+-](?=[ -]|$)")
_NUMBERED = re.compile(r"^(\d+)(?=[.)](?: |$))")


def escape(text: str) -> str:
    """`text` on one line, so that Markdown shows it as it is, in a paragraph, a link or a cell of a table."""
    return _NUMBERED.sub(r"\1\\", _SPECIAL.sub(r"\\\g<0>", " ".join(text.split())))


@cache
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
