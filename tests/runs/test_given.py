"""A reader's network and images: every form of naming them, what does not apply is said, what is wrong is refused."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from kit.networks import randomise_bn
from PIL import Image
from torch import nn

from resnotes import datasets, models, unravel
from resnotes.book import notebooks
from resnotes.datasets import folders
from resnotes.errors import DatasetError, ResnotesError, UsageError
from resnotes.runs.given import given

MODULE = """
import torch
from torch import nn
from torchvision.models import VisionTransformer
from resnotes.models import Block, Network, build


def bare(num_classes, in_channels):
    "Every block halves the map, and there is no BN."
    branches = [nn.Sequential(nn.ReLU(), nn.Conv2d(c, 2 * c, 3, 2, 1)) for c in (4, 8)]
    blocks = [Block(branch, nn.Conv2d(c, 2 * c, 1, 2), nn.Identity()) for c, branch in zip((4, 8), branches)]
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, num_classes))
    return Network(nn.Conv2d(in_channels, 4, 3), blocks, head)


def flat(num_classes, in_channels):
    return build("preresnet-8", num_classes=num_classes, in_channels=in_channels, width=4, batch_norm=False)


def vit(num_classes):
    model = VisionTransformer(16, 4, 2, 4, 32, 64, num_classes=num_classes)
    nn.init.normal_(model.heads.head.weight)
    return model


def odd():
    return 3


def regressor(in_channels):
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(0))
    branch = nn.Conv2d(1, 1, 3, padding=1)
    return Network(nn.Conv2d(in_channels, 1, 3), [Block(branch, nn.Identity(), nn.Identity())], head)


def broken():
    raise ValueError("no")


