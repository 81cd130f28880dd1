"""Executed notebooks as HTML pages that need no network and no scripts: images inside, formulas as MathML."""

from __future__ import annotations

import re
from base64 import b64encode
from copy import deepcopy
from html import escape
from pathlib import Path
from typing import Any

from jinja2 import PackageLoader, pass_context
from jinja2.runtime import Context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath

from resnotes.book.cards import INK
from resnotes.book.notebooks import PARAMETERS_TAG, title_of
from resnotes.files import read_json

# Where a page has links to the notebooks before and after it, which `resnotes.book.pages` fills in.
NEIGHBOURS = re.compile(r'(?<=<span class="neighbours">).*?(?=</span>)')

_SIBLING = re.compile(r"^(\d\d_\w+)\.ipynb\b")
_QUOTED = re.compile(r"""["']([a-z0-9][a-z0-9_-]*)["']""")
_DPI_SAVED, _DPI_SHOWN = 300, 100

# Code that a reader may pass over: what is in it, by what it has.
_BOOKKEEPING = {
    r"^(import|from) ": "Imports and settings",
    r"\b(claims\.figure|figures\.save)\(": "Code of the figure",
    r"\bclaims\.\w+\(": "Code of the verdict",
}


class _Renderer(IPythonRenderer):
    """Markdown to HTML, with formulas as MathML, which browsers draw themselves, and links to pages for notebooks."""

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")

    def heading(self, text: str, level: int, **attrs: Any) -> str:
        name = re.sub(r"\W+", "-", re.sub(r"<.*?>", "", text)).strip("-").lower()
        return f'<h{level} id="{name}">{text}</h{level}>\n'

    def link(self, text: str, url: str, title: str | None = None) -> str:
        return super().link(text, _SIBLING.sub(r"\1.html", url), title)


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        """A cell of Markdown as HTML; by this name nbconvert's template finds it."""
        attachments = context.get("cell", {}).get("attachments", {})
        renderer = _Renderer(escape=False, embed_images=True, attachments=attachments)
        return str(MarkdownWithMath(renderer=renderer).render(source))


def notebook_page(notebook: Any, stem: str, figures: Path) -> str:
    """The HTML page of an executed notebook.

    Args:
        notebook: nbformat 4 node; it is left as it is.
        stem: name of its file without ending, which the page links to.
        figures: folder of the figures that it saved. They take the place of those that it shows, as they are sharper,
            and their captions are alternative texts.
    """
    notebook = deepcopy(notebook)
    for cell in notebook.cells:
        _describe_pictures(cell, figures)
    exporter = _Exporter(
        template_file="notebook.html.j2",
        extra_loaders=[PackageLoader("resnotes.book")],
        embed_images=True,
        filters={"contents": _contents, "bookkeeping": _bookkeeping},
    )
    shown = {"stem": stem, "title": title_of(notebook) or stem, "ink": INK}
    html, _ = exporter.from_notebook_node(notebook, resources=shown)
    return str(html)


def _describe_pictures(cell: Any, figures: Path) -> None:
    """Put the saved figures that a cell names, with their captions, in the place of its pictures, if it has as many."""
    named = [figures / f"{name}.json" for name in dict.fromkeys(_QUOTED.findall(cell.source))]
    sidecars = [path for path in named if path.exists()]
    pictures = [
        output
        for output in cell.get("outputs", ())
        if "image/png" in output.get("data", ()) and "alt" not in output.metadata.get("image/png", ())
    ]
    if len(sidecars) != len(pictures):
        return
    for output, sidecar in zip(pictures, sidecars, strict=True):
        png = sidecar.with_suffix(".png").read_bytes()
        width = int.from_bytes(png[16:20], "big")  # of the header
        output.data["image/png"] = b64encode(png).decode()
        output.metadata["image/png"] = {
            "alt": read_json(sidecar)["caption"]["en"],
            "width": width * _DPI_SHOWN // _DPI_SAVED,
        }


def _contents(html: str) -> list[tuple[str, str]]:
    """The headings of sections: id and text, without markup but for entities."""
    found = re.findall(r'<h2 id="(.*?)">(.*?)</h2>', html, re.DOTALL)
    return [(name, re.sub(r"<.*?>", "", text)) for name, text in found]


def _bookkeeping(cell: Any) -> str:
    """What kind of bookkeeping a cell of code is, in words; empty if it is of interest itself."""
    if {PARAMETERS_TAG, "injected-parameters"} & set(cell.metadata.get("tags", ())):
        return "Parameters"
    return next((text for pattern, text in _BOOKKEEPING.items() if re.search(pattern, cell.source)), "")


def _mathml(latex: str, display: str) -> str:
    latex = re.sub(r"\\tag\{(.*?)\}", r"\\qquad (\1)", latex)  # which the converter would set without space
    try:
        return convert(latex, display=display)
    except Exception:  # the converter's own errors have no class in common
        return f"<code>{escape(latex)}</code>"
