"""Recomputed activations against those that were kept: the same bits, in less memory."""

import copy
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from kit.networks import randomise_bn
from kit.runs import assert_same
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import datasets, models
from resnotes.datasets import Classification
from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models import Network
from resnotes.training.loop import Training, train
from resnotes.training.recipe import Recipe
from resnotes.training.recomputation import forward

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 10
CPU = torch.device("cpu")

NETWORKS: list[tuple[str, dict[str, object]]] = [
    ("preresnet-14", {}),
    ("preresnet-14", {"shortcut": "exclusive-gating:-1"}),
    ("preresnet-14", {"shortcut": "dropout:0.5"}),
    ("resnet-14", {"shortcut": "C"}),
    ("resnet-14", {"order": "bn-after-addition"}),
    ("resnet-14", {"batch_norm": False}),
    ("prebottleneck-20", {}),
    ("resnet18", {}),
]
each_network = pytest.mark.parametrize(
    ("name", "options"), NETWORKS, ids=[models.label(*network) for network in NETWORKS]
)


def build(name: str, **options: object) -> Network:
    torch.manual_seed(0)
    network = models.build(name, in_channels=1, width=4, **options)
    randomise_bn(network)
    return network.train()


def one_step(network: Network, recompute: int, precision: str = "float32") -> dict[str, Tensor]:
    """Logits, gradients, BN's statistics and the state of the random generator after a forward and a backward pass."""
    torch.manual_seed(7)
    # PyTorch's bfloat16 gradients are wrong where a stride leads from one pixel to one: larger images for ImageNet's.
    images = IMAGES.repeat(1, 1, 4, 4) if network.name == "resnet18" else IMAGES
    with autocast(CPU, precision):
        logits = forward(network, images, recompute)
        loss = F.cross_entropy(logits, LABELS)
    loss.backward()
    gradients = {f"gradient of {key}": parameter.grad for key, parameter in network.named_parameters()}
    return {"logits": logits, **gradients, **network.state_dict(), "generator": torch.get_rng_state()}


# The same bits


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("recompute", [1, 2, 5, 100])
@each_network
def test_nothing_changes_but_what_is_kept(
    name: str, options: dict[str, object], recompute: int, precision: str
) -> None:
    network = build(name, **options)
    kept, recomputed = copy.deepcopy(network), copy.deepcopy(network)
    expected = one_step(kept, 0, precision)
    assert all(tensor is not None for tensor in expected.values())
    torch.testing.assert_close(one_step(recomputed, recompute, precision), expected, rtol=0, atol=0)


@pytest.mark.parametrize("recompute", [1, 5])
def test_evaluation_is_the_same_too(recompute: int) -> None:
    network = build("preresnet-14").eval()
    before = copy.deepcopy(network.state_dict())
    with torch.no_grad():
        assert forward(network, IMAGES, recompute).equal(network(IMAGES))
    expected = torch.autograd.grad(network(IMAGES).square().sum(), list(network.parameters()))
    found = torch.autograd.grad(forward(network, IMAGES, recompute).square().sum(), list(network.parameters()))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


def test_bn_that_tracks_nothing_stays_so() -> None:
    network = build("resnet-14")
    for block in network.blocks:
        block.residual.bn2 = nn.BatchNorm2d(block.residual.bn2.num_features, track_running_stats=False)
    kept, recomputed = copy.deepcopy(network), copy.deepcopy(network)
    torch.testing.assert_close(one_step(recomputed, 2), one_step(kept, 0), rtol=0, atol=0)
    assert not any(block.residual.bn2.track_running_stats for block in recomputed.blocks)
    assert all(block.residual.bn1.track_running_stats for block in recomputed.blocks)


