"""PSPNet drawn from the built network (Zhao et al. 2017, Fig. 3), so that no drawing can disagree with it.

Bins, layers and channels are read. A map is a slab, as deep as its share of the channels of the encoder's map.
"""

from __future__ import annotations

from typing import Any, cast

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import FancyBboxPatch, Polygon
from torch import nn

from resnotes.figures.drawings import FILLS, FONT, Point, Step, arrow, read_steps
from resnotes.errors import UsageError
from resnotes.models.segmentation import SegmentationNetwork

# Okabe and Ito's vermilion, orange, sky blue, green, purple and blue: the grids, from the coarsest on.
GRIDS = ("#D55E00", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2")
MAP = "#D9D9D9"
NATURAL, CLASSES = ["#A9D3EE", "#7A9A5B", "#3F78A8", "#F4EFE1"], ["#56B4E9", "#009E73", "#0072B2", "#E69F00"]

# In inches.
WIDTH, MARGIN, GAP = 7.0, 0.05, 0.16  # GAP: between two things, for an arrow
PICTURE, FACE, DEPTH = 0.66, 0.43, 0.17  # sides of the image and of a map, depth of the encoder's map
BOX_WIDTH, BOX_HEIGHT, ROW = 0.62, 0.16, 0.62
LOWEST = -0.65  # of what is written below the encoder
_BACK = (0.7, 0.42)  # right and up, what a unit of depth is drawn as
LABEL = 0.1  # from a thing to the middle of what is written beside it

_SKY, _HILL, _WATER, _BOAT = range(4)


def _scene() -> np.ndarray[Any, np.dtype[np.int64]]:
    """Labels ``[288, 288]`` of a boat on a lake, to stand for an image."""
    y, x = np.mgrid[:72:0.25, :72:0.25]
    scene = np.where(y < 40, _SKY, _WATER)
    scene[(y < 40) & (y > 34 - 8 * np.sin(x / 12))] = _HILL
    scene[(y >= 46) & (y < 53) & (np.abs(x - 40) < 66 - y)] = _BOAT
    scene[(y >= 24) & (y < 44) & (x >= 40) & (x < 40 + (y - 24) * 0.7)] = _BOAT
    return scene


def _lighter(color: str, share: float) -> tuple[float, float, float]:
    """The colour, mixed with white to this share of it."""
    red, green, blue = (1 - share * (1 - channel) for channel in to_rgb(color))
    return red, green, blue


def _write(ax: Axes, x: float, y: float, text: str, **look: Any) -> None:
    usual: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": FONT, "color": "black", "linespacing": 1.1}
    ax.text(x, y, text, zorder=5, **(usual | look))


def _line(ax: Axes, *points: Point) -> None:
    arrow(ax, *points, arrowstyle="-", shrinkA=0, shrinkB=0, capstyle="butt")


def _slab(ax: Axes, x: float, y: float, color: str, depth: float, *, side: float = FACE, cells: int = 0) -> float:
    """A map whose front has its left edge at `x` and its middle at `y`; returns its right edge, with the depth."""
    left, right, low, high = x, x + side, y - side / 2, y + side / 2
    over, up = (depth * share for share in _BACK)
    look: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.5, "joinstyle": "round", "zorder": 3}
    corners = {  # of its front, top and right side, by the share of the colour
        0.85: [(left, low), (right, low), (right, high), (left, high)],
        0.55: [(left, high), (right, high), (right + over, high + up), (left + over, high + up)],
        0.7: [(right, low), (right, high), (right + over, high + up), (right + over, low + up)],
    }
    for share, points in corners.items():
        ax.add_patch(Polygon(points, facecolor=_lighter(color, share), **look))
    for i in range(1, cells):
        at = i * side / cells
        ax.plot([left + at] * 2, [low, high], color="black", linewidth=0.4, zorder=4)
        ax.plot([left, right], [low + at] * 2, color="black", linewidth=0.4, zorder=4)
    return right + over


def _boxes(ax: Axes, x: float, y: float, steps: list[Step]) -> float:
    """A stack of boxes around the height `y`, its left edge at `x`; returns its right edge."""
    top = y + len(steps) * BOX_HEIGHT / 2
    for i, step in enumerate(steps):
        corner = (x, top - (i + 1) * BOX_HEIGHT)
        look: dict[str, Any] = {"facecolor": FILLS[step.kind], "edgecolor": "black", "linewidth": 0.6, "zorder": 3}
        ax.add_patch(FancyBboxPatch(corner, BOX_WIDTH, BOX_HEIGHT, boxstyle="round,pad=0,rounding_size=0.035", **look))
        _write(ax, x + BOX_WIDTH / 2, corner[1] + BOX_HEIGHT / 2, step.text, va="center_baseline")
    return x + BOX_WIDTH


def _picture(ax: Axes, x: float, y: float, colors: list[str], title: str) -> float:
    """The scene in `colors`, its left edge at `x`; returns its right edge."""
    edges = (x, x + PICTURE, y - PICTURE / 2, y + PICTURE / 2)
    ax.imshow(_scene(), cmap=ListedColormap(colors), extent=edges, zorder=2, interpolation="nearest")
    frame = [(edges[i], edges[j]) for i, j in ((0, 2), (1, 2), (1, 3), (0, 3))]
    ax.add_patch(Polygon(frame, fill=False, edgecolor="black", linewidth=0.6, zorder=4))
    _write(ax, x + PICTURE / 2, edges[3] + LABEL, title)
    return edges[1]


