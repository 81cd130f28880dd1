"""The plot of the suite: what each notebook asks and answers, and what the weekly report said that it grew out of.

All are texts, in `story.toml`; what came out is in the ledger, and answers name the verdicts that they rest on.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from resnotes.book.claims import WORDS
from resnotes.typed import check_entry

Text = Mapping[str, str]  # by language, en and zh


@dataclass(frozen=True)
class Chapter:
    """A notebook of the suite, what it asks, and what came out.

    Attributes:
        notebook: stem of its file.
        name: what it is about, in a word or two.
        question: what it asks.
        answer: what came out, in a few sentences.
        brief: the same in one, with `{}` for its number; empty where there is none.
        number: id of the claim whose number that is.
        rests_on: the verdicts (`true`, `false`, `undecided`) that both state, by id of their claims.
        figure: name of the figure that shows it best.
        source: the paper.
        key: ids of the claims that a short account gives, the most important first.
    """

    notebook: str
    name: Text
    question: Text
    answer: Text
    brief: Text
    number: str
    rests_on: Mapping[str, str]
    figure: str
    source: str
    key: Sequence[str]

    def otherwise(self, ledger: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """Ids of the claims of a ledger (by id) that came out otherwise than the answer says."""
        return [id for id, word in self.rests_on.items() if id in ledger and WORDS[ledger[id]["holds"]] != word]


@dataclass(frozen=True)
class Statement:
    """A statement of the weekly report.

    Attributes:
        said: what the report says.
        claims: ids of the claims that decide it.
        correction: what its source says instead, where the report reads it otherwise.
    """

    said: Text
    claims: Sequence[str]
    correction: Text | None = None

    def verdict(self, ledger: Mapping[str, Mapping[str, Any]]) -> str | None:
        """`true` if all its claims hold, `false` if some do not and none does, `partly` if some do and some do not.

        Args:
            ledger: claims by id.

        Returns:
            Else `undecided`; None where the ledger has none of its claims.
        """
        found = [ledger[id]["holds"] for id in self.claims if id in ledger]
        if not found:
            return None
        if False in found:
            return "partly" if True in found else "false"
        return "true" if all(found) else "undecided"


@dataclass(frozen=True)
class Place:
    """Where to change something.

    Attributes:
        what: to change.
        where: files and folders of the project, `*` for any.
        how: what else to know.
    """

    what: Text
    where: Sequence[str]
    how: Text | None = None


def chapters() -> list[Chapter]:
    """The chapters, in the order in which the report asks."""
    entries = _story()["chapters"]
    return [Chapter(**check_entry(Chapter, each, f"story.toml, chapter {each.get('notebook')}")) for each in entries]


def cover() -> str:
    """Name of the figure that a report shows on its first page."""
    return str(_story()["cover"])


def statements() -> list[Statement]:
    """The statements of the report, in its order."""
    return [Statement(**entry) for entry in _story()["statements"]]


def places() -> list[Place]:
    """Where to change what, from the most frequent wish on."""
    return [Place(**entry) for entry in _story()["places"]]


@cache
def _story() -> dict[str, Any]:
    return tomllib.loads(Path(__file__).with_name("story.toml").read_text(encoding="utf-8"))
