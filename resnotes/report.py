"""The weekly report: what was asked, found, and found wanting, in Markdown and on one HTML page, in two languages.

Both languages are filled from the same entries of the ledger; nothing is translated when a report is written.
"""

from __future__ import annotations

import base64
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import (
    ChoiceLoader,
    Environment,
    FileSystemLoader,
    PackageLoader,
    StrictUndefined,
    TemplateError,
    select_autoescape,
)
from markupsafe import Markup

from resnotes import claims, story
from resnotes.errors import ResnotesError, UsageError, unknown
from resnotes.files import to_json, write_folder
from resnotes.index import png, shrunk
from resnotes.markdown import escape
from resnotes.results import ExecutedNotebook, Results, verdicts

LANGUAGES = ("en", "zh")
IMAGE = 1400  # pixels across in the HTML page: 200 a inch on A4


@dataclass(frozen=True)
class Finding:
    """A claim in one language.

    Attributes:
        statement: what is claimed.
        measured: what was found, with its interval.
        expected: what the source reports.
        source: which, and where in it.
        verdict: `true`, `false` or `undecided`; its word is in the table of words.
        why: why it does not hold; empty if it does.
    """

    statement: str
    measured: str
    expected: str
    source: str
    verdict: str
    why: str


@dataclass(frozen=True)
class Section:
    """A study in one language: its questions, its claims in short and in number, its figures, its execution."""

    name: str
    question: str
    source: str
    tally: str
    findings: Sequence[Finding]
    failed: Sequence[Finding]
    open: Sequence[Finding]
    figures: Sequence[Mapping[str, Any]]
    notebook: ExecutedNotebook
    data: str
    seeds: str


@dataclass(frozen=True)
class Tested:
    """A statement of the first report in one language, with the claims that decide it."""

    said: str
    verdict: str
    evidence: Sequence[Finding]
    correction: str


def write_report(
    results: Results,
    to: Path,
    *,
    lang: str = "en",
    week: int | None = None,
    notebooks: Collection[str] | None = None,
    since: date | None = None,
    templates: Path | None = None,
    overwrite: bool = False,
) -> Path:
    """Write `report.md`, `report.html` (with its images inside), `claims.json` and `figures/`.

    Args:
        results: what was executed, of which the studies are reported that are in the story.
        to: folder that receives them.
        lang: of `LANGUAGES`.
        week: number of the report, for its title.
        notebooks: stems of those to report on; all if None.
        since: report only what was executed on that day or later.
        templates: folder whose `report.md`, `report.html` or `style.css` take the place of ours.
        overwrite: replace a report that is there, and with it what was written into it by hand.

    Returns:
        Path of `report.md`.

    Raises:
        UsageError: no such language.
        ResnotesError: nothing to report, a report is there already, or a template fails.
    """
    words = words_of(lang)
    if (to / "report.md").exists() and not overwrite:
        raise UsageError(f"{to / 'report.md'} exists and may have been edited; name another folder or say --overwrite")
    if templates is not None and not templates.is_dir():
        raise UsageError(f"no folder {templates}; expected one with report.md, report.html or style.css")
    books = {
        book.stem: book
        for book in results.notebooks
        if (notebooks is None or book.stem in notebooks) and _since(book, since)
    }
    sections = [
        _section(study, books[study.notebook], results, lang, words)
        for study in story.studies()
        if study.notebook in books
    ]
    if not sections:
        there = ", ".join(book.stem for book in results.notebooks) or "no notebook"
        asked = f"nothing to report since {since}" if since else "nothing to report"
        raise ResnotesError(f"{asked} in {results.folder}: it has {there}; `resnotes run` makes more")
    reported = {section.notebook.stem for section in sections}
    ledger = [claim for claim in results.claims if claim["notebook"] in reported]
    context = {
        "w": words,
        "title": words["title"] if week is None else words["week"].format(week),
        "sections": sections,
        "tally": _tally(ledger, words),
        "statements": tested_statements({claim["id"]: claim for claim in ledger}, lang, words),
        "date": max((s.notebook.finished for s in sections if s.notebook.finished), default=None),
    }
    figures = results.folder / "figures"
    names = [figure["name"] for section in sections for figure in section.figures]
    files: dict[str, str | bytes] = {
        f"figures/{name}.{kind}": (figures / f"{name}.{kind}").read_bytes()
        for name in names
        for kind in ("png", "json")
    }
    files["claims.json"] = to_json(ledger)
    environment = _environment(templates, figures)
    try:
        for name in ("report.html", "report.md"):
            files[name] = environment.get_template(name).render(context)
    except TemplateError as error:
        raise ResnotesError(f"template {name} of {templates or 'resnotes'} fails: {error}") from error
    write_folder(to, files)
    return to / "report.md"


