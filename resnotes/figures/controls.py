"""What explorers share: a picture that follows JupyterLab's theme, and a line that says what it shows.

Controls are of use only where somebody is there to move them, and a saved view of them is an error message wherever
their kernel is gone. They are therefore made only where `resnotes.progress.attended`; papermill, nbconvert and nbval
get the picture alone.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import numpy as np
from IPython.display import display
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.image import AxesImage, imsave

from resnotes.figures.style import VERMILION, WIDTH

DPI, PIXELS = 200, round(100 * WIDTH)  # of the files, for fine screens, and across on the page
IMAGE = '<img class="resnotes-{}" src="data:image/png;base64,{}" alt="{}" style="width: 100%; max-width: {}px">'
SHOWN = """<style>
.resnotes-dark, [data-jp-theme-light="false"] .resnotes-light { display: none }
[data-jp-theme-light="false"] .resnotes-dark { display: inline }
.jp-OutputArea-child:has(+ .jp-OutputArea-child .resnotes-explorer),
.jp-OutputArea-child:has(+ .jp-OutputArea-child [data-lesions]):has(~ .jp-OutputArea-child .resnotes-explorer) {
  display: none }
</style>"""


def renderings(figure: Figure) -> dict[str, str]:
    """PNG files in base64: `light`, as the figure was drawn, and `dark`, with lightness turned round and hues kept.

    Images in it stay as they are, and so do the colours of a legend of the whole figure, which are those of images.
    """
    figure.set_dpi(DPI)
    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    light = np.asarray(canvas.buffer_rgba())[:, :, :3]
    lightness = light @ np.array([[0.213], [0.715], [0.072]], np.float32)  # of sRGB, as CSS filters reckon
    dark = (light - 2 * lightness + 255).clip(0, 255).astype(np.uint8)
    kept: list[Any] = [
        *figure.findobj(AxesImage),
        *(each for legend in figure.legends for each in legend.legend_handles),
    ]
    for artist in kept:
        left, bottom, right, top = (round(edge) for edge in artist.get_window_extent().extents)
        area = slice(len(light) - top, len(light) - bottom), slice(left, right)
        dark[area] = light[area]
    files = {}
    for theme, pixels in {"light": light, "dark": dark}.items():
        imsave(buffer := io.BytesIO(), pixels, format="png")
        files[theme] = base64.b64encode(buffer.getvalue()).decode()
    return files


def named(width: int) -> dict[str, Any]:
    """Options of a control so many pixels wide, with its name, of any length, in it."""
    return {"style": {"description_width": "initial"}, "layout": widgets.Layout(width=f"{width}px")}


def row(*children: Any) -> Any:
    """Widgets beside each other, in several lines where one is too short."""
    return widgets.HBox(children, layout=widgets.Layout(flex_flow="row wrap"))


class Explorer:
    """A picture and its status line; subclasses put controls above them.

    Every part has a CSS class of its own, ``resnotes-explorer-<part>``.

    Attributes:
        status: what the picture shows, in words, or what is being done.
        image: the picture, in a light and in a dark rendering, of which the theme shows one. The words are its
            alternative text.
    """

    def __init__(self) -> None:
        self.status = widgets.HTML().add_class("resnotes-explorer-status")
        self.image = widgets.HTML().add_class("resnotes-explorer-image")

    def say(self, text: str, role: str = "status") -> None:
        """Roles are for screen readers, which read out what changes."""
        color = f' style="color: {VERMILION}"' if role == "alert" else ""
        self.status.value = f'<span role="{role}"{color}>{html.escape(text)}</span>'

    def update(self, examine: Callable[[], tuple[Figure, str]]) -> None:
        """Say that this takes a while, then show what `examine` returns: a figure, and the same in words."""
        self.say("computing ...")
        figure, text = examine()
        images = (IMAGE.format(theme, file, html.escape(text), PIXELS) for theme, file in renderings(figure).items())
        self.image.value = SHOWN + "".join(images)
        self.say(text)


def show(figure: Figure, text: str, *below: Any) -> None:
    """Show a picture with its alternative text, and below it what else there is; controls come last.

    The picture is an output of its own, which `SHOWN` hides as long as there are controls below it. In one output with
    them, it would not be seen in JupyterLab once their kernel is gone.
    """
    metadata = {"image/png": {"width": PIXELS, "alt": text}}
    display({"image/png": renderings(figure)["light"], "text/plain": text}, metadata=metadata, raw=True)
    for each in below:
        display(each)
