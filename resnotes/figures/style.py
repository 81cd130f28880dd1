"""One style for all figures: fonts, colours, one look per network."""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb, to_rgba_array
from matplotlib.figure import Figure
from numpy.typing import NDArray

from resnotes.errors import UsageError, unknown

WIDTH, FONT = 7.0, 7.0  # of a page in inches, and of the words in drawings in points

# Okabe and Ito's colours, which stay apart under the common colour-vision deficiencies.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK = "#E69F00", "#56B4E9", "#000000"

FAMILY_COLORS = {
    "plain": VERMILION,
    "resnet": BLUE,
    "preresnet": GREEN,
    "bottleneck": SKY,
    "prebottleneck": ORANGE,
    "vgg": PURPLE,
    "alexnet": BLACK,
}

# In drawings: what is in a box, in Okabe and Ito's sky blue, orange, green and purple, mixed with white until black
# text reads well on them; and what a lesion takes away.
FILLS = {"conv": "#CBE7F8", "bn": "#FAE3B5", "relu": "#BCE5D9", "other": "#F1D9E6"}
FADED, FADED_TEXT = "#A0A0A0", "#757575"

# For classes: Okabe and Ito's without black, and then always the colour, of a grid in sRGB without the very dark and
# the very light, that is farthest in Oklab (Ottosson 2020) from all before it, for whoever of normal, protan and deutan
# vision (Machado et al. 2009) sees the least difference.
CLASS_COLORS = """
    0072B2 D55E00 009E73 CC79A7 E69F00 56B4E9 600000 80FF00 00009F 8000FF 80FFFF 006020 BF0080 FFBFBF BF60FF 402060
    BFDF80 004040 4040BF FF4080 BF0020 BFBFFF 80BF80 802060 8060DF 606060 DF20BF 0000DF FF80DF 80209F 9F80DF 60DF40
    60DFDF 608060 DF9FBF 00DF9F 80FF9F 004080 006080 9F409F FF6040 9F6040 809F40 6080BF 9F40FF 809FFF BFDFFF 404000
    DF2040 4000BF 00BF60 804040 60BFBF 809FBF 9F00DF 409F9F 008040 202080 00FFDF FFBF40 BF9F9F DFBF80 9F0020 80BF40
    FFDFBF FFDF60 BF6060 9F4060 808080 40809F 60609F DF60DF 800020 DF9FFF 6080FF 402040 9F6080 602060 DF80FF BF8060
    BFBF60 40209F BFBFBF 9FDF60 00FF60 808000 9FBF9F 009F00 602040 DF00DF BF9FDF 604040 DF8080 804060 802000 80409F
    DF9F60 8060BF BF8020 80DFBF 9F9F00 BFBF00 800080 60FF80 9F6000 FF9F80 FF0080 00BF9F 606000 FF409F 9F80BF BF20BF
    0000FF 609F60 00BFDF 9F609F 40FFBF FFBF9F DF80BF 60BFFF FF40DF FFDF00 9F4020 FFDF9F 600020 9FDF9F 9F4080 80809F
    DF9F80 9F60DF 206060 FF40BF 9F2080 009F40 4020DF FFBFDF 609F80 BF9F80 BF9F60 20609F 9F20FF FF4040 DF4060 404060
    602000 BFBFDF 60DFFF 404040 DFBF9F DFBF40 DFDFDF DF40FF DF8000 FF0040 9F4040 00DF80 BF9F40 BF2000 00BF40 80BF60
    9FDF20 FFDF80 FF6060 9F8080 008060 404020 60BF00 FF9F9F 606040 DFDF40 8000BF 604020 BFFF60 40409F DF2000 DFBFDF
    FF009F BF2040 804000 408080 DFBFFF DF9F40 9F9F60 BF2060 DFBF60 60DF60 9F9F80 808040 9FDFDF 6060BF 6040DF 608020
"""


_SHEET = Path(__file__).with_name("resnotes.mplstyle")
_SPOKEN = {" batch_norm=True": " with BN", " batch_norm=False": " without BN", " alpha=": ", α = ", r" width=\d+": ""}
# Matplotlib's defaults come first, so that of a user's matplotlibrc nothing remains.
STYLE: list[str | Path] = ["default", _SHEET]


def use_style() -> None:
    """Apply `STYLE` to every figure made from here on: the same cell draws the same figure on every machine."""
    plt.style.use(STYLE)


@cache
def file_settings() -> dict[Any, Any]:
    """What the style says of figures as files, for whoever saves one that was drawn in another style."""
    settings = mpl.rc_params_from_file(_SHEET, use_default_template=True)
    kept = {name: settings[name] for name in settings if name.startswith(("savefig.", "pdf.", "svg."))}
    return {**kept, "figure.autolayout": False, "figure.constrained_layout.use": False}  # see `fix_layout`


def fix_layout(fig: Figure) -> None:
    """Everything in `fig` stays where it is now.

    Matplotlib's own way, the engine "none", draws each file twice, since it is an engine, and engines lay out first.
    """
    with mpl.rc_context(file_settings()):  # None is what these say
        fig.set_layout_engine(None)


def lighter(color: str, share: float) -> tuple[float, float, float]:
    """The colour, mixed with white to this share of it."""
    red, green, blue = (1 - share * (1 - channel) for channel in to_rgb(color))
    return red, green, blue


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
    hue = FAMILY_COLORS[parts[1]]
    darker = np.multiply(to_rgb(hue), 1 - 0.35 * max(shade, 0))
    color = to_hex(lighter(hue, 1 + 0.45 * shade) if shade < 0 else tuple(darker))
    return {"color": color, "linestyle": "--" if depth < 32 else "-." if depth < 56 else "-"}


def readable(label: str) -> str:
    """A network's label as figures and cards have it: `vgg-15 with BN` of `vgg-15 batch_norm=True width=16`."""
    for pattern, text in _SPOKEN.items():
        label = re.sub(pattern, text, label)
    return label


def palette(num_classes: int) -> NDArray[np.float64]:
    """Colours for classes, sRGB ``[num_classes, 3]`` from 0 to 1: the first of `CLASS_COLORS`.

    No 25 colours are easy to tell apart without red or green; read them with legend and shapes.

    Raises:
        UsageError: fewer than one class, or more than there are colours.
    """
    colors = [f"#{color}" for color in CLASS_COLORS.split()]
    if not 1 <= num_classes <= len(colors):
        raise UsageError(f"expected 1 to {len(colors)} classes to colour, found {num_classes}")
    return to_rgba_array(colors[:num_classes])[:, :3]


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
    # By hand: seaborn's lineplot, which aggregates each value of `x` by itself, takes a hundred times as long.
    for name, group in frame.groupby(by, sort=False):
        look = {**(style_for(str(name)) if "color" not in style else {}), **style}
        seeds = group.groupby(x)[y]
        mean = np.exp(np.log(group[y]).groupby(group[x]).mean()) if geometric else seeds.mean()
        ax.plot(mean.index, mean, label=str(name), **look)
        ax.fill_between(mean.index, seeds.min(), seeds.max(), color=look["color"], alpha=0.2, linewidth=0)
