"""Plain, original and pre-activation networks: counted, taken apart, and compared with published weights."""

import math

import pytest
import torch
from kit.networks import bn, conv, option_a, small
from torch import nn

from resnotes import models
from resnotes.book import papers
from resnotes.errors import UsageError
from resnotes.models import Block, count_parameters
from resnotes.models.shortcuts import ZeroPadShortcut

TABLE_6 = papers.numbers("he2015").query("where == 'Table 6' and metric == 'parameters'")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


# Counts and composition


@pytest.mark.parametrize(("name", "millions"), list(zip(TABLE_6.network, TABLE_6.value, strict=True)))
def test_parameter_counts_are_those_of_table_6(name: str, millions: float) -> None:
    digits = len(str(millions).partition(".")[2])
    assert round(count_parameters(models.build(name)) / 1e6, digits) == millions


@pytest.mark.parametrize("depth", [8, 20, 56])
def test_shortcuts_cost_no_parameters_with_option_a(depth: int) -> None:
    plain, residual, projected = (
        count_parameters(models.build(name, **options))
        for name, options in (
            (f"plain-{depth}", {}),
            (f"resnet-{depth}", {"shortcut": "A"}),
            (f"resnet-{depth}", {"shortcut": "B"}),
        )
    )
    assert plain == residual
    # Two 1x1 convolutions and their BN: 16 to 32 and 32 to 64 channels.
    assert projected - residual == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


@pytest.mark.parametrize("name", ["plain-14", "resnet-20", "preresnet-26"])
def test_depth_counts_convolutions_and_classifier(name: str) -> None:
    weighted = [m for m in models.build(name, width=4).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(weighted) == int(name.partition("-")[2])


@pytest.mark.parametrize("name", ["plain-14", "resnet-14", "preresnet-14"])
@torch.no_grad()
def test_stem_blocks_and_head_make_the_network(name: str) -> None:
    network = small(name)
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = network.stem(images)
    shapes = []
    for block in network.blocks:
        before = x.clone()
        branch = block.residual(x)
        total = branch if block.shortcut is None else block.shortcut(x) + branch
        assert torch.equal(x, before)  # neither branch works in place
        x = block.after(total)
        shapes.append(tuple(x.shape[1:]))
    assert shapes == [(4, 32, 32)] * 2 + [(8, 16, 16)] * 2 + [(16, 8, 8)] * 2
    assert network.stages == (2, 2, 2)
    torch.testing.assert_close(network.head(x), network(images), rtol=0, atol=0)
    assert [block.shortcut is None for block in network.blocks] == [name.startswith("plain")] * 6


# Blocks and heads against a few lines of arithmetic


@pytest.mark.parametrize("index", [0, 1, 2, 3])  # number 2 is the first of the second stage: it down-samples
@pytest.mark.parametrize(
    ("name", "shortcut"), [("plain-14", None), ("resnet-14", "A"), ("resnet-14", "B"), ("preresnet-14", "B")]
)
@torch.no_grad()
def test_block_is_the_papers_arithmetic(name: str, shortcut: str | None, index: int) -> None:
    block = small(name, **({"shortcut": shortcut} if shortcut else {})).blocks[index]
    stride = 2 if index == 2 else 1
    x = torch.randn(2, 4 if index <= 2 else 8, 7, 10, dtype=torch.float64)

    layers = block.residual
    if not name.startswith("preresnet"):
        residual = bn(conv(bn(conv(x, layers.conv1, stride), layers.bn1).relu(), layers.conv2), layers.bn2)
    elif index > 0:
        residual = conv(bn(conv(bn(x, layers.bn1).relu(), layers.conv1, stride), layers.bn2).relu(), layers.conv2)
    else:  # the stem has activated already, before the split
        residual = conv(bn(conv(x, layers.conv1), layers.bn1).relu(), layers.conv2)

    skipped = x
    if name.startswith("plain"):
        skipped = torch.zeros_like(residual)
    elif index == 2:
        skipped = option_a(x) if shortcut == "A" else bn(conv(x, block.shortcut.conv, stride=2), block.shortcut.bn)
    total = skipped + residual
    torch.testing.assert_close(block(x), total if name.startswith("preresnet") else total.relu())


@torch.no_grad()
def test_pre_activation_begins_and_ends_with_an_activation() -> None:
    """He et al. 2016, Appendix: activation right after the first convolution, and an extra one at the end."""
    network = small("preresnet-8")
    images, maps = (torch.randn(2, c, 9, 9, dtype=torch.float64) for c in (3, 16))
    torch.testing.assert_close(network.stem(images), bn(conv(images, network.stem.conv), network.stem.bn).relu())
    pooled = bn(maps, network.head.bn).relu().mean(dim=(2, 3))
    torch.testing.assert_close(network.head(maps), pooled @ network.head.fc.weight.T + network.head.fc.bias)

    original = small("resnet-8")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in original.head.modules())
    pooled = maps.mean(dim=(2, 3))
    torch.testing.assert_close(original.head(maps), pooled @ original.head.fc.weight.T + original.head.fc.bias)


