"""Drawings in inches: boxes, circles, lines and words on axes that become as large as what is drawn on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from matplotlib.path import Path
from matplotlib.transforms import BboxBase

from resnotes.figures.style import FADED, FADED_TEXT, FILLS, FONT, WIDTH

MARGIN, GAP = 0.04, 0.2  # around a drawing, and between two, in inches
CORNER, ROUNDED = 0.07, 0.035  # of a line, and of a box
ARROW = "-|>,head_length=3.6,head_width=1.8"
DASHES = (0, (3.2, 1.6))

Point: TypeAlias = tuple[float, float]


class Canvas:
    """Axes on which an inch is one; what is `faded` is dashed and grey.

    Args:
        ax: where to draw. In less room than `fit` asks for, shapes shrink, but not what is written in them.
    """

    def __init__(self, ax: Axes) -> None:
        self.ax = ax
        ax.axis("off")

    @property
    def bounds(self) -> BboxBase:
        """Of what is drawn so far."""
        return self.ax.dataLim

    def write(self, x: float, y: float, text: str, *, size: float = FONT, faded: bool = False, **look: Any) -> None:
        """Words around a point; `look` is that of `Axes.text`."""
        usual: dict[str, Any] = {"ha": "center", "va": "center", "color": FADED_TEXT if faded else "black", "zorder": 5}
        written = self.ax.text(x, y, text, fontsize=size, **(usual | look))
        figure = self.ax.get_figure(root=True)
        assert figure is not None
        inches = (written.get_window_extent().get_points() - self.ax.transData.transform((x, y))) / figure.dpi
        self.ax.update_datalim(np.add(inches, (x, y)))

    def line(self, *points: Point, head: bool = False, faded: bool = False) -> None:
        """A line along `points` with rounded corners, which may be an arrow."""
        vertices, codes = [points[0]], [Path.MOVETO]
        for before, corner, after in zip(points[:-2], points[1:-1], points[2:], strict=True):
            start, end = (_towards(corner, neighbour) for neighbour in (before, after))
            vertices += [start, corner, end]
            codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
        path = Path([*vertices, points[-1]], [*codes, Path.LINETO])
        look: dict[str, Any] = {"color": FADED, "linestyle": DASHES, "zorder": 0.9} if faded else {"color": "black"}
        style = ARROW if head else "-"
        self.ax.add_patch(
            FancyArrowPatch(path=path, arrowstyle=style, mutation_scale=1, linewidth=0.8, capstyle="butt", **look)
        )
        self.ax.update_datalim(points)

    def arrow(self, *points: Point, faded: bool = False) -> None:
        """A `line` with a head."""
        self.line(*points, head=True, faded=faded)

    def box(
        self, x: float, y: float, width: float, height: float, text: str, fill: str, *, faded: bool = False, **look: Any
    ) -> None:
        """A box around ``(x, y)`` with words in it; `fill` is a key of `FILLS`, `look` that of `write`."""
        corner = (x - width / 2, y - height / 2)
        style = f"round,pad=0,rounding_size={ROUNDED}"
        self.ax.add_patch(FancyBboxPatch(corner, width, height, boxstyle=style, **_look(fill, faded)))
        self.write(x, y, text, faded=faded, va="center_baseline", **look)

    def circle(self, x: float, y: float, radius: float, text: str, *, faded: bool = False, **look: Any) -> None:
        """A circle around ``(x, y)`` with words in it; `look` is that of `write`."""
        self.ax.add_patch(Circle((x, y), radius, **(_look("circle", faded) | {"linestyle": "-"})))
        self.write(x, y, text, faded=faded, va="center_baseline", **look)

    def polygon(self, points: Sequence[Point], **look: Any) -> None:
        """A polygon; `look` is that of the patch."""
        usual: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.6, "joinstyle": "round", "zorder": 3}
        self.ax.add_patch(Polygon(points, **(usual | look)))

    def fit(self) -> None:
        """Let the limits of the axes be those of what is drawn."""
        bounds = self.bounds.padded(MARGIN)
        self.ax.set(xlim=bounds.intervalx, ylim=bounds.intervaly)


def _towards(corner: Point, neighbour: Point) -> Point:
    """The point from which a line begins to turn."""
    way = np.subtract(neighbour, corner)
    x, y = corner + CORNER * way / np.hypot(*way)
    return float(x), float(y)


def _look(fill: str, faded: bool) -> dict[str, Any]:
    if faded:
        return {"facecolor": "white", "edgecolor": FADED, "linestyle": DASHES, "linewidth": 0.6, "zorder": 3}
    return {"facecolor": FILLS[fill], "edgecolor": "black", "linewidth": 0.6, "zorder": 3}


def blank(height: float = 1.0) -> Figure:
    """A figure as wide as a page, in which everything stays where it is put.

    Args:
        height: in inches.
    """
    # Not "none": saved once, such a figure would fall back to the layout of the style sheet.
    layout = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    return plt.figure(figsize=(WIDTH, height), layout=layout)


def canvases(count: int) -> tuple[Figure, list[Canvas]]:
    """A figure of so many drawings, which `arrange` will place."""
    figure = blank()
    return figure, [Canvas(figure.add_axes((0, 0, 1, 1), label=str(i))) for i in range(count)]


def arrange(figure: Figure, width: float = WIDTH) -> Figure:
    """Set drawings beside each other, as many in a row as there is room for, an inch being one on their axes.

    Args:
        figure: of canvases that were made to `fit`; its height becomes that of the rows.
        width: of the figure, in inches.
    """
    sizes = {ax: (float(np.ptp(ax.get_xlim())), float(np.ptp(ax.get_ylim()))) for ax in figure.axes}
    rows: list[list[Axes]] = [[]]
    for ax in figure.axes:
        if sum(sizes[other][0] + GAP for other in rows[-1]) + sizes[ax][0] > width:
            rows.append([])
        rows[-1].append(ax)
    heights = [max(sizes[ax][1] for ax in row) for row in rows]
    total = sum(heights) + GAP * (len(rows) - 1)
    figure.set_size_inches(width, total)
    top = total
    for row, height in zip(rows, heights, strict=True):
        spare = (width - sum(sizes[ax][0] for ax in row)) / (len(row) + 1)
        x = spare
        for ax in row:
            across, up = sizes[ax]
            ax.set_position((x / width, (top - up) / total, across / width, up / total))
            x += across + spare
        top -= height + GAP
    return figure
