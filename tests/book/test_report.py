"""The weekly report, read with parsers that are not ours."""

import base64
import re
import shutil
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
from resnotes.book.claims import SCOPES, WORDS, load
from resnotes.book.pages import write_index
from resnotes.book.report import finding, full_width, write_report
from resnotes.book.results import read_results
from resnotes.book.templating import escape
from resnotes.book.words import Words, words_of
from resnotes.errors import ResnotesError
from resnotes.files import write_json

# In the order of a full report: that of the summary, the other headlines, and the one that is none.
FIGURES = ("01_fit_identity", "01_learning_rates", "02_ablations", "01_layer_responses")
IN_BOTH = pytest.mark.parametrize("lang", ["en", "zh"])


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    """A run of four notebooks, of which 03 failed; 05 has a claim, but is no executed notebook."""
    out = tmp_path_factory.mktemp("run") / "out"
    executed(
        out,
        "01_degradation",
        ["01_learning_rates", "01_layer_responses", "01_fit_identity"],
        finished="2026-03-03T20:00:00+00:00",
    )
    executed(out, "02_identity_mappings", ["02_ablations"], dirty=True)
    executed(out, "03_unraveled_paths", ids=[], failed=True)
    executed(out, "04_pspnet_failure_cases", finished="2026-03-06T12:00:00+00:00")
    write_json(out / "claims/05_x.json", [claim("pspnet.unseen", notebook="05_x", statement="Unseen.")])
    return out


@pytest.fixture(scope="module")
def results(out):
    return read_results(out)


def text_of(entry, scope):
    return entry["scopes"][scope]["measured"]["text"]


@IN_BOTH
def test_both_languages_say_what_the_ledger_says(results, tmp_path, lang):
    words, suffix = words_of(lang), "" if lang == "en" else "_zh"
    path = write_report(results, tmp_path / "r", lang=lang, full=True)
    document, page = Markdown(path.read_text()), Page(path.with_suffix(".html").read_text())
    ledger = {entry["id"]: entry for entry in results.claims if entry["notebook"] != "05_x"}
    keys = [id for chapter in CHAPTERS for id in [id for id in chapter.key if id in ledger][:5]]
    keys += [id for chapter in CHAPTERS for id in ledger if ledger[id]["notebook"] == chapter.notebook]
    rows = [row for row in document.rows if len(row) == 4 and row[1] != words["claim"]]
    assert len(rows) == len(keys)
    for position, (row, id) in enumerate(zip(rows, keys, strict=True)):
        entry, detailed = ledger[id], position >= len(keys) - len(ledger)
        assert row[0].startswith(words[WORDS[entry["holds"]]])
        assert ("132" in row[0]) == (entry["holds"] is not None), "a verdict says on what"
        assert numbers(row[2]) == [each for scope in SCOPES[:2] for each in numbers(text_of(entry, scope))]
        for name in ("rule", "control", "changed"):
            assert (f"{words[name]}{words['colon']}{entry[name + suffix]}" in row[3]) == detailed
        assert (entry["why" + suffix] in row[1]) == (detailed and entry["holds"] is not True)
    assert all(row[1].isascii() == (lang == "en") for row in rows)
    assert [squeezed(*row) for row in document.rows] == [squeezed(row) for row in page.texts("tr")]
    chapters = [chapter.name[lang] for chapter in CHAPTERS[:4]]
    sections = ["summary", "surprises", "next_week", "appendix", "statements", "provenance"]
    for headings in (document.headings, page.texts("h1", "h2", "h3")):
        assert [heading for heading in headings if heading in words.values()] == [
            words[key] for key in ["title", *sections]
        ]
        assert [heading for heading in headings if heading in chapters] == chapters + chapters[:3]
    found = [sum(WORDS[entry["holds"]] == word for entry in ledger.values()) for word in ("true", "false", "undecided")]
    tally = words["tally"].format(all=len(ledger), true=found[0], false=found[1], undecided=found[2])
    assert sum(paragraph.startswith(tally) for paragraph in document.paragraphs) == 1
    assert sum(words["notebook_failed"] in paragraph for paragraph in document.paragraphs) == 1


