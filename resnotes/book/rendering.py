"""Executed notebooks as HTML pages that need no network and no scripts: images inside, formulas as MathML."""

from __future__ import annotations

import re
from html import escape
from typing import Any

from jinja2 import PackageLoader, pass_context
from jinja2.runtime import Context
from latex2mathml.converter import convert
from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import IPythonRenderer, MarkdownWithMath


class _MathML(IPythonRenderer):
    """Markdown to HTML, with formulas as MathML, which browsers draw themselves."""

    def block_math(self, body: str) -> str:
        return _mathml(body, "block")

    def inline_math(self, body: str) -> str:
        return _mathml(body, "inline")

    def latex_environment(self, name: str, body: str) -> str:
        return _mathml(rf"\begin{{{name}}}{body}\end{{{name}}}", "block")


class _Exporter(HTMLExporter):
    @pass_context
    def markdown2html(self, context: Context, source: str) -> str:
        """A cell of Markdown as HTML; by this name nbconvert's template finds it."""
        renderer = _MathML(escape=False, embed_images=True, attachments=context.get("cell", {}).get("attachments", {}))
        return str(MarkdownWithMath(renderer=renderer).render(source))


def notebook_page(notebook: Any, title: str) -> str:
    """The HTML page of an executed notebook, an nbformat 4 node."""
    exporter = _Exporter(
        template_file="notebook.html.j2", extra_loaders=[PackageLoader("resnotes.book")], embed_images=True
    )
    exporter.log.setLevel("ERROR")  # it warns of images without alternative text, which plots in outputs cannot have
    html, _ = exporter.from_notebook_node(notebook, resources={"metadata": {"name": title}})
    return str(html)


def _mathml(latex: str, display: str) -> str:
    latex = re.sub(r"\\tag\{(.*?)\}", r"\\qquad (\1)", latex)  # which the converter would set without space
    try:
        return convert(latex, display=display)
    except Exception:  # the converter's own errors have no class in common
        return f"<code>{escape(latex)}</code>"
