"""One training in two processes, which torchrun starts, against the same in one."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from kit import together
from kit.runs import timeless
from torch import Tensor

import resnotes
from resnotes import datasets, distributed, models
from resnotes.errors import UsageError
from resnotes.runs import profiles
from resnotes.runs.folder import initial_network
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import Run, RunStore, load_data
from resnotes.training.loop import train
from resnotes.training.recipe import Recipe


@dataclass
class Pair:
    """What two processes left, and the specifications they were asked for: PSPNet, FCN; seeds 0, 1, 0 (again)."""

    folder: Path
    specs: list[RunSpec]
    stdout: str

    @property
    def store(self) -> RunStore:
        return RunStore(self.folder / "runs", self.folder / "recorded")

    @property
    def seen(self) -> list[dict[str, list[str]]]:
        return [json.loads((self.folder / f"seen-{rank}.json").read_text()) for rank in (0, 1)]

    def weights(self, spec: RunSpec) -> list[dict[str, Tensor]]:
        """Those that each process had in the end."""
        return [torch.load(self.folder / f"{spec.name}-{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.fixture(scope="module")
def _unequal() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets, "load", together.unequal)
        patch.setattr(profiles, "FOLDER", profiles.FOLDER)  # which `together.specs` sets
        yield


@pytest.fixture(scope="module")
def pair(_unequal: None, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Two processes that ran `resnotes train`; PSPNet with seed 1 was begun before, by one."""
    folder = tmp_path_factory.mktemp("together")
    specs = together.specs(folder)
    begun = specs[2]
    half = dataclasses.replace(begun.recipe, iterations=2)
    network: Any = initial_network(begun, {"classes": 25, "channels": 3})
    train(network, load_data(begun), half, seed=1, device="cpu", folder=folder / "runs" / begun.name)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *(together.__file__, str(folder)),
        ],
        env={
            **os.environ,
            "RESNOTES_RUNS": str(folder / "runs"),
            "PYTHONPATH": str(Path(resnotes.__file__).parents[1]),
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return Pair(folder, specs, done.stdout)


@pytest.fixture(scope="module")
def alone(_unequal: None, pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """PSPNet with seed 0, trained by one process."""
    folder = tmp_path_factory.mktemp("alone")
    return RunStore(folder / "runs", folder / "recorded").get(pair.specs[0], device="cpu")


def test_two_processes_train_as_one_does(pair: Pair, alone: Run) -> None:
    """The mean of their means would be another loss, as their parts have unequal numbers of labelled pixels."""
    run = pair.store.find(pair.specs[0])
    assert run is not None
    assert (run.facts["processes"], alone.facts["processes"]) == (2, 1)
    pd.testing.assert_frame_equal(timeless(run.history), timeless(alone.history), rtol=1e-4)
    assert len(run.history) == 4
    torch.testing.assert_close(run.model().state_dict(), alone.model().state_dict(), rtol=1e-3, atol=1e-5)
    moved = (run.model().head[0].weight - run.model(0).head[0].weight).abs().max()
    assert moved > 1e-3  # compared with what they may differ by


def test_all_processes_end_with_the_weights_of_the_run(pair: Pair) -> None:
    """BN statistics included, which on CPUs each process gathers from its own images."""
    for spec in pair.specs[:4]:
        run = pair.store.find(spec)
        assert run is not None
        for state in pair.weights(spec):
            torch.testing.assert_close(state, dict(run.model().state_dict()), rtol=0, atol=0)
    fcn = pair.weights(pair.specs[1])[0]
    assert fcn["encoder.bn1.running_mean"].any()


def test_a_run_that_one_process_began_goes_on_in_two(pair: Pair) -> None:
    run = pair.store.find(pair.specs[2])
    assert run is not None
    assert run.facts["resumed"] == 1
    straight: Any = run.model(0)
    record = train(straight, load_data(run.spec), run.spec.recipe, seed=1, device="cpu")
    pd.testing.assert_frame_equal(timeless(run.history), timeless(record.frame()), rtol=1e-3)
    torch.testing.assert_close(run.model().state_dict(), straight.state_dict(), rtol=1e-3, atol=1e-5)


def test_a_run_is_trained_once_and_all_get_it(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [spec.name for spec in pair.specs]
    assert names[4:] == names[:2]  # asked for twice
    for seen in pair.seen:
        assert seen["trained"] == names[:4]
        assert seen["got"] == [names[0], *names]
    monkeypatch.setattr("resnotes.runs.store.train", lambda *_, **__: pytest.fail("trained again"))
    assert [run.name for run in pair.store.get_all(pair.specs, device="cpu", workers=1)] == names


def test_the_first_process_writes_and_speaks(pair: Pair) -> None:
    first, second = pair.seen
    assert second["written"] == []
    assert {name: first["written"].count(name) for name in sorted(set(first["written"]))} == {
        "checkpoint.pt": 14,  # after each of four epochs of three runs, and of the two that were left of one
        "iteration-000003.safetensors": 4,
        "history.csv": 14,
        "model.safetensors": 4,
        "run.json": 4,
        "spec.json": 4,
    }
    lines = pair.stdout.splitlines()
    assert [line.split()[0] for line in lines] == list(dict.fromkeys(spec.name for spec in pair.specs))
    final = pair.store.finished()[0].final
    [shown] = {line for line in lines if line.startswith(pair.store.finished()[0].name)}
    assert f"test {final.test_error:6.2f} %  mean IoU {final.test_iou:6.2f} %" in shown


# What does not need two processes


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second of two processes, as far as can be seen."""
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "rank", lambda: 1)


@pytest.mark.usefixtures("two")
def test_a_batch_is_shared_equally_or_not_at_all() -> None:
    assert distributed.part(torch.arange(6)).tolist() == [1, 3, 5]
    with pytest.raises(UsageError, match="2 processes cannot share a batch of 5; choose a multiple as batch_size"):
        distributed.part(torch.arange(5))


@pytest.mark.usefixtures("two")
def test_a_process_that_comes_late_still_answers_the_first(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """It finds the run finished, which the first did not: without its answer that one would wait for ever."""
    asked: list[bool] = []
    decisions = iter([False, False])  # not at hand; under the lock, not missing either

    def agreed(decision: bool) -> bool:
        asked.append(decision)
        return next(decisions)

    monkeypatch.setattr(distributed, "agreed", agreed)
    assert pair.store.get(pair.specs[0], device="cpu").name == pair.specs[0].name
    assert asked == [True, False]


@pytest.mark.usefixtures("two")
@pytest.mark.parametrize("change", [{"blocks": "exactly:1"}, {"recompute": 1}])
def test_what_a_single_process_alone_can_train_is_refused(change: dict[str, Any]) -> None:
    data, recipe = datasets.load("digits"), Recipe(iterations=1, **change)
    with pytest.raises(UsageError, match=r"2 processes cannot train together with blocks=.*; allowed: all and 0"):
        train(models.build("resnet-8"), data, recipe, seed=0)
