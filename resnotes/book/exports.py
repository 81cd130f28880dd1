"""The figures of a run: found with their sidecars, and copied to where they are used."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from resnotes import paths
from resnotes.book.ledger import is_finished
from resnotes.book.markdown import escape
from resnotes.errors import ResnotesError, unknown
from resnotes.figures.saving import FORMATS
from resnotes.files import read_json, write_folder


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
