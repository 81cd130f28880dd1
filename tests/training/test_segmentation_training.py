"""Training for segmentation, against scikit-learn and arithmetic by hand."""

import copy
import dataclasses
import itertools
import os
from typing import Any

import pytest
import torch
from sklearn.metrics import jaccard_score
from torch import Tensor, nn
from torch.nn import functional as F

from resnotes import datasets, models
from resnotes.analysis.prediction import predict
from resnotes.datasets import Normalization, Sample, Segmentation, Split
from resnotes.datasets.segmentation import Lazy, Stacked
from resnotes.errors import DatasetError, UsageError
from resnotes.models.segmentation import SegmentationNetwork
from resnotes.training.loop import Training, train
from resnotes.training.recipe import Recipe
from resnotes.training.segmentation import SegmentationTask, evaluate

IGNORED = 255
NONE = Normalization(torch.zeros(3, 1, 1), torch.ones(3, 1, 1))
OPTIONS: dict[str, Any] = {"width": 4, "depths": (1, 1), "head_width": 4, "dropout": 0.0}
# Three iterations an epoch.
SHORT = Recipe(iterations=7, batch_size=8, lr=0.1, precision="float32")
STILL = dataclasses.replace(SHORT, iterations=1, batch_size=24, lr=1e-12, flip=False)  # one batch, weights that stay


@pytest.fixture(scope="module")
def data() -> Segmentation:
    """24 training and 10 test scenes; the upper quarter of every other one is not labelled."""
    scenes = datasets.load("scenes", train=24, test=10)
    for split in (scenes.train, scenes.test):
        assert isinstance(split, Stacked)
        split.labels[::2, :16] = IGNORED
    return scenes


def stacked(split: Split) -> Stacked:
    assert isinstance(split, Stacked)
    return split


def network(seed: int = 0, **options: Any) -> SegmentationNetwork:
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        built: Any = models.build("pspnet-small", num_classes=25, **{**OPTIONS, **options})
    assert isinstance(built, SegmentationNetwork)
    return built


def fit(data: Segmentation, recipe: Recipe = SHORT) -> tuple[SegmentationNetwork, Training]:
    trained = network()
    return trained, train(trained, data, recipe, seed=0, device="cpu")


def task(data: Segmentation, recipe: Recipe = SHORT) -> SegmentationTask:
    return SegmentationTask(data, recipe, seed=0, device=torch.device("cpu"), precision="float32")


def scikit_learns(predictions: Tensor, labels: Tensor) -> tuple[float, float]:
    """Pixel error and mean IoU in percent, over the pixels that are labelled."""
    counted = labels != IGNORED
    truth, found = labels[counted].numpy(), predictions[counted].numpy()
    classes = sorted(set(truth.tolist()) | set(found.tolist()))
    iou = jaccard_score(truth, found, labels=classes, average="macro", zero_division=0)
    return 100 * float((truth != found).mean()), 100 * float(iou)


# What a history says


def test_errors_and_iou_are_scikit_learns_on_the_predictions(data: Segmentation) -> None:
    trained, record = fit(data, dataclasses.replace(SHORT, iterations=12))
    row = record.history[-1]
    measured = ((row.clean_error, row.clean_iou), (row.test_error, row.test_iou))
    for split, found in zip((data.train, data.test), measured, strict=True):
        predictions = predict(trained, stacked(split).images, data.normalization)
        assert len(predictions.unique()) > 2  # it tells some classes apart
        assert found == pytest.approx(scikit_learns(predictions, stacked(split).labels))
    frame = record.frame()
    assert frame[["clean_iou", "test_iou"]].iloc[-1].tolist() == [row.clean_iou, row.test_iou]


