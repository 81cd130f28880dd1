"""The run store: trained once, found again, never mistaken, and never read where it is damaged."""

import dataclasses
import hashlib
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import runs as kit_runs
from kit.runs import RECIPE, SPEC, content, start_training
from safetensors.torch import load_file, save_file

from resnotes import datasets
from resnotes.errors import RunError, UsageError
from resnotes.models import Network
from resnotes.runs import recording, workers
from resnotes.runs.folder import finish, histories
from resnotes.runs.recording import record, verify
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import Run, RunStore
from resnotes.training.loop import Training, train
from resnotes.training.recipe import Recipe
from resnotes.training.task import Scores

# Twenty epochs: some seconds, for tests that interrupt it or wait for it.
DEEPENED = dataclasses.replace(SPEC, model="plain-14", start=SPEC)
FILES = ["history.csv", "iteration-000001.safetensors", "model.safetensors", "run.json", "spec.json"]


finished = kit_runs.finished


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs", tmp_path / "recorded")


@pytest.fixture
def stored(store: RunStore, finished: Run) -> Run:
    """The same in the store of this test alone."""
    return Run(shutil.copytree(finished.folder, store.root / SPEC.name))


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names every run that is trained."""
    names: list[str] = []

    def counting(*arguments: object, label: str, **options: object) -> Training:
        names.append(label)
        return train(*arguments, label=label, **options)

    monkeypatch.setattr("resnotes.runs.store.train", counting)
    return names


@pytest.fixture
def other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, the data at hand is not what the runs were made on."""
    digits = dataclasses.replace(datasets.load("digits"), variant="digits-jpeg", fingerprint="0123456789abcdef")
    monkeypatch.setattr(datasets, "load", lambda name: digits)


def assert_same_weights(left: Network, right: Network) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=0, atol=0)


# Specifications and their names

recipes = st.builds(
    Recipe,
    iterations=st.integers(1, 10**6),
    lr=st.floats(1e-6, 10),
    schedule=st.sampled_from(["steps", "one-cycle", "poly"]),
    milestones=st.lists(st.integers(0, 10**6), max_size=3).map(tuple),
    flip=st.booleans(),
    probe_images=st.none() | st.integers(1, 10**4),
    snapshots=st.lists(st.integers(1, 100), max_size=3).map(tuple),
)
shallow_specs = st.builds(
    RunSpec,
    model=st.sampled_from(["plain-8", "resnet-56"]),
    dataset=st.sampled_from(["digits", "cifar10"]),
    seed=st.integers(0, 99),
    recipe=recipes,
    options=st.dictionaries(st.sampled_from(["width", "shortcut"]), st.integers(1, 64) | st.sampled_from("AB")),
    train_images=st.none() | st.integers(10, 50_000),
)
# A run starts from one on the same data and with the same options.
deepened_specs = st.builds(
    lambda spec, seed, recipe: dataclasses.replace(
        spec, model=f"{spec.model.partition('-')[0]}-110", seed=seed, recipe=recipe, start=spec
    ),
    shallow_specs,
    seed=st.integers(0, 99),
    recipe=recipes,
)
specs = shallow_specs | deepened_specs


@pytest.mark.parametrize("change", [{"dataset": "cifar10"}, {"options": {"width": 8}}, {"data": {"holdout": 5}}])
def test_a_start_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="must be the same"):
        dataclasses.replace(DEEPENED, start=dataclasses.replace(SPEC, **change))


@pytest.mark.parametrize("model", ["resnet-14", "plain-8", "plain-2", "alexnet", "preresnet-14"])
def test_only_a_deeper_network_of_the_same_family_starts_from_another(model: str) -> None:
    with pytest.raises(UsageError, match=f"^{model} cannot start from plain-8: expected plain-N or resnet-N"):
        dataclasses.replace(SPEC, model=model, start=SPEC)


@given(specs)
def test_specifications_survive_json(spec: RunSpec) -> None:
    again = RunSpec.from_json(spec.to_json())
    assert again == spec
    assert again.name == spec.name


@given(specs, specs)
def test_names_are_equal_where_specifications_are(left: RunSpec, right: RunSpec) -> None:
    assert (left.name == right.name) == (left == right)
    assert left.name.startswith(left.model) and left.dataset in left.name
    assert not set(left.name) & set("/\\: ")


