"""Residual units drawn from real `Block` objects, so that no drawing can disagree with the network it shows.

A block is read into short lists of nodes, a few words each (`read_unit`), and these are drawn. Kernel sizes, BN, ReLU
and whatever stands on the shortcut are shown; channels, strides and biases are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from torch import nn

from resnotes.errors import UsageError
from resnotes.figures.canvas import Canvas, Point, blank
from resnotes.models import Block, build
from resnotes.models.shortcuts import Gate, GatedResidual, GatedShortcut, Scale, SkipInit, ZeroPadShortcut

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

# In inches. The origin of a unit is the middle of the first box of its residual branch; rows are counted downwards.
BOX_WIDTH, BOX_HEIGHT, RADIUS, ROW = 0.72, 0.2, 0.085, 0.335
COLUMN, BESIDE = 0.84, 0.56  # from the middle of a column of boxes to the next one, and to a bare line
ABOVE, SPLIT, LABEL = 0.49, 0.3, 0.09  # where the input is written, where the shortcut leaves; half the height of words


class Node(NamedTuple):
    """One box or circle: its `kind`, a key of `FILLS`, and the `text` in it."""

    kind: str
    text: str


class Unit(NamedTuple):
    """What a drawing of a block shows, path by path, each in the order of the computation.

    Attributes:
        residual: the branch with the weights.
        shortcut: the branch around it; empty for an identity.
        gate: what makes g out of x, where a path is multiplied by g or 1 - g; otherwise empty.
        after: what follows the addition.
    """

    residual: list[Node]
    shortcut: list[Node]
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
        case SkipInit():
            return [Node("other", "× α")]
        case nn.Dropout() | nn.Dropout2d():
            return [Node("other", f"dropout {module.p:g}")] if module.p else []
        case ZeroPadShortcut():
            return [Node("other", "zero padding")]
        case Gate():
            return [*read_nodes(module.conv), Node("other", "sigmoid")]
        case GatedResidual() | GatedShortcut():
            return [*read_nodes(module.branch), TIMES]
    raise UsageError(f"cannot draw a module of type {type(module).__name__}")


def read_unit(block: Block) -> Unit:
    """What a drawing of `block` shows.

    Raises:
        UsageError: no shortcut, or a module that no drawing shows.
    """
    if block.shortcut is None:
        raise UsageError("expected a residual unit to draw, found one without a shortcut")
    gates = {path.gate for path in block.modules() if isinstance(path, GatedResidual | GatedShortcut)}
    return Unit(
        residual=read_nodes(block.residual),
        shortcut=read_nodes(block.shortcut),
        gate=[node for gate in gates for node in read_nodes(gate)],
        after=read_nodes(block.after),
    )


def _column(
    canvas: Canvas, x: float, entry: Sequence[Point], nodes: Sequence[tuple[Node, float]], leave: Sequence[Point]
) -> None:
    """Draw `nodes`, each with its row, in the column at `x`, and arrows from `entry` through them to `leave`."""
    for node, row in nodes:
        y, half = -row * ROW, RADIUS if node.kind == "circle" else BOX_HEIGHT / 2
        if node.kind == "circle":
            canvas.circle(x, y, RADIUS, node.text)
        else:
            canvas.box(x, y, BOX_WIDTH, BOX_HEIGHT, node.text, node.kind)
        canvas.arrow(*entry, (x, y + half))
        entry = [(x, y - half)]
    canvas.arrow(*entry, *leave)


def _centred(nodes: Sequence[Node], rows: int) -> list[tuple[Node, float]]:
    """`nodes` with their rows, in the middle of so many."""
    return [(node, (rows - 1 - len(nodes)) / 2 + i) for i, node in enumerate(nodes)]


def _draw_shortcut(canvas: Canvas, unit: Unit, rows: int) -> None:
    """Draw the way around a residual branch of so many rows, and the gate between the two."""
    boxes = [node for node in unit.shortcut if node != TIMES]
    nodes = _centred(boxes, rows)
    side = COLUMN if boxes else BESIDE
    if unit.gate:  # in a column of its own; what it puts out turns to the paths above the addition
        side += COLUMN
        nodes.append((TIMES, rows - 1))
        meeting = -(rows - 1) * ROW
        gate = _centred(unit.gate, rows)
        _column(canvas, COLUMN, [(0, SPLIT), (COLUMN, SPLIT)], gate, [(COLUMN, meeting), (side - RADIUS, meeting)])
        canvas.write((COLUMN + side - RADIUS) / 2, meeting + LABEL, "$1-g$")
        if TIMES in unit.residual:
            canvas.arrow((COLUMN, meeting), (RADIUS, meeting))
            canvas.write((COLUMN + RADIUS) / 2, meeting + LABEL, "$g$")
    addition = -rows * ROW
    _column(canvas, side, [(0, SPLIT), (side, SPLIT)], nodes, [(side, addition), (RADIUS, addition)])


def draw_unit(canvas: Canvas, unit: Unit, rows: int, ends: tuple[str, str] = ("$x_l$", "$x_{l+1}$")) -> None:
    """Draw one unit, downwards: the residual branch, the shortcut at its right, the addition and what follows it.

    Args:
        canvas: where to draw.
        unit: what `read_unit` found.
        rows: nodes that there is room for above the addition, so that units can be aligned.
        ends: what is written at the input and at the output.
    """
    _draw_shortcut(canvas, unit, rows)
    below = [PLUS, *unit.after]
    end = -(rows + len(below)) * ROW
    main = [(node, rows - 1 if node == TIMES else row) for row, node in enumerate(unit.residual)]
    main += [(node, rows + row) for row, node in enumerate(below)]
    _column(canvas, 0, [(0, ABOVE - LABEL)], main, [(0, end + LABEL)])
    canvas.write(0, ABOVE, ends[0])
    canvas.write(0, end, ends[1])


def _block(name: str, **options: Any) -> Block:
    """The second unit of a network, where an option A or B shortcut is the identity."""
    with torch.device("meta"):  # no weights, which are not drawn, and nothing taken from the random generator
        block = build(name, **options).blocks[1]
    assert isinstance(block, Block)
    return block


def _title(canvas: Canvas, row: float, text: str) -> None:
    canvas.write(0, -row * ROW + 0.17, text, va="top")


def building_block() -> Figure:
    """Two layers and their shortcut, and a bottleneck, without BN (He et al. 2015, Figs. 2 and 5); 4.6 inches wide."""
    figure = blank(3.2, 4.6)
    for x, title, name in ((1.05, "building block", "resnet-14"), (3.25, "bottleneck", "bottleneck-20")):
        unit, canvas, rows = read_unit(_block(name, batch_norm=False)), Canvas(figure, x, 0.6), 5
        draw_unit(canvas, unit, rows, ends=("$x$", ""))
        canvas.write(-BOX_WIDTH / 2 - 0.08, -(len(unit.residual) - 1) / 2 * ROW, r"$\mathcal{F}(x)$", ha="right")
        canvas.write(-RADIUS - 0.06, -rows * ROW, r"$\mathcal{F}(x)+x$", ha="right")
        canvas.write(BESIDE + 0.06, -(rows - 1) / 2 * ROW, "$x$\nidentity", ha="left")
        _title(canvas, rows + 2.6, title)
    return figure


def activation_orders() -> Figure:
    """Where BN and ReLU stand in a unit (He et al. 2016, Fig. 4): a panel for each of `ORDERS`; 7 inches wide."""
    figure = blank(3.4)
    for place, (title, order) in enumerate(ORDERS.items()):
        unit, canvas = read_unit(_block("resnet-14", order=order)), Canvas(figure, 0.6 + 1.4 * place, 0.6)
        draw_unit(canvas, unit, len(unit.residual))
        _title(canvas, 8, title)
    return figure


def shortcut_variants() -> Figure:
    """What may stand on the shortcut (He et al. 2016, Fig. 2): a panel for each of `SHORTCUTS`; 7 inches wide.

    The paper leaves out the BN layers; they are drawn here.
    """
    figure = blank(7.25)
    for place, (title, shortcut) in enumerate(SHORTCUTS.items()):
        row, column = divmod(place, 3)
        unit, canvas = (
            read_unit(_block("resnet-14", shortcut=shortcut)),
            Canvas(figure, 0.8 + 2.25 * column, 0.6 + 3.6 * row),
        )
        draw_unit(canvas, unit, 6)  # so many nodes are on the longest branch
        _title(canvas, 9, title)
    return figure
