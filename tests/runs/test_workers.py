"""Processes that train: killed, orphaned, interrupted; and runs that diverge among others."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, as_completed
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from kit import calls
from kit.runs import LASTING as SPEC
from kit.runs import SHORT, timeless

import resnotes
from resnotes.errors import RunError, TrainingDiverged, UsageError
from resnotes.runs import workers
from resnotes.runs.store import RunStore
from resnotes.runs.sweep import failure
from resnotes.runs.workers import Workers
from resnotes.training.recipe import Recipe

DIVERGING = dataclasses.replace(SHORT, recipe=dataclasses.replace(SHORT.recipe, lr=1e30))


class Hasty(Workers):
    """They write checkpoints after every epoch."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return super().submit(calls.hasty, function, *args, **kwargs)


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs", tmp_path / "recorded")


# Killed processes


def test_a_call_whose_process_is_killed_is_made_again(tmp_path: Path) -> None:
    with Workers(2) as executor:
        futures = [executor.submit(calls.killed_at_first, tmp_path / "mark"), executor.submit(os.getpid)]
        assert futures[0].result() == "done"
        pid = futures[1].result()
        assert pid != os.getpid()
        assert pid in {future.result() for future in as_completed([executor.submit(os.getpid) for _ in range(4)])}


def test_a_call_that_kills_every_process_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ATTEMPTS", 2)
    with Workers(1) as executor:
        hopeless, after = executor.submit(calls.killed), executor.submit(os.getpid)
        with pytest.raises(RunError, match="was killed 2 times"):
            hopeless.result()
        assert after.result() != os.getpid()


def test_a_killed_worker_costs_no_finished_run_and_its_own_goes_on(
    store: RunStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "Workers", Hasty)
    monkeypatch.setenv("PIDS", str(tmp_path))
    specs = [SHORT, SPEC, dataclasses.replace(SPEC, model="resnet-8")]
    started = store.start(specs, device="cpu", workers=2)
    before = next(started).folder / "run.json"
    finished_at = before.stat().st_mtime_ns
    victim = calls.until(lambda: calls.begun(store.root, [spec.name for spec in specs[1:]], epochs=10))
    os.kill(int((tmp_path / victim).read_text()), signal.SIGKILL)
    finished = [store.find(SHORT), *started]
    assert before.stat().st_mtime_ns == finished_at
    assert [run.spec for run in finished] == specs
    assert [run.name for run in finished if run.facts["resumed"]] == [victim]
    assert [run.name for run in store.finished()] == sorted(spec.name for spec in specs)
    [resumed] = [run for run in finished if run.facts["resumed"]]
    straight = RunStore(tmp_path / "straight", tmp_path / "recorded").get(resumed.spec, device="cpu")
    pd.testing.assert_frame_equal(timeless(resumed.history), timeless(straight.history), check_exact=True)
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (resumed, straight)]
    assert weights[0] == weights[1]


# What they are given


def test_their_environment_is_that_of_the_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be forked from a process that was started under another one."""
    for value in ("one", "two"):
        monkeypatch.setenv("RESNOTES_OF_THE_MOMENT", value)
        with Workers(1) as executor:
            assert executor.submit(os.getenv, "RESNOTES_OF_THE_MOMENT").result() == value
    monkeypatch.delenv("RESNOTES_OF_THE_MOMENT")
    with Workers(1) as executor:
        assert executor.submit(os.getenv, "RESNOTES_OF_THE_MOMENT").result() is None


def test_they_work_in_the_folder_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        with Workers(1) as executor:
            assert executor.submit(os.getcwd).result() == str(tmp_path / name)


def test_they_have_one_thread() -> None:
    with Workers(1) as executor:
        assert executor.submit(torch.get_num_threads).result() == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process imports for itself")
def test_on_linux_none_imports_what_another_has_imported() -> None:
    """In a process of its own, as the tests of faults fork from a process that has imported more."""
    program = (
        "import json; from kit import calls; from resnotes.runs import workers\n"
        "with workers._context().Pool(1) as pool: print(json.dumps(pool.apply(calls.imported_before)))"
    )
    search = [str(Path(calls.__file__).parents[1]), str(Path(resnotes.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(search)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    modules = json.loads(done.stdout)
    assert {"torch._dynamo", "pandas"} <= set(modules)
    assert not any(module.startswith("resnotes") for module in modules), "it might be another checkout's"


@pytest.mark.parametrize(("value", "count"), [("3", 3), ("1", None), ("", 2)])
def test_how_many_there_are_by_default(monkeypatch: pytest.MonkeyPatch, value: str, count: int | None) -> None:
    monkeypatch.setenv("RESNOTES_WORKERS", value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(workers, "Workers", lambda number: number)
    assert workers.local_workers("cpu", None) == count
    assert workers.local_workers("cpu", 4) == 4  # whoever asks for a number gets it
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert workers.local_workers("cuda", None) is None  # a GPU trains one run at a time


@pytest.mark.parametrize("value", ["0", "-1", "two", "1.5", "10000"])
def test_a_default_that_is_no_number_of_processes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RESNOTES_WORKERS", value)
    with pytest.raises(UsageError, match=f"RESNOTES_WORKERS must be a number of processes.*found '{value}'"):
        workers.local_workers("cpu", None)


# The parent

PARENT = """
import signal
import sys
from pathlib import Path
from kit.calls import slow
from resnotes.runs.workers import Workers

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    with Workers(2) as executor:
        for future in [executor.submit(slow, Path(sys.argv[1]) / name) for name in "abcd"]:
            future.result()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    program = tmp_path / "parent.py"
    program.write_text(PARENT)
    search = [str(Path(calls.__file__).parents[1]), str(Path(resnotes.__file__).parents[1])]
    parent = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(search)},
        stdout=subprocess.PIPE,  # which the workers inherit: it ends with the last of them
        stderr=subprocess.DEVNULL,
    )
    try:
        calls.until(lambda: ((tmp_path / "a").exists() and (tmp_path / "b").exists()) or parent.poll() is not None)
        assert parent.poll() is None
        parent.send_signal(number)
        parent.communicate(timeout=60)
    finally:
        parent.kill()
    assert parent.returncode == -number if number == signal.SIGKILL else parent.returncode != 0
    assert not (tmp_path / "c").exists()  # what was pending did not begin


