"""Processes that train, on this machine or on a Dask cluster: killed, orphaned, interrupted; and runs that diverge."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from kit import calls
from kit import runs as kit_runs
from kit.runs import LASTING, SHORT, assert_same_run

import resnotes
from resnotes.errors import RunError, TrainingDiverged, UsageError
from resnotes.runs import cluster, profiles, workers
from resnotes.runs.cluster import connected
from resnotes.runs.store import RunStore
from resnotes.runs.sweep import failure, in_order
from resnotes.runs.workers import Workers

DIVERGING = dataclasses.replace(SHORT, recipe=dataclasses.replace(SHORT.recipe, lr=1e30))
ENDLESS = dataclasses.replace(LASTING, recipe=dataclasses.replace(LASTING.recipe, iterations=10**6))
SEARCH = os.pathsep.join(str(Path(module.__file__ or "").parents[1]) for module in (calls, resnotes))

store = kit_runs.store


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A Dask scheduler and two processes."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'resnotes[cluster]'")
    dask = pytest.importorskip("dask")
    # A process that is killed is replaced, but a busy machine takes more than the 15 seconds that are waited for it.
    patient = dask.config.set({"distributed.deploy.lost-worker-timeout": "600s"})
    with (
        patient,
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            local_directory=str(tmp_path_factory.mktemp("dask")),
        ) as started,
    ):
        yield started


@pytest.fixture
def one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A Dask scheduler and a worker in this process; the parameter, if any, is its number of threads."""
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(
        n_workers=1,
        threads_per_worker=getattr(request, "param", 1),
        processes=False,
        host="127.0.0.1",
        protocol="tcp",
        dashboard_address=None,
        local_directory=str(tmp_path / "dask"),
    ) as started:
        yield started


@pytest.fixture(params=["processes", "cluster"])
def executor(request: pytest.FixtureRequest, store: RunStore) -> Iterator[Executor]:
    """Two processes of either kind."""
    if request.param == "processes":
        with Workers(2) as found:
            yield found
    else:
        with connected(request.getfixturevalue("two").scheduler_address, store.root) as found:
            yield found


# Killed processes


def test_a_call_whose_process_is_killed_is_made_again(executor: Executor, tmp_path: Path) -> None:
    calling = [executor.submit(calls.killed_at_first, tmp_path / "mark"), executor.submit(os.getpid)]
    assert calling[0].result() == "done"
    assert calling[1].result() != os.getpid()


def test_a_call_that_kills_every_process_fails_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "ATTEMPTS", 2)
    with Workers(1) as executor:
        hopeless, after = executor.submit(calls.killed), executor.submit(os.getpid)
        with pytest.raises(RunError, match="was killed 2 times"):
            hopeless.result()
        assert after.result() != os.getpid()


