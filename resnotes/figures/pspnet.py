"""PSPNet drawn from the built network (Zhao et al. 2017, Fig. 3), so that no drawing can disagree with it.

Bins, layers and channels are read. A map is a slab, as deep as its share of the channels of the encoder's map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import nn

from resnotes.datasets import scenes
from resnotes.errors import UsageError
from resnotes.figures.canvas import Canvas, blank
from resnotes.figures.drawings import Node, read_nodes
from resnotes.figures.style import BLUE, FILLS, FONT, GREEN, ORANGE, PURPLE, SKY, VERMILION, lighter, palette
from resnotes.models.segmentation import PyramidPooling, SegmentationNetwork

GRIDS = (VERMILION, ORANGE, SKY, GREEN, PURPLE, BLUE)  # from the coarsest on
MAP = "#D9D9D9"
BOAT = 3  # seed of the scene that stands for an image

# In inches: left edges, from the image to its labels.
IMAGE, ENCODER, FEATURES, POOLED, LAYERS, LEVELS, STACK, HEAD, LABELS = (
    *(0.08, 0.9, 1.58, 2.41, 3.12, 3.92),
    *(4.68, 5.52, 6.28),
)
SPLIT, MERGE, ARROW = 2.25, 4.52, 0.16  # of the pyramid's rows; and how long the arrow to a thing is
PICTURE, FACE, DEPTH = 0.66, 0.43, 0.17  # sides of the image and of a map, depth of the encoder's map
BOX_WIDTH, BOX_HEIGHT, ROW = 0.62, 0.16, 0.62
BACK = (0.7, 0.42)  # right and up, what a unit of depth is drawn as


def _slab(canvas: Canvas, x: float, y: float, color: str, depth: float, *, side: float = FACE, cells: int = 1) -> None:
    """A map whose front has its left edge at `x` and its middle at `y`."""
    left, right, low, high = x, x + side, y - side / 2, y + side / 2
    over, up = (depth * share for share in BACK)
    front = [(left, low), (right, low), (right, high), (left, high)]
    top = [(left, high), (right, high), (right + over, high + up), (left + over, high + up)]
    flank = [(right, low), (right, high), (right + over, high + up), (right + over, low + up)]
    for corners, share in ((front, 0.85), (top, 0.55), (flank, 0.7)):
        canvas.polygon(corners, lighter(color, share))
    for i in range(1, cells):
        at = i * side / cells
        canvas.ax.plot([left + at] * 2, [low, high], color="black", linewidth=0.4, zorder=4)
        canvas.ax.plot([left, right], [low + at] * 2, color="black", linewidth=0.4, zorder=4)


def _boxes(canvas: Canvas, x: float, y: float, nodes: Sequence[Node]) -> None:
    """A stack of boxes around the height `y`, its left edge at `x`."""
    for i, node in enumerate(nodes):
        middle = y + BOX_HEIGHT * ((len(nodes) - 1) / 2 - i)
        canvas.box(x + BOX_WIDTH / 2, middle, BOX_WIDTH, BOX_HEIGHT, node.text, node.kind)


def _picture(canvas: Canvas, x: float, picture: NDArray[Any], title: str) -> None:
    """An image with its left edge at `x`."""
    half = PICTURE / 2
    canvas.polygon([(x, -half), (x + PICTURE, -half), (x + PICTURE, half), (x, half)], "none")
    canvas.ax.imshow(picture, extent=(x, x + PICTURE, -half, half), interpolation="nearest", aspect="auto", zorder=2)
    canvas.write(x + half, half + 0.1, title, fontsize=FONT)


def _pyramid(canvas: Canvas, pyramid: PyramidPooling) -> None:
    """The levels, and the map's way around them."""
    levels = len(pyramid.bins)
    heights = [ROW * ((levels - 1) / 2 - i) for i in range(levels)]
    lowest, header = heights[-1] - FACE / 2 - 0.25, heights[0] + FACE / 2 + 0.24
    canvas.arrow((SPLIT, 0), (SPLIT, lowest), (MERGE, lowest), (MERGE, 0), head=False)
    for side, y, color, level in zip(pyramid.bins, heights, GRIDS[:levels], pyramid.levels, strict=True):
        layers = read_nodes(nn.Sequential(*list(level.children())[1:]))
        face = FACE * (0.4 + 0.6 * side / max(pyramid.bins))
        left = POOLED + (FACE - face) / 2
        canvas.arrow((SPLIT, 0), (SPLIT, y), (left, y))
        _slab(canvas, left, y, color, DEPTH, side=face, cells=side)
        canvas.write(POOLED + FACE / 2, y - face / 2 - 0.1, f"{side}×{side}", fontsize=FONT)
        for start, end in ((POOLED + FACE, LAYERS), (LAYERS, LEVELS)) if layers else ((POOLED + FACE, LEVELS),):
            canvas.arrow((start, y), (end, y))
        _boxes(canvas, LAYERS, y, layers)
        _slab(canvas, LEVELS, y, color, DEPTH * pyramid.level_channels / pyramid.channels)
        canvas.arrow((LEVELS + FACE, y), (MERGE, y), (MERGE, 0), head=False)
    canvas.write(POOLED + FACE / 2, header, f"{pyramid.pooling}\npooling", fontsize=FONT)
    canvas.write(LEVELS + FACE / 2, header, f"upsampled,\n{pyramid.level_channels} channels", fontsize=FONT)