constant = 3
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of somebody's."""
    (tmp_path / "somebodys.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "somebodys", raising=False)
    torch.manual_seed(0)
    return "somebodys"


def executed(capsys: pytest.CaptureFixture[str], **parameters: object) -> str:
    """What the cells of notebook 06 print."""
    [book] = notebooks.select(["06"])
    names: dict[str, object] = {}
    for cell in notebooks.read(book.path).cells:
        if cell.cell_type == "code":
            exec(compile(cell.source, cell.id, "exec"), names)  # a kernel would take ten seconds to start
            names |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
    return capsys.readouterr().out


ASKED = ["deletion-is-gentle", "half-is-stale", "deep-runs", "exchange", "short-paths", "branches", "lens", "angle"]


@pytest.mark.parametrize(
    ("network", "lacks"),
    [
        ("torchvision:resnet18", ["half-is-stale", "lens"]),
        ("vit", ["half-is-stale"]),
        ("bare", ["deletion-is-gentle", "half-is-stale", "deep-runs", "exchange", "branches", "lens", "angle"]),
        ("flat", ["half-is-stale", "deep-runs", "exchange", "lens", "angle"]),
    ],
)
def test_the_notebook_asks_what_applies_and_says_what_does_not(
    mine: str, capsys: pytest.CaptureFixture[str], network: str, lacks: list[str]
) -> None:
    said = executed(capsys, network=network if ":" in network else f"{mine}:{network}", images=6)
    assert said.count("Not asked: ") == len(lacks)
    for claim in ASKED:
        assert (f"yours.{claim}" in said) == (claim not in lacks), claim


def test_a_network_of_torchvisions_with_weights_answers_for_itself(tmp_path: Path) -> None:
    model = torchvision.models.resnet18(num_classes=7)
    randomise_bn(model)
    torch.save(model.state_dict(), tmp_path / "mine.pth")
    found = given("torchvision:resnet18", "digits", images=2, weights=str(tmp_path / "mine.pth"))
    sample, _ = datasets.load("digits").sample(2, held=True, raw=True)
    larger = torchvision.transforms.functional.resize(sample.float(), [224, 224], antialias=True).round() / 255
    images = torchvision.transforms.functional.normalize(larger.expand(-1, 3, -1, -1), *IMAGENET)
    torch.testing.assert_close(found.images, images, rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        expected = model.eval()(images)
    torch.testing.assert_close(found.network(found.images).detach(), expected, rtol=1e-3, atol=1e-3)
    assert found.own_answers and found.labels.tolist() == expected.argmax(1).tolist()
    assert (found.scope, found.iterations, found.dataset) == ("recorded", None, "digits, own answers")


IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("normalization", "mean", "std"),
    [("imagenet", *IMAGENET), ("none", (0, 0, 0), (1, 1, 1)), ("channels", None, None)],
)
def test_images_are_normalised_and_sized_as_a_reader_says(
    tmp_path: Path, normalization: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> None:
    torch.save(torchvision.models.resnet18(num_classes=10).state_dict(), tmp_path / "mine.pth")
    options = {"weights": str(tmp_path / "mine.pth"), "normalization": normalization, "size": 12}
    found = given("torchvision:resnet18", "digits", images=2, **options)  # type: ignore[arg-type]
    data = datasets.load("digits")
    shown = torch.cat([data.sample(count, held=held, raw=True)[0] for count, held in ((2, True), (256, False))])
    larger = torchvision.transforms.functional.resize(shown.float(), [12, 12], antialias=True).round() / 255
    larger = larger.expand(-1, 3, -1, -1)
    if mean is None:
        mean, std = larger.mean((0, 2, 3)).tolist(), larger.std((0, 2, 3), unbiased=False).tolist()
    expected = torchvision.transforms.functional.normalize(larger, mean, std)
    torch.testing.assert_close(torch.cat([found.images, found.repair]), expected, rtol=1e-3, atol=1e-3)
    assert not found.own_answers


def test_names_are_relative_to_where_the_command_was_called(
    mine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESNOTES_CALLED_FROM", str(folder(tmp_path / "here", ("photos",), (8,)).resolve()))
    assert given(f"{mine}:flat", "photos", images=2).dataset == "photos"
    with pytest.raises(UsageError, match=f"unknown data 'other'; .*none at {tmp_path}/here/other"):
        given(f"{mine}:flat", "other", images=2)


@pytest.mark.parametrize("option", [{"normalization": "none"}, {"size": 32}, {"weights": "mine.pth"}])
def test_what_a_network_has_is_not_said_again(option: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"run:preresnet-8 has its own {next(iter(option))}, found .*; leave it out"):
        given("run:preresnet-8", "digits", images=2, **option)
    with pytest.raises(UsageError, match="unknown normalization 'imagenett'; allowed: imagenet, none, channels"):
        given("torchvision:resnet18", "digits", images=2, normalization="imagenett")


def test_a_run_is_that_of_the_study_which_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    class Store:
        def get(self, spec):  # type: ignore[no-untyped-def]
            asked.append(spec)
            network = models.build(spec.model, num_classes=10, in_channels=1, **spec.options)
            return type("Run", (), {"model": lambda self: network})()

    monkeypatch.setattr("resnotes.runs.given.RunStore", Store)
    for label in ("preresnet-20", "preresnet-8", "vit-6 width=32 mlp_ratio=2"):
        found = given(f"run:{label}", "digits", images=3)
        assert (found.name, len(found.images), len(found.repair), found.own_answers) == (label, 3, 256, False)
    assert [spec.recipe.iterations for spec in asked] == [33, 132, 132], "of flow-shallow, degradation and warm-up"
    assert asked[2].recipe.lr == 0.003, "the first rate of a study that has several"


def folder(root: Path, parts: tuple[str, ...], sizes: tuple[int, ...]) -> Path:
    """Three images a class and part, each of one grey."""
    for p, part in enumerate(parts):
        for c, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            for i, size in enumerate((3 * sizes)[:3]):
                grey = np.full((size, size + (size > 300), 3), 100 * p + 10 * c + i, np.uint8)
                Image.fromarray(grey).save(root / part / name / f"{i}.png")
    return root


def test_a_folder_of_classes_is_read_evenly_and_no_image_twice(tmp_path: Path) -> None:
    flat = folders.load(folder(tmp_path / "flat", ("",), (8,)), train=9, test=2)
    assert (flat.classes, flat.variant, flat.sizes) == (("a", "b"), "flat", (4, 2))
    greys = [images[:, 0, 0, 0].tolist() for images in (flat.test_images, flat.train_images)]
    assert greys == [[0, 10], [1, 2, 11, 12]]
    assert (flat.test_labels.tolist(), flat.train_labels.tolist()) == ([0, 1], [0, 0, 1, 1])
    split = folders.load(folder(tmp_path / "split", ("train", "test"), (8, 16, 400)), train=2, test=6)
    assert split.test_images.shape == (6, 3, 256, 256) and split.train_images.shape[0] == 2
    assert split.test_images[:, 0, 0, 0].tolist() == [100, 101, 102, 110, 111, 112]
    (tmp_path / "flat/a/1.png").write_bytes(b"no image")
    with pytest.raises(DatasetError, match=r"a/1\.png is damaged"):
        folders.load(tmp_path / "flat", train=9, test=2)
    with pytest.raises(DatasetError, match="expected a folder of PNG, JPEG or BMP files for each class"):
        folders.load(tmp_path / "flat" / "b", train=9, test=2)


def test_a_folder_is_given_to_a_network(mine: str, tmp_path: Path) -> None:
    found = given(f"{mine}:vit", str(folder(tmp_path / "images", ("",), (40, 50))), images=4)
    assert (found.images.shape[1:], found.own_answers) == ((3, 16, 16), False)
    assert "images resized to 16x16 pixels" in found.remarks
    assert unravel.single_deletions(found.network) and isinstance(found.model, nn.Module)


@pytest.mark.parametrize(
    ("network", "data", "weights", "said"),
    [
        ("resnet18", "digits", "", "network 'resnet18' is of no known form; allowed: run:LABEL, published:"),
        ("run:resnet-21", "digits", "", "resnet-21"),
        ("run:resnet-20", "cifar10", "", "run:resnet-20 was trained on digits; found data='cifar10'"),
        ("run:resnet-20", "digits", "x.pth", "has its own weights"),
        ("published:nobody/resnet-20", "cifar10", "", "allowed: .*wooyeolBaek/resnet-20"),
        ("published:wooyeolBaek/resnet-20", "digits", "", "was trained on cifar10; found data='digits'"),
        ("torchvision:alexnet", "digits", "", "unknown network of torchvision 'alexnet'; allowed: resnet101"),
        ("torchvision:resnet18", "nowhere", "", "unknown data 'nowhere'; allowed: digits, cifar10, .*a folder"),
        ("torchvision:resnet18", "scenes", "", "unknown data 'scenes'"),
        ("torchvision:resnet18", "digits", "/nowhere.pth", "cannot read the weights /nowhere.pth"),
        ("nowhere:build", "digits", "", "network=nowhere:build cannot be called .ModuleNotFoundError"),
        ("somebodys:nothing", "digits", "", "has no attribute 'nothing'"),
        ("somebodys:constant", "digits", "", "TypeError: 3 is not a callable object"),
        ("somebodys:broken", "digits", "", "ValueError: no"),
        ("somebodys:odd", "digits", "", "returned a int, expected a torch.nn.Module"),
        ("somebodys:regressor", "digits", "", r"regressor puts out \[2\], expected logits of images: \[2, classes\]"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_allowed(
    mine: str, network: str, data: str, weights: str, said: str
) -> None:
    with pytest.raises(ResnotesError, match=said) as caught:
        given(network, data, images=2, weights=weights)
    assert "\n" not in str(caught.value)


def test_images_and_weights_that_do_not_fit_are_refused(mine: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected at least 1 image, found 0"):
        given("torchvision:resnet18", "digits", images=0)
    torch.save({"a": torch.ones(3)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match=r"other\.pth do not fit somebodys:vit: .*Missing key"):
        given(f"{mine}:vit", "digits", images=2, weights=str(tmp_path / "other.pth"))
