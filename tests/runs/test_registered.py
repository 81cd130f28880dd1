"""Networks and data sets that somebody registered: runs of their own, which an edited builder never finds."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import runs as kit_runs
from kit.networks import in_a_cell
from kit.runs import SHORT

from resnotes import datasets, models
from resnotes.errors import RunError
from resnotes.models import registry
from resnotes.runs import RunSpec, RunStore
from resnotes.runs.workers import Workers

MINE = {"model": "mine", "dataset": "digits", "seed": 0, "recipe": SHORT.recipe, "train_images": 64}

store = kit_runs.store


def mine(width: int) -> Any:
    options = "num_classes=num_classes, in_channels=in_channels"
    return in_a_cell(f"return models.build('plain-8', width={width}, {options})", models=models)


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(datasets, "_LOADERS", dict(datasets._LOADERS))


def test_the_source_is_part_of_the_address(store: RunStore) -> None:
    models.register("mine", mine(4))
    spec = RunSpec(**MINE)
    run = store.get(spec, device="cpu")
    assert run.spec == spec and spec.source == models.source("mine") is not None
    assert RunSpec.from_json(spec.to_json()) == spec
    models.register("mine", mine(6))
    edited = RunSpec(**MINE)
    assert edited.name != spec.name and store.find(edited) is None
    assert RunSpec(**(MINE | {"model": "plain-8"})).source is None


def test_runs_of_networks_that_are_not_registered_still_list(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    models.register("mine", mine(4))
    spec = RunSpec(**MINE)
    store.get(spec, device="cpu")
    models.register("mine", mine(6))
    [run] = store.finished()
    assert (run.spec, len(run.history)) == (spec, 1)
    with pytest.raises(RunError, match=rf"registered with another source.*register.* with source {spec.source}"):
        run.model()
    monkeypatch.setattr(registry, "_registered", {})
    with pytest.raises(RunError, match=r"mine is not registered here; .*models\.register\('mine', build\)"):
        run.model()
    other = dataclasses.replace(spec, seed=1)
    with pytest.raises(RunError, match="not registered"):
        store.get(other, device="cpu")
    assert not (store.root / other.name).exists()


def test_what_is_registered_is_trained_in_this_process(store: RunStore) -> None:
    """Others do not know it."""

    class Refusing(Workers):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
            raise AssertionError("sent to another process")

    models.register("mine", mine(4))
    datasets.register("own", lambda: datasets.load("digits"), task="classification")
    specs = [RunSpec(**MINE), dataclasses.replace(SHORT, dataset="own")]
    found = [run for _, run in store.sweep(specs, device="cpu", executor=Refusing(1))]
    assert found == store.find_all(specs)


def test_what_a_builder_cannot_read_is_no_fault_of_the_store(store: RunStore, tmp_path: Path) -> None:
    missing = tmp_path / "elsewhere" / "weights.pt"
    models.register("mine", in_a_cell("return open(missing)", missing=missing))
    with pytest.raises(RunError, match=r"^mine-\S* cannot be trained: .*No such file.*weights\.pt"):
        store.get(RunSpec(**MINE), device="cpu")
