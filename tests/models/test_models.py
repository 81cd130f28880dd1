"""Plain, original and pre-activation networks: counted, taken apart, and compared with published weights."""

import math

import pytest
import torch

from resnotes import models
from resnotes.book import papers
from resnotes.errors import UsageError
from resnotes.models import count_parameters

TABLE_6 = papers.numbers("he2015").query("where == 'Table 6' and metric == 'parameters'")


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
        (
            "vgg-20",
            {},
            r"'vgg-20'; allowed: plain-N \(N = 6n \+ 2 < 10000\), .*, prebottleneck-N \(N = 9n .*, resnet18",
        ),
        ("pspnet-vgg", {}, r"unknown network .pspnet-vgg.; allowed: .*pspnet-E \(E = small, resnet18, .*resnet152\)"),
        ("resnet-20b", {}, "unknown network"),
        ("resnet-9999999998", {}, "unknown network"),
        ("vit-10000", {}, r"unknown network 'vit-10000'; allowed: .*vit-L \(L = 1 to 9999\)"),
        ("resnet-21", {}, "resnet-21: depth must be 6n .* nearest: 20, 26"),
        ("plain-2", {}, "nearest: 8, 14"),
        ("resnet-20", {"depth": 3}, "takes no option 'depth'; allowed: num_classes, in_channels, width, shortcut"),
        ("resnet-20", {"shortcut": "D"}, "unknown shortcut 'D'; allowed: A, B, C, scaling:λ"),
        ("resnet-20", {"order": ["original"]}, r"order must be a text, found \['original'\]"),
        ("plain-20", {"shortcut": "A"}, "plain-20 has no shortcuts"),
        ("plain-20", {"alpha": 0.0}, "plain-20 has no shortcuts, so it takes no option alpha"),
        *(("resnet-8", {"alpha": value}, "alpha must be a finite number") for value in (True, "0", math.nan, math.inf)),
        *(("vgg-15", {"width": value}, "vgg-15: width must be a whole number") for value in (0, 1.5, True, "8")),
        *((name, {"width": 0}, f"{name}: width must be .* at least 1, found 0") for name in ("plain-20", "alexnet")),
        ("alexnet", {"batch_norm": 1}, "alexnet: batch_norm must be True or False, found 1"),
        ("resnet18", {"width": "a"}, "resnet18: width must be a whole number of at most 31 bits, found 'a'"),
        ("vit-0", {}, "vit-0: layers must be a whole number of at least 1, found 0"),
        ("vit-2", {"norm": "both"}, "norm must be one of pre, post, found 'both'"),
        ("vit-2", {"patch": 3}, "vit-2: patch must divide size, found patch=3, size=8"),
        ("vit-2", {"heads": 5}, "vit-2: heads must divide width, found heads=5, width=64"),
        ("fcn-small", {"bins": (1,)}, "fcn-small takes no option 'bins'"),
        ("fcn-resnet50", {"depths": (1, 1, 1)}, "fcn-resnet50 takes no option 'depths'"),
        ("fcn-small", {"depths": (1,)}, r"depths must be of two stages or more, found \(1,\)"),
        ("fcn-small", {"dilations": (1, 2)}, "one for each of 4 stages and one for the head, found 2"),
        ("fcn-resnet18", {"dilations": (1, 1, 2)}, "one for each of 4 stages and one for the head, found 3"),
        ("fcn-small", {"auxiliary": None}, "auxiliary must be a finite number, found None"),
        ("fcn-small", {"dropout": 1}, "dropout must be at least 0 and below 1, found 1"),
        ("pspnet-small", {"bins": (1, 0)}, r"bins must be a whole number of at least 1, found \(1, 0\)"),
        ("pspnet-small", {"pooling": ["max"]}, r"pooling must be one of average, max, found \['max'\]"),
        ("pspnet-small", {"output_stride": 16}, "unknown output stride 16; allowed: 4, 8"),
    ],
)
def test_what_cannot_be_built_is_refused(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        models.build(name, **options)
