"""The weekly report: what was asked, found, and found wanting, in Markdown and on one HTML page, in two languages.

Both languages are filled from the same entries of the ledger; nothing is translated when a report is written.
"""

from __future__ import annotations

import tomllib
import traceback
from base64 import b64encode
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from functools import cache
from pathlib import Path
from typing import Any

from resnotes.book import story
from resnotes.book.ledger import WORDS
from resnotes.book.results import ExecutedNotebook, Results, verdicts
from resnotes.book.templating import environment, picture
from resnotes.errors import ResnotesError, UsageError, unknown
from resnotes.files import to_json, write_folder

LANGUAGES = ("en", "zh")
TEMPLATES = ("report.md", "report.html", "style.css")  # which a user may put others in place of
IMAGE = 1400  # pixels across in the HTML page: 200 an inch on A4


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
        results: what was executed, of which the notebooks are reported that are in the story.
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
        UsageError: no such language, no templates there, or the folder is a file, the run's own or holds a report.
        ResnotesError: nothing to report, an image is damaged, or a template fails.
    """
    words = words_of(lang)
    if templates is not None and not any((templates / name).is_file() for name in TEMPLATES):
        raise UsageError(f"no template in {templates}; expected a folder with {' or '.join(TEMPLATES)}")
    chosen = _chosen(results, notebooks, since)
    sections = [_section(chapter, book, results, lang) for chapter, book in chosen]
    claims = [claim for claim in results.claims if claim["notebook"] in [book.stem for _, book in chosen]]
    days = [_day(book.finished) for _, book in chosen if book.finished]
    images = {
        figure["name"]: results.folder / "figures" / f"{figure['name']}.png"
        for section in sections
        for figure in section["figures"]
    }
    copies = {f"figures/{path.name}": path for png in images.values() for path in (png, png.with_suffix(".json"))}
    _check_target(to, results.folder, ["report.md", "report.html", "claims.json", *copies], overwrite)
    context = {
        "w": words,
        "title": words["title"] if week is None else words["week"].format(week),
        "sections": sections,
        "tally": _tally(claims, words),
        "statements": tested_statements({claim["id"]: claim for claim in claims}, lang),
        "date": max(days, default=None),
        "images": {
            name: f"data:image/png;base64,{b64encode(picture(path, IMAGE)).decode()}" for name, path in images.items()
        },
    }
    files: dict[str, str | bytes] = {name: path.read_bytes() for name, path in copies.items()}
    files["claims.json"] = to_json(claims)
    for name in ("report.html", "report.md"):
        files[name] = _filled(name, context, templates)
    write_folder(to, files)
    return to / "report.md"


def _chosen(
    results: Results, notebooks: Collection[str] | None, since: date | None
) -> list[tuple[story.Chapter, ExecutedNotebook]]:
    """The chapters to report on, in the order of the story, each with its executed notebook."""
    executed = {book.stem: book for book in results.notebooks}
    there = [(chapter, executed[chapter.notebook]) for chapter in story.chapters() if chapter.notebook in executed]
    stems = [book.stem for _, book in there]
    has = f"{results.folder} has {', '.join(stems) or 'no chapter of the story'}; `resnotes run` makes more"
    if missing := sorted(set(notebooks or ()) - set(stems)):
        raise ResnotesError(f"no results of {', '.join(missing)}: {has}")
    chosen = [
        (chapter, book)
        for chapter, book in there
        if (notebooks is None or book.stem in notebooks)
        and (since is None or (book.finished is not None and _day(book.finished) >= since))
    ]
    if not chosen:
        raise ResnotesError(f"nothing to report{f' since {since}' if since else ''}: {has}")
    return chosen


def _day(moment: datetime) -> date:
    """The day at the reader's place."""
    return moment.astimezone().date()


def _check_target(to: Path, run: Path, files: Sequence[str], overwrite: bool) -> None:
    """Refuse a folder whose contents a report would damage."""
    if to.exists() and not to.is_dir():
        raise UsageError(f"{to} is a file; name a folder for the report")
    if to.resolve() in [(run / part).resolve() for part in ("", "claims", "figures", "notebooks")]:
        raise UsageError(f"{to} holds the run itself, whose files a report would replace; name another folder")
    there = next((to / name for name in files if (to / name).exists()), None)
    if there and not overwrite:
        raise UsageError(f"{there} exists and may have been edited; name another folder or say --overwrite")


def _filled(name: str, context: Mapping[str, Any], own: Path | None) -> str:
    """A template, the user's or else ours, filled with what there is to say."""
    try:
        return environment(own).get_template(name).render(context)
    except Exception as error:  # templates are code: whatever theirs raises is an error in them
        frames = traceback.extract_tb(error.__traceback__)
        lines = [f"line {frame.lineno} of " for frame in frames if Path(frame.filename).name == name]
        said = " ".join(str(error).split())
        place = f"{''.join(lines[-1:])}template {name} of {own or 'resnotes'}"
        raise ResnotesError(f"{place} fails: {said}") from error


@cache
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


def _section(chapter: story.Chapter, book: ExecutedNotebook, results: Results, lang: str) -> dict[str, Any]:
    """What templates know of a chapter in one language: its questions, claims, figures and execution."""
    claims = results.claims_of(book.stem)
    findings = {claim["id"]: finding(claim, lang) for claim in claims}
    words = words_of(lang)
    seeds = sorted({seed for claim in claims for seed in claim["seeds"]})
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
        "profiles": words["comma"].join(dict.fromkeys([book.profile or "–", *sorted(c["profile"] for c in claims)])),
        "data": words["comma"].join(sorted({claim["dataset"] for claim in claims})),
        "seeds": words["comma"].join(map(str, seeds)),
    }


def finding(claim: Mapping[str, Any], lang: str) -> Finding:
    """An entry of the ledger in one language."""
    suffix = "" if lang == "en" else f"_{lang}"
    source = claim["source"]
    for remark, translated in words_of(lang)["remarks"].items():
        source = source.replace(remark, translated)
    return Finding(
        statement=claim[f"statement{suffix}"],
        measured=claim["measured"][f"text{suffix}"],
        expected=claim[f"expected{suffix}"],
        source=source,
        verdict=WORDS[claim["holds"]],
        why="" if claim["holds"] else claim[f"why{suffix}"] or _no_reason(claim, words_of(lang)),
    )


def _no_reason(claim: Mapping[str, Any], words: Mapping[str, Any]) -> str:
    """What the numbers alone say of a claim that does not hold."""
    if claim["holds"] is False:
        return str(words["unexplained"])
    measured = claim["measured"]
    if measured.get("low") is not None:
        return str(words["too_wide"]).format(low=f"{measured['low']:.3g}", high=f"{measured['high']:.3g}")
    return str(words["not_settled" if isinstance(measured.get("value"), str) else "no_interval"])


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
