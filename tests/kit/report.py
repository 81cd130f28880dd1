"""What a run leaves, made up; and parsers that are not ours: html.parser and markdown-it."""

import re
from dataclasses import asdict
from html.parser import HTMLParser

import nbformat
from markdown_it import MarkdownIt
from PIL import Image

from resnotes.analysis.intervals import interval
from resnotes.book import story
from resnotes.book.claims import Claim
from resnotes.book.results import NOTE
from resnotes.files import write_json

CHAPTERS = story.chapters()
NOTEBOOKS = {
    chapter.key[0].split(".")[0]: chapter.notebook for chapter in CHAPTERS
}  # by the first half of a claim's id
TOLD = list(
    dict.fromkeys(
        id for ids in [chapter.key for chapter in CHAPTERS] + [s.claims for s in story.statements()] for id in ids
    )
)


def notebook_of(id):
    return NOTEBOOKS[id.split(".")[0]]


def claim(id, position=0, *, p=0.01, **changes):
    """A claim with a verdict and numbers of its own at two scopes, in two languages."""
    texts = {
        "statement": (f"Claim {id}.", f"论断 {id}。"),
        "paper": ("over 4.5", "高于 4.5"),
        "why": (f"By {id}.", f"由于 {id}。"),
    }
    texts |= {
        "rule": ("above 7.5", "高于 7.5"),
        "control": ("none", "无"),
        "changed": ("2026-01-01: it", "2026-01-01：它"),
    }
    both = {
        f"{name}{suffix}": text for name, pair in texts.items() for suffix, text in zip(("", "_zh"), pair, strict=True)
    }
    holds = (True, False, None)[position % 3]
    setting = {"dataset": "digits", "iterations": 132, "networks": 2, "images": None}
    scopes = {}
    for scope, shift in (("live", 0), ("recorded", 100)):
        found = interval([position + shift + 1.25, position + shift + 3.5], "points")
        bounds = {name: getattr(found, name) for name in ("mean", "low", "high", "n", "unit")}
        measured = {**bounds, "text": str(found), "text_zh": found.zh}
        scopes[scope] = {"measured": measured, "holds": holds, "p": p, **setting}
    facts = {
        "id": id,
        "notebook": notebook_of(id),
        "source": "He et al. 2016, Sec. 3",
        "holds": holds,
        "scope": "recorded",
    }
    return {**asdict(Claim(**facts, **both, scopes=scopes)), **changes}


def executed(out, stem, figures=(), *, ids=None, **outcome):
    """What `run` leaves of a notebook: by default with all claims that the story speaks of."""
    noted = {"seconds": 1.5, "failed": False, "finished": "2026-03-04T12:00:00+00:00", "machine": "CPU, 2 cores"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(f"# About {stem}")])
    notebook.metadata[NOTE] = {**noted, "commit": "0123456789abcdef", "parameters": {"profile": "quick"}, **outcome}
    (out / "notebooks").mkdir(parents=True, exist_ok=True)
    nbformat.write(notebook, out / "notebooks" / f"{stem}.ipynb")
    (out / "notebooks" / f"{stem}.html").touch()
    ids = [id for id in TOLD if notebook_of(id) == stem] if ids is None else ids
    write_json(out / "claims" / f"{stem}.json", [claim(id, position) for position, id in enumerate(ids)])
    for name in figures:
        caption = {"en": f"Figure {name}", "zh": f"图 {name}"}
        write_json(out / "figures" / f"{name}.json", {"name": name, "caption": caption, "claims": ids[:1]})
        for kind in ("png", "pdf", "svg"):
            Image.new("RGB", (1600, 200), "teal").save(out / "figures" / f"{name}.{kind}", "png")


def tree(folder):
    """Everything below a folder."""
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


def squeezed(*texts):
    """Texts without white space, which differs between formats."""
    return "".join("".join(texts).split())


def numbers(text):
    return re.findall(r"\d+(?:\.\d+)?", text)


class Page(HTMLParser):
    """An HTML page in which every element is closed in its turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in ("img", "input", "br", "meta", "link"):
            self.open.append(element)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for element in self.open:
            element[2] += data

    def texts(self, *tags):
        return [text for tag, _, text in self.elements if tag in tags]

    def values(self, attribute):
        return [attributes[attribute] for _, attributes, _ in self.elements if attribute in attributes]


class Markdown:
    """A document in GitHub's Markdown as a reader sees it; its only markup is bold, italic, images and line breaks."""

    def __init__(self, text):
        self.rows, self.paragraphs, self.headings, self.images = [], [], [], {}
        opened = ""
        for token in MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(text):
            if token.type == "tr_open":
                self.rows.append([])
            elif token.type == "inline":
                plain = self._plain(token)
                if opened in ("th_open", "td_open"):
                    self.rows[-1].append(plain)
                else:
                    {"paragraph_open": self.paragraphs, "heading_open": self.headings}[opened].append(plain)
            opened = token.type

    def _plain(self, inline):
        text = ""
        for token in inline.children:
            if token.type == "image":
                self.images[token.attrs["src"]] = self._plain(token)
            elif token.type == "html_inline":
                assert token.content == "<br>"
            else:
                assert token.type in ("text", "softbreak") or token.tag in ("strong", "em", "a")
                text += token.content
        return text