def words_of(lang: str) -> dict[str, Any]:
    """The words of the report in one language, by key; see `templates/words.toml`.

    Raises:
        UsageError: no such language.
    """
    if lang not in LANGUAGES:
        raise unknown("language", lang, LANGUAGES)
    path = Path(__file__).parent / "templates" / "words.toml"
    words: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))[lang]
    return words


def _since(book: ExecutedNotebook, since: date | None) -> bool:
    return since is None or (book.finished is not None and book.finished.astimezone().date() >= since)


def _section(
    study: story.Study, book: ExecutedNotebook, results: Results, lang: str, words: Mapping[str, Any]
) -> Section:
    own = results.claims_of(study.notebook)
    by_id = {claim["id"]: claim for claim in own}
    findings = {claim["id"]: finding(claim, lang, words) for claim in own}
    return Section(
        name=study.name[lang],
        question=study.question[lang],
        source=study.source,
        tally=_tally(own, words),
        findings=[findings[id] for id in study.key if id in findings],
        failed=[findings[id] for id, claim in by_id.items() if claim["holds"] is False],
        open=[findings[id] for id, claim in by_id.items() if claim["holds"] is None],
        figures=[
            {"name": figure["name"], "caption": figure["caption"][lang]}
            for figure in results.figures_of(study.notebook)
        ],
        notebook=book,
        data=words["comma"].join(sorted({str(claim["dataset"]) for claim in own})),
        seeds=words["comma"].join(map(str, sorted({seed for claim in own for seed in claim["seeds"]}))),
    )


def finding(claim: Mapping[str, Any], lang: str, words: Mapping[str, Any]) -> Finding:
    """An entry of the ledger in one language."""
    suffix = "" if lang == "en" else f"_{lang}"
    source = claim["source"]
    for remark, translated in words["remarks"].items():
        source = source.replace(remark, translated)
    return Finding(
        statement=claim[f"statement{suffix}"],
        measured=claim["measured"][f"text{suffix}"],
        expected=claim[f"expected{suffix}"],
        source=source,
        verdict=claims.WORDS[claim["holds"]],
        why="" if claim["holds"] else claim[f"why{suffix}"] or _no_reason(claim, words),
    )


def _no_reason(claim: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """What the numbers alone say of a claim that does not hold."""
    if claim["holds"] is False:
        return str(words["unexplained"])
    measured = claim["measured"]
    if measured.get("low") is not None:
        return str(words["too_wide"]).format(low=f"{measured['low']:.3g}", high=f"{measured['high']:.3g}")
    return str(words["not_settled" if isinstance(measured.get("value"), str) else "no_interval"])


def tested_statements(ledger: Mapping[str, Mapping[str, Any]], lang: str, words: Mapping[str, Any]) -> list[Tested]:
    """The statements of the first report that the claims at hand decide."""
    return [
        Tested(
            said=statement.said[lang],
            verdict=verdict,
            evidence=[finding(ledger[id], lang, words) for id in statement.claims if id in ledger],
            correction=statement.correction[lang] if statement.correction else "",
        )
        for statement in story.statements()
        if (verdict := statement.verdict(ledger))
    ]


def _tally(ledger: Sequence[Mapping[str, Any]], words: Mapping[str, Any]) -> str:
    found = verdicts(ledger)
    return str(words["tally"]).format(all=len(ledger), **{word: found[word] for word in claims.WORDS.values()})


def _environment(templates: Path | None, figures: Path) -> Environment:
    def embedded(name: str) -> Markup:
        data = base64.b64encode(png(shrunk(figures / f"{name}.png", IMAGE))).decode()
        return Markup(f"data:image/png;base64,{data}")

    ours = PackageLoader("resnotes")
    environment = Environment(
        loader=ours if templates is None else ChoiceLoader([FileSystemLoader(templates), ours]),
        autoescape=select_autoescape(["html"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(md=escape, embedded=embedded)
    return environment