def test_running_and_clean_measures_are_of_what_they_say(data: Segmentation) -> None:
    """At lr near zero the weights stay: the loss before is that of both heads in training mode, pixel by pixel."""
    start, _ = fit(data)
    trained = copy.deepcopy(start)
    record = train(trained, data, STILL, seed=0, device="cpu")
    images, labels = stacked(data.train).images, stacked(data.train).labels.long()
    with torch.no_grad():
        outputs = start.train()(data.normalization(images))
    counted = labels != IGNORED
    head, auxiliary = (
        -logits.log_softmax(1).permute(0, 2, 3, 1)[counted].gather(1, labels[counted][:, None]).mean().item()
        for logits in outputs
    )
    [row] = record.history
    assert row.train_loss == pytest.approx(head + 0.4 * auxiliary, rel=1e-4)
    assert row.running_error == pytest.approx(scikit_learns(outputs.logits.argmax(1), labels)[0], abs=0.01)

    with torch.no_grad():  # the forward pass moved BN
        logits = start.eval()(data.normalization(stacked(data.test).images))
    labels = stacked(data.test).labels.long()
    assert row.test_loss == pytest.approx(F.cross_entropy(logits, labels, ignore_index=IGNORED).item(), rel=1e-4)
    assert row.test_error == pytest.approx(scikit_learns(logits.argmax(1), labels)[0], abs=0.01)
    assert abs(row.running_error - row.clean_error) > 0.1


def test_nothing_labelled_is_refused(data: Segmentation) -> None:
    labels = torch.full_like(stacked(data.test).labels, IGNORED)
    empty = dataclasses.replace(stacked(data.test), labels=labels)
    with pytest.raises(UsageError, match="cannot evaluate on 10 samples without a labelled pixel"):
        evaluate(network(), data, empty)


@pytest.mark.parametrize("own", [None, nn.Conv2d(3, 25, 1)])
def test_a_batch_without_a_label_has_no_loss(data: Segmentation, own: nn.Module | None) -> None:
    blank = dataclasses.replace(stacked(data.train), labels=torch.full((24, 64, 64), IGNORED, dtype=torch.uint8))
    blank.labels[0] = 1
    record = train(own or network(), dataclasses.replace(data, train=blank), SHORT, seed=0, device="cpu")
    assert 0 < record.history[0].train_loss < 3, "of one batch in three"


# Batches


def test_a_subset_is_evenly_spaced(data: Segmentation) -> None:
    subset = data.train_subset(5)
    names = stacked(data.train).names
    assert stacked(subset.train).names == tuple(names[i] for i in (0, 4, 9, 14, 19))
    assert (subset.fingerprint, subset.sizes) == (data.fingerprint, (5, 10))
    for n in (0, 25):
        with pytest.raises(UsageError, match=f"a training subset of {n} images is not possible; allowed: 1 to 24"):
            data.train_subset(n)


def test_labels_go_with_their_images_into_the_crop(data: Segmentation) -> None:
    """In images that show their labels, augmentation keeps the two together."""
    labels = stacked(data.train).labels
    shown = dataclasses.replace(stacked(data.train), images=labels[:, None].repeat(1, 3, 1, 1))
    recipe = dataclasses.replace(SHORT, crop=(40, 24))
    crops = list(task(dataclasses.replace(data, train=shown, normalization=NONE), recipe).batches(1))
    assert {images.shape for images, _ in crops} == {(8, 3, 40, 24)}
    for images, found in crops:
        assert found.dtype == torch.int64
        assert torch.equal(images[:, 0].long(), found)
    distinct = {bytes(crop.numpy()) for _, found in crops for crop in found}
    assert len(distinct) > 12  # drawn anew for each image


def test_each_network_gets_the_labels_that_it_can_learn(data: Segmentation) -> None:
    with pytest.raises(UsageError, match="pspnet-small cannot learn digits, which has one label for each image"):
        train(network(in_channels=1), datasets.load("digits"), SHORT, seed=0)
    with pytest.raises(UsageError, match="resnet-8 cannot learn scenes, which has one label for each pixel"):
        train(models.build("resnet-8"), data, SHORT, seed=0)


def test_a_network_of_ones_own_gives_logits_for_each_pixel(data: Segmentation) -> None:
    own = nn.Conv2d(3, 25, 1)
    start = copy.deepcopy(own)
    record = train(own, data, STILL, seed=0, device="cpu")
    labels = stacked(data.train).labels.long()
    expected = F.cross_entropy(start(data.normalization(stacked(data.train).images)), labels, ignore_index=IGNORED)
    assert record.history[0].train_loss == pytest.approx(expected.item(), rel=1e-4)


# Images of various sizes


