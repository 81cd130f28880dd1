"""Copies of a network that differ from it in one thing."""

import copy

import pytest
import torch
from kit.networks import small
from torch import Tensor, nn

from resnotes import models
from resnotes.errors import UsageError

IMAGES = torch.randn(16, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def state(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in network.state_dict().items()}


@pytest.mark.parametrize("training", [True, False])
def test_recalibrated_statistics_are_those_of_the_images(training: bool) -> None:
    network = small("resnet-8").train(training)
    before = state(network)
    found = models.recalibrate(network, IMAGES)
    torch.testing.assert_close(state(network), before, rtol=0, atol=0)
    assert network.training == training
    assert not any(module.training for module in found.modules())
    expected = copy.deepcopy(network).train()
    for module in expected.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # forgets what was there
            module.num_batches_tracked.zero_()
    expected(IMAGES)
    torch.testing.assert_close(state(found), state(expected))
    # The batch is normalised by its variance over N values, running statistics are over N - 1: 1 part in 64 at most.
    torch.testing.assert_close(found(IMAGES), expected(IMAGES), rtol=0.1, atol=0.1)


def test_what_cannot_be_recalibrated_on_is_refused() -> None:
    with pytest.raises(UsageError, match=r"expected normalised images.*found uint8"):
        models.recalibrate(small("resnet-8"), IMAGES.byte())
    with pytest.raises(UsageError, match=r"cannot be evaluated on images \[16, 1, 8, 8\]"):
        models.recalibrate(small("resnet-8"), IMAGES[:, :1])
    with pytest.raises(UsageError, match="active dropout"):
        models.recalibrate(small("resnet-8", shortcut="dropout:0.5"), IMAGES)


@torch.no_grad()
def test_without_borders_a_shifted_image_gives_the_same_logits() -> None:
    """By as many pixels as all strides together; with zero padding the border tells where the image was."""
    network = small("resnet-8")
    before = network(IMAGES)
    without = models.without_borders(network)
    shifted = IMAGES.roll((4, 4), (2, 3))
    torch.testing.assert_close(without(shifted), without(IMAGES))
    assert torch.equal(network(IMAGES), before)
    assert not torch.allclose(network(shifted), before)
