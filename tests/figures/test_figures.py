import json
import os
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from resnotes import figures
from resnotes.errors import UsageError
from resnotes.figures.saving import VARIABLE


@pytest.fixture(autouse=True)
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("RESNOTES_OUT", str(tmp_path / "out"))
    return tmp_path / "out"


def curve():
    fig, ax = plt.subplots()
    image = ax.scatter([0, 1, 2], [3, 1, 2], c=[1, 2, 3])
    ax.set(xlabel="iteration", ylabel="training error (%)")
    fig.colorbar(image, label="depth")
    return fig


def save(fig, name="degradation", **changes):
    fields = {
        "caption": "Deeper [plain] nets",
        "caption_zh": "更深的网络",
        "claims": ["a.b"],
        "data": pd.DataFrame({"iteration": [0, 1], "error": [90.0, np.nan], "net": ["plain-20", "plain-56"]}),
        "parameters": {"seeds": (0, 1)},
    }
    return figures.save(fig, name, **{**fields, **changes})


def test_what_is_not_asked_for_is_not_drawn(out, monkeypatch):
    for asked, kinds in (
        ("pdf,svg", ["json", "pdf", "png", "svg"]),
        (" svg ", ["json", "png", "svg"]),
        ("", ["json", "png"]),
    ):
        monkeypatch.setenv(VARIABLE, asked)
        save(curve())
        assert sorted(path.suffix[1:] for path in (out / "figures").iterdir()) == kinds
    monkeypatch.setenv(VARIABLE, "png,jpg")
    with pytest.raises(UsageError, match="unknown format 'jpg'; allowed: png, pdf, svg"):
        save(curve())


def test_the_same_figure_gives_the_same_bytes(out, monkeypatch):
    monkeypatch.setenv(VARIABLE, "pdf,svg")
    first, again = curve(), curve()
    written = []
    for fig in (first, first, again):
        save(fig)
        written.append([(out / f"figures/degradation.{kind}").read_bytes() for kind in ("png", "pdf", "svg", "json")])
    assert written[0] == written[1] == written[2]


def test_another_users_process_draws_the_same_bytes(out, tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, "svg")
    save(curve())
    here = Path(__file__)
    theirs = tmp_path / "matplotlibrc"
    settings = ["text.usetex: True", "font.size: 20", "figure.constrained_layout.use: False", "path.sketch: 1, 100, 2"]
    settings += ["savefig.bbox: tight", "savefig.transparent: True", "svg.fonttype: none", "image.cmap: gray"]
    theirs.write_text("\n".join(settings))
    program = f"import sys; sys.path.insert(0, {str(here.parent)!r}); import {here.stem} as t; t.figures.use_style(); "
    environment = {"RESNOTES_OUT": str(tmp_path / "again"), "PYTHONHASHSEED": "7", "MPLBACKEND": "agg"}
    environment["MATPLOTLIBRC"] = str(theirs)
    command = [sys.executable, "-c", program + "t.save(t.curve())"]
    subprocess.run(command, env={**os.environ, **environment}, cwd=here.parents[2], check=True)
    for kind in ("png", "svg"):
        again = (tmp_path / f"again/figures/degradation.{kind}").read_bytes()
        assert again == (out / f"figures/degradation.{kind}").read_bytes()


def test_sidecar_says_what_is_drawn(out):
    sidecar = json.loads(save(curve()).with_suffix(".json").read_text())
    assert sidecar["caption"] == {"en": "Deeper [plain] nets", "zh": "更深的网络"}
    assert sidecar["claims"] == ["a.b"] and sidecar["parameters"] == {"seeds": [0, 1]}
    assert sidecar["data"] == {"iteration": [0, 1], "error": [90.0, None], "net": ["plain-20", "plain-56"]}
    assert {"name", "commit", "dirty", "version"} <= set(sidecar)


def test_sidecar_of_several_frames_keeps_named_indices(out):
    frame = pd.DataFrame({"std": np.float32([0.5, np.inf])}, index=pd.Index([1, 2], name="layer"))
    sidecar = json.loads(save(curve(), data={"ordered": frame, "ranked": frame}).with_suffix(".json").read_text())
    assert sidecar["data"] == {key: {"layer": [1, 2], "std": [0.5, None]} for key in ("ordered", "ranked")}


@pytest.mark.parametrize("name", ["", "a/b", "../a", "A", "a.png"])
def test_save_refuses_names_that_are_no_slug(name):
    with pytest.raises(UsageError, match="figure name"):
        save(curve(), name)


def test_labels_are_spoken() -> None:
    assert figures.readable("vgg-15 batch_norm=True width=16") == "vgg-15 with BN"
    assert figures.readable("preresnet-20 batch_norm=False alpha=0.333") == "preresnet-20 without BN, α = 0.333"
    assert figures.readable("resnet-56 shortcut=scaling:0.5,1") == "resnet-56 shortcut=scaling:0.5,1"


def test_networks_look_alike_by_family_and_differ_by_depth():
    styles = {name: figures.style_for(name) for name in ("plain-20", "plain-56", "resnet-20", "resnet-56")}
    assert styles["plain-56"] == {"color": "#d55e00", "linestyle": "-"}
    assert styles["resnet-56"] == {"color": "#0072b2", "linestyle": "-"}
    assert figures.style_for("preresnet-56")["color"] == "#009e73"
    assert len({tuple(style.values()) for style in styles.values()}) == 4
    brightness = [sum(to_rgb(figures.style_for(f"plain-{depth}")["color"])) for depth in (20, 32, 44, 56, 110)]
    assert brightness == sorted(brightness, reverse=True)
    assert figures.style_for("resnet18")["linestyle"] == "--"
    with pytest.raises(UsageError, match="plain, resnet, preresnet"):
        figures.style_for("transformer-12")


@pytest.mark.parametrize("geometric", [False, True])
def test_bands_are_mean_and_range_over_seeds(geometric):
    frame = pd.DataFrame({"x": [1, 1, 2, 2], "y": [1.0, 100.0, 4.0, 4.0], "kind": "plain-20"})
    fig, ax = plt.subplots()
    figures.bands(ax, frame, x="x", y="y", by="kind", geometric=geometric)
    (line,), (band,) = ax.lines, ax.collections
    assert line.get_label() == "plain-20"
    np.testing.assert_allclose(line.get_xydata(), [(1, 10 if geometric else 50.5), (2, 4)])
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices}
    assert {(1, 1), (1, 100), (2, 4)} <= corners
    plt.close(fig)
