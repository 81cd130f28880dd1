"""The weekly report, read with parsers that are not ours."""

import base64
import io
import re
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.report import CHAPTERS, Markdown, Page, claim, executed, numbers, squeezed, tree
from PIL import Image

from resnotes import files
from resnotes.book import ledger
from resnotes.book.exports import export
from resnotes.book.index import write_index
from resnotes.book.ledger import WORDS
from resnotes.book.report import finding, words_of, write_report
from resnotes.book.results import read_results
from resnotes.book.templating import escape
from resnotes.errors import ResnotesError, UsageError
from resnotes.files import write_json

IN_BOTH = pytest.mark.parametrize("lang", ["en", "zh"])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run of four notebooks, of which 03 failed; 05 has a claim, but is no executed notebook."""
    out = tmp_path_factory.mktemp("run") / "out"
    executed(out, "01_degradation", ["01_curves", "01_flow"], finished="2026-03-03T20:00:00+00:00")
    executed(out, "02_identity_mappings", ["02_shares"], dirty=True)
    executed(out, "03_unraveled_paths", ids=[], failed=True)
    executed(out, "04_pspnet_failure_cases", finished="2026-03-06T12:00:00+00:00")
    write_json(out / "claims/05_x.json", [claim("pspnet.unseen", notebook="05_x", statement="Unseen.")])
    return out


@pytest.fixture(scope="module")
def results(out):
    return read_results(out)


def notebooks_in(path):
    """What the table of provenance lists."""
    return [row[0] for row in Markdown(path.read_text()).rows if re.match(r"\d\d_", row[0])]


@IN_BOTH
def test_both_languages_say_what_the_ledger_says(results, tmp_path, lang):
    words = words_of(lang)
    path = write_report(results, tmp_path / "r", lang=lang, week=7)
    document, page = Markdown(path.read_text()), Page(path.with_suffix(".html").read_text())
    ledger = {entry["id"]: entry for entry in results.claims if entry["notebook"] != "05_x"}
    keys = [id for chapter in CHAPTERS for id in chapter.key if id in ledger]
    rows = [row for row in document.rows if len(row) == 4 and row[0] != words["claim"]]
    assert [row[3] for row in rows] == [words[WORDS[ledger[id]["holds"]]] for id in keys]
    assert [numbers(row[1]) for row in rows] == [numbers(ledger[id]["measured"]["text"]) for id in keys]
    assert all(row[0].isascii() == (lang == "en") for row in rows)
    assert [squeezed(*row) for row in document.rows] == [squeezed(row) for row in page.texts("tr")]
    sections = ["asked", "findings", "failed", "open", "statements", "provenance", "next_week"]
    for headings in (document.headings, page.texts("h1", "h2")):
        assert headings[0] == words["week"].format(7)
        assert [heading for heading in headings if heading in words.values()] == [words[key] for key in sections]
    for entry in ledger.values():
        why = entry["why" if lang == "en" else "why_zh"]
        given = [paragraph for paragraph in document.paragraphs if paragraph.endswith(words["colon"] + why)]
        assert len(given) == (entry["holds"] is not True)
    found = [sum(WORDS[entry["holds"]] == word for entry in ledger.values()) for word in ("true", "false", "undecided")]
    tallies = [numbers(paragraph) for paragraph in document.paragraphs if "claims.json" in paragraph]
    assert tallies == [[str(count) for count in (len(ledger), *found)]]
    assert sum(words["notebook_failed"] in paragraph for paragraph in document.paragraphs) == 1


@IN_BOTH
def test_two_statements_of_the_first_report_are_corrected(results, tmp_path, lang):
    words = words_of(lang)
    entries = [claim(id, 1) for id in ("pspnet.experts-mislabel-17-60", "degradation.local-optimum")]
    document = Markdown(write_report(replace(results, claims=entries), tmp_path / "r", lang=lang).read_text())
    experts, optimum = [row for row in document.rows if len(row) == 3 and row[0] != words["statement"]]
    for (said, verdict, evidence), about, by in ((experts, "17.60", "Zhou et al."), (optimum, "SGD", "He et al.")):
        assert about in said
        assert verdict == words["false"]
        assert by in evidence.partition(words["correction"])[2]
    # Zhou et al. 2017: of outlines, of naming and of missing objects; together the 17.6 %.
    assert {"5.7", "6.0", "5.9"} <= set(numbers(experts[2]))


MARKUP = [
    "|",
    "<script>",
    "</td>",
    "<!--",
    "*",
    "**",
    "_",
    "`",
    "$",
    "\\",
    "{{ x }}",
    "{% if %}",
    '"',
    "'",
    "&lt;",
    "~",
]
MARKUP += ["# ", "- ", "1. ", "23) ", "+ ", "> ", "---", "=", "[a](b)", "![", "]", "\n", " ", "a", "变", "。"]
TEXT = st.lists(st.sampled_from(MARKUP) | st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=8)
TEXT = TEXT.map("".join).filter(str.strip)


@given(TEXT)
@example("1. a")
@example("- - -")
def test_escaped_text_is_shown_as_it_is(text):
    shown = " ".join(text.split())
    for document in (Markdown(f"- {escape(text)}"), Markdown(f"*{escape(text)}*"), Markdown(escape(text))):
        assert (document.paragraphs, document.headings, document.rows) == ([shown], [], [])


@settings(max_examples=50)
@given(st.lists(TEXT, min_size=6, max_size=6), st.sampled_from(["en", "zh"]))
@example(["# <script>", "- **", "a|b\\|c", "_x_ `y` $z$", "1. &lt;\n{{ w }}", '"*'], "zh")
def test_reports_show_any_text_as_it_is(results, texts, lang):
    statement, measured, expected, source, why, caption = texts
    suffix, words = {"en": "", "zh": "_zh"}[lang], words_of(lang)
    entry = claim("degradation.solver-misses-it", 1, measured={"text": measured, "text_zh": measured}, source=source)
    entry |= {f"statement{suffix}": statement, f"expected{suffix}": expected, f"why{suffix}": why}
    given = replace(results, claims=[entry], figures=[{**results.figures[0], "caption": {lang: caption}}])
    with TemporaryDirectory() as folder:
        path = write_report(given, Path(folder) / "r", lang=lang, notebooks=["01_degradation"])
        document, page = Markdown(path.read_text()), Page(path.with_suffix(".html").read_text())
    verdict, source, colon = words["false"], finding(entry, lang).source, words["colon"]
    cells = [squeezed(*cell) for cell in ([statement], [measured], [expected, source], [verdict])]
    assert cells in [[squeezed(cell) for cell in row] for row in document.rows]
    assert squeezed(*cells) in [squeezed(row) for row in page.texts("tr")]
    told = squeezed(statement, verdict, colon, measured, words["expected"], colon, expected, f"({source})")
    told += squeezed(words["why"], colon, why)
    assert told in [squeezed(paragraph) for paragraph in document.paragraphs]
    assert told in [squeezed(item) for item in page.texts("li")]
    assert squeezed(caption) in [squeezed(paragraph) for paragraph in document.paragraphs]
    shown = [*document.images.values(), *page.values("alt"), *page.texts("figcaption")]
    assert [squeezed(each) for each in shown] == 3 * [squeezed(caption)]
    assert not page.texts("script")


@pytest.mark.parametrize("name", ["en", "zh", "index"])
def test_pages_are_sound_and_need_no_network(out, results, tmp_path, name):
    index = name == "index"
    path = write_index(out) if index else write_report(results, tmp_path, lang=name).with_suffix(".html")
    page = Page(path.read_text())
    assert not re.search(r"://|url\(|@import", path.read_text())
    assert page.elements[0][1]["lang"] == {"zh": "zh-CN"}.get(name, "en")
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(2 <= after <= before + 1 for before, after in pairwise(levels))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)
    images = page.values("src")
    assert len(images) == len([alt for alt in page.values("alt") if alt.strip()]) == 3
    for address in images + page.values("href"):
        if address.startswith("#"):
            assert address[1:] in ids
        elif not address.startswith("data:"):
            assert index
            assert (out / address).is_file()
    for image in [] if index else images:
        decoded = Image.open(io.BytesIO(base64.b64decode(image.removeprefix("data:image/png;base64,"), validate=True)))
        assert (decoded.size, decoded.convert("RGB").getpixel((700, 100))) == ((1400, 175), (0, 128, 128))


def test_figures_are_copied_and_linked(out, results, tmp_path):
    path = write_report(results, tmp_path / "r")
    links = list(Markdown(path.read_text()).images)
    assert links == [f"figures/{name}.png" for name in ("01_curves", "01_flow", "02_shares")], "in the story's order"
    for file in (*links, *(link.replace(".png", ".json") for link in links)):
        assert (path.parent / file).read_bytes() == (out / file).read_bytes()
    reported = {"01_degradation", "02_identity_mappings", "04_pspnet_failure_cases"}
    assert {entry["notebook"] for entry in ledger.load(path.parent / "claims.json")} == reported


@pytest.mark.parametrize(
    ("zone", "day", "reported"),
    [("UTC", 3, "4123"), ("UTC", 4, "423"), ("Asia/Shanghai", 4, "4123"), ("UTC", 6, "4"), ("UTC", 7, None)],
)
def test_since_counts_the_days_of_the_reader(out, tmp_path, resnotes, zone, day, reported):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", zone)
        time.tzset()
        status, _, stderr = resnotes("report", "--results", out, "--out", tmp_path / "r", "--since", f"2026-03-0{day}")
    time.tzset()
    if reported:
        assert "".join(stem[1] for stem in notebooks_in(tmp_path / "r/report.md")) == reported
    else:
        assert (status, stderr.count("\n"), (tmp_path / "r").exists()) == (1, 1, False)
        assert "nothing to report since 2026-03-07" in stderr


def test_several_notebooks_after_one_option(out, tmp_path, resnotes):
    assert resnotes("report", "--results", out, "--notebooks", "03", "degradation", "--out", tmp_path / "r")[0] == 0
    assert notebooks_in(tmp_path / "r/report.md") == ["01_degradation", "03_unraveled_paths"]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--lang", "fr"], 2, "unknown language 'fr'; allowed: en, zh"),
        (["--notebooks", "9"], 2, "unknown notebook '9'"),
        (["--notebooks", "01", "02"], 1, "no results of 02_identity_mappings"),
        (["--results", "{}/nowhere"], 1, "has no chapter"),
        (["--out", "{}/there"], 2, "there/report.md exists and may have been edited"),
        (["--out", "{}/file"], 2, "file is a file"),
        (["--out", "{}/run", "--overwrite"], 2, "run holds the run itself"),
        (["--out", "{}/run/claims", "--overwrite"], 2, "claims holds the run itself"),
        (["--out", "{}/blocked", "--overwrite"], 1, "blocked/report.html"),
        (["--templates", "{}/blocked"], 2, "no template in"),
        (["--templates", "{}/undefined"], 1, "line 2 of template report.md"),
        (["--templates", "{}/broken"], 1, "line 3 of template report.html"),
        (["--templates", "{}/raising"], 1, "unknown encoding: a b"),
        (["--templates", "{}/missing"], 1, "nope.css"),
    ],
)
def test_refusals_are_one_line_and_leave_everything_as_it_was(tmp_path, resnotes, arguments, status, said):
    executed(tmp_path / "run", "01_degradation", ["01_curves"])
    texts = {
        "there": "Edited.",
        "undefined": "\n{{ nope }}",
        "raising": "{{ ''.encode('a\\nb') }}",
        "missing": '{% include "nope.css" %}',
    }
    for folder, text in texts.items():
        files.write_atomic(tmp_path / folder / "report.md", text)
    files.write_atomic(tmp_path / "broken/report.html", "\n\n{% if %}")
    (tmp_path / "blocked/report.html").mkdir(parents=True)
    (tmp_path / "file").touch()
    before = tree(tmp_path)
    given = [argument.format(tmp_path) for argument in arguments]
    found, stdout, stderr = resnotes("report", "--results", tmp_path / "run", "--out", tmp_path / "new", *given)
    assert (found, stdout, stderr.count("\n")) == (status, "", 1)
    assert said in stderr
    assert tree(tmp_path) == before


def test_damaged_images_are_named(tmp_path):
    executed(tmp_path / "run", "01_degradation", ["01_curves"])
    image = tmp_path / "run/figures/01_curves.png"
    image.write_bytes(image.read_bytes()[:60])
    with pytest.raises(ResnotesError, match=r"cannot read the image .*01_curves\.png"):
        write_report(read_results(tmp_path / "run"), tmp_path / "r")


@pytest.mark.parametrize("existing", [False, True])
def test_a_disk_that_fails_leaves_no_report(results, tmp_path, monkeypatch, existing):
    if existing:
        write_report(results, tmp_path / "r", lang="zh")
    before = tree(tmp_path)
    write = files.write_atomic

    def failing(path, content):
        if path.name == "report.md":
            raise OSError("disk full")
        return write(path, content)

    monkeypatch.setattr(files, "write_atomic", failing)
    with pytest.raises(OSError, match="disk full"):
        write_report(results, tmp_path / "r", overwrite=existing)
    assert tree(tmp_path) == before


def test_overwriting_keeps_what_else_is_there(results, tmp_path):
    path = write_report(results, tmp_path / "r")
    first = tree(tmp_path)
    path.write_text("Edited.")
    (tmp_path / "r/notes.txt").touch()
    write_report(results, tmp_path / "r", overwrite=True)
    assert tree(tmp_path) == {**first, "r/notes.txt": b""}


def test_own_templates_take_the_place_of_ours(results, tmp_path):
    mine = tmp_path / "mine"
    files.write_atomic(mine / "report.md", "{{ title }}{% for s in sections %} | {{ s.name|md }}{% endfor %}.\n")
    files.write_atomic(mine / "style.css", "body { color: teal }")
    path = write_report(results, tmp_path / "r", week=0, notebooks=["01_degradation"], templates=mine)
    assert path.read_text() == "Weekly report 0 | Degradation.\n"
    assert "color: teal" in Page(path.with_suffix(".html").read_text()).texts("style")[0]


def test_reading_results_writes_nothing(out):
    before = tree(out)
    assert len(read_results(out).notebooks) == 4
    assert read_results(out / "nowhere").notebooks == []
    assert tree(out) == before


def test_figures_are_exported_as_asked_for(out, tmp_path):
    first, *others = export(tmp_path / "all", out)
    assert first.startswith("![Figure 01\\_curves](01_curves.png)")
    assert "图 01" in first
    assert len(others) == 2
    assert len(list((tmp_path / "all").iterdir())) == 9
    [snippet] = export(tmp_path / "b", out, formats=["pdf", "svg"], only=["02"])
    assert "](02_shares.svg)" in snippet
    assert (tmp_path / "b/02_shares.pdf").read_bytes() == (out / "figures/02_shares.pdf").read_bytes()
    assert export(tmp_path / "b", out, formats=["pdf"], only=["01_flow"])[0].startswith("[01_flow](01_flow.pdf)")


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"formats": ["jpg"]}, UsageError, "unknown format 'jpg'; allowed: png, pdf, svg"),
        ({"only": ["01", "03"]}, UsageError, "unknown figure '03'; allowed: 01, 01_curves"),
        ({}, IsADirectoryError, r"01_curves\.png"),
        ({"formats": ["svg"]}, OSError, r"01_curves\.svg"),
    ],
)
def test_all_figures_are_exported_or_none(tmp_path, given, error, said):
    executed(tmp_path, "01_degradation", ["01_curves"])
    (tmp_path / "figures/01_curves.svg").unlink()
    (tmp_path / "to/01_curves.png").mkdir(parents=True)
    with pytest.raises(error, match=said):
        export(tmp_path / "to", tmp_path, **given)
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["01_curves.png"]


@pytest.mark.parametrize("damage", ['{"name": ', "[]", '{"name": "01_curves", "caption": {"en": ""}}'])
def test_damaged_sidecars_are_named(tmp_path, damage):
    executed(tmp_path, "01_degradation", ["01_curves"])
    (tmp_path / "figures/01_curves.json").write_text(damage)
    with pytest.raises(ResnotesError, match=r"01_curves\.json"):
        read_results(tmp_path)
