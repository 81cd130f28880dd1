"""Residual units drawn from real `Block` objects, so that no drawing can disagree with the network it shows.

A block is read into short lists of nodes, a few words each (`read_unit`), and these are drawn. Kernel sizes, BN, ReLU
and whatever stands on the shortcut are shown; channels, strides and biases are not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import nn

from resnotes.errors import UsageError
from resnotes.figures.canvas import Canvas, Point, arrange, canvases
from resnotes.figures.style import FONT
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

# In inches; rows are counted downwards from the first box of the residual branch.
BOX_WIDTH, BOX_HEIGHT, RADIUS, ROW = 0.72, 0.2, 0.085, 0.335
COLUMN, BESIDE = 0.84, 0.56  # from the middle of a column of boxes to the next one, and to a bare line
LABEL = 0.09  # half the height of a label
INPUT_ROW, SPLIT_ROW = -1.45, -0.9  # where the input is written, and where the shortcut leaves
WORDS = FONT + 1  # points, of what is not in a box


class Node(NamedTuple):
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

    residual: list[Node]
    shortcut: list[Node] | None
    gate: list[Node]
    after: list[Node]


PLUS, TIMES = Node("circle", "+"), Node("circle", "×")


def read_nodes(module: nn.Module) -> list[Node]:
    """What stands on a branch, first to last; multiplication by a gate is `TIMES`.

    Raises:
        UsageError: a module that no drawing shows.
    """
    match module:
        case nn.Sequential():
            return [node for child in module for node in read_nodes(child)]
        case nn.Identity():
            return []
        case nn.Conv2d():
            return [Node("conv", "{}×{} conv".format(*module.kernel_size))]
        case nn.BatchNorm2d():
            return [Node("bn", "BN")]
        case nn.ReLU():
            return [Node("relu", "ReLU")]
        case Scale():
            return [Node("other", f"× {module.factor:g}")]
        case nn.Dropout() | nn.Dropout2d():
            return [Node("other", f"dropout {module.p:g}")]
        case ZeroPadShortcut():
            return [Node("other", "zero padding")]
        case Gate():
            return [*read_nodes(module.conv), Node("other", "sigmoid")]
        case Gated() | GatedShortcut():
            return [*read_nodes(module.branch), TIMES]
    raise UsageError(f"cannot draw a module of type {type(module).__name__}")


def read_unit(block: Block) -> Unit:
    """What a drawing of `block` shows.

    Raises:
        UsageError: a module that no drawing shows, or gates elsewhere than at the end of the shortcut or of both paths.
    """
    gates = {path.gate for path in block.modules() if isinstance(path, Gated | GatedShortcut)}
    unit = Unit(
        residual=read_nodes(block.residual),
        shortcut=None if block.shortcut is None else read_nodes(block.shortcut),
        gate=[node for gate in gates for node in read_nodes(gate)],
        after=read_nodes(block.after),
    )
    shortcut = unit.shortcut or []
    elsewhere = TIMES in [*unit.residual[:-1], *shortcut[:-1], *unit.after]
    if gates and (len(gates) > 1 or elsewhere or TIMES not in shortcut):
        raise UsageError("cannot draw these gates: expected one, at the end of the shortcut or of both paths")
    return unit


def _y(row: float) -> float:
    return -row * ROW


def _column(
    canvas: Canvas, x: float, entry: Sequence[Point], nodes: Sequence[tuple[Node, float]], leave: Sequence[Point]
) -> None:
    """Draw `nodes`, each with its height, in the column at `x`, and arrows from `entry` through them to `leave`."""
    for node, y in nodes:
        if node.kind == "circle":
            half = RADIUS
            canvas.circle(x, y, RADIUS, node.text, size=FONT + 2)
        else:
            half = BOX_HEIGHT / 2
            canvas.box(x, y, BOX_WIDTH, BOX_HEIGHT, node.text, node.kind)
        canvas.arrow(*entry, (x, y + half))
        entry = [(x, y - half)]
    canvas.arrow(*entry, *leave)


def _centred(nodes: Sequence[Node], rows: int) -> list[tuple[Node, float]]:
    """`nodes` with their heights, in the middle of so many rows."""
    return [(node, _y((rows - 1 - len(nodes)) / 2 + row)) for row, node in enumerate(nodes)]


def _draw_shortcut(canvas: Canvas, unit: Unit, rows: int) -> None:
    """Draw the way around the residual branch, whose last row is ``rows - 1``, and the gate between the two."""
    split, meeting, addition = _y(SPLIT_ROW), _y(rows - 1), _y(rows)
    boxes = [node for node in unit.shortcut or () if node != TIMES]
    side = (COLUMN if unit.gate else 0) + (COLUMN if boxes else BESIDE)
    nodes = _centred(boxes, rows)
    if unit.gate:  # in a column of its own; what it puts out turns to the paths above the addition
        nodes = [*nodes, (TIMES, meeting)]
        gate = _centred(unit.gate, rows)
        _column(canvas, COLUMN, [(0, split), (COLUMN, split)], gate, [(COLUMN, meeting), (side - RADIUS, meeting)])
        canvas.write((COLUMN + side - RADIUS) / 2, meeting + LABEL, "$1-g$", size=WORDS)
        if TIMES in unit.residual:
            canvas.arrow((COLUMN, gate[-1][1] - BOX_HEIGHT / 2), (COLUMN, meeting), (RADIUS, meeting))
            canvas.write((COLUMN + RADIUS) / 2, meeting + LABEL, "$g$", size=WORDS)
    _column(canvas, side, [(0, split), (side, split)], nodes, [(side, addition), (RADIUS, addition)])


def draw_unit(
    ax: Axes, block: Block | Unit, *, rows: int = 0, ends: tuple[str, str] = ("$x_l$", "$x_{l+1}$")
) -> Canvas:
    """Draw one unit, downwards: the residual branch, the shortcut at its right, the addition and what follows it.

    Args:
        ax: where to draw; its limits become those of the drawing, in inches.
        block: the unit, or what `read_unit` makes of it.
        rows: nodes to leave room for above the addition, where units are to be aligned.
        ends: what is written at the input and at the output.

    Raises:
        UsageError: see `read_unit`.
    """
    canvas, unit = Canvas(ax), block if isinstance(block, Unit) else read_unit(block)
    rows = max(rows, len(unit.residual))
    main = [(node, _y(rows - 1) if node == TIMES else _y(row)) for row, node in enumerate(unit.residual)]
    if unit.shortcut is not None:
        _draw_shortcut(canvas, unit, rows)
        main.append((PLUS, _y(rows)))
    start = rows + (unit.shortcut is not None)
    main += [(node, _y(start + row)) for row, node in enumerate(unit.after)]
    top, bottom = _y(INPUT_ROW), _y(start + len(unit.after)) - 0.02
    _column(canvas, 0, [(0, top - LABEL)], main, [(0, bottom + LABEL)])
    for y, text in zip((top, bottom), ends, strict=True):
        if text:
            canvas.write(0, y, text, size=WORDS)
    canvas.fit()
    ax.set_aspect("equal", anchor="N")
    return canvas


def _block(name: str, **options: Any) -> Block:
    """The second unit of a network, where an option A or B shortcut is the identity."""
    with torch.device("meta"):  # no weights, which are not drawn, and nothing taken from the random generator
        block = build(name, **options).blocks[1]
    assert isinstance(block, Block)
    return block


def _panels(units: Mapping[str, Unit], **options: Any) -> tuple[Figure, list[Canvas]]:
    """A drawing of each unit, its title below; see `draw_unit`."""
    fig, drawn = canvases(len(units))
    for canvas, unit in zip(drawn, units.values(), strict=True):
        draw_unit(canvas.ax, unit, **options)
    lowest = min(canvas.bounds.y0 for canvas in drawn) - LABEL
    for canvas, title in zip(drawn, units, strict=True):
        canvas.write(sum(canvas.ax.get_xlim()) / 2, lowest, title, size=WORDS, va="top")
        canvas.fit()
    return fig, drawn


def building_block() -> Figure:
    """Two weight layers, and a bottleneck, without their BN (He et al. 2015, Figs. 2 and 5); 4.6 inches wide."""
    unit, bottleneck = (read_unit(_block(name, batch_norm=False)) for name in ("resnet-14", "bottleneck-20"))
    layers = [node._replace(text="weight layer") if node.kind == "conv" else node for node in unit.residual]
    units = {"building block": unit._replace(residual=layers), "bottleneck": bottleneck}
    rows = len(bottleneck.residual)
    fig, drawn = _panels(units, rows=rows, ends=("$x$", ""))
    for canvas, panel in zip(drawn, units.values(), strict=True):
        middle = _y((len(panel.residual) - 1) / 2)
        canvas.write(-BOX_WIDTH / 2 - 0.08, middle, r"$\mathcal{F}(x)$", size=WORDS, ha="right")
        canvas.write(-RADIUS - 0.06, _y(rows), r"$\mathcal{F}(x)+x$", size=WORDS, ha="right")
        canvas.write(BESIDE + 0.06, _y((rows - 1) / 2), "$x$\nidentity", size=WORDS, ha="left")
        canvas.fit()
    return arrange(fig, 4.6)


def activation_orders() -> Figure:
    """Where BN and ReLU stand in a unit (He et al. 2016, Fig. 4): a panel for each of `ORDERS`; 7 inches wide."""
    fig, _ = _panels({title: read_unit(_block("resnet-14", order=order)) for title, order in ORDERS.items()})
    return arrange(fig)


def shortcut_variants() -> Figure:
    """What may stand on the shortcut (He et al. 2016, Fig. 2): a panel for each of `SHORTCUTS`; 7 inches wide.

    The paper leaves out the BN layers; they are drawn here.
    """
    units = {title: read_unit(_block("resnet-14", shortcut=shortcut)) for title, shortcut in SHORTCUTS.items()}
    fig, _ = _panels(units, rows=max(len(unit.residual) for unit in units.values()))
    return arrange(fig)
