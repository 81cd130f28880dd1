"""Failures beside each other (Zhao et al. 2017, Fig. 2), confusion matrices, and which classes occur together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle
from matplotlib.patheffects import Normal, withStroke
from numpy.typing import NDArray
from torch import Tensor

from resnotes.analysis.cooccurrence import Cooccurrence
from resnotes.errors import UsageError
from resnotes.failures.mining import check
from resnotes.figures.style import BLUE, FONT, VERMILION, WIDTH, palette
from resnotes.models.segmentation import IGNORED

SIDE, LINE, LEGEND_COLUMNS = 1.75, 0.155, 6  # of a panel at most, of a line of words, in inches
UNNAMED = (1.0, 1.0, 1.0)  # of pixels that have no class
SHARES = [0, 0.001, 0.01, 0.1, 0.3, 1]  # written at a confusion matrix

CELL, NAMES, KEY, LEGEND = 0.215, 0.8, 0.8, 0.3  # of a heat map: a cell at most; room for names, colour bar and legend
SMALL = 0.4  # side of the square in a cell that chance explains, as a share of the cell's
# Blue and vermilion, on either side of a grey that shows on white; beyond the blue, a darker one.
NEVER, MIDDLE = "#00304D", "#E4E4E4"


def _outline(ax: Axes, box: tuple[int, int, int, int]) -> None:
    """The bounding box `top, left, bottom, right` in black and white, which show on any colour."""
    top, left, bottom, right = box
    stroke = [withStroke(linewidth=2.2, foreground="black"), Normal()]
    frame = Rectangle((left - 0.5, top - 0.5), right - left, bottom - top)
    frame.set(fill=False, edgecolor="white", linewidth=1.0, joinstyle="miter", path_effects=stroke, clip_on=False)
    ax.add_patch(frame)


def panels(
    failures: pd.DataFrame,
    images: Tensor | Sequence[Tensor],
    labels: Tensor | Sequence[Tensor],
    predictions: Mapping[str, Tensor | Sequence[Tensor]],
    classes: Sequence[str],
    *,
    ignore_index: int = IGNORED,
) -> Figure:
    """A row for each failure: image, labels and predictions (Zhao et al. 2017, Fig. 2); 7 inches wide.

    The bounding box of the failure is drawn in each; pixels without a class are white, and the legend has the classes
    that are to be seen.

    Args:
        failures: some of what `mine` returns, in the order of the rows; those of the first of the predictions, mostly.
        images: uint8 ``[N, 3, H, W]``, or N images ``[3, H, W]`` of any sizes.
        labels: integers ``[N, H, W]``, or N maps ``[H, W]``.
        predictions: the same by the name of the column, such as ``{"FCN": ..., "PSPNet": ...}``.
        classes: the names.
        ignore_index: label of pixels that have no class.

    Raises:
        UsageError: no failure or prediction, or shapes or values that do not fit.
    """
    if not len(failures) or not predictions:
        raise UsageError(f"expected failures and predictions, found {len(failures)} and {len(predictions)} to show")
    chosen = failures["image"].tolist()
    photos = [images[i].cpu() for i in chosen]
    maps = {name: [each[i].cpu() for i in chosen] for name, each in {"label": labels, **predictions}.items()}
    for photo, label in zip(photos, maps["label"], strict=True):
        if photo.shape[1:] != label.shape:
            raise UsageError(f"expected labels to fit images {list(photo.shape)}, found {list(label.shape)}")
    for name in predictions:
        check(maps[name], maps["label"], len(classes), ignore_index)
    shown = torch.cat([each.flatten().long() for several in maps.values() for each in several]).unique().tolist()
    legend = [i for i in shown if i != ignore_index]
    colors = np.vstack([palette(len(classes)), UNNAMED])  # the last one is that of no class

    rows, columns = len(failures), 1 + len(maps)
    tall = min(SIDE, WIDTH / columns) * max(photo.shape[1] / photo.shape[2] for photo in photos)
    total = rows * (tall + 1.6 * LINE) + (2 + -(-len(legend) // LEGEND_COLUMNS)) * LINE
    fig, grid = plt.subplots(rows, columns, figsize=(WIDTH, total), squeeze=False, layout="constrained")
    for line, failure, photo, *numbered in zip(grid, failures.itertuples(), photos, *maps.values(), strict=True):
        painted = [colors[np.where(numbers == ignore_index, len(classes), numbers)] for numbers in numbered]
        for ax, picture in zip(line, [photo.permute(1, 2, 0).numpy(), *painted], strict=True):
            ax.imshow(picture, interpolation="nearest")
            _outline(ax, (failure.top, failure.left, failure.bottom, failure.right))
            ax.spines[:].set_visible(False)
            ax.set(xticks=[], yticks=[])
        size = f"{failure.pixels} of {failure.object_pixels} pixels"
        line[0].set_title(
            f"{failure.kind}: {failure.labelled} → {failure.predicted}, {size}", loc="left", fontsize=FONT
        )
    for ax, name in zip(grid[-1], ("image", *maps), strict=True):
        ax.set_xlabel(name)
    handles = [Patch(facecolor=colors[i], edgecolor="black", linewidth=0.4, label=classes[i]) for i in legend]
    fig.legend(handles=handles, loc="outside lower center", ncols=LEGEND_COLUMNS)
    return fig


def confusion_figure(confusion: Tensor, classes: Sequence[str], order: Sequence[int] | Tensor | None = None) -> Figure:
    """A confusion matrix as shares of its rows, on a scale that shows small ones; 7 inches wide.

    Args:
        confusion: ``[C, C]``, a row for each label, a column for each prediction. A row without pixels stays empty.
        classes: the C names.
        order: a permutation, such as `clustered` returns; None for that of the classes.

    Raises:
        UsageError: a matrix or an order that does not fit the classes.
    """
    import seaborn as sns  # seconds of import time

    count = len(classes)
    if confusion.shape != (count, count):
        raise UsageError(f"expected a confusion matrix {[count, count]}, found {list(confusion.shape)}")
    places = list(range(count)) if order is None else [int(i) for i in order]
    if sorted(places) != list(range(count)):
        raise UsageError(f"expected an order of the classes 0 to {count - 1}, each once; found {places}")
    shares = pd.DataFrame((confusion.double() / confusion.sum(1, keepdim=True).clamp(min=1)).cpu().numpy())
    names = [classes[i] for i in places]

    fig, ax = plt.subplots(figsize=(WIDTH, 6.0), layout="constrained")
    # The root of the root shows a thousandth as a sixth of the scale.
    bar = {"shrink": 0.7, "pad": 0.02, "ticks": SHARES, "format": "{x:g}", "label": "share of the labelled pixels"}
    ticks = {"xticklabels": names, "yticklabels": names}
    sns.heatmap(shares.loc[places, places], cmap="Blues", norm=PowerNorm(0.25, 0, 1), cbar_kws=bar, ax=ax, **ticks)
    ax.tick_params(length=0, labelsize=min(FONT, 300 / count))  # points: 300 of them are the height of the matrix
    ax.set(xlabel="predicted", ylabel="labelled")
    return fig


def heat_map(cooccurrence: Cooccurrence) -> Figure:
    """The PMI of all pairs, classes that are alike beside each other; 7 inches wide with 25 classes or more.

    A cell is filled if `Cooccurrence.significant`, and has a small square in it where it could be chance. The darkest
    are never together. A class with itself is left blank, and so is what never occurs.
    """
    import seaborn as sns  # seconds of import time

    shown = cooccurrence.pmi().numpy()
    np.fill_diagonal(shown, np.nan)
    never = (cooccurrence.counts.numpy() == 0) & ~np.isnan(shown)
    limit = np.abs(shown[np.isfinite(shown)]).max(initial=0) or 1.0
    shown[never] = -2 * limit  # below the scale, which has a colour of its own

    order = _order(shown)
    table = pd.DataFrame(shown, cooccurrence.classes, cooccurrence.classes).iloc[order, order]
    chance = (cooccurrence.significant() == 0).numpy()[np.ix_(order, order)] & table.notna().to_numpy()

    cell = min(CELL, (WIDTH - NAMES - KEY) / len(order))
    size = (len(order) * cell + NAMES + KEY, len(order) * cell + NAMES + LEGEND)
    figure, ax = plt.subplots(figsize=size, layout="constrained")
    look: dict[str, Any] = {
        "cmap": LinearSegmentedColormap.from_list("pmi", [BLUE, MIDDLE, VERMILION], under=NEVER),
        "vmin": -limit,
        "vmax": limit,
    }
    bar = {"label": "pointwise mutual information (bits)", "shrink": 0.6, "aspect": 30}
    ticks = {"xticklabels": list(table.columns), "yticklabels": list(table.index)}
    sns.heatmap(table, mask=chance, square=True, linewidths=0.4, cbar_kws=bar, ax=ax, **ticks, **look)
    y, x = chance.nonzero()
    small = (72 * SMALL * cell) ** 2  # points squared
    ax.scatter(x + 0.5, y + 0.5, small, table.to_numpy()[chance], marker="s", linewidth=0, **look)
    ax.tick_params(length=0)
    ax.grid(False)
    keys = [Line2D([], [], color="0.6", marker="s", linestyle="", markersize=2, label="could be chance")]
    if never.any():
        keys.insert(0, Line2D([], [], color=NEVER, marker="s", linestyle="", label="never together"))
    # Not wider than the cells, or the layout would make room for it at their expense.
    across = 2 if len(order) > 9 else 1
    ax.legend(handles=keys, loc="lower left", bbox_to_anchor=(0, 1), ncols=across, borderaxespad=0, handletextpad=0.2)
    return figure


def _order(values: NDArray[Any]) -> list[int]:
    """The rows of a table such that alike ones are neighbours; NaN counts as 0."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import pdist

    if len(values) < 2:
        return [0]
    order: list[int] = leaves_list(linkage(pdist(np.nan_to_num(values)), "average", optimal_ordering=True)).tolist()
    return order
