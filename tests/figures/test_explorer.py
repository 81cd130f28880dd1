"""The lesion explorer: what it says against direct computation, its controls, and what is left without a front-end."""

import base64
import copy
import dataclasses
import html
import json
import re
from io import BytesIO
from pathlib import Path

import IPython
import matplotlib.image
import pytest
import torch
from kit.networks import randomise_bn
from kit.notebooks import Lab, executed, request
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from nbclient import NotebookClient

from resnotes import datasets, models
from resnotes.datasets import Classification
from resnotes.errors import UsageError
from resnotes.figures.controls import renderings
from resnotes.figures.examination import Subject, lesioned
from resnotes.figures.explorer import LesionExplorer, choice, draw, explore, tried
from resnotes.models import Network
from resnotes.unravel import Lesion, lesion_errors, lesion_predictions, path_gradients, path_shares

PNG, VIEW = b"\x89PNG", "application/vnd.jupyter.widget-view+json"
NETWORKS = ["preresnet-20", "resnet-20", "bottleneck-29", "plain-20", "vgg-15", "alexnet"]
REORDERED = Lesion(frozenset({4}), (0, 2, 1, 3, 4, 5, 6, 8, 7))


@pytest.fixture(scope="module")
def data() -> Classification:
    """Digits, with 24 test images."""
    digits = datasets.load("digits")
    return dataclasses.replace(digits, test_images=digits.test_images[:24], test_labels=digits.test_labels[:24])


def build(name: str, **options: object) -> Network:
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        network = models.build(name, in_channels=1, width=4, **options)
        randomise_bn(network)
    return network


# What it says


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_error_and_changes_are_those_of_the_sweep(name: str, data: Classification) -> None:
    network = build(name).eval()
    subject = Subject(network, data)
    images, labels = subject.images, subject.labels
    for lesion in [subject.example()] + ([REORDERED] if name.endswith("resnet-20") else []):
        assert lesion.deleted and lesion.deleted <= set(subject.deletable)
        finding = subject.examine(lesion)
        assert [finding.error] == lesion_errors(network, [lesion], images, labels).tolist()
        intact, predicted = lesion_predictions(network, [Lesion(), lesion], images)
        assert torch.equal(finding.predictions, predicted)
        assert subject.changed(finding) == [i for i in range(24) if intact[i] != predicted[i]]
        assert torch.equal(lesioned(network, lesion)(images).argmax(1), predicted)


def test_the_spectrum_is_that_of_the_network_without_the_blocks(data: Classification) -> None:
    """Where the deleted blocks are identities, it has as many units fewer; their shares are all there is."""
    network = build("preresnet-20").eval()
    order = [0, 2, 1, 3, 5, 6, 8, 7]  # without 4, whose shortcut and `after` are identities
    rest = network.with_blocks(network.blocks[i] for i in order)
    subject = Subject(network, data)
    images, labels = subject.images[: subject.traced], subject.labels[: subject.traced]
    assert len(images) == 8
    expected = path_shares(path_gradients(rest, images, labels))["share"].to_numpy()
    assert subject.examine(REORDERED).shares == pytest.approx([*expected, 0], abs=1e-4)


@pytest.mark.parametrize("name", ["resnet-20", "preresnet-20", "vgg-15"])
def test_the_network_is_left_as_it_was(name: str, data: Classification) -> None:
    network = build(name).train()
    before = copy.deepcopy(network.state_dict())
    subject = Subject(network, data)
    subject.examine(subject.example())
    again = subject.examine(Lesion())
    assert again.error == subject.intact.error and (again.shares == subject.intact.shares).all()
    images, labels = subject.images[: subject.traced], subject.labels[: subject.traced]
    whole = path_shares(path_gradients(copy.deepcopy(network).eval(), images, labels))["share"].to_numpy()
    assert again.shares == pytest.approx(whole)
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_without_shortcuts_there_is_one_path_which_grows_shorter(data: Classification) -> None:
    subject = Subject(build("plain-20"), data)
    finding = subject.examine(Lesion(frozenset({1, 4})))
    assert finding.shares is not None and finding.shares.nonzero()[0].tolist() == [7]
    assert subject.summary(finding).endswith("predictions changed, one path, Kendall τ 1.00")


