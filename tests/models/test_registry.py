"""Networks of somebody's own, by name: built, labelled and told apart like ours, or refused."""

import hashlib
import inspect
from functools import partial
from typing import Any

import pytest
import torch
from kit.networks import in_a_cell
from torch import nn

from resnotes import models, unravel
from resnotes.errors import UsageError
from resnotes.models import Block, Network, registry


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})


def mine(num_classes: int, in_channels: int, width: int = 4) -> Network:
    """One residual block without BN."""
    stem = nn.Conv2d(in_channels, width, 3, padding=1)
    block = Block(nn.Conv2d(width, width, 3, padding=1), nn.Identity(), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
    return Network(stem, [block], head)


class Mine(Network):
    def __init__(self, num_classes: int, in_channels: int) -> None:
        whole = mine(num_classes, in_channels)
        super().__init__(whole.stem, whole.blocks, whole.head)


def test_a_network_of_three_parts_needs_nothing_else() -> None:
    network, images = mine(5, 3), torch.randn(2, 3, 8, 8)
    assert (network.stages, network.options) == ((1,), {})
    assert network(images).shape == (2, 5)
    assert unravel.path_gradients(network, images, torch.tensor([0, 1])).shape == (2, 2, 4, 8, 8)
    assert len(unravel.lesion_logits(network.eval(), unravel.single_deletions(network), images)) == 1


def test_a_registered_network_is_built_by_name_and_label() -> None:
    models.register("mine-20", mine)
    network = models.build("mine-20", num_classes=7, in_channels=1, width=6)
    assert network(torch.randn(2, 1, 8, 8)).shape == (2, 7)
    assert (network.name, network.options) == ("mine-20", {"num_classes": 7, "in_channels": 1, "width": 6})
    assert models.from_label(models.label(network.name, network.options)) == (network.name, network.options)
    again = models.build(network.name, **network.options)
    again.load_state_dict(network.state_dict())


@pytest.mark.parametrize("builder", [mine, Mine])
def test_its_source_is_that_of_the_function_or_class(builder: Any) -> None:
    models.register("mine", builder)
    assert isinstance(models.build("mine", num_classes=2, in_channels=3), Network)
    assert models.source("mine") == hashlib.sha256(inspect.getsource(builder).encode()).hexdigest()[:12]
    assert models.source("resnet-20") is models.source("nobody's") is None


def test_a_cell_that_is_executed_again_replaces_what_it_registered() -> None:
    sources = []
    for width in (2, 2, 3):
        models.register("mine", in_a_cell(f"return mine(num_classes, in_channels, {width})", mine=mine))
        sources.append(models.source("mine"))
    assert sources[0] == sources[1] != sources[2]
    assert models.build("mine", num_classes=2, in_channels=3).stem.out_channels == 3
    with pytest.raises(UsageError, match=r"the name 'mine' is taken, by __main__\.build; register your"):
        models.register("mine", Mine)


@pytest.mark.parametrize(
    ("name", "builder", "message"),
    [
        ("resnet-20", mine, "the name 'resnet-20' is taken, by a network of resnotes"),
        ("pspnet-small", mine, "is taken"),
        *((name, mine, "must be of letters, digits, - and _, found") for name in ("", "a b", "../a", "a=b", "ä")),
        ("mine", eval("lambda num_classes, in_channels: None"), r"source can be read.*\(could not get source"),
        ("mine", partial(mine, width=3), "must be a function or class of Python"),
        ("mine", nn.Linear, "takes num_classes and in_channels .*argument"),
    ],
)
def test_what_cannot_be_registered_is_refused(name: str, builder: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.register(name, builder)
    assert not registry._registered


def linear(num_classes: int, in_channels: int) -> nn.Module:
    return nn.Linear(in_channels, num_classes)


def test_what_a_builder_may_not_do_is_refused() -> None:
    models.register("linear", linear)
    with pytest.raises(UsageError, match="the builder of linear returned a Linear, expected a Network: return"):
        models.build("linear", num_classes=2, in_channels=3)
    models.register("mine", mine)
    with pytest.raises(UsageError, match="mine takes no option 'depth'; allowed: num_classes, in_channels, width"):
        models.build("mine", num_classes=2, in_channels=3, depth=4)
    with pytest.raises(UsageError, match="mine cannot be built: missing a required argument: 'in_channels'; allowed"):
        models.build("mine", num_classes=2)
    with pytest.raises(UsageError, match=r"unknown network 'yours'; allowed: plain-N .*, linear, mine"):
        models.build("yours")
