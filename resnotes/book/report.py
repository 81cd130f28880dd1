"""The weekly report: a summary, then each study, in Markdown and on one HTML page, in two languages.

Both languages are filled from the same entries of the ledger; nothing is translated when a report is written.
"""

from __future__ import annotations

import os
import re
from base64 import b64encode
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import quote

from PIL import Image

from resnotes.book import cards, story
from resnotes.book.claims import SCOPES, WORDS, verdicts
from resnotes.book.results import ExecutedNotebook, Results
from resnotes.book.templating import environment
from resnotes.book.words import Words, words_of
from resnotes.errors import ResnotesError, UsageError
from resnotes.files import to_json, write_folder

# So that a report keeps to six pages of A4: the claims and figures of a study, and the items of each list of the
# summary, in a report on up to `_STUDIES` studies and in one on more.
_FEW, _MANY, _STUDIES = {"claims": 5, "figures": 2, "items": 3}, {"claims": 3, "figures": 1, "items": 2}, 4
_UNBROKEN = re.compile(r"(?<=\d) (?=±)|(?<=±) (?=\d)|(?<=\bn) (?== \d)|(?<=\bn =) (?=\d)")  # 2 ± 1 (n = 3)
_DPI = 300  # of the figures that `resnotes.figures.saving` writes


