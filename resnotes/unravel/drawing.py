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
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle
from torch import Tensor, nn

from resnotes.drawings import ARROW, FILLS, FONT, Point, arrow, read_steps
from resnotes.errors import UsageError
from resnotes.models import Network

MOST_LISTED, MOST_DRAWN = 20, 4  # units of which all paths are listed, and drawn

WIDTH = 7.0  # of a figure; this and what follows in inches
BOX_WIDTH, BOX_HEIGHT, RADIUS, SMALL = 0.34, 0.19, 0.07, 0.125  # SMALL: side of what stands on a shortcut
STEP, ROW = 0.74, 0.25  # from one addition to the next, and from one path to the next
BOX, SHORTCUT = 0.34, 0.34  # from an addition to the middle of the box after it, and to that of what is on the shortcut
ARC = 0.27  # height of the shortcuts in a conventional view
BAR = 0.72  # length of the longest bar
GAP, TITLE, MARGIN = 0.3, 0.24, 0.05

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


def all_paths(n: int) -> Tensor:
    """All paths through `n` units: each through the residual branch of a unit, or through its shortcut.

    Args:
        n: 0 to `MOST_LISTED`.

    Returns:
        bool ``[2^n, n]``, True where a path goes through the residual branch, as `gradients_along` takes them. The
        shortest paths come first; those of one length in the order of the units they go through: for three units
        none, 1, 2, 3, 12, 13, 23, 123.

    Raises:
        UsageError: `n` is outside that.
    """
    if not 0 <= n <= MOST_LISTED:
        raise UsageError(f"expected 0 to {MOST_LISTED} units, whose 2^n paths can be listed, found {n}")
    binary = torch.arange(2**n)[:, None] >> torch.arange(n - 1, -1, -1) & 1 == 1  # unit 1 is the first digit
    paths = binary.flip(0)  # 111, 110, ...: of one length, those through the first units come first
    return paths[paths.sum(1).argsort(stable=True)]


def surviving(paths: Tensor, deleted: int | Iterable[int]) -> Tensor:
    """Which paths are left when the residual branches of some units are deleted: those around all of these.

    Args:
        paths: bool ``[P, n]``, see `all_paths`. The only path of a feed-forward network goes through all units.
        deleted: one unit or several, counted from 0.

    Returns:
        bool ``[P]``.

    Raises:
        UsageError: a unit that there is not.
    """
    units = [deleted] if isinstance(deleted, int) else list(deleted)
    n = paths.shape[1]
    if wrong := [unit for unit in units if not 0 <= unit < n]:
        raise UsageError(f"expected units 0 to {n - 1} to delete, found {wrong[0]}")
    return ~paths[:, units].any(1)


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
            units.append(Unit(f"f{i}", any(s != (1, 1) for s in strides), isinstance(block.shortcut, nn.Identity), after))
    if not units:
        raise UsageError("expected at least one unit, found none")
    return units


def _few_units(network: Network | int) -> list[Unit]:
    """The units of a network that is small enough to be drawn."""
    count = network if isinstance(network, int) else len(network.blocks)
    if count > MOST_DRAWN:
        raise UsageError(f"cannot draw the 2^{count} paths through {count} units: expected at most {MOST_DRAWN} units")
    return read_units(network)


