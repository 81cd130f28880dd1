"""Plain, original and pre-activation networks: counted, taken apart, and compared with published weights."""

import math

import pytest
import torch
from kit.networks import option_a
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


def test_shortcuts_cost_no_parameters_with_option_a() -> None:
    networks = models.build("plain-8"), models.build("resnet-8"), models.build("resnet-8", shortcut="B")
    plain, residual, projected = map(count_parameters, networks)
    assert plain == residual
    # Two 1x1 convolutions and their BN: 16 to 32 and 32 to 64 channels.
    assert projected - residual == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


# Blocks and heads against a few lines of arithmetic


@pytest.mark.parametrize("size", [(8, 8), (7, 9), (1, 2)])
def test_zero_padding_equals_a_loop(size: tuple[int, int]) -> None:
    x = torch.randn(2, 6, *size)
    assert torch.equal(ZeroPadShortcut(6, 12, 2)(x), option_a(x))


# Initialisation and options


def test_convolutions_are_drawn_with_fan_out() -> None:
    network = models.build("resnet-8", shortcut="B")
    conv1 = network.blocks[2].residual.conv1.weight  # 32 channels in, 64 out: fan-in and fan-out differ
    expected = math.sqrt(2 / (3 * 3 * 64))
    # The standard error of a standard deviation is itself over sqrt(2 n); 4 of them, n = 18,432.
    assert conv1.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * conv1.numel()))
    projection = network.blocks[2].shortcut.conv.weight
    assert projection.std().item() == pytest.approx(math.sqrt(2 / 64), rel=4 / math.sqrt(2 * projection.numel()))
    assert (network.head.fc.bias == 0).all()


@pytest.mark.parametrize("name", ["plain-8", "resnet-8", "preresnet-8"])
@pytest.mark.parametrize("size", [(33, 21), (1, 1)])
def test_any_channels_classes_width_and_image_size(name: str, size: tuple[int, int]) -> None:
    network = models.build(name, num_classes=7, in_channels=2, width=6).eval()
    assert network(torch.randn(3, 2, *size)).shape == (3, 7)
    assert network.stem.conv.weight.shape == (6, 2, 3, 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("vgg-20", {}, r"'vgg-20'; allowed: plain-N \(N = 6n \+ 2\), .*, prebottleneck-N \(N = 9n \+ 2\), resnet18"),
        ("resnet-20b", {}, "unknown network"),
        ("resnet-21", {}, "resnet-21: depth must be 6n .* nearest: 20, 26"),
        ("plain-2", {}, "nearest: 8, 14"),
        ("resnet-20", {"depth": 3}, "takes no option 'depth'; allowed: num_classes, in_channels, width, shortcut"),
        ("resnet-20", {"shortcut": "D"}, "unknown shortcut 'D'; allowed: A, B, C, scaling:λ"),
        ("resnet-20", {"order": ["original"]}, r"order \['original'\]; allowed: original, .*, pre-activation"),
        ("plain-20", {"shortcut": "A"}, "plain-20 has no shortcuts"),
        ("plain-20", {"width": 0}, "width must be a whole number of at least 1, found 0"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, **options)


def test_a_block_without_shortcut_adds_nothing() -> None:
    x = torch.randn(1, 2, 3, 3)
    assert torch.equal(Block(nn.Identity(), None, nn.Identity())(x), x)
    assert torch.equal(Block(nn.Identity(), nn.Identity(), nn.Identity())(x), 2 * x)
