"""How claims look in notebooks: a card for each, and tables, styled inline.

JupyterLab takes style sheets out of outputs that it does not trust, so that every element carries its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from IPython.display import HTML

from resnotes.book.claims import SCOPES, WORDS, by_chance
from resnotes.book.templating import environment
from resnotes.book.words import words_of

MARKS = {"true": "✓", "false": "✗", "partly": "◐", "undecided": "?"}
# Between the two, bold words of these colours are legible on white and on black alike.
INK = {"true": "#0B8F68", "false": "#D1561B", "partly": "#B07A00", "undecided": "#7A828E"}


class Shown(HTML):
    """HTML, with a text for terminals, which cannot show it."""

    def __init__(self, html: str, text: str) -> None:
        super().__init__(html)  # type: ignore[no-untyped-call]
        self.text = text

    def __repr__(self) -> str:
        """The text."""
        return self.text


def card(claim: Mapping[str, Any], lang: str = "en") -> Shown:
    """One claim: statement in both languages, verdict, scopes, the paper's number, rule and control."""
    return Shown(_render("card", lang, claim=claim), plain(claim, lang))


def table(claims: Sequence[Mapping[str, Any]], lang: str = "en") -> Shown:
    """Many claims: verdict, statement, what was found at each scope, the paper's number."""
    text = "\n".join(plain(claim, lang).partition("\n")[0] for claim in claims)
    return Shown(_render("ledger", lang, claims=claims), text)


def statements(tested: Sequence[Any], lang: str = "en") -> Shown:
    """Statements (`resnotes.book.report.Tested`), each with its verdict and the claims that decide it."""
    text = "\n".join(f"{MARKS[each.verdict]} {words_of(lang)[each.verdict]} {each.said}" for each in tested)
    return Shown(_render("statements", lang, tested=tested), text)


def plain(claim: Mapping[str, Any], lang: str = "en") -> str:
    """A claim as a terminal shows it: statement, verdict, a line a scope, the paper's number."""
    words, suffix, word = words_of(lang), "" if lang == "en" else f"_{lang}", WORDS[claim["holds"]]
    lines = [f"{MARKS[word]} {words[word]}{ground(claim, lang)}{words['colon']}{claim[f'statement{suffix}']}"]
    for name in SCOPES:
        if scope := claim["scopes"].get(name):
            found = f"{MARKS[WORDS[scope['holds']]]} {scope['measured'][f'text{suffix}']}"
            lines.append(f"{words[name]}{words['colon']}{found}{words['semicolon']}{sample(scope, lang)}")
    lines.append(f"{words['paper']}{words['colon']}{claim[f'paper{suffix}']}")
    return "\n    ".join([*lines, claim["id"]])


def chance(claims: Sequence[Mapping[str, Any]], lang: str) -> str:
    """How many claims were tested, how many of these chance alone would decide, and what the mark at some means."""
    words, (tests, wrong) = words_of(lang), by_chance(claims)
    text = str(words["chance"]).format(all=len(claims), tests=tests, wrong=f"{wrong:.1f}")
    return f"{text}{words['space']}{words['survive']}" if any(claim["survives"] for claim in claims) else text


def ground(claim: Mapping[str, Any], lang: str) -> str:
    """What follows a verdict: ` on digits after 132 iterations (live)`; nothing where there is none."""
    words = words_of(lang)
    if claim["holds"] is None:
        return ""
    return str(words["ground"].format(setting(claim["scopes"][claim["scope"]], lang), words[claim["scope"]]))


def setting(scope: Mapping[str, Any], lang: str) -> str:
    """What a scope was measured on: `digits after 132 iterations`."""
    words = words_of(lang)
    dataset = scope["dataset"] or words["no_data"]
    if scope["iterations"] is None:
        return str(dataset)
    return str(words["fresh" if not scope["iterations"] else "after"].format(dataset, scope["iterations"]))


def sample(scope: Mapping[str, Any], lang: str) -> str:
    """The same, with how many networks and images: `digits after 132 iterations; networks of a kind: 3`."""
    words = words_of(lang)
    counts = [words[name].format(scope[name]) for name in ("networks", "images") if scope[name]]
    return str(words["semicolon"].join([setting(scope, lang), *counts]))


def _render(name: str, lang: str, **context: Any) -> str:
    shared = {
        "w": words_of(lang),
        "zh": "" if lang == "en" else f"_{lang}",
        "words": WORDS,
        "scopes": SCOPES,
        "marks": MARKS,
        "ink": INK,
        "ground": lambda claim: ground(claim, lang),
        "setting": lambda scope: setting(scope, lang),
        "sample": lambda scope: sample(scope, lang),
        "chance": lambda claims: chance(claims, lang),
    }
    return str(getattr(environment().get_template("cards.html").make_module(shared), name)(**context))
