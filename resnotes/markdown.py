"""Text in Markdown."""

from __future__ import annotations

import re

# ~ strikes out and $ sets mathematics on GitHub and in Typora; | ends the cell of a table.
_SPECIAL = re.compile(r"([\\\\`*_{}\[\]<>~$|])")


def escape(text: str) -> str:
    """`text` on one line, so that Markdown shows it as it is, in a paragraph, a link or a cell of a table."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
