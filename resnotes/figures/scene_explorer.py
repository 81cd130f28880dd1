"""The scene explorer: put a vehicle before any backdrop, cover a class, and see what networks call each pixel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import ipywidgets as widgets
import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from torch import Tensor, nn

from resnotes.analysis.prediction import predict
from resnotes.datasets import Normalization
from resnotes.datasets.scenes import CLASSES, KINDS, VEHICLES, composed
from resnotes.failures import COVERS, covered
from resnotes.figures.controls import Explorer, named, row, show
from resnotes.figures.failures import UNNAMED
from resnotes.figures.style import FONT, STYLE, WIDTH, palette
from resnotes.progress import attended

HEIGHT, ROOM, LEGEND_COLUMNS = 2.6, 0.65, 8  # inches; of which below the pictures, for the legend
NOTHING = "nothing"
Networks: TypeAlias = Mapping[str, nn.Module]
FIRST: dict[str, Any] = {"scene": 0, "backdrop": "harbour", "vehicle": "boat", "removed": "crane", "cover": "mean"}


def examined(
    networks: Networks, normalization: Normalization, scene: int, backdrop: str, vehicle: str, removed: str, cover: str
) -> tuple[Figure, str]:
    """A scene and what each network makes of it, drawn and in words.

    Wrong is a pixel that is not called what was drawn there; pixels that are covered do not count, and are white in the
    truth.

    Args:
        networks: by name.
        normalization: of their images.
        scene: its number.
        backdrop: kind of scene.
        vehicle: class that is put in, or `NOTHING`.
        removed: class that is covered where the scene has it, or `NOTHING`.
        cover: out of `COVERS`.
    """
    made = composed(backdrop, vehicle.replace(NOTHING, ""), scene)
    image, counted, done = made.image, torch.ones_like(made.label, dtype=torch.bool), "nothing covered"
    region = made.label == (*CLASSES, NOTHING).index(removed)
    if region.any():
        covers, touched = covered(image, region, np.random.default_rng(scene))
        image, done = covers[COVERS.index(cover)], f"{removed} covered ({cover})"
        counted = ~(touched ^ region) if cover == "sham" else ~region  # the sham leaves the region and covers the rest
    maps, shares = {"truth": made.label.where(counted, len(CLASSES))}, []
    for name, network in networks.items():
        answer = predict(network, image[None], normalization)[0].cpu()
        share = f"{100 * (answer != made.label)[counted].double().mean():.1f} %"
        shares.append(f"{name} {share}")
        maps[f"{name}, {share} wrong"] = answer
    return draw(image, maps), f"{backdrop} {scene}, {vehicle} put in, {done}; wrong pixels: {', '.join(shares)}"


@plt.style.context(STYLE)
def draw(image: Tensor, maps: Mapping[str, Tensor]) -> Figure:
    """An image ``[3, H, W]`` and maps of `CLASSES` ``[H, W]``, one more for pixels of none, beside each other.

    Returns:
        A figure that pyplot does not know: no notebook shows it of its own accord.
    """
    fig = Figure(figsize=(WIDTH, HEIGHT))
    fig.set_layout_engine("none")
    colors = np.vstack([palette(len(CLASSES)), UNNAMED])
    pictures = {"image": image.permute(1, 2, 0).numpy(), **{name: colors[each] for name, each in maps.items()}}
    places = {"left": 0.005, "right": 0.995, "bottom": ROOM / HEIGHT, "top": 0.93, "wspace": 0.04}
    axes = fig.subplots(1, len(pictures), gridspec_kw=places)
    for ax, (name, picture) in zip(axes, pictures.items(), strict=True):
        ax.imshow(picture, interpolation="nearest")
        ax.set_title(name, fontsize=FONT)
        ax.set_axis_off()
    shown = [i for i in torch.cat([each.flatten() for each in maps.values()]).unique().tolist() if i < len(CLASSES)]
    handles = [Patch(facecolor=colors[i], edgecolor="gray", linewidth=0.4, label=CLASSES[i]) for i in shown]
    fig.legend(handles=handles, loc="lower center", ncols=LEGEND_COLUMNS, handlelength=1)
    return fig


class SceneExplorer(Explorer):
    """Controls for what is seen in a scene, and the pictures.

    Args:
        networks: trained on scenes, by name.
        normalization: of their images.

    Attributes:
        parts: the controls.
        widget: all of it, to be displayed.
    """

    def __init__(self, networks: Networks, normalization: Normalization) -> None:
        super().__init__()
        self.parts: dict[str, Any] = {}

        def follow(_: object = None) -> None:
            chosen = {part: control.value for part, control in self.parts.items()}
            self.update(lambda: examined(networks, normalization, **chosen))

        options = (range(100), KINDS, (NOTHING, *VEHICLES), (NOTHING, *CLASSES), COVERS)
        for (part, value), names in zip(FIRST.items(), options, strict=True):
            self.parts[part] = widgets.Dropdown(options=names, value=value, description=part, **named(185))
            self.parts[part].add_class(f"resnotes-explorer-{part}").observe(follow, "value")
        self.widget = widgets.VBox([row(*self.parts.values()), self.status, self.image]).add_class("resnotes-explorer")
        follow()


def explore_scenes(networks: Networks, normalization: Normalization) -> None:
    """Show a `SceneExplorer`; where nobody can use it, the pictures of its first scene.

    Args:
        networks: trained on scenes, by name; they take images ``[N, 3, H, W]`` to logits ``[N, 25, H, W]``.
        normalization: of their images, that of the data set.
    """
    first = examined(networks, normalization, **FIRST)
    show(*first, *([SceneExplorer(networks, normalization).widget] if attended() else []))
