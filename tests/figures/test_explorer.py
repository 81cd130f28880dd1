"""The lesion explorer: what it says against direct computation, its controls, and what is left without a front-end."""

import base64
import copy
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import IPython
import pytest
import torch
from ipywidgets import Widget
from kit.networks import randomise_bn
from kit.notebooks import Lab, executed, request
from nbclient import NotebookClient

from resnotes import datasets, models
from resnotes.datasets import Classification
from resnotes.errors import UsageError
from resnotes.figures import explorer
from resnotes.figures.examination import Subject, lesioned, swapped
from resnotes.figures.explorer import Explorer, draw, explore
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


@pytest.fixture
def controls(data: Classification) -> Iterator[Explorer]:
    made = Explorer({"deep": Subject(build("preresnet-20"), data), "plain": Subject(build("plain-20"), data)})
    yield made
    Widget.close_all()


# What it says


@pytest.mark.parametrize("name", NETWORKS)
def test_error_and_changes_are_those_of_the_sweep(name: str, data: Classification) -> None:
    network = build(name)
    subject = Subject(network, data)
    images = data.normalization(data.test_images)
    lesion = subject.example()
    assert lesion.deleted and lesion.deleted <= set(subject.deletable)
    outcome = subject.examine(lesion)
    (error,) = lesion_errors(network, [lesion], images, data.test_labels).tolist()
    intact, predicted = lesion_predictions(network, [Lesion(), lesion], images)
    assert outcome.error == error
    assert torch.equal(outcome.predictions, predicted)
    assert subject.changed(outcome) == [i for i in range(24) if intact[i] != predicted[i]]
    assert subject.changed(subject.examine(Lesion())) == []


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_a_lesioned_network_computes_what_the_sweep_does(name: str, data: Classification) -> None:
    network = build(name).eval()
    images = data.normalization(data.test_images)
    subject = Subject(network, data)
    lesions = [subject.example()] + ([REORDERED] if name.endswith("resnet-20") else [])
    for lesion in lesions:
        predicted = lesioned(network, lesion)(images).argmax(1)
        assert torch.equal(predicted, lesion_predictions(network, [lesion], images)[0])


def test_the_spectrum_is_that_of_the_network_without_the_blocks(data: Classification) -> None:
    """Where the deleted blocks are identities, it has as many units fewer; their shares are all there is."""
    network = build("preresnet-20").eval()
    order = [0, 2, 1, 3, 5, 6, 8, 7]  # without 4, whose shortcut and `after` are identities
    rest = Network(
        network.stem, [network.blocks[i] for i in order], network.head, stages=(3, 2, 3), name="rest", options={}
    )
    subject = Subject(network, data)
    images, labels = subject.images[subject.traced], subject.labels[subject.traced]
    assert len(images) == 8
    expected = path_shares(path_gradients(rest, images, labels))["share"].to_numpy()
    shares = subject.examine(REORDERED).shares
    assert shares == pytest.approx([*expected, 0], abs=1e-4)


@pytest.mark.parametrize("name", ["resnet-20", "preresnet-20", "vgg-15"])
def test_intact_again(name: str, data: Classification) -> None:
    network = build(name).train()
    before = copy.deepcopy(network.state_dict())
    subject = Subject(network, data)
    subject.examine(subject.example())
    again = subject.examine(Lesion())
    assert again.error == subject.intact.error and (again.shares == subject.intact.shares).all()
    images, labels = subject.images[subject.traced], subject.labels[subject.traced]
    whole = path_shares(path_gradients(copy.deepcopy(network).eval(), images, labels))["share"].to_numpy()
    assert again.shares == pytest.approx(whole)
    assert network.training and all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_without_shortcuts_there_is_one_path_which_grows_shorter(data: Classification) -> None:
    subject = Subject(build("plain-20"), data)
    lesion = Lesion(frozenset({1, 4}))
    shares = subject.examine(lesion).shares
    assert shares is not None and shares.nonzero()[0].tolist() == [7] and shares[7] == pytest.approx(1)
    assert subject.structure(lesion) == "one path, Kendall τ 1.00"


