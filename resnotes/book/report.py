"""The weekly report: what was asked, found, and found wanting, in Markdown and on one HTML page, in two languages.

Both languages are filled from the same entries of the ledger; nothing is translated when a report is written.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from resnotes.book import cards, story
from resnotes.book.claims import SCOPES, WORDS, verdicts
from resnotes.book.results import ExecutedNotebook, Results
from resnotes.book.templating import environment
from resnotes.book.words import words_of
from resnotes.errors import ResnotesError, UsageError
from resnotes.files import to_json, write_folder


@dataclass(frozen=True)
class Finding:
    """A claim in one language.

    Attributes:
        statement: what is claimed.
        measured: what was found at each scope, with its interval and the mark of its verdict.
        paper: what the source reports.
        source: which, and where in it.
        verdict: `true`, `false` or `undecided`; its word is in the table of words.
        ground: what the verdict holds on, as it follows the word; empty if there is none.
        why: why it does not hold; empty if it does.
        rule: when it would hold; empty where the notebook decides.
        control: what it is compared with; may be empty.
        changed: when and why the rule changed after a first measurement; empty if it never did.
        survives: whether the verdict passes Benjamini and Hochberg's procedure; None where no test was made.
    """

    statement: str
    measured: str
    paper: str
    source: str
    verdict: str
    ground: str
    why: str
    rule: str
    control: str
    changed: str
    survives: bool | None


@dataclass(frozen=True)
class Tested:
    """A statement of the first report in one language, with the claims that decide it."""

    said: str
    verdict: str
    evidence: Sequence[Finding]
    correction: str


def write_report(
    results: Results, to: Path, *, lang: str = "en", week: int | None = None, notebooks: Collection[str] = ()
) -> Path:
    """Write `report.md`, `report.html` (with its images inside), `claims.json` and `figures/`.

    Args:
        results: what was executed, of which the notebooks are reported that are in the story.
        to: folder that receives them: a new one or an empty one.
        lang: en or zh.
        week: number of the report, for its title.
        notebooks: stems of those to report on; all if empty.

    Returns:
        Path of `report.md`.

    Raises:
        UsageError: no such language, or the folder holds something.
        ResnotesError: a notebook has no results, or there are none at all.
        OSError: the folder is a file, or an image is not there.
    """
    words = words_of(lang)
    if to.exists() and any(to.iterdir()):
        raise UsageError(f"{to} holds something, such as a report that was edited; name another folder or empty it")
    chapters = _chosen(results, notebooks)
    sections = [_section(chapter, book, results, lang) for chapter, book in chapters]
    claims = [claim for _, book in chapters for claim in results.claims_of(book.stem)]
    names = [figure["name"] for section in sections for figure in section["figures"]]
    copies = [f"{name}.{kind}" for name in names for kind in ("png", "json")]
    figures = {copy: (results.folder / "figures" / copy).read_bytes() for copy in copies}
    context = {
        "w": words,
        "title": words["title"] if week is None else words["week"].format(week),
        "sections": sections,
        "tally": _tally(claims, words),
        "chance": cards.chance(claims, lang),
        "statements": tested_statements({claim["id"]: claim for claim in claims}, lang),
        # The day at the reader's place.
        "date": max((book.finished.astimezone().date() for _, book in chapters if book.finished), default=None),
        "images": {name: f"data:image/png;base64,{b64encode(figures[f'{name}.png']).decode()}" for name in names},
    }
    pages = {name: environment().get_template(name).render(context) for name in ("report.html", "report.md")}
    files = {f"figures/{copy}": content for copy, content in figures.items()}
    write_folder(to, {**files, **pages, "claims.json": to_json(claims)})
    return to / "report.md"


def _chosen(results: Results, notebooks: Collection[str]) -> list[tuple[story.Chapter, ExecutedNotebook]]:
    """The chapters to report on, in the order of the story, each with its executed notebook."""
    executed = {book.stem: book for book in results.notebooks}
    there = {chapter.notebook: chapter for chapter in story.chapters() if chapter.notebook in executed}
    missing = sorted(set(notebooks) - set(there))
    if missing or not there:
        raise ResnotesError(
            f"no results of {', '.join(missing) or 'any chapter'} in {results.folder}; `resnotes run` makes them"
        )
    return [(chapter, executed[stem]) for stem, chapter in there.items() if not notebooks or stem in notebooks]


def _section(chapter: story.Chapter, book: ExecutedNotebook, results: Results, lang: str) -> dict[str, Any]:
    """What templates know of a chapter in one language: its questions, claims, figures and execution."""
    claims = results.claims_of(book.stem)
    findings = {claim["id"]: finding(claim, lang) for claim in claims}
    words = words_of(lang)
    scopes = [scope for claim in claims for scope in claim["scopes"].values()]
    return {
        "name": chapter.name[lang],
        "question": chapter.question[lang],
        "source": chapter.source,
        "tally": _tally(claims, words),
        "findings": [findings[id] for id in chapter.key if id in findings],
        "failed": [each for each in findings.values() if each.verdict == "false"],
        "open": [each for each in findings.values() if each.verdict == "undecided"],
        "figures": [{**figure, "caption": figure["caption"][lang]} for figure in results.figures_of(book.stem)],
        "notebook": book,
        "data": words["comma"].join(sorted({scope["dataset"] for scope in scopes if scope["dataset"]})),
    }


def finding(claim: Mapping[str, Any], lang: str) -> Finding:
    """An entry of the ledger in one language."""
    words, suffix = words_of(lang), "" if lang == "en" else f"_{lang}"
    source = claim["source"]
    for remark, translated in words["remarks"].items():
        source = source.replace(remark, translated)
    unexplained = "unexplained" if claim["holds"] is False else "not_settled"
    return Finding(
        statement=claim[f"statement{suffix}"],
        measured=words["semicolon"].join(
            f"{words[name]}{words['colon']}{cards.MARKS[WORDS[scope['holds']]]} {scope['measured'][f'text{suffix}']}"
            for name in SCOPES
            if (scope := claim["scopes"].get(name))
        ),
        paper=claim[f"paper{suffix}"],
        source=source,
        verdict=WORDS[claim["holds"]],
        ground=cards.ground(claim, lang),
        why="" if claim["holds"] else claim[f"why{suffix}"] or words[unexplained],
        **{name: claim[f"{name}{suffix}"] for name in ("rule", "control", "changed")},
        survives=claim["survives"],
    )


def tested_statements(ledger: Mapping[str, Mapping[str, Any]], lang: str) -> list[Tested]:
    """The statements of the first report that the claims at hand decide."""
    return [
        Tested(
            said=statement.said[lang],
            verdict=verdict,
            evidence=[finding(ledger[id], lang) for id in statement.claims if id in ledger],
            correction=statement.correction[lang] if statement.correction else "",
        )
        for statement in story.statements()
        if (verdict := statement.verdict(ledger))
    ]


def _tally(claims: Sequence[Mapping[str, Any]], words: Mapping[str, Any]) -> str:
    """How many claims there are, in words."""
    if not claims:
        return str(words["no_claims"])
    found = verdicts(claims)
    return str(words["tally"]).format(all=len(claims), **{word: found[word] for word in WORDS.values()})
