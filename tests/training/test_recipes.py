"""Every field of a recipe, in both tasks: it does something, or it is refused by name before anything is trained."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from kit.runs import timeless

from resnotes import datasets, models
from resnotes.datasets import Data
from resnotes.errors import UsageError
from resnotes.runs.profiles import Study
from resnotes.runs.spec import RunSpec
from resnotes.training.loop import train
from resnotes.training.recipe import ALONE, TASKS, Recipe

BASE = Recipe(iterations=3, batch_size=8, precision="float32")
# Something else than the default, and what it takes to matter.
OTHER: dict[str, dict[str, Any]] = {
    "iterations": {"iterations": 4},
    "batch_size": {"batch_size": 6},
    "optimizer": {"optimizer": "adamw"},
    "lr": {"lr": 0.05},
    "momentum": {"momentum": 0.5},
    "weight_decay": {"weight_decay": 0.01},
    "schedule": {"schedule": "poly"},
    "milestones": {"milestones": (1,)},
    "warmup_iterations": {"warmup_iterations": 2},
    "warmup_lr": {"warmup_lr": 0.02, "warmup_iterations": 2},
    "pad": {"pad": 1},
    "flip": {"flip": False},
    "precision": {"precision": "bfloat16"},
    "probe_images": {"probe_images": 3},
    "snapshots": {"snapshots": (2,)},
    "recompute": {"recompute": 1},
    "blocks": {"blocks": "exactly:1"},
    "crop": {"crop": (40, 48)},
    "scale": {"scale": (0.5, 2.0)},
    "rotate": {"rotate": 10.0},
    "blur": {"blur": True},
    "new_lr": {"new_lr": 2.0},
    "frozen_bn": {"frozen_bn": True},
}
DATASETS = {"classification": "digits", "segmentation": "scenes"}
MODELS = {"classification": "resnet-8", "segmentation": "pspnet-small"}


@pytest.fixture(scope="module", params=TASKS)
def task(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def data(task: str) -> Data:
    loaded = datasets.load("digits") if task == "classification" else None
    return loaded.train_subset(20) if loaded else datasets.load("scenes", train=20, test=6)


def fit(task: str, data: Data, recipe: Recipe, folder: Path) -> tuple[str, list[str], bytes]:
    """A short training and all that it leaves: history, files and weights."""
    torch.manual_seed(0)
    network = models.build(MODELS[task], num_classes=data.num_classes, in_channels=data.in_channels)
    history = timeless(train(network, data, recipe, seed=0, device="cpu", folder=folder).frame()).to_csv()
    weights = torch.cat([value.double().flatten() for value in network.state_dict().values()])
    return history, sorted(path.name for path in folder.iterdir()), weights.numpy().tobytes()


@pytest.fixture(scope="module")
def before(task: str, data: Data, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """Without the field, but with what it takes to matter: with and without a warm-up."""
    found = {
        warmup: fit(task, data, dataclasses.replace(BASE, warmup_iterations=warmup), tmp_path_factory.mktemp("before"))
        for warmup in (0, 2)
    }
    assert found[0] == fit(task, data, BASE, tmp_path_factory.mktemp("again")), "or differences would say nothing"
    return found


def test_every_field_is_here() -> None:
    assert set(OTHER) == {field.name for field in dataclasses.fields(Recipe)}
    assert set(ALONE) <= set(OTHER)


@pytest.mark.parametrize("name", OTHER)
def test_a_field_does_something_or_is_refused(
    task: str, data: Data, before: dict[int, Any], name: str, tmp_path: Path
) -> None:
    recipe = dataclasses.replace(BASE, **OTHER[name])

    def spec(recipe: Recipe) -> RunSpec:
        return RunSpec(model=MODELS[task], dataset=DATASETS[task], seed=0, recipe=recipe)

    if ALONE.get(name, task) != task:
        message = f"recipe: {name} is for {ALONE[name]} alone, found .* for {task}"
        with pytest.raises(UsageError, match=message):
            spec(recipe)
        with pytest.raises(UsageError, match=message):
            fit(task, data, recipe, tmp_path)
        assert not list(tmp_path.iterdir())
    else:
        warmup = 2 if name == "warmup_lr" else 0
        if name != "recompute":  # which changes nothing but what is kept
            assert fit(task, data, recipe, tmp_path) != before[warmup]
        assert spec(recipe).name != spec(dataclasses.replace(BASE, warmup_iterations=warmup)).name


@pytest.mark.parametrize(
    ("ignored", "message"),
    [
        ({"schedule": "one-cycle", "milestones": (2,)}, "milestones are for the schedule steps, found 'one-cycle'"),
        ({"warmup_lr": 0.05}, r"warmup_lr is 0.05, but there are no warmup_iterations"),
        ({"schedule": "cosine", "warmup_iterations": 2, "warmup_lr": 0.05}, "cosine warms up from 0 to lr"),
        ({"optimizer": "adamw", "momentum": 0.5}, "momentum is for sgd alone, found 0.5 for adamw; leave it out"),
    ],
)
def test_fields_that_schedule_or_optimizer_ignore_are_refused(
    task: str, data: Data, ignored: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(task, data, dataclasses.replace(BASE, **ignored), tmp_path)
    assert not list(tmp_path.iterdir())
    study = Study(dataset=DATASETS[task], models=(MODELS[task],), seeds=(0,), recipe={"iterations": 3, **ignored})
    with pytest.raises(UsageError, match=message):
        study.all_specs()
