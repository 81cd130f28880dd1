"""FCN and PSPNet: one network with the pyramid off or on, equal to torchvision's where torchvision has it."""

import itertools
from typing import Any

import pytest
import torch
import torchvision
from kit.networks import warmed_up
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import models
from resnotes.models import count_parameters
from resnotes.models.segmentation import (
    NAMES,
    Outputs,
    PooledBatchNorm,
    PyramidPooling,
    SegmentationNetwork,
    upsample,
)

# Zhao et al. 2017, Tables 1 and 2, but for the encoder.
MAX, WHOLE = {"pooling": "max"}, {"reduction": False}
TABLE_1: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("fcn", {}),
    "B1+MAX": ("pspnet", {"bins": (1,), **MAX, **WHOLE}),
    "B1+AVE": ("pspnet", {"bins": (1,), **WHOLE}),
    "B1236+MAX": ("pspnet", {**MAX, **WHOLE}),
    "B1236+AVE": ("pspnet", WHOLE),
    "B1236+MAX+DR": ("pspnet", MAX),
    "B1236+AVE+DR": ("pspnet", {}),
}
TABLE_2 = {f"auxiliary {weight}": ("fcn", {"auxiliary": weight}) for weight in (0, 0.3, 0.4, 0.6, 0.9)}
ROWS = TABLE_1 | TABLE_2


def small(name: str, **options: Any) -> SegmentationNetwork:
    return SegmentationNetwork(name, **{"num_classes": 5, "width": 4, **options})


def on_meta(name: str, **options: Any) -> SegmentationNetwork:
    with torch.device("meta"):
        return SegmentationNetwork(name, **options)


# Against torchvision


