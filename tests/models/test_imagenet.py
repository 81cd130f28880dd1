"""ImageNet residual nets: equal to torchvision's, of any width and output stride, and of the one shape of all here."""

import copy

import pytest
import torch
import torchvision
from kit.networks import warmed_up
from torch import Tensor, nn

from resnotes import models
from resnotes.errors import UsageError
from resnotes.models.imagenet import LAYOUTS, ImageNetResNet, imagenet_resnet


def reference(name: str, **options: object) -> nn.Module:
    return warmed_up(getattr(torchvision.models, name)(weights=None, **options))


def small(name: str, **options: int) -> ImageNetResNet:
    return warmed_up(imagenet_resnet(name, num_classes=7, width=8, **options)).eval()


def features(net: ImageNetResNet, images: Tensor) -> Tensor:
    x = net.stem(images)
    for block in net.blocks:
        x = block(x)
    return x


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", LAYOUTS)
def test_state_dicts_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        theirs, ours = getattr(torchvision.models, name)(weights=None), imagenet_resnet(name)
    assert [(key, value.shape) for key, value in ours.state_dict().items()] == [
        (key, value.shape) for key, value in theirs.state_dict().items()
    ]


@pytest.mark.parametrize(
    ("name", "options", "theirs"),
    [
        ("resnet18", {}, {}),
        ("resnet50", {}, {}),
        ("resnet50", {"output_stride": 8}, {"replace_stride_with_dilation": [False, True, True]}),
        ("resnet50", {"output_stride": 16}, {"replace_stride_with_dilation": [False, False, True]}),
    ],
)
def test_equals_torchvision(name: str, options: dict[str, int], theirs: dict[str, object]) -> None:
    """Logits in eval mode; in train mode, gradients and how the running statistics move."""
    images, labels = torch.randn(2, 3, 64, 64), torch.tensor([3, 1])
    known, ours = reference(name, **theirs), imagenet_resnet(name, **options)
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
def test_dilated_features_contain_the_strided_ones(name: str, output_stride: int) -> None:
    strided, dilated = small(name).double(), small(name, output_stride=output_stride).double()
    dilated.load_state_dict(strided.state_dict(), strict=True)
    images = torch.randn(2, 3, 97, 130, dtype=torch.float64)  # odd maps: the borders must agree too
    step = 32 // output_stride
    torch.testing.assert_close(features(dilated, images)[..., ::step, ::step], features(strided, images))


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_has_the_shape_of_every_network_here(name: str) -> None:
    net, images, channels = small(name), torch.randn(2, 3, 64, 64), []
    x = net.stem(images)
    assert x.shape == (2, 8, 16, 16)
    for block in net.blocks:
        before = copy.deepcopy(x)
        y = block.after(total := block.shortcut(x) + block.residual(x))
        assert torch.equal(x, before) and torch.equal(total, block.shortcut(x) + block.residual(x))  # none in place
        x = block(x)
        assert torch.equal(x, y)
        channels.append(x.shape[1])
    ends = torch.tensor(net.stages).cumsum(0) - 1
    assert tuple(channels[end] for end in ends) == net.channels
    assert torch.equal(net.head(x), net(images))


@pytest.mark.parametrize("name", LAYOUTS)
def test_depth_in_the_name_counts_convolutions_and_classifier(name: str) -> None:
    layers = imagenet_resnet(name, width=8).named_modules()
    weighted = [key for key, module in layers if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in key]
    assert len(weighted) == int(name.removeprefix("resnet"))


def test_options() -> None:
    net = imagenet_resnet("resnet50", num_classes=5, in_channels=1, width=16)
    assert net(torch.randn(2, 1, 40, 56)).shape == (2, 5)
    assert net.channels == (64, 128, 256, 512)
    assert net.conv1.weight.shape == (16, 1, 7, 7)


def test_unknown_names_and_strides_list_what_is_allowed() -> None:
    with pytest.raises(UsageError, match=r"unknown network 'resnet19'; allowed: resnet18, .*resnet152"):
        imagenet_resnet("resnet19")
    with pytest.raises(UsageError, match=r"unknown output stride 4; allowed: 8, 16, 32"):
        imagenet_resnet("resnet18", output_stride=4)