def test_the_summary_counts_paths_and_order(data: Classification) -> None:
    subject = Subject(build("preresnet-20"), data)
    finding = subject.examine(REORDERED)
    assert subject.summary(finding) == (
        f"error {finding.error:.1f} % (intact {subject.intact.error:.1f} %), "
        f"{len(subject.changed(finding))} of 24 predictions changed, 2⁸ paths left of 2⁹, Kendall τ 0.89"
    )


def test_what_needs_no_kernel_is_what_the_network_does(data: Classification) -> None:
    network = build("resnet-14").eval()
    [content] = re.findall('data-lesions="(.*?)"', tried("<net>", Subject(network, data)))
    told = json.loads(html.unescape(content))
    assert (told["name"], sum(told["stages"])) == ("<net>", len(network.blocks))
    assert (len(told["found"]["delete"]), list(told["found"]["swap"])) == (6 + 15, ["0 1"])
    lesions = [Lesion(), Lesion(frozenset({1, 4})), Lesion(order=(1, 0, 2, 3, 4, 5))]
    images, labels = data.sample(24, held=True)
    intact, *predicted = lesion_predictions(network, lesions, images)
    for (act, pair), predictions in zip((("delete", "1 4"), ("swap", "0 1")), predicted, strict=True):
        error, changed = told["found"][act][pair]
        assert error == pytest.approx(100 * (predictions != labels).double().mean().item(), abs=0.05)
        assert changed == (predictions != intact).sum()


# The figure


@pytest.mark.parametrize("name", ["preresnet-20", "alexnet"])
def test_figures_show_the_finding(name: str, data: Classification) -> None:
    data = dataclasses.replace(data, classes=tuple(f"automobile{i}" for i in range(10)))
    subject = Subject(build(name), data)
    finding = subject.examine(subject.example())
    blocks, error, spectrum, *images = draw(subject, finding, "a name").axes
    assert [text.get_text() for text in blocks.texts] == [str(i) for i in range(len(subject.network.blocks))]
    assert [text.get_text() for text in error.texts] == [f"{subject.intact.error:.1f}", f"{finding.error:.1f}"]
    changed = subject.changed(finding)
    assert changed and len(images) == min(12, len(changed))
    for ax, i in zip(images, changed, strict=False):
        was, now = (data.classes[some.predictions[i]] for some in (subject.intact, finding))
        right = finding.predictions[i] == subject.labels[i]
        assert ax.get_title() == data.classes[subject.labels[i]]
        assert ax.get_xlabel().split() == [was, "→", now, "✓" if right else "✗"]
    assert finding.shares is not None
    left = len(subject.network.blocks) - len(finding.lesion.deleted)
    assert list(spectrum.lines[0].get_ydata()) == list(finding.shares[: left + 1])


def test_a_network_that_diverged_can_be_looked_at(data: Classification) -> None:
    network = build("resnet-14")
    torch.nn.init.constant_(network.head[-1].weight, float("nan"))  # type: ignore[index]
    subject = Subject(network, data)
    assert subject.intact.shares is None
    legend = draw(subject, subject.intact, "diverged").axes[2].get_legend()
    assert legend is not None and "not finite" in legend.texts[0].get_text()


# Controls


def test_every_control_changes_figure_and_status(data: Classification) -> None:
    controls = LesionExplorer("deep", Subject(build("preresnet-20"), data))
    seen = {controls.image.value}

    def pressed(button: object) -> Lesion:
        """The lesion after it; figure and status show another."""
        said = controls.status.value
        button.click()  # type: ignore[attr-defined]
        picture = controls.image.value
        assert picture not in seen and controls.status.value != said
        seen.add(picture)
        danger = {i for i, block in enumerate(controls.blocks) if block.button_style == "danger"}
        assert danger == controls.lesion.deleted and controls.count.value == len(danger)
        return controls.lesion

    assert pressed(controls.reset) == Lesion()
    assert "2⁹ paths left of 2⁹, Kendall τ 1.00" in controls.status.value
    assert pressed(controls.blocks[5]) == Lesion(frozenset({5}))
    controls.count.value = 4
    assert len(pressed(controls.again).deleted) == 4
    controls.first.value, controls.second.value = 1, 2
    assert pressed(controls.swap).order == (0, 2, 1, 3, 4, 5, 6, 7, 8)