def drawn(name: str) -> Sample:
    """An image of a size that depends on its number; module level, so that workers find it."""
    number = int(name)
    generator = torch.Generator().manual_seed(number)
    size = (40 + 3 * number, 70 - 2 * number)
    image = torch.randint(256, (3, *size), dtype=torch.uint8, generator=generator)
    return Sample(image, torch.randint(25, size, dtype=torch.uint8, generator=generator), "", name)


VARIOUS = dataclasses.replace(
    SHORT, iterations=3, batch_size=4, crop=(32, 32), scale=(0.5, 2.0), rotate=10, blur=True, probe_images=2
)


@pytest.fixture
def various(data: Segmentation) -> Segmentation:
    """Nine training and three test images."""
    names = [str(number) for number in range(12)]
    return dataclasses.replace(data, train=Lazy(tuple(names[:9]), drawn), test=Lazy(tuple(names[9:]), drawn))


def test_images_of_various_sizes_need_a_crop(various: Segmentation) -> None:
    with pytest.raises(UsageError, match="the images of scenes are of various sizes; give the recipe a crop"):
        fit(various, dataclasses.replace(VARIOUS, crop=(0, 0)))


def unreadable(name: str) -> Sample:
    if name == "7":
        raise DatasetError("image 7 is damaged; copy it again")
    return drawn(name)


def test_an_image_that_cannot_be_read_is_named_in_a_line(various: Segmentation) -> None:
    broken = dataclasses.replace(various, train=Lazy(tuple(various.train.names), unreadable))
    with pytest.raises(DatasetError, match=r"^image 7 is damaged; copy it again$"):
        fit(broken, dataclasses.replace(VARIOUS, iterations=20))


def test_images_of_various_sizes_are_trained_on(various: Segmentation) -> None:
    trained, record = fit(various, VARIOUS)
    assert [row.iteration for row in record.history] == [2, 3]
    samples = list(various.test)
    predictions = [predict(trained, sample.image[None], various.normalization).flatten() for sample in samples]
    expected = scikit_learns(torch.cat(predictions), torch.cat([sample.label.flatten() for sample in samples]))
    assert (record.history[-1].test_error, record.history[-1].test_iou) == pytest.approx(expected)


def test_the_number_of_workers_has_no_say(various: Segmentation, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    for workers in (1, 2):
        monkeypatch.setattr(os, "cpu_count", lambda count=workers: count)
        batches.append(list(itertools.chain(*(task(various, VARIOUS).batches(epoch) for epoch in (1, 2)))))
    assert [images.shape for images, _ in batches[0]] == [(4, 3, 32, 32)] * 4
    for (images, labels), (same, too) in zip(*batches, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, too)
    assert not torch.equal(batches[0][0][0], batches[0][2][0])  # an epoch is not the one before


# Learning rates and BN


def test_the_head_learns_at_a_multiple_of_the_encoders_rate(data: Segmentation) -> None:
    recipe = dataclasses.replace(STILL, lr=0.1, weight_decay=0.0)
    alike, faster = fit(data, recipe)[0], fit(data, dataclasses.replace(recipe, new_lr=7))[0]
    heads = 0
    for (name, start), a, b in zip(network().named_parameters(), alike.parameters(), faster.parameters(), strict=True):
        new = not name.startswith("encoder.")
        torch.testing.assert_close(b - start, (7 if new else 1) * (a - start), rtol=1e-3, atol=1e-6, msg=name)
        heads += new and not torch.equal(a, start)
    assert heads > 10


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_bn_keeps_its_statistics_and_learns_its_weights(data: Segmentation, frozen: bool) -> None:
    start = network()
    with torch.no_grad():
        for layer in start.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.running_mean.normal_()
                layer.running_var.uniform_(0.5, 2)
    trained = copy.deepcopy(start)
    train(
        trained, data, dataclasses.replace(SHORT, lr=1e-3, frozen_bn=frozen), seed=0, device="cpu"
    )  # over three epochs
    layers = [
        (before, after)
        for before, after in zip(start.modules(), trained.modules(), strict=True)
        if isinstance(before, nn.BatchNorm2d)
    ]
    assert len(layers) > 5
    for before, after in layers:
        assert torch.equal(before.running_mean, after.running_mean) == frozen
        assert torch.equal(before.running_var, after.running_var) == frozen
        assert not torch.equal(before.weight, after.weight)
