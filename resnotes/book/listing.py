"""Notebooks and claims on a terminal, or piped into another program."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnotes.book.cards import MARKS, plain
from resnotes.book.claims import SCOPES, WORDS
from resnotes.book.notebooks import Notebook
from resnotes.book.results import executed
from resnotes.book.templating import escape
from resnotes.errors import unknown
from resnotes.files import to_json

_INK = {"true": 32, "false": 31, "undecided": 33}  # green, red and yellow, as terminals number them
_UNWRAPPED = 1_000_000  # columns, where there is no terminal: a line stays one, for `grep`

Claims = Sequence[Mapping[str, Any]]


def described(book: Notebook, folder: Path) -> str:
    """A notebook, the parameters it takes, and what became of it in the folder of a run.

    Raises:
        ResnotesError: it is no notebook, or its parameters are not literals.
    """
    lines = [f"{book.stem}: {book.title}"]
    comments = book.comments
    for name, default in book.parameters.items():
        lines.append(f"{f'-p {name}={default!r}':<22} {comments.get(name, '')}".rstrip())
    path = folder / "notebooks" / book.path.name
    last = executed(path) if path.exists() else None
    if last is None:
        lines.append(f"never run in {folder}")
    elif last.finished is None:
        lines.append(f"last run not finished: it is running, or was ended; `resnotes run {book.stem}` starts anew")
    else:
        when = last.finished.astimezone().strftime("%Y-%m-%d %H:%M")
        lines.append(f"last run {when}: {last.state}, profile {last.profile}, {last.seconds:.1f} s")
    return "\n    ".join(lines)


def chosen(
    claims: Claims, *, notebooks: Collection[str] = (), verdicts: Collection[str] = (), scopes: Collection[str] = ()
) -> Claims:
    """The claims of these notebooks (stems) with these verdicts, which these scopes decide; all where none is named.

    Of an undecided claim, it is the strongest scope that was measured.

    Raises:
        UsageError: there is no such verdict or scope.
    """
    for kind, found, allowed in (("verdict", verdicts, WORDS.values()), ("scope", scopes, SCOPES)):
        for name in found:
            if name not in allowed:
                raise unknown(kind, name, allowed)
    return [
        claim
        for claim in claims
        if (not notebooks or claim["notebook"] in notebooks)
        and (not verdicts or WORDS[claim["holds"]] in verdicts)
        and (not scopes or claim["scope"] in scopes)
    ]


def table(claims: Claims) -> str:
    """A block for each claim, as wide as the terminal, the verdict in colour."""
    width = shutil.get_terminal_size((_UNWRAPPED, 0)).columns
    return "".join(f"{_block(claim, max(30, width))}\n" for claim in claims)


def _block(claim: Mapping[str, Any], width: int) -> str:
    lines = [
        textwrap.fill(line, width, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)
        for line in plain(claim).splitlines()
    ]
    word = WORDS[claim["holds"]]
    verdict = f"{MARKS[word]} {word}"
    return "\n".join(lines).replace(verdict, f"\x1b[{_INK[word]}m{verdict}\x1b[0m", 1)


def markdown(claims: Claims) -> str:
    """A table in GitHub's Markdown, with a column for each scope."""
    rows = [["verdict", "claim", *SCOPES, "paper"], ["---"] * (3 + len(SCOPES)), *map(_row, claims)]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _row(claim: Mapping[str, Any]) -> list[str]:
    scopes = [claim["scopes"].get(name) for name in SCOPES]
    found = [f"{MARKS[WORDS[scope['holds']]]} {scope['measured']['text']}" if scope else "" for scope in scopes]
    verdict = WORDS[claim["holds"]]
    texts = [f"{MARKS[verdict]} {verdict}", f"{claim['statement']} ({claim['id']})", *found, claim["paper"]]
    return [escape(text) for text in texts]


FORMATS: dict[str, Callable[[Claims], str]] = {"table": table, "json": to_json, "md": markdown}
