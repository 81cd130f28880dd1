"""The scene explorer: what it says against direct computation, its controls, and what is left without a front-end."""

import base64
import re

import IPython
import numpy as np
import pytest
import torch
from kit.notebooks import request
from torch import nn

from resnotes.datasets import Normalization
from resnotes.datasets.scenes import CLASSES, composed
from resnotes.failures import covered
from resnotes.figures.scene_explorer import FIRST, SceneExplorer, examined, explore_scenes

NORMALIZATION = Normalization.by_channel(composed("harbour", "boat").image[None])
VIEW = "application/vnd.jupyter.widget-view+json"


def always(name: str) -> nn.Module:
    """A network that calls every pixel so."""
    network = nn.Conv2d(3, len(CLASSES), 1)
    nn.init.zeros_(network.weight)
    network.bias.data = nn.functional.one_hot(torch.tensor(CLASSES.index(name)), len(CLASSES)).float()
    return network


NETWORKS = {"of sky": always("sky"), "of water": always("water")}


@pytest.mark.parametrize(
    ("removed", "cover"), [("crane", "mean"), ("crane", "patch"), ("crane", "sham"), ("bed", "mean")]
)
def test_picture_and_words_are_those_of_the_covered_scene(removed: str, cover: str) -> None:
    scene = composed("harbour", "car", 4)
    image, counted = scene.image, torch.ones(64, 64, dtype=torch.bool)
    if removed == "crane":  # there is no bed in a harbour
        covers, _ = covered(image, scene.label == CLASSES.index("crane"), np.random.default_rng(4))
        image = covers[["mean", "patch", "sham"].index(cover)]
        counted = (image == scene.image).all(0)
    choice = {"scene": 4, "backdrop": "harbour", "vehicle": "car", "removed": removed, "cover": cover}
    figure, text = examined(NETWORKS, NORMALIZATION, **choice)  # type: ignore[arg-type]

    shares = [100 * float((scene.label[counted] != CLASSES.index(name)).double().mean()) for name in ("sky", "water")]
    done = f"crane covered ({cover})" if removed == "crane" else "nothing covered"
    wrong = f"of sky {shares[0]:.1f} %, of water {shares[1]:.1f} %"
    assert text == f"harbour 4, car put in, {done}; wrong pixels: {wrong}"
    shown, truth, *answers = (ax.images[0].get_array() for ax in figure.axes)
    assert np.array_equal(shown, image.permute(1, 2, 0))
    assert np.array_equal((truth == 1).all(-1), ~counted), "what does not count is white"
    assert [len(np.unique(answer.reshape(-1, 3), axis=0)) for answer in answers] == [1, 1]


def test_every_control_changes_picture_and_words() -> None:
    explorer = SceneExplorer(NETWORKS, NORMALIZATION)
    seen = {explorer.image.value}
    for part, value in {
        "scene": 3,
        "backdrop": "street",
        "vehicle": "bus",
        "removed": "road",
        "cover": "patch",
    }.items():
        explorer.parts[part].value = value
        assert explorer.image.value not in seen
        seen.add(explorer.image.value)
        (said,) = set(re.findall('alt="(.*?)"', explorer.image.value))
        assert said in explorer.status.value
    assert said.startswith("street 3, bus put in, road covered (patch); wrong pixels: of sky ")


@pytest.mark.parametrize("there", [False, True])
def test_what_is_shown(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: request(allow_stdin=there))
    monkeypatch.setattr("resnotes.figures.controls.display", lambda what, **options: shown.append(what))
    explore_scenes(NETWORKS, NORMALIZATION)
    bundle, *controls = shown
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert bundle["text/plain"] == examined(NETWORKS, NORMALIZATION, **FIRST)[1]
    assert [VIEW in each._repr_mimebundle_() for each in controls] == ([True] if there else [])
