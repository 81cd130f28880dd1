"""Residual networks drawn as the paths they are made of (Veit et al. 2016, Figs. 1 and 2).

`unraveled_view` writes every unit's addition out, from the last to the first,

    y_3 = y_2 + f_3(y_2),   y_2 = y_1 + f_2(y_1),   y_1 = y_0 + f_1(y_0)

so that each of the 2^n paths starts in a row of its own. `lesioned_view` shows what is left of them without some of
the units. What is drawn is read from a network, and the counts are taken from the paths.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from matplotlib.patheffects import withStroke
from torch import Tensor, nn

from resnotes.figures.drawings import ARROW, FILLS, FONT, Point, arrow, read_steps
from resnotes.errors import UsageError
from resnotes.models import Network
from resnotes.unravel.enumeration import all_paths, surviving

MOST_DRAWN = 4  # units of which all paths are drawn

WIDTH = 7.0  # of a figure; this and what follows in inches
BOX_WIDTH, BOX_HEIGHT, RADIUS, SMALL = 0.3, 0.19, 0.07, 0.125  # SMALL: side of what stands on a shortcut
PITCH, STEP, ROW = 0.7, 0.63, 0.25  # between additions, in a conventional view and along a path; between paths
ARC = 0.27  # height of the shortcuts in a conventional view
HEADER, END = 0.27, 0.23  # from the first row up to what is written above it, and along the last arrow
BARS, CHARACTER = 0.78, 0.062  # of the longest bar with its number, and about that of a character of it
GAP, LINE, MARGIN = 0.22, 0.14, 0.05  # between panels, of a title's line, and around everything

BAR_COLOR = "#0072B2"  # Okabe and Ito's blue
CROSS = "#D55E00"  # and vermilion
FADED, FADED_TEXT, FADED_BAR = "#A0A0A0", "#757575", "#D0D0D0"


class Unit(NamedTuple):
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


def read_units(network: Network | int) -> list[Unit]:
    """The units of a residual network, or so many with identity shortcuts.

    Raises:
        UsageError: no unit, one without a shortcut, or something after an addition that no drawing shows.
    """
    if isinstance(network, int):
        units = [Unit(f"f{i + 1}") for i in range(network)]
    else:
        units = []
        for i, block in enumerate(network.blocks, 1):
            if block.shortcut is None:
                raise UsageError(f"{network.name} has no shortcut in unit {i}: expected a residual network")
            strides = [module.stride for module in block.residual.modules() if isinstance(module, nn.Conv2d)]  # type: ignore[union-attr]
            after = ", ".join(step.text for step in read_steps(block.after))  # type: ignore[arg-type]
            units.append(
                Unit(f"f{i}", any(s != (1, 1) for s in strides), isinstance(block.shortcut, nn.Identity), after)
            )
    if not units:
        raise UsageError("expected at least one unit, found none")
    return units


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


def _few_units(network: Network | int) -> list[Unit]:
    """The units of a network that is small enough to be drawn."""
    count = network if isinstance(network, int) else len(network.blocks)
    if count > MOST_DRAWN:
        raise UsageError(f"cannot draw the 2^{count} paths through {count} units: expected at most {MOST_DRAWN} units")
    return read_units(network)


def _line(ax: Axes, *points: Point, alive: bool = True, head: bool = True) -> None:
    look: dict[str, Any] = {} if alive else {"color": FADED, "linestyle": (0, (3.2, 1.6)), "zorder": 0.9}
    arrow(ax, *points, arrowstyle=ARROW if head else "-", shrinkA=0, shrinkB=0, capstyle="butt", **look)


def _write(ax: Axes, x: float, y: float, text: str, size: float = FONT, **look: Any) -> None:
    usual: dict[str, Any] = {"ha": "center", "va": "center_baseline", "fontsize": size, "color": "black", "zorder": 4}
    ax.text(x, y, text, **(usual | look))


def _box(
    ax: Axes, x: float, y: float, unit: Unit | str, *, alive: bool = True, deleted: bool = False, small: bool = False
) -> None:
    """The box of a residual branch, or of what is written on a shortcut."""
    if isinstance(unit, Unit):
        fill, text = FILLS["bn" if unit.downsamples else "conv"], unit.symbol + "↓" * unit.downsamples
    else:
        fill, text = FILLS["bn" if unit == "↓" else "other"], "$h$" if unit == "h" else unit
    width, height, corner = (SMALL, SMALL, 0.02) if small else (BOX_WIDTH, BOX_HEIGHT, 0.035)
    look: dict[str, Any] = {"facecolor": fill, "edgecolor": "black", "linewidth": 0.6, "zorder": 3}
    if not alive:
        look |= {"facecolor": "white", "edgecolor": FADED, "linestyle": (0, (3.2, 1.6))}
    corner_at = (x - width / 2, y - height / 2)
    ax.add_patch(FancyBboxPatch(corner_at, width, height, boxstyle=f"round,pad=0,rounding_size={corner}", **look))
    halo = [withStroke(linewidth=2.6, foreground="white")] if deleted else None  # legible on the cross
    color = "black" if alive or deleted else FADED_TEXT
    _write(ax, x, y, text, FONT if small else FONT + 1, color=color, path_effects=halo)
    if deleted:
        for sign in (1, -1):
            across, up = width / 2 + 0.02, sign * (height / 2 + 0.02)
            ends = [x - across, x + across], [y - up, y + up]
            ax.plot(*ends, color=CROSS, linewidth=1.3, zorder=3.5, solid_capstyle="round", clip_on=False)


def _plus(ax: Axes, x: float, y: float, *, alive: bool = True) -> None:
    edge = "black" if alive else FADED
    ax.add_patch(Circle((x, y), RADIUS, facecolor=FILLS["circle"], edgecolor=edge, linewidth=0.6, zorder=3))
    _write(ax, x, y, "+", FONT + 1, color="black" if alive else FADED_TEXT)


def _chain(
    ax: Axes, units: Sequence[Unit], *, skips: bool = True, alive: bool = True, deleted: Sequence[int] = ()
) -> None:
    """A conventional view, from left to right, with or without shortcuts."""
    _write(ax, 0, 0, "$y_0$", FONT + 1)
    x = 0.1
    for i, unit in enumerate(units):
        box = x + (0.31 if skips else 0.35)
        end = x + PITCH - RADIUS  # of the unit: the middle of its addition
        _line(ax, (x, 0), (box - BOX_WIDTH / 2, 0), alive=alive)
        _box(ax, box, 0, unit, alive=alive, deleted=i in deleted)
        if skips:
            split = x + 0.04
            _line(ax, (split, 0), (split, ARC), (end, ARC), (end, RADIUS))
            _line(ax, (box + BOX_WIDTH / 2, 0), (end - RADIUS, 0))
            if unit.on_shortcut:
                _box(ax, box, ARC, unit.on_shortcut, small=True)
            _plus(ax, end, 0)
            x = end + RADIUS
        else:
            x = box + BOX_WIDTH / 2
    _line(ax, (x, 0), (x + END, 0), alive=alive)
    _write(ax, x + END + 0.1, 0, f"$y_{len(units)}$", FONT + 1, color="black" if alive else FADED_TEXT)
    ax.set(xlim=(-0.1, x + END + 0.2), ylim=(-0.15, HEADER + 0.1))


def _key(ax: Axes, units: Sequence[Unit], *, lesion: bool = False) -> None:
    """What the shapes mean, below what is drawn."""
    after = {unit.after for unit in units}
    then = f", then {after.pop()}" if len(after) == 1 and "" not in after else ""
    entries = {
        "f": "residual branch of unit $i$" if not lesion else "residual branch or layer",
        "↓": "half the resolution" if any(unit.downsamples for unit in units) else "",
        "h": "shortcut other than the identity" if any(unit.on_shortcut == "h" for unit in units) else "",
        "+": f"addition{then}",
        "deleted": "deleted" if lesion else "",
        "lost": "lost with it" if lesion else "",
    }
    left, y = ax.get_xlim()[0] + 0.02, ax.get_ylim()[0] - 0.22
    middle = left + BOX_WIDTH / 2
    for what, text in entries.items():
        if not text:
            continue
        if what == "+":
            _plus(ax, middle, y)
        elif what == "lost":
            _line(ax, (left, y), (left + BOX_WIDTH, y), alive=False)
        elif what in ("f", "deleted"):
            _box(ax, middle, y, Unit("fi"), alive=what == "f", deleted=what == "deleted")
        else:
            _box(ax, middle, y, what, small=True)
        _write(ax, left + BOX_WIDTH + 0.09, y, text, ha="left")
        y -= 0.23
    ax.set_ylim(y + 0.1, ax.get_ylim()[1])


def _tree(
    ax: Axes, units: Sequence[Unit], table: pd.DataFrame, *, deleted: Sequence[int] = (), weight_label: str = ""
) -> None:
    """All paths, a row for each: in row r those units are taken that are 1 in the binary number r.

    The addition of unit i joins a row whose last i digits are 0 with that 2^(i-1) below: so no lines cross.
    """
    n = len(units)
    count = 2**n
    paths = all_paths(n)
    rows = (paths.long() << torch.arange(n)).sum(1).tolist()
    survives = dict(zip(rows, table.survives, strict=True))

    def y(row: int) -> float:
        return -ROW * row

    def x(i: int) -> float:  # of the addition of unit i, from 1; 0 is where the input splits
        return STEP * i

    left = x(0)
    _write(ax, left, HEADER, "$y_0$", FONT + 1)
    for row in range(count):
        above = HEADER - 0.1 if row == 0 else y(row - 1)
        _line(ax, (left, above), (left, y(row)), alive=any(survives[other] for other in range(row, count)), head=False)

    for i, unit in enumerate(units):
        start = x(i) + (RADIUS if i else 0)
        end = x(i + 1)
        box = end - STEP + RADIUS + 0.1 + BOX_WIDTH / 2
        for row in range(0, count, 2 ** (i + 1)):
            lower = row + 2**i
            around = any(survives[other] for other in range(row, lower))
            through = any(survives[other] for other in range(lower, lower + 2**i))
            _line(ax, (start, y(row)), (end - RADIUS, y(row)), alive=around)
            if unit.on_shortcut:
                _box(ax, box, y(row), unit.on_shortcut, small=True, alive=around)
            _line(ax, (start, y(lower)), (box - BOX_WIDTH / 2, y(lower)), alive=through)
            _box(ax, box, y(lower), unit, alive=through, deleted=i in deleted)
            _line(ax, (box + BOX_WIDTH / 2, y(lower)), (end, y(lower)), (end, y(row) - RADIUS), alive=through)
            _plus(ax, end, y(row), alive=around or through)
    right = x(n) + RADIUS + END
    _line(ax, (x(n) + RADIUS, 0), (right, 0))
    _write(ax, right + 0.1, 0, f"$y_{n}$", FONT + 1)

    low = -0.12
    if "weight" in table:
        numbers = [f"{weight:#.2g}".rstrip(".") if weight else "0" for weight in table.weight]
        room = CHARACTER * max(len(number) for number in numbers)
        bars = low - BARS
        sizes = (BARS - room) * table.weight / (table.weight.max() or 1)
        for row, size, number, alive in zip(rows, sizes, numbers, table.survives, strict=True):
            color = BAR_COLOR if alive else FADED_BAR
            ax.add_patch(Rectangle((bars, y(row) - 0.06), size, 0.12, facecolor=color, linewidth=0, zorder=2))
            _write(ax, bars + size + 0.04, y(row), number, ha="left", color="black" if alive else FADED_TEXT)
        _write(ax, low - 0.03, HEADER, weight_label, ha="right")
        low = bars - 0.07
    for row, path, alive in zip(rows, table.path, table.survives, strict=True):
        text = r"$\cdot$".join(f"$f_{{{name[1:]}}}$" if name[1:].isdigit() else name for name in path.split("·"))
        _write(ax, low, y(row), text, FONT + 0.5, ha="right", color="black" if alive else FADED_TEXT)
    low -= max(0.55, 0.19 * n)
    ax.set(xlim=(low, right + 0.2), ylim=(y(count - 1) - 0.12, HEADER + 0.1))


def _figure(count: int) -> tuple[Figure, list[Axes]]:
    """A figure of so many panels, which `_arrange` will place."""
    # Not "none": saved once, such a figure would fall back to the layout of the style sheet.
    layout = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    fig = plt.figure(figsize=(WIDTH, 1), layout=layout)
    axes = [fig.add_axes((0, 0, 1, 1), label=str(i)) for i in range(count)]
    for ax in axes:
        ax.axis("off")
    return fig, axes


def _arrange(fig: Figure, axes: Sequence[Axes]) -> Figure:
    """Set two panels side by side if there is room, otherwise below each other, an inch being one on their axes."""
    sizes = [(float(np.ptp(ax.get_xlim())), float(np.ptp(ax.get_ylim()))) for ax in axes]  # inches
    heights = [
        height + LINE * (2 + ax.get_title(loc="left").count("\n")) for ax, (_, height) in zip(axes, sizes, strict=True)
    ]
    total = sum(width for width, _ in sizes) + GAP
    beside = total + 2 * MARGIN <= WIDTH
    if not beside:
        total = max(width for width, _ in sizes)
    height = (max(heights) if beside else sum(heights) + GAP) + 2 * MARGIN
    spare = (WIDTH - total) / (3 if beside else 2)
    x, top = spare, height - MARGIN
    for ax, size, tall in zip(axes, sizes, heights, strict=True):
        ax.set_position((x / WIDTH, (top - tall) / height, size[0] / WIDTH, size[1] / height))
        if beside:
            x += size[0] + GAP + spare
        else:
            top -= tall + GAP
    fig.set_figheight(height)
    return fig


def _name(network: Network | int) -> str:
    return "residual network" if isinstance(network, int) else network.name


def _left(survives: Iterable[bool]) -> str:
    """How many paths are left, in words."""
    counts = [bool(alive) for alive in survives]
    return f"{sum(counts)} of {len(counts)} path{'s' * (len(counts) > 1)} left"


def unraveled_view(
    network: Network | int,
    *,
    weights: Sequence[float] | Tensor | None = None,
    weight_label: str = "norm of the gradient",
) -> Figure:
    """A residual network, and all of its paths (Veit et al. 2016, Fig. 1); 7 inches wide.

    Both compute the same, and every path starts in a row of its own. Rows are not in the order of `all_paths`.

    Args:
        network: of at most `MOST_DRAWN` units, such as ``build("resnet-8")``; or a number of units.
        weights: a number for each of `all_paths`, drawn as a bar: the norms of `gradients_along` them, for example.
        weight_label: what these are.

    Raises:
        UsageError: too many units, none, one without a shortcut, or weights that do not fit.
    """
    units = _few_units(network)
    table = path_table(network, weights=weights)
    fig, (left, right) = _figure(2)
    _chain(left, units)
    _key(left, units)
    left.set_title(f"(a) {_name(network)}, conventional view", loc="left")
    _tree(right, units, table, weight_label=weight_label)
    right.set_title(f"(b) unraveled view: {len(table)} paths", loc="left")
    return _arrange(fig, [left, right])


def lesioned_view(
    network: Network | int,
    *,
    deleted: int = 1,
    weights: Sequence[float] | Tensor | None = None,
    weight_label: str = "norm of the gradient",
) -> Figure:
    """What is left of a residual and of a feed-forward network without a unit (Veit et al. 2016, Fig. 2).

    7 inches wide.

    Args:
        network: of at most `MOST_DRAWN` units, or a number of units. The feed-forward network has as many layers.
        deleted: the unit, counted from 0.
        weights: see `unraveled_view`.
        weight_label: what these are.

    Raises:
        UsageError: as `unraveled_view`, and a unit that there is not.
    """
    units = _few_units(network)
    table = path_table(network, deleted=deleted, weights=weights)
    only = surviving(torch.ones(1, len(units), dtype=torch.bool), deleted)
    fig, (left, right) = _figure(2)
    name = units[deleted].symbol
    _tree(left, units, table, deleted=[deleted], weight_label=weight_label)
    left.set_title(f"(a) {_name(network)} without {name}:\n{_left(table.survives)}", loc="left")
    _chain(right, units, skips=False, alive=bool(only.any()), deleted=[deleted])
    _key(right, units, lesion=True)
    right.set_title(f"(b) feed-forward network without {name}:\n{_left(only)}", loc="left")
    return _arrange(fig, [left, right])