class Traced(Executor):
    """Whatever trains writes a checkpoint after every epoch, and leaves the number of its process in a folder."""

    def __init__(self, executor: Executor, folder: Path) -> None:
        self.executor, self.folder = executor, folder

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
        return self.executor.submit(calls.traced, self.folder, function, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.executor.shutdown(wait, cancel_futures=cancel_futures)


def test_a_killed_worker_costs_no_finished_run_and_its_own_goes_on(
    executor: Executor, store: RunStore, tmp_path: Path
) -> None:
    specs = [SHORT, LASTING, dataclasses.replace(LASTING, model="resnet-8")]
    outcomes = store.sweep(specs, device="cpu", executor=Traced(executor, tmp_path))
    with closing(in_order(specs, outcomes)) as runs:
        first = next(runs)
        finished_at = (first.folder / "run.json").stat().st_mtime_ns
        victim = calls.until(lambda: calls.begun(store.root, [spec.name for spec in specs[1:]], epochs=10))
        os.kill(int((tmp_path / victim).read_text()), signal.SIGKILL)
        finished = [first, *runs]
    assert (first.folder / "run.json").stat().st_mtime_ns == finished_at
    assert [run.spec for run in finished] == specs
    [resumed] = [run for run in finished if run.facts["resumed"]]
    assert resumed.name == victim
    assert not list(store.root.glob("*/checkpoint.pt"))
    assert_same_run(resumed, RunStore(tmp_path / "straight").get(resumed.spec, device="cpu"))


# What local ones are given


def test_they_work_in_the_environment_and_folder_of_the_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They may be forked from a process that was started elsewhere."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        monkeypatch.setenv("RESNOTES_OF_THE_MOMENT", name)
        with Workers(1) as executor:
            assert executor.submit(os.getcwd).result() == str(tmp_path / name)
            assert executor.submit(os.getenv, "RESNOTES_OF_THE_MOMENT").result() == name
            assert executor.submit(torch.get_num_threads).result() == 1


@pytest.mark.parametrize(("value", "count"), [("3", 3), ("1", None), ("", 2)])
def test_how_many_there_are_by_default(monkeypatch: pytest.MonkeyPatch, value: str, count: int | None) -> None:
    monkeypatch.setenv("RESNOTES_WORKERS", value)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(workers, "Workers", lambda number: number)
    assert workers.local_workers("cpu", None) == count
    assert workers.local_workers("cpu", 4) == 4  # whoever asks for a number gets it
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert workers.local_workers("cuda", None) is None  # a GPU trains one run at a time


@pytest.mark.parametrize("value", ["0", "-1", "two", "10000"])
def test_a_default_that_is_no_number_of_processes(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("RESNOTES_WORKERS", value)
    with pytest.raises(UsageError, match=f"RESNOTES_WORKERS must be a number of processes.*found '{value}'"):
        workers.local_workers("cpu", None)


# When they end

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
    parent = subprocess.Popen(
        [sys.executable, str(program), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": SEARCH},
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
    assert not (tmp_path / "c").exists()  # what was pending did not begin


def test_nothing_is_waited_for_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), Workers(1) as executor:
        under_way, pending = executor.submit(calls.slow, tmp_path / "a"), executor.submit(calls.slow, tmp_path / "b")
        calls.until((tmp_path / "a").exists)
        raise KeyboardInterrupt
    assert under_way.exception() is not None
    assert pending.cancelled()


def test_what_is_pending_on_a_cluster_is_cancelled_by_an_interrupt(one: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), connected(one.scheduler_address, tmp_path) as executor, executor:
        begun = executor.submit(calls.slow, tmp_path / "a", 1.0)
        pending = executor.submit(calls.slow, tmp_path / "b", 1.0)
        calls.until((tmp_path / "a").exists)
        raise KeyboardInterrupt
    calls.until(lambda: not one.scheduler.tasks)
    assert begun.cancelled() and pending.cancelled()
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("taken", [0, 1])
def test_training_ends_when_nobody_takes_the_runs(store: RunStore, taken: int) -> None:
    started = store.start([SHORT, ENDLESS], device="cpu", workers=1)
    for _ in range(taken):
        next(started)
    history = store.root / ENDLESS.name / "history.csv"
    calls.until(history.exists)
    del started
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


@pytest.mark.parametrize(
    ("instead", "message"),
    [((divmod, 1, 0), "ZeroDivisionError"), ((str.strip, ""), "do all machines share that folder")],
    ids=["it fails", "its run lies elsewhere"],
)
def test_a_worker_that_does_not_leave_a_run(
    store: RunStore, monkeypatch: pytest.MonkeyPatch, instead: tuple[Any, ...], message: str
) -> None:
    class Elsewhere(Workers):
        def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> "Future[Any]":
            return super().submit(*instead)

    monkeypatch.setattr("resnotes.runs.store.VISIBLE_SECONDS", 0.2)
    [(_, error)] = store.sweep([SHORT], device="cpu", executor=Elsewhere(1))
    assert isinstance(error, RunError)
    assert str(error).startswith(f"{SHORT.name}: ") and message in str(error)


# The command on a cluster

PROFILE = """
[small]
dataset = "digits"
models = ["plain-8 width=4", "resnet-8 width=4", "resnet-14 width=4"]
seeds = [0]
train_images = 64
[small.recipe]
iterations = 2
batch_size = 32
[small.recipes."resnet-8 width=4"]
lr = 1e30
"""


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resnotes: Callable[..., Any]) -> Any:
    """`resnotes train` of a small profile in which resnet-8 diverges: exit status, stdout and stderr."""
    (tmp_path / "tiny.toml").write_text(PROFILE)
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    monkeypatch.setenv("RESNOTES_RUNS", str(tmp_path / "runs"))
    return lambda *arguments: resnotes("train", "--profile", "tiny", "--device", "cpu", *arguments)


def test_the_command_trains_on_a_cluster(two: Any, train: Any, tmp_path: Path) -> None:
    status, stdout, stderr = train("--cluster", two.scheduler_address)
    specs = profiles.load("tiny").study("small").specs()
    assert status == 1
    assert {line.split()[0] for line in stdout.splitlines()} == {specs[0].name, specs[2].name}
    assert [run.name for run in RunStore(tmp_path / "runs").finished()] == sorted([specs[0].name, specs[2].name])
    announced, failed = stderr.splitlines()
    assert failed.startswith(f"resnotes: {specs[1].name}: the loss is ")
    with urllib.request.urlopen(announced.partition("workers; dashboard: ")[2], timeout=30) as page:
        assert b"Dask" in page.read()


@pytest.mark.parametrize(
    "address", ["tcp://127.0.0.1:{}", "tcp://", "nonsense", "http://127.0.0.1:8786", "tcp://h:99999"]
)
def test_a_scheduler_that_does_not_answer_is_named(
    train: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # nobody listens there
        asked = address.format(taken.getsockname()[1])
        status, stdout, stderr = train("--cluster", asked)
    assert (status, stdout) == (2, "")
    [line] = stderr.splitlines()
    assert line.startswith(f"resnotes: no Dask scheduler answers at {asked!r} ")
    assert not (tmp_path / "runs").exists()


def test_a_cluster_has_its_own_workers(train: Any) -> None:
    status, _, stderr = train("--cluster", "tcp://127.0.0.1:8786", "--workers", "2")
    assert (status, stderr.count("\n")) == (2, 1)
    assert "of --cluster, --workers and torchrun, expected one at most" in stderr


def test_without_dask_it_is_said_how_to_get_it(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    status, _, stderr = train("--cluster", "tcp://127.0.0.1:8786")
    assert (status, stderr.count("\n")) == (2, 1)
    assert "pip install 'resnotes[cluster]'" in stderr


# Workers of a cluster that cannot train


@pytest.mark.parametrize("one", [2], indirect=True)
def test_a_worker_of_several_threads_is_refused(one: Any, store: RunStore) -> None:
    with connected(one.scheduler_address, store.root) as executor:
        [(_, error)] = store.sweep([SHORT], device="cpu", executor=executor)
    assert "has 2 threads" in str(error) and "--nthreads 1" in str(error)
    assert not store.finished()
    assert not list(store.root.glob(".shared*"))


def test_a_worker_that_does_not_share_the_store_is_refused(
    one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with connected(one.scheduler_address, tmp_path) as executor:
        assert executor.submit(int, "3").result() == 3
        monkeypatch.setattr(cluster.Path, "exists", lambda _: False)
        with pytest.raises(RunError, match=f"does not see the run store {tmp_path};.*RESNOTES_RUNS"):
            executor.submit(int, "3").result()


def test_a_scheduler_that_goes_away_fails_what_is_left(one: Any, store: RunStore) -> None:
    with connected(one.scheduler_address, store.root) as executor:
        outcomes = store.sweep([LASTING], device="cpu", executor=executor)
        one.close()
        [(_, error)] = outcomes
    assert "connection to the scheduler broke" in str(error)