@IN_BOTH
def test_the_summary_answers_with_the_number_of_the_ledger_or_gives_the_claim(results, tmp_path, lang):
    chapter = next(chapter for chapter in CHAPTERS if chapter.notebook == "01_degradation")
    agreeing = [{**claim(id), "holds": {"true": True, "false": False}[word]} for id, word in chapter.rests_on.items()]
    for name, claims in (("agrees", agreeing), ("not", [{**entry, "holds": None} for entry in agreeing])):
        given = replace(results, claims=claims)
        path = write_report(given, tmp_path / name, lang=lang, notebooks=["01_degradation"])
        answer = next(p for p in Markdown(path.read_text()).paragraphs if chapter.source in p)
        number = finding(next(each for each in claims if each["id"] == chapter.number), lang).number
        assert squeezed(number) in squeezed(answer), "with its scope"
        brief = chapter.brief[lang].format(number)
        assert (squeezed(brief) in squeezed(answer)) == (name == "agrees")


@IN_BOTH
def test_the_summary_does_not_name_a_network_twice(results, tmp_path, lang):
    chapter = next(chapter for chapter in CHAPTERS if chapter.notebook == "01_degradation")
    claims = [{**claim(id), "holds": {"true": True, "false": False}[word]} for id, word in chapter.rests_on.items()]
    number = next(each for each in claims if each["id"] == chapter.number)
    measured = number["scopes"][number["scope"]]["measured"]  # by name, which the sentence has already
    measured.update(
        value={"plain-56": {}}, text=f"plain-56: {measured['text']}", text_zh=f"plain-56：{measured['text_zh']}"
    )
    path = write_report(replace(results, claims=claims), tmp_path / "r", lang=lang, notebooks=["01_degradation"])
    assert "plain-56" not in next(p for p in Markdown(path.read_text()).paragraphs if chapter.source in p)


def test_figures_are_numbered_cited_and_concluded(results, tmp_path):
    supported = results.figures_of("01_degradation")[0]["claims"][0]
    for full, names in ((False, FIGURES[:3]), (True, FIGURES)):
        path = write_report(results, tmp_path / str(full), full=full)
        document, page = Markdown(path.read_text()), Page(path.with_suffix(".html").read_text())
        assert list(document.images) == [f"figures/{name}.png" for name in names]
        assert sorted(p.stem for p in (path.parent / "figures").glob("*.png")) == sorted(names)
        captions = page.texts("figcaption")
        assert [caption.split(".")[0] for caption in captions] == [f"Figure {n}" for n in range(1, len(names) + 1)]
        assert re.match(r"Figure 2\. (true|false|undecided).*: Claim degradation\.", captions[1])
        [row] = [row for row in document.rows if f"Claim {supported}." in row[1]][:1]
        assert row[1].endswith("Figure 1, Figure 2" + full * ", Figure 4")
        assert {f"#figure-{n}" for n in (1, 2)} <= set(page.values("href"))


@IN_BOTH
def test_figures_are_in_chinese_where_they_could_be_drawn(results, tmp_path, lang):
    shutil.copytree(results.folder, tmp_path / "run")
    Image.new("RGB", (1200, 200), "red").save(tmp_path / "run/figures/01_fit_identity.zh.png")
    path = write_report(read_results(tmp_path / "run"), tmp_path / "r", lang=lang)
    names = [f"{FIGURES[0]}{'.zh' * (lang == 'zh')}", *FIGURES[1:3]]
    assert list(Markdown(path.read_text()).images) == [f"figures/{name}.png" for name in names]
    assert sorted(p.stem for p in (path.parent / "figures").glob("*.png")) == sorted(names)
    for page in (path, path.with_suffix(".html")):
        assert ("fonts-noto-cjk" in page.read_text()) == (lang == "zh"), "the others are in English"


@pytest.mark.parametrize("studies", [4, 5])
def test_a_report_has_two_figures_a_study_or_one_of_many(tmp_path, studies):
    for chapter in CHAPTERS[:studies]:
        executed(tmp_path / "run", chapter.notebook, list(Words(chapter.notebook).headlines))
    path = write_report(read_results(tmp_path / "run"), tmp_path / "r")
    assert len(Markdown(path.read_text()).images) == {4: 6, 5: 5}[studies]


@IN_BOTH
def test_a_number_is_not_broken_across_lines(lang):
    measured = finding(claim("degradation.x"), lang).measured
    assert measured.count("\xa0±\xa0") == measured.count("n\xa0=\xa02") == 2
    assert not re.search(r" [±=]|[±=] ", measured)


