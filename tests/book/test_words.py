"""Words files: what is wrong in one is said with file, entry and name; those of the suite are whole and all in use."""

import re
from string import Formatter

import pytest
from kit.notebooks import write_notebook

from resnotes import paths
from resnotes.analysis.intervals import UNITS_ZH
from resnotes.book import notebooks
from resnotes.book.execution import execute
from resnotes.book.words import Words
from resnotes.errors import ResnotesError, UsageError

BOOKS = [book for book in notebooks.discover() if book.path.with_suffix(".toml").exists()]
CHINESE = r"[\u3000-\u303f\u4e00-\u9fff\uff00-\uffef]"  # characters or punctuation
GOOD = """
study = "depth"

[claims.deeper-is-worse]
statement = { en = "{deep} layers are worse by -0.5 %.", zh = "{deep} 层更差，差-0.5 %。" }
source = "He et al."
paper = { en = "worse", zh = "更差" }
rule = { above = 0, unit = "points", limits = [-100, 100] }
changed = { en = "2026-11-28: the bound", zh = "2026-11-28：界" }

[figures.01_depth]
caption = { en = "{deep} layers", zh = "{deep} 层" }
claims = ["deeper-is-worse"]
headline = "deeper-is-worse"

[labels]
"{n} layers" = "{n} 层"
"""
CELLS = ('claims.decide(\n    "deeper-is-worse", live=x)', 'claims.figure(grid.figure, "01_depth", data)')


def words(folder, text=GOOD, cells=CELLS, **common):
    write_notebook(folder, "01_a", *cells)
    (folder / "01_a.toml").write_text(text, encoding="utf-8")
    return Words("01_a", folder, **common)


def test_texts_are_filled_and_typeset(tmp_path):
    found = words(tmp_path).claim("deeper-is-worse", {"deep": 56})
    assert found.id == "depth.deeper-is-worse"
    assert found.statement["en"] == "56 layers are worse by \N{MINUS SIGN}0.5\u00a0%."
    assert found.statement["zh"] == "56 层更差，差\N{MINUS SIGN}0.5\u00a0%。"
    assert found.rule.text == {
        "en": "95\u00a0% interval above 0\u00a0points",
        "zh": "95\u00a0% 区间高于 0\u00a0个百分点",
    }
    assert (found.control, found.why, found.changed["en"]) == ({"en": "", "zh": ""},) * 2 + ("2026-11-28: the bound",)
    caption = {"en": "56 layers", "zh": "56 层"}
    assert words(tmp_path).figure("01_depth", {"deep": 56}) == (caption, ["depth.deeper-is-worse"])
    assert words(tmp_path).headlines == {"01_depth": "depth.deeper-is-worse"}
    assert Words("07_not_here", tmp_path).headlines == Words("07_not_here", tmp_path).labels == {}
    assert words(tmp_path).labels == {"{n} layers": "{n} 层"}
    words(tmp_path).check_uses()


def test_a_number_has_three_digits_where_a_text_says_nothing_else(tmp_path):
    found = words(tmp_path).claim("deeper-is-worse", {"deep": -20.371428571})
    assert found.statement["en"].startswith("\N{MINUS SIGN}20.4 layers")


def test_common_values_may_be_named_or_not_and_a_cell_has_its_own(tmp_path):
    found = words(tmp_path, deep=56, shallow=20)
    captions = [found.figure("01_depth", values)[0]["en"] for values in ({}, {"deep": 44})]
    assert captions == ["56 layers", "44 layers"]


