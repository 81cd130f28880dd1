"""Networks and data sets that somebody registered: runs of their own, which an edited builder never finds."""

import dataclasses
import linecache
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import calls
from kit.runs import SHORT

from resnotes import datasets, models
from resnotes.errors import RunError
from resnotes.models import Network, registry
from resnotes.runs import RunSpec, RunStore, registered
from resnotes.runs.workers import Workers

MINE = {"model": "mine", "dataset": "digits", "seed": 0, "recipe": SHORT.recipe, "train_images": 64}


def build_mine(**options: Any) -> Network:
    """A network that another process can import."""
    return models.build("plain-8", width=4, **options)


def load_mine() -> datasets.Classification:
    return datasets.load("digits")


def in_a_cell(width: int) -> Callable[..., Network]:
    """What executing a cell of a notebook defines: its source is kept, its module is `__main__`."""
    code = f"def build(**options):\n    return models.build('plain-8', width={width}, **options)\n"
    name = f"<cell with width {width}>"
    linecache.cache[name] = len(code), None, code.splitlines(keepends=True), name
    defined: dict[str, Any] = {"models": models, "__name__": "__main__"}
    exec(compile(code, name, "exec"), defined)
    built: Callable[..., Network] = defined["build"]
    return built


@pytest.fixture(autouse=True)
def _registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})
    monkeypatch.setattr(datasets, "_LOADERS", dict(datasets._LOADERS))


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs", tmp_path / "recorded")


def test_the_source_is_part_of_the_address(store: RunStore) -> None:
    models.register("mine", in_a_cell(4))
    spec = RunSpec(**MINE)
    run = store.get(spec, device="cpu")
    assert run.spec == spec and spec.source == models.source("mine") is not None
    assert RunSpec.from_json(spec.to_json()) == spec
    models.register("mine", in_a_cell(6))
    edited = RunSpec(**MINE)
    assert edited.name != spec.name and store.find(edited) is None
    assert RunSpec(**(MINE | {"model": "plain-8"})).source is None


def test_runs_of_networks_that_are_not_registered_still_list(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    models.register("mine", in_a_cell(4))
    spec = RunSpec(**MINE)
    store.get(spec, device="cpu")
    models.register("mine", in_a_cell(6))
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


class Noting(Workers):
    """They note what they are sent, and train nothing."""

    sent: list[Any]

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.sent.append(args)
        return super().submit(calls.nothing)


@pytest.mark.parametrize("builder", [build_mine, in_a_cell(4), lambda **options: build_mine(**options)])
def test_what_cannot_be_sent_is_trained_in_this_process(store: RunStore, builder: Callable[..., Network]) -> None:
    """A builder of a notebook's cell is one of `__main__`, and a closure is nowhere, for others."""
    models.register("mine", builder)
    spec = RunSpec(**MINE)
    executor = Noting(1)
    executor.sent = []
    if builder is build_mine:
        store.sweep([spec], device="cpu", executor=executor).close()
        [(sent, _, _, needed)] = executor.sent
        assert (sent, needed) == (spec, [("models", ("mine", build_mine))])
    else:
        [(_, run)] = store.sweep([spec], device="cpu", executor=executor)
        assert executor.sent == []
        assert run == store.find(spec)


def test_a_worker_registers_what_it_is_sent(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    models.register("mine", build_mine)
    spec = RunSpec(**MINE)
    data = datasets.load("digits").train_subset(64)
    monkeypatch.setattr(registry, "_registered", {})  # as in another process
    for _ in range(2):  # which may be sent a second run of the network
        assert store._train_elsewhere(spec, "cpu", data.fingerprint, [("models", ("mine", build_mine))]) is None
    assert store.find(spec) is not None


def test_a_registered_loader_is_sent_with_its_task() -> None:
    datasets.register("mine", load_mine, task="classification")
    datasets.register("cell", lambda: load_mine(), task="classification")
    assert registered.to_send(dataclasses.replace(SHORT, dataset="mine")) == [
        ("datasets", ("mine", load_mine, "classification"))
    ]
    assert registered.to_send(dataclasses.replace(SHORT, dataset="cell")) is None
    assert registered.to_send(SHORT) == []
