"""How claims look in notebooks: a card for each, and tables, styled inline.

JupyterLab takes style sheets out of outputs that it does not trust, so that every element carries its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from IPython.display import HTML

from resnotes.book.claims import SCOPES, WORDS, by_chance, verdicts
from resnotes.book.story import Chapter, Place
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


def table(claims: Sequence[Mapping[str, Any]], lang: str = "en", *, counted: bool = True) -> Shown:
    """Many claims: verdict, statement, what was found at each scope, the paper's number.

    Args:
        claims: entries of the ledger.
        lang: en or zh.
        counted: whether to say how many of them chance alone would decide.
    """
    text = "\n".join(plain(claim, lang).partition("\n")[0] for claim in claims)
    return Shown(_render("ledger", lang, claims=claims, counted=counted), text)


def others(claims: Sequence[Mapping[str, Any]], lang: str = "en") -> Shown:
    """A table of claims that unfolds from one line, which counts them."""
    shown, said = table(claims, lang, counted=False), counted(claims, lang)
    return Shown(f"<details><summary>{said}</summary>{shown.data}</details>", f"{said}\n{shown.text}")


def counted(claims: Sequence[Mapping[str, Any]], lang: str = "en") -> str:
    """How many other claims there are, by verdict."""
    found = verdicts(claims)
    return str(words_of(lang)["others"].format(all=len(claims), **{word: found[word] for word in WORDS.values()}))


def statements(tested: Sequence[Any], lang: str = "en") -> Shown:
    """Statements (`resnotes.book.report.Tested`), each with its verdict and the claims that decide it."""
    text = "\n".join(f"{MARKS[each.verdict]} {words_of(lang)[each.verdict]} {each.said}" for each in tested)
    return Shown(_render("statements", lang, tested=tested), text)


def answer(chapter: Chapter, otherwise: Sequence[str], lang: str = "en") -> Shown:
    """What a chapter asks and answers, and which claims (ids) came out otherwise than it says."""
    text = f"{chapter.question[lang]}\n{chapter.answer[lang]}"
    if otherwise:
        text += f"\n{words_of(lang)['otherwise']} {', '.join(otherwise)}"
    return Shown(_render("answer", lang, chapter=chapter, otherwise=otherwise), text)


def places(entries: Sequence[Place], lang: str = "en") -> Shown:
    """Where to change what."""
    text = "\n".join(f"{each.what[lang]}: {', '.join(each.where)}" for each in entries)
    return Shown(_render("places", lang, entries=entries), text)


def paragraph(text: str) -> Shown:
    """A text as it is."""
    return Shown(f"<p>{escape(text)}</p>", text)


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
    dataset = words["datasets"].get(scope["dataset"], scope["dataset"]) or words["no_data"]
    if scope["iterations"] is None or scope["networks"] == 0:  # of data alone
        return str(dataset)
    return str(words["fresh" if not scope["iterations"] else "after"].format(dataset, scope["iterations"]))


def sample(scope: Mapping[str, Any], lang: str) -> str:
    """The same, with how many networks and images: `digits after 132 iterations; 3 of each`."""
    words = words_of(lang)
    counts = [words[name].format(scope[name]) for name in ("networks", "images") if scope[name]]
    return str(words["semicolon"].join([setting(scope, lang), *counts]))


def _render(name: str, lang: str, **context: Any) -> str:
    shared = {
        "lang": lang,
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