def _encoder(ax: Axes, x: float, network: SegmentationNetwork) -> float:
    """A box that narrows as the map does, its left edge at `x`; returns its right edge."""
    right, tall, short = x + 0.52, 0.4, 0.25
    shape = [(x, -tall), (right, -short), (right, short), (x, tall)]
    ax.add_patch(Polygon(shape, facecolor=FILLS["conv"], edgecolor="black", linewidth=0.6, zorder=3))
    _write(ax, (x + right) / 2, 0, "encoder\n" + network.name.partition("-")[2])
    _write(ax, (x + right) / 2, -tall - 1.4 * LABEL, f"output\nstride {network.encoder.strides[-1]}")
    return right


def _level_steps(network: SegmentationNetwork, level: int) -> list[Step]:
    """The layers of a level after its pooling."""
    _, *layers = cast(nn.Sequential, network.pyramid.levels[level])
    return read_steps(nn.Sequential(*layers))


def pyramid_pooling(network: SegmentationNetwork) -> Figure:
    """PSPNet from the image to the prediction (Zhao et al. 2017, Fig. 3); 7 inches wide.

    Raises:
        UsageError: a network without pyramid pooling, or with more levels than there are colours.
    """
    pyramid = network.pyramid
    levels = len(pyramid.bins)
    if not 1 <= levels <= len(GRIDS):
        raise UsageError(f"expected a pyramid of 1 to {len(GRIDS)} levels to draw, found {levels} in {network.name}")
    # Not "none": saved once, such a figure would fall back to the layout of the style sheet.
    layout = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    fig = plt.figure(figsize=(WIDTH, 1), layout=layout)
    ax = fig.add_axes((0, 0, 1, 1))
    thin = DEPTH * pyramid.level_channels / pyramid.channels
    heights = [ROW * ((levels - 1) / 2 - i) for i in range(levels)]
    lowest = heights[-1] - FACE / 2 - 0.25  # where the map goes around its grids
    header = heights[0] + FACE / 2 + 0.24

    picture = _picture(ax, MARGIN, 0, NATURAL, "image")
    arrow(ax, (picture, 0), (picture + GAP, 0))
    encoder = _encoder(ax, picture + GAP, network)
    arrow(ax, (encoder, 0), (encoder + GAP, 0))
    start = encoder + GAP
    end = _slab(ax, start, 0, MAP, DEPTH)
    _write(ax, start + FACE / 2, -FACE / 2 - 1.4 * LABEL, f"{pyramid.channels}\nchannels")

    split = end + 0.12
    grids = split + 0.16
    boxes = grids + FACE + _BACK[0] * DEPTH + GAP
    steps = [_level_steps(network, i) for i in range(levels)]
    maps = (boxes + BOX_WIDTH if any(steps) else boxes) + GAP + 0.02
    merge = maps + FACE + 0.17
    stack = merge + 0.15

    _line(ax, (end - 0.05, 0), (split, 0))
    _line(ax, (split, 0), (split, lowest), (merge, lowest), (merge, 0))
    for side, y, color, layers in zip(pyramid.bins, heights, GRIDS[:levels], steps, strict=True):
        face = FACE * (0.4 + 0.6 * side / max(pyramid.bins))
        left = grids + (FACE - face) / 2
        arrow(ax, *([(split, 0)] if y else []), (split, y), (left, y))
        out = _slab(ax, left, y, color, DEPTH, side=face, cells=side)
        _write(ax, grids + FACE / 2, y - face / 2 - LABEL, f"{side}×{side}")
        if layers:
            arrow(ax, (out, y), (boxes, y))
            out = _boxes(ax, boxes, y, layers)
        arrow(ax, (out, y), (maps, y))
        out = _slab(ax, maps, y, color, thin)
        _line(ax, (out, y), (merge, y), *([(merge, 0)] if y else []))
    arrow(ax, (merge, 0), (stack, 0))

    # The map in front, behind it the levels; what is farther away is drawn first.
    slabs = [(MAP, DEPTH), *((color, thin) for color in GRIDS[:levels])]
    deep = sum(depth for _, depth in slabs)
    offsets = [sum(depth for _, depth in slabs[:i]) for i in range(len(slabs))]
    for (color, depth), shift in reversed(list(zip(slabs, offsets, strict=True))):
        end = max(end, _slab(ax, stack + _BACK[0] * shift, _BACK[1] * shift, color, depth))
    _write(ax, stack + FACE / 2, -FACE / 2 - 1.4 * LABEL, f"{pyramid.out_channels}\nchannels")

    # The arrow leaves where the lower edge passes the middle, if it comes so far.
    leave = stack + FACE + _BACK[0] * min(deep, FACE / 2 / _BACK[1])
    arrow(ax, (leave, 0), (end + GAP, 0))
    head = _boxes(ax, end + GAP, 0, read_steps(network.head))
    arrow(ax, (head, 0), (head + GAP, 0))
    last = _picture(ax, head + GAP, 0, CLASSES, "prediction")

    for x, text in (
        (grids + FACE / 2, f"{pyramid.pooling}\npooling"),
        (maps + FACE / 2, f"upsampled,\n{pyramid.level_channels} channels"),
    ):
        _write(ax, x, header, text)
    _write(ax, (stack + end) / 2, FACE / 2 + _BACK[1] * deep + LABEL, "concatenated")
    spare = WIDTH - MARGIN - last
    ax.set(xlim=(-spare / 2, WIDTH - spare / 2), ylim=(min(lowest, LOWEST) - MARGIN, header + 0.17))
    ax.axis("off")
    fig.set_figheight(float(np.ptp(ax.get_ylim())))
    return fig