@torch.no_grad()
def test_fcn_is_torchvisions() -> None:
    """Encoder, head and auxiliary head; the upsampling differs, torchvision's stretches the map."""
    theirs = torchvision.models.segmentation.fcn_resnet50(
        weights=None, weights_backbone=None, aux_loss=True, num_classes=5
    )
    warmed_up(theirs)
    ours = SegmentationNetwork("fcn-resnet50", num_classes=5)
    prefixes = {"backbone": "encoder", "classifier": "head", "aux_classifier": "auxiliary"}
    renamed = {}
    for key, value in theirs.state_dict().items():
        part, _, rest = key.partition(".")
        renamed[f"{prefixes[part]}.{rest}"] = value
    ours.load_state_dict(renamed, strict=True)

    theirs.eval(), ours.eval()
    images = torch.randn(2, 3, 65, 97)
    expected = theirs.backbone(images)
    before, last = ours.encoder(images)
    assert last.shape == (2, 2048, 9, 13)
    torch.testing.assert_close(last, expected["out"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(before, expected["aux"], rtol=1e-4, atol=1e-5)
    cells = theirs.classifier(expected["out"])
    aligned = F.interpolate(cells, images.shape[2:], mode="bilinear", align_corners=True)
    torch.testing.assert_close(ours(images), aligned, rtol=1e-4, atol=1e-4)
    auxiliary = ours.auxiliary(before)
    torch.testing.assert_close(auxiliary, theirs.aux_classifier(expected["aux"]), rtol=1e-4, atol=1e-4)


# Counts


def test_parameter_counts() -> None:
    weights = torchvision.models.segmentation.FCN_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1
    assert count_parameters(on_meta("fcn-resnet50", num_classes=21)) == weights.meta["num_params"]
    fcn, pspnet = on_meta("fcn-resnet50"), on_meta("pspnet-resnet50")
    levels = 4 * (2048 * 512 + 2 * 512)
    assert count_parameters(pspnet) - count_parameters(fcn) == levels + 3 * 3 * 2048 * 512
    assert count_parameters(pspnet) == 49_057_132


# One network, pyramid off or on


def test_the_baseline_is_the_network_with_the_pyramid_taken_out() -> None:
    networks = []
    for name in ("fcn-small", "pspnet-small"):
        torch.manual_seed(1)
        networks.append(small(name))
    fcn, pspnet = (network.state_dict() for network in networks)
    assert {key for key in pspnet if key not in fcn} == {key for key in pspnet if key.startswith("pyramid.")}
    assert [key for key in fcn if fcn[key].shape != pspnet[key].shape] == ["head.0.weight"]
    same = [key for key in fcn if key.startswith(("encoder.", "auxiliary."))]
    assert all(torch.equal(fcn[key], pspnet[key]) for key in same), "one seed, one encoder"


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_papers_tables_takes_a_step(row: str) -> None:
    family, options = ROWS[row]
    network = small(f"{family}-resnet50", **options)
    images, labels = torch.randn(2, 3, 33, 49), torch.randint(5, (2, 33, 49))
    outputs = network(images)
    assert isinstance(outputs, Outputs)
    assert outputs.logits.shape == (2, 5, 33, 49)
    loss = F.cross_entropy(outputs.logits, labels)
    if options.get("auxiliary") == 0:
        assert outputs.auxiliary is None
    else:
        assert outputs.auxiliary.shape == (2, 5, 33, 49)
        loss = loss + options.get("auxiliary", 0.4) * F.cross_entropy(outputs.auxiliary, labels)
    torch.testing.assert_close(network.loss(outputs, labels), loss)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    assert network.eval()(images).shape == (2, 5, 33, 49)


@pytest.mark.parametrize(("pooling", "reduction"), list(itertools.product(["average", "max"], [True, False])))
@torch.no_grad()
def test_pyramid_pooling_by_arithmetic(pooling: str, reduction: bool) -> None:
    """Grids of 1 and 2 cells a side, on a map of 4x4 cells, whose corners the grids' corners meet."""
    module = PyramidPooling(6, (1, 2), pooling=pooling, reduction=reduction).eval()
    for level in module.levels:
        if reduction:
            nn.init.uniform_(level[2].bias, -1, 1)
    x = torch.randn(2, 6, 4, 4)
    out = module(x)
    assert out.shape == (2, module.out_channels, 4, 4) == (2, 12 if reduction else 18, 4, 4)
    assert torch.equal(out[:, :6], x)

    def cell(side: int, i: int, j: int) -> Tensor:
        n = 4 // side
        window = x[:, :, i * n : (i + 1) * n, j * n : (j + 1) * n]
        value = window.mean((2, 3)) if pooling == "average" else window.amax((2, 3))
        if reduction:
            _, convolution, bn, _ = module.levels[side - 1]
            value = (value @ convolution.weight[:, :, 0, 0].T / (1 + 1e-5) ** 0.5 + bn.bias).relu()
        return value

    one, two = out[:, 6:].chunk(2, 1)
    torch.testing.assert_close(one, cell(1, 0, 0)[:, :, None, None].expand_as(one))
    for i, j in itertools.product((0, 1), (0, 1)):
        torch.testing.assert_close(two[:, :, 3 * i, 3 * j], cell(2, i, j))
    torch.testing.assert_close(two[:, :, 1, 0], (2 * cell(2, 0, 0) + cell(2, 1, 0)) / 3)


# Sizes and batches


@pytest.mark.parametrize("size", [(1, 1), (31, 47), (33, 70)])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn-small", {}),
        ("pspnet-small", {"output_stride": 8, "depths": (1, 2, 1)}),
        ("pspnet-resnet18", {}),
    ],
)
@torch.no_grad()
def test_logits_have_the_images_size(name: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    network = small(name, **options).eval()
    images = torch.randn(2, 3, *size)
    logits = network(images)
    assert logits.shape == (2, 5, *size)
    stride = network.encoder.strides[-1]
    before, last = network.encoder(images)
    assert before.shape[2:] == last.shape[2:] or stride == 8
    assert last.shape[2:] == tuple(-(-side // stride) for side in size)
    # Cells are centred on the pixels at multiples of the stride: the logits there are those of the cells.
    torch.testing.assert_close(logits[:, :, ::stride, ::stride], network.head(network.pyramid(last)))


@torch.no_grad()
def test_upsampling_aligns_the_corners_and_repeats_what_is_left() -> None:
    cells = torch.randn(2, 3, 4, 5)
    aligned = F.interpolate(cells, (25, 33), mode="bilinear", align_corners=True)
    torch.testing.assert_close(upsample(cells, (25, 33), 8), aligned)
    larger = upsample(cells, (29, 40), 8)
    torch.testing.assert_close(larger[:, :, :25, :33], aligned)
    torch.testing.assert_close(larger[:, :, 28, 39], cells[:, :, -1, -1])


def test_a_single_image_trains() -> None:
    network = small("pspnet-small", bins=(1,))
    network.loss(network(torch.randn(1, 3, 40, 40)), torch.randint(5, (1, 40, 40))).backward()
    pooled = network.pyramid.levels[0][2]
    assert pooled.bias.grad.any()
    assert (pooled.running_mean == 0).all() and (pooled.running_var == 1).all(), "one value has no statistics"


def test_batch_norm_of_a_pooled_map() -> None:
    ours, usual = PooledBatchNorm(3), nn.BatchNorm2d(3)
    for x in (torch.randn(2, 3, 1, 1), torch.randn(1, 3, 2, 1)):
        assert torch.equal(ours(x), usual(x))
    torch.testing.assert_close(ours.state_dict(), usual.state_dict())
    x = torch.randn(1, 3, 1, 1)
    torch.testing.assert_close(ours(x), usual.eval()(x))
    torch.testing.assert_close(ours.state_dict(), usual.state_dict())
    with pytest.raises(ValueError, match="more than 1 value"):
        usual.train()(x)


# Loss, initial weights, parameter groups


def test_ignored_pixels_do_not_count() -> None:
    network = small("fcn-small")
    outputs, labels = network(torch.randn(2, 3, 16, 16)), torch.randint(5, (2, 16, 16))
    labels[:, :9] = 255
    logits, auxiliary = (part[:, :, 9:].permute(0, 2, 3, 1).reshape(-1, 5) for part in outputs)
    kept = labels[:, 9:].flatten()
    expected = F.cross_entropy(logits, kept) + 0.4 * F.cross_entropy(auxiliary, kept)
    torch.testing.assert_close(network.loss(outputs, labels), expected)
    nothing = network.loss(outputs, torch.full_like(labels, 255))
    nothing.backward()
    assert nothing == 0 and all((p.grad == 0).all() for p in network.parameters())


# By name


@pytest.mark.parametrize("name", NAMES)
def test_networks_are_built_again_from_name_and_options(name: str) -> None:
    network = models.build(name, num_classes=5, in_channels=1, width=4)
    again = models.build(network.name, **network.options)
    again.load_state_dict(network.state_dict())
    assert models.from_label(models.label(network.name, network.options)) == (name, network.options)
    assert network.eval()(torch.randn(1, 1, 16, 16)).shape == (1, 5, 16, 16)