def test_words_say_what_is_done_and_what_is_shown(data: Classification) -> None:
    controls, said = LesionExplorer("deep", Subject(build("resnet-14"), data)), []
    controls.status.observe(lambda change: said.append(re.sub("<.*?>", "", change["new"])), "value")
    controls.blocks[4].click()
    computing, found = said
    assert computing == "computing ..." and found.startswith("deep: error ")
    assert re.findall('alt="(.*?)"', controls.image.value) == [found, found]


def test_on_black_lightness_is_turned_round_but_for_images() -> None:
    fig = Figure(figsize=(1, 1), layout="none")
    fig.add_axes((0, 0, 0.5, 0.5)).imshow([[0.2]], cmap="gray", vmin=0, vmax=1, aspect="auto")
    fig.add_artist(Rectangle((0, 0.5), 0.5, 0.5, facecolor=(0, 0, 0.5), linewidth=0))
    light, dark = (matplotlib.image.imread(BytesIO(base64.b64decode(file))) for file in renderings(fig).values())
    image, blue, blank = (130, 30), (40, 40), (40, 120)
    assert (dark[image] == light[image]).all() and light[image][0] == pytest.approx(0.2, abs=0.01)
    assert light[blank][:3].tolist() == [1, 1, 1] and dark[blank][:3].tolist() == [0, 0, 0]
    assert dark[blue][:3] == pytest.approx([0.93, 0.93, 1], abs=0.01)  # as light as it was dark, and as blue


def test_what_cannot_be_done_is_said(data: Classification) -> None:
    controls = LesionExplorer("alexnet", Subject(build("alexnet"), data))
    assert [i for i, button in enumerate(controls.blocks) if not button.disabled] == [3, 5]
    assert controls.blocks[0].tooltip == "cannot delete block 0" and controls.count.max == 2
    before = controls.image.value, controls.lesion
    controls.first.value, controls.second.value = 0, 5
    controls.swap.click()
    assert 'role="alert"' in controls.status.value
    assert "blocks 0 and 5 cannot change places" in controls.status.value
    assert (controls.image.value, controls.lesion) == before


def test_one_network_is_seen_at_a_time(data: Classification) -> None:
    network, explorers = choice({name: Subject(build(name), data) for name in ("resnet-14", "plain-14")}).children
    network.value = "plain-14"
    assert explorers.selected_index == 1


# With and without a front-end


@pytest.mark.parametrize("there", [False, True])
def test_what_is_shown(there: bool, data: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: request(allow_stdin=there))
    monkeypatch.setattr("resnotes.figures.controls.display", lambda what, **options: shown.append((what, options)))
    explore({"net": build("resnet-14"), "other": build("plain-20")}, data)
    (bundle, options), (tries, _), *controls = shown
    assert options["raw"] and base64.b64decode(bundle["image/png"]).startswith(PNG)
    assert bundle["text/plain"].startswith("net: error ")
    assert options["metadata"]["image/png"] == {"width": 700, "alt": bundle["text/plain"]}
    assert tries.data.count("<script>") == 2
    assert [VIEW in what._repr_mimebundle_() for what, _ in controls] == [True] * there


def test_what_cannot_be_explored_is_refused(data: Classification) -> None:
    with pytest.raises(UsageError, match="at least one network"):
        explore({}, data)
    with pytest.raises(UsageError, match="Linear"):
        explore({"net": torch.nn.Linear(2, 2)}, data)  # type: ignore[dict-item]


CELL = """
import torch
from resnotes import datasets, models
from resnotes.figures.explorer import explore

explore({"tiny": models.build("resnet-14", in_channels=1, width=2)}, datasets.load("digits"))
"""


@pytest.mark.parametrize("client", [NotebookClient, Lab])
def test_a_notebook(client: type[NotebookClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(CELL, tmp_path, monkeypatch, client)
    output, tries, *controls = notebook.cells[0].outputs
    attends = client is Lab
    assert output.output_type == "display_data" and set(output.data) == {"image/png", "text/plain"}
    assert "data-lesions" in tries.data["text/html"]
    assert [VIEW in each.data for each in controls] == [True] * attends
    assert base64.b64decode(output.data["image/png"]).startswith(PNG)
    assert ("widgets" in notebook.metadata) is attends, "no widgets are made where nobody sees them"
