"""The figures of a run, copied to where they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from resnotes.book.results import read_results
from resnotes.book.templating import escape
from resnotes.errors import ResnotesError
from resnotes.files import write_folder


def export(to: Path, out: Path, *, formats: Sequence[str] = ("png",)) -> list[str]:
    """Copy the figures of a run, with their sidecars, into the folder `to`; returns a Markdown snippet for each.

    Args:
        to: folder that receives `<name>.<format>` and `<name>.json`, replacing what has these names.
        out: folder of the run.
        formats: of `resnotes.figures.saving.FORMATS`; the snippet shows the first that a browser can show as an image.

    Raises:
        ResnotesError: there are no figures, one was not drawn in one of the formats, or a sidecar is damaged.
        OSError: the folder cannot be written.
    """
    source = out / "figures"
    captions = {str(figure["name"]): figure["caption"] for figure in read_results(out).figures}
    if not captions:
        raise ResnotesError(f"no figures in {source}; `resnotes run` makes them")
    files = [f"{name}.{extension}" for name in captions for extension in (*formats, "json")]
    if missing := [file for file in files if not (source / file).exists()]:
        raise ResnotesError(
            f"{source} has no {', '.join(missing)}; `resnotes run --format {','.join(formats)}` draws these formats"
        )
    write_folder(to, {file: (source / file).read_bytes() for file in files})
    return [_snippet(name, caption, formats) for name, caption in captions.items()]


def _snippet(name: str, caption: Mapping[str, str], formats: Sequence[str]) -> str:
    """Markdown that shows a figure, or links to it where no format is an image, with its captions below."""
    shown = next((kind for kind in formats if kind in ("png", "svg")), None)
    link = f"![{escape(caption['en'])}]({name}.{shown})" if shown else f"[{name}]({name}.{formats[0]})"
    return f"{link}\n\n*{escape(caption['en'])}*\n\n*{escape(caption['zh'])}*\n"
