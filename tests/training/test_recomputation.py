"""Recomputed activations against those that were kept: the same bits."""

import copy

import pytest
import torch
from kit.networks import randomise_bn
from kit.runs import assert_same
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import datasets, models
from resnotes.devices import autocast
from resnotes.errors import UsageError
from resnotes.models import Network
from resnotes.training.loop import train
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
@pytest.mark.parametrize("recompute", [1, 5, 100])
@each_network
def test_nothing_changes_but_what_is_kept(
    name: str, options: dict[str, object], recompute: int, precision: str
) -> None:
    network = build(name, **options)
    kept, recomputed = copy.deepcopy(network), copy.deepcopy(network)
    expected = one_step(kept, 0, precision)
    assert all(tensor is not None for tensor in expected.values())
    torch.testing.assert_close(one_step(recomputed, recompute, precision), expected, rtol=0, atol=0)


def test_an_error_while_recomputing_leaves_bn_as_it_was() -> None:
    """It goes on to count batches, and has counted the one that failed once."""
    network = build("preresnet-14")
    expected = copy.deepcopy(network)
    calls = iter(range(2))

    def fail(*_: object) -> None:
        if next(calls):
            raise KeyboardInterrupt

    # The last layer of the block: BN before it has seen the batch once more.
    handle = network.blocks[2].residual.conv2.register_forward_pre_hook(fail)
    loss = F.cross_entropy(forward(network, IMAGES, 2), LABELS)
    with pytest.raises(KeyboardInterrupt):
        loss.backward()
    handle.remove()
    for _ in range(2):
        expected(IMAGES)
        torch.testing.assert_close(network.state_dict(), expected.state_dict(), rtol=0, atol=0)
        network(IMAGES)


def test_the_recipe_reaches_the_network_and_changes_nothing() -> None:
    """Blocks are passed twice in training; the weights are the same, bit by bit."""
    data = datasets.load("digits").train_subset(100)
    trained, passes = [], []
    for recompute in (0, 3):
        network = build("preresnet-14", shortcut="dropout:0.5")
        seen: list[bool] = []
        network.blocks[2].register_forward_pre_hook(lambda block, _, seen=seen: seen.append(block.training))
        recipe = Recipe(iterations=4, batch_size=50, precision="float32", recompute=recompute)
        trained.append((network, train(network, data, recipe, seed=0, device="cpu")))
        passes.append(sum(seen))
    assert passes == [4, 8]
    assert_same(*trained)


# Refusals


def test_a_network_without_blocks_is_refused() -> None:
    """And trains as ever where nothing is to be recomputed."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UsageError, match="recompute needs a network with stem, blocks and head, found Sequential"):
        forward(network, IMAGES, 2)
    assert forward(network, IMAGES).equal(network(IMAGES))
