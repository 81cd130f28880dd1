"""Networks and data sets that somebody registered: runs of their own, which an edited builder never finds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kit import calls
from kit.runs import SHORT

from resnotes import datasets, models
from resnotes.errors import RunError
from resnotes.models import Network
from resnotes.runs import RunSpec, RunStore
from resnotes.runs.workers import Workers

BUILDERS: dict[str, Callable[..., Network]] = {}
SOURCES: dict[str, str] = {}


def build_mine(**options: Any) -> Network:
    """A network that another process can import."""
    return models.build("plain-8", width=4, **options)


@pytest.fixture(autouse=True)
def _registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registry of networks, in place of the package's."""
    build = models.build
    for held in (BUILDERS, SOURCES):
        held.clear()

    def building(name: str, **options: Any) -> Network:
        return BUILDERS[name](**options) if name in BUILDERS else build(name, **options)

    monkeypatch.setattr(models, "build", building)
    monkeypatch.setattr(models, "source", SOURCES.get)
    monkeypatch.setattr(models, "registered", BUILDERS.get)


def register(builder: Callable[..., Network], source: str) -> RunSpec:
    BUILDERS["mine"], SOURCES["mine"] = builder, source
    return RunSpec(model="mine", dataset="digits", seed=0, recipe=SHORT.recipe, train_images=64)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs", tmp_path / "recorded")


def test_the_source_is_part_of_the_address(store: RunStore) -> None:
    first = register(build_mine, "one")
    run = store.get(first, device="cpu")
    assert run.spec == first and run.spec.source == "one"
    assert run.model().options["width"] == 4
    assert RunSpec.from_json(first.to_json()).name == first.name
    second = register(build_mine, "two")
    assert second.name != first.name
    assert store.find(second) is None
    assert RunSpec(model="plain-8", dataset="digits", seed=0, recipe=SHORT.recipe).source is None


def test_runs_of_networks_that_are_not_registered_still_list(store: RunStore) -> None:
    spec = register(build_mine, "one")
    store.get(spec, device="cpu")
    register(build_mine, "two")
    [run] = store.finished()
    assert (run.spec, len(run.history)) == (spec, 1)
    with pytest.raises(RunError, match=r"mine is registered with another source \(two\).*register.* with source one"):
        run.model()
    BUILDERS.clear()
    SOURCES.clear()
    with pytest.raises(RunError, match=r"mine is not registered here; .*models\.register\('mine', build\)"):
        run.model()
    with pytest.raises(RunError, match="not registered"):
        store.get(dataclasses.replace(spec, seed=1), device="cpu")
    assert not (store.root / dataclasses.replace(spec, seed=1).name).exists()


class Noting(Workers):
    """They note what they are sent, and train nothing."""

    sent: list[Any]

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        self.sent.append(args)
        return super().submit(calls.nothing)


@pytest.mark.parametrize("home", ["here", "__main__", "nowhere"])
def test_what_cannot_be_sent_is_trained_in_this_process(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    """A builder of a notebook's cell is one of `__main__`; a closure is nowhere for others."""
    builders = {"here": build_mine, "__main__": build_mine, "nowhere": lambda **options: build_mine(**options)}
    if home == "__main__":
        monkeypatch.setattr(build_mine, "__module__", "__main__")
        monkeypatch.setattr("__main__.build_mine", build_mine, raising=False)
    spec = register(builders[home], "one")
    executor = Noting(1)
    executor.sent = []
    if home == "here":
        store.sweep([spec], device="cpu", executor=executor).close()
        [(sent, _, _, needed)] = executor.sent
        assert (sent, needed) == (spec, [("models", ("mine", build_mine))])
    else:
        [(_, run)] = store.sweep([spec], device="cpu", executor=executor)
        assert executor.sent == []
        assert run == store.find(spec)


def test_a_worker_registers_what_it_is_sent(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = register(build_mine, "one")
    data = datasets.load("digits").train_subset(64)
    BUILDERS.clear()  # as in another process
    monkeypatch.setattr(models, "register", BUILDERS.__setitem__)
    for _ in range(2):  # which may be sent a second run of the network
        assert store._train_elsewhere(spec, "cpu", data.fingerprint, [("models", ("mine", build_mine))]) is None
    assert store.find(spec) is not None


def test_a_registered_loader_is_sent_with_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    from resnotes.runs import registered

    loaders = {"mine": calls.until, "cell": lambda: None}
    monkeypatch.setattr(datasets, "registered", loaders.get)
    monkeypatch.setattr(datasets, "task", lambda name: "classification")
    mine, cell = (dataclasses.replace(SHORT, dataset=name) for name in loaders)
    assert registered.to_send(mine) == [("datasets", ("mine", calls.until, "classification"))]
    assert registered.to_send(cell) is None
    assert registered.to_send(SHORT) == []
