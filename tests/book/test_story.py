"""The texts of the report: what was asked, what the first report said, and the words of both languages."""

import re
import tomllib
from pathlib import Path
from string import Formatter

import pytest
from kit.report import CHAPTERS, TOLD, claim, notebook_of

from resnotes import paths
from resnotes.book import notebooks, story
from resnotes.book.claims import SCOPES, WORDS, load
from resnotes.book.report import finding
from resnotes.book.words import Words

PACKAGE = Path(story.__file__).parent
TABLES = tomllib.loads((PACKAGE / "templates/words.toml").read_text(encoding="utf-8"))

NO_TEXTS = {"notebook", "figure", "source", "key", "claims", "where", "rests_on", "number"}


@pytest.fixture(scope="module")
def shipped():
    """The ledger that comes with the repository."""
    path = paths.recorded_root() / "claims.json"
    if not path.exists():
        pytest.skip(f"there is no {path}")
    return load(path)


def test_chapters_are_notebooks_and_every_text_is_in_both_languages():
    assert {chapter.notebook for chapter in CHAPTERS} <= {book.stem for book in notebooks.discover()}
    entries = (*CHAPTERS, *story.statements(), *story.places())
    texts = [text for entry in entries for name, text in vars(entry).items() if text and name not in NO_TEXTS]
    assert len(texts) >= 3 * len(CHAPTERS) + len(story.statements()) + len(story.places()) + 2
    for text in texts:
        assert text.keys() == {"en", "zh"}
        assert [bool(re.search(r"[\u4e00-\u9fff]", text[lang])) for lang in ("en", "zh")] == [False, True]


def test_claims_of_the_story_are_in_the_words_of_their_notebook():
    for id in TOLD:
        study, _, key = id.partition(".")
        words = tomllib.loads((paths.project_root() / "notebooks" / f"{notebook_of(id)}.toml").read_text("utf-8"))
        assert words["study"] == study and key in words["claims"], id


def test_answers_say_what_the_ledger_says(shipped):
    ledger = {entry["id"]: entry for entry in shipped}
    answered = [chapter for chapter in CHAPTERS if chapter.rests_on]
    assert len(answered) >= 4
    for chapter in answered:
        assert set(chapter.rests_on.values()) <= set(WORDS.values())
        assert {ledger[id]["notebook"] for id in chapter.rests_on} == {chapter.notebook}
        assert not chapter.brief or chapter.number in chapter.rests_on, "whose number the brief states"
        assert chapter.otherwise(ledger) == [], "change the answer in story.toml, or what it rests on"
    assert CHAPTERS[0].otherwise({}) == []


def test_places_and_figures_are_there(shipped):
    root = paths.project_root()
    for place in story.places():
        assert all(list(root.glob(path)) for path in place.where), place.where
    executed = {entry["notebook"] for entry in shipped}
    for chapter in (chapter for chapter in CHAPTERS if chapter.notebook in executed):
        for name in (chapter.figure, *Words(chapter.notebook).headlines):
            assert (root / "figures" / f"{name}.png").exists()


def test_a_statement_is_judged_by_the_claims_at_hand():
    verdicts = {(): None, (True, True): "true", (False, None): "false", (True, None): "undecided", (None,): "undecided"}
    for holds, verdict in {**verdicts, (True, False, None): "partly"}.items():
        ledger = {f"a.{number}": {"holds": each} for number, each in enumerate(holds)}
        assert story.Statement({}, ["a.0", "a.1", "a.2", "a.3"]).verdict(ledger) == verdict


def test_words_are_the_same_in_both_languages_and_all_in_use():
    assert list(TABLES["en"]) == list(TABLES["zh"])
    for key in set(TABLES["en"]) - {"remarks", "datasets"}:
        fields = [{field for _, field, _, _ in Formatter().parse(TABLES[lang][key])} - {None} for lang in ("en", "zh")]
        assert fields[0] == fields[1], key
    sources = [*(PACKAGE / "templates").glob("*.[hm]*"), PACKAGE / "report.py", PACKAGE / "cards.py"]
    code = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    used = {key for key in TABLES["en"] if re.search(rf"""\bw\.{key}\b|["']{key}["']""", code)}
    assert set(TABLES["en"]) - used <= {*WORDS.values(), "partly", *SCOPES}, "which are looked up by verdict and scope"


CITED = re.compile(r"[A-Z]\w+ et al\.|Figs?\. \d\w?|Secs?\. [\d.]+|Eqs?\. \(\d\)|Tables? \d|\d+", re.ASCII)


def translated(source):
    return finding(claim("unravel.x", source=source), "zh").source


@pytest.mark.parametrize("remark", TABLES["zh"]["remarks"])
def test_remarks_leave_citations_alone(remark):
    source = f"He et al. 2015, Fig. 6 ({remark}); Veit et al. 2016, Sec. 4.1, Eqs. (7) and (8), Table 2; {remark}"
    assert CITED.findall(translated(source)) == CITED.findall(source)
    assert remark not in translated(source)


def test_sources_of_the_ledger_are_translated(shipped):
    for source in {entry["source"] for entry in shipped}:
        assert CITED.findall(translated(source)) == CITED.findall(source)
        words = re.sub(r'"[^"]*"|resnotes', "", translated(source))
        assert not re.findall(r"(?<!\w)[a-z]{3,}", words), "other than what is quoted"