@pytest.mark.parametrize("unit", [0, 2, 3])
def test_an_error_while_recomputing_leaves_bn_as_it_was(unit: int) -> None:
    """It goes on to count batches, and has counted the one that failed once."""
    network = build("preresnet-14")
    expected = copy.deepcopy(network)
    calls = 0

    def fail(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    # The last layer of the unit: BN before it has seen the batch once more.
    handle = network.blocks[unit].residual.conv2.register_forward_pre_hook(fail)
    loss = F.cross_entropy(forward(network, IMAGES, 2), LABELS)
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    handle.remove()
    assert calls == 2
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 13
    assert all(norm.track_running_stats for norm in norms)
    expected(IMAGES)
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=0)
    network(IMAGES), expected(IMAGES)
    torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=0)
    assert {int(norm.num_batches_tracked) for norm in norms} == {2}


# Training


@pytest.fixture(scope="module")
def data() -> Classification:
    """100 training and 40 test images of digits."""
    digits = datasets.load("digits").train_subset(100)
    return dataclasses.replace(digits, test_images=digits.test_images[:40], test_labels=digits.test_labels[:40])


@pytest.mark.parametrize("shortcut", ["A", "dropout:0.5"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_training_is_bit_identical(data: Classification, shortcut: str, precision: str, tmp_path: Path) -> None:
    recipe = Recipe(iterations=5, batch_size=50, precision=precision)

    def fit(recompute: int) -> tuple[Network, Training]:
        network = build("preresnet-14", shortcut=shortcut)
        chosen = dataclasses.replace(recipe, recompute=recompute)
        return network, train(network, data, chosen, seed=0, device="cpu", folder=tmp_path / str(recompute))

    kept, recomputed = fit(0), fit(2)
    assert_same(recomputed, kept)
    histories = [pd.read_csv(tmp_path / folder / "history.csv").drop(columns="seconds") for folder in ("2", "0")]
    pd.testing.assert_frame_equal(*histories, check_exact=True)
    assert len(histories[0]) == 3


def test_the_recipe_reaches_the_network(data: Classification) -> None:
    calls = 0

    def count(module: nn.Module, _: object) -> None:
        nonlocal calls
        calls += module.training

    for recompute, expected in ((0, 4), (3, 8)):
        calls = 0
        network = build("preresnet-14")
        network.blocks[2].register_forward_pre_hook(count)
        recipe = Recipe(iterations=4, batch_size=50, precision="float32", recompute=recompute)
        train(network, data, recipe, seed=0, device="cpu")
        assert calls == expected


# Refusals


def test_a_network_without_blocks_is_refused() -> None:
    """And trains as ever where nothing is to be recomputed."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match="recompute needs a network with stem, blocks and head, found Sequential"):
        forward(network, IMAGES, 2)
    assert forward(network, IMAGES).equal(network(IMAGES))


# Memory

# A training step of the deepest network: by how many MiB it raises the peak over that of a forward pass alone. The
# peak is the kernel's; that of `getrusage` starts from what the parent process had in memory.
STEP = """
import re, sys
from pathlib import Path
import torch
from resnotes import models
from functools import partial
from resnotes.training.classification import cross_entropy
from resnotes.training.loop import optimizer_step

def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024

torch.manual_seed(0)
network = models.build("prebottleneck-1001", in_channels=1)
images, labels = torch.randn(64, 1, 8, 8), torch.arange(64) % 10
with torch.no_grad():
    network.train()(images)
baseline = peak()
optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
optimizer_step(network, optimizer, images, labels, "float32", partial(cross_entropy, recompute=int(sys.argv[1])))
print(peak() - baseline)
"""


def memory_of_a_step(recompute: int) -> float:
    process = subprocess.run(
        [sys.executable, "-c", STEP, str(recompute)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert process.returncode == 0, process.stderr
    return float(process.stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux tells the peak here")
def test_recomputation_saves_memory() -> None:
    """Measured: 770 to 800 MiB, and 350 to 370 MiB, of which 40 MiB are the gradients of the weights."""
    kept, recomputed = memory_of_a_step(0), memory_of_a_step(18)
    assert recomputed < 500 < kept
    assert recomputed < 0.6 * kept
