import re

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from resnotes.book import notebooks
from resnotes.book.rendering import notebook_page


def page_of(*cells):
    return notebook_page(new_notebook(cells=list(cells)), "test")


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


@pytest.mark.parametrize("book", notebooks.discover(), ids=lambda book: book.stem)
def test_every_formula_of_the_suite_is_converted(book):
    notebook = nbformat.read(book.path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    text = re.sub(r"<(pre|code)\b.*?</\1>", "", notebook_page(notebook, book.stem), flags=re.DOTALL)
    assert "$" not in re.sub("<style.*?</style>", "", text, flags=re.DOTALL)
