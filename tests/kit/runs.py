"""Short runs, and what tests ask of them."""

import contextlib
import dataclasses
import itertools
import os
import subprocess
import sys
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


def start_training(spec: RunSpec, root: Path) -> "subprocess.Popen[str]":
    """A process that gets `spec` from the store at `root`, with one thread."""
    program = (
        "import sys; from pathlib import Path;"
        "from resnotes.training import loop; from resnotes.runs import RunSpec, RunStore;"
        "loop.CHECKPOINT_SECONDS = 0;"
        "RunStore(Path(sys.argv[1]), Path('none')).get(RunSpec.from_json(sys.argv[2]), device='cpu')"
    )
    return subprocess.Popen(
        [sys.executable, "-c", program, str(root), spec.to_json()],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A finished run of `SPEC`, for tests that leave it as it is."""
    folder = tmp_path_factory.mktemp("finished")
    return RunStore(folder / "runs", folder / "recorded").get(SPEC, device="cpu")


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