def test_chinese_has_its_own_parentheses():
    before, after = (
        "1 % (n = 3)，周报 (O(2^n) 条路径)，损失 (a) (b)",
        "1 %（n = 3），周报（O(2^n) 条路径），损失（a；b）",
    )
    assert full_width(before, "zh") == after
    for formula in ("O(2^n)", "Eqs. (4)、(7)", "(1.2 ± 0.3)×10⁻⁷", "✓ (1.2 ± 0.3)×10⁻⁷"):
        assert full_width(formula, "zh") == formula
    assert full_width("a (b)", "en") == "a (b)"


@IN_BOTH
def test_two_statements_of_the_first_report_are_corrected(results, tmp_path, lang):
    words = words_of(lang)
    entries = [claim(id, 1) for id in ("pspnet.experts-mislabel-17-60", "degradation.local-optimum")]
    document = Markdown(
        write_report(replace(results, claims=entries), tmp_path / "r", lang=lang, full=True).read_text()
    )
    experts, optimum = [row for row in document.rows if len(row) == 3 and row[1] != words["statement"]]
    for (verdict, said, evidence), about, by in ((experts, "17.60", "Zhou"), (optimum, "SGD", "He")):
        assert about in said
        assert verdict == words["false"]
        assert f"{by} {'等' if lang == 'zh' else 'et al.'}" in evidence.partition(words["correction"])[2]
    # Zhou et al. 2017: of outlines, of naming and of missing objects; together the 17.6 %.
    assert {"5.7", "6.0", "5.9"} <= set(numbers(experts[2]))


MARKUP = st.sampled_from("|<>/!*_`$\\{}%\"'&;~#-+=[]().12 \na变。")
TEXT = st.lists(MARKUP | st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=12)
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
    statement, measured, paper, source, rule, caption = texts
    suffix, words = {"en": "", "zh": "_zh"}[lang], words_of(lang)
    entry = claim("degradation.shortcuts-cure", 1, source=source)
    entry["scopes"] = {"live": entry["scopes"]["live"] | {"measured": {f"text{suffix}": measured}}}
    entry |= {f"statement{suffix}": statement, f"paper{suffix}": paper, f"rule{suffix}": rule, f"why{suffix}": rule}
    entry |= {"scope": "live", "survives": True, f"control{suffix}": "", f"changed{suffix}": ""}
    figure = {**results.figures[0], "name": "01_layer_responses", "claims": [], "caption": {lang: caption}}
    given = replace(results, claims=[entry], figures=[figure])
    with TemporaryDirectory() as folder:
        path = write_report(given, Path(folder) / "r", lang=lang, notebooks=["01_degradation"], full=True)
        document, page = Markdown(path.read_text()), Page(path.with_suffix(".html").read_text())
    found, colon = finding(entry, lang), words["colon"]
    cells = [f"{words['false']} ●{found.ground}", f"{found.statement}{words['why']}{colon}{found.why}"]
    cells += [found.measured, f"{found.paper}{found.source}{words['rule']}{colon}{found.rule}"]
    assert cells_of(cells) in [cells_of(row) for row in document.rows]
    assert squeezed(*cells) in [squeezed(row) for row in page.texts("tr")]
    surprise = f"{words['false']}{words['in_parentheses'].format(found.scope)}{colon}{found.statement}{words['space']}"
    surprise = squeezed(surprise, found.number, words["stop_after"])
    assert surprise in [squeezed(paragraph) for paragraph in document.paragraphs]
    assert surprise in [squeezed(item) for item in page.texts("li")]
    caption = squeezed(full_width(caption, lang))
    shown = [*document.images.values(), *page.values("alt")]
    assert [squeezed(each) for each in shown] == 2 * [caption]
    numbered = squeezed(words["figure"].format(1), words["stop"], caption)
    assert numbered in [squeezed(paragraph) for paragraph in document.paragraphs]
    assert [squeezed(each) for each in page.texts("figcaption")] == [numbered]
    assert not page.texts("script")


def cells_of(row):
    return [squeezed(cell) for cell in row]


