"""Residual units drawn from real `Block` objects, so that no drawing can disagree with the network it shows.

A block is read into short lists of steps, a few words each (`read_unit`), and these are drawn. Kernel sizes, BN, ReLU
and whatever stands on the shortcut are shown; channels, strides and biases are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch
from matplotlib.path import Path
from torch import nn

from resnotes.errors import UsageError
from resnotes.models import Block, build
from resnotes.models.shortcuts import Gate, Gated, GatedShortcut, Scale, ZeroPadShortcut

# The panels of He et al. 2016, Figs. 4 and 2: title, and the order or shortcut that `models.build` takes.
ORDERS = {
    "(a) original": "original",
    "(b) BN after\naddition": "bn-after-addition",
    "(c) ReLU before\naddition": "relu-before-addition",
    "(d) ReLU-only\npre-activation": "relu-only-pre-activation",
    "(e) full\npre-activation": "pre-activation",
}
SHORTCUTS = {
    "(a) original": "A",
    "(b) constant scaling": "scaling:0.5,0.5",
    "(c) exclusive gating": "exclusive-gating:-6",
    "(d) shortcut-only gating": "shortcut-gating:-6",
    "(e) conv shortcut": "C",
    "(f) dropout shortcut": "dropout:0.5",
}

# Okabe and Ito's sky blue, orange, green and purple, mixed with white until black text reads well on them.
FILLS = {"conv": "#CBE7F8", "bn": "#FAE3B5", "relu": "#BCE5D9", "other": "#F1D9E6", "circle": "white"}

# In inches; rows are counted downwards from the first box of the residual branch.
BOX_WIDTH, BOX_HEIGHT, RADIUS, CORNER, ROW = 0.72, 0.2, 0.085, 0.07, 0.335
COLUMN, BESIDE = 0.84, 0.56  # from the middle of a column of boxes to the next one, and to a bare line
LABEL, MARGIN = 0.09, 0.04  # half the height of a label, and what is left free around a drawing
INPUT_ROW, SPLIT_ROW = -1.45, -0.9  # where the input is written, and where the shortcut leaves
FONT = 7.0  # points
ARROW = "-|>,head_length=3.6,head_width=1.8"

Point: TypeAlias = tuple[float, float]


class Step(NamedTuple):
    """One box or circle: its `kind`, a key of `FILLS`, and the `text` in it."""

    kind: str
    text: str


class Unit(NamedTuple):
    """What a drawing of a block shows, path by path, each in the order of the computation.

    Attributes:
        residual: the branch with the weights.
        shortcut: the branch around it; empty for an identity, None where there is none.
        gate: what makes g out of x, where a path is multiplied by g or 1 - g; otherwise empty.
        after: what follows the addition.
    """

    residual: list[Step]
    shortcut: list[Step] | None
    gate: list[Step]
    after: list[Step]


PLUS, TIMES = Step("circle", "+"), Step("circle", "×")


def read_steps(module: nn.Module) -> list[Step]:
    """The steps of a branch, first to last; multiplication by a gate is `TIMES`.

    Raises:
        UsageError: a module that no drawing shows.
    """
    match module:
        case nn.Sequential():
            return [step for child in module for step in read_steps(child)]
        case nn.Identity():
            return []
        case nn.Conv2d():
            return [Step("conv", "{}×{} conv".format(*module.kernel_size))]
        case nn.BatchNorm2d():
            return [Step("bn", "BN")]
        case nn.ReLU():
            return [Step("relu", "ReLU")]
        case Scale():
            return [Step("other", f"× {module.factor:g}")]
        case nn.Dropout() | nn.Dropout2d():
            return [Step("other", f"dropout {module.p:g}")]
        case ZeroPadShortcut():
            return [Step("other", "zero padding")]
        case Gate():
            return [*read_steps(module.conv), Step("other", "sigmoid")]
        case Gated() | GatedShortcut():
            return [*read_steps(module.branch), TIMES]
    raise UsageError(f"cannot draw a module of type {type(module).__name__}")


def read_unit(block: Block) -> Unit:
    """What a drawing of `block` shows.

    Raises:
        UsageError: a module that no drawing shows, or gates elsewhere than at the end of the shortcut or of both paths.
    """
    gates = {path.gate for path in block.modules() if isinstance(path, Gated | GatedShortcut)}
    unit = Unit(
        residual=read_steps(block.residual),
        shortcut=None if block.shortcut is None else read_steps(block.shortcut),
        gate=[step for gate in gates for step in read_steps(gate)],
        after=read_steps(block.after),
    )
    shortcut = unit.shortcut or []
    elsewhere = TIMES in [*unit.residual[:-1], *shortcut[:-1], *unit.after]
    if gates and (len(gates) > 1 or elsewhere or TIMES not in shortcut):
        raise UsageError("cannot draw these gates: expected one, at the end of the shortcut or of both paths")
    return unit


def _y(row: float) -> float:
    return -row * ROW


def arrow(ax: Axes, *points: Point, **look: Any) -> FancyArrowPatch:
    """An arrow along `points`; its corners are rounded. `look` overrides that of the patch."""
    vertices, codes = [points[0]], [Path.MOVETO]
    for before, corner, after in zip(points[:-2], points[1:-1], points[2:], strict=True):
        for neighbour in (before, after):
            away = np.subtract(neighbour, corner)
            x, y = corner + CORNER * away / np.hypot(*away)
            vertices += [(x, y)] if neighbour is before else [corner, (x, y)]
        codes += [Path.LINETO, Path.CURVE3, Path.CURVE3]
    path = Path([*vertices, points[-1]], [*codes, Path.LINETO])
    usual: dict[str, Any] = {"arrowstyle": ARROW, "mutation_scale": 1, "color": "black", "linewidth": 0.8}
    patch = FancyArrowPatch(path=path, **(usual | look))
    ax.add_patch(patch)
    return patch


def _shape(ax: Axes, step: Step, x: float, y: float) -> float:
    """Draw the box or circle of `step` around ``(x, y)``; returns half its height."""
    look: dict[str, Any] = {"facecolor": FILLS[step.kind], "edgecolor": "black", "linewidth": 0.6, "zorder": 3}
    half = RADIUS if step.kind == "circle" else BOX_HEIGHT / 2
    if step.kind == "circle":
        ax.add_patch(Circle((x, y), RADIUS, **look))
    else:
        rounded = "round,pad=0,rounding_size=0.035"
        ax.add_patch(FancyBboxPatch((x - BOX_WIDTH / 2, y - half), BOX_WIDTH, 2 * half, boxstyle=rounded, **look))
    size = FONT + 2 if step.kind == "circle" else FONT
    ax.text(x, y, step.text, ha="center", va="center_baseline", fontsize=size, color="black", zorder=4)
    return half


def _run(
    ax: Axes, x: float, entry: Sequence[Point], nodes: Sequence[tuple[Step, float]], leave: Sequence[Point]
) -> None:
    """Draw `nodes`, steps and their heights, in the column at `x`, and arrows from `entry` through them to `leave`."""
    for step, y in nodes:
        half = _shape(ax, step, x, y)
        arrow(ax, *entry, (x, y + half))
        entry = [(x, y - half)]
    arrow(ax, *entry, *leave)


def _write(ax: Axes, x: float, y: float, text: str, ha: str = "center") -> None:
    ax.text(x, y, text, ha=ha, va="center", fontsize=FONT + 1, color="black")


def draw_unit(
    ax: Axes, block: Block | Unit, *, title: str = "", rows: int = 0, ends: tuple[str, str] = ("$x_l$", "$x_{l+1}$")
) -> None:
    """Draw one unit, downwards: the residual branch, the shortcut at its right, the addition and what follows it.

    Args:
        ax: where to draw; its limits become those of the drawing, in inches. In less room the boxes shrink, but not
            what is written in them.
        block: the unit, or what `read_unit` makes of it.
        title: written below.
        rows: steps to leave room for above the addition, where units are to be aligned.
        ends: what is written at the input and at the output.

    Raises:
        UsageError: see `read_unit`.
    """
    unit = block if isinstance(block, Unit) else read_unit(block)
    rows = max(rows, len(unit.residual))
    split, meeting, addition = _y(SPLIT_ROW), _y(rows - 1), _y(rows)
    main = [(step, meeting if step == TIMES else _y(row)) for row, step in enumerate(unit.residual)]
    right = BOX_WIDTH / 2
    if unit.shortcut is not None:
        boxes = [step for step in unit.shortcut if step != TIMES]
        side = (COLUMN if unit.gate else 0) + (COLUMN if boxes else BESIDE)
        right = side + (BOX_WIDTH / 2 if boxes else RADIUS)
        nodes = [(step, _y((rows - 1 - len(boxes)) / 2 + row)) for row, step in enumerate(boxes)]
        nodes += [(TIMES, meeting)] * (TIMES in unit.shortcut)
        _run(ax, side, [(0, split), (side, split)], nodes, [(side, addition), (RADIUS, addition)])
        main.append((PLUS, addition))
        if unit.gate:  # in a column of its own between the paths; what it puts out turns to them above the addition
            nodes = [(step, _y((rows - 1 - len(unit.gate)) / 2 + row)) for row, step in enumerate(unit.gate)]
            _run(ax, COLUMN, [(0, split), (COLUMN, split)], nodes, [(COLUMN, meeting), (side - RADIUS, meeting)])
            _write(ax, (COLUMN + side - RADIUS) / 2, meeting + LABEL, "$1-g$")
            if TIMES in unit.residual:
                arrow(ax, (COLUMN, nodes[-1][1] - BOX_HEIGHT / 2), (COLUMN, meeting), (RADIUS, meeting))
                _write(ax, (COLUMN + RADIUS) / 2, meeting + LABEL, "$g$")

    start = rows + (unit.shortcut is not None)
    main += [(step, _y(start + row)) for row, step in enumerate(unit.after)]
    top, bottom = _y(INPUT_ROW), _y(start + len(unit.after)) - 0.02
    _run(ax, 0, [(0, top - LABEL)], main, [(0, bottom + LABEL)])
    _write(ax, 0, top, ends[0])
    _write(ax, 0, bottom, ends[1])
    low = bottom - LABEL if ends[1] else bottom + LABEL
    ax.set(xlim=(-BOX_WIDTH / 2 - MARGIN, right + MARGIN), ylim=(low - MARGIN, top + LABEL + MARGIN))
    ax.set_aspect("equal", anchor="N")
    ax.axis("off")
    ax.set_title(title, y=0, va="top", pad=-1)


def _block(name: str, **options: Any) -> Block:
    """The second unit of a network, where an option A or B shortcut is the identity."""
    with torch.device("meta"):  # no weights, which are not drawn, and nothing taken from the random generator
        block = build(name, **options).blocks[1]
    assert isinstance(block, Block)
    return block


def _panels(units: Mapping[str, Unit], columns: int, width: float, **options: Any) -> Figure:
    """A panel for each title and unit, all at one scale: `columns` in a row, `width` inches in all; see `draw_unit`."""
    rows = -(-len(units) // columns)
    fig, grid = plt.subplots(rows, columns, figsize=(width, 1), squeeze=False, layout="constrained")
    axes: list[Axes] = list(grid.flat)
    for ax, (title, unit) in zip(axes, units.items(), strict=True):
        draw_unit(ax, unit, title=title, **options)
    lowest, highest = min(ax.get_ylim()[0] for ax in axes), max(ax.get_ylim()[1] for ax in axes)
    span = width / columns - 2 * MARGIN
    for ax in axes:
        middle = sum(ax.get_xlim()) / 2
        ax.set(xlim=(middle - span / 2, middle + span / 2), ylim=(lowest, highest))
    lines = 1 + max(title.count("\n") for title in units)
    fig.set_figheight(rows * (highest - lowest + 2 * MARGIN + 0.14 * lines))
    return fig


def building_block() -> Figure:
    """Two weight layers, and a bottleneck, without their BN (He et al. 2015, Figs. 2 and 5); 4.6 inches wide."""
    unit, bottleneck = (read_unit(_block(name, batch_norm=False)) for name in ("resnet-14", "bottleneck-20"))
    layers = [step._replace(text="weight layer") if step.kind == "conv" else step for step in unit.residual]
    units = {"building block": unit._replace(residual=layers), "bottleneck": bottleneck}
    rows = len(bottleneck.residual)
    fig = _panels(units, 2, 4.6, rows=rows, ends=("$x$", ""))
    for ax, panel in zip(fig.axes, units.values(), strict=True):
        _write(ax, -BOX_WIDTH / 2 - 0.08, _y((len(panel.residual) - 1) / 2), r"$\mathcal{F}(x)$", ha="right")
        _write(ax, -RADIUS - 0.06, _y(rows), r"$\mathcal{F}(x)+x$", ha="right")
        _write(ax, BESIDE + 0.06, _y((rows - 1) / 2), "$x$\nidentity", ha="left")
    return fig


def activation_orders() -> Figure:
    """Where BN and ReLU stand in a unit (He et al. 2016, Fig. 4): a panel for each of `ORDERS`; 7 inches wide."""
    units = {title: read_unit(_block("resnet-14", order=order)) for title, order in ORDERS.items()}
    return _panels(units, 5, 7)


def shortcut_variants() -> Figure:
    """What may stand on the shortcut (He et al. 2016, Fig. 2): a panel for each of `SHORTCUTS`; 7 inches wide.

    The paper leaves out the BN layers; they are drawn here.
    """
    units = {title: read_unit(_block("resnet-14", shortcut=shortcut)) for title, shortcut in SHORTCUTS.items()}
    return _panels(units, 3, 7, rows=max(len(unit.residual) for unit in units.values()))
