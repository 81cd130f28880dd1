"""Failures beside each other (Zhao et al. 2017, Fig. 2), confusion matrices, and colours for classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.layout_engine import PlaceHolderLayoutEngine
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, withStroke
from numpy.typing import NDArray
from torch import Tensor

from resnotes.errors import UsageError
from resnotes.failures.mining import check
from resnotes.models.segmentation import IGNORED

# In inches.
WIDTH, MARGIN, GAP = 7.0, 0.05, 0.06  # of the figure, around it, and between panels
HEADER, TITLE, LINE = 0.2, 0.24, 0.155  # above all columns, above a row, and of the legend
SIDE = 1.75  # of a panel at most
FONT = 7.0  # points
LEGEND_COLUMNS = 6
UNNAMED = (1.0, 1.0, 1.0)  # of pixels that have no class

_FIRST = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_STEPS, _DARKEST, _LIGHTEST = 9, 0.3, 0.93  # of the colours to choose from: levels of a channel, lightness in Oklab
_WEIGHTS = np.array([0.5, 1, 1])[:, None, None]  # of distances in the three visions; see the most with the first
_LMS = (
    np.array(  # linear sRGB to the cones of Oklab (Ottosson 2020), and these to its lightness, green-red, blue-yellow
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ]
    )
)
_LAB = np.array(
    [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
)
_VISIONS = np.array(  # linear sRGB as seen normally, with protanopia and with deuteranopia (Machado et al. 2009)
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)


def seen(colors: NDArray[np.float64]) -> NDArray[np.float64]:
    """sRGB colours ``[..., 3]``, 0 to 1, in Oklab, ``[3, ..., 3]``: as seen normally, by protanopes, by deuteranopes.

    Distances in Oklab are about as large as colours look different.
    """
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    cones = np.cbrt(np.stack([linear @ vision.T for vision in _VISIONS]).clip(0, 1) @ _LMS.T)
    lab: NDArray[np.float64] = cones @ _LAB.T
    return lab


def palette(num_classes: int) -> NDArray[np.float64]:
    """Colours for classes, sRGB ``[num_classes, 3]`` from 0 to 1.

    Okabe and Ito's, as in the style sheet, and then always the one of a grid, without the very dark and the very
    light, that is farthest from all before it for whoever of normal, protan and deutan vision sees the least
    difference. So a palette begins with every shorter one. No 25 colours are easy to tell apart without red or green;
    read them with legend and shapes.

    Raises:
        UsageError: fewer than one class, or more than there are colours to choose from.
    """
    levels = np.linspace(0, 1, _STEPS)
    grid = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    lightness = seen(grid)[0, :, 0]
    grid = grid[(lightness > _DARKEST) & (lightness < _LIGHTEST)]
    first = np.array([to_rgb(color) for color in _FIRST])
    choices = np.concatenate([first, grid])
    if not 1 <= num_classes <= len(choices):
        raise UsageError(f"expected 1 to {len(choices)} classes to colour, found {num_classes}")
    points = seen(choices) * _WEIGHTS

    chosen: list[int] = []
    nearest = np.full(len(choices), np.inf)
    for count in range(num_classes):
        # Rounded, so that a tie is one on every machine.
        chosen.append(count if count < len(first) else int(nearest.round(9).argmax()))
        distance = np.linalg.norm(points - points[:, chosen[-1], None], axis=2).min(0)
        nearest = np.minimum(nearest, distance)
    return choices[chosen]


def _check(failures: pd.DataFrame, images: Tensor, labels: Tensor, predictions: Mapping[str, Tensor]) -> None:
    if not len(failures) or not predictions:
        raise UsageError(
            f"expected failures and predictions to show, found {len(failures)} failures, {len(predictions)} predictions"
        )
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
        raise UsageError(f"expected images as uint8 [N, 3, H, W], found {images.dtype} {list(images.shape)}")
    if labels.shape != (len(images), *images.shape[2:]):
        raise UsageError(f"expected labels to fit images {list(images.shape)}, found {list(labels.shape)}")
    if not 0 <= failures["image"].min() <= failures["image"].max() < len(images):
        raise UsageError(f"expected failures in images 0 to {len(images) - 1}, found one in {failures['image'].max()}")


def _outline(ax: Axes, box: tuple[int, int, int, int]) -> None:
    """The bounding box `top, left, bottom, right` in black and white, which show on any colour."""
    top, left, bottom, right = box
    stroke = [withStroke(linewidth=2.2, foreground="black"), Normal()]
    frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top)
    frame.set(fill=False, edgecolor="white", linewidth=1.0, joinstyle="miter", path_effects=stroke, clip_on=False)
    ax.add_patch(frame)


def panels(
    failures: pd.DataFrame,
    images: Tensor,
    labels: Tensor,
    predictions: Mapping[str, Tensor],
    classes: Sequence[str],
    *,
    ignore_index: int = IGNORED,
) -> Figure:
    """A row for each failure: image, labels and predictions (Zhao et al. 2017, Fig. 2); 7 inches wide.

    The bounding box of the failure is drawn in each; pixels without a class are white, and the legend has the classes
    that are to be seen.

    Args:
        failures: some of what `mine` returns, in the order of the rows; those of the first of the predictions, mostly.
        images: uint8 ``[N, 3, H, W]``.
        labels: integers ``[N, H, W]``.
        predictions: the same by the name of the column, such as ``{"FCN": ..., "PSPNet": ...}``.
        classes: the names.
        ignore_index: label of pixels that have no class.

    Raises:
        UsageError: no failure or prediction, or shapes or values that do not fit.
    """
    _check(failures, images, labels, predictions)
    for each in predictions.values():
        check(each, labels, len(classes), ignore_index)
    maps = {"label": labels, **predictions}
    chosen = torch.from_numpy(failures["image"].to_numpy(np.int64, copy=True))
    shown = torch.cat([each.cpu()[chosen].flatten().long() for each in maps.values()]).unique().tolist()
    legend = [i for i in shown if i != ignore_index]
    colors = np.vstack([palette(len(classes)), UNNAMED])  # the last one is that of no class

    columns, (height, width) = 1 + len(maps), images.shape[2:]
    wide = min(SIDE, (WIDTH - 2 * MARGIN - (columns - 1) * GAP) / columns)
    tall = wide * height / width
    lines = -(-len(legend) // LEGEND_COLUMNS)
    total = 2 * MARGIN + HEADER + len(failures) * (TITLE + tall) + GAP + lines * LINE
    start = (WIDTH - columns * wide - (columns - 1) * GAP) / 2
    # Not "none": saved once, such a figure would fall back to the layout of the style sheet.
    layout = PlaceHolderLayoutEngine(adjust_compatible=True, colorbar_gridspec=True)
    fig = plt.figure(figsize=(WIDTH, total), layout=layout)

    for row, failure in enumerate(failures.itertuples()):
        image = int(failure.image)  # type: ignore[arg-type]
        pictures = {"image": images[image].permute(1, 2, 0).cpu().numpy()}
        for name, each in maps.items():
            numbers = each[image].cpu().numpy()
            pictures[name] = colors[np.where(numbers == ignore_index, len(classes), numbers)]
        low = total - MARGIN - HEADER - (row + 1) * (TITLE + tall)
        size = f"{failure.pixels} of {failure.object_pixels} pixels"
        title = f"{failure.kind}: {failure.labelled} → {failure.predicted}, {size}"
        fig.text(start / WIDTH, (low + tall + 0.05) / total, title, fontsize=FONT, va="bottom")
        for column, (name, picture) in enumerate(pictures.items()):
            left = start + column * (wide + GAP)
            ax = fig.add_axes((left / WIDTH, low / total, wide / WIDTH, tall / total), label=f"{row} {name}")
            ax.imshow(picture, interpolation="nearest")
            ax.set_axis_off()
            _outline(ax, (failure.top, failure.left, failure.bottom, failure.right))  # type: ignore[arg-type]
            if not row:
                middle = (left + wide / 2) / WIDTH
                fig.text(middle, 1 - MARGIN / total, name, fontsize=FONT + 1, ha="center", va="top")
    handles = [Patch(facecolor=colors[i], edgecolor="black", linewidth=0.4, label=classes[i]) for i in legend]
    fig.legend(
        handles=handles,
        loc="lower center",
        bbox_to_anchor=(0.5, MARGIN / total),
        ncols=LEGEND_COLUMNS,
        fontsize=FONT,
        frameon=False,
        borderpad=0,
        borderaxespad=0,
        labelspacing=0.35,
        columnspacing=1.2,
        handlelength=1.4,
    )
    return fig


def confusion_figure(confusion: Tensor, classes: Sequence[str], order: Sequence[int] | Tensor | None = None) -> Figure:
    """A confusion matrix as shares of its rows, on a scale that shows small ones; 7 inches wide.

    Args:
        confusion: ``[C, C]``, a row for each label, a column for each prediction. A row without pixels stays empty.
        classes: the C names.
        order: a permutation, such as `clustered` returns; None for that of the classes.

    Raises:
        UsageError: a matrix that does not fit the classes, or an order that is none of them.
    """
    count = len(classes)
    if confusion.shape != (count, count):
        raise UsageError(f"expected a confusion matrix {[count, count]}, found {list(confusion.shape)}")
    places = list(range(count)) if order is None else [int(i) for i in order]
    if sorted(places) != list(range(count)):
        raise UsageError(f"expected an order of the classes 0 to {count - 1}, found {places}")
    shares = (confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1))[places][:, places].cpu().numpy()
    names = [classes[i] for i in places]
    size = min(FONT, 300 / count)  # points: 300 of them are the height of the matrix

    fig, ax = plt.subplots(figsize=(WIDTH, 6.0), layout="constrained")
    # The root of the root shows a thousandth as a sixth of the scale.
    picture = ax.imshow(shares, cmap="Blues", norm=PowerNorm(0.25, 0, 1), interpolation="nearest")
    ax.set_xticks(range(count), names, rotation=90, fontsize=size)
    ax.set_yticks(range(count), names, fontsize=size)
    ax.tick_params(length=0)
    ax.grid(False)
    ax.set(xlabel="predicted", ylabel="labelled")
    bar = fig.colorbar(picture, ax=ax, shrink=0.7, pad=0.02, ticks=[0, 0.001, 0.01, 0.1, 0.3, 1])
    bar.ax.set_yticklabels(["0", "0.001", "0.01", "0.1", "0.3", "1"])
    bar.set_label("share of the labelled pixels")
    return fig
