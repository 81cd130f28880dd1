"""ADE20K from end to end: images of various sizes, read one by one, through everything that takes segmentations."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from kit.pairs import SIZES, ade20k_tree
from torch import Tensor

from resnotes import datasets, failures
from resnotes.analysis.cooccurrence import Cooccurrence, presence
from resnotes.analysis.prediction import predict
from resnotes.datasets import Segmentation
from resnotes.failures import counts, leaning, mine, recall_by_size
from resnotes.figures.failures import panels
from resnotes.runs import Recipe, RunSpec, RunStore

RECIPE = Recipe(iterations=3, batch_size=2, crop=(16, 16), scale=(0.5, 2.0), probe_images=2)


def test_from_files_to_who_leans_on_whom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ade20k_tree(tmp_path / "ADEChallengeData2016")
    monkeypatch.setenv("RESNOTES_DATA", str(tmp_path))
    data = datasets.load("ade20k")
    images, labels = data.test.images, data.test.labels
    options = {"width": 4, "depths": (1, 1), "head_width": 4}
    networks, answers = {}, {}
    for name in ("fcn-small", "pspnet-small"):
        run = RunStore(tmp_path / "runs").get(
            RunSpec(model=name, options=options, dataset="ade20k", seed=0, recipe=RECIPE)
        )
        networks[name] = run.model()
        answers[name] = predict(networks[name], images, data.normalization)
        assert [tuple(each.shape) for each in answers[name]] == list(SIZES.values())

    together = Cooccurrence.between_classes(presence(data.train.labels, 150), data.classes)
    assert together.images == len(data.train)
    contradicting = together.contradicts(presence(labels, 150))
    found = {name: mine(each, labels, data.classes, contradicting, 31) for name, each in answers.items()}
    for name, each in answers.items():
        wrong = sum(int(((a != t) & (t != 255)).sum()) for a, t in zip(each, labels, strict=True))
        assert found[name].pixels.sum() == wrong > 0
    for each in found.values():
        assert counts(each, len(images)).pixels.sum() == each.pixels.sum()
    assert set(recall_by_size(answers["fcn-small"], labels, data.classes).image) == {0, 1, 2}
    fig = panels(found["fcn-small"].groupby("image").head(1), images, labels, answers, data.classes)
    assert [ax.images[0].get_array().shape[:2] for ax in fig.axes[::4]] == [
        SIZES[i] for i in found["fcn-small"].groupby("image").head(1).image
    ]

    reader = partial(predict, networks["pspnet-small"], normalization=data.normalization)
    leaned = leaning(reader, images[1:], labels[1:], data.classes)
    assert leaned.images.max() == 2 and leaned.changed.between(0, 1).all()


def test_the_real_images_through_what_needs_no_training(real_ade20k: Segmentation) -> None:
    classes = real_ade20k.classes
    images = [image[:, ::4, ::4] for image in real_ade20k.test.images[:3]]
    labels = [label[::4, ::4] for label in real_ade20k.test.labels[:3]]

    def by_brightness(several: Tensor) -> Tensor:
        return several.double().mean(1).long() // 64

    predictions = [by_brightness(image[None])[0] for image in images]
    found = failures.study(predictions, labels, classes, labels)
    wrong = [int(((a != t) & (t != 255)).sum()) for a, t in zip(predictions, labels, strict=True)]
    assert found.counts.groupby("image").pixels.sum().tolist() == wrong
    shown = presence(labels, 150)
    leaned = leaning(by_brightness, images, labels, classes)
    assert set(leaned.removed) <= {classes[i] for i in shown.any(0).nonzero()[:, 0].tolist()}
    assert (leaned.changed == 0).all(), "it looks at a pixel at a time"