def path_table(
    network: Network | int, *, deleted: int | Iterable[int] | None = None, weights: Sequence[float] | Tensor | None = None
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


def _line(ax: Axes, *points: Point, alive: bool = True, head: bool = True) -> None:
    look: dict[str, Any] = {} if alive else {"color": FADED, "linestyle": (0, (3.2, 1.6)), "zorder": 0.9}
    arrow(ax, *points, arrowstyle=ARROW if head else "-", shrinkA=0, shrinkB=0, capstyle="butt", **look)


def _write(ax: Axes, x: float, y: float, text: str, size: float = FONT, **look: Any) -> None:
    usual = {"ha": "center", "va": "center_baseline", "fontsize": size, "color": "black", "zorder": 4}
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
    _write(ax, x, y, text, FONT if small else FONT + 1, color="black" if alive else FADED_TEXT)
    if deleted:
        for sign in (1, -1):
            ends = [x - width / 2 - 0.03, x + width / 2 + 0.03], [y - sign * (height / 2 + 0.03), y + sign * (height / 2 + 0.03)]
            ax.plot(*ends, color=CROSS, linewidth=1.4, zorder=5, solid_capstyle="round")


def _plus(ax: Axes, x: float, y: float) -> None:
    ax.add_patch(Circle((x, y), RADIUS, facecolor=FILLS["circle"], edgecolor="black", linewidth=0.6, zorder=3))
    _write(ax, x, y, "+", FONT + 1)


def _chain(ax: Axes, units: Sequence[Unit], *, top: float = 0, skips: bool = True, deleted: Sequence[int] = ()) -> None:
    """A conventional view, from left to right at the height `top`; its limits become those of the panel."""
    n = len(units)
    path = torch.ones(1, n, dtype=torch.bool)
    alive = skips or bool(surviving(path, deleted).all())
    _write(ax, 0, top, "$y_0$", FONT + 1)
    x = 0.1
    for i, unit in enumerate(units):
        box = x + BOX + 0.04
        end = x + STEP + 0.06
        _line(ax, (x, top), (box - BOX_WIDTH / 2, top), alive=alive)
        _box(ax, box, top, unit, alive=alive, deleted=i in deleted)
        if skips:
            split = x + 0.1
            _line(ax, (split, top), (split, top + ARC), (end, top + ARC), (end, top + RADIUS))
            _line(ax, (box + BOX_WIDTH / 2, top), (end - RADIUS, top))
            if unit.on_shortcut:
                _box(ax, box, top + ARC, unit.on_shortcut, small=True)
            _plus(ax, end, top)
            x = end + RADIUS
        else:
            x = box + BOX_WIDTH / 2
    _line(ax, (x, top), (x + 0.24, top), alive=alive)
    _write(ax, x + 0.34, top, f"$y_{n}$", FONT + 1, color="black" if alive else FADED_TEXT)
    ax.set(xlim=(-0.1, x + 0.44), ylim=(top - 0.12, top + (ARC if skips else 0) + 0.12))


def _key(ax: Axes, units: Sequence[Unit]) -> None:
    """What the shapes mean, below what is drawn."""
    left, bottom = -0.1, ax.get_ylim()[0]
    y = bottom - 0.3
    after = {unit.after for unit in units}
    entries: list[tuple[str | Unit, str]] = [(Unit("fi"), "residual branch of unit $i$")]
    if any(unit.downsamples for unit in units):
        entries.append(("↓", "the map becomes smaller, on the shortcut, too"))
    if any(unit.on_shortcut == "h" for unit in units):
        entries.append(("h", "shortcut that is not the identity"))
    entries.append(("+", f"addition, then {after.pop()}" if len(after) == 1 and "" not in after else "addition"))
    middle = left + BOX_WIDTH / 2
    for what, text in entries:
        if what == "+":
            _plus(ax, middle, y)
        else:
            _box(ax, middle, y, what, small=isinstance(what, str))
        _write(ax, left + BOX_WIDTH + 0.08, y, text, ha="left")
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
        return STEP * i + 0.06 * (i > 0)

    left = x(0)
    _write(ax, left, y(0) + 0.27, "$y_0$", FONT + 1)
    for row in range(count):
        above = y(0) + 0.17 if row == 0 else y(row - 1)
        below = [survives[other] for other in range(row, count)]
        _line(ax, (left, above), (left, y(row)), alive=any(below), head=False)

    for i, unit in enumerate(units):
        start = x(i) + (RADIUS if i else 0)
        end = x(i + 1)
        box = start + (end - RADIUS - start) / 2 - (0.04 if i == 0 else 0.05)
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
            _plus(ax, end, y(row))
    _line(ax, (x(n) + RADIUS, 0), (x(n) + RADIUS + 0.22, 0))
    _write(ax, x(n) + RADIUS + 0.32, 0, f"$y_{n}$", FONT + 1)

    low = -0.12
    if "weight" in table:
        longest = max(table.weight.max(), 1e-300)
        bars = low - BAR - 0.3
        for row, (weight, alive) in zip(rows, zip(table.weight, table.survives, strict=True), strict=True):
            size = BAR * weight / longest
            color = BAR_COLOR if alive else FADED_BAR
            ax.add_patch(Rectangle((bars, y(row) - 0.06), size, 0.12, facecolor=color, linewidth=0, zorder=2))
            _write(ax, bars + size + 0.04, y(row), f"{weight:.2g}", ha="left", color="black" if alive else FADED_TEXT)
        _write(ax, bars, y(0) + 0.27, weight_label, ha="left")
        low = bars - 0.07
    for row, path, alive in zip(rows, table.path, table.survives, strict=True):
        text = r"$\cdot$".join(f"$f_{{{name[1:]}}}$" if name[1:].isdigit() else name for name in path.split("·"))
        _write(ax, low, y(row), text, FONT + 0.5, ha="right", color="black" if alive else FADED_TEXT)
    low -= max(0.45, 0.19 * n)
    ax.set(xlim=(low, x(n) + RADIUS + 0.42), ylim=(y(count - 1) - 0.12, 0.37))


def _size(ax: Axes) -> np.ndarray[Any, Any]:
    """Width and height in inches."""
    return np.ptp([ax.get_xlim(), ax.get_ylim()], axis=1)


def _figure(count: int) -> tuple[Figure, list[Axes]]:
    fig = plt.figure(figsize=(WIDTH, 1), layout="none")
    axes = [fig.add_axes((0, 0, 1, 1), label=str(i)) for i in range(count)]
    for ax in axes:
        ax.axis("off")
    return fig, axes


def _arrange(fig: Figure, axes: Sequence[Axes]) -> Figure:
    """Set the panels side by side if there is room, otherwise below each other, an inch being one on their axes."""
    sizes = [_size(ax) for ax in axes]
    beside = sum(width for width, _ in sizes) + GAP * (len(axes) - 1) + 2 * MARGIN <= WIDTH
    heights = [height + TITLE for _, height in sizes]
    total = (max(heights) if beside else sum(heights) + GAP * (len(axes) - 1)) + 2 * MARGIN
    spare = (WIDTH - 2 * MARGIN - sum(width for width, _ in sizes)) / max(1, len(axes) - 1)
    x, top = MARGIN, total - MARGIN
    for ax, (width, height), tall in zip(axes, sizes, heights, strict=True):
        ax.set_position((x / WIDTH, (top - tall) / total, width / WIDTH, height / total))
        if beside:
            x += width + spare
        else:
            top -= tall + GAP
    fig.set_figheight(total)
    return fig


def _name(network: Network | int) -> str:
    return "residual network" if isinstance(network, int) else network.name


def unraveled_view(
    network: Network | int,
    *,
    weights: Sequence[float] | Tensor | None = None,
    weight_label: str = "norm of the gradient",
) -> Figure:
    """A residual network, and all of its paths (Veit et al. 2016, Fig. 1); 7 inches wide.

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
    """What deleting a unit leaves of a residual and of a feed-forward network (Veit et al. 2016, Fig. 2); 7 inches wide.

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
    _tree(left, units, table, deleted=[deleted], weight_label=weight_label)
    name = units[deleted].symbol
    left.set_title(f"(a) {_name(network)} without {name}: {table.survives.sum()} of {len(table)} paths left", loc="left")
    _chain(right, units, skips=False, deleted=[deleted])
    right.set_title(f"(b) feed-forward network without {name}: {int(only.sum())} of {len(only)} left", loc="left")
    return _arrange(fig, [left, right])
