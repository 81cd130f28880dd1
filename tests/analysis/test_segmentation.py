"""Scores, predictions, receptive fields, augmentation and the drawing of segmentation networks."""

import itertools
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.networks import randomise_bn
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from sklearn import metrics
from torch import Tensor, nn

from resnotes import figures
from resnotes.analysis.prediction import SCALES, predict, probabilities
from resnotes.analysis.receptive_fields import effective_receptive_field, theoretical_receptive_field
from resnotes.analysis.scores import class_iou, confusion_matrix, mean_iou, pixel_accuracy
from resnotes.datasets import Normalization
from resnotes.errors import UsageError
from resnotes.figures.pspnet import pyramid_pooling
from resnotes.models.segmentation import SegmentationNetwork
from resnotes.training.augmentation import augment

AS_THEY_ARE = Normalization(torch.zeros(3, 1, 1), torch.tensor(1.0))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


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
def test_a_single_scale_is_the_largest_logit(training: bool) -> None:
    network = small("pspnet-small")
    images = torch.randint(256, (5, 3, 30, 41), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(images.float()).argmax(1)
    network.train(training)
    assert torch.equal(predict(network, images, AS_THEY_ARE, batch=2), expected)
    assert network.training is training
    alone = torch.cat([predict(network, image[None], AS_THEY_ARE) for image in images])
    assert torch.equal(alone, expected)


def mirrored(network: nn.Module) -> nn.Module:
    """The network that sees, and puts out, mirror images."""

    class Mirrored(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = network(x.flip(3))
            return logits.flip(3)

    return Mirrored()


@torch.no_grad()
def test_flip_is_the_mean_with_the_mirror_image() -> None:
    network = small("fcn-small").double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    both = probabilities(network, images, flip=True)
    sides = [probabilities(one.eval(), images) for one in (network, mirrored(network))]
    torch.testing.assert_close(both, sum(sides) / 2)
    assert not torch.allclose(both, sides[0])

    for module in network.modules():  # symmetric kernels make a symmetric network, on sides of a cell's centre each
        if isinstance(module, nn.Conv2d):
            module.weight.copy_((module.weight + module.weight.flip(3)) / 2)
    images = torch.randn(2, 3, 33, 33, dtype=torch.float64)
    torch.testing.assert_close(probabilities(network, images, flip=True), probabilities(network, images))


class Pixelwise(nn.Module):
    """Sees nothing but the pixel itself, so that crops cannot matter, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.sizes: list[tuple[int, int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(tuple(x.shape[2:]))
        logits: Tensor = self.conv(x)
        return logits


@pytest.mark.parametrize("size", [(24, 24), (25, 60), (20, 24), (57, 31)])
@torch.no_grad()
def test_crops_cover_the_image(size: tuple[int, int]) -> None:
    network = Pixelwise().eval()
    images = torch.randn(2, 3, *size)
    torch.testing.assert_close(probabilities(network, images, crop=24), network(images).softmax(1))
    crops = network.sizes[:-1]
    assert set(crops) == {tuple(min(side, 24) for side in size)}
    expected = math.prod(1 + math.ceil(max(0, side - 24) / 16) for side in size)  # 16 is 2/3 of the crop
    assert len(crops) == expected


@torch.no_grad()
def test_crops_are_averaged_where_they_overlap() -> None:
    network, images = small("fcn-small"), torch.randn(1, 3, 24, 36)
    left, right = (network(part).softmax(1) for part in (images[..., :24], images[..., 12:]))
    total = probabilities(network, images, crop=24)
    torch.testing.assert_close(total[..., :12], left[..., :12])
    torch.testing.assert_close(total[..., 24:], right[..., 12:])
    torch.testing.assert_close(total[..., 12:24], (left[..., 12:] + right[..., :12]) / 2)


@torch.no_grad()
def test_scales_are_averaged() -> None:
    network = Pixelwise().eval()
    images = torch.randn(1, 3, 1, 1).expand(1, 3, 20, 32)  # of one colour, which no resizing changes
    mean = probabilities(network, images, scales=SCALES, flip=True, crop=24)
    torch.testing.assert_close(mean, network(images).softmax(1))
    assert {(10, 16), (24, 24)} <= set(network.sizes)

    network, images = small("pspnet-small"), torch.randn(1, 3, 40, 40)
    one, half = (probabilities(network, images, scales=[scale]) for scale in (1, 0.5))
    both = probabilities(network, images, scales=[1, 0.5])
    torch.testing.assert_close(both, (one + half) / 2)
    torch.testing.assert_close(both.sum(1), torch.ones(1, 40, 40))


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
    assert theoretical_receptive_field(network.encoder).size == size - 2 * stride
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


def test_pyramid_pooling_sees_the_whole_image() -> None:
    network = small("pspnet-small", depths=(1, 1, 1))
    assert theoretical_receptive_field(network).size == math.inf
    image = torch.randn(1, 3, 128, 128)
    other = image.clone()
    other[..., -8:, -8:] += 10
    with torch.no_grad():
        changed = (network(image) != network(other)).any(1)[0]
        fcn = small("fcn-small", depths=(1, 1, 1))
        local = (fcn(image) != fcn(other)).any(1)[0]
    assert changed[0, 0] and not local[0, 0] and local[-1, -1]


def test_effective_receptive_field_of_a_known_gradient() -> None:
    """A blur with known weights: the gradient of every class is the kernel, up to a factor."""
    network = nn.Conv2d(2, 3, 5, padding=2, bias=False)
    kernel = torch.rand(5, 5)
    with torch.no_grad():
        network.weight.copy_(torch.randn(3, 2, 1, 1) * kernel)
    field = effective_receptive_field(network, torch.randn(3, 2, 20, 31), share=1)
    assert field.centre == (10, 15) and field.radius == 2 and field.size == 5
    expected = torch.zeros(20, 31, dtype=torch.float64)
    expected[8:13, 13:18] = kernel / kernel.sum()
    torch.testing.assert_close(field.map, expected, rtol=1e-5, atol=1e-7)
    inner = kernel[1:4, 1:4].sum() / kernel.sum()
    assert effective_receptive_field(network, torch.randn(3, 2, 20, 31), share=float(inner) * 0.999).radius == 1


def test_the_effective_field_is_smaller_and_pooling_widens_it() -> None:
    images = torch.randn(20, 3, 128, 128)
    fcn, pspnet = (small(name, depths=(1, 1, 1)) for name in ("fcn-small", "pspnet-small"))
    fields = [effective_receptive_field(network, images) for network in (fcn, pspnet)]
    assert all(field.map.sum() == pytest.approx(1) and field.map.shape == (128, 128) for field in fields)
    assert fields[0].size < theoretical_receptive_field(fcn).size < fields[1].size
    assert fields[0].map.argmax() // 128 in range(56, 73)
    assert all(p.grad is None for p in fcn.parameters())
    again = effective_receptive_field(fcn, images)
    assert torch.equal(again.map, fields[0].map), "the signs are seeded"


def test_receptive_fields_that_cannot_be_measured_are_refused() -> None:
    network = small("fcn-small")
    with pytest.raises(UsageError, match="share must be above 0"):
        effective_receptive_field(network, torch.randn(1, 3, 32, 32), share=95)
    nn.init.zeros_(network.head[-1].weight)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="do not depend"):
        effective_receptive_field(network, torch.randn(1, 3, 32, 32))


# Augmentation


def encoded(labels: Tensor) -> Tensor:
    """Images whose first channel is 40 times the label plus 20, and the others its row and column."""
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in labels.shape[1:]), indexing="ij")
    first = 40 * labels + 20
    return torch.stack([first, rows.expand_as(first), columns.expand_as(first)], 1).to(torch.uint8)


def scenes(n: int = 12, height: int = 60, width: int = 80) -> Tensor:
    """Labels ``[n, height, width]``: blocks of 20x20 pixels."""
    return torch.randint(5, (n, height // 20, width // 20)).repeat_interleave(20, 1).repeat_interleave(20, 2)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    "options", [{}, {"blur": False}, {"scale": (1, 1)}, {"rotate": 0}, {"mirror": False}, {"rotate": 90}]
)
def test_labels_stay_with_their_pixels(options: dict[str, object]) -> None:
    labels = scenes()
    images, moved = augment(encoded(labels), labels, generator(), crop=(48, 56), **options)
    assert images.shape == (12, 3, 48, 56) and images.dtype == torch.uint8
    assert moved.shape == (12, 48, 56) and moved.dtype == torch.int64
    # Away from borders: all labels within 4 pixels are the same.
    windows = nn.functional.pad(moved.double()[:, None], (4,) * 4, value=-1).unfold(2, 9, 1).unfold(3, 9, 1)[:, 0]
    inner = (windows.amax((3, 4)) == windows.amin((3, 4))) & (moved != 255)
    assert inner.float().mean() > 0.15
    assert ((images[:, 0].long() - (40 * moved + 20)).abs() <= 1)[inner].all()
    assert len(moved[inner].unique()) == 5


@pytest.mark.parametrize("mirror", [False, True])
def test_without_scale_and_rotation_pixels_are_kept(mirror: bool) -> None:
    labels = scenes(height=60, width=40)
    images = encoded(labels)
    options = {"scale": (1, 1), "rotate": 0, "blur": False, "mirror": mirror}
    same, kept = augment(images, labels, generator(), crop=(60, 40), **options)
    flipped = [i for i in range(12) if not torch.equal(same[i], images[i])]
    assert 2 < len(flipped) < 10 if mirror else not flipped
    same[flipped], kept[flipped] = same[flipped].flip(3), kept[flipped].flip(2)
    assert torch.equal(same, images) and torch.equal(kept, labels)

    cropped, kept = augment(images, labels, generator(), crop=32, **options)
    corners = set()
    for image, label, source, where in zip(cropped, kept, images, labels, strict=True):
        if image[2, 0, 0] > image[2, 0, 1]:
            image, label = image.flip(2), label.flip(1)
        top, left = int(image[1, 0, 0]), int(image[2, 0, 0])
        assert torch.equal(image, source[:, top : top + 32, left : left + 32])
        assert torch.equal(label, where[top : top + 32, left : left + 32])
        corners.add((top, left))
    assert len(corners) > 6


def test_outside_is_ignored_and_of_the_mean_colour() -> None:
    labels = scenes(height=40, width=40)
    images = encoded(labels).float() / 255
    options = {"scale": (1, 1), "rotate": 0, "blur": False, "mirror": False}
    larger, moved = augment(images, labels, generator(), crop=(60, 51), ignore_index=77, **options)
    assert larger.dtype == torch.float32
    torch.testing.assert_close(larger[:, :, 10:50, 5:45], images, rtol=0, atol=1e-4)
    assert torch.equal(moved[:, 10:50, 5:45], labels)
    outside = torch.ones(60, 51, dtype=torch.bool)
    outside[10:50, 5:45] = False
    assert (moved[:, outside] == 77).all()
    torch.testing.assert_close(
        larger[:, :, outside], images.mean((2, 3))[:, :, None].expand(-1, -1, int(outside.sum()))
    )


def test_scale_and_rotation_are_those_asked_for() -> None:
    """Rows and columns of the image, read off the result, tell the map between the two."""
    labels = torch.zeros(64, 240, 240, dtype=torch.int64)
    images = encoded(labels).float()
    moved, _ = augment(images, labels, generator(), crop=33, scale=(0.5, 2), rotate=10, mirror=True, blur=False)
    middle = moved[:, 1:, 16, 16]
    right, down = moved[:, 1:, 16, 17] - middle, moved[:, 1:, 17, 16] - middle  # rows and columns per pixel
    assert (right.norm(dim=1) - down.norm(dim=1)).abs().max() < 1e-3, "squares stay squares"
    scales = 1 / down.norm(dim=1)
    assert 0.49 < scales.min() < 0.7 and 1.8 < scales.max() < 2.02
    mirrored = right[:, 1] < 0
    assert 20 < mirrored.sum() < 44
    angles = torch.rad2deg(torch.atan(down[:, 1] / down[:, 0]))
    assert 8 < angles.abs().max() < 10.01 and angles.min() < -4 < 4 < angles.max()
    assert 20 < (angles.abs() < 0.01).sum() < 44, "half of them are not rotated"


def test_half_of_the_images_are_blurred() -> None:
    labels = scenes(height=40, width=40)
    images = torch.rand(12, 3, 40, 40)
    options = {"crop": 40, "scale": (1, 1), "rotate": 0, "mirror": False}
    sharp, blurred = (augment(images, labels, generator(), blur=blur, **options) for blur in (False, True))
    assert torch.equal(sharp[1], blurred[1])
    variances = blurred[0].var((1, 2, 3)) / sharp[0].var((1, 2, 3))
    assert 2 < (variances < 0.2).sum() < 10 and ((variances < 0.2) | (variances == 1)).all()


def test_the_generator_decides() -> None:
    labels = scenes()
    first, again, other = (augment(encoded(labels), labels, generator(seed), crop=32) for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])
    state = torch.get_rng_state()
    augment(encoded(labels), labels, generator(), crop=32)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 40, 41), {}, "do not fit images"),
        ((2, 40, 40), {"scale": (2, 0.5)}, "scale must be two positive factors in order"),
        ((2, 40, 40), {"scale": (0, 1)}, "scale must be"),
    ],
)
def test_what_cannot_be_augmented_is_refused(shape: tuple[int, ...], options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        augment(torch.rand(2, 3, 40, 40), torch.zeros(shape, dtype=torch.int64), generator(), crop=32, **options)


# The drawing


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bins": (1,)},
        {"reduction": False, "pooling": "max"},
        {"bins": (1, 2, 3), "reduction": False},
        {"bins": (1, 2, 3, 4, 6, 8)},
    ],
)
def test_nothing_in_the_drawing_overlaps_or_is_clipped(options: dict[str, object]) -> None:
    with mpl.rc_context({"backend": "agg"}):
        figures.use_style()
        with torch.device("meta"):
            network = SegmentationNetwork("pspnet-resnet152", **options)  # type: ignore[arg-type]
        fig = pyramid_pooling(network)
        fig.draw_without_rendering()
        assert fig.get_figwidth() == 7
        (ax,) = fig.axes
        texts = {text: text.get_window_extent() for text in fig.findobj(Text) if text.get_text()}
        for text, extent in texts.items():
            assert fig.bbox.x0 <= extent.x0 and extent.x1 <= fig.bbox.x1, text
            assert fig.bbox.y0 <= extent.y0 and extent.y1 <= fig.bbox.y1, text
        for (one, a), (other, b) in itertools.combinations(texts.items(), 2):
            assert not a.overlaps(b), (one, other)
        for patch in ax.patches:
            box = patch.get_window_extent()
            assert fig.bbox.x0 <= box.x0 and box.x1 <= fig.bbox.x1 and fig.bbox.y0 <= box.y0 and box.y1 <= fig.bbox.y1
            if isinstance(patch, FancyBboxPatch):
                (inside,) = [extent for extent in texts.values() if box.contains(*extent.get_points().mean(0))]
                assert box.x0 < inside.x0 and inside.x1 < box.x1

        written = [text.get_text() for text in texts]
        pyramid = network.pyramid
        assert [text for text in written if text in {f"{side}×{side}" for side in range(1, 9)}] == [
            f"{side}×{side}" for side in pyramid.bins
        ]
        assert f"upsampled,\n{pyramid.level_channels} channels" in written
        assert "2048\nchannels" in written and f"{pyramid.out_channels}\nchannels" in written
        assert written.count("1×1 conv") == 1 + pyramid.reduction * len(pyramid.bins)
    plt.close("all")


def test_a_network_without_pyramid_is_not_drawn() -> None:
    with pytest.raises(UsageError, match="expected a pyramid of 1 to 6 levels to draw, found 0 in fcn-small"):
        pyramid_pooling(small("fcn-small"))
