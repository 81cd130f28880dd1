"""The VGG of Veit et al. 2016 and an AlexNet: counted, computed by hand, taken apart, and trained a little."""

import math

import pytest
import torch
from kit.networks import randomise_bn
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import models, unravel
from resnotes.models import Network

VGG_BLOCKS, VGG_POOLED = 13, (3, 8)  # the fifth and the tenth convolution; the first one is the stem
ALEXNET_CHANNELS = (1, 3, 6, 4, 4)


def small(name: str, **options: object) -> Network:
    """A narrow network in float64 and eval mode, whose biases and BN layers all differ."""
    network = models.build(name, **{"width": 4, **options})
    for key, parameter in network.named_parameters():
        if key.endswith("bias"):
            nn.init.normal_(parameter, std=0.1)
    randomise_bn(network)
    return network.double().eval()


# Values


def layer(x: Tensor, state: dict[str, Tensor], at: str) -> Tensor:
    """Convolution, BN if there is one, and ReLU."""
    weight = state[f"{at}.conv.weight"]
    x = F.conv2d(x, weight, state.get(f"{at}.conv.bias"), padding=weight.shape[-1] // 2)
    if f"{at}.bn.weight" in state:
        x = F.batch_norm(x, *(state[f"{at}.bn.{key}"] for key in ("running_mean", "running_var", "weight", "bias")))
    return x.relu()


def vgg_by_hand(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    x = layer(x, state, "stem")
    for i in range(VGG_BLOCKS):
        x = layer(x, state, f"blocks.{i}.residual")
        x = F.max_pool2d(x, 2) if i in VGG_POOLED else x
    return F.linear(x.mean(dim=(2, 3)), state["head.fc.weight"], state["head.fc.bias"])


def alexnet_by_hand(x: Tensor, state: dict[str, Tensor]) -> Tensor:
    x = F.max_pool2d(layer(x, state, "stem"), 2)
    x = F.max_pool2d(layer(x, state, "blocks.0.residual"), 2)
    for i in (1, 2, 3):
        x = layer(x, state, f"blocks.{i}.residual")
    x = F.max_pool2d(x, 2)
    x = x.repeat_interleave(4 // x.shape[2], 2).repeat_interleave(4 // x.shape[3], 3).flatten(1)
    for i in (4, 5):
        x = F.linear(x, state[f"blocks.{i}.residual.fc.weight"], state[f"blocks.{i}.residual.fc.bias"]).relu()
    return F.linear(x, state["head.fc.weight"], state["head.fc.bias"])


@pytest.mark.parametrize("shape", [(2, 3, 32, 32), (2, 1, 8, 8)])
@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize(("name", "by_hand"), [("vgg-15", vgg_by_hand), ("alexnet", alexnet_by_hand)])
@torch.no_grad()
def test_network_is_the_layers_in_turn(name: str, by_hand: object, batch_norm: bool, shape: tuple[int, ...]) -> None:
    network = small(name, batch_norm=batch_norm, in_channels=shape[1])
    images = torch.randn(shape, dtype=torch.float64)
    logits = network(images)
    assert logits.std(0).min() > 1e-4  # not the last bias alone
    torch.testing.assert_close(logits, by_hand(images, network.state_dict()))  # type: ignore[operator]


# Deletion: a block that goes leaves what follows it, `after(x)`


@pytest.mark.parametrize(
    ("name", "deletable"), [("vgg-15", set(range(VGG_BLOCKS))), ("alexnet", {3, 5})], ids=["vgg-15", "alexnet"]
)
@torch.no_grad()
def test_blocks_that_can_be_deleted(name: str, deletable: set[int]) -> None:
    network, images = small(name), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    assert set(unravel.deletable(network, images)) == deletable
    intact, *others = unravel.lesion_logits(network, [(), *({i} for i in deletable)], images)
    assert not any(torch.allclose(logits, intact) for logits in others)


# Initialisation


def test_weights_are_drawn_with_fan_in() -> None:
    network = models.build("alexnet")
    fans = [3 * 25, *(9 * 64 * c for c in ALEXNET_CHANNELS[:-1]), 64 * 64, 16 * 64]
    weights = [m.weight for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for weight, fan in zip(weights, fans, strict=False):  # the classifier keeps PyTorch's
        # The standard error of a standard deviation is itself over sqrt(2 n).
        assert weight.std().item() == pytest.approx(math.sqrt(2 / fan), rel=4 / math.sqrt(2 * weight.numel()))
    assert len(weights) == len(fans) + 1
    assert weights[-1].abs().max() <= 1 / math.sqrt(16 * 64)
    assert all((m.bias == 0).all() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear))
