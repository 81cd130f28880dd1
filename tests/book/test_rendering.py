import base64
import re
from pathlib import Path

import nbformat
import pytest
from kit.report import Page, executed
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from resnotes.book import notebooks
from resnotes.book.pages import write_index
from resnotes.book.rendering import notebook_page


def page_of(*cells):
    return notebook_page(new_notebook(cells=list(cells)), "test", Path("nowhere"))


def test_formulas_are_mathml():
    html = page_of(new_markdown_cell(r"Let $x_l$ be" "\n\n" r"$$y = \sum_i x_i \tag{3}$$" "\n\n`$OUT` costs 3 $."))
    assert "<msub><mi>x</mi><mi>l</mi></msub>" in html
    assert len(re.findall(r"<math ", html)) == 2
    assert "$OUT" in html
    assert r"\tag" not in html
    assert "(3)" in "".join(re.sub("<[^>]*>", "", html).split())


@pytest.mark.parametrize("formula", ["$$ $$", "$a^$", r"$\nosuchmacro{<b>}$", r"\begin{align}a &= b\end{align}"])
def test_unusual_formulas_are_no_error(formula):
    html = page_of(new_markdown_cell(f"{formula}\n\nafter"))
    assert "after" in html
    assert "<b>" not in html


def test_a_page_loads_nothing():
    image = new_output("display_data", data={"image/png": "aGFsbG8="})
    page = page_of(new_markdown_cell("$x$"), new_code_cell("1", outputs=[image]))
    [tag] = re.findall(r"<(?:script|img|link|iframe)\b[^>]*", page)
    assert 'src="data:image/png;base64,aGFsbG8="' in tag


def test_pictures_are_the_saved_figures_with_their_captions(tmp_path):
    executed(tmp_path, "01_degradation", ["01_one", "01_two"], ids=[])
    small = {"image/png": "aGFsbG8="}

    def images(source, *metadata):
        outputs = [new_output("display_data", data=dict(small), metadata=each) for each in metadata]
        notebook = new_notebook(cells=[new_code_cell(source, outputs=outputs)])
        page = Page(notebook_page(notebook, "01_degradation", tmp_path / "figures"))
        assert notebook.cells[0].outputs == outputs, "the notebook is left as it was"
        return [each for tag, each, _ in page.elements if tag == "img"]

    both = 'for name in ("01_two", "01_one"): claims.figure(fig, name, "points")'
    assert [image["alt"] for image in images(both, {}, {})] == ["Figure 01_two", "Figure 01_one"]
    [image] = images('claims.figure(fig, "01_one", data)', {})
    saved = base64.b64encode((tmp_path / "figures/01_one.png").read_bytes()).decode()
    assert (image["src"], image["width"]) == (f"data:image/png;base64,{saved}", "533")
    for source, metadata in ((both, [{}]), ("plt.show()", [{}])):  # not known which is which
        assert [image["alt"] for image in images(source, *metadata)] == ["A figure without a caption"]
    [image] = images("explore()", {"image/png": {"alt": '"said"', "width": 70}})
    assert (image["alt"], image["width"], image["src"][-8:]) == ('"said"', "70", "aGFsbG8=")


def test_a_page_leads_to_its_sections_to_other_pages_and_to_its_notebook(tmp_path):
    for stem in ("01_degradation", "02_identity_mappings", "03_unraveled_paths"):
        executed(tmp_path, stem, ids=[])
        cells = [new_markdown_cell(f"# Of {stem}: long"), new_markdown_cell("## 1. *Is* it?\n\n[04](04_x.ipynb#a)")]
        page = notebook_page(new_notebook(cells=cells), stem, tmp_path)
        (tmp_path / "notebooks" / f"{stem}.html").write_text(page)
    for _ in range(2):  # another execution changes nothing
        write_index(tmp_path)
        page = Page((tmp_path / "notebooks/02_identity_mappings.html").read_text())
        assert page.values("href") == [
            *("#content", "../index.html", "01_degradation.html", "03_unraveled_paths.html"),
            *("02_identity_mappings.ipynb", "#1-is-it", "04_x.html#a"),
        ]
    assert page.texts("title") == ["Of 02_identity_mappings: long"]
    assert page.texts("h2") == ["1. Is it?"] and "1-is-it" in page.values("id")


@pytest.mark.parametrize(
    ("source", "tags", "summary"),
    [
        ("import numpy", [], ["Imports and settings"]),
        ("seed = 0", ["parameters"], ["Parameters"]),
        ('claims.decide("a", live=1)', [], ["Code of the verdict"]),
        ('claims.figure(fig, "a", data)', [], ["Code of the figure"]),
        ("def train():\n    from os import path", [], []),
    ],
)
def test_bookkeeping_is_folded(source, tags, summary):
    page = Page(page_of(new_code_cell(source, metadata={"tags": tags})))
    assert page.texts("summary") == summary
    assert [text.strip() for text in page.texts("pre")] == [source]


@pytest.mark.parametrize("book", notebooks.discover(), ids=lambda book: book.stem)
def test_every_formula_of_the_suite_is_converted(book):
    notebook = nbformat.read(book.path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    text = re.sub(r"<(pre|code)\b.*?</\1>", "", notebook_page(notebook, book.stem, Path("nowhere")), flags=re.DOTALL)
    assert "$" not in re.sub("<style.*?</style>", "", text, flags=re.DOTALL)
