"""The run store: trained once, found again, never mistaken, and never read where it is damaged."""

import dataclasses
import hashlib
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit import runs as kit_runs
from kit.runs import SCENES, SPEC, assert_same_run, content, timeless
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from resnotes import datasets
from resnotes.errors import RunError, UsageError
from resnotes.runs import recording, workers
from resnotes.runs.folder import finish, histories
from resnotes.runs.recording import record, verify
from resnotes.runs.spec import RunSpec
from resnotes.runs.store import Run, RunStore, load_data
from resnotes.training.loop import Training, train
from resnotes.training.recipe import Recipe
from resnotes.training.task import Scores

DEEPENED = dataclasses.replace(SPEC, model="plain-14", start=SPEC)
FILES = ["history.csv", "iteration-000001.safetensors", "model.safetensors", "run.json", "spec.json"]

finished = kit_runs.finished
store = kit_runs.store


@pytest.fixture
def stored(store: RunStore, finished: Run) -> Run:
    """The same in the store of this test alone."""
    return Run(shutil.copytree(finished.folder, store.root / SPEC.name))


@pytest.fixture(scope="module", params=[SPEC, SCENES], ids=["classification", "segmentation"])
def of_each_task(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("task")
    return RunStore(folder / "runs", folder / "recorded").get(request.param, device="cpu")


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Tensor]]:
    """The initial weights of every run that is trained, by its name."""
    found: dict[str, dict[str, Tensor]] = {}

    def noting(network: nn.Module, *arguments: Any, label: str, **options: Any) -> Training:
        found[label] = {key: value.clone() for key, value in network.state_dict().items()}
        return train(network, *arguments, label=label, **options)

    monkeypatch.setattr("resnotes.runs.store.train", noting)
    return found


