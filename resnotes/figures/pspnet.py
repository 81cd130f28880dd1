"""PSPNet drawn from the built network (Zhao et al. 2017, Fig. 3), so that no drawing can disagree with it.

Bins, layers and channels are read. A map is a slab, as deep as its share of the channels of the encoder's map.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, cast

from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from resnotes.datasets import scenes
from resnotes.errors import UsageError
from resnotes.figures.canvas import Canvas, arrange, canvases
from resnotes.figures.drawings import Node, read_nodes
from resnotes.figures.style import BLUE, FILLS, GREEN, ORANGE, PURPLE, SKY, VERMILION, lighter, palette
from resnotes.models.segmentation import PyramidPooling, SegmentationNetwork

GRIDS = (VERMILION, ORANGE, SKY, GREEN, PURPLE, BLUE)  # from the coarsest on
MAP = "#D9D9D9"
BOAT = 3  # seed of the scene that stands for an image

# In inches.
GAP = 0.16  # between two things, for an arrow
PICTURE, FACE, DEPTH = 0.66, 0.43, 0.17  # sides of the image and of a map, depth of the encoder's map
BOX_WIDTH, BOX_HEIGHT, ROW = 0.62, 0.16, 0.62
_BACK = (0.7, 0.42)  # right and up, what a unit of depth is drawn as
LABEL = 0.1  # from a thing to the middle of what is written beside it


def _slab(canvas: Canvas, x: float, y: float, color: str, depth: float, *, side: float = FACE, cells: int = 0) -> float:
    """A map whose front has its left edge at `x` and its middle at `y`; returns its right edge, with the depth."""
    left, right, low, high = x, x + side, y - side / 2, y + side / 2
    over, up = (depth * share for share in _BACK)
    corners = {  # of its front, top and right side, by the share of the colour
        0.85: [(left, low), (right, low), (right, high), (left, high)],
        0.55: [(left, high), (right, high), (right + over, high + up), (left + over, high + up)],
        0.7: [(right, low), (right, high), (right + over, high + up), (right + over, low + up)],
    }
    for share, points in corners.items():
        canvas.polygon(points, facecolor=lighter(color, share), linewidth=0.5)
    for i in range(1, cells):
        at = i * side / cells
        canvas.ax.plot([left + at] * 2, [low, high], color="black", linewidth=0.4, zorder=4)
        canvas.ax.plot([left, right], [low + at] * 2, color="black", linewidth=0.4, zorder=4)
    return right + over


def _boxes(canvas: Canvas, x: float, y: float, nodes: Sequence[Node]) -> float:
    """A stack of boxes around the height `y`, its left edge at `x`; returns its right edge."""
    for i, node in enumerate(nodes):
        middle = y + BOX_HEIGHT * ((len(nodes) - 1) / 2 - i)
        canvas.box(x + BOX_WIDTH / 2, middle, BOX_WIDTH, BOX_HEIGHT, node.text, node.kind)
    return x + BOX_WIDTH


def _picture(canvas: Canvas, x: float, picture: NDArray[Any], title: str) -> float:
    """An image with its left edge at `x`; returns its right edge."""
    right, half = x + PICTURE, PICTURE / 2
    canvas.ax.imshow(picture, extent=(x, right, -half, half), interpolation="nearest")
    canvas.polygon([(x, -half), (right, -half), (right, half), (x, half)], fill=False)
    canvas.write(x + half, half + LABEL, title)
    return right


def _below(canvas: Canvas, x: float, y: float, text: str) -> None:
    """Two lines of words below something that ends at the height `y`."""
    canvas.write(x, y - 1.4 * LABEL, text)


def _encoder(canvas: Canvas, x: float, network: SegmentationNetwork) -> float:
    """A box that narrows as the map does, its left edge at `x`; returns its right edge."""
    right, tall, short = x + 0.52, 0.4, 0.25
    shape = [(x, -tall), (right, -short), (right, short), (x, tall)]
    canvas.polygon(shape, facecolor=FILLS["conv"])
    canvas.write((x + right) / 2, 0, "encoder\n" + network.name.partition("-")[2])
    _below(canvas, (x + right) / 2, -tall, f"output\nstride {network.encoder.strides[-1]}")
    return right


def _pyramid(canvas: Canvas, split: float, pyramid: PyramidPooling) -> float:
    """The levels, and the map's way around them, from where they part at `split`; returns where they meet."""
    levels = len(pyramid.bins)
    heights = [ROW * ((levels - 1) / 2 - i) for i in range(levels)]
    nodes = [read_nodes(nn.Sequential(*list(cast(nn.Sequential, level))[1:])) for level in pyramid.levels]
    grids = split + 0.16
    boxes = grids + FACE + _BACK[0] * DEPTH + GAP
    maps = (boxes + BOX_WIDTH if any(nodes) else boxes) + GAP + 0.02
    merge = maps + FACE + 0.17

    lowest = heights[-1] - FACE / 2 - 0.25
    canvas.line((split, 0), (split, lowest), (merge, lowest), (merge, 0))
    for side, y, color, layers in zip(pyramid.bins, heights, GRIDS[:levels], nodes, strict=True):
        face = FACE * (0.4 + 0.6 * side / max(pyramid.bins))
        left = grids + (FACE - face) / 2
        canvas.arrow(*([(split, 0.0)] if y else []), (split, y), (left, y))
        out = _slab(canvas, left, y, color, DEPTH, side=face, cells=side)
        canvas.write(grids + FACE / 2, y - face / 2 - LABEL, f"{side}×{side}")
        if layers:
            canvas.arrow((out, y), (boxes, y))
            out = _boxes(canvas, boxes, y, layers)
        canvas.arrow((out, y), (maps, y))
        out = _slab(canvas, maps, y, color, _thickness(pyramid))
        canvas.line((out, y), (merge, y), *([(merge, 0.0)] if y else []))
    header = heights[0] + FACE / 2 + 0.24
    canvas.write(grids + FACE / 2, header, f"{pyramid.pooling}\npooling")
    upsampled = f"upsampled,\n{pyramid.level_channels} channels"
    canvas.write(maps + FACE / 2, header, upsampled)
    return merge


