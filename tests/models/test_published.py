"""Networks that others trained, in our classes: known errors on real images, files, mirrors, curves."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from kit.cifar10 import as_folder
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import datasets, models, paths
from resnotes.datasets import Classification, cifar10
from resnotes.errors import DatasetError, UsageError
from resnotes.models import Published
from resnotes.models.network import Network
from resnotes.models.published_networks import _entries, fetch, from_published, is_at_hand, names, read_weights, status
from resnotes.training.classification import evaluate

DEPTHS = (20, 32, 44, 56)


def real(name: str) -> Published:
    """The published network, where its file is at hand."""
    if not os.environ.get("RESNOTES_DATA") or not is_at_hand(name):
        pytest.skip(f"RESNOTES_DATA names no folder with the weights of {name}")
    return models.published(name)


def error(network: Published, images: Tensor, labels: Tensor) -> float:
    return evaluate(network.network, images, labels, network.normalization).error


# Errors in percent that were measured apart from this code: on the 5,000 images that the author kept out, on which the
# author's own logs have the same, and on the first 1,000 test images.
KNOWN = {
    ("plain", 20): (8.84, 8.9),
    ("plain", 32): (10.18, 9.7),
    ("plain", 44): (11.58, 12.1),
    ("plain", 56): (11.70, 11.6),
    ("resnet", 20): (9.14, 6.7),
    ("resnet", 32): (8.32, 8.6),
    ("resnet", 44): (8.22, 7.6),
    ("resnet", 56): (6.68, 6.3),
}


@pytest.mark.parametrize(("family", "depth"), KNOWN)
def test_baeks_networks_reach_the_known_errors(family: str, depth: int, real_cifar10: Classification) -> None:
    found = real(f"wooyeolBaek/{family}-{depth}")
    assert found.network.name == f"{family}-{depth}"
    assert not found.network.training
    heldout, test = KNOWN[family, depth]
    images, labels = found.heldout(real_cifar10)
    assert len(labels) == 5000
    assert error(found, images, labels) == pytest.approx(heldout, abs=0.05)
    if len(real_cifar10.test_labels) == 1000:
        assert error(found, real_cifar10.test_images, real_cifar10.test_labels) == pytest.approx(test, abs=0.05)


@pytest.mark.parametrize(("depth", "known"), [(20, 8.5), (56, 7.4)])
def test_akamasters_networks_reach_the_known_errors(depth: int, known: float, real_cifar10: Classification) -> None:
    found = real(f"akamaster/resnet-{depth}")
    images, labels = found.heldout(real_cifar10)
    assert torch.equal(images, real_cifar10.test_images)
    assert len(found.trained_on(real_cifar10)[1]) == 50_000
    if len(labels) != 1000:
        pytest.skip("the known errors are those of the first 1,000 test images")
    assert error(found, images, labels) == pytest.approx(known, abs=0.05)


def test_a_published_network_has_trained_on_its_training_images(real_cifar10: Classification) -> None:
    """Else the mean, or the split, would be another's: clean errors far below those on images it has not seen."""
    found = real("wooyeolBaek/plain-20")
    images, labels = found.trained_on(real_cifar10)
    assert len(labels) == 45_000
    assert error(found, images[::20], labels[::20]) < 1


def test_the_kept_mean_is_that_of_the_images_outside_the_split(real_cifar10: Classification) -> None:
    found = real("wooyeolBaek/plain-20")
    images, _ = found.trained_on(real_cifar10)
    mean = images.double().mean(0)
    torch.testing.assert_close(found.normalization.mean.double(), mean, rtol=0, atol=1e-4)
    some = images[:3]
    torch.testing.assert_close(found.normalization(some).double(), (some - mean) / 255, rtol=0, atol=1e-6)


def test_heldout_images_are_the_same_with_and_without_a_holdout(real_cifar10: Classification) -> None:
    found = real("wooyeolBaek/resnet-20")
    images, labels = found.heldout(real_cifar10)
    split = datasets.load("cifar10", holdout=500)
    for divided in (found.heldout, found.trained_on):
        for ours, theirs in zip(divided(real_cifar10), divided(split), strict=True):
            assert torch.equal(ours, theirs)
    assert labels.bincount().tolist() == [500] * 10  # the author's split is stratified
    listed = set((paths.published_root() / "wooyeolBaek-validation.txt").read_text("ascii").split())
    assert {digest[:16] for digest in cifar10.hashes(images.numpy())} == listed


# Files


def state_of(network: Network) -> dict[str, Tensor]:
    """Named as akamaster/pytorch_resnet_cifar10 does."""
    n = network.stages[0]
    state = {}
    for key, value in network.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "blocks":
            index, _, layer = rest.partition(".residual.")
            key = f"layer{int(index) // n + 1}.{int(index) % n}.{layer}"
        else:
            key = {"conv": "conv1", "bn": "bn1", "fc": "linear"}[rest.split(".")[0]] + "." + rest.split(".")[1]
        state[f"module.{key}"] = value
    return state


