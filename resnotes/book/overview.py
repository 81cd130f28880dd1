"""The suite at a glance: its chain of questions, the answers, and the claims of all notebooks.

Everything is taken from the ledger, `claims.json`; nothing is measured here.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from PIL import Image as Picture

from resnotes import paths
from resnotes.book import cards, story
from resnotes.book.claims import load, marked, verdicts
from resnotes.book.report import tested_statements
from resnotes.errors import ResnotesError
from resnotes.figures.saving import described

COLORS = {"true": "#009E73", "false": "#D55E00", "undecided": "#9AA0A6"}
Ledger = Mapping[str, Mapping[str, Any]]  # claims by id


def ledger() -> Ledger:
    """The claims of every notebook, by id: those of the output folder, or else those that come with the repository.

    Raises:
        ResnotesError: a ledger is damaged.
    """
    executed, shipped = (
        load(path) if path.exists() else []
        for path in (paths.out_root() / "claims.json", paths.recorded_root() / "claims.json")
    )
    there = {claim["notebook"] for claim in executed}
    entries = executed + [claim for claim in shipped if claim["notebook"] not in there]
    return {claim["id"]: claim for claim in marked(sorted(entries, key=lambda claim: str(claim["notebook"])))}


def claims_of(entries: Ledger, notebook: str) -> list[Mapping[str, Any]]:
    """The claims of one notebook."""
    return [claim for claim in entries.values() if claim["notebook"] == notebook]


def tally(entries: Ledger) -> pd.DataFrame:
    """How many claims of each notebook are true, false and undecided."""
    notebooks = sorted(chapter.notebook for chapter in story.chapters())
    counts = {notebook: verdicts(claims_of(entries, notebook)) for notebook in notebooks}
    return pd.DataFrame(counts, index=list(COLORS)).T.fillna(0).astype(int)


def question_chain(entries: Ledger) -> Figure:
    """The question that leads to the next one, from PSPNet through residual networks to the reader's; 7 inches wide.

    Below each question: how many claims of its notebook are true, false and undecided.
    """
    width, height, gap, in_row = 1.5, 1.1, 0.25, 4
    first, *others = story.chapters()
    opening = "A baseline, and what its failures have in common. But what is the ResNet that it is built of?"
    boxes = [(first, first.source, opening)]
    boxes += [(chapter, chapter.source, chapter.question["en"]) for chapter in others]
    boxes.insert(in_row, (first, f"back to {first.source.partition(',')[0]}", first.question["en"]))
    fig, ax = plt.subplots(figsize=(7, 3.4))
    for position, (chapter, source, question) in enumerate(boxes):
        row, column = divmod(position, in_row)
        left, bottom = column * (width + gap), -row * (height + 0.55)
        middle, top = left + width / 2, bottom + height
        shape = FancyBboxPatch(
            (left, bottom), width, height, boxstyle="round,pad=0,rounding_size=0.06", fc="#EAF3FA", ec="#0072B2", lw=0.8
        )
        ax.add_patch(shape)
        lines: dict[str, Any] = {"ha": "center", "va": "top", "linespacing": 1.4}
        ax.text(middle, top - 0.09, source, fontsize=6, color="#0B4F80", **lines)
        ax.text(middle, top - 0.24, chapter.name["en"], fontsize=6.5, weight="bold", color="#0B4F80", **lines)
        ax.text(middle, top - 0.46, fill(question, 27), fontsize=6.5, **lines)
        if position:
            arrow: dict[str, Any] = {"arrowstyle": "-|>,head_length=3,head_width=1.6", "mutation_scale": 1}
            arrow |= {"color": "0.3", "shrinkA": 0, "shrinkB": 0}
            ends = (left - 0.02, bottom + height / 2), (left - gap + 0.02, bottom + height / 2)
            ax.annotate("", *ends, arrowprops=arrow)
            _bar(ax, left, bottom, width, verdicts(claims_of(entries, chapter.notebook)))
            ax.text(middle, bottom - 0.33, f"notebook {chapter.notebook[:2]}", fontsize=6, color="0.3", **lines)
    for position, (word, color) in enumerate(COLORS.items()):
        ax.add_patch(Rectangle((0.02, -0.18 - 0.13 * position), 0.1, 0.08, fc=color))
        ax.text(0.17, -0.14 - 0.13 * position, f"claims {word}", fontsize=6, va="center")
    lowest = -((len(boxes) - 1) // in_row) * (height + 0.55)
    ax.set(xlim=(-gap - 0.02, in_row * (width + gap) - gap + 0.02), ylim=(lowest - 0.5, height + 0.02), aspect="equal")
    ax.axis("off")
    return fig


def _bar(ax: Axes, left: float, bottom: float, width: float, counts: Mapping[str, int]) -> None:
    """Verdicts of a notebook as one bar, in their colours."""
    for word, color in COLORS.items():
        if share := width * counts[word] / max(1, sum(counts.values())):
            bar = ax.barh(bottom - 0.19, share, 0.18, left, color=color, edgecolor="white", lw=0.6)
            ax.bar_label(bar, [str(counts[word])], label_type="center", fontsize=6)
            left += share


def statements(entries: Ledger, lang: str) -> cards.Shown:
    """Each statement of the weekly report, whether it holds, and the claims that say so."""
    return cards.statements(tested_statements(entries, lang), lang)


def chance(entries: Ledger, lang: str) -> cards.Shown:
    """How many of all verdicts chance alone would decide, and what the mark at some means."""
    return cards.paragraph(cards.chance(list(entries.values()), lang))


def places(lang: str) -> cards.Shown:
    """Where to change what."""
    return cards.places(story.places(), lang)


def study(notebook: str, entries: Ledger, lang: str) -> None:
    """Show what a notebook asks and answers, the figure that shows it best, and its claims, the key ones first."""
    [chapter] = [chapter for chapter in story.chapters() if chapter.notebook == notebook]
    claims = claims_of(entries, notebook)
    display(cards.answer(chapter, chapter.otherwise(entries), lang))
    display(*figure(chapter.figure, lang))
    display(cards.table([claim for claim in claims if claim["id"] in chapter.key], lang, counted=False))
    if rest := [claim for claim in claims if claim["id"] not in chapter.key]:
        display(cards.others(rest, lang))


def figure(name: str, lang: str) -> tuple[Image, cards.Shown]:
    """A figure of the output folder, or else that which comes with the repository, at the width of a page; its caption.

    Raises:
        ResnotesError: it is in neither, or what describes it is damaged.
    """
    folders = [root / "figures" for root in (paths.out_root(), paths.project_root())]
    path = next((path for folder in folders if (path := folder / f"{name}.png").exists()), None)
    if path is None:
        raise ResnotesError(f"no figure {name}.png in {folders[0]} or {folders[1]}; `resnotes run` makes it")
    caption = described(path.with_suffix(".json"))["caption"][lang]
    picture, file = Picture.open(path), io.BytesIO()
    picture.thumbnail((1400, 2800))  # two pixels each of the 700 across, for fine screens
    picture.convert("RGB").quantize(dither=Picture.Dither.NONE).save(file, "png")  # 256 colours: a third of the bytes
    return Image(file.getvalue(), width=picture.width // 2, alt=caption), cards.paragraph(caption)
