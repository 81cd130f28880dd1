"""What a study is made on: the images that were asked for, of the networks that were asked for."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pandas as pd
import pytest
import torch
from kit.runs import SCENES, SHORT

from resnotes import models
from resnotes.datasets import Classification
from resnotes.errors import DatasetError, UsageError
from resnotes.runs.folder import Run
from resnotes.runs.samples import Sample, as_trained, of_published, of_runs, tabulate
from resnotes.runs.store import RunStore, load_data

DIGITS = load_data(SHORT)
assert isinstance(DIGITS, Classification)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    root = tmp_path_factory.mktemp("samples")
    recipe = dataclasses.replace(SHORT.recipe, snapshots=(1,))
    return RunStore(root, root / "recorded").get(dataclasses.replace(SHORT, seed=3, recipe=recipe), device="cpu")


@pytest.mark.parametrize("held", [True, False])
def test_a_sample_is_that_of_the_data(run: Run, held: bool) -> None:
    (sample,) = of_runs({"mine": [run]}, 20, held=held)
    images, labels = DIGITS.sample(20, held=held)
    assert torch.equal(sample.images, images) and torch.equal(sample.labels, labels)
    assert torch.equal(sample.repair, as_trained(DIGITS, run.spec))
    assert sample.about == {"network": "mine", "seed": 3}
    torch.testing.assert_close(dict(sample.network.state_dict()), dict(run.model().state_dict()), rtol=0, atol=0)


def test_bn_is_repaired_on_crops_as_in_training(run: Run) -> None:
    padded = dataclasses.replace(SHORT, recipe=dataclasses.replace(SHORT.recipe, pad=1, flip=True))
    images, _ = DIGITS.sample(64, held=False, raw=True)
    found = as_trained(DIGITS, padded)
    wide = torch.nn.functional.pad(images, (1, 1, 1, 1))
    height, width = images.shape[2:]
    crops = [wide[:, :, y : y + height, x : x + width] for y in range(3) for x in range(3)]
    every = torch.stack([DIGITS.normalization(each) for crop in crops for each in (crop, crop.flip(3))])
    equal = (every == found).flatten(2).all(2)
    assert equal.any(0).all(), "each is one of the crops that there are of it"
    assert equal.any(1).sum() > 12, "of all kinds"


def test_batches_are_numbered_and_are_the_sample_together(run: Run) -> None:
    (whole,), parts = of_runs({"mine": [run]}, 20), list(of_runs({"mine": [run]}, 20, 8))
    assert [len(part.images) for part in parts] == [8, 8, 4]
    assert [part.about["seed"] for part in parts] == [0, 1, 2]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)


def test_batches_of_two_runs_would_have_one_number(run: Run) -> None:
    with pytest.raises(UsageError, match="batches of mine would be numbered as those of its other run"):
        list(of_runs({"mine": [run, run]}, 8, 4))


def test_a_snapshot_of_the_end_is_no_moment_of_its_own(tmp_path: Path) -> None:
    recipe = dataclasses.replace(SHORT.recipe, snapshots=(1, SHORT.recipe.iterations))
    run = RunStore(tmp_path, tmp_path / "recorded").get(dataclasses.replace(SHORT, recipe=recipe), device="cpu")
    assert run.moments == (0, 1, recipe.iterations)


def test_a_network_for_segmentation_is_refused(tmp_path: Path) -> None:
    run = RunStore(tmp_path, tmp_path / "recorded").get(SCENES, device="cpu")
    with pytest.raises(UsageError, match=r"pspnet-small-.* was trained on scenes for segmentation; expected a class"):
        next(of_runs({"mine": [run]}, 4))


def test_moments_are_all_of_the_training(run: Run) -> None:
    samples = list(of_runs({"mine": [run]}, 4, moments=True))
    assert [sample.about["moment"] for sample in samples] == [0, 1, run.spec.recipe.iterations]
    for sample in samples:
        expected = run.model(sample.about["moment"]).state_dict()
        torch.testing.assert_close(dict(sample.network.state_dict()), dict(expected), rtol=0, atol=0)


def test_networks_of_others_come_with_images_that_they_never_saw(real_cifar10: Classification) -> None:
    try:
        published = models.published("wooyeolBaek/resnet-20")
    except DatasetError as error:
        pytest.skip(str(error))
    first, second = of_published(["resnet-20"], 32, 16)
    images, labels = published.sample(real_cifar10, 32, held=True)
    assert torch.equal(torch.cat([first.images, second.images]), images)
    assert torch.equal(torch.cat([first.labels, second.labels]), labels)
    assert [first.about, second.about] == [{"network": "resnet-20", "seed": number} for number in (0, 1)]


@pytest.mark.parametrize("threads", [1, 2])
def test_tables_stand_below_each_other_in_order(run: Run, threads: int, tmp_path: Path) -> None:
    def study(sample: Sample) -> pd.DataFrame:
        return pd.DataFrame({"labels": [sample.labels.tolist()]})

    samples = list(of_runs({"a": [run], "b": [run]}, 12, 4))
    table = tabulate(study, samples, threads=threads)
    expected = [[*sample.about.values(), sample.labels.tolist()] for sample in samples]
    assert table[["network", "seed", "labels"]].to_numpy().tolist() == expected