class Upstream(nn.Module):
    """A plain or residual network with biases, its modules named as in wooyeolBaek/deep-residual-learning."""

    def __init__(self, n: int, *, residual: bool) -> None:
        super().__init__()
        self.residual = residual
        self.conv1 = nn.ModuleDict({"conv1": nn.Conv2d(3, 16, 3, padding=1), "bn1": nn.BatchNorm2d(16)})
        self.widths = (16, 32, 64)
        before = 16
        for number, width in enumerate(self.widths):
            stage = nn.ModuleList()
            for i in range(n):
                stride = 2 if number and not i else 1
                layers = [nn.Conv2d(before, width, 3, stride, 1), nn.BatchNorm2d(width), nn.ReLU()]
                layers += [nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)]
                stage.append(nn.ModuleDict({"f": nn.Sequential(*layers)}))
                before = width
            setattr(self, f"conv{number + 2}_x", nn.ModuleDict({f"conv{number + 2}_x": stage}))
        self.fc = nn.ModuleDict({"fc": nn.Linear(64, 10)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1["bn1"](self.conv1["conv1"](x)))
        for number in (2, 3, 4):
            for block in getattr(self, f"conv{number}_x")[f"conv{number}_x"]:
                y = block["f"](x)
                if self.residual:
                    skip = x if y.shape == x.shape else F.pad(x[:, :, ::2, ::2], (0,) * 4 + (x.shape[1] // 2,) * 2)
                    y = y + skip
                x = F.relu(y)
        logits: Tensor = self.fc["fc"](x.mean((2, 3)))
        return logits


@torch.no_grad()
def randomised(network: nn.Module) -> nn.Module:
    """With BN that is not that of a fresh network."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                assert tensor is not None
                tensor.uniform_(0.5, 1.5)
    return network.eval()


@torch.no_grad()
@pytest.mark.parametrize("family", ["plain", "resnet"])
@pytest.mark.parametrize("n", [1, 2])
def test_biases_before_bn_are_folded_into_it(family: str, n: int) -> None:
    torch.manual_seed(0)
    upstream = randomised(Upstream(n, residual=family == "resnet")).double()
    images = torch.randn(4, 3, 32, 32).double()
    ours = from_published(upstream.state_dict(), family).double().eval()
    assert ours.name == f"{family}-{6 * n + 2}"
    torch.testing.assert_close(ours(images), upstream(images), rtol=1e-5, atol=1e-5)  # weights are copied as float32


@torch.no_grad()
def test_names_of_the_other_upstream_lead_to_the_same_network() -> None:
    network = models.build("resnet-14").eval()
    randomised(network)
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(from_published(state_of(network)).eval()(images), network(images))


def damaged(change: str) -> dict[str, Tensor]:
    state = state_of(models.build("resnet-8", **({"num_classes": 100} if change == "other classes" else {})))
    if change == "missing":
        del state["module.layer2.0.bn1.running_var"]
    elif change == "surplus":
        state["module.layer2.0.shortcut.0.weight"] = torch.zeros(32, 16, 1, 1)
    elif change == "a bias of another size":
        state["module.layer2.0.conv1.bias"] = torch.zeros(1)
    elif change == "a bias without BN":
        state["module.layer2.0.conv7.bias"] = torch.zeros(32)
    elif change == "cut":
        state["module.layer3.0.conv2.weight"] = state["module.layer3.0.conv2.weight"][:5]
    elif change == "uneven stages":
        state["module.layer1.1.conv1.weight"] = state["module.layer1.0.conv1.weight"]
    return state


@pytest.mark.parametrize(
    "change",
    ["missing", "surplus", "a bias without BN", "a bias of another size", "cut", "uneven stages", "other classes"],
)
def test_weights_that_do_not_fit_are_refused(change: str) -> None:
    with pytest.raises(UsageError, match=r"the weights do not fit resnet-(8|14)"):
        from_published(damaged(change))


def test_foreign_weights_are_refused() -> None:
    with pytest.raises(UsageError, match=r"expected keys like layer1.0.conv1.weight, found \['0.weight', '0.bias'\]"):
        from_published(nn.Sequential(nn.Linear(2, 2)).state_dict())
    with pytest.raises(UsageError, match="no residual network"):
        from_published({})


def test_the_networks_that_there_are() -> None:
    expected = [f"wooyeolBaek/{family}-{depth}" for family in ("plain", "resnet") for depth in DEPTHS]
    assert names() == [*expected, *(f"akamaster/resnet-{depth}" for depth in (*DEPTHS, 110))]
    with pytest.raises(UsageError, match="unknown published network 'plain-56'; allowed: wooyeolBaek/plain-20"):
        models.published("plain-56")


@pytest.fixture
def folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of weights."""
    monkeypatch.setenv("RESNOTES_DATA", str(root))
    (root / "weights").mkdir()
    return root / "weights"


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Two networks in place of the real ones, by name; their files are as upstream's."""
    torch.manual_seed(0)
    contents = {
        "wooyeolBaek/plain-20": Upstream(3, residual=False).state_dict(),
        "wooyeolBaek/plain-56": Upstream(9, residual=False).state_dict(),
        "akamaster/resnet-20": {"state_dict": state_of(models.build("resnet-20")), "best_prec1": 91.0},
    }
    files, entries = {}, {}
    for name, content in contents.items():
        buffer = io.BytesIO()
        torch.save(content, buffer)
        files[name] = buffer.getvalue()
        digest = hashlib.sha256(files[name]).hexdigest()
        known = digest if name.startswith("wooyeolBaek") else digest[:8]
        entries[name] = type(_entries()[name])(**{**vars(_entries()[name]), "sha256": known})
    monkeypatch.setattr("resnotes.models.published_networks._entries", lambda: entries)
    return files


@pytest.mark.parametrize(
    "place",
    [
        "baek-plainnet20.pth",
        "plainnet20_A_230623_001026/last.pth",
        "trained_models/plainnet20_A_230623_001026/last.pth",
    ],
)
def test_a_file_is_found_under_our_name_and_upstreams(folder: Path, listed: dict[str, bytes], place: str) -> None:
    as_folder({place: listed["wooyeolBaek/plain-20"]}, folder)
    found = models.published("wooyeolBaek/plain-20")
    assert found.sha256 == hashlib.sha256(listed["wooyeolBaek/plain-20"]).hexdigest()
    assert (
        found.source
        == "wooyeolBaek/deep-residual-learning at a9333e0a, trained_models/plainnet20_A_230623_001026/last.pth"
    )
    assert found.training == "64,000 iterations on 45,000 images"
    assert found.normalization(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 3, 32, 32)


def test_an_intact_file_goes_before_a_damaged_one(folder: Path, listed: dict[str, bytes]) -> None:
    upstream = {"plainnet20_A_230623_001026/last.pth": listed["wooyeolBaek/plain-20"], "baek-plainnet20.pth": b"half"}
    as_folder(upstream, folder)
    assert models.published("wooyeolBaek/plain-20").network.name == "plain-20"


def test_no_random_number_is_drawn(folder: Path, listed: dict[str, bytes]) -> None:
    (folder / "baek-plainnet20.pth").write_bytes(listed["wooyeolBaek/plain-20"])
    state = torch.get_rng_state()
    models.published("wooyeolBaek/plain-20")
    assert torch.equal(torch.get_rng_state(), state)


def test_outside_a_checkout_what_is_missing_is_named(
    folder: Path, listed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "baek-plainnet20.pth").write_bytes(listed["wooyeolBaek/plain-20"])
    monkeypatch.setattr("resnotes.models.published_networks.published_root", lambda: tmp_path / "none")
    with pytest.raises(DatasetError, match=r"needs wooyeolBaek-mean\.npy and .*in .*none .*work in a checkout"):
        models.published("wooyeolBaek/plain-20")


def test_a_missing_file_is_one_clear_error(folder: Path, listed: dict[str, bytes]) -> None:
    with pytest.raises(DatasetError) as caught:
        models.published("wooyeolBaek/plain-20")
    message = str(caught.value)
    for part in (str(folder / "baek-plainnet20.pth"), "trained_models/plainnet20_A", "data fetch published"):
        assert part in message
    assert "\n" not in message


@pytest.mark.parametrize("change", ["cut", "flipped", "another file", "empty"])
def test_a_file_that_is_not_the_published_one_is_refused(folder: Path, listed: dict[str, bytes], change: str) -> None:
    content = listed["wooyeolBaek/plain-20"]
    middle = len(content) // 2
    wrong = {
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "another file": listed["akamaster/resnet-20"],
        "empty": b"",
    }[change]
    (folder / "baek-plainnet20.pth").write_bytes(wrong)
    expected = hashlib.sha256(content).hexdigest()
    with pytest.raises(DatasetError, match=rf"{len(wrong):,} bytes .*expected {expected}; remove it, and get it with"):
        models.published("wooyeolBaek/plain-20")


class Runs:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("content", [b"no file of PyTorch", Runs(), [1, 2], {"state_dict": {"a": 1}}])
def test_what_holds_no_state_dict_is_refused_and_runs_nothing(
    tmp_path: Path, content: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "file.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(DatasetError, match=r"holds no state dict, or is damaged \(\w+\); do so"):
        read_weights(path, "", "do so")
    assert not (tmp_path / "pwned").exists()


FILES = {"wooyeolBaek/plain-20": "baek-plainnet20.pth", "akamaster/resnet-20": "resnet20-12fca82f.th"}


def blank(train: int, test: int, variant: str) -> Classification:
    """So many black images."""
    images = [torch.zeros(count, 3, 32, 32, dtype=torch.uint8) for count in (train, test)]
    labels = [torch.zeros(count, dtype=torch.int64) for count in (train, test)]
    return Classification(images[0], labels[0], images[1], labels[1], cifar10.CLASSES, variant, "none")


REFUSED = [
    blank(20, 10, "cifar10, train 20, test 10"),
    blank(50_000, 10, "cifar10-jpeg, test 10"),
    blank(40_000, 10_000, "cifar10, train 40000"),  # with the official test images as many as there should be
    blank(45_000, 5000, "cifar10, holdout 500"),  # other images than one author's; the other had all for training
]


@pytest.mark.parametrize("data", REFUSED, ids=lambda data: data.variant)
@pytest.mark.parametrize("name", FILES)
def test_images_that_it_may_not_be_measured_on_are_refused(
    folder: Path, listed: dict[str, bytes], name: str, data: Classification
) -> None:
    (folder / FILES[name]).write_bytes(listed[name])
    found = models.published(name)
    for part in (found.heldout, found.trained_on):
        with pytest.raises(DatasetError, match=rf"expected lossless CIFAR-10 with all .*found {data.variant}, with"):
            part(data)


# Downloads


@pytest.fixture
def server(listed: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files in place of those on GitHub."""
    for name, content in listed.items():
        as_folder({_entries()[name].address: content}, tmp_path / "server")
    monkeypatch.setattr("resnotes.models.published_networks.UPSTREAM", (tmp_path / "server").as_uri())
    return tmp_path / "server"


def test_networks_that_are_not_there_or_damaged_are_fetched(
    folder: Path, listed: dict[str, bytes], server: Path
) -> None:
    (folder / "baek-plainnet20.pth").write_bytes(b"half")
    fetch()
    there = ["baek-plainnet20.pth", "baek-plainnet56.pth", "resnet20-12fca82f.th"]
    assert sorted(path.name for path in folder.iterdir()) == there
    assert (folder / "baek-plainnet20.pth").read_bytes() == listed["wooyeolBaek/plain-20"]
    assert models.published("akamaster/resnet-20").network.name == "resnet-20"
    shutil.rmtree(server)
    fetch()  # all are there: nobody is asked


def test_what_could_not_be_fetched_is_listed_and_the_rest_is_there(folder: Path, server: Path) -> None:
    shutil.rmtree(server / "wooyeolBaek")
    with pytest.raises(DatasetError, match=r"baek-plainnet20.pth, or set .*; nor could wooyeolBaek/plain-56"):
        fetch()
    assert [path.name for path in folder.iterdir()] == ["resnet20-12fca82f.th"]


def test_status_names_what_is_missing(folder: Path, listed: dict[str, bytes]) -> None:
    assert not status().found
    (folder / "baek-plainnet20.pth").write_bytes(listed["wooyeolBaek/plain-20"])
    assert status().found
    assert status().where.startswith(
        f"1 of 3 networks in {folder}; missing: wooyeolBaek/plain-56, akamaster/resnet-20; get"
    )


# Curves


def test_curves_end_where_their_authors_say() -> None:
    """Their logs' last lines: 100 minus the running training accuracy."""
    curves = pd.read_csv(paths.published_root() / "curves.csv")
    baek = curves[curves.source.str.startswith("wooyeolBaek")]
    last = baek.sort_values("epoch").groupby("network").train_error.last()
    known = {
        "plain-20": 1.21,
        "plain-32": 1.54,
        "plain-44": 2.79,
        "plain-56": 4.36,
        "resnet-32": 0.43,
        "resnet-56": 0.11,
    }
    assert {name: last[name] for name in known} == pytest.approx(known, abs=0.005)
    assert (baek.groupby("network").iteration.max() >= 63_900).all()
    assert curves.train_error.dropna().between(0, 100).all()
    assert curves.heldout_error.dropna().between(0, 100).all()


def test_what_was_measured_on_them_is_kept_with_their_checksums() -> None:
    errors = pd.read_csv(paths.published_root() / "errors.csv", index_col="network")
    for (family, depth), (heldout, _) in KNOWN.items():
        row = errors.loc[f"wooyeolBaek/{family}-{depth}"]
        assert row["held-out error"] == pytest.approx(heldout, abs=0.05)
        assert (row["training images"], row["held-out images"]) == (45_000, 5000)
        assert row["sha256"] == _entries()[f"wooyeolBaek/{family}-{depth}"].sha256
    assert errors.commit.str.fullmatch("[0-9a-f]{40}").all()
    assert not errors.dirty.any()
