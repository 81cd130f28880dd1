"""One style for all figures, and one look per network."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb

from resnotes.errors import unknown

FAMILY_COLORS = {  # Okabe-Ito: vermilion, blue, green, ...
    "plain": "#D55E00",
    "resnet": "#0072B2",
    "preresnet": "#009E73",
    "bottleneck": "#56B4E9",
    "prebottleneck": "#E69F00",
    "vgg": "#CC79A7",
    "alexnet": "#000000",
}


def use_style() -> None:
    """Apply the style sheet to every figure made from here on."""
    plt.style.use(Path(__file__).with_name("resnotes.mplstyle"))


def style_for(model_name: str) -> dict[str, str]:
    """`color` and `linestyle` of a network, the same in every notebook: `ax.plot(..., **style_for(name))`.

    The hue is the family's; shallow networks are lighter and broken, deep ones darker and solid, so that
    depths can be told apart in greyscale. Line width and markers are left to the figure: He et al. tell
    training from test error by width.

    Raises:
        UsageError: the name is of no known family.
    """
    parts = re.fullmatch(r"([a-z]+)-?([1-9]\d*)?", model_name)
    if parts is None or parts[1] not in FAMILY_COLORS:
        raise unknown("network family", model_name, FAMILY_COLORS)
    depth = int(parts[2] or 56)
    # 56 layers, the degraded net of He et al., Fig. 1, has the pure hue; 20 is lighter, 110 and more darker.
    shade = float(np.clip(math.log(depth / 56) / math.log(56 / 20), -1, 1))
    target, share = (1.0, -0.45 * shade) if shade < 0 else (0.0, 0.35 * shade)
    red, green, blue = ((1 - share) * channel + share * target for channel in to_rgb(FAMILY_COLORS[parts[1]]))
    color = to_hex((red, green, blue))
    return {"color": color, "linestyle": "--" if depth < 32 else "-." if depth < 56 else "-"}


def bands(ax: Axes, frame: pd.DataFrame, *, x: str, y: str, by: str, geometric: bool = False, **style: Any) -> None:
    """Draw the mean over seeds of column `y` against `x`, and a band from the lowest seed to the highest.

    Args:
        ax: where to draw.
        frame: one row per seed and value of `x`.
        x: column of the horizontal axis.
        y: column of the vertical axis.
        by: column whose values get a line each, named in the legend; networks get the look of `style_for`.
        geometric: take the geometric mean, as suits a logarithmic axis; `y` must be positive.
        style: added to that look; with a `color` it takes its place, as is needed where `by` does not name networks.
    """
    for name, group in frame.groupby(by, sort=False):
        seeds = group.groupby(x)[y]
        look = {**(style_for(str(name)) if "color" not in style else {}), **style}
        middle = np.exp(np.log(group[y]).groupby(group[x]).mean()) if geometric else seeds.mean()
        low, high = seeds.min(), seeds.max()
        ax.plot(middle.index, middle, label=str(name), **look)
        ax.fill_between(middle.index, low, high, color=look["color"], alpha=0.2, linewidth=0)
