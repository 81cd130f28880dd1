"""Scores, predictions and receptive fields of segmentation networks."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.networks import randomise_bn
from sklearn import metrics
from torch import nn
from torch.nn import functional as F

from resnotes.analysis.prediction import predict
from resnotes.analysis.receptive_fields import (
    EffectiveField,
    effective_receptive_field,
    theoretical_receptive_field,
)
from resnotes.analysis.scores import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from resnotes.datasets import Normalization
from resnotes.errors import UsageError
from resnotes.models.segmentation import SegmentationNetwork

AS_THEY_ARE = Normalization(torch.zeros(3, 1, 1), torch.tensor(1.0))


@torch.no_grad()
def small(name: str, **options: object) -> SegmentationNetwork:
    """In eval mode, with BN that is not the identity."""
    network = SegmentationNetwork(name, **{"num_classes": 5, "width": 4, **options})  # type: ignore[arg-type]
    randomise_bn(network)
    return network.eval()


# Scores


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 2**31), st.booleans())
def test_scores_are_scikit_learns(num_classes: int, pixels: int, seed: int, ignored: bool) -> None:
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(num_classes, size=(2, 2, pixels))
    if ignored:
        labels[rng.random(labels.shape) < 0.3] = 255
    confusion = confusion_matrix(torch.from_numpy(predictions), torch.from_numpy(labels), num_classes)
    kept = labels != 255
    truth, found = labels[kept], predictions[kept]
    if not len(truth):
        assert confusion.sum() == 0 and math.isnan(mean_iou(confusion)) and math.isnan(pixel_accuracy(confusion))
        return
    classes = range(num_classes)
    assert confusion.dtype == torch.int64
    assert np.array_equal(confusion, metrics.confusion_matrix(truth, found, labels=classes))
    present = np.union1d(truth, found)
    expected = metrics.jaccard_score(truth, found, labels=present, average=None)
    np.testing.assert_allclose(class_iou(confusion)[present], expected)
    assert class_iou(confusion).isnan().sum() == num_classes - len(present)
    assert mean_iou(confusion) == pytest.approx(expected.mean())
    assert pixel_accuracy(confusion) == pytest.approx(metrics.accuracy_score(truth, found))


def test_a_class_that_is_only_predicted_counts_and_an_absent_one_does_not() -> None:
    confusion = confusion_matrix(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), 3)
    np.testing.assert_array_equal(class_iou(confusion), [2 / 3, 0, np.nan])
    assert mean_iou(confusion) == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("predictions", "labels", "message"),
    [
        ([0, 1], [0], r"one shape, found \(2,\) and \(1,\)"),
        ([0, 1], [0, 3], "expected labels of 0 to 2, or 255; found 0 to 3"),
        ([0, 1], [0, -1], "found -1 to 0"),
        ([0, -1], [0, 1], "expected predictions of 0 to 2; found -1 to 0"),
        ([3, 0], [255, 0], None),
    ],
)
def test_labels_outside_the_range_are_refused(predictions: list[int], labels: list[int], message: str | None) -> None:
    arguments = torch.tensor(predictions), torch.tensor(labels), 3
    if message is None:
        assert confusion_matrix(*arguments).sum() == 1
    else:
        with pytest.raises(UsageError, match=message):
            confusion_matrix(*arguments)


# Predictions


@pytest.mark.parametrize("training", [True, False])
def test_predictions_are_the_largest_logits(training: bool) -> None:
    network = small("pspnet-small")
    images = torch.randint(256, (5, 3, 30, 41), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(images.float()).argmax(1)
    network.train(training)
    assert torch.equal(predict(network, images, AS_THEY_ARE, batch=2), expected)
    assert network.training is training
    alone = torch.cat([predict(network, image[None], AS_THEY_ARE) for image in images])
    assert torch.equal(alone, expected)


# Receptive fields


@pytest.mark.parametrize(
    ("name", "options", "size", "stride"),
    [
        ("fcn-small", {}, 103, 4),
        ("fcn-small", {"depths": (1, 1, 1)}, 55, 4),
        ("fcn-small", {"depths": (1, 1, 1), "output_stride": 8}, 63, 8),
        # torchvision's ResNet-50 sees 427 pixels at stride 32 (layers 11, 35, 91, 267 without dilation).
        ("fcn-resnet50", {"output_stride": 32}, 427 + 2 * 32, 32),
    ],
)
def test_theoretical_receptive_field(name: str, options: dict[str, object], size: int, stride: int) -> None:
    assert theoretical_receptive_field(small(name, **options)) == (size, stride)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fcn-small", {"depths": (1, 1, 1)}),
        ("fcn-small", {"depths": (1, 1, 2), "output_stride": 8}),
        ("fcn-small", {"depths": (1, 1), "dilations": (2, 4, 9)}),
        ("fcn-resnet18", {}),
    ],
)
def test_nothing_outside_the_receptive_field_matters_and_its_edge_does(name: str, options: dict[str, object]) -> None:
    # Positive weights, and BN without shift: no ReLU cuts a path off, so that every pixel in the field counts.
    network = small(name, width=2, **options).double()
    with torch.no_grad():
        for key, parameter in network.named_parameters():
            parameter.abs_() if parameter.ndim > 1 or key.endswith("weight") else parameter.zero_()
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.zero_()
    size, stride = theoretical_receptive_field(network)
    head = network.head[0].dilation[0]
    assert theoretical_receptive_field(network.encoder).size == size - 2 * stride * head
    reach = (int(size) - 1) // 2
    side = 2 * reach + 2 * stride + 1
    pixel = -(-reach // stride) * stride
    image = torch.rand(1, 3, side, side, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(network(image)[0, :, pixel, pixel].sum(), image)
    rows, columns = gradient.abs().sum((0, 1)).nonzero(as_tuple=True)
    # Max pooling picks one pixel, so that the outermost may be left out.
    slack = 2 if name == "fcn-resnet18" else 0
    for found in (rows, columns):
        assert pixel - reach <= found.min() <= pixel - reach + slack
        assert pixel + reach - slack <= found.max() <= min(pixel + reach, side - 1)
    assert slack or len(rows) == size**2, "a field without holes"


def test_effective_receptive_field_of_a_known_gradient() -> None:
    """A blur with known weights: the gradient of every class is the kernel, up to a factor."""
    network = nn.Conv2d(2, 3, 5, padding=2, bias=False)
    kernel = torch.rand(5, 5)
    with torch.no_grad():
        network.weight.copy_(torch.randn(3, 2, 1, 1) * kernel)
    field = effective_receptive_field(network, torch.randn(3, 2, 20, 31))
    assert field.centre == (10, 15) and field.radius == 2 and field.size == 5
    expected = torch.zeros(20, 31, dtype=torch.float64)
    expected[8:13, 13:18] = kernel / kernel.sum()
    torch.testing.assert_close(field.map, expected, rtol=1e-5, atol=1e-7)
    rim = F.pad(torch.zeros(3, 3), (1, 1, 1, 1), value=1.0)
    for share, radius in ((0.94, 2), (0.96, 1)):  # that is within
        inner = share * kernel * (1 - rim) / (kernel * (1 - rim)).sum()
        with torch.no_grad():
            network.weight.copy_(torch.randn(3, 2, 1, 1) * (inner + (1 - share) * rim / 16))
        assert effective_receptive_field(network, torch.randn(3, 2, 20, 31)).radius == radius


@pytest.mark.parametrize(("shape", "theory", "side"), [((64, 64), 31, 30.2), ((120, 160), 451, 152)])
def test_a_field_is_compared_with_one_that_weighs_all_pixels_alike(
    shape: tuple[int, int], theory: float, side: float
) -> None:
    field = EffectiveField(torch.ones(shape), (shape[0] // 2, shape[1] // 2), radius=13)
    assert field.relative(theory) == pytest.approx(27 / side, rel=0.002)


def test_the_effective_field_is_smaller_and_pooling_widens_it() -> None:
    images = torch.randn(20, 3, 128, 128)
    fcn, pspnet = (small(name, depths=(1, 1, 1)) for name in ("fcn-small", "pspnet-small"))
    fields = [effective_receptive_field(network, images) for network in (fcn, pspnet)]
    assert all(field.map.sum() == pytest.approx(1) and field.map.shape == (128, 128) for field in fields)
    assert fields[0].size < theoretical_receptive_field(fcn).size < fields[1].size
    assert theoretical_receptive_field(pspnet).size == math.inf
    assert all(p.grad is None for p in fcn.parameters())
    again = effective_receptive_field(fcn, images)
    assert torch.equal(again.map, fields[0].map), "the signs are seeded"


def test_receptive_fields_that_cannot_be_measured_are_refused() -> None:
    network = small("fcn-small")
    nn.init.zeros_(network.head[-1].weight)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="do not depend"):
        effective_receptive_field(network, torch.randn(1, 3, 32, 32))