def _thickness(pyramid: PyramidPooling) -> float:
    """How deep the map of a level is drawn."""
    return DEPTH * pyramid.level_channels / pyramid.channels


def _concatenated(canvas: Canvas, x: float, pyramid: PyramidPooling) -> tuple[float, float]:
    """The map, and behind it the levels, from `x`; returns where an arrow leaves it, and its right edge."""
    depths = [DEPTH, *[_thickness(pyramid)] * len(pyramid.bins)]
    *starts, deep = accumulate(depths, initial=0.0)
    slabs = list(zip((MAP, *GRIDS), starts, depths, strict=False))
    edges = [  # what is farther away is drawn first
        _slab(canvas, x + _BACK[0] * start, _BACK[1] * start, color, depth) for color, start, depth in reversed(slabs)
    ]
    _below(canvas, x + FACE / 2, -FACE / 2, f"{pyramid.out_channels}\nchannels")
    canvas.write((x + edges[0]) / 2, FACE / 2 + _BACK[1] * deep + LABEL, "concatenated")
    # Where the lower edge passes the middle, if it comes so far.
    return x + FACE + _BACK[0] * min(deep, FACE / 2 / _BACK[1]), edges[0]


def pyramid_pooling(network: SegmentationNetwork) -> Figure:
    """PSPNet from the image to the prediction (Zhao et al. 2017, Fig. 3); 7 inches wide.

    Raises:
        UsageError: a network without pyramid pooling, or with more levels than there are colours.
    """
    pyramid = network.pyramid
    levels = len(pyramid.bins)
    if not 1 <= levels <= len(GRIDS):
        raise UsageError(f"expected a pyramid of 1 to {len(GRIDS)} levels to draw, found {levels} in {network.name}")
    fig, (canvas,) = canvases(1)

    def onwards(x: float, to: float | None = None) -> float:
        """Where an arrow from `x` ends."""
        canvas.arrow((x, 0), (end := x + GAP if to is None else to, 0))
        return end

    boat = scenes.generate(1, BOAT)
    classes, labels = boat.labels[0].unique(return_inverse=True)
    start = onwards(_picture(canvas, 0, boat.images[0].permute(1, 2, 0).numpy(), "image"))
    start = onwards(_encoder(canvas, start, network))
    end = _slab(canvas, start, 0, MAP, DEPTH)
    _below(canvas, start + FACE / 2, -FACE / 2, f"{pyramid.channels}\nchannels")
    canvas.line((end - 0.05, 0), (end + 0.12, 0))
    start = onwards(_pyramid(canvas, end + 0.12, pyramid))
    leave, edge = _concatenated(canvas, start, pyramid)
    start = onwards(leave, edge + GAP)
    start = onwards(_boxes(canvas, start, 0, read_nodes(network.head)))
    _picture(canvas, start, palette(len(classes))[labels], "prediction")
    canvas.fit()
    return arrange(fig)