def _concatenated(canvas: Canvas, pyramid: PyramidPooling) -> None:
    """The map, and behind it the levels."""
    channels = [pyramid.channels, *[pyramid.level_channels] * len(pyramid.bins)]
    colors = (MAP, *GRIDS[: len(pyramid.bins)])
    start = 2 * DEPTH
    for count, color in reversed(list(zip(channels, colors, strict=True))):  # the farthest first
        depth = 2 * DEPTH * count / pyramid.out_channels
        start -= depth
        _slab(canvas, STACK + BACK[0] * start, BACK[1] * start, color, depth)
    canvas.write(STACK + FACE / 2, -FACE / 2 - 0.14, f"{pyramid.out_channels}\nchannels", fontsize=FONT)
    canvas.write(STACK + 0.33, FACE / 2 + BACK[1] * 2 * DEPTH + 0.1, "concatenated", fontsize=FONT)


def pyramid_pooling(network: SegmentationNetwork) -> Figure:
    """PSPNet from an image to the labels that it is to find (Zhao et al. 2017, Fig. 3); 7 inches wide.

    Raises:
        UsageError: a network without pyramid pooling, or with more levels than there are colours.
    """
    pyramid = network.pyramid
    levels = len(pyramid.bins)
    if not 1 <= levels <= len(GRIDS):
        raise UsageError(f"expected a pyramid of 1 to {len(GRIDS)} levels to draw, found {levels} in {network.name}")
    height = max(1.5, ROW * levels + 0.6)
    figure = blank(height)
    canvas = Canvas(figure, 0, height / 2)
    boat = scenes.generate(1, BOAT)
    _picture(canvas, IMAGE, boat.images[0].permute(1, 2, 0).numpy(), "image")
    canvas.polygon([(ENCODER, -0.4), (ENCODER + 0.52, -0.25), (ENCODER + 0.52, 0.25), (ENCODER, 0.4)], FILLS["conv"])
    canvas.write(ENCODER + 0.26, 0, "encoder\n" + network.name.partition("-")[2], fontsize=FONT)
    canvas.write(ENCODER + 0.26, -0.54, f"output\nstride {network.encoder.strides[-1]}", fontsize=FONT)
    _slab(canvas, FEATURES, 0, MAP, DEPTH)
    canvas.write(FEATURES + FACE / 2, -FACE / 2 - 0.14, f"{pyramid.channels}\nchannels", fontsize=FONT)
    canvas.arrow((FEATURES + FACE, 0), (SPLIT, 0), head=False)
    _pyramid(canvas, pyramid)
    _concatenated(canvas, pyramid)
    _boxes(canvas, HEAD, 0, read_nodes(network.head))
    _picture(canvas, LABELS, palette(len(scenes.CLASSES))[boat.labels[0]], "labels")
    for left in (ENCODER, FEATURES, STACK, HEAD, LABELS):
        canvas.arrow((left - ARROW, 0), (left, 0))
    return figure