def test_a_field_added_later_leaves_names_as_they_are() -> None:
    @dataclass(frozen=True, kw_only=True)
    class LaterSpec(RunSpec):
        sharpness: float = 0.5

    @dataclass(frozen=True, kw_only=True)
    class LaterRecipe(Recipe):
        cutout: int = 0
        extra: tuple[int, ...] = ()

    def later(recipe: dict[str, object], **values: object) -> str:
        return LaterSpec(
            model="plain-8", dataset="digits", seed=0, recipe=LaterRecipe(iterations=2, **recipe), **values
        ).name

    now = RunSpec(model="plain-8", dataset="digits", seed=0, recipe=Recipe(iterations=2)).name
    assert later({}) == now
    assert len({now, later({}, sharpness=0.6), later({"cutout": 1}), later({"extra": (1,)})}) == 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "{}",
        '{"recipe": {}}',
        '{"recipe": {"iterations": 0}, "model": "m", "dataset": "d", "seed": 0}',
        '{"recipe": {"iterations": 1}, "model": "m", "dataset": "d", "seed": 0, "colour": 1}',
        '{"recipe": {"iterations": 1}, "model": "m", "dataset": "d", "seed": 0, "start": 3}',
    ],
)
def test_what_is_no_specification_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="no run specification"):
        RunSpec.from_json(text)


def test_recorded_runs_keep_their_address() -> None:
    for run in RunStore().finished(recorded=True):
        assert run.spec.name == run.name


# Trained once, found again


def test_a_run_is_trained_once(store: RunStore, trained: list[str]) -> None:
    assert store.find(SPEC) is None
    first, second = store.get(SPEC, device="cpu"), store.get(SPEC, device="cpu")
    assert trained == [SPEC.name]
    assert first == second == store.find(SPEC)
    assert store.finished() == store.find_all([DEEPENED, SPEC]) == [first]


