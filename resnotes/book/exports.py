"""The figures of a run, copied to where they are used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from resnotes.book.results import read_results
from resnotes.book.templating import escape
from resnotes.book.words import words_of
from resnotes.errors import ResnotesError, unknown
from resnotes.files import write_folder


def export(
    to: Path, out: Path, *, names: Sequence[str] = (), formats: Sequence[str] = ("png",), lang: str = "en"
) -> list[str]:
    """Copy the figures of a run, with their sidecars, into the folder `to`; returns a Markdown snippet for each.

    Args:
        to: folder that receives `<name>.<format>` (`<name>.zh.<format>`) and `<name>.json`, replacing what is there.
        out: folder of the run.
        names: of the figures; all if empty.
        formats: of `resnotes.figures.saving.FORMATS`; the snippet shows the first that a browser can show as an image.
        lang: of the words in them, en or zh.

    Raises:
        UsageError: no such figure or language.
        ResnotesError: there are no figures, one was not drawn in one of the formats, or a sidecar is damaged.
        OSError: the folder cannot be written.
    """
    source = out / "figures"
    captions = {str(figure["name"]): figure["caption"] for figure in read_results(out).figures}
    if not captions:
        raise ResnotesError(f"no figures in {source}; `resnotes run` makes them")
    for name in names:
        if name not in captions:
            raise unknown("figure", name, captions)
    chosen = {name: captions[name] for name in names or captions}
    endings = [*(f"{_ending(lang)}.{extension}" for extension in formats), ".json"]
    files = [name + ending for name in chosen for ending in endings]
    if missing := [file for file in files if not (source / file).exists()]:
        how = f"`resnotes run --format {','.join(formats)}` draws these formats"
        if lang == "zh":
            how = "`resnotes run` draws figures with Chinese as PNG alone, where it finds a font with Chinese"
        raise ResnotesError(f"{source} has no {', '.join(missing)}; {how}")
    write_folder(to, {file: (source / file).read_bytes() for file in files})
    return [_snippet(name + _ending(lang), caption, formats) for name, caption in chosen.items()]


def _ending(lang: str) -> str:
    """What the names of figures end with in a language, before the dot of their format."""
    words_of(lang)  # which raises if there is no such language
    return "" if lang == "en" else f".{lang}"


def _snippet(name: str, caption: Mapping[str, str], formats: Sequence[str]) -> str:
    """Markdown that shows a figure, or links to it where no format is an image, with its captions below."""
    shown = next((kind for kind in formats if kind in ("png", "svg")), None)
    link = f"![{escape(caption['en'])}]({name}.{shown})" if shown else f"[{name}]({name}.{formats[0]})"
    return f"{link}\n\n*{escape(caption['en'])}*\n\n*{escape(caption['zh'])}*\n"