LABEL = r"01_a\.toml, \[labels\.{n} layers\]: .*"
CLAIM, FIGURE = r"01_a\.toml, \[claims\.deeper-is-worse\]: .*", r"01_a\.toml, \[figures\.01_depth\]: .*"


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ((', zh = "更差"', ""), CLAIM + "for paper, expected a text in each of en and zh"),
        (('zh = "更差"', 'zh = " "'), CLAIM + "for paper"),
        (('zh = "更差"', "zh = 3"), CLAIM + "for paper"),
        (("changed =", "chnaged ="), CLAIM + "expected statement, paper, control"),
        (('paper = { en = "worse", zh = "更差" }', ""), CLAIM + "None for paper"),
        (('source = "He et al."', ""), CLAIM + "None for source"),
        (("{deep} layers are", "{deep layers are"), CLAIM + "statement is no template"),
        (('en = "{deep} layers"', 'en = ""'), FIGURE + "for caption"),
        (('["deeper-is-worse"]', '["deeper-is-better"]'), FIGURE + "'deeper-is-better', which has no entry"),
        (('headline = "deeper-is-worse"', 'headline = "x"'), FIGURE + "'x', which has no entry"),
        (('headline = "deeper-is-worse"', 'headline = ["x"]'), FIGURE + "found headline"),
        (('study = "depth"', ""), r"01_a\.toml: found claims, figures, labels; expected study"),
        (("[figures.", "[figure."), r"01_a\.toml: found study, claims, figure, labels;"),
        (("= {", "= "), r"01_a\.toml cannot be read"),
        (('"{n} 层"', '"{all} 层"'), LABEL + r"expected a text with .*: KeyError\('all'\)"),
        (('"{n} 层"', "1"), LABEL + "found 1, expected a text"),
        (('"{n} layers"', '"{n layers"'), r"\[labels\.{n layers\]: .*ValueError"),
        (('"{n} layers"', '"{n}"'), r"\[labels\.{n}\]: .*RecursionError"),
        *(
            (('{ above = 0, unit = "points", limits = [-100, 100] }', rule), CLAIM + "expected one of above = 0, below")
            for rule in (
                "{}",
                '"above 0"',
                "{ above = 0, below = 1 }",
                '{ above = "0" }',
                "{ above = true }",
                "{ above = 0, limits = [0] }",
                "{ above = 0, unit = 1 }",
                "{ above = 0, exact = 1 }",
                '{ rank = "alike" }',
                '{ rank = "same", exact = true }',
                "{ above = 0, bound = 1 }",
            )
        ),
    ],
)
def test_a_damaged_file_is_refused_as_a_whole(tmp_path, changed, said):
    assert changed[0] in GOOD
    with pytest.raises(ResnotesError, match=said) as caught:
        words(tmp_path, GOOD.replace(*changed)).check_uses()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, r"name {deep}, which the cell does not give"),
        ({"deep": 56, "shallow": 20}, "gives shallow=, which none of its texts names"),
    ],
)
def test_a_cell_gives_what_the_texts_name(tmp_path, values, said):
    for entry, use in ((CLAIM, Words.claim), (FIGURE, Words.figure)):
        with pytest.raises(UsageError, match=entry + said):
            use(words(tmp_path), "deeper-is-worse" if entry is CLAIM else "01_depth", values)


def test_a_value_that_a_text_cannot_take_is_named(tmp_path):
    with pytest.raises(UsageError, match=CLAIM + "cannot be filled with {'deep': 'x'}"):
        words(tmp_path, GOOD.replace("{deep}", "{deep:.1f}")).claim("deeper-is-worse", {"deep": "x"})


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (CELLS[:1], FIGURE + r"no cell of 01_a\.ipynb names it"),
        (CELLS[1:], CLAIM + "no cell"),
        ((*CELLS, "claims.decide('other', live=1)"), r"\[claims\.other\]: there is no such entry; there are: deeper"),
    ],
)
def test_a_notebook_that_disagrees_is_not_even_started(tmp_path, cells, said):
    found = words(tmp_path, cells=cells)
    with pytest.raises(UsageError, match=said):
        found.check_uses()
    with pytest.raises(UsageError, match=said):
        execute([notebooks.Notebook(tmp_path / "01_a.ipynb")], {}, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# The suite's


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_words_of_the_suite_are_whole_and_in_use(book):
    found = Words(book.stem, book.path.parent)
    found.check_uses()
    for key, entry in found._all.get("claims", {}).items():
        unit = entry["rule"].get("unit", "")
        assert unit in UNITS_ZH or not re.search(r"[A-Za-z]{2}", unit), f"{key}: no Chinese for {unit}"
        for part, texts in entry.items():
            if part not in ("source", "rule", "paper"):
                assert [bool(re.search(CHINESE, texts[lang])) for lang in ("en", "zh")] == [False, True], (
                    f"{key}: {part}"
                )


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_labels_of_the_suite_are_chinese_and_in_use(book):
    found = Words(book.stem, book.path.parent)
    assert bool(found.labels) == bool(found.headlines), "figures with a headline need [labels], and only these"
    root = book.path.parents[1]
    sources = [book.path, *root.glob("resnotes/**/*.py"), *root.glob("data/papers/*.csv")]
    code = "\n".join(source.read_text(encoding="utf-8") for source in sources)
    for text, chinese in found.labels.items():
        assert re.search(CHINESE, chinese) and "$" not in chinese, "mathematics is set without Chinese"
        for piece, *_ in Formatter().parse(text):
            assert all(words in code for words in re.findall(r"[\w' ]{3,}", piece)), text


@pytest.mark.parametrize("book", BOOKS, ids=lambda book: book.stem)
def test_code_of_a_notebook_fits_a_reader(book):
    """No line counts that is empty or a comment."""
    cells = [cell for cell in notebooks.read(book.path).cells if cell.cell_type == "code"]
    lines = {
        cell.id: [line for line in cell.source.splitlines() if line.strip() and not line.lstrip().startswith("#")]
        for cell in cells
    }
    assert sum(map(len, lines.values())) <= 450
    for cell in cells:
        limit = 40 if "by-hand" in cell.metadata.get("tags", []) else 25
        assert len(lines[cell.id]) <= limit, lines[cell.id][0]


def test_without_a_words_file_there_is_none_to_check(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "project_root", lambda: tmp_path)
    with pytest.raises(ResnotesError, match=r"01_a\.toml cannot be read as the words of a notebook"):
        Words("01_a").claim("x", {})