def test_the_summary_counts_paths_and_order(data: Classification) -> None:
    subject = Subject(build("preresnet-20"), data)
    outcome = subject.examine(REORDERED)
    assert subject.summary(outcome) == (
        f"error {outcome.error:.1f} % (intact {subject.intact.error:.1f} %), "
        f"{len(subject.changed(outcome))} of 24 predictions changed, 2⁸ paths left of 2⁹, Kendall τ 0.89"
    )


def test_only_the_first_images_are_looked_at(data: Classification) -> None:
    subject = Subject(build("resnet-14"), data, images=10, traced=3)
    assert len(subject.intact.predictions) == 10 and len(subject.traced) == 3
    for wrong in ({"images": 0}, {"traced": 0}, {"images": 2, "traced": 3}):
        with pytest.raises(UsageError, match="at least one image"):
            Subject(build("resnet-14"), data, **wrong)


def test_other_networks_are_refused(data: Classification) -> None:
    with pytest.raises(UsageError, match="expected a network of stem, blocks and head, found Linear"):
        Subject(torch.nn.Linear(2, 2), data)  # type: ignore[arg-type]


# Swaps


def test_swaps_undo_each_other() -> None:
    groups = [(0, 1, 2), (3,), (4, 5)]
    once = swapped(Lesion(frozenset({1})), 0, 2, groups)
    assert once == Lesion(frozenset({1}), (2, 1, 0, 3, 4, 5))
    assert swapped(once, 2, 1, groups).order == (1, 2, 0, 3, 4, 5), "blocks, not places"
    assert swapped(once, 2, 0, groups) == Lesion(frozenset({1}))
    assert swapped(Lesion(), 1, 1, groups) == Lesion()


def test_unequal_blocks_are_not_swapped() -> None:
    groups = [(0, 1, 2, 5), (3,), (4,)]
    with pytest.raises(UsageError, match=r"^blocks 1 and 4 cannot change places, .*; block 1 can with 0, 2, 5$"):
        swapped(Lesion(), 1, 4, groups)
    with pytest.raises(UsageError, match="block 3 can with no other"):
        swapped(Lesion(), 3, 0, groups)


# The figure


@pytest.mark.parametrize(("name", "labels"), [("preresnet-20", "digits"), ("alexnet", "words")])
def test_figures_show_the_outcome(name: str, labels: str, data: Classification) -> None:
    if labels == "words":
        data = dataclasses.replace(data, classes=tuple(f"automobile{i}" for i in range(10)))
    subject = Subject(build(name), data)
    outcome = subject.examine(subject.example())
    fig = draw(subject, outcome, "a name")
    fig.draw_without_rendering()
    blocks, error, changes, spectrum = fig.axes
    numbers = [text.get_text() for text in blocks.texts if text.get_text().isdigit()]
    assert numbers == [str(i) for i in range(len(subject.network.blocks))]
    assert [text.get_text() for text in error.texts] == [f"{subject.intact.error:.1f}", f"{outcome.error:.1f}"]
    changed = subject.changed(outcome)
    assert changed and len(changes.images) == min(12, len(changed))
    first = changed[0]
    was, now = (data.classes[some.predictions[first]] for some in (subject.intact, outcome))
    right = outcome.predictions[first] == data.test_labels[first]
    assert changes.texts[0].get_text() == data.classes[data.test_labels[first]]
    assert changes.texts[1].get_text().split() == [was, "→", now, "✓" if right else "✗"]
    assert outcome.shares is not None
    left = len(subject.network.blocks) - len(outcome.lesion.deleted)
    assert list(spectrum.lines[0].get_ydata()) == list(outcome.shares[: left + 1])


def test_a_network_that_diverged_can_be_looked_at(data: Classification) -> None:
    network = build("resnet-14")
    torch.nn.init.constant_(network.head[-1].weight, float("nan"))  # type: ignore[index]
    subject = Subject(network, data)
    assert subject.intact.shares is None
    spectrum = draw(subject, subject.intact, "diverged").axes[-1]
    assert "not finite" in spectrum.get_legend().texts[0].get_text()  # type: ignore[union-attr]