@dataclass(frozen=True)
class Finding:
    """A claim in one language.

    Attributes:
        id: of the claim.
        statement: what is claimed.
        measured: what was found at each scope, with its interval and the mark of its verdict.
        number: what was found at the scope that counts, with that scope.
        paper: what the source reports.
        source: which, and where in it.
        verdict: `true`, `false` or `undecided`; its word is in the table of words.
        scope: of the evidence that decides, in a word; empty if none does.
        ground: what the verdict holds on, as it follows the word; empty if there is none.
        why: why it does not hold; empty if it does.
        rule: when it would hold; empty where the notebook decides.
        control: what it is compared with; may be empty.
        changed: when and why the rule changed after a first measurement; empty if it never did.
        survives: whether the verdict passes Benjamini and Hochberg's procedure; None where no test was made.
    """

    id: str
    statement: str
    measured: str
    number: str
    paper: str
    source: str
    verdict: str
    scope: str
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
    results: Results,
    to: Path,
    *,
    lang: str = "en",
    week: int | None = None,
    author: str = "",
    notebooks: Collection[str] = (),
    full: bool = False,
) -> Path:
    """Write `report.md`, `report.html` (with its images inside), `claims.json` and `figures/`.

    Args:
        results: what was executed, of which the notebooks are reported that are in the story.
        to: folder that receives them: a new one or an empty one.
        lang: en or zh.
        week: number of the report, for its title.
        author: who hands it in; nobody is named if empty.
        notebooks: stems of those to report on; all if empty.
        full: whether all claims, figures and statements follow as an appendix.

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
    most = _FEW if len(chapters) <= _STUDIES else _MANY
    sections = [_section(chapter, book, results, lang, most) for chapter, book in chapters]
    figures = _numbered(sections, full)
    for section in sections:
        section["link"] = _link(results.folder / "notebooks" / section["notebook"].stem, to)
    claims = [claim for _, book in chapters for claim in results.claims_of(book.stem)]
    copies = {
        f"figures/{file}": (results.folder / "figures" / file).read_bytes()
        for figure in figures
        for file in (figure["file"], f"{figure['name']}.json")
    }
    for figure in figures:
        png = copies[f"figures/{figure['file']}"]
        figure["inches"] = Image.open(BytesIO(png)).width / _DPI
        figure["address"] = f"data:image/png;base64,{b64encode(png).decode()}"
    statements = tested_statements({claim["id"]: claim for claim in claims}, lang)
    context = {
        "w": words,
        "full": full,
        "title": words["title"] if week is None else words["week"].format(week),
        "author": author,
        "sections": sections,
        "figures": figures,
        "english_figures": lang == "zh" and any(".zh." not in each["file"] for each in figures),
        "cited": {claim["id"]: [each for each in figures if claim["id"] in each["claims"]] for claim in claims},
        "tally": _tally(claims, words),
        "surprises": [section["surprise"] for section in sections if section["surprise"]][: most["items"]],
        "open": [section["open"] for section in sections if section["open"]][: most["items"]],
        "undecided": verdicts(claims)["undecided"],
        "chance": cards.chance(claims, lang),
        "statements": statements,
        "said": Counter(each.verdict for each in statements),
        # The day at the reader's place.
        "date": max((book.finished.astimezone().date() for _, book in chapters if book.finished), default=None),
    }
    pages = {name: environment().get_template(name).render(context) for name in ("report.html", "report.md")}
    write_folder(to, {**copies, **pages, "claims.json": to_json(claims)})
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


def _section(
    chapter: story.Chapter, book: ExecutedNotebook, results: Results, lang: str, most: Mapping[str, int]
) -> dict[str, Any]:
    """What templates know of a chapter in one language: its answer, claims and figures (at most so many)."""
    claims, words = results.claims_of(book.stem), words_of(lang)
    ledger = {claim["id"]: claim for claim in claims}
    findings = {id: finding(claim, lang) for id, claim in ledger.items()}
    key = [findings[id] for id in chapter.key if id in findings]
    told = [each.id for each in key[: most["claims"]]]
    headlines = Words(book.stem).headlines
    figures = {
        figure["name"]: {
            **figure,
            "caption": full_width(figure["caption"][lang], lang),
            "concludes": findings.get(headlines.get(figure["name"], "")),
            "file": _picture(results.folder / "figures", figure["name"], lang),
        }
        for figure in results.figures_of(book.stem)
    }
    names = sorted(headlines, key=lambda name: (name != story.cover(), name != chapter.figure))
    shown = [figures[name] for name in names if name in figures][: most["figures"]]
    scopes = [scope for claim in claims for scope in claim["scopes"].values()]
    rest = [claim for claim in claims if claim["id"] not in told]
    return {
        "name": chapter.name[lang],
        "question": chapter.question[lang],
        "source": chapter.source,
        "brief": _brief(chapter, ledger, lang),
        "number": findings.get(chapter.number),
        "tally": _tally(claims, words),
        "findings": key[: most["claims"]],
        "others": cards.counted(rest, lang) if rest else "",
        "all": list(findings.values()),
        "surprise": next((each for each in key if each.verdict == "false"), None),
        "open": next((each for each in [*key, *findings.values()] if each.verdict == "undecided"), None),
        "figures": shown,
        "other_figures": [figure for figure in figures.values() if figure not in shown],
        "notebook": book,
        "data": words["comma"].join(sorted({scope["dataset"] for scope in scopes if scope["dataset"]})),
    }


def _picture(folder: Path, name: str, lang: str) -> str:
    """The file of a figure: with the words in it in this language, where `resnotes.figures.save` could draw them."""
    translated = f"{name}.{lang}.png"
    return translated if (folder / translated).exists() else f"{name}.png"


def _brief(chapter: story.Chapter, ledger: Mapping[str, Mapping[str, Any]], lang: str) -> str:
    """A sentence of answer with its number and scope; none where the ledger says otherwise than the sentence."""
    if not chapter.brief or chapter.number not in ledger or chapter.otherwise(ledger):
        return ""
    claim = ledger[chapter.number]
    number, several = finding(claim, lang).number, claim["scopes"][claim["scope"]]["measured"].get("value")
    if isinstance(several, Mapping) and len(several) == 1:  # of one network, which the sentence names
        number = number.partition(words_of(lang)["colon"])[2]
    return chapter.brief[lang].format(number)


def _numbered(sections: Sequence[Mapping[str, Any]], full: bool) -> list[dict[str, Any]]:
    """The figures in the order in which they stand, each with its `number`: first that of the summary."""
    figures = [figure for section in sections for figure in section["figures"]]
    figures.sort(key=lambda figure: figure["name"] != story.cover())
    figures += [figure for section in sections for figure in section["other_figures"] if full]
    for number, figure in enumerate(figures, start=1):
        figure["number"] = number
    return figures


def _link(notebook: Path, folder: Path) -> str:
    """The address of an executed notebook (a path without ending), from a page in `folder`."""
    page = notebook.with_suffix(".html")
    path = page if page.exists() else notebook.with_suffix(".ipynb")
    try:
        return quote(Path(os.path.relpath(path, folder)).as_posix())
    except ValueError:  # on another drive of Windows
        return path.resolve().as_uri()


def full_width(text: str, lang: str) -> str:
    """A text with parentheses as Chinese has them, but those of formulas (`O(2^n)`, `Eq. (5)`, `(1 ± 2)×10`)."""
    if lang == "en":
        return text
    text = re.sub(r"(?:(?<=[^\x00-\xff])|\s)\((?!\d+\))((?:[^()]|\([^()]*\))*)\)(?!×)(?: (?!\())?", r"（\1）", text)
    return text.replace("）（", "；")


def finding(claim: Mapping[str, Any], lang: str) -> Finding:
    """An entry of the ledger in one language."""
    words, suffix = words_of(lang), "" if lang == "en" else f"_{lang}"
    source = claim["source"]
    for remark, translated in words["remarks"].items():
        source = source.replace(remark, translated)
    unexplained = "unexplained" if claim["holds"] is False else "not_settled"
    measured = words["semicolon"].join(
        f"{words[name]}{words['colon']}{cards.MARKS[WORDS[scope['holds']]]} {scope['measured'][f'text{suffix}']}"
        for name in SCOPES
        if (scope := claim["scopes"].get(name))
    )
    counts = claim["scopes"][claim["scope"]]
    found = counts["measured"][f"text{suffix}"].partition(words["semicolon"])[0]  # not what each of several came to
    texts = {name: claim[f"{name}{suffix}"] for name in ("statement", "paper", "rule", "control", "changed")}
    texts |= {
        "measured": measured,
        "number": words["number"].format(found, cards.setting(counts, lang), words[claim["scope"]]),
        "source": source,
        "why": "" if claim["holds"] else claim[f"why{suffix}"] or words[unexplained],
    }
    return Finding(
        id=claim["id"],
        verdict=WORDS[claim["holds"]],
        scope="" if claim["holds"] is None else words[claim["scope"]],
        ground=cards.ground(claim, lang),
        survives=claim["survives"],
        **{name: _UNBROKEN.sub("\N{NO-BREAK SPACE}", full_width(text, lang)) for name, text in texts.items()},
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