@torch.no_grad()
def test_order_can_differ_from_the_familys() -> None:
    moved = small("resnet-8", order="pre-activation")
    same = small("preresnet-8")
    same.load_state_dict(moved.state_dict())
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(moved(images), same(images), rtol=0, atol=0)


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_zero_padding_equals_a_loop(size: tuple[int, int]) -> None:
    x = torch.randn(2, 6, *size)
    assert torch.equal(ZeroPadShortcut(6, 12, 2)(x), option_a(x))


def test_an_odd_number_of_new_channels_keeps_every_old_one() -> None:
    x = torch.randn(1, 3, 4, 4)
    y = ZeroPadShortcut(3, 6, 1)(x)
    assert y.shape == (1, 6, 4, 4)
    assert torch.equal(y[:, 1:4], x)
    assert y.abs().sum() == x.abs().sum()


# Initialisation and options


def test_convolutions_are_drawn_with_fan_out() -> None:
    network = models.build("resnet-8", shortcut="B")
    conv1 = network.blocks[2].residual.conv1.weight  # 32 channels in, 64 out: fan-in and fan-out differ
    expected = math.sqrt(2 / (3 * 3 * 64))
    # The standard error of a standard deviation is itself over sqrt(2 n); 4 of them, n = 18,432.
    assert conv1.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * conv1.numel()))
    assert abs(conv1.mean().item()) < 4 * expected / math.sqrt(conv1.numel())
    projection = network.blocks[2].shortcut.conv.weight
    assert projection.std().item() == pytest.approx(math.sqrt(2 / 64), rel=4 / math.sqrt(2 * projection.numel()))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
    assert (network.head.fc.bias == 0).all()


@pytest.mark.parametrize("name", ["plain-8", "resnet-8", "preresnet-8"])
@pytest.mark.parametrize("size", [(32, 32), (8, 8), (33, 21), (1, 1)])
def test_any_channels_classes_width_and_image_size(name: str, size: tuple[int, int]) -> None:
    network = models.build(name, num_classes=7, in_channels=2, width=6).eval()
    assert network(torch.randn(3, 2, *size)).shape == (3, 7)
    assert network.stem.conv.weight.shape == (6, 2, 3, 3)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("plain-14", {"width": 4}),
        ("resnet-8", {"shortcut": "B", "num_classes": 3}),
        ("preresnet-8", {"in_channels": 1}),
    ],
)
def test_name_and_options_build_the_network_again(name: str, options: dict[str, object]) -> None:
    network = models.build(name, **options)
    again = models.build(network.name, **network.options)
    again.load_state_dict(network.state_dict())
    assert repr(again) == repr(network)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "vgg-20",
            {},
            r"'vgg-20'; allowed: plain-N \(N = 6n \+ 2\), .*, prebottleneck-N \(N = 9n \+ 2\), resnet18",
        ),
        ("resnet", {}, "unknown network 'resnet'; allowed"),
        ("resnet-20b", {}, "unknown network"),
        ("resnet-21", {}, "resnet-21: depth must be 6n .* nearest: 20, 26"),
        ("plain-2", {}, "nearest: 8, 14"),
        ("resnet-20", {"depth": 3}, "takes no option 'depth'; allowed: num_classes, in_channels, width, shortcut"),
        ("resnet-20", {"shortcut": "D"}, "unknown shortcut 'D'; allowed: A, B, C, scaling:λ"),
        (
            "resnet-20",
            {"order": "post"},
            "order 'post'; allowed: original, bn-after-addition, .*, pre-activation",
        ),
        ("plain-20", {"shortcut": "A"}, "plain-20 has no shortcuts"),
        ("plain-20", {"width": 0}, "width must be a whole number of at least 1, found 0"),
        ("plain-20", {"num_classes": -1}, "num_classes must be a whole number of at least 1, found -1"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, **options)


def test_a_block_without_shortcut_adds_nothing() -> None:
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(Block(nn.Identity(), None, nn.Identity())(x), x)
    assert torch.equal(Block(nn.Identity(), nn.Identity(), nn.Identity())(x), 2 * x)
