"""Figures with their words in Chinese, where a font has it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from string import Formatter

from matplotlib import font_manager
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.layout_engine import LayoutEngine
from matplotlib.text import Text

from resnotes.figures.style import fix_layout

# Files of fonts with simplified Chinese, without ending and in lower case, the one we draw with first.
_LINUX = ("notosanscjk-regular", "notosanssc-regular", "sourcehansanssc-regular", "wqy-microhei", "notosanscjk-vf")
_MACOS, _WINDOWS = ("pingfang", "hiragino sans gb"), ("msyh", "simhei")


def translate(text: str, labels: Mapping[str, str]) -> str:
    """`text` by the entry of `labels` that it fits, or as it is; of several that which leaves least to be filled in.

    Args:
        text: as it stands in a figure.
        labels: its translation, by the text. Names in braces stand for any words, which are translated likewise:
            `{"recorded": "存档", "{n} layers, {scope}": "{scope}，{n} 层"}`.
    """
    fits = {known: found.groupdict() for known in labels if (found := re.fullmatch(_pattern(known), text))}
    if not fits:
        return text
    known = min(fits, key=lambda each: sum(map(len, fits[each].values())))
    return labels[known].format(**{name: translate(part, labels) for name, part in fits[known].items()})


@cache
def _pattern(template: str) -> str:
    """The regular expression of what a template becomes when it is filled."""
    pieces = Formatter().parse(template)
    return "".join(re.escape(words) + (f"(?P<{name}>.+?)" if name is not None else "") for words, name, _, _ in pieces)


def chinese_font() -> str | None:
    """Name of a font with Chinese, known to matplotlib from here on; None where none is installed."""
    # On the disk: matplotlib remembers the fonts of the day when it was first imported.
    installed = {Path(path).stem.lower(): path for path in font_manager.findSystemFonts()}
    path = next((installed[name] for name in _LINUX + _MACOS + _WINDOWS if name in installed), None)
    if path is None:
        return None
    known = font_manager.fontManager.ttflist
    if not any(font.fname == path for font in known):
        font_manager.fontManager.addfont(path)
    names = [font.name for font in known if font.fname == path]
    # It may be a collection for all of East Asia; matplotlib before 3.11 knows only its first font.
    return next((name for name in names if name.endswith((" SC", " GB"))), names[0])


@contextmanager
def translated(fig: Figure, labels: Mapping[str, str], font: str, layout: LayoutEngine | None) -> Iterator[None]:
    """Within, the words of `fig` are those of `labels`, laid out by `layout`; afterwards it is as it was.

    Args:
        fig: the figure, whose layout is fixed.
        labels: as for `translate`.
        font: for what the figure's own font lacks.
        layout: None where everything stays in its place.
    """
    with ExitStack() as undo:
        for ax in fig.axes:
            undo.callback(ax.set_in_layout, ax.get_in_layout())
            for which in ("active", "original"):
                undo.callback(ax.set_position, ax.get_position(original=which == "original"), which=which)
            for axis in (ax.xaxis, ax.yaxis):
                _translate_ticks(axis, labels, undo)
        for text in fig.findobj(Text):
            undo.callback(text.update, {"text": text.get_text(), "fontfamily": text.get_fontfamily()})
            text.update({"text": translate(text.get_text(), labels), "fontfamily": [*text.get_fontfamily(), font]})
        if layout is not None:
            fig.set_layout_engine(layout)
            undo.callback(fix_layout, fig)
        yield


def _translate_ticks(axis: Axis, labels: Mapping[str, str], undo: ExitStack) -> None:
    """Translate what an axis writes beside its ticks; it writes it anew whenever it is drawn."""
    formatter = axis.get_major_formatter()
    written = map(str, formatter.format_ticks(list(axis.get_majorticklocs())))  # they may be given as numbers
    if any(translate(text, labels) != text for text in written):
        undo.callback(axis.set_major_formatter, formatter)
        axis.set_major_formatter(lambda value, position: translate(str(formatter(value, int(position))), labels))