@pytest.fixture
def other_data(monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, the data at hand is not what the runs were made on."""
    digits = dataclasses.replace(datasets.load("digits"), variant="digits-jpeg", fingerprint="0123456789abcdef")
    monkeypatch.setattr(datasets, "load", lambda name: digits)


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    torch.testing.assert_close(left.state_dict(), right.state_dict(), rtol=0, atol=0)


# Specifications and their names

recipes = st.builds(
    Recipe,
    iterations=st.integers(1, 10**6),
    optimizer=st.sampled_from(["sgd", "adamw"]),
    lr=st.floats(1e-6, 10),
    schedule=st.sampled_from(["steps", "one-cycle", "poly", "cosine"]),
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


@pytest.mark.parametrize(
    "change", [{"dataset": "cifar10"}, {"options": {"width": 8}}, {"data": {"holdout": 5}}, {"model": "resnet-8"}]
)
def test_a_start_of_another_kind_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^plain-14 cannot start from .* must be the same"):
        dataclasses.replace(DEEPENED, start=dataclasses.replace(SPEC, **change))


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
        "null",
        '{"recipe": {}}',
        '{"recipe": {"iterations": 0}, "model": "m", "dataset": "d", "seed": 0}',
        '{"recipe": {"iterations": 1}, "model": "m", "dataset": "d", "seed": 0, "colour": 1}',
        '{"recipe": {"iterations": 1}, "model": "m", "dataset": "d", "seed": 0, "start": 3}',
    ],
)
def test_what_is_no_specification_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="no run specification"):
        RunSpec.from_json(text)


def test_lists_and_tuples_are_the_same_options() -> None:
    """JSON and TOML have lists only."""
    options = {**SCENES.options, "depths": [1, 1]}
    assert dataclasses.replace(SCENES, options=options) == RunSpec.from_json(SCENES.to_json()) == SCENES


def test_options_of_the_data_are_part_of_the_address_and_reach_its_loader() -> None:
    small = dataclasses.replace(SCENES, data={"train": 5, "test": 2, "seed": 3})
    assert small.name != SCENES.name
    data = load_data(small)
    assert data.sizes == (5, 2)
    assert data.fingerprint == datasets.load("scenes", train=5, test=2, seed=3).fingerprint
    assert load_data(dataclasses.replace(small, train_images=3)).sizes == (3, 2)
    with pytest.raises(UsageError, match="scenes takes no option 'sise'; allowed: train, test, seed"):
        load_data(dataclasses.replace(SCENES, data={"sise": 80}))


def test_recorded_runs_keep_their_address() -> None:
    for run in RunStore().finished(recorded=True):
        assert run.spec.name == run.name


# Trained once, found again


def test_a_run_is_trained_once(store: RunStore, trained: dict[str, Any]) -> None:
    assert store.find(SPEC) is None
    first, second = store.get(SPEC, device="cpu"), store.get(SPEC, device="cpu")
    assert list(trained) == [SPEC.name]
    assert first == second == store.find(SPEC)
    assert store.finished() == store.find_all([DEEPENED, SPEC]) == [first]


def test_a_finished_run_says_how_it_was_made(of_each_task: Run) -> None:
    spec, facts = of_each_task.spec, of_each_task.facts
    assert sorted(content(of_each_task.folder)) == FILES  # and no checkpoint
    data = load_data(spec)
    assert facts["dataset"] == {
        "variant": data.variant,
        "fingerprint": data.fingerprint,
        "train_images": data.sizes[0],
        "test_images": data.sizes[1],
        "channels": data.in_channels,
        "classes": data.num_classes,
    }
    assert (facts["device"], facts["precision"], facts["weights"], facts["resumed"]) == ("cpu", "float32", "float32", 0)
    assert (facts["threads"], facts["processes"]) == (torch.get_num_threads(), 1)
    assert {"versions", "code", "machine", "pretrained"} <= set(facts)
    assert facts["seconds"] == pytest.approx(of_each_task.history.seconds.sum(), abs=0.06)
    assert facts["files"] == {
        name: hashlib.sha256(data).hexdigest()
        for name, data in content(of_each_task.folder).items()
        if name != "run.json"
    }


def test_a_run_is_what_training_by_hand_gives(of_each_task: Run) -> None:
    spec = of_each_task.spec
    by_hand = of_each_task.model(0)
    result = train(by_hand, load_data(spec), spec.recipe, seed=0, device="cpu")
    assert_same_weights(of_each_task.model(), by_hand)
    pd.testing.assert_frame_equal(timeless(of_each_task.history), timeless(result.frame()))
    pd.testing.assert_series_equal(of_each_task.final, of_each_task.history.iloc[-1])


def test_histories_are_put_below_each_other(finished: Run) -> None:
    table = histories([finished, finished])
    assert len(table) == 2 * len(finished.history)
    assert set(table.model) | set(table.dataset) == {"plain-8 width=4", "digits"}
    assert histories([]).empty


def test_initial_weights_are_those_that_training_began_with(store: RunStore, trained: dict[str, Any]) -> None:
    torch.manual_seed(99)  # has no say
    run, other = (store.get(dataclasses.replace(SPEC, seed=seed), device="cpu") for seed in (0, 1))
    torch.testing.assert_close(dict(run.model(0).state_dict()), trained[run.name], rtol=0, atol=0)
    assert not torch.equal(other.model(0).stem.conv.weight, run.model(0).stem.conv.weight)


def test_models_come_ready_for_measurements(finished: Run) -> None:
    assert finished.moments == (0, 1, finished.spec.recipe.iterations)
    networks = [finished.model(iteration) for iteration in finished.moments]
    assert_same_weights(networks[-1], finished.model())
    for network in networks:
        assert not network.training
        assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
        assert (network.name, network.options["width"], network.options["in_channels"]) == ("plain-8", 4, 1)
    assert len({bytes(network.head.fc.weight.detach().numpy()) for network in networks}) == 3
    with pytest.raises(RunError, match=r"has no iteration-000002\.safetensors"):
        finished.model(2)


def test_weights_from_elsewhere_are_no_moment_of_a_run(store: RunStore) -> None:
    run = store.get(DEEPENED, device="cpu")
    assert run.moments == (1, DEEPENED.recipe.iterations)
    assert [run.model(moment).name for moment in run.moments] == ["plain-14", "plain-14"]
    with pytest.raises(RunError, match=r"has no iteration-000000\.safetensors"):
        run.model(0)


def test_several_at_once_equal_one_after_the_other(tmp_path: Path) -> None:
    asked = [SPEC, dataclasses.replace(SPEC, model="resnet-8"), SPEC]
    alone, together, background = (RunStore(tmp_path / name, tmp_path / "recorded") for name in ("1", "2", "3"))
    before = torch.random.get_rng_state()
    started = list(background.start(asked, device="cpu"))
    assert torch.equal(torch.random.get_rng_state(), before)  # this process trained nothing
    for runs in zip(
        alone.get_all(asked, device="cpu", workers=1),
        together.get_all(asked, device="cpu", workers=2),
        started,
        asked,
        strict=True,
    ):
        first, *others, spec = runs
        assert first.spec == spec
        for other in others:
            assert_same_run(other, first)


def test_finished_ones_start_nothing(store: RunStore, stored: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ProcessPoolExecutor", lambda *_: pytest.fail("a process, for nothing"))
    assert list(store.start([SPEC])) == [stored]


def test_a_deepened_run_starts_from_what_the_shallow_one_learned(store: RunStore, trained: dict[str, Any]) -> None:
    data = datasets.load("digits").train_subset(128)
    run = store.get(DEEPENED, device="cpu")
    assert list(trained) == [SPEC.name, DEEPENED.name]
    assert run.name.startswith("plain-14-from-plain-8-digits")
    network = run.model()
    assert network.name == "plain-14"
    network.load_state_dict(trained[run.name])
    images = data.normalization(data.test_images)
    with torch.no_grad():
        torch.testing.assert_close(network(images), store.get(SPEC).model()(images), rtol=1e-3, atol=1e-4)
    with pytest.raises(RunError, match="iteration-000000"):
        run.model(0)  # these weights are not drawn from the seed


# Damage and other data


def read_all(run: Run) -> tuple[dict[str, Tensor], dict[str, Tensor], str, RunSpec]:
    return run.model().state_dict(), run.model(1).state_dict(), run.history.to_csv(), run.spec


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
    torch.testing.assert_close(found[:2], read_all(finished)[:2], rtol=0, atol=0)
    assert found[2:] == read_all(finished)[2:]


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(stored: Run, file: str) -> None:
    (stored.folder / file).unlink()
    with pytest.raises(RunError, match=rf"{file}.*delete the folder to redo it"):
        read_all(stored)


@pytest.mark.parametrize("facts", ["[]", "{}", '{"format": 2}', '{"format": 1, "dataset": 3, "files": 4}'])
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
@pytest.mark.parametrize("ask", [lambda store, run: store.get(SPEC), lambda store, run: verify(run)])
def test_a_run_on_other_data_is_no_answer(store: RunStore, stored: Run, ask: Callable[[RunStore, Run], Any]) -> None:
    before = content(stored.folder)
    message = rf"made on digits \({stored.fingerprint}\), but the data at hand is digits-jpeg \(0123456789abcdef\)"
    with pytest.raises(RunError, match=message):
        ask(store, stored)
    assert content(stored.folder) == before


def test_a_file_where_the_store_should_be(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(RunError, match="cannot write to the run store"):
        RunStore(tmp_path / "runs", tmp_path / "recorded").get(SPEC)


# Recorded runs


def test_recorded_runs_are_found_and_left_alone(
    store: RunStore, stored: Run, trained: dict[str, Any], tmp_path: Path
) -> None:
    recorded = record(stored, store.recorded)
    before = content(store.recorded)
    empty = RunStore(tmp_path / "empty", store.recorded)
    assert empty.get(SPEC) == empty.find(SPEC, recorded=True) == recorded
    assert empty.find(SPEC) is None
    assert empty.finished(recorded=True) == [recorded]
    verify(recorded)
    assert not trained
    assert not empty.root.exists()
    assert content(store.recorded) == before


def test_runs_can_be_recorded_without_weights(store: RunStore, stored: Run, trained: dict[str, Any]) -> None:
    record(stored, store.recorded)
    recorded = record(stored, store.recorded, weights=False)
    assert sorted(content(recorded.folder)) == ["history.csv", "run.json", "spec.json"], "nothing of before is left"
    assert verify(recorded) == (stored.final["test_error"], None)
    with pytest.raises(RunError, match=r"has no model.safetensors"):
        recorded.model()
    empty = RunStore(store.root / "empty", store.recorded)
    assert_same_weights(empty.get(SPEC, device="cpu").model(), stored.model())  # what has no weights is trained
    assert list(trained) == [SPEC.name]
    (recorded.folder / "history.csv").write_text("epoch\n1\n")
    with pytest.raises(RunError, match="not what the run wrote"):
        verify(Run(recorded.folder))


@pytest.mark.usefixtures("other_data")
def test_recorded_runs_on_other_data_are_passed_over(store: RunStore, finished: Run, trained: dict[str, Any]) -> None:
    shutil.copytree(finished.folder, store.recorded / SPEC.name)
    run = store.get(SPEC, device="cpu")
    assert list(trained) == [SPEC.name]
    assert (run.folder.parent, run.variant) == (store.root, "digits-jpeg")


@pytest.mark.parametrize(
    ("error", "iou", "kind"), [(0.0, 0.0, "float16"), (0.01, 0.0, "float32"), (0.0, 0.01, "float32")]
)
def test_weights_are_halved_only_where_error_and_iou_stay(
    of_each_task: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float, iou: float, kind: str
) -> None:
    final = of_each_task.final
    if "test_iou" not in final and iou:
        pytest.skip("no IoU in classification")
    scores = Scores(0.0, final.test_error + error, final.test_iou + iou if "test_iou" in final else None)
    judged: list[nn.Module] = []
    monkeypatch.setattr(recording, "scores_on_test", lambda network, *_: judged.append(network) or scores)
    recorded = record(of_each_task, tmp_path)
    [halved] = judged
    assert all(torch.equal(value, value.half().float()) for value in halved.parameters() if value.ndim > 1)
    assert_same_weights(recorded.model(), halved if kind == "float16" else of_each_task.model())
    assert recorded.facts["weights"] == kind
    tensors = load_file(recorded.folder / "model.safetensors").values()
    assert {value.dtype for value in tensors if value.ndim > 1} == {getattr(torch, kind)}
    assert (recorded.moments[1:-1], recorded.spec) == ((), of_each_task.spec), "snapshots stay behind"
    pd.testing.assert_frame_equal(recorded.history, of_each_task.history)


def test_damaged_runs_are_not_recorded(store: RunStore, stored: Run) -> None:
    (stored.folder / "history.csv").write_text("epoch\n")
    with pytest.raises(RunError, match="not what the run wrote"):
        record(stored, store.recorded)
    assert store.finished(recorded=True) == []


def test_verification_evaluates_the_weights_again(of_each_task: Run, stored: Run) -> None:
    stated, measured = verify(of_each_task)
    assert measured == pytest.approx(stated, abs=1e-4)

    weights = load_file(stored.folder / "model.safetensors")
    weights["head.fc.weight"].zero_()  # every image gets the class of the largest bias
    weights["head.fc.bias"].copy_(torch.arange(10))
    save_file(weights, stored.folder / "model.safetensors")
    finish(stored.folder, stored.facts)
    labels = datasets.load("digits").test_labels
    assert verify(Run(stored.folder))[1] == pytest.approx(100 * (labels != 9).float().mean().item())
