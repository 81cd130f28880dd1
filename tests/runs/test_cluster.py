"""Sweeps on a real Dask cluster of two workers on this machine, one of which is killed."""

import dataclasses
import os
import signal
import socket
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from filelock import FileLock
from kit import calls
from kit.runs import LASTING as SPEC
from kit.runs import SHORT, timeless

from resnotes import cli
from resnotes.errors import ResnotesError, RunError
from resnotes.runs import cluster, profiles
from resnotes.runs.cluster import connected
from resnotes.runs.recording import verify
from resnotes.runs.store import RunStore
from resnotes.runs.sweep import in_order

distributed = pytest.importorskip("distributed", reason="Dask is not installed: pip install 'resnotes[cluster]'")
dask = pytest.importorskip("dask")

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


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A scheduler and two processes, which write checkpoints after every epoch."""
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
            preload="from resnotes.training import loop; loop.CHECKPOINT_SECONDS = 0.0",
        ) as started,
    ):
        yield started


@pytest.fixture
def one(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    """A scheduler and a worker in this process; the parameter, if any, is its number of threads."""
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


@pytest.fixture
def store(tmp_path: Path) -> RunStore:
    return RunStore(tmp_path / "runs", tmp_path / "recorded")


@pytest.fixture
def closed_port() -> Iterator[int]:
    """A port that nobody listens at: it is taken."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """`resnotes train` of a small profile in which resnet-8 diverges: exit status, stdout and stderr."""
    (tmp_path / "tiny.toml").write_text(PROFILE)
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    monkeypatch.setenv("RESNOTES_RUNS", str(tmp_path / "runs"))

    def call(*arguments: str) -> tuple[Any, str, str]:
        command = ["resnotes", "train", "--profile", "tiny", "--device", "cpu", *arguments]
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return ended.value.code or 0, *capsys.readouterr()

    return call


# Killed workers


def test_a_killed_worker_costs_no_finished_run_and_its_own_goes_on_elsewhere(
    two: Any, store: RunStore, tmp_path: Path
) -> None:
    specs = [
        SHORT,
        *(dataclasses.replace(SPEC, model=model, seed=seed) for seed in (0, 1) for model in ("plain-8", "resnet-8")),
    ]
    long = [spec.name for spec in specs[1:]]
    with distributed.Client(two.scheduler_address, set_as_default=False) as watching:
        numbers = watching.run(os.getpid)
        with connected(two.scheduler_address, store.root) as executor:
            runs = in_order(specs, store.sweep(specs, device="cpu", executor=executor))
            first = next(runs).folder / "run.json"
            before = first.stat().st_mtime_ns
            victim = calls.until(lambda: calls.begun(store.root, long, epochs=10))
            lock = store.root / ".locks" / f"{victim}.lock"
            [holder] = [number for number in numbers.values() if lock in opened(number)]
            os.kill(holder, signal.SIGKILL)
            finished = [store.find(SHORT), *runs]
        assert first.stat().st_mtime_ns == before
        replaced = calls.until(lambda: len(now := watching.run(os.getpid)) == 2 and now)
    assert holder not in replaced.values()

    assert [run.spec for run in finished if run] == specs
    assert [run.name for run in store.finished()] == sorted(spec.name for spec in specs)
    assert [run.name for run in finished if run and run.facts["resumed"]] == [victim]
    for run in store.finished():
        stored, measured = verify(run)
        assert measured == pytest.approx(stored, abs=1e-4)

    files = {path.relative_to(store.root) for path in store.root.rglob("*") if path.is_file()}
    kept = ("history.csv", "model.safetensors", "run.json", "spec.json")
    locks = {Path(".locks", f"{spec.name}.lock") for spec in specs}
    assert files == {Path(spec.name, file) for spec in specs for file in kept} | locks
    for path in locks:
        FileLock(store.root / path).acquire(timeout=0).lock.release()  # nobody holds it

    resumed = store.find(specs[1 + long.index(victim)])
    assert resumed is not None
    straight = RunStore(tmp_path / "straight", tmp_path / "recorded").get(resumed.spec, device="cpu")
    pd.testing.assert_frame_equal(timeless(resumed.history), timeless(straight.history), check_exact=True)
    weights = [(run.folder / "model.safetensors").read_bytes() for run in (resumed, straight)]
    assert weights[0] == weights[1]


def opened(number: int) -> list[Path]:
    """The files that a process has open."""
    import psutil

    return [Path(file.path) for file in psutil.Process(number).open_files()]


def test_a_call_that_kills_its_workers_fails_in_the_end(two: Any, tmp_path: Path) -> None:
    with connected(two.scheduler_address, tmp_path) as executor:
        hopeless, after = executor.submit(calls.killed), executor.submit(os.getpid)
        with pytest.raises(distributed.KilledWorker):
            hopeless.result()
        assert after.result() != os.getpid()


# The command


def test_the_command_trains_on_a_cluster(two: Any, train: Any, tmp_path: Path) -> None:
    study = tmp_path / "runs"
    status, stdout, stderr = train("--cluster", two.scheduler_address)
    specs = profiles.load("tiny").study("small").specs()
    assert status == 1
    assert {line.split()[0] for line in stdout.splitlines()} == {specs[0].name, specs[2].name}
    assert [run.name for run in RunStore(study).finished()] == sorted([specs[0].name, specs[2].name])
    announced, failed = stderr.splitlines()
    assert failed.startswith(f"resnotes: {specs[1].name}: the loss is ")
    link = announced.partition("workers; dashboard: ")[2]
    with urllib.request.urlopen(link, timeout=30) as page:
        assert b"Dask" in page.read()
    again = train("--cluster", two.scheduler_address)
    assert (again[0], sorted(again[1].splitlines())) == (1, sorted(stdout.splitlines()))


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:8786",
        "tcp://",
        "tcp://host",
        "tcp://host:0",
        "tcp://host:99999",
        "http://127.0.0.1:8786",
        "tcp://h:1/x",
    ],
)
def test_what_is_no_address_is_refused(train: Any, address: str) -> None:
    status, stdout, stderr = train("--cluster", address)
    assert (status, stdout, stderr.count("\n")) == (2, "", 1)
    assert f"{address!r} is no address of a scheduler; expected tcp://HOST:PORT" in stderr


def test_a_scheduler_that_does_not_answer_is_named(
    train: Any, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "TIMEOUT", 0.5)
    status, stdout, stderr = train("--cluster", f"tcp://127.0.0.1:{closed_port}")
    assert (status, stdout) == (2, "")
    assert stderr.splitlines()[-1].startswith(f"resnotes: no Dask scheduler answers at tcp://127.0.0.1:{closed_port} ")
    assert not (tmp_path / "runs").exists()


def test_a_cluster_has_its_own_workers(train: Any) -> None:
    status, _, stderr = train("--cluster", "tcp://127.0.0.1:8786", "--workers", "2")
    assert (status, stderr) == (
        *(2, "resnotes: of --cluster, --workers and torchrun, expected one at most: each has processes of its own\n"),
    )


def test_without_dask_it_is_said_how_to_get_it(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    status, _, stderr = train("--cluster", "tcp://127.0.0.1:8786")
    assert (status, stderr.count("\n")) == (2, 1)
    assert "pip install 'resnotes[cluster]'" in stderr


# Workers that cannot train


@pytest.mark.parametrize("one", [2], indirect=True)
def test_a_worker_of_several_threads_is_refused(one: Any, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has 2 threads.*--nthreads 1"), connected(one.scheduler_address, tmp_path):
        pass
    assert list(tmp_path.glob(".*")) == []


def test_a_worker_that_does_not_share_the_store_is_refused(
    one: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(cluster.Path, "exists", lambda _: False)
        refused = pytest.raises(RunError, match=f"does not see the run store {tmp_path};.*RESNOTES_RUNS")
        with refused, connected(one.scheduler_address, tmp_path):
            pass
    with connected(one.scheduler_address, tmp_path) as executor:
        assert executor.submit(int, "3").result() == 3
        monkeypatch.setattr(cluster.Path, "exists", lambda _: False)  # as for a worker that came later
        with pytest.raises(RunError, match="does not see the run store"):
            executor.submit(int, "3").result()


def test_what_is_pending_is_cancelled_by_an_interrupt(one: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), connected(one.scheduler_address, tmp_path) as executor, executor:
        begun = executor.submit(calls.slow, tmp_path / "a", 1.0)
        pending = executor.submit(calls.slow, tmp_path / "b", 1.0)
        calls.until((tmp_path / "a").exists)
        raise KeyboardInterrupt
    calls.until(lambda: not one.scheduler.tasks)
    assert begun.cancelled() and pending.cancelled()
    assert not (tmp_path / "b").exists()


def test_a_scheduler_that_goes_away_fails_what_is_left(one: Any, store: RunStore) -> None:
    endless = dataclasses.replace(SPEC, recipe=dataclasses.replace(SPEC.recipe, iterations=40))
    with connected(one.scheduler_address, store.root) as executor:
        outcomes = store.sweep([endless], device="cpu", executor=executor)
        one.close()
        [(_, error)] = outcomes
    assert isinstance(error, ResnotesError)
    assert "connection to the scheduler broke" in str(error)
