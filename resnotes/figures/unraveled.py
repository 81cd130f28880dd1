"""Residual networks drawn as the paths they are made of (Veit et al. 2016, Figs. 1 and 2).

`unraveled_view` writes every unit's addition out, from the last to the first,

    y_3 = y_2 + f_3(y_2),   y_2 = y_1 + f_2(y_1),   y_1 = y_0 + f_1(y_0)

so that each of the 2^n paths starts in a row of its own. `lesioned_view` shows what is left of them without some of
the units. What is drawn is read from a network, and the counts are taken from the paths.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from resnotes.errors import UsageError
from resnotes.figures.canvas import Canvas, arrange, canvases
from resnotes.figures.drawings import read_nodes
from resnotes.figures.style import BLUE, FONT, VERMILION
from resnotes.models import Network
from resnotes.unravel.enumeration import all_paths, surviving

MOST_DRAWN = 4  # units of which all paths are drawn

# In inches.
BOX_WIDTH, BOX_HEIGHT, RADIUS, SMALL = 0.3, 0.19, 0.07, 0.125  # SMALL: side of what stands on a shortcut
PITCH, STEP, ROW = 0.7, 0.63, 0.25  # between additions, in a conventional view and along a path; between paths
ARC = 0.27  # height of the shortcuts in a conventional view
HEADER, END = 0.27, 0.23  # from the first row up to what is written above it, and along the last arrow
BAR, SPACE = 0.4, 0.06  # the longest bar, and between columns
WORDS = FONT + 1  # points, of what is not in a small box


class PathUnit(NamedTuple):
    """What a view shows of a unit.

    Attributes:
        name: what its residual branch is called, ``"f1"``.
        downsamples: the maps become smaller in it.
        identity: its shortcut is the identity.
        after: what follows its addition, as written: ``"ReLU"``, or nothing.
    """

    name: str
    downsamples: bool = False
    identity: bool = True
    after: str = ""

    @property
    def symbol(self) -> str:
        """Its name in mathematical type."""
        return f"$f_{{{self.name[1:]}}}$"

    @property
    def on_shortcut(self) -> str:
        """What is written on its shortcut, if anything."""
        return "" if self.identity else "↓" if self.downsamples else "h"


def read_units(network: Network | int) -> list[PathUnit]:
    """The units of a residual network, or so many with identity shortcuts.

    Raises:
        UsageError: no unit, one without a shortcut, or something after an addition that no drawing shows.
    """
    if isinstance(network, int):
        units = [PathUnit(f"f{i + 1}") for i in range(network)]
    else:
        units = [_read_unit(network, i) for i in range(len(network.blocks))]
    if not units:
        raise UsageError("expected at least one unit, found none")
    return units


def _read_unit(network: Network, i: int) -> PathUnit:
    block: Any = network.blocks[i]
    if block.shortcut is None:
        raise UsageError(f"{network.name} has no shortcut in unit {i + 1}: expected a residual network")
    strides = {module.stride for module in block.residual.modules() if isinstance(module, nn.Conv2d)}
    after = ", ".join(node.text for node in read_nodes(block.after))
    return PathUnit(f"f{i + 1}", bool(strides - {(1, 1)}), isinstance(block.shortcut, nn.Identity), after)


def path_table(
    network: Network | int,
    *,
    deleted: int | Iterable[int] | None = None,
    weights: Sequence[float] | Tensor | None = None,
) -> pd.DataFrame:
    """What the views draw.

    Args:
        network: a residual network, or a number of units.
        deleted: units whose residual branch is deleted, counted from 0.
        weights: a number for each of `all_paths`, not negative.

    Returns:
        One row for each of `all_paths`, in their order: ``path`` (the units' names, that which acts last first:
        ``"f3·f1"``; ``"identity"`` around all of them, or ``"shortcuts"`` if these are not all identities), ``length``,
        ``survives``, and ``weight`` if there are weights.

    Raises:
        UsageError: units that there are not, or weights that do not fit.
    """
    units = read_units(network)
    paths = all_paths(len(units))
    around = "identity" if all(unit.identity for unit in units) else "shortcuts"
    taken = [[unit.name for unit, through in zip(units, path, strict=True) if through] for path in paths.tolist()]
    columns: dict[str, Any] = {
        "path": ["·".join(reversed(names)) or around for names in taken],
        "length": [len(names) for names in taken],
        "survives": surviving(paths, [] if deleted is None else deleted).tolist(),
    }
    if weights is not None:
        values = [float(weight) for weight in weights]
        if len(values) != len(paths):
            raise UsageError(f"expected {len(paths)} weights, one for each path, found {len(values)}")
        if not np.isfinite(values).all() or min(values) < 0:
            raise UsageError("expected weights that are finite and not negative")
        columns["weight"] = values
    return pd.DataFrame(columns)


def _few_units(network: Network | int) -> list[PathUnit]:
    """The units of a network that is small enough to be drawn."""
    count = network if isinstance(network, int) else len(network.blocks)
    if count > MOST_DRAWN:
        raise UsageError(f"cannot draw the 2^{count} paths through {count} units: expected at most {MOST_DRAWN} units")
    return read_units(network)


def _small(canvas: Canvas, x: float, y: float, text: str, *, faded: bool = False) -> None:
    """What stands on a shortcut, if anything."""
    if text:
        fill = "bn" if text == "↓" else "other"
        canvas.box(x, y, SMALL, SMALL, "$h$" if text == "h" else text, fill, faded=faded)


def _branch(canvas: Canvas, x: float, y: float, unit: PathUnit, *, faded: bool = False, deleted: bool = False) -> None:
    """The box of a residual branch, crossed out if it is deleted."""
    fill, text = "bn" if unit.downsamples else "conv", unit.symbol + "↓" * unit.downsamples
    look: dict[str, Any] = {"faded": faded or deleted, "size": WORDS}
    if deleted:  # legible on the cross
        look |= {"color": "black", "path_effects": [withStroke(linewidth=2.6, foreground="white")]}
        across, up = BOX_WIDTH / 2 + 0.02, BOX_HEIGHT / 2 + 0.02
        for sign in (1, -1):
            ends = [x - across, x + across], [y - sign * up, y + sign * up]
            canvas.ax.plot(*ends, color=VERMILION, linewidth=1.3, zorder=3.5)
    canvas.box(x, y, BOX_WIDTH, BOX_HEIGHT, text, fill, **look)


def _chain(
    canvas: Canvas, units: Sequence[PathUnit], *, skips: bool = True, alive: bool = True, deleted: Sequence[int] = ()
) -> None:
    """A conventional view, from left to right, with or without shortcuts."""
    canvas.write(0, 0, "$y_0$", size=WORDS)
    x = 0.1
    for i, unit in enumerate(units):
        box = x + (0.31 if skips else 0.35)
        canvas.arrow((x, 0), (box - BOX_WIDTH / 2, 0), faded=not alive)
        _branch(canvas, box, 0, unit, faded=not alive, deleted=i in deleted)
        if skips:
            split, end = x + 0.04, x + PITCH - RADIUS  # of the unit: the middle of its addition
            canvas.arrow((split, 0), (split, ARC), (end, ARC), (end, RADIUS))
            canvas.arrow((box + BOX_WIDTH / 2, 0), (end - RADIUS, 0))
            _small(canvas, box, ARC, unit.on_shortcut)
            canvas.circle(end, 0, RADIUS, "+", size=WORDS)
            x = end + RADIUS
        else:
            x = box + BOX_WIDTH / 2
    canvas.arrow((x, 0), (x + END, 0), faded=not alive)
    canvas.write(x + END + 0.1, 0, f"$y_{len(units)}$", size=WORDS, faded=not alive)


def _key(canvas: Canvas, units: Sequence[PathUnit], *, lesion: bool = False) -> None:
    """What the shapes mean, below what is drawn."""
    after = {unit.after for unit in units}
    then = f", then {after.pop()}" if len(after) == 1 and "" not in after else ""
    on_shortcuts = {unit.on_shortcut for unit in units}
    left, width = canvas.bounds.x0, BOX_WIDTH
    middle = left + width / 2
    entries: list[tuple[bool, str, Callable[[float], None]]] = [
        (not lesion, "residual branch of unit $i$", lambda y: _branch(canvas, middle, y, PathUnit("fi"))),
        (lesion, "residual branch or layer", lambda y: _branch(canvas, middle, y, PathUnit("fi"))),
        (any(unit.downsamples for unit in units), "half the resolution", lambda y: _small(canvas, middle, y, "↓")),
        ("h" in on_shortcuts, "shortcut other than the identity", lambda y: _small(canvas, middle, y, "h")),
        (True, f"addition{then}", lambda y: canvas.circle(middle, y, RADIUS, "+", size=WORDS)),
        (lesion, "deleted", lambda y: _branch(canvas, middle, y, PathUnit("fi"), deleted=True)),
        (lesion, "lost with it", lambda y: canvas.arrow((left, y), (left + width, y), faded=True)),
    ]
    y = canvas.bounds.y0 - 0.22
    for is_shown, text, draw in entries:
        if is_shown:
            draw(y)
            canvas.write(left + width + 0.09, y, text, ha="left")
            y -= 0.23


def _tree(canvas: Canvas, units: Sequence[PathUnit], survives: Sequence[bool], *, deleted: Sequence[int] = ()) -> None:
    """All paths, a row for each: in row r those units are taken that are 1 in the binary number r.

    The addition of unit i joins a row whose last i digits are 0 with that 2^(i-1) below: so no lines cross.

    Args:
        canvas: where to draw.
        units: from the first to the last.
        survives: whether anything gets through, for each row.
        deleted: numbers of units that are crossed out.
    """
    count = len(survives)
    canvas.write(0, HEADER, "$y_0$", size=WORDS)
    for row in range(count):
        above = HEADER - 0.1 if row == 0 else ROW * (1 - row)
        canvas.line((0, above), (0, -ROW * row), faded=not any(survives[row:]))
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
            _branch(canvas, box, below, unit, faded=not through, deleted=i in deleted)
            canvas.arrow((box + BOX_WIDTH / 2, below), (end, below), (end, y - RADIUS), faded=not through)
            canvas.circle(end, y, RADIUS, "+", size=WORDS, faded=not (around or through))
    right = STEP * len(units) + RADIUS
    canvas.arrow((right, 0), (right + END, 0))
    canvas.write(right + END + 0.1, 0, f"$y_{len(units)}$", size=WORDS)


def _name_rows(canvas: Canvas, table: pd.DataFrame) -> None:
    """At the left of a tree, the name of the path in each row, and its weight if there are weights."""
    heights = [-ROW * row for row in range(len(table))]
    faded = [not alive for alive in table.survives]
    edge = canvas.bounds.x0 - SPACE
    if "weight" in table:
        for y, weight in zip(heights, table.weight, strict=True):
            text = f"{weight:#.2g}".rstrip(".") if weight else "0"
            canvas.write(edge, y, text, ha="right", va="center_baseline")
        edge = canvas.bounds.x0 - SPACE - BAR
        canvas.ax.barh(heights, BAR * table.weight / (table.weight.max() or 1), 0.12, edge, color=BLUE)
        edge -= SPACE
    for y, path, lost in zip(heights, table.path, faded, strict=True):
        name = re.sub(r"f(\d+)", r"$f_{\1}$", path)
        canvas.write(edge, y, name, size=FONT + 0.5, ha="right", va="center_baseline", faded=lost)
    if "weight" in table:
        canvas.write(-2.5 * SPACE, HEADER, "norm of the gradient", ha="right", va="center_baseline")


def _paths_view(canvas: Canvas, units: Sequence[PathUnit], table: pd.DataFrame, deleted: Sequence[int] = ()) -> None:
    """The tree of all paths; `table` is that of `path_table`."""
    rows = (all_paths(len(units)).long() << torch.arange(len(units))).sum(1)
    ordered = table.iloc[rows.argsort().tolist()]
    _tree(canvas, units, ordered.survives.tolist(), deleted=deleted)
    _name_rows(canvas, ordered)


def _finish(fig: Figure, drawn: Sequence[Canvas], titles: Sequence[str]) -> Figure:
    """Write the titles above what is drawn, and put it in its place."""
    for canvas, title in zip(drawn, titles, strict=True):
        canvas.write(canvas.bounds.x0, canvas.bounds.y1 + SPACE, title, size=WORDS, ha="left", va="bottom")
        canvas.fit()
    return arrange(fig)


def _name(network: Network | int) -> str:
    return "residual network" if isinstance(network, int) else network.name


def unraveled_view(network: Network | int, *, weights: Sequence[float] | Tensor | None = None) -> Figure:
    """A residual network, and all of its paths (Veit et al. 2016, Fig. 1); 7 inches wide.

    Both compute the same, and every path starts in a row of its own. Rows are not in the order of `all_paths`.

    Args:
        network: of at most `MOST_DRAWN` units, such as ``build("resnet-8")``; or a number of units.
        weights: a number for each of `all_paths`, drawn as a bar: the norms of `gradients_along` them.

    Raises:
        UsageError: too many units, none, one without a shortcut, or weights that do not fit.
    """
    units = _few_units(network)
    table = path_table(network, weights=weights)
    fig, drawn = canvases(2)
    _chain(drawn[0], units)
    _key(drawn[0], units)
    _paths_view(drawn[1], units, table)
    return _finish(fig, drawn, [f"(a) {_name(network)}, conventional view", f"(b) unraveled view: {len(table)} paths"])


def lesioned_view(network: Network | int, *, deleted: int = 1) -> Figure:
    """What is left of a residual and of a feed-forward network without a unit (Veit et al. 2016, Fig. 2).

    7 inches wide.

    Args:
        network: of at most `MOST_DRAWN` units, or a number of units. The feed-forward network has as many layers.
        deleted: the unit, counted from 0.

    Raises:
        UsageError: as `unraveled_view`, and a unit that there is not.
    """
    units = _few_units(network)
    table = path_table(network, deleted=deleted)
    fig, drawn = canvases(2)
    _paths_view(drawn[0], units, table, [deleted])
    _chain(drawn[1], units, skips=False, alive=False, deleted=[deleted])
    _key(drawn[1], units, lesion=True)
    without, left = f"without {units[deleted].symbol}", table.survives.sum()
    titles = (
        f"(a) {_name(network)} {without}:\n{left} of {len(table)} paths left",
        f"(b) feed-forward network {without}",
    )
    return _finish(fig, drawn, [titles[0], f"{titles[1]}:\n0 of 1 path left"])