def test_a_finished_run_holds_all_that_there_is_to_know(finished: Run) -> None:
    assert sorted(content(finished.folder)) == FILES  # and no checkpoint
    assert finished.spec == SPEC
    facts = finished.facts
    digits = datasets.load("digits")
    assert facts["dataset"] == {
        "variant": "digits",
        "fingerprint": digits.fingerprint,
        "train_images": 128,
        "test_images": 360,
        "channels": 1,
        "classes": 10,
    }
    assert (facts["device"], facts["precision"], facts["weights"], facts["resumed"]) == ("cpu", "float32", "float32", 0)
    assert facts["threads"] == torch.get_num_threads()
    assert facts["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert set(facts["code"]) == {"commit", "dirty"}
    assert facts["seconds"] == pytest.approx(finished.history.seconds.sum(), abs=0.06)
    assert facts["files"] == {
        name: hashlib.sha256((finished.folder / name).read_bytes()).hexdigest() for name in FILES if name != "run.json"
    }


def test_a_run_is_what_training_by_hand_gives(finished: Run) -> None:
    data = datasets.load("digits").train_subset(128)
    by_hand = finished.model(0).train()
    record = train(by_hand, data, SPEC.recipe, seed=0, device="cpu")
    assert_same_weights(finished.model(), by_hand)
    pd.testing.assert_frame_equal(finished.history.drop(columns="seconds"), record.frame().drop(columns="seconds"))
    pd.testing.assert_series_equal(finished.final, finished.history.iloc[-1])
    table = histories([finished, finished])
    assert len(table) == 2 * len(finished.history)
    assert set(table.model) | set(table.dataset) == {"plain-8 width=4", "digits"}
    assert histories([]).empty


def test_initial_weights_are_those_that_training_began_with(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    initial: list[dict[str, torch.Tensor]] = []

    def noting(network: Network, *arguments: object, **options: object) -> Training:
        initial.append({key: value.clone() for key, value in network.state_dict().items()})
        return train(network, *arguments, **options)

    monkeypatch.setattr("resnotes.runs.store.train", noting)
    torch.manual_seed(99)  # has no say
    run = store.get(SPEC, device="cpu")
    torch.testing.assert_close(dict(run.model(0).state_dict()), initial[0], rtol=0, atol=0)
    other = store.get(dataclasses.replace(SPEC, seed=1), device="cpu")
    assert not torch.equal(other.model(0).stem.conv.weight, run.model(0).stem.conv.weight)


def test_models_come_ready_for_measurements(finished: Run) -> None:
    assert finished.snapshots == (1,)
    for iteration in (None, 0, 1):
        network = finished.model(iteration)
        assert not network.training
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert (network.name, network.options["width"], network.options["in_channels"]) == ("plain-8", 4, 1)
    weights = [finished.model(iteration).head.fc.weight for iteration in (0, 1, None)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])
    with pytest.raises(RunError, match=r"has no iteration-000002\.safetensors"):
        finished.model(2)


def test_of_two_processes_one_trains_and_the_other_waits(
    tmp_path: Path, store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = RunSpec(model="plain-8", dataset="digits", seed=0, recipe=RECIPE, options={"width": 4})
    other = start_training(spec, store.root)
    while not (store.root / spec.name / "history.csv").exists():
        assert other.poll() is None, other.communicate()
        time.sleep(0.01)
    assert store.find(spec) is None  # it is at it
    monkeypatch.setattr("resnotes.runs.store.train", lambda *_, **__: pytest.fail("trained twice"))
    run = store.get(spec)
    assert len(run.history) == 20
    assert run.facts["resumed"] == 0
    assert other.wait() == 0


def test_several_at_once_equal_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = [SPEC, dataclasses.replace(SPEC, model="resnet-8"), SPEC]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the workers have
    try:
        alone, together = (
            RunStore(tmp_path / str(workers), tmp_path / "recorded").get_all(asked, device="cpu", workers=workers)
            for workers in (1, 2)
        )
    finally:
        torch.set_num_threads(threads)
    assert [run.spec.model for run in together] == ["plain-8", "resnet-8", "plain-8"]
    for a, b in zip(alone, together, strict=True):
        assert_same_weights(a.model(), b.model())
        pd.testing.assert_frame_equal(a.history.drop(columns="seconds"), b.history.drop(columns="seconds"))
    assert together[0].facts["threads"] == 1


def test_started_in_the_background_they_are_the_same_and_finished_ones_start_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = RunStore(tmp_path / "runs", tmp_path / "recorded")
    asked = [dataclasses.replace(SPEC, seed=5), dataclasses.replace(SPEC, seed=4)]
    before = torch.random.get_rng_state()
    started = list(store.start(asked))
    assert [run.spec.seed for run in started] == [5, 4]
    assert torch.equal(torch.random.get_rng_state(), before)  # this process trained nothing
    alone = RunStore(tmp_path / "alone", tmp_path / "recorded").get(asked[0])
    pd.testing.assert_frame_equal(
        started[0].history.drop(columns="seconds"), alone.history.drop(columns="seconds"), rtol=1e-3
    )
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda *_: pytest.fail("a process, for nothing"))
    assert [run.name for run in store.start(asked)] == [run.name for run in started]


def test_what_a_killed_writer_left_is_cleaned_up(store: RunStore, finished: Run, trained: list[str]) -> None:
    folder = store.root / SPEC.name
    folder.mkdir(parents=True)
    (folder / ".history.csv.x1y2").write_text("half")
    (folder / "spec.json").write_text("half")
    (folder / "history.csv").write_text("epoch\n1\n")
    run = store.get(SPEC, device="cpu")
    assert sorted(content(folder)) == FILES
    assert trained == [SPEC.name]
    assert_same_weights(run.model(), finished.model())


def test_a_run_that_was_stopped_goes_on(store: RunStore, finished: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*arguments: object, **options: object) -> Training:
        train(*arguments, **options)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("resnotes.runs.store.train", stopped)
        store.get(SPEC, device="cpu")
    assert (store.root / SPEC.name / "checkpoint.pt").exists()
    assert store.find(SPEC) is None
    run = store.get(SPEC, device="cpu")
    assert run.facts["resumed"] == 1
    assert sorted(content(run.folder)) == FILES
    assert_same_weights(run.model(), finished.model())


# Deepened networks


def test_a_deepened_run_starts_from_what_the_shallow_one_learned(
    store: RunStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = datasets.load("digits").test_images
    initial: dict[str, torch.Tensor] = {}

    def noting(
        network: Network, data: datasets.Classification, *rest: object, label: str, **options: object
    ) -> Training:
        with torch.no_grad():
            initial[label] = network.eval()(data.normalization(images))
        return train(network, data, *rest, label=label, **options)

    monkeypatch.setattr("resnotes.runs.store.train", noting)
    run = store.get(DEEPENED, device="cpu")
    assert list(initial) == [SPEC.name, DEEPENED.name]
    assert run.name.startswith("plain-14-from-plain-8-digits")
    normalization = datasets.load("digits").train_subset(128).normalization
    with torch.no_grad():
        expected = store.get(SPEC).model()(normalization(images))
    torch.testing.assert_close(initial[DEEPENED.name], expected, rtol=1e-3, atol=1e-4)
    assert run.model().name == "plain-14"
    with pytest.raises(RunError, match="iteration-000000"):
        run.model(0)  # these weights are not drawn from the seed


# Damage and other data


def read_all(run: Run) -> tuple[Network, Network, pd.DataFrame, RunSpec]:
    return run.model(), run.model(1), run.history, run.spec


@given(st.data(), st.sampled_from(FILES), st.booleans())
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_damage_is_never_read(finished: Run, tmp_path: Path, drawn: st.DataObject, file: str, cut: bool) -> None:
    original = (finished.folder / file).read_bytes()
    at = drawn.draw(st.integers(0, len(original) - 1))
    bit = 1 << drawn.draw(st.integers(0, 7))
    damaged = original[:at] if cut else original[:at] + bytes([original[at] ^ bit]) + original[at + 1 :]
    folder = shutil.copytree(finished.folder, tmp_path / SPEC.name, dirs_exist_ok=True)
    (folder / file).write_bytes(damaged)
    try:
        found = read_all(Run(folder))
    except RunError as error:
        assert str(folder) in str(error)
        return
    # Flipped bits in a remark of run.json, such as the machine's name, change nothing that is measured.
    assert file == "run.json"
    final, snapshot, history, spec = read_all(finished)
    assert_same_weights(found[0], final)
    assert_same_weights(found[1], snapshot)
    pd.testing.assert_frame_equal(found[2], history)
    assert found[3] == spec


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(stored: Run, file: str) -> None:
    (stored.folder / file).unlink()
    with pytest.raises(RunError, match=rf"{file}.*delete the folder to redo it"):
        read_all(stored)


@pytest.mark.parametrize("facts", ["[]", "3", "{}", '{"format": 2}', '{"format": 1, "dataset": 3, "files": 4}'])
def test_facts_of_another_kind_are_refused(store: RunStore, stored: Run, facts: str) -> None:
    (stored.folder / "run.json").write_text(facts)
    with pytest.raises(RunError, match=r"run\.json"):
        store.get(SPEC)


def test_weights_of_another_network_are_refused(store: RunStore, stored: Run) -> None:
    other = store.get(dataclasses.replace(SPEC, model="resnet-14"), device="cpu")
    shutil.copy(other.folder / "model.safetensors", stored.folder)
    finish(stored.folder, stored.facts)  # with checksums that agree
    with pytest.raises(RunError, match="does not fit plain-8"):
        Run(stored.folder).model()


@pytest.mark.usefixtures("other_data")
def test_a_run_on_other_data_is_no_answer(store: RunStore, stored: Run, finished: Run, trained: list[str]) -> None:
    before = content(stored.folder)
    message = rf"made on digits \({finished.fingerprint}\), but the data at hand is digits-jpeg \(0123456789abcdef\)"
    with pytest.raises(RunError, match=message):
        store.get(SPEC)
    with pytest.raises(RunError, match=message):
        verify(stored)
    assert trained == []
    assert content(stored.folder) == before


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="cannot write to the run store"):
        RunStore(tmp_path / "runs", tmp_path / "recorded").get(SPEC)


# Recorded runs


def test_recorded_runs_are_found_and_left_alone(
    store: RunStore, stored: Run, trained: list[str], tmp_path: Path
) -> None:
    recorded = record(stored, store.recorded)
    before = content(store.recorded)
    empty = RunStore(tmp_path / "empty", store.recorded)
    assert empty.get(SPEC) == recorded
    assert empty.find(SPEC) is None
    assert empty.find(SPEC, recorded=True) == recorded
    assert empty.finished(recorded=True) == [recorded]
    verify(recorded)
    assert trained == []
    assert not empty.root.exists()
    assert content(store.recorded) == before


def test_runs_can_be_recorded_without_weights(store: RunStore, stored: Run, trained: list[str], tmp_path: Path) -> None:
    recorded = record(stored, store.recorded, weights=False)
    assert not list(recorded.folder.glob("*.safetensors"))
    pd.testing.assert_frame_equal(recorded.history, stored.history)
    assert verify(recorded) == (stored.final["test_error"], None)
    with pytest.raises(RunError, match=r"has no model.safetensors"):
        recorded.model()
    assert list(record(stored, store.recorded).folder.glob("*.safetensors"))
    recorded = record(stored, store.recorded, weights=False)
    assert not list(recorded.folder.glob("*.safetensors")), "nothing is left of what was recorded before"
    assert [path.name for path in store.recorded.iterdir()] == [recorded.name]
    (recorded.folder / "history.csv").write_text("epoch\n1\n")
    with pytest.raises(RunError, match="not what the run wrote"):
        verify(Run(recorded.folder))

    empty = RunStore(tmp_path / "empty", store.recorded)
    assert empty.find(SPEC, recorded=True) == recorded
    assert_same_weights(empty.get(SPEC, device="cpu").model(), stored.model())  # what has no weights is trained
    assert trained == [SPEC.name]


@pytest.mark.usefixtures("other_data")
def test_recorded_runs_on_other_data_are_passed_over(store: RunStore, finished: Run, trained: list[str]) -> None:
    shutil.copytree(finished.folder, store.recorded / SPEC.name)
    run = store.get(SPEC, device="cpu")
    assert trained == [SPEC.name]
    assert (run.folder.parent, run.variant) == (store.root, "digits-jpeg")


@pytest.mark.parametrize(("shift", "dtype"), [(0.0, torch.float16), (0.01, torch.float32)])
def test_weights_are_halved_only_where_the_error_stays(
    store: RunStore, stored: Run, monkeypatch: pytest.MonkeyPatch, shift: float, dtype: torch.dtype
) -> None:
    judged: list[Network] = []

    def evaluated(network: Network, *_: object) -> Scores:
        judged.append(network)
        return Scores(0.0, stored.final.test_error + shift)

    monkeypatch.setattr(recording, "scores_on_test", evaluated)
    recorded = record(stored, store.recorded)
    [halved] = judged
    assert all(torch.equal(value, value.half().float()) for value in halved.parameters() if value.ndim > 1)
    assert recorded.facts["weights"] == str(dtype).removeprefix("torch.")
    tensors = load_file(recorded.folder / "model.safetensors")
    assert {value.dtype for value in tensors.values() if value.ndim > 1} == {dtype}
    assert {value.dtype for value in tensors.values() if value.ndim == 1} == {torch.float32}
    snapshot = "iteration-000001.safetensors"
    assert snapshot in stored.facts["files"]
    assert snapshot not in {*recorded.facts["files"], *(path.name for path in recorded.folder.iterdir())}
    assert recorded.snapshots == ()
    assert_same_weights(recorded.model(), halved if shift == 0 else stored.model())
    assert recorded.model().head.fc.weight.dtype == torch.float32
    assert recorded.spec == SPEC
    pd.testing.assert_frame_equal(recorded.history, stored.history)


def test_damaged_runs_are_not_recorded(store: RunStore, stored: Run) -> None:
    (stored.folder / "history.csv").write_text("epoch\n")
    with pytest.raises(RunError, match="not what the run wrote"):
        record(stored, store.recorded)
    assert store.finished(recorded=True) == []


def test_verification_evaluates_the_weights_again(store: RunStore, stored: Run) -> None:
    stated, measured = verify(stored)
    assert stated == stored.history.test_error.iloc[-1]
    assert measured == pytest.approx(stated, abs=1e-4)

    weights = load_file(stored.folder / "model.safetensors")
    weights["head.fc.weight"].zero_()  # every image gets the class of the largest bias
    weights["head.fc.bias"].copy_(torch.arange(10))
    save_file(weights, stored.folder / "model.safetensors")
    finish(stored.folder, stored.facts)
    labels = datasets.load("digits").test_labels
    assert verify(Run(stored.folder)) == (stated, pytest.approx(100 * (labels != 9).float().mean().item()))
