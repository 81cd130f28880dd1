"""Figures as files that say what they show and where it came from."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import resnotes
from resnotes import paths
from resnotes.errors import ResnotesError, UsageError, unknown
from resnotes.figures.style import file_settings, fix_layout
from resnotes.figures.translation import chinese_font, translated
from resnotes.files import read_json, write_atomic, write_json
from resnotes.provenance import code_version
from resnotes.typed import Rule, check_entry

# What a figure is saved as, and what keeps the date out of the file.
FORMATS: dict[str, dict[str, Any]] = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
VARIABLE = "RESNOTES_FIGURES"  # what figures are saved as beside PNG, which is enough while one works
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*")


def formats(named: str) -> list[str]:
    """The formats that a list by commas names, such as ``png, svg``.

    Raises:
        UsageError: there is no such format.
    """
    kinds = [kind.strip() for kind in named.split(",")]
    for kind in kinds:
        if kind not in FORMATS:
            raise unknown("format", kind, FORMATS)
    return kinds


def save(
    fig: Figure,
    name: str,
    *,
    caption: str,
    caption_zh: str,
    claims: Sequence[str],
    data: pd.DataFrame | Mapping[str, pd.DataFrame],
    parameters: Mapping[str, Any],
    labels_zh: Mapping[str, str] | None = None,
) -> Path:
    """Write `fig` as PNG (300 dpi) with a JSON beside it; the same figure gives the same bytes.

    As PDF and SVG as well where `RESNOTES_FIGURES` names them, as ``pdf,svg``. With `labels_zh`, `<name>.zh.png` as
    well: the figure in Chinese, where a font with Chinese is installed.

    Args:
        fig: the figure; its layout is fixed by this call.
        name: stem of the files, lower case.
        caption: what is seen, in English.
        caption_zh: the same in Chinese.
        claims: ids of the claims that the figure supports.
        data: what is drawn: columns become lists; several frames, by name, where one does not do.
        parameters: what it was drawn from, such as profile, seeds and data set.
        labels_zh: Chinese of the words in it, by these (see `resnotes.figures.translation.translate`).

    Returns:
        Path of the PNG.

    Raises:
        UsageError: the name is malformed, or there is no such format.
    """
    wanted = ["png", *formats(os.environ.get(VARIABLE) or "png")]
    if not _NAME.fullmatch(name):
        raise UsageError(f"figure name {name!r} is not of the form [a-z0-9_-]+")
    folder = paths.out_root() / "figures"
    # Constrained layout moves a little each time it runs: run it once and keep the result for every format.
    fig.draw_without_rendering()
    layout = fig.get_layout_engine()
    fix_layout(fig)
    for extension in FORMATS:
        path = folder / f"{name}.{extension}"
        if extension in wanted:
            write_atomic(path, _drawn(fig, extension))
        else:
            path.unlink(missing_ok=True)  # of an earlier figure
    chinese = folder / f"{name}.zh.png"
    if labels_zh and (font := chinese_font()):
        with translated(fig, labels_zh, font, layout):
            write_atomic(chinese, _drawn(fig, "png"))
    else:
        chinese.unlink(missing_ok=True)
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


def _drawn(fig: Figure, extension: str) -> bytes:
    """The file of a figure as it stands."""
    buffer = io.BytesIO()
    with mpl.rc_context(file_settings()):
        fig.savefig(buffer, format=extension, dpi=300, metadata=FORMATS[extension])
    return buffer.getvalue()


_TEXTS = Rule("must be a text in each of en and zh", lambda texts: {"en", "zh"} <= texts.keys())


@dataclass(frozen=True)
class _Described:
    """What is read of the JSON beside a figure."""

    name: str
    caption: Annotated[Mapping[str, str], _TEXTS]
    claims: Sequence[str]


def described(path: Path) -> dict[str, Any]:
    """The JSON that `save` writes beside a figure.

    Raises:
        ResnotesError: it is missing or damaged, or a field of it is, which is named.
    """
    found = read_json(path)
    try:
        check_entry(_Described, found, "what describes a figure,")
    except UsageError as misfit:
        raise ResnotesError(f"{path} describes no figure: {misfit}; `resnotes run` makes both anew") from None
    return dict(found)


def _columns(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """Columns as lists, a named index among them; a missing or infinite value is null, as JSON has no NaN."""
    frame = frame.reset_index() if any(name is not None for name in frame.index.names) else frame
    frame = frame.replace([np.inf, -np.inf], np.nan).astype(object)
    return {str(column): frame[column].where(frame[column].notna(), None).tolist() for column in frame}
