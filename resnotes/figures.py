"""Figures: one style, one look per network, and files that say what they show and where it came from."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

import resnotes
from resnotes import paths
from resnotes.claims import is_finished
from resnotes.errors import ResnotesError, UsageError, unknown
from resnotes.files import read_json, write_atomic, write_folder, write_json
from resnotes.markdown import escape
from resnotes.provenance import code_version

# What a figure is saved as, and what keeps the date out of the file.
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}

FAMILY_COLORS = {  # Okabe-Ito: vermilion, blue, green, ...
    "plain": "#D55E00",
    "resnet": "#0072B2",
    "preresnet": "#009E73",
    "bottleneck": "#56B4E9",
    "prebottleneck": "#E69F00",
    "vgg": "#CC79A7",
    "alexnet": "#000000",
}
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


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


def save(
    fig: Figure,
    name: str,
    *,
    caption: str,
    caption_zh: str,
    claims: Sequence[str],
    data: pd.DataFrame | Mapping[str, pd.DataFrame],
    parameters: Mapping[str, Any],
) -> Path:
    """Write `fig` as PNG (300 dpi), PDF and SVG with a JSON beside them; the same figure gives the same bytes.

    Args:
        fig: the figure; its layout is fixed by this call.
        name: stem of the files, lower case.
        caption: what is seen, in English.
        caption_zh: the same in Chinese.
        claims: ids of the claims that the figure supports.
        data: what is drawn: columns become lists; several frames, by name, where one does not do.
        parameters: what it was drawn from, such as profile, seeds and data set.

    Returns:
        Path of the PNG.

    Raises:
        UsageError: the name is malformed.
    """
    if not _NAME.fullmatch(name):
        raise UsageError(f"figure name {name!r} is not of the form [a-z0-9_-]+")
    folder = paths.out_root() / "figures"
    # Constrained layout moves a little each time it runs: run it once and keep the result for every format.
    fig.draw_without_rendering()
    fig.set_layout_engine("none")
    for extension, metadata in FORMATS.items():
        buffer = io.BytesIO()
        with mpl.rc_context({"svg.hashsalt": "resnotes"}):
            fig.savefig(buffer, format=extension, dpi=300, metadata=metadata)
        write_atomic(folder / f"{name}.{extension}", buffer.getvalue())
    columns = _columns(data) if isinstance(data, pd.DataFrame) else {key: _columns(data[key]) for key in data}
    write_json(
        folder / f"{name}.json",
        {
            "name": name,
            "caption": {"en": caption, "zh": caption_zh},
            "claims": list(claims),
            "parameters": dict(parameters),
            "data": columns,
            **code_version(),
            "version": resnotes.__version__,
        },
    )
    return folder / f"{name}.png"


def load(folder: Path, formats: Collection[str] = ("png",)) -> list[dict[str, Any]]:
    """The sidecars of the figures in `folder`, notebook by notebook, each in the order in which it saved them.

    Figures of a notebook beside `folder` that was not finished do not count.

    Args:
        folder: where `save` or `export` left them.
        formats: what each must be there as.

    Raises:
        ResnotesError: a sidecar is damaged, or an image that belongs to it is missing.
    """
    sidecars = []
    executed = (folder.parent / "notebooks").glob("*.ipynb")
    unfinished = {path.stem.split("_")[0] for path in executed if not is_finished(path)}
    saved = sorted(
        (path for path in folder.glob("*.json") if path.name.split("_")[0] not in unfinished),
        key=lambda path: (path.name.split("_")[0], path.stat().st_mtime_ns, path.name),
    )
    for path in saved:
        sidecar = read_json(path)
        caption = sidecar.get("caption") if isinstance(sidecar, dict) else None
        if not isinstance(caption, dict) or not {"en", "zh"} <= caption.keys() or sidecar.get("name") != path.stem:
            raise ResnotesError(f"{path} does not describe a figure: expected its name, captions and data")
        if missing := [kind for kind in formats if not path.with_suffix(f".{kind}").is_file()]:
            raise ResnotesError(f"{path} has no {' and '.join(missing)} beside it; save the figure again")
        sidecars.append(sidecar)
    return sidecars


def export(
    to: Path, source: Path | None = None, *, formats: Sequence[str] = ("png", "pdf"), only: Sequence[str] = ()
) -> list[str]:
    """Copy figures of a run, with their sidecars, into the folder `to`; returns a Markdown snippet for each.

    Args:
        to: folder that receives `<name>.<format>` and `<name>.json`, replacing what has these names.
        source: folder of the figures, by default that of the current output folder.
        formats: of `FORMATS`; the snippet shows the first that a browser can show as an image.
        only: numbers of notebooks, such as `01`, or names of figures; all if empty.

    Raises:
        UsageError: there is no such format, or no figure that `only` names.
        ResnotesError: there are no figures, or one is damaged.
    """
    for kind in formats:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    source = paths.out_root() / "figures" if source is None else source
    sidecars = load(source, formats)
    if not sidecars:
        raise ResnotesError(f"no figures in {source}; `resnotes run` makes them")
    names = [str(sidecar["name"]) for sidecar in sidecars]
    for choice in only:
        if not any(choice in (name, name.split("_")[0]) for name in names):
            raise unknown("figure", choice, sorted({name.split("_")[0] for name in names} | set(names)))
    chosen = {
        name: sidecar["caption"]
        for name, sidecar in zip(names, sidecars, strict=True)
        if not only or {name, name.split("_")[0]} & set(only)
    }
    files = [f"{name}.{extension}" for name in chosen for extension in (*formats, "json")]
    write_folder(to, {file: (source / file).read_bytes() for file in files})
    return [_snippet(name, caption, formats) for name, caption in chosen.items()]


def _snippet(name: str, caption: Mapping[str, str], formats: Sequence[str]) -> str:
    """Markdown that shows a figure, or links to it where no format is an image, with its captions below."""
    shown = next((kind for kind in formats if kind in ("png", "svg")), None)
    link = f"![{escape(caption['en'])}]({name}.{shown})" if shown else f"[{name}]({name}.{formats[0]})"
    return f"{link}\n\n*{escape(caption['en'])}*\n\n*{escape(caption['zh'])}*\n"


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns as lists, a named index among them; a missing or infinite value is null, as JSON has no NaN."""
    frame = frame.reset_index() if any(name is not None for name in frame.index.names) else frame
    frame = frame.replace([np.inf, -np.inf], np.nan).astype(object)
    return {str(column): frame[column].where(frame[column].notna(), None).tolist() for column in frame}
