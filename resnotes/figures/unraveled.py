"""Residual networks drawn as the paths they are made of (Veit et al. 2016, Figs. 1 and 2).

`unraveled_view` writes every unit's addition out, from the last to the first,

    y_3 = y_2 + f_3(y_2),   y_2 = y_1 + f_2(y_1),   y_1 = y_0 + f_1(y_0)

so that each of the 2^n paths starts in a row of its own. `lesioned_view` shows what is left of them without some of
the units. What is drawn is read from a network, and the counts are taken from the paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from resnotes.errors import UsageError
from resnotes.figures.canvas import WORDS, Canvas, blank
from resnotes.figures.drawings import read_nodes
from resnotes.figures.style import BLUE, FONT, VERMILION
from resnotes.models import Network
from resnotes.unravel.enumeration import all_paths, surviving

MOST_DRAWN = 3  # units of which all paths are drawn: a network of 8 layers has so many

# In inches.
BOX_WIDTH, BOX_HEIGHT, RADIUS, SMALL = 0.3, 0.19, 0.07, 0.125  # SMALL: side of what stands on a shortcut
PITCH, STEP, ROW = 0.7, 0.63, 0.25  # between additions, in a conventional view and along a path; between paths
ARC = 0.27  # height of the shortcuts in a conventional view
HEADER, END = 0.27, 0.23  # from the first row up to what is written above it, and along the last arrow
BAR, SPACE, NUMBER = 0.4, 0.07, 0.47  # the longest bar, between columns, and of a number


class PathUnit(NamedTuple):
    """What a view shows of a unit.

    Attributes:
        name: what its residual branch is called, ``"f1"``.
        downsamples: the maps become smaller in it.
        on_shortcut: what is written on its shortcut: nothing on an identity, an arrow where the maps become smaller,
            ``"$h$"`` on any other.
        after: what follows its addition, as written: ``"ReLU"``, or nothing.
    """

    name: str
    downsamples: bool = False
    on_shortcut: str = ""
    after: str = ""


def read_units(network: Network) -> list[PathUnit]:
    """The units of a residual network.

    Raises:
        UsageError: one without a shortcut, or something after an addition that no drawing shows.
    """
    units = []
    for i, each in enumerate(network.blocks):
        block: Any = each
        if block.shortcut is None:
            raise UsageError(f"{network.name} has no shortcut in unit {i + 1}: expected a residual network")
        strides = {module.stride for module in block.residual.modules() if isinstance(module, nn.Conv2d)}
        downsamples = bool(strides - {(1, 1)})
        on_shortcut = "" if isinstance(block.shortcut, nn.Identity) else "↓" if downsamples else "$h$"
        after = ", ".join(node.text for node in read_nodes(block.after))
        units.append(PathUnit(f"f{i + 1}", downsamples, on_shortcut, after))
    return units


def path_table(
    network: Network, *, deleted: int | None = None, weights: Sequence[float] | Tensor | None = None
) -> pd.DataFrame:
    """What the views draw.

    Args:
        network: a residual network.
        deleted: the unit whose residual branch is deleted, counted from 0.
        weights: a number for each of `all_paths`.

    Returns:
        One row for each of `all_paths`, in their order: ``path`` (the units' names, that which acts last first:
        ``"f3·f1"``; ``"identity"`` around all of them, or ``"shortcuts"`` if these are not all identities), ``length``,
        ``survives``, and ``weight`` if there are weights.

    Raises:
        UsageError: see `read_units`; or a unit that there is not.
    """
    units = read_units(network)
    paths = all_paths(len(units))
    around = "shortcuts" if any(unit.on_shortcut for unit in units) else "identity"
    taken = [[unit.name for unit, through in zip(units, path, strict=True) if through] for path in paths.tolist()]
    table = pd.DataFrame(
        {
            "path": ["·".join(reversed(names)) or around for names in taken],
            "length": [len(names) for names in taken],
            "survives": surviving(paths, [] if deleted is None else deleted).tolist(),
        }
    )
    return table if weights is None else table.assign(weight=[float(weight) for weight in weights])


def _symbols(names: str) -> str:
    """Names of units in mathematical type."""
    return re.sub(r"f(\w+)", r"$f_{\1}$", names)


def _small(canvas: Canvas, x: float, y: float, text: str, *, faded: bool = False) -> None:
    """What stands on a shortcut, if anything."""
    if text:
        canvas.box(x, y, SMALL, SMALL, text, "bn" if text == "↓" else "other", faded=faded)


def _branch(canvas: Canvas, x: float, y: float, unit: PathUnit, *, faded: bool = False, deleted: bool = False) -> None:
    """The box of a residual branch, crossed out if it is deleted."""
    fill, text = ("bn", "↓") if unit.downsamples else ("conv", "")
    look: dict[str, Any] = {"faded": faded or deleted, "fontsize": WORDS}
    if deleted:  # legible on the cross
        look |= {"color": "black", "path_effects": [withStroke(linewidth=2.6, foreground="white")]}
        for rise in (BOX_HEIGHT / 2, -BOX_HEIGHT / 2):
            ends = [x - BOX_WIDTH / 2, x + BOX_WIDTH / 2], [y - rise, y + rise]
            canvas.ax.plot(*ends, color=VERMILION, linewidth=1.3, zorder=3.5)
    canvas.box(x, y, BOX_WIDTH, BOX_HEIGHT, _symbols(unit.name) + text, fill, **look)


def _residual_chain(canvas: Canvas, units: Sequence[PathUnit]) -> None:
    """A conventional view, from left to right."""
    canvas.write(0, 0, "$y_0$")
    for i, unit in enumerate(units):
        start = 0.1 + PITCH * i + (RADIUS if i else 0)
        end = 0.1 + PITCH * (i + 1)  # the middle of the addition
        box, split = end - 0.39, end - PITCH + RADIUS + 0.04
        canvas.arrow((start, 0), (box - BOX_WIDTH / 2, 0))
        canvas.arrow((box + BOX_WIDTH / 2, 0), (end - RADIUS, 0))
        canvas.arrow((split, 0), (split, ARC), (end, ARC), (end, RADIUS))
        _branch(canvas, box, 0, unit)
        _small(canvas, box, ARC, unit.on_shortcut)
        canvas.circle(end, 0, RADIUS, "+")
    canvas.arrow((end + RADIUS, 0), (end + RADIUS + END, 0))
    canvas.write(end + RADIUS + END + 0.1, 0, f"$y_{len(units)}$")


def _feedforward_chain(canvas: Canvas, units: Sequence[PathUnit], deleted: int) -> None:
    """The same units without shortcuts, of which one is deleted: nothing is left."""
    canvas.write(0, 0, "$y_0$")
    for i, unit in enumerate(units):
        box = 0.45 + 0.5 * i
        canvas.arrow((box - 0.35, 0), (box - BOX_WIDTH / 2, 0), faded=True)
        _branch(canvas, box, 0, unit, faded=True, deleted=i == deleted)
    canvas.arrow((box + BOX_WIDTH / 2, 0), (box + 0.38, 0), faded=True)
    canvas.write(box + 0.48, 0, f"$y_{len(units)}$", faded=True)


def _key(canvas: Canvas, units: Sequence[PathUnit], *, lesion: bool = False) -> None:
    """What the shapes mean, below a chain."""
    after = {unit.after for unit in units}
    then = f", then {after.pop()}" if len(after) == 1 and "" not in after else ""
    branch, middle = PathUnit("fi"), BOX_WIDTH / 2
    draw: dict[str, Callable[[float], None]] = {
        "residual branch of unit $i$": lambda y: _branch(canvas, middle, y, branch)
    }
    if any(unit.downsamples for unit in units):
        draw["half the resolution"] = lambda y: _small(canvas, middle, y, "↓")
    if any(unit.on_shortcut == "$h$" for unit in units):
        draw["shortcut other than the identity"] = lambda y: _small(canvas, middle, y, "$h$")
    draw[f"addition{then}"] = lambda y: canvas.circle(middle, y, RADIUS, "+")
    if lesion:
        draw["deleted"] = lambda y: _branch(canvas, middle, y, branch, deleted=True)
        draw["lost with it"] = lambda y: canvas.arrow((0, y), (BOX_WIDTH, y), faded=True)
    for row, (text, shape) in enumerate(draw.items()):
        y = -0.33 - 0.23 * row
        shape(y)
        canvas.write(BOX_WIDTH + 0.09, y, text, fontsize=FONT, ha="left")


def _tree(canvas: Canvas, units: Sequence[PathUnit], table: pd.DataFrame, deleted: int | None = None) -> None:
    """All paths, a row for each: in row r those units are taken that are 1 in the binary number r.

    The addition of unit i joins a row whose last i digits are 0 with that 2^(i-1) below: so no lines cross.

    Args:
        canvas: where to draw.
        units: from the first to the last.
        table: that of `path_table`.
        deleted: number of the unit that is crossed out.
    """
    rows = (all_paths(len(units)).long() << torch.arange(len(units))).sum(1)
    table = table.iloc[rows.argsort().tolist()]
    survives, count = table["survives"].tolist(), len(table)
    canvas.write(0, HEADER, "$y_0$")
    for row in range(count):
        above = HEADER - 0.1 if row == 0 else ROW * (1 - row)
        canvas.arrow((0, above), (0, -ROW * row), head=False, faded=not any(survives[row:]))
    for i, unit in enumerate(units):
        start, end = STEP * i + (RADIUS if i else 0), STEP * (i + 1)  # from one addition to the middle of the next
        box = end - STEP + RADIUS + 0.1 + BOX_WIDTH / 2
        for row in range(0, count, 2 ** (i + 1)):
            lower = row + 2**i
            y, below = -ROW * row, -ROW * lower
            around, through = any(survives[row:lower]), any(survives[lower : lower + 2**i])
            canvas.arrow((start, y), (end - RADIUS, y), faded=not around)
            _small(canvas, box, y, unit.on_shortcut, faded=not around)
            canvas.arrow((start, below), (box - BOX_WIDTH / 2, below), faded=not through)
            _branch(canvas, box, below, unit, faded=not through, deleted=i == deleted)
            canvas.arrow((box + BOX_WIDTH / 2, below), (end, below), (end, y - RADIUS), faded=not through)
            canvas.circle(end, y, RADIUS, "+", faded=not (around or through))
    right = STEP * len(units) + RADIUS
    canvas.arrow((right, 0), (right + END, 0))
    canvas.write(right + END + 0.1, 0, f"$y_{len(units)}$")
    _name_rows(canvas, table)


def _name_rows(canvas: Canvas, table: pd.DataFrame) -> None:
    """At the left of a tree, the name of the path in each row, and its weight if there are weights."""
    heights = [-ROW * row for row in range(len(table))]
    edge = -SPACE
    look: dict[str, Any] = {"ha": "right", "va": "center_baseline"}
    if "weight" in table:
        canvas.write(-2.5 * SPACE, HEADER, "norm of the gradient", fontsize=FONT, **look)
        for y, weight in zip(heights, table["weight"], strict=True):
            canvas.write(edge, y, f"{weight:.2g}", fontsize=FONT, **look)
        edge -= NUMBER + BAR
        canvas.ax.barh(heights, BAR * table["weight"] / table["weight"].max(), 0.12, edge, color=BLUE)
        edge -= SPACE
    for y, path, survives in zip(heights, table["path"], table["survives"], strict=True):
        canvas.write(edge, y, _symbols(path), faded=not survives, **look)


def _drawable(network: Network) -> list[PathUnit]:
    """The units of a network that is small enough to be drawn."""
    if not 1 <= len(network.blocks) <= MOST_DRAWN:
        raise UsageError(f"expected 1 to {MOST_DRAWN} units to draw all paths through, found {len(network.blocks)}")
    return read_units(network)


def unraveled_view(network: Network, *, weights: Sequence[float] | Tensor | None = None) -> Figure:
    """A residual network, and all of its paths (Veit et al. 2016, Fig. 1); 7 inches wide.

    Both compute the same, and every path starts in a row of its own. Rows are not in the order of `all_paths`.

    Args:
        network: of at most `MOST_DRAWN` units, such as ``build("resnet-8")``.
        weights: a positive number for each of `all_paths`, drawn as a bar: the norms of `gradients_along` them.

    Raises:
        UsageError: too many units, none, or one without a shortcut.
    """
    units, figure = _drawable(network), blank(2.65)
    chain, tree = Canvas(figure, 0.13, 0.65), Canvas(figure, 4.5, 0.65)
    table = path_table(network, weights=weights)
    _residual_chain(chain, units)
    _key(chain, units)
    _tree(tree, units, table)
    chain.write(-0.08, 0.5, f"(a) {network.name}, conventional view", ha="left")
    tree.write(-1.6, 0.5, f"(b) unraveled view: {len(table)} paths", ha="left")
    return figure


def lesioned_view(network: Network, *, deleted: int) -> Figure:
    """What is left of a residual and of a feed-forward network without a unit (Veit et al. 2016, Fig. 2).

    7 inches wide.

    Args:
        network: of at most `MOST_DRAWN` units. The feed-forward network has as many layers.
        deleted: the unit, counted from 0.

    Raises:
        UsageError: as `unraveled_view`, and a unit that there is not.
    """
    units, table = _drawable(network), path_table(network, deleted=deleted)
    figure = blank(2.8)
    tree, chain = Canvas(figure, 1.1, 0.85), Canvas(figure, 4.5, 0.85)
    _tree(tree, units, table, deleted)
    _feedforward_chain(chain, units, deleted)
    _key(chain, units, lesion=True)
    without, left = f"without {_symbols(units[deleted].name)}:", table["survives"].sum()
    tree.write(-0.6, 0.6, f"(a) {network.name} {without}\n{left} of {len(table)} paths left", ha="left")
    chain.write(-0.08, 0.6, f"(b) feed-forward network {without}\n0 of 1 path left", ha="left")
    return figure
