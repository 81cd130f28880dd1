"""How claims look in notebooks: a card for each, and tables, styled inline.

JupyterLab takes style sheets out of outputs that it does not trust, so that every element carries its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from resnotes.book.claims import SCOPES, WORDS, by_chance
from resnotes.book.templating import environment
from resnotes.book.words import words_of

MARKS = {"true": "✓", "false": "✗", "partly": "◐", "undecided": "?"}
# Between the two, bold words of these colours are legible on white and on black alike.
INK = {"true": "#0B8F68", "false": "#D1561B", "partly": "#B07A00", "undecided": "#7A828E"}


def card(claim: Mapping[str, Any], lang: str = "en") -> str:
    """HTML of one claim: statement in both languages, verdict, scopes, the paper's number, rule and control."""
    return _render("card", lang, claim=claim)


def table(claims: Sequence[Mapping[str, Any]], lang: str) -> str:
    """HTML of many claims: verdict, statement, what was found at each scope, the paper's number."""
    return _render("ledger", lang, claims=claims, chance=by_chance(claims))


def statements(tested: Sequence[Any], lang: str) -> str:
    """HTML of statements (`resnotes.book.report.Tested`), each with its verdict and the claims that decide it."""
    return _render("statements", lang, tested=tested)


def verdict_of(claim: Mapping[str, Any], lang: str) -> str:
    """The verdict with what it holds on: `true on digits after 132 iterations (live)`."""
    words = words_of(lang)
    word = words[WORDS[claim["holds"]]]
    if claim["holds"] is None:
        return str(word)
    return str(words["verdict_on"].format(word, setting(claim["scopes"][claim["scope"]], lang), words[claim["scope"]]))


def setting(scope: Mapping[str, Any], lang: str) -> str:
    """What a scope was measured on: `digits after 132 iterations`."""
    words = words_of(lang)
    dataset = scope["dataset"] or words["no_data"]
    if scope["iterations"] is None:
        return str(dataset)
    return str(words["fresh" if not scope["iterations"] else "after"].format(dataset, scope["iterations"]))


def _render(name: str, lang: str, **context: Any) -> str:
    module = (
        environment()
        .get_template("cards.html")
        .make_module(
            {
                "w": words_of(lang),
                "zh": "" if lang == "en" else f"_{lang}",
                "words": WORDS,
                "scopes": SCOPES,
                "marks": MARKS,
                "ink": INK,
                "verdict_of": lambda claim: verdict_of(claim, lang),
                "setting": lambda scope: setting(scope, lang),
            }
        )
    )
    return str(getattr(module, name)(**context))