@pytest.mark.parametrize("name", ["en", "zh", "index"])
def test_pages_are_sound_and_need_no_network(out, results, tmp_path, name):
    index = name == "index"
    path = (
        write_index(out)
        if index
        else write_report(results, out / f"report {name}", lang=name, full=True).with_suffix(".html")
    )
    page = Page(path.read_text())
    assert not re.search(r"://|url\(|@import", path.read_text())
    assert index or {"../notebooks/01_degradation.html", "claims.json"} <= set(page.values("href"))
    assert page.elements[0][1]["lang"] == {"zh": "zh-CN"}.get(name, "en")
    levels = [int(tag[1]) for tag, _, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(2 <= after <= before + 1 for before, after in pairwise(levels))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)
    names = sorted(FIGURES, key=lambda name: name[:2]) if index else FIGURES
    pictures = [(out / "figures" / f"{name}.png").read_bytes() for name in names]
    embedded = [f"data:image/png;base64,{base64.b64encode(picture).decode()}" for picture in pictures]
    shown = page.values("src")
    assert set(shown) == {f"figures/{name}.png" for name in names} if index else shown == embedded
    for address in page.values("href"):
        if address.startswith("#"):
            assert address[1:] in ids
        elif address != "data:,":
            assert (path.parent / address).is_file()


def test_a_report_on_some_notebooks(out, tmp_path, resnotes):
    to = tmp_path / "r"
    status, stdout, _ = resnotes(
        "report", "03", "degradation", "--results", out, "--out", to, "--week", "8", "--author", "<张>"
    )
    assert (status, stdout.split()) == (0, [str(to / "report.md"), str(to / "report.html")])
    document = Markdown((to / "report.md").read_text())
    assert document.headings[0] == "Weekly report 8"
    assert "\\<张\\> · " in (to / "report.md").read_text()
    assert "&lt;张&gt; · " in (to / "report.html").read_text()
    reported = ["01_degradation", "03_unraveled_paths"]
    assert [row[0] for row in document.rows if re.match(r"\d\d_", row[0])] == reported
    assert {entry["notebook"] for entry in load(to / "claims.json")} == {"01_degradation"}


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["--lang", "fr"], 2, "unknown language 'fr'; allowed: en, zh"),
        (["9"], 2, "unknown notebook '9'"),
        (["01", "02"], 1, "no results of 02_identity_mappings"),
        (["--results", "{}/nowhere"], 1, "no results of any chapter"),
        (["--out", "{}/there"], 2, "there holds something"),
        (["--out", "{}/there/report.md"], 2, "there/report.md is a file; expected a folder"),
        (["--out", "{}/run"], 2, "run holds something"),
    ],
)
def test_refusals_are_one_line_and_leave_everything_as_it_was(tmp_path, resnotes, arguments, status, said):
    executed(tmp_path / "run", "01_degradation", ["01_degradation"])
    files.write_atomic(tmp_path / "there/report.md", "Edited.")
    before = tree(tmp_path)
    given = [argument.format(tmp_path) for argument in arguments]
    found, stdout, stderr = resnotes("report", "--results", tmp_path / "run", "--out", tmp_path / "new", *given)
    assert (found, stdout, stderr.count("\n")) == (status, "", 1)
    assert said in stderr
    assert tree(tmp_path) == before


def test_a_disk_that_fails_leaves_no_report(results, tmp_path, monkeypatch):
    write = files.write_atomic

    def failing(path, content):
        if path.name == "report.md":
            raise OSError("disk full")
        return write(path, content)

    monkeypatch.setattr(files, "write_atomic", failing)
    with pytest.raises(OSError, match="disk full"):
        write_report(results, tmp_path / "r")
    assert tree(tmp_path) == {}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda text: text[:9], "cannot read"),
        (lambda _: "[]", "expected what describes a figure, with name, caption, claims"),
        (lambda text: text.replace('"zh"', '"fr"'), "caption must be a text in each of en and zh"),
        (lambda text: text.replace('"Figure 01_curves"', "3"), "caption must be a text, found"),
    ],
)
def test_what_describes_a_figure_and_is_damaged_is_named(tmp_path, damage, said):
    executed(tmp_path, "01_degradation", ["01_curves"])
    path = tmp_path / "figures/01_curves.json"
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    with pytest.raises(ResnotesError, match=rf"01_curves\.json.*{said}|{said} .*01_curves\.json"):
        read_results(tmp_path)


@pytest.mark.parametrize("change", [{"seconds": "long"}, {"finished": "soon"}, {"parameters": []}, {"commit": 3}])
def test_an_outcome_that_is_none_is_that_of_a_notebook_which_was_not_finished(tmp_path, change):
    executed(tmp_path, "01_degradation", **change)
    assert [book.state for book in read_results(tmp_path).notebooks] == ["unfinished"]
