"""Short runs, and what tests ask of them."""

import contextlib
import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from resnotes.models import Network
from resnotes.runs import Run, RunSpec, RunStore
from resnotes.training.loop import Training
from resnotes.training.recipe import Recipe

RECIPE = Recipe(iterations=220, schedule="one-cycle")


SPEC = RunSpec(
    model="plain-8",
    dataset="digits",
    seed=0,
    recipe=Recipe(iterations=4, batch_size=64, snapshots=(1,), precision="float32"),
    options={"width": 4},
    train_images=128,
)


# The same for segmentation.
SCENES = RunSpec(
    model="pspnet-small",
    dataset="scenes",
    seed=0,
    recipe=Recipe(iterations=4, batch_size=8, snapshots=(1,), precision="float32"),
    options={"width": 4, "depths": (1, 1), "head_width": 4, "dropout": 0.0},
    data={"train": 24, "test": 10},
)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    """An empty store, without recorded runs."""
    return RunStore(tmp_path / "runs", tmp_path / "recorded")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of `SPEC`, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    return RunStore(folder / "runs", folder / "recorded").get(SPEC, device="cpu")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_same_run(run: Run, other: Run) -> None:
    """Weights and snapshots bit by bit, and the history but for the wall time."""
    pd.testing.assert_frame_equal(timeless(run.history), timeless(other.history), check_exact=True)
    weights = [{path.name: path.read_bytes() for path in each.folder.glob("*.safetensors")} for each in (run, other)]
    assert weights[0] == weights[1]


def timeless(history: pd.DataFrame) -> pd.DataFrame:
    return history.drop(columns="seconds")


def assert_same(left: tuple[Network, Training], right: tuple[Network, Training]) -> None:
    """Bit by bit, but for the wall time."""
    torch.testing.assert_close(left[0].state_dict(), right[0].state_dict(), rtol=0, atol=0)
    pd.testing.assert_frame_equal(timeless(left[1].frame()), timeless(right[1].frame()), check_exact=True)


@contextlib.contextmanager
def interrupted(owner: Any, name: str, call: int) -> Iterator[None]:
    """What is done here calls `owner.name`, and is interrupted, as by Ctrl+C, at the call with this number, from 0."""
    calls, function = itertools.count(), getattr(owner, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return function(*arguments, **options)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(owner, name, counting)
        yield


# Long enough that a process which trains it can be caught at it.
LASTING = RunSpec(
    model="plain-8",
    dataset="digits",
    seed=0,
    recipe=Recipe(iterations=220, schedule="one-cycle", precision="float32"),
    options={"width": 4},
)
SHORT = dataclasses.replace(LASTING, recipe=Recipe(iterations=2, batch_size=32, precision="float32"), train_images=64)

# A profile of two runs of two iterations.
TINY = """
[small]
dataset = "digits"
models = ["plain-8 width=4", "resnet-8 width=4"]
seeds = [0]
train_images = 64
[small.recipe]
iterations = 2
batch_size = 32
"""