def test_nothing_is_waited_for_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Workers(1) as executor:
        under_way, pending = executor.submit(calls.slow, tmp_path / "a"), executor.submit(calls.slow, tmp_path / "b")
        calls.until((tmp_path / "a").exists)
        raise KeyboardInterrupt
    assert under_way.exception() is not None
    assert pending.cancelled()


def test_training_ends_when_nobody_takes_the_runs(store: RunStore) -> None:
    started = store.start([SHORT, dataclasses.replace(SPEC, recipe=Recipe(iterations=10**6))], device="cpu", workers=1)
    assert next(started).name == SHORT.name
    started.close()  # type: ignore[attr-defined]
    assert [run.name for run in store.finished()] == [SHORT.name]


def test_training_ends_when_no_run_was_ever_asked_for(store: RunStore) -> None:
    started = store.start([dataclasses.replace(SPEC, recipe=Recipe(iterations=10**6))], device="cpu", workers=1)
    [history] = calls.until(lambda: list(store.root.glob("*/history.csv")))
    started.close()  # type: ignore[attr-defined]
    epochs = history.read_text()
    time.sleep(1)  # for several more
    assert history.read_text() == epochs


# Runs that fail


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_that_diverges_does_not_stop_the_others(store: RunStore, count: int) -> None:
    others = [dataclasses.replace(SHORT, seed=seed) for seed in (1, 2)]
    with pytest.raises(TrainingDiverged, match=rf"^{DIVERGING.name}: the loss is nan in epoch 1"):
        store.get_all([others[0], DIVERGING, others[1]], device="cpu", workers=count)
    assert [run.name for run in store.finished()] == sorted(spec.name for spec in others)


def test_all_runs_that_failed_are_named(store: RunStore) -> None:
    again = dataclasses.replace(DIVERGING, seed=1)
    with pytest.raises(TrainingDiverged) as caught:
        store.get_all([DIVERGING, SHORT, again, again], device="cpu", workers=2)
    head, *lines = str(caught.value).splitlines()
    assert head == "2 runs failed, all others are there:"
    assert {line.partition(":")[0] for line in lines} == {DIVERGING.name, again.name}
    assert store.find(SHORT) is not None


def test_in_the_background_the_runs_before_one_that_failed_are_given_out(store: RunStore) -> None:
    started = store.start([SHORT, DIVERGING, dataclasses.replace(SHORT, seed=1)], device="cpu", workers=1)
    assert next(started).name == SHORT.name
    with pytest.raises(TrainingDiverged):
        next(started)
    assert len(store.finished()) == 2  # the last one, too


def test_what_a_sweep_gives_is_the_run_or_its_error(store: RunStore) -> None:
    impossible = dataclasses.replace(SHORT, train_images=16)  # less than a batch
    outcomes = {spec.name: result for spec, result in store.sweep([impossible, SHORT], device="cpu")}
    assert outcomes[SHORT.name] == store.find(SHORT)
    error = outcomes[impossible.name]
    assert isinstance(error, UsageError)
    assert str(error).startswith(f"{impossible.name}: ")


def test_errors_keep_the_type_that_they_have_in_common() -> None:
    one, two = UsageError("a: x"), UsageError("b: y")
    assert failure([one]) is one
    assert type(failure([one, two])) is UsageError
    assert type(failure([one, RunError("c: z")])) is RunError


def test_an_unexpected_error_of_a_worker_names_its_run(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Workers):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
            return super().submit(divmod, 1, 0)

    monkeypatch.setattr(workers, "Workers", Broken)
    with pytest.raises(RunError, match=rf"^{SHORT.name}: ZeroDivisionError"):
        store.get_all([SHORT], device="cpu", workers=2)


# Machines that do not share what they must


def test_other_data_on_another_machine_is_refused(store: RunStore) -> None:
    with pytest.raises(RunError, match="expected the data with fingerprint 0123; set RESNOTES_DATA"):
        store._train_elsewhere(SHORT, "cpu", "0123", [])
    assert not store.root.exists()


def test_a_run_that_does_not_appear_is_an_error(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker elsewhere says that it is finished, but its store is another one."""

    class Elsewhere(Workers):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
            return super().submit(str.strip, "")

    monkeypatch.setattr(workers, "Workers", Elsewhere)
    monkeypatch.setattr("resnotes.runs.store.VISIBLE_SECONDS", 0.2)
    monkeypatch.setattr("resnotes.runs.store.train", lambda *_, **__: pytest.fail("trained here"))
    with pytest.raises(RunError, match="do all machines share that folder"):
        store.get_all([SHORT], device="cpu", workers=2)


def test_a_file_system_without_locks_is_no_place_for_runs(store: RunStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is a mere file would outlive a worker that is killed, and stop whoever takes over."""
    fcntl = pytest.importorskip("fcntl")

    def missing(*_: object) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", missing)
    with pytest.raises(RunError, match=r"cannot write to the run store: .*on a file system with locks"):
        store.get(SHORT, device="cpu")
    assert not list(store.root.glob("*/run.json"))