# Controls


def test_every_control_changes_figure_and_status(controls: Explorer) -> None:
    assert {i for i, button in enumerate(controls.blocks) if button.value} == controls.lesion.deleted != set()

    def changes(act: object, *arguments: object) -> None:
        before = bytes(controls.image.value), controls.status.value
        act(*arguments)  # type: ignore[operator]
        assert bytes(controls.image.value).startswith(PNG)
        assert controls.image.value != before[0] and controls.status.value != before[1]

    changes(controls.reset.click)
    assert controls.lesion == Lesion() and controls.count.value == 0
    assert "2⁹ paths left of 2⁹, Kendall τ 1.00" in controls.status.value
    changes(setattr, controls.blocks[5], "value", True)
    assert controls.lesion.deleted == {5} and controls.count.value == 1
    assert controls.blocks[5].button_style == "danger"
    changes(setattr, controls.count, "value", 4)
    assert len(controls.lesion.deleted) == 4 == sum(button.value for button in controls.blocks)
    drawn = controls.lesion
    controls.again.click()
    assert len(controls.lesion.deleted) == 4 and controls.lesion != drawn
    controls.first.value, controls.second.value = 1, 2
    changes(controls.swap.click)
    assert controls.lesion.order == (0, 2, 1, 3, 4, 5, 6, 7, 8) and len(controls.lesion.deleted) == 4
    changes(setattr, controls.network, "value", "plain")
    assert controls.lesion == controls.subject.example()
    assert controls.subject.network.name == "plain-20"


def test_what_cannot_be_done_is_said(controls: Explorer) -> None:
    controls.reset.click()
    before = controls.image.value
    controls.first.value, controls.second.value = 1, 4
    controls.swap.click()
    assert 'role="alert"' in controls.status.value
    assert "blocks 1 and 4 cannot change places" in controls.status.value
    assert controls.image.value == before and controls.lesion == Lesion()


def test_blocks_that_cannot_go_have_no_button_to_press(data: Classification) -> None:
    controls = Explorer({"alexnet": Subject(build("alexnet"), data)})
    assert [i for i, button in enumerate(controls.blocks) if not button.disabled] == [3, 5]
    assert controls.blocks[0].tooltip.startswith("block 0 cannot be deleted: ")
    assert controls.count.max == 2


def test_parts_can_be_found(controls: Explorer) -> None:
    for part in ("network", "count", "again", "first", "second", "swap", "reset", "status", "image"):
        assert f"resnotes-explorer-{part}" in getattr(controls, part)._dom_classes
    assert [button._dom_classes for button in controls.blocks] == [(f"resnotes-block-{i}",) for i in range(9)]


# With and without a front-end


@pytest.mark.parametrize("there", [False, True])
def test_what_is_shown(there: bool, data: Classification, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: request(allow_stdin=there))
    monkeypatch.setattr(explorer, "display", lambda bundle, **options: shown.append((bundle, options)))
    explore({"net": build("resnet-14"), "other": build("plain-20")}, data)
    ((bundle, options),) = shown
    assert options["raw"] and base64.b64decode(bundle["image/png"]).startswith(PNG)
    assert bundle["text/plain"].startswith("net: error ")
    assert (VIEW in bundle) is there
    Widget.close_all()
    with pytest.raises(UsageError, match="at least one network"):
        explore({}, data)


CELL = """
import torch
from resnotes import datasets, models
from resnotes.figures.explorer import explore

explore({"tiny": models.build("resnet-14", in_channels=1, width=2)}, datasets.load("digits"), images=20)
"""


@pytest.mark.parametrize("client", [NotebookClient, Lab])
def test_a_notebook(client: type[NotebookClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notebook = executed(CELL, tmp_path, monkeypatch, client)
    (output,) = notebook.cells[0].outputs
    attends = client is Lab
    assert output.output_type == "display_data"
    assert set(output.data) == {"image/png", "text/plain"} | ({VIEW} if attends else set())
    assert base64.b64decode(output.data["image/png"]).startswith(PNG)
    assert ("widgets" in notebook.metadata) is attends, "no widgets are made where nobody sees them"
