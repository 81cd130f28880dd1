"""ImageNet residual nets: equal to torchvision's, and of the one shape every network here has."""

import copy
import math

import pytest
import torch
import torchvision
from torch import Tensor, nn

from resnotes.errors import UsageError
from resnotes.models.imagenet import LAYOUTS, ImageNetResNet, imagenet_resnet


@torch.no_grad()
def randomise_bn(net: nn.Module) -> None:
    """Give every BN layer its own affine map and statistics: at 1, 0, 0, 1 swapped layers would go unnoticed.

    The statistics are those of one batch, which keeps the activations of the deepest net near 1.
    """
    layers = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        nn.init.uniform_(layer.weight, 0.5, 1.5)
        nn.init.normal_(layer.bias, std=0.2)
        layer.momentum = 1.0
    net.train()(torch.randn(4, 3, 64, 64))
    for layer in layers:
        layer.momentum = 0.1


def reference(name: str, **options: object) -> nn.Module:
    net: nn.Module = getattr(torchvision.models, name)(weights=None, **options)
    randomise_bn(net)
    return net


def small(name: str, **options: int) -> ImageNetResNet:
    net = imagenet_resnet(name, num_classes=7, width=8, **options)
    randomise_bn(net)
    return net.eval()


def features(net: ImageNetResNet, images: Tensor) -> Tensor:
    x = net.stem(images)
    for block in net.blocks:
        x = block(x)
    return x


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_equals_torchvision_in_eval_mode(name: str) -> None:
    theirs, ours = reference(name).eval(), imagenet_resnet(name).eval()
    images = torch.randn(2, 3, 64, 64)
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in theirs.parameters())
    assert list(ours.state_dict()) == list(theirs.state_dict())

    before = ours(images)
    theirs_into_ours = copy.deepcopy(ours)
    theirs_into_ours.load_state_dict(theirs.state_dict(), strict=True)
    expected = theirs(images)
    assert (expected[0] - expected[1]).std() > 0.1  # the logits do depend on the image
    torch.testing.assert_close(theirs_into_ours(images), expected, rtol=1e-5, atol=1e-5)

    theirs.load_state_dict(ours.state_dict(), strict=True)
    torch.testing.assert_close(theirs(images), before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_equals_torchvision_in_train_mode(name: str) -> None:
    theirs, ours = reference(name).train(), imagenet_resnet(name).train()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images, labels = torch.randn(4, 3, 64, 64), torch.tensor([3, 1, 4, 1])

    def gradients(net: nn.Module) -> tuple[Tensor, ...]:
        loss = nn.functional.cross_entropy(net(images), labels)
        return torch.autograd.grad(loss, list(net.parameters()))

    for mine, yours in zip(gradients(ours), gradients(theirs), strict=True):
        assert yours.abs().max() > 0
        torch.testing.assert_close(mine, yours, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())  # the running statistics moved alike


@pytest.mark.parametrize(("output_stride", "replaced"), [(8, [False, True, True]), (16, [False, False, True])])
@torch.no_grad()
def test_output_stride_equals_torchvision(output_stride: int, replaced: list[bool]) -> None:
    theirs = reference("resnet50", replace_stride_with_dilation=replaced).eval()
    ours = imagenet_resnet("resnet50", output_stride=output_stride).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    assert features(ours, images).shape[-1] == 64 // output_stride
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@torch.no_grad()
def test_dilated_features_contain_the_strided_ones(name: str, output_stride: int) -> None:
    strided, dilated = small(name).double(), small(name, output_stride=output_stride).double()
    dilated.load_state_dict(strided.state_dict(), strict=True)
    images = torch.randn(2, 3, 97, 130, dtype=torch.float64)  # odd maps: the borders must agree too
    step = 32 // output_stride
    torch.testing.assert_close(features(dilated, images)[..., ::step, ::step], features(strided, images))


@pytest.mark.parametrize("name", LAYOUTS)
@torch.no_grad()
def test_has_the_shape_of_every_network_here(name: str) -> None:
    net = small(name)
    assert len(net.blocks) == sum(net.stages)
    ends = [net.blocks[sum(net.stages[: i + 1]) - 1] for i in range(len(net.stages))]
    images = torch.randn(2, 3, 64, 64)
    x = net.stem(images)
    assert x.shape == (2, 8, 16, 16)
    channels = []
    for block in net.blocks:
        x_before = x.clone()
        total = block.shortcut(x) + block.residual(x)
        total_before = total.clone()
        y = block.after(total)
        assert torch.equal(x, x_before) and torch.equal(total, total_before)  # no part works in place
        x = block(x)
        assert torch.equal(x, y)
        if block in ends:
            channels.append(x.shape[1])
    assert tuple(channels) == net.channels
    assert torch.equal(net.head(x), net(images))


@pytest.mark.parametrize("name", LAYOUTS)
def test_depth_in_the_name_counts_convolutions_and_classifier(name: str) -> None:
    net = imagenet_resnet(name, width=8)
    weighted = [
        key
        for key, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in key
    ]
    assert len(weighted) == int(name.removeprefix("resnet"))


def test_options() -> None:
    net = imagenet_resnet("resnet50", num_classes=5, in_channels=1, width=16)
    assert net(torch.randn(2, 1, 40, 56)).shape == (2, 5)
    assert net.channels == (64, 128, 256, 512)
    assert net.conv1.weight.shape == (16, 1, 7, 7)


def test_initialisation() -> None:
    net = imagenet_resnet("resnet18", num_classes=10)
    conv = net.get_parameter("layer4.0.conv1.weight")  # 256 channels in, 512 out: fan-in and fan-out differ
    assert conv.std().item() == pytest.approx(math.sqrt(2 / (3 * 3 * 512)), rel=0.01)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_unknown_names_and_strides_list_what_is_allowed() -> None:
    with pytest.raises(UsageError, match=r"unknown network 'resnet19'; allowed: resnet18, .*resnet152"):
        imagenet_resnet("resnet19")
    with pytest.raises(UsageError, match=r"unknown output stride 4; allowed: 8, 16, 32"):
        imagenet_resnet("resnet18", output_stride=4)
