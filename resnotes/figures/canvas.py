"""Drawings in inches: boxes, circles, arrows and words at given places of a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path

from resnotes.figures.style import FADED, FADED_TEXT, FILLS, FONT, WIDTH

WORDS = FONT + 1  # points, of what is not in a box
LINE: dict[str, Any] = {"linewidth": 0.6, "edgecolor": "black", "zorder": 3}
DASHED: dict[str, Any] = {
    "linewidth": 0.6,
    "edgecolor": FADED,
    "zorder": 3,
    "linestyle": (0, (3.2, 1.6)),
    "facecolor": "white",
}

Point: TypeAlias = tuple[float, float]


def blank(height: float, width: float = WIDTH) -> Figure:
    """A figure in which everything stays where it is put.

    Args:
        height: in inches.
        width: that of a page, in inches.
    """
    # Not "none": saved once, such a figure would fall back to the layout of the style sheet.
    layout = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    return plt.figure(figsize=(width, height), layout=layout)


class Canvas:
    """A figure on which an inch is one, seen from an origin; what is `faded` is dashed and grey.

    Args:
        figure: where to draw; it may have several canvases.
        x: of the origin, from the left edge of the figure to the right.
        y: of the origin, from the upper edge of the figure downwards; on the canvas, y points upwards.
    """

    def __init__(self, figure: Figure, x: float, y: float) -> None:
        width, height = figure.get_size_inches()
        self.ax = figure.add_axes((0, 0, 1, 1), xlim=(-x, width - x), ylim=(y - height, y))
        self.ax.axis("off")

    def write(self, x: float, y: float, text: str, *, faded: bool = False, **look: Any) -> None:
        """Words around a point; `look` is that of `Axes.text`."""
        usual = {"ha": "center", "va": "center", "fontsize": WORDS, "zorder": 5}
        self.ax.text(x, y, text, **{**usual, "color": FADED_TEXT if faded else "black", **look})

    def arrow(self, *points: Point, head: bool = True, faded: bool = False) -> None:
        """A line along `points`, with a head unless it shall have none."""
        style = "-|>,head_length=3.6,head_width=1.8" if head else "-"
        look = {"color": FADED, "linestyle": DASHED["linestyle"], "zorder": 0.9} if faded else {"color": "black"}
        arrow = FancyArrowPatch(
            path=Path(points), arrowstyle=style, mutation_scale=1, linewidth=0.8, capstyle="butt", **look
        )
        self.ax.add_patch(arrow)

    def box(
        self, x: float, y: float, width: float, height: float, text: str, fill: str, *, faded: bool = False, **look: Any
    ) -> None:
        """A box around a point with words in it; `fill` is a key of `FILLS`, `look` that of `write`."""
        patch = DASHED if faded else {**LINE, "facecolor": FILLS[fill]}
        corner, style = (x - width / 2, y - height / 2), "round,pad=0,rounding_size=0.035"
        self.ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, **patch))
        self.write(x, y, text, faded=faded, **{"va": "center_baseline", "fontsize": FONT, **look})

    def circle(self, x: float, y: float, radius: float, text: str, *, faded: bool = False) -> None:
        """A circle around a point with words in it."""
        self.ax.add_patch(
            Circle((x, y), radius, **{**LINE, "facecolor": "white", "edgecolor": FADED if faded else "black"})
        )
        self.write(x, y, text, faded=faded, va="center_baseline")

    def polygon(self, points: Sequence[Point], color: Any) -> None:
        """A filled polygon."""
        self.ax.add_patch(Polygon(points, **{**LINE, "facecolor": color, "joinstyle": "round"}))
