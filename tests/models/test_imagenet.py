"""ImageNet residual nets: equal to torchvision's, of any width and output stride, and of the one shape of all here."""

import pytest
import torch
import torchvision
from kit.networks import warmed_up
from torch import Tensor, nn

from resnotes import models
from resnotes.models.imagenet import LAYOUTS, Encoder, ImageNetResNet


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dicts_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(weights=None), models.build(name)
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == [
        (key, value.shape) for key, value in theirs.state_dict().items()
    ]


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision(name: str) -> None:
    """Logits in eval mode; in train mode, gradients and how the running statistics move."""
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([3, 1])
    known, ours = warmed_up(getattr(torchvision.models, name)(weights=None)), models.build(name)
    ours.load_state_dict(known.state_dict(), strict=True)
    with torch.no_grad():
        expected = known.eval()(images)
        assert (expected[0] - expected[1]).std() > 0.1  # the logits do depend on the image
        torch.testing.assert_close(ours.eval()(images), expected, rtol=1e-5, atol=1e-5)

    def gradients(net: nn.Module) -> tuple[Tensor, ...]:
        return torch.autograd.grad(nn.functional.cross_entropy(net.train()(images), labels), list(net.parameters()))

    for mine, yours in zip(gradients(ours), gradients(known), strict=True):
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.state_dict(), known.state_dict())


def test_initial_weights_are_torchvisions() -> None:
    torch.manual_seed(3)
    ours = models.build("resnet18", num_classes=10)
    torch.manual_seed(3)
    theirs = torchvision.models.resnet18(weights=None, num_classes=10)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_dilated_maps_contain_the_strided_ones(name: str, output_stride: int) -> None:
    strided, dilated = (
        Encoder(*LAYOUTS[name], in_channels=3, width=8, output_stride=stride).double() for stride in (32, output_stride)
    )
    dilated.load_state_dict(strided.state_dict(), strict=True)
    images = torch.randn(2, 3, 97, 130, dtype=torch.float64)  # odd maps: the borders must agree too
    step = 32 // output_stride
    torch.testing.assert_close(dilated.eval()(images)[1][..., ::step, ::step], strided.eval()(images)[1])


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_has_the_shape_of_every_network_here(name: str) -> None:
    net, images, channels = ImageNetResNet(name, num_classes=7, in_channels=1, width=8), torch.randn(2, 1, 64, 64), []
    x = net.eval().stem(images)
    assert x.shape == (2, 8, 16, 16)
    for block in net.blocks:
        before = x.clone()
        y = block.after(block.shortcut(x) + block.residual(x))
        assert torch.equal(x, before)  # nothing works in place
        x = block(x)
        assert torch.equal(x, y)
        channels.append(x.shape[1])
    ends = torch.tensor(net.stages).cumsum(0) - 1
    assert tuple(channels[end] for end in ends) == net.channels
    assert net.head(x).shape == (2, 7)
    assert torch.equal(net.head(x), net(images))
